"""Video files as inputs: what they hold, and their pictures at the times a clip needs them.

Files of any frame rate, constant or not, are sampled at the clip's own times: each of its frames
is the one of the file that is nearest. Pictures come upright and fitted to the canvas, so that
only a few frames are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.image_input import fitted
from latent_ladder.media.video_reader import opened, timed_frames

if TYPE_CHECKING:
    from av.container import InputContainer

UNEVEN = 1.5
"""The longest frame of an even video lasts less than this many times the shortest one."""


@dataclass(frozen=True)
class Footage:
    """What a video holds; ``size`` is (width, height) upright."""

    size: tuple[int, int]
    frames: int
    fps: Fraction
    duration_s: float
    uneven: bool
    turned: bool
    has_sound: bool


def check_video(path: Path) -> Footage:
    """Look at a video without decoding more than its first frame. Raises :class:`MediaError`."""
    if path.exists() and path.stat().st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a video file")
    with opened(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path.name} has no picture", "use a video file")
        times = _times(container)
        has_sound = bool(container.streams.audio)
        stream = container.streams.video[0]
        stored = (stream.width, stream.height)
    if not times:
        raise MediaError(f"{path.name} has no frames", "use a video file with pictures in it")
    _, first = next(timed_frames(path))
    size = (first.shape[1], first.shape[0])
    steps = [b - a for a, b in pairwise(times) if b > a]
    mean = sum(steps, Fraction(0)) / len(steps) if steps else Fraction(1, 24)
    return Footage(
        size=size,
        frames=len(times),
        fps=(1 / mean).limit_denominator(1001),
        duration_s=float(times[-1] - times[0] + mean),
        uneven=bool(steps) and max(steps) > UNEVEN * min(steps),
        turned=size != stored,
        has_sound=has_sound,
    )


def read_footage(
    path: Path,
    times: Sequence[Fraction],
    canvas: tuple[int, int],
    window: tuple[int, int],
    fit: str = "cover",
) -> Iterator[NDArray[np.uint8]]:
    """The frames nearest to rising ``times`` in seconds, each (H, W, 3) uint8 fitted to ``canvas``.

    Times before the first frame or after the last one give that frame.
    """
    done = 0
    for until, frame in _ends(timed_frames(path)):
        shown = None
        while done < len(times) and (until is None or times[done] <= until):
            shown = fitted(frame, canvas, window, fit) if shown is None else shown
            yield shown
            done += 1
        if done == len(times):
            break


def _ends(
    frames: Iterator[tuple[Fraction, NDArray[np.uint8]]],
) -> Iterator[tuple[Fraction | None, NDArray[np.uint8]]]:
    """Every frame with the time up to which it is the nearest one, ``None`` for the last."""
    before: tuple[Fraction, NDArray[np.uint8]] | None = None
    for time, frame in frames:
        if before is not None:
            yield (before[0] + time) / 2, before[1]
        before = (time, frame)
    if before is not None:
        yield None, before[1]


def _times(container: InputContainer) -> list[Fraction]:
    """When every frame is shown, in order."""
    stream = container.streams.video[0]
    found = [
        packet.pts * packet.time_base
        for packet in container.demux(stream)
        if packet.pts is not None and packet.time_base is not None
    ]
    return sorted(found)
