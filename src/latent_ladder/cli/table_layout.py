"""Tables as plain lines: within a width, with file names and links in one piece.

A table that is too wide is not squeezed: columns that would break move below their row, one line
each for names that people copy. This module knows no terminal.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

GAP = 2
"""Spaces between two columns."""
INDENT = 4
"""Spaces in front of a line below its row."""
NARROWEST = 16
"""Least width, in characters, to which a column of words is wrapped."""

Row = Sequence[str]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text.

    ``whole`` are columns with names that must not be broken: files, folders, links. ``below`` are
    columns that may move below their row where the table is too wide, in that order.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    whole: Collection[str] = ()
    below: Sequence[str] = ()

    def lines(self, width: int | None = None) -> list[str]:
        """The table within ``width`` characters; ``None`` sets no limit."""
        inline = list(range(len(self.columns)))
        movable = [self.columns.index(name) for name in (*self.whole, *self.below)]
        while width is not None and movable and self._natural_width(inline) > width:
            inline.remove(movable.pop(0))
        widths = self._widths(inline)
        if width is not None:
            _shrink_words(widths, [self._longest_word(i) for i in inline], width)
        moved = [i for i in range(len(self.columns)) if i not in inline]
        out = [*_columns([self.columns[i] for i in inline], widths)]
        out.append("─" * min(sum(widths) + GAP * (len(widths) - 1), width or 10_000))
        for row in self.rows:
            out += _columns([row[i] for i in inline], widths)
            out += self._lines_below(row, moved, width)
        return out

    def _lines_below(self, row: Row, moved: Sequence[int], width: int | None) -> Iterator[str]:
        words = [i for i in moved if self.columns[i] not in self.whole and row[i]]
        for i in moved:
            if self.columns[i] in self.whole and row[i]:
                yield " " * INDENT + row[i]
        if words:
            text = " · ".join(f"{self.columns[i]} {row[i]}".strip() for i in words)
            yield from wrap(text, width, INDENT)

    def _widths(self, inline: Sequence[int]) -> list[int]:
        rows = [self.columns, *self.rows]
        return [max(cell_width(row[i]) for row in rows) for i in inline]

    def _natural_width(self, inline: Sequence[int]) -> int:
        return sum(self._widths(inline)) + GAP * (len(inline) - 1)

    def _longest_word(self, column: int) -> int:
        cells = [self.columns[column], *(row[column] for row in self.rows)]
        if self.columns[column] in self.whole:
            return max(map(cell_width, cells))
        return max(cell_width(word) for cell in cells for word in (cell.split() or [""]))


def _shrink_words(widths: list[int], least: Sequence[int], width: int) -> None:
    """Make the widest columns narrower, down to their longest word, until all fit."""
    while sum(widths) + GAP * (len(widths) - 1) > width:
        can = [i for i, w in enumerate(widths) if w > max(least[i], NARROWEST)]
        if not can:
            return
        widths[max(can, key=lambda i: widths[i])] -= 1


def _columns(cells: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """The lines of one row; a cell that is too long goes on below itself."""
    parts = [wrap(cell, w) or [""] for cell, w in zip(cells, widths, strict=True)]
    for n in range(max(map(len, parts), default=0)):
        texts = [part[n] if n < len(part) else "" for part in parts]
        padded = (
            text + " " * (w - cell_width(text)) for text, w in zip(texts, widths, strict=True)
        )
        yield (" " * GAP).join(padded).rstrip()


def wrap(text: str, width: int | None, indent: int = 0) -> list[str]:
    """``text`` in lines of at most ``width`` characters, broken at spaces only."""
    margin = " " * indent
    if width is None or indent + cell_width(text) <= width:
        return [margin + text]
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else ""
        if lines and cell_width(longer) <= max(width, indent + NARROWEST):
            lines[-1] = longer
        else:
            lines.append(margin + word)
    return lines


def cell_width(text: str) -> int:
    """Columns that ``text`` takes on a terminal: two for a Chinese letter."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
