"""Convert the vocabulary of a GGUF text encoder to a SentencePiece model.

GGUF stores pieces, scores and types as arrays; SentencePiece reads a protobuf message. The few
fields that are needed are encoded here: the generated protobuf classes would be another dependency
and take 20 seconds for a vocabulary of 262,144 pieces. Field numbers:
https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from latent_ladder.storage.atomic_write import cache_folder, write_atomically

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5
"""Types of pieces, the same numbers in GGUF and SentencePiece."""

_BPE = 2

# Field numbers (id, text) of TrainerSpec, by the name of the special token in GGUF metadata.
_SPECIAL = {"unknown": (40, 45), "bos": (41, 46), "eos": (42, 47), "padding": (43, 48)}
_UNKNOWN_SURFACE = 44
"""Field number of the text that the unknown token is decoded to."""
_DEFAULT_IDS = {"unknown": 3, "bos": 2, "eos": 1, "padding": 0}
"""Token ids of Gemma 3 and 4, used if the file has none."""


def sentencepiece_model(kv: Mapping[str, Any]) -> bytes | None:
    """Serialise the vocabulary in GGUF metadata ``kv`` as a SentencePiece model, None if absent.

    The model does not normalise text and adds no leading space. Control tokens (``<bos>``,
    ``<start_of_turn>``, ...) become user-defined symbols: written in a text they are one token, as
    in the tokenizers of transformers and llama.cpp, and they are decoded to their text.
    Raises ``ValueError`` if the arrays have different lengths, and for a vocabulary of another
    kind.
    """
    kind, tokens = kv.get("tokenizer.ggml.model"), kv.get("tokenizer.ggml.tokens")
    if tokens is None:
        return None
    if kind != "llama":
        raise ValueError(f"vocabulary of kind {kind!r}, expected 'llama' (SentencePiece)")
    scores = kv.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    types = list(kv.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    if not len(tokens) == len(scores) == len(types):
        raise ValueError(f"{len(tokens)} pieces, {len(scores)} scores, {len(types)} types")
    ids = special_ids(kv, len(tokens))
    types = [_UNUSED if kind == _UNKNOWN else kind for kind in types]
    types = [
        _USER_DEFINED if kind == _CONTROL and text else kind
        for kind, text in zip(types, tokens, strict=True)
    ]
    for name, number in ids.items():
        types[number] = _UNKNOWN if name == "unknown" else _USER_DEFINED
    # SentencePiece writes spaces as U+2581, in pieces and in text.
    texts = [token.replace(" ", "\u2581").encode(errors="surrogateescape") for token in tokens]
    packed = struct.pack(f"<{len(scores)}f", *scores)
    pieces = (
        _bytes_field(
            1, _bytes_field(1, text) + b"\x15" + packed[4 * n : 4 * n + 4] + _int_field(3, kind)
        )
        for n, (text, kind) in enumerate(zip(texts, types, strict=True))
    )
    return (
        b"".join(pieces) + _bytes_field(2, _trainer_spec(texts, ids)) + _bytes_field(3, _NORMALIZER)
    )


def bpe_tokenizer(kv: Mapping[str, Any]) -> bytes | None:
    """A ``tokenizer.json`` of a vocabulary with merges, as Gemma 4 has, ``None`` without merges.

    Spaces become U+2581, characters without a piece become pieces of bytes. Raises ``ValueError``
    if the arrays have different lengths.
    """
    tokens, merges = kv.get("tokenizer.ggml.tokens"), kv.get("tokenizer.ggml.merges")
    if tokens is None or merges is None:
        return None
    types = list(kv.get("tokenizer.ggml.token_type") or [1] * len(tokens))
    if len(tokens) != len(types):
        raise ValueError(f"{len(tokens)} pieces, {len(types)} types")
    ids = special_ids(kv, len(tokens))
    special = set(ids.values()) | {n for n, kind in enumerate(types) if kind in _ADDED}
    added = [
        {"id": n, "content": tokens[n], "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
        for n in sorted(special)
    ]  # fmt: skip
    model = {
        "type": "BPE",
        "unk_token": tokens[ids["unknown"]],
        "fuse_unk": True,
        "byte_fallback": True,
        "vocab": {token: n for n, token in enumerate(tokens)},
        "merges": [merge.split(" ", 1) for merge in merges],
    }
    decoders = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    document = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    return json.dumps(document).encode()


_ADDED = (3, 4)
"""Types of pieces that stand for themselves in a text: control and user-defined ones."""


def special_ids(kv: Mapping[str, Any], count: int) -> dict[str, int]:
    """Ids of the tokens ``unknown``, ``bos``, ``eos`` and ``padding``; ``ValueError`` if wrong."""
    ids = {
        n: kv.get(f"tokenizer.ggml.{n}_token_id", default) for n, default in _DEFAULT_IDS.items()
    }
    for name, number in ids.items():
        if not isinstance(number, int) or not 0 <= number < count:
            raise ValueError(f"{name}_token_id is {number!r}, there are {count} pieces")
    return ids


def _trainer_spec(texts: list[bytes], ids: Mapping[str, int]) -> bytes:
    specials = (
        _int_field(id_field, ids[name]) + _bytes_field(text_field, texts[ids[name]])
        for name, (id_field, text_field) in _SPECIAL.items()
    )
    surface = _bytes_field(_UNKNOWN_SURFACE, texts[ids["unknown"]])
    return (
        surface
        + _int_field(3, _BPE)
        + _int_field(4, len(texts))
        + _int_field(35, 1)
        + b"".join(specials)
    )


def _bytes_field(number: int, data: bytes) -> bytes:
    """Encode a field of bytes, text or a message."""
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


_SMALL = tuple(bytes((value,)) for value in range(0x80))


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SMALL[value]
    return bytes((value & 0x7F | 0x80,)) + _varint(value >> 7)


_NORMALIZER = _bytes_field(1, b"identity") + _int_field(3, 0) + _int_field(4, 0) + _int_field(5, 1)
"""NormalizerSpec: no dummy prefix, keep spaces, write them as U+2581."""


# --- cache on disk --------------------------------------------------------------------------------


def read_or_build(name: str, build: Callable[[], bytes | None]) -> bytes | None:
    """Read ``name`` from the cache folder, or call ``build`` and store the result there.

    ``name`` must identify the content. A damaged file is built again; failure to write is ignored.
    The cache folder is ``LADDER_CACHE``, or the system's cache folder.
    """
    path = cache_folder() / "tokenizers" / name
    with suppress(OSError):
        stored = path.read_bytes()
        if stored[:_DIGEST] == _digest(stored[_DIGEST:]):
            return stored[_DIGEST:]
    data = build()
    if data is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, _digest(data) + data)
    return data


_DIGEST = 16


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
