"""Prompts to token ids, as the text encoder's own vocabulary cuts them.

The vocabulary travels with the model: SentencePiece bytes or a ``tokenizer.json`` stored as a
tensor inside the text encoder's file, the metadata of a GGUF file, or a file beside it. Imports no
torch, so that ``ladder plan`` can warn about a prompt that is cut or uses unknown words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout
from latent_ladder.models.text_encoder.gguf_vocabulary import cached, sentencepiece_model

DEFAULT_TEXT_LENGTH = 1024
"""Tokens of the text context of LTX-2.0 to 2.5 (``TOKENIZER_MAX_LENGTH`` of the official code)."""

LENGTH_KEY, WORDS_KEY = "text_length", "known_words"
"""Optional entries of a text encoder's header: the context length its connectors were trained
with, where it is not 1024, and a JSON list of the words it has seen."""


@dataclass(frozen=True)
class Tokens:
    """One prompt as ids, BOS first, without padding; ``total`` counts what there was uncut."""

    ids: tuple[int, ...]
    total: int
    kept_text: str
    cut_text: str

    def padded(self, length: int, pad: int = 0) -> tuple[list[int], list[int]]:
        """Ids and attention mask (1 = token), padded on the left to ``length``."""
        missing = length - len(self.ids)
        return [pad] * missing + list(self.ids), [0] * missing + [1] * len(self.ids)


@dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: text to piece ids and back, and the ids of its begin and padding tokens."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    bos: int
    pad: int

    def tokenize(self, prompt: str, length: int) -> Tokens:
        """Cut the stripped prompt; BOS, no EOS, at most ``length`` ids, the end is dropped."""
        text = prompt.strip()
        ids = self.encode(text)
        kept = ids[: length - 1]
        end = len(text)
        if len(kept) < len(ids):
            # Pieces of one character may be cut apart: what decodes to the same text was kept.
            end = _agreement(self.decode(kept), text)
        return Tokens((self.bos, *kept), len(ids) + 1, text[:end], text[end:])


def _agreement(one: str, other: str) -> int:
    """How many characters two texts share from the start."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class TokenReport:
    """What a text encoder sees of a prompt. ``cut_text`` is empty where everything fits."""

    n_tokens: int
    limit: int
    kept_text: str
    cut_text: str
    unknown_words: tuple[str, ...]


def token_report(
    prompt: str, text_encoder: Component, tokenizer: Tokenizer | None = None
) -> TokenReport:
    """Count the prompt's tokens (BOS included) against the limit, and name what gets lost.

    ``unknown_words`` stays empty unless the file lists the words it knows. Pass ``tokenizer`` to
    report on several prompts with one vocabulary.
    """
    limit = text_length(text_encoder)
    tokens = (tokenizer or load_tokenizer(text_encoder)).tokenize(prompt, limit)
    words = unknown_words(prompt, text_encoder)
    return TokenReport(tokens.total, limit, tokens.kept_text, tokens.cut_text, words)


def text_length(text_encoder: Component) -> int:
    """Tokens of the text context: the header's ``text_length``, 1024 where it has none."""
    stated = text_encoder.file.metadata.get(LENGTH_KEY)
    if stated is None:
        return DEFAULT_TEXT_LENGTH
    if not stated.isdecimal() or int(stated) < 2:
        raise _damaged(text_encoder, f"`{LENGTH_KEY}` in its header is {stated!r}")
    return int(stated)


_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_ENDINGS = ("'s", "s'", "es", "s", "'")


def unknown_words(prompt: str, text_encoder: Component) -> tuple[str, ...]:
    """Lower-cased words of the prompt that the text encoder never saw, in order, each once.

    Plurals and possessives of known words count as known. Empty where the file has no word list.
    """
    known = _known_words(text_encoder)
    if known is None:
        return ()
    words = (word.lower().replace("\u2019", "'") for word in _WORD.findall(prompt))
    return tuple(dict.fromkeys(word for word in words if not _is_known(word, known)))


def _is_known(word: str, known: frozenset[str]) -> bool:
    stems = (word.removesuffix(ending) for ending in _ENDINGS)
    return word in known or any(stem in known for stem in stems if stem)


def _known_words(text_encoder: Component) -> frozenset[str] | None:
    text = text_encoder.file.metadata.get(WORDS_KEY)
    if text is None:
        return None
    try:
        words = json.loads(text)
    except ValueError as error:
        raise _damaged(text_encoder, f"`{WORDS_KEY}` in its header is not JSON") from error
    if not isinstance(words, list):
        raise _damaged(text_encoder, f"`{WORDS_KEY}` in its header is not a list")
    return frozenset(str(word).lower() for word in words)


def load_tokenizer(text_encoder: Component) -> Tokenizer:
    """The vocabulary stored in the text encoder's file, or lying beside it.

    Looked for in this order: tensor ``spiece_model``, tensor ``tokenizer_json``, the metadata of
    a GGUF file, files ``tokenizer.model`` and ``tokenizer.json`` in the same folder. Raises
    :class:`UnknownLayout` when there is none, :class:`CorruptCheckpoint` when it is damaged.
    """
    folder = text_encoder.file.path.parent
    sources: tuple[tuple[_Build, Callable[[], bytes | None]], ...] = (
        (_from_sentencepiece, lambda: _stored_bytes(text_encoder, "spiece_model")),
        (_from_tokenizer_json, lambda: _stored_bytes(text_encoder, "tokenizer_json")),
        (_from_sentencepiece, lambda: _from_metadata(text_encoder)),
        (_from_sentencepiece, lambda: _file_bytes(folder / "tokenizer.model")),
        (_from_tokenizer_json, lambda: _file_bytes(folder / "tokenizer.json")),
    )
    for build, read in sources:
        try:
            if data := read():
                return build(data)
        except (RuntimeError, ValueError, KeyError) as error:
            raise _damaged(text_encoder, f"its tokenizer cannot be read: {error}") from error
    raise UnknownLayout(
        f"{text_encoder.file.path.name}: no tokenizer in the text encoder's file or beside it",
        f"put the model's tokenizer.model or tokenizer.json into {folder}",
    )


_Build = Callable[[bytes], Tokenizer]


def _stored_bytes(text_encoder: Component, key: str) -> bytes | None:
    """The bytes of a U8 tensor."""
    if key not in text_encoder:
        return None
    return text_encoder.file.read_bytes(text_encoder.names[key])


def _from_metadata(text_encoder: Component) -> bytes | None:
    """The vocabulary of a GGUF file. Built once per file and kept: it takes about a second."""
    file = text_encoder.file
    if file.container != "gguf":
        return None
    return cached(f"1-{file.id}.model", lambda: sentencepiece_model(file.kv))


def _file_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _from_sentencepiece(data: bytes) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=data)
    pad = max(processor.pad_id(), 0)
    return Tokenizer(processor.encode, processor.decode, processor.bos_id(), pad)


def _from_tokenizer_json(data: bytes) -> Tokenizer:
    from tokenizers import Tokenizer as JsonTokenizer

    processor = JsonTokenizer.from_buffer(data)
    bos = processor.token_to_id("<bos>")
    if bos is None:
        raise ValueError("it has no <bos> token")

    def encode(text: str) -> list[int]:
        return list(processor.encode(text, add_special_tokens=False).ids)

    return Tokenizer(encode, processor.decode, bos, processor.token_to_id("<pad>") or 0)


def _damaged(text_encoder: Component, what: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{text_encoder.file.path.name}: damaged, {what}", "download the file again"
    )
