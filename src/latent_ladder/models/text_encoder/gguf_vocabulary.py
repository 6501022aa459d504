"""The vocabulary of a GGUF text encoder as a SentencePiece model.

GGUF keeps pieces, scores and types as arrays; SentencePiece wants its own protobuf message. The
few fields needed are written here: the generated protobuf classes would be one more dependency
and take 20 seconds for a vocabulary of 262,144 pieces. Field numbers:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from latent_ladder.storage.atomic_write import cache_folder, write_atomically

_UNKNOWN, _CONTROL, _UNUSED = 2, 3, 5
"""Types of pieces; GGUF counts them as SentencePiece does."""

_BPE = 2

# Field numbers of TrainerSpec by what the metadata of a GGUF file call the piece: id, text.
_SPECIAL = {"unknown": (40, 45), "bos": (41, 46), "eos": (42, 47), "padding": (43, 48)}
_USUAL_IDS = {"unknown": 3, "bos": 2, "eos": 1, "padding": 0}
"""The ids of Gemma 3, where the file does not say."""


def sentencepiece_model(kv: Mapping[str, Any]) -> bytes | None:
    """The vocabulary in GGUF metadata as a serialised SentencePiece model; ``None`` without one.

    Text is taken as it is: no normalisation, no space put before it. Raises ``ValueError`` for
    arrays that do not fit each other and for a vocabulary of another kind.
    """
    kind, tokens = kv.get("tokenizer.ggml.model"), kv.get("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    if kind != "llama":
        raise ValueError(f"a vocabulary of the kind {kind!r}, known is 'llama' (SentencePiece)")
    scores = kv.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    types = list(kv.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{len(tokens)} pieces, {len(scores)} scores, {len(types)} types")
    ids = _special_ids(kv, len(tokens))
    types = [_UNUSED if kind == _UNKNOWN else kind for kind in types]
    for name, number in ids.items():
        types[number] = _UNKNOWN if name == "unknown" else _CONTROL
    # Spaces inside pieces are written as U+2581, as the text is before it is cut.
    texts = [token.replace(" ", "\u2581").encode(errors="surrogateescape") for token in tokens]
    packed = struct.pack(f"<{len(scores)}f", *scores)
    pieces = (
        _field(1, _field(1, text) + b"\x15" + packed[4 * n : 4 * n + 4] + _number(3, kind))
        for n, (text, kind) in enumerate(zip(texts, types, strict=True))
    )
    return b"".join(pieces) + _field(2, _trainer(texts, ids)) + _field(3, _NORMALIZER)


def _special_ids(kv: Mapping[str, Any], count: int) -> dict[str, int]:
    ids = {n: kv.get(f"tokenizer.ggml.{n}_token_id", usual) for n, usual in _USUAL_IDS.items()}
    for name, number in ids.items():
        if not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(f"{name}_token_id is {number!r}, there are {count} pieces")
    return ids


def _trainer(texts: list[bytes], ids: Mapping[str, int]) -> bytes:
    specials = (
        _number(id_field, ids[name]) + _field(text_field, texts[ids[name]])
        for name, (id_field, text_field) in _SPECIAL.items()
    )
    return _number(3, _BPE) + _number(4, len(texts)) + _number(35, 1) + b"".join(specials)


def _field(number: int, data: bytes) -> bytes:
    """A field of bytes, a text or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


_SMALL = tuple(bytes((value,)) for value in range(0x80))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)


_NORMALIZER = _field(1, b"identity") + _number(3, 0) + _number(4, 0) + _number(5, 1)
"""No dummy prefix, spaces kept and written as U+2581."""


# --- kept on disk ---------------------------------------------------------------------------------


def cached(name: str, build: Callable[[], bytes | None]) -> bytes | None:
    """``build()``, kept in the cache folder as ``name``; no error where it cannot be kept.

    ``name`` must tell the content apart. What lies there damaged is built again. The folder is
    ``LADDER_CACHE``, or the system's place for caches.
    """
    path = cache_folder() / "tokenizers" / name
    with suppress(OSError):
        kept = path.read_bytes()
        if kept[:_DIGEST] == _digest(kept[_DIGEST:]):
            return kept[_DIGEST:]
    data = build()
    if data is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _digest(data) + data)
    return data


_DIGEST = 16


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
