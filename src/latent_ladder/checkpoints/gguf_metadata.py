"""Metadata of a GGUF file, parsed on access.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Opening a file skips all values:
arrays of numbers by their size, arrays of strings by the length of each string.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.checkpoints.mmap_file import MappedFile, damaged_error
from latent_ladder.errors import CorruptCheckpoint

MAX_HEADER_BYTES = 100_000_000
"""Limit of the header, far above any tokenizer: a wrong count must not skip through the weights."""

MAX_ARRAY_DEPTH = 4

STRING, ARRAY = 8, 9
NUMBERS: Mapping[int, str] = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
"""Value type -> struct code."""


_STRUCTS = {code: struct.Struct(f"<{code}") for code in NUMBERS.values()}


class ValueLocation(NamedTuple):
    """Type and position of a metadata value in the file."""

    type: int
    position: int


@dataclass(frozen=True)
class KeyValues(Mapping[str, Any]):
    """The metadata of a GGUF file: numbers, booleans, strings, and arrays of them as lists.

    A value is parsed at its first access. Bytes in an array of strings that are not UTF-8 (parts of
    a character in a vocabulary) become surrogate escapes and can be encoded again.
    """

    file: MappedFile
    entries: Mapping[str, ValueLocation] = field(repr=False)
    _parsed: dict[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, key: str) -> Any:
        if key not in self._parsed:
            value = self.entries[key]
            self.file.check_unchanged()
            self._parsed[key] = HeaderReader(self.file, value.position).value(value.type)
        return self._parsed[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def texts(self) -> dict[str, str]:
        """The values that are strings."""
        return {key: self[key] for key, value in self.entries.items() if value.type == STRING}


@dataclass
class HeaderReader:
    """Reader of the header from ``position`` on; checks every step against the end of the file."""

    file: MappedFile
    position: int = 0

    def __post_init__(self) -> None:
        self.buffer = self.file.buffer
        self.end = min(self.file.size, MAX_HEADER_BYTES)

    def advance(self, count: int) -> int:
        """Skip ``count`` bytes and return the position of the first."""
        begin, self.position = self.position, self.position + count
        if self.position > self.end:
            raise _overrun_error(self.file, self.position)
        return begin

    def number(self, code: str) -> Any:
        """Read one number with a code of the ``struct`` module."""
        form = _STRUCTS[code]
        return form.unpack_from(self.buffer, self.advance(form.size))[0]

    def text(self) -> bytes:
        """Read the bytes of one string."""
        begin = self.advance(self.number("Q"))
        return self.buffer[begin : self.position]

    def skip(self, kind: int, depth: int = 0) -> None:
        """Skip one value of the type ``kind``."""
        if kind in NUMBERS:
            self.advance(struct.calcsize(NUMBERS[kind]))
        elif kind == STRING:
            self.advance(self.number("Q"))
        elif kind == ARRAY:
            self._skip_array(depth)
        else:
            raise damaged_error(self.file.path, f"its header has a value of unknown type {kind}")

    def _skip_array(self, depth: int) -> None:
        inner, count = self._array_head(depth)
        if inner in NUMBERS:
            self.advance(count * struct.calcsize(NUMBERS[inner]))
        elif inner == STRING:
            self._skip_strings(count)
        else:
            for _ in range(count):
                self.skip(inner, depth + 1)

    def _array_head(self, depth: int) -> tuple[int, int]:
        """Read type and number of the elements. Raises if they cannot fit into the header."""
        if depth >= MAX_ARRAY_DEPTH:
            raise damaged_error(
                self.file.path, f"its header nests arrays deeper than {MAX_ARRAY_DEPTH}"
            )
        inner, count = self.number("I"), self.number("Q")
        min_bytes = {STRING: 8, ARRAY: 12}.get(inner) or struct.calcsize(NUMBERS.get(inner, "B"))
        if self.position + count * min_bytes > self.end:
            raise _overrun_error(self.file, self.position + count * min_bytes)
        return inner, count

    def _skip_strings(self, count: int) -> None:
        length_at, buffer, at, end = (
            struct.Struct("<Q").unpack_from,
            self.buffer,
            self.position,
            self.end,
        )
        for _ in range(count):
            if at + 8 > end:
                raise _overrun_error(self.file, at + 8)
            at += 8 + length_at(buffer, at)[0]
        self.advance(at - self.position)

    def _texts(self, count: int) -> list[str]:
        length_at, buffer, at, end = (
            struct.Struct("<Q").unpack_from,
            self.buffer,
            self.position,
            self.end,
        )
        found = []
        for _ in range(count):
            begin = at + 8
            at = begin + length_at(buffer, at)[0] if begin <= end else begin
            if at > end:
                raise _overrun_error(self.file, at)
            found.append(buffer[begin:at].decode(errors="surrogateescape"))
        self.position = at
        return found

    def value(self, kind: int) -> Any:
        """Read one value of the type ``kind``; arrays become lists."""
        if kind == STRING:
            return self.text().decode(errors="replace")
        return self.array() if kind == ARRAY else self.number(NUMBERS[kind])

    def array(self, depth: int = 0) -> list[Any]:
        """Read one array, as a list (of lists)."""
        inner, count = self._array_head(depth)
        if inner in NUMBERS:
            code = f"<{count}{NUMBERS[inner]}"
            return list(struct.unpack_from(code, self.buffer, self.advance(struct.calcsize(code))))
        if inner == STRING:
            return self._texts(count)
        return [self.array(depth + 1) for _ in range(count)]


def _overrun_error(file: MappedFile, needed: int) -> CorruptCheckpoint:
    if needed <= file.size:
        return damaged_error(file.path, f"its header is longer than {MAX_HEADER_BYTES:,} bytes")
    return CorruptCheckpoint(
        f"{file.path.name}: truncated or damaged, its header is longer than the file of "
        f"{file.size:,} bytes",
        "download it again; the download probably stopped early",
    )
