"""Noise of the diffusion decoder's canvas: by position, or in the order of another program.

By position, the noise of a pixel depends on the seed and on where it is in the clip, so the same
seed gives the same picture in any tiles, after a resumed run and on any device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from latent_ladder.models.diffusion_decoder_config import Size

ReadNoise = Callable[[int, int], Tensor]
"""Noise (3, n, H, W) float32 of the frames from one to before another, counted from the start of
the part and asked for in order."""

BLOCK: Size = (8, 128, 128)
"""Frames, rows and columns of pixels with a generator of their own. Another size gives another
picture."""


class PixelNoise(Protocol):
    """Source of the noise of a clip's canvas."""

    def reader(self, first: Size, count: Size, canvas: Size) -> ReadNoise:
        """Noise of the part of ``count`` pixels from ``first`` on (frames, rows, columns)."""


@dataclass(frozen=True)
class PositionNoise:
    """Noise by position: blocks of the canvas have generators of their own."""

    seed: int

    def reader(self, first: Size, count: Size, canvas: Size) -> ReadNoise:
        """Noise of a part; blocks of one range of frames are kept until the next."""
        del canvas
        held: dict[int, Tensor] = {}

        def group(number: int) -> Tensor:
            if number not in held:
                held.clear()
                held[number] = self._frames(number, first, count)
            return held[number]

        def read(start: int, stop: int) -> Tensor:
            parts, at, end = [], first[0] + start, first[0] + stop
            while at < end:
                number, offset = divmod(at, BLOCK[0])
                taken = min(BLOCK[0] - offset, end - at)
                parts.append(group(number)[:, offset : offset + taken])
                at += taken
            return torch.cat(parts, 1)

        return read

    def _frames(self, number: int, first: Size, count: Size) -> Tensor:
        """All frames of a range (3, 8, H, W), rows and columns of the part."""
        out = torch.empty(3, BLOCK[0], count[1], count[2])
        for row in range(first[1] // BLOCK[1], -(-(first[1] + count[1]) // BLOCK[1])):
            for col in range(first[2] // BLOCK[2], -(-(first[2] + count[2]) // BLOCK[2])):
                block = self._block((number, row, col))
                (to_row, from_row), (to_col, from_col) = (
                    _overlap(at * size, size, start, length)
                    for at, size, start, length in zip(
                        (row, col), BLOCK[1:], first[1:], count[1:], strict=True
                    )
                )
                out[:, :, to_row, to_col] = block[:, :, from_row, from_col]
        return out

    def _block(self, at: Size) -> Tensor:
        digest = hashlib.blake2b(repr((self.seed, *at)).encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        return torch.randn(3, *BLOCK, generator=generator)


def _overlap(at: int, size: int, start: int, length: int) -> tuple[slice, slice]:
    """The part of a range of ``length`` from ``start`` that a block at ``at`` covers, in both."""
    low, high = max(at, start), min(at + size, start + length)
    return slice(low - start, high - start), slice(low - at, high - at)


@dataclass(frozen=True)
class CanvasNoise:
    """Noise of the whole canvas from one generator, drawn at once."""

    generator: torch.Generator
    drawn: list[Tensor] = field(default_factory=list)

    def reader(self, first: Size, count: Size, canvas: Size) -> ReadNoise:
        """Noise of a part; the first call draws the canvas."""
        if not self.drawn:
            self.drawn.append(torch.randn(1, 3, *canvas, generator=self.generator)[0])
        (t, r, c), (n, height, width) = first, count
        part = self.drawn[0][:, t : t + n, r : r + height, c : c + width]
        return lambda start, stop: part[:, start:stop]


@dataclass(frozen=True)
class TileNoise:
    """Noise that each part draws for itself, as the official decoder does for tiles.

    The grain where tiles overlap is the mean of two draws.
    """

    generator: torch.Generator

    def reader(self, first: Size, count: Size, canvas: Size) -> ReadNoise:
        """Noise of a part, drawn now."""
        del first, canvas
        drawn = torch.randn(1, 3, *count, generator=self.generator)[0]
        return lambda start, stop: drawn[:, start:stop]


def noise_bytes(canvas: Size) -> int:
    """Bytes of the noise of a whole canvas."""
    return 4 * 3 * math.prod(canvas)
