"""Tokenizer of the text encoder: prompts to token ids.

The vocabulary is stored with the model: SentencePiece data or a ``tokenizer.json`` as a tensor in
the text encoder's file, the metadata of a GGUF file, or a file next to it. Imports no torch, so
that ``ladder plan`` can warn about a truncated prompt or unknown words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout
from latent_ladder.models.text_encoder.gguf_vocabulary import (
    bpe_tokenizer,
    read_or_build,
    sentencepiece_model,
    special_ids,
)

DEFAULT_TEXT_LENGTH = 1024
"""Tokens of the text context of LTX-2.0 to 2.5 (``TOKENIZER_MAX_LENGTH`` of the official code)."""

LENGTH_KEY, WORDS_KEY = "text_length", "known_words"
"""Optional entries of a text encoder's header: the context length that its connectors were trained
with (default 1024), and a JSON list of the words in its training data."""


COMFYUI_SPECIAL = ("<image_soft_token>", "<end_of_turn>")
"""Texts that ComfyUI encodes as one token each."""
_GEMMA_3_PIECES, _IMAGE_TOKEN = 262_144, 262_144
"""The image token of Gemma 3 follows the pieces of its SentencePiece vocabulary."""


@dataclass(frozen=True)
class TokenizedPrompt:
    """Token ids of a prompt, BOS first, without padding; ``total``: count before truncation."""

    ids: tuple[int, ...]
    total: int
    kept_text: str
    cut_text: str

    def pad_left(self, length: int, pad: int = 0) -> tuple[list[int], list[int]]:
        """Pad ids on the left to ``length``; returns ids and attention mask (1 for tokens)."""
        missing = length - len(self.ids)
        return [pad] * missing + list(self.ids), [0] * missing + [1] * len(self.ids)


@dataclass(frozen=True)
class Tokenizer:
    """Tokenizer: text to token ids and back, and the ids of its BOS and padding tokens."""

    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    bos: int
    pad: int
    special: Mapping[str, int] = field(default_factory=dict)
    """Ids of the :data:`COMFYUI_SPECIAL` tokens that the vocabulary has."""

    def tokenize(self, prompt: str, length: int) -> TokenizedPrompt:
        """Tokenize the stripped prompt: BOS, no EOS, truncated to ``length`` ids.

        A prompt that begins with the text of the BOS token gets no second one.
        """
        text = prompt.strip()
        ids = self.encode(text)
        if ids[:1] != [self.bos]:
            ids = [self.bos, *ids]
        truncated = ids[:length]
        end = len(text)
        if len(truncated) < len(ids):
            # Truncation may split the tokens of a character: keep the text that still decodes.
            # SentencePiece reads U+2581 as a space.
            readable = text.replace("\u2581", " ")
            end = _common_prefix_length(self.decode(truncated[1:]), readable)
        return TokenizedPrompt(tuple(truncated), len(ids), text[:end], text[end:])

    def tokenize_as_comfyui(self, prompt: str) -> tuple[int, ...]:
        """Token ids of a prompt as ComfyUI encodes it, BOS first.

        White space is kept and nothing is truncated; ``\\(`` and ``\\)`` mean parentheses;
        special tokens that the text contains get their own id.
        """
        text = prompt.replace("\\)", ")").replace("\\(", "(")
        names = "|".join(map(re.escape, self.special))
        parts = re.split(f"({names})", text) if names else [text]
        ids: list[int] = []
        for part in filter(None, parts):
            ids += [self.special[part]] if part in self.special else self.encode(part)
        return (self.bos, *ids)


def _common_prefix_length(one: str, other: str) -> int:
    """Number of characters of the common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class TokenReport:
    """Token count of a prompt, and its truncated text and unknown words.

    ``cut_text`` is the text after the limit, empty if the whole prompt fits.
    """

    n_tokens: int
    limit: int
    kept_text: str
    cut_text: str
    unknown_words: tuple[str, ...]


