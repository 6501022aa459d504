"""Axes of a sweep, such as ``refine.denoise=0.2:0.8:0.1``, and the settings of its points.

This module does not know requests: values stay text, as written after ``--set``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product

from latent_ladder.errors import RequestError

MANY = 64
"""More points than this need ``--yes``."""
MOST = 100_000

Settings = Mapping[str, str]
"""The fields of one point, ``{"refine.denoise": "0.4"}``, in the order of the axes."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(rf"\s*({_NUMBER})\s*:\s*({_NUMBER})\s*(?::\s*({_NUMBER})\s*)?")
_OPEN, _CLOSE = "[{(", "]})"


@dataclass(frozen=True)
class Axis:
    """A field and its values, as the user writes them."""

    path: str
    values: tuple[str, ...]

    @property
    def numbers(self) -> tuple[float, ...] | None:
        """The values as numbers; ``None`` if some are not."""
        try:
            return tuple(float(value) for value in self.values)
        except ValueError:
            return None


def parse_axes(sets: Sequence[str]) -> tuple[Axis, ...]:
    """Parse axes ``path=values``: a range start:stop:step with both ends, or a list with commas.

    Ranges count in exact decimals. Commas within brackets and quotes belong to a value, as in
    ``refine.sigmas=[0.9,0.5,0],[0.7,0.4,0]``. Raises :class:`RequestError`.
    """
    axes: dict[str, Axis] = {}
    for text in sets:
        path, equals, written = text.partition("=")
        path = path.strip()
        if not equals or not path or not written.strip():
            raise RequestError(
                f"--set {text!r} is not path=values",
                "write for example refine.denoise=0.2:0.8:0.1 or refine.denoise=0.35,0.48",
            )
        if path in axes:
            raise RequestError(
                f"{path} is swept twice", f"write all its values in one --set {path}="
            )
        axes[path] = Axis(path, _values(path, written))
    return tuple(axes.values())


def _values(path: str, written: str) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for part in _parts(path, written):
        match = _RANGE.fullmatch(part)
        found |= dict.fromkeys([part] if match is None else _range(path, part, match))
    return tuple(found)


def _parts(path: str, written: str) -> Iterator[str]:
    """The text cut at commas outside brackets and quotes."""
    depth, quote, start = 0, "", 0
    for i, letter in enumerate(f"{written},"):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'" and not written[start:i].strip():
            quote = letter  # an apostrophe inside a word quotes nothing
        elif letter in _OPEN:
            depth += 1
        elif letter in _CLOSE:
            depth -= 1
        elif letter == "," and depth <= 0:
            part = written[start:i].strip()
            if not part:
                raise RequestError(f"{path}={written} holds an empty value", "drop the extra comma")
            yield part
            start = i + 1
    if start <= len(written):
        raise RequestError(f"{path}={written} has an open bracket or quote", "close it")


def _range(path: str, part: str, match: re.Match[str]) -> list[str]:
    start, stop = Decimal(match[1]), Decimal(match[2])
    if match[3] is None:
        hint = f"use {path}={part}:STEP, for example {part}:{_nice_step(start, stop)}"
        raise RequestError(f"{path}={part} is a range without a step", hint)
    step = Decimal(match[3])
    if step == 0 or (stop - start) * step < 0:
        right = abs(step) if stop >= start else -abs(step)
        hint = f"use {path}={match[1]}:{match[2]}:{right or _nice_step(start, stop)}"
        raise RequestError(f"{path}={part} never reaches its end: the step is {step}", hint)
    count = int((stop - start) / step) + 1
    if count > MOST:
        raise RequestError(
            f"{path}={part} has {count} values, more than {MOST}", "use a larger step"
        )
    return [_plain(start + i * step) for i in range(count)]


def _nice_step(start: Decimal, stop: Decimal) -> str:
    """A step for a hint: 1 between whole numbers, else a tenth of the range."""
    whole = start == int(start) and stop == int(stop)
    step = Decimal(1) if whole else ((stop - start) / 10).normalize()
    return _plain(step.copy_sign(stop - start) if stop != start else Decimal(1))


def _plain(value: Decimal) -> str:
    """Digits without an exponent; zeros at the end stay as they were written."""
    text = format(value, "f")
    return "0" if not value else text


def count(axes: Sequence[Axis], zipped: bool = False) -> int:
    """Number of points. Raises :class:`RequestError` for zipped axes of different lengths."""
    if zipped:
        lengths = {len(axis.values) for axis in axes if len(axis.values) > 1}
        if len(lengths) > 1:
            counts = ", ".join(f"{axis.path} {len(axis.values)}" for axis in axes)
            raise RequestError(
                f"--zip needs as many values on every axis, got {counts}",
                "remove --zip to combine all values",
            )
        return max(lengths, default=1)
    found = 1
    for axis in axes:
        found *= len(axis.values)
    return found


def settings(axes: Sequence[Axis], zipped: bool = False) -> Iterator[Settings]:
    """Settings of every point: all combinations, last axis fastest; or value by value if zipped."""
    paths = [axis.path for axis in axes]
    rows: Iterator[tuple[str, ...]]
    if zipped:
        most = count(axes, zipped)
        rows = zip(*(a.values * (most if len(a.values) == 1 else 1) for a in axes), strict=True)
    else:
        rows = product(*(axis.values for axis in axes))
    for row in rows:
        yield dict(zip(paths, row, strict=True))


def short_path(path: str, among: Sequence[str]) -> str:
    """The last part of a field's path, if no other field ends in it; else the whole path."""
    last = path.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else path


def describe(point: Settings, axes: Sequence[Axis] = ()) -> str:
    """The settings in a line; fields that every point of ``axes`` shares are left out."""
    fixed = {axis.path for axis in axes if len(axis.values) == 1}
    return ", ".join(f"{p}={v}" for p, v in point.items() if p not in fixed) or "unchanged"
