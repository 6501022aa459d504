"""The metadata of a GGUF file, parsed only where it is asked for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Opening steps over every value:
by arithmetic over arrays of numbers, from length to length over arrays of texts.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.checkpoints.mmap_file import MappedFile, damaged
from latent_ladder.errors import CorruptCheckpoint

MAX_HEADER_BYTES = 100_000_000
"""Far above any tokenizer; keeps a damaged count from walking through gigabytes of weights."""

MAX_ARRAY_DEPTH = 4

STRING, ARRAY = 8, 9
NUMBERS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Value type -> struct code."""


_FORMS = {code: struct.Struct(f"<{code}") for code in NUMBERS.values()}


class Value(NamedTuple):
    """Where a metadata value begins, and its type."""

    type: int
    at: int


@dataclass(frozen=True)
class KeyValues(Mapping[str, Any]):
    """The metadata of a GGUF file: numbers, booleans, texts, and arrays of them as lists.

    A value is parsed when it is asked for the first time. Bytes in an array of texts that are no
    UTF-8 (pieces of a character in a vocabulary) become surrogates and can be encoded back.
    """

    file: MappedFile
    entries: Mapping[str, Value] = field(repr=False)
    _parsed: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: str) -> Any:
        if key not in self._parsed:
            value = self.entries[key]
            self.file.check_unchanged()
            self._parsed[key] = Reader(self.file, value.at).value(value.type)
        return self._parsed[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def texts(self) -> dict[str, str]:
        """The values that are one text."""
        return {key: self[key] for key, value in self.entries.items() if value.type == STRING}


@dataclass
class Reader:
    """Reads forward from ``at``; every step is checked against the end of the file."""

    file: MappedFile
    at: int = 0

    def __post_init__(self) -> None:
        self.buffer = self.file.buffer
        self.end = min(self.file.size, MAX_HEADER_BYTES)

    def take(self, count: int) -> int:
        """Step over ``count`` bytes; returns where they began."""
        begin, self.at = self.at, self.at + count
        if self.at > self.end:
            raise _beyond(self.file, self.at)
        return begin

    def number(self, code: str) -> Any:
        """One number of a struct code."""
        form = _FORMS[code]
        return form.unpack_from(self.buffer, self.take(form.size))[0]

    def text(self) -> bytes:
        """One string's bytes."""
        begin = self.take(self.number("Q"))
        return self.buffer[begin : self.at]

    def skip(self, kind: int, depth: int = 0) -> None:
        """Step over one value: by arithmetic, but for strings, whose lengths lead on."""
        if kind in NUMBERS:
            self.take(struct.calcsize(NUMBERS[kind]))
        elif kind == STRING:
            self.take(self.number("Q"))
        elif kind == ARRAY:
            self._skip_array(depth)
        else:
            raise damaged(self.file.path, f"its header holds a value of unknown type {kind}")

    def _skip_array(self, depth: int) -> None:
        inner, count = self._array_head(depth)
        if inner in NUMBERS:
            self.take(count * struct.calcsize(NUMBERS[inner]))
        elif inner == STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self.skip(inner, depth + 1)

    def _array_head(self, depth: int) -> tuple[int, int]:
        """Type and number of elements, which the rest of the header must be able to hold."""
        if depth >= MAX_ARRAY_DEPTH:
            raise damaged(self.file.path, f"its header nests arrays deeper than {MAX_ARRAY_DEPTH}")
        inner, count = self.number("I"), self.number("Q")
        least = {STRING: 8, ARRAY: 12}.get(inner) or struct.calcsize(NUMBERS.get(inner, "B"))
        if self.at + count * least > self.end:
            raise _beyond(self.file, self.at + count * least)
        return inner, count

    def _skip_strings(self, count: int) -> None:
        length_at, buffer, at, end = struct.Struct("<Q").unpack_from, self.buffer, self.at, self.end
        for _ in range(count):
            if at + 8 > end:
                raise _beyond(self.file, at + 8)
            at += 8 + length_at(buffer, at)[0]
        self.take(at - self.at)

    def _texts(self, count: int) -> list[str]:
        length_at, buffer, at, end = struct.Struct("<Q").unpack_from, self.buffer, self.at, self.end
        found = []
        for _ in range(count):
            begin = at + 8
            at = begin + length_at(buffer, at)[0] if begin <= end else begin
            if at > end:
                raise _beyond(self.file, at)
            found.append(buffer[begin:at].decode(errors="surrogateescape"))
        self.at = at
        return found

    def value(self, kind: int) -> Any:
        """One value. Arrays become lists."""
        if kind == STRING:
            return self.text().decode(errors="replace")
        return self.array() if kind == ARRAY else self.number(NUMBERS[kind])

    def array(self, depth: int = 0) -> list[Any]:
        """One array, as a list (of lists)."""
        inner, count = self._array_head(depth)
        if inner in NUMBERS:
            code = f"<{count}{NUMBERS[inner]}"
            return list(struct.unpack_from(code, self.buffer, self.take(struct.calcsize(code))))
        if inner == STRING:
            return self._texts(count)
        return [self.array(depth + 1) for _ in range(count)]


def _beyond(file: MappedFile, needed: int) -> CorruptCheckpoint:
    if needed <= file.size:
        return damaged(file.path, f"its header goes on beyond {MAX_HEADER_BYTES:,} bytes")
    return CorruptCheckpoint(
        f"{file.path.name}: truncated or damaged, its header ends beyond the {file.size:,} bytes "
        "there are",
        "download it again; the download probably stopped early",
    )