def token_report(
    prompt: str, text_encoder: Component, tokenizer: Tokenizer | None = None
) -> TokenReport:
    """Count the prompt's tokens (with BOS) and report truncated text and unknown words.

    ``unknown_words`` is empty unless the file has a list of known words. Pass ``tokenizer`` to
    load it only once for several prompts. Raises the errors of :func:`load_tokenizer`.
    """
    limit = text_length(text_encoder)
    tokenizer = tokenizer or load_tokenizer(text_encoder)
    tokens = tokenizer.tokenize(fold_case(prompt, text_encoder, tokenizer), limit)
    words = unknown_words(prompt, text_encoder)
    text_encoder.file.cached["tokens", prompt] = tokens.total
    return TokenReport(tokens.total, limit, tokens.kept_text, tokens.cut_text, words)


def prompt_length(prompt: str, text_encoder: Component) -> int:
    """Tokens of a prompt that the text encoder reads, at most :func:`text_length`; counted once.

    Raises the errors of :func:`load_tokenizer`.
    """
    known = text_encoder.file.cached
    if ("tokens", prompt) not in known:
        token_report(prompt, text_encoder)
    return min(int(known["tokens", prompt]), text_length(text_encoder))


def text_length(text_encoder: Component) -> int:
    """Number of tokens of the text context: ``text_length`` in the header, else 1024."""
    value = text_encoder.file.metadata.get(LENGTH_KEY)
    if value is None:
        return DEFAULT_TEXT_LENGTH
    if not value.isdecimal() or int(value) < 2:
        raise _corrupt(text_encoder, f"`{LENGTH_KEY}` in its header is {value!r}")
    return int(value)


_WORD = re.compile(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)*")
_SIGN = re.compile(r"\d+|[^\w\s.,;:!?'\"()\u2018-\u201d\u2010-\u2015\u2026-]+")
"""Digits, symbols and emoji: all that is neither a word nor common punctuation."""
_ENDINGS = ("'s", "s'", "es", "s", "'")


def unknown_words(prompt: str, text_encoder: Component) -> tuple[str, ...]:
    """Find words of the prompt (lower case, each once) that the text encoder was not trained on.

    Plurals and possessives of known words count as known. Digits, symbols and emoji are words of
    their own, after the others. Empty if the file has no word list.
    """
    known = _known_words(text_encoder)
    if known is None:
        return ()
    words = (word.lower().replace("\u2019", "'") for word in _WORD.findall(prompt))
    signs = (sign for sign in _SIGN.findall(prompt) if sign not in known)
    return tuple(dict.fromkeys([*(word for word in words if not _is_known(word, known)), *signs]))


def fold_case(prompt: str, text_encoder: Component, tokenizer: Tokenizer | None = None) -> str:
    """The prompt in the case that the text encoder was trained with; usually the prompt itself.

    A vocabulary that lists its words, all of them in lower case, splits ``Ball`` or ``RED`` into
    letters that it never learned. Words with capitals become lower case then, except those that are
    one token as they are, such as ``The`` at the start of a sentence.
    """
    if prompt == prompt.lower():
        return prompt
    known = _known_words(text_encoder)
    if known is None:
        return prompt
    encode = (tokenizer or load_tokenizer(text_encoder)).encode

    def fold(match: re.Match[str]) -> str:
        word = match[0]
        is_token = word == word.lower() or 1 in (len(encode(word)), len(encode(f" {word}")))
        return word if is_token else word.lower()

    return _WORD.sub(fold, prompt)


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
        raise _corrupt(text_encoder, f"`{WORDS_KEY}` in its header is not JSON") from error
    if not isinstance(words, list):
        raise _corrupt(text_encoder, f"`{WORDS_KEY}` in its header is not a list")
    return frozenset(str(word).lower() for word in words)


