"""Frames that stream through the blocks of the diffusion decoder.

A block asks for as many later frames as the windows of its next chunk of queries reach, computes
the chunk and passes it on. So a clip of any length is decoded exactly, with the frames of a few
windows in memory: no tiles, no seams, nothing computed twice but keys. Frames may be kept in RAM
while the device computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latent_ladder.models.diffusion_decoder_config import CHUNK_FRAMES, Size, window_range
from latent_ladder.models.video_vae.diffusion_blocks import (
    FrameWindow,
    Modulation,
    NaBlock,
    Upsampling,
)


class Frames(NamedTuple):
    """Consecutive frames: the residual stream ``x`` (n, H, W, C), and what later blocks need.

    ``context`` (n, H, W, C) is the output of the deterministic stages, ``canvas`` (n, H, W, P) the
    noisy picture in patches.
    """

    x: Tensor
    context: Tensor | None = None
    canvas: Tensor | None = None


FrameStream = Iterator[Frames]


@dataclass(frozen=True)
class StreamPlace:
    """Device that computes, and device that keeps the frames."""

    compute: torch.device
    keep: torch.device


def in_chunks(x: Tensor) -> FrameStream:
    """Frames of a tensor (F, H, W, C), a chunk at a time."""
    for first in range(0, len(x), CHUNK_FRAMES):
        yield Frames(x[first : first + CHUNK_FRAMES])


def through_block(
    block: NaBlock,
    stream: FrameStream,
    grid: Size,
    place: StreamPlace,
    modulation: Modulation | None = None,
) -> FrameStream:
    """Stream of the frames of a clip of size ``grid`` after ``block``; drops what lies beyond."""
    total, kernel = grid[0], block.kernel[0]
    held: deque[Tensor] = deque()
    sides: deque[tuple[Tensor | None, Tensor | None]] = deque()
    first = received = 0
    for start in range(0, total, CHUNK_FRAMES):
        stop = min(start + CHUNK_FRAMES, total)
        low, high = window_range(start, stop, total, kernel)
        while received < high:
            new = next(stream)
            held.extend(block.prepare(new.x, new.context).to(place.keep).unbind(0))
            sides.extend(_sides(new))
            received += len(new.x)
        for _ in range(low - first):
            held.popleft()
        first = low
        window = FrameWindow([held[i] for i in range(high - low)], low, start, stop)
        x = block(window, grid, modulation, place.compute)
        taken = [sides.popleft() for _ in range(stop - start)]
        yield Frames(x, _stack(c for c, _ in taken), _stack(c for _, c in taken))


def _sides(frames: Frames) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    for i in range(len(frames.x)):
        yield (
            None if frames.context is None else frames.context[i],
            None if frames.canvas is None else frames.canvas[i],
        )


def _stack(parts: Iterator[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.stack(found) if found else None


def through_upsampling(
    layer: Upsampling, stream: FrameStream, place: StreamPlace, *, from_start: bool = True
) -> FrameStream:
    """Stream after an upsampling; one in time drops the first frame of the clip.

    A part of a clip that is not ``from_start`` keeps it.
    """
    drop = from_start and layer.stride[0] > 1
    for frames in stream:
        x = layer(frames.x.to(place.compute)).to(place.keep)
        x, drop = (x[1:], False) if drop else (x, False)
        for chunk in x.split(CHUNK_FRAMES):
            yield Frames(chunk)


def map_frames(stream: FrameStream, change: Callable[[Frames], Frames]) -> FrameStream:
    """Stream with ``change`` applied to each chunk."""
    for frames in stream:
        yield change(frames)