def load_tokenizer(text_encoder: Component) -> Tokenizer:
    """Load the tokenizer from the text encoder's file or its folder.

    Sources in this order: tensor ``spiece_model``, tensor ``tokenizer_json``, the metadata of a
    GGUF file, files ``tokenizer.model`` and ``tokenizer.json`` in the same folder. Raises
    :class:`UnknownLayout` if there is none, and :class:`CorruptCheckpoint` if it is damaged.
    """
    folder = text_encoder.file.path.parent
    sources: tuple[tuple[_Build, Callable[[], bytes | None]], ...] = (
        (_from_sentencepiece, lambda: _tensor_bytes(text_encoder, "spiece_model")),
        (_from_tokenizer_json, lambda: _tensor_bytes(text_encoder, "tokenizer_json")),
        (_from_tokenizer_json, lambda: _gguf_merges(text_encoder)),
        (partial(_from_gguf, text_encoder), lambda: _gguf_vocabulary(text_encoder)),
        (_from_sentencepiece, lambda: _file_bytes(folder / "tokenizer.model")),
        (_from_tokenizer_json, lambda: _file_bytes(folder / "tokenizer.json")),
    )
    for build, read in sources:
        try:
            if data := read():
                return build(data)
        except (RuntimeError, ValueError, KeyError) as error:
            raise _corrupt(text_encoder, f"its tokenizer cannot be read: {error}") from error
    raise UnknownLayout(
        f"{text_encoder.file.path.name}: no tokenizer in the text encoder's file or next to it",
        f"put the model's tokenizer.model or tokenizer.json into {folder}",
    )


_Build = Callable[[bytes], Tokenizer]


def _tensor_bytes(text_encoder: Component, key: str) -> bytes | None:
    """Read the bytes of a U8 tensor, None if the file does not have it."""
    if key not in text_encoder:
        return None
    return text_encoder.file.read_bytes(text_encoder.names[key])


def _gguf_vocabulary(text_encoder: Component) -> bytes | None:
    """SentencePiece model of a GGUF file; cached per file, as building it takes about a second."""
    file = text_encoder.file
    if file.container != "gguf":
        return None
    return read_or_build(f"2-{file.id}.model", lambda: sentencepiece_model(file.kv))


def _gguf_merges(text_encoder: Component) -> bytes | None:
    """``tokenizer.json`` of a GGUF file whose vocabulary has merges, which Gemma 3 has not."""
    file = text_encoder.file
    if file.container != "gguf" or "tokenizer.ggml.merges" not in file.kv:
        return None
    return read_or_build(f"1-{file.id}.json", lambda: bpe_tokenizer(file.kv))


def _file_bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _from_sentencepiece(data: bytes) -> Tokenizer:
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=data)
    pad = max(processor.pad_id(), 0)
    ids = {name: processor.piece_to_id(name) for name in COMFYUI_SPECIAL}
    special = {name: number for name, number in ids.items() if number != processor.unk_id()}
    if processor.get_piece_size() == _GEMMA_3_PIECES:
        special.setdefault("<image_soft_token>", _IMAGE_TOKEN)
    return Tokenizer(processor.encode, processor.decode, processor.bos_id(), pad, special)


def _from_gguf(text_encoder: Component, data: bytes) -> Tokenizer:
    """The tokenizer of a GGUF file: its model, and the ids of special tokens in its metadata."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=data)
    ids = special_ids(text_encoder.file.kv, processor.get_piece_size())
    unknown = processor.id_to_piece(ids["unknown"])

    def encode(text: str) -> list[int]:
        # SentencePiece cannot match the unknown token in a text.
        first, *others = text.split(unknown) if unknown else [text]
        found = list(processor.encode(first))
        for part in others:
            found += [ids["unknown"], *processor.encode(part)]
        return found

    return Tokenizer(encode, processor.decode, ids["bos"], ids["padding"])


def _from_tokenizer_json(data: bytes) -> Tokenizer:
    from tokenizers import Tokenizer as JsonTokenizer

    processor = JsonTokenizer.from_buffer(data)
    bos = processor.token_to_id("<bos>")
    if bos is None:
        raise ValueError("it has no <bos> token")

    def encode(text: str) -> list[int]:
        return list(processor.encode(text, add_special_tokens=False).ids)

    def decode(ids: list[int]) -> str:
        return str(processor.decode(ids, skip_special_tokens=False))

    known = {name: processor.token_to_id(name) for name in COMFYUI_SPECIAL}
    special = {name: number for name, number in known.items() if number is not None}
    return Tokenizer(encode, decode, bos, processor.token_to_id("<pad>") or 0, special)


def _corrupt(text_encoder: Component, problem: str) -> CorruptCheckpoint:
    return CorruptCheckpoint(
        f"{text_encoder.file.path.name}: damaged, {problem}", "download the file again"
    )
