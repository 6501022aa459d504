"""Video input files: their properties, and their frames resampled to the frame times of a clip.

Files of any frame rate, constant or variable, are sampled at the clip's frame times: each frame of
the clip is the nearest frame of the file. Frames are upright and fitted to the canvas one by one,
so that only a few are in memory.
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
from latent_ladder.media.image_input import fit_image
from latent_ladder.media.video_reader import open_media, timed_frames

if TYPE_CHECKING:
    from av.container import InputContainer

VARIABLE_RATE_RATIO = 1.5
"""A video whose longest frame lasts more than this times its shortest one has a variable rate."""


@dataclass(frozen=True)
class InputVideo:
    """The properties of an input video.

    ``size`` is the upright (width, height); ``rotated``: the stored frames are not upright.
    ``fps`` is the mean rate; ``variable_rate``: frames last for different times.
    """

    size: tuple[int, int]
    frames: int
    fps: Fraction
    duration_s: float
    variable_rate: bool
    rotated: bool
    has_audio: bool


def check_video(path: Path) -> InputVideo:
    """Read the properties of a video; decodes only its first frame.

    Raises :class:`MediaError` for a file without video, or one that cannot be read.
    """
    if path.exists() and path.stat().st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a video file")
    with open_media(path) as container:
        if not container.streams.video:
            raise MediaError(f"{path.name} has no video track", "use a video file")
        times = _frame_times(container)
        has_audio = bool(container.streams.audio)
        stream = container.streams.video[0]
        stored = (stream.width, stream.height)
    if not times:
        raise MediaError(f"{path.name} has no frames", "use another video file")
    _, first = next(timed_frames(path))
    size = (first.shape[1], first.shape[0])
    steps = [b - a for a, b in pairwise(times) if b > a]
    mean = sum(steps, Fraction(0)) / len(steps) if steps else Fraction(1, 24)
    return InputVideo(
        size=size,
        frames=len(times),
        fps=(1 / mean).limit_denominator(1001),
        duration_s=float(times[-1] - times[0] + mean),
        variable_rate=bool(steps) and max(steps) > VARIABLE_RATE_RATIO * min(steps),
        rotated=size != stored,
        has_audio=has_audio,
    )


def sample_frames(
    path: Path,
    times: Sequence[Fraction],
    canvas: tuple[int, int],
    window: tuple[int, int],
    fit: str = "cover",
) -> Iterator[NDArray[np.uint8]]:
    """The frames nearest to ``times`` (seconds, ascending), each (H, W, 3) uint8 on ``canvas``.

    A time before the first frame gives the first, a time after the last frame the last one. For
    ``canvas``, ``window`` and ``fit`` see :func:`~latent_ladder.media.image_input.fit_image`.
    """
    done = 0
    for until, frame in _with_end_times(timed_frames(path)):
        shown = None
        while done < len(times) and (until is None or times[done] <= until):
            shown = fit_image(frame, canvas, window, fit) if shown is None else shown
            yield shown
            done += 1
        if done == len(times):
            break


def _with_end_times(
    frames: Iterator[tuple[Fraction, NDArray[np.uint8]]],
) -> Iterator[tuple[Fraction | None, NDArray[np.uint8]]]:
    """Every frame with the time up to which it is the nearest frame, ``None`` for the last."""
    before: tuple[Fraction, NDArray[np.uint8]] | None = None
    for time, frame in frames:
        if before is not None:
            yield (before[0] + time) / 2, before[1]
        before = (time, frame)
    if before is not None:
        yield None, before[1]


def _frame_times(container: InputContainer) -> list[Fraction]:
    """The time of every frame in seconds, ascending; reads packets only."""
    stream = container.streams.video[0]
    found = [
        packet.pts * packet.time_base
        for packet in container.demux(stream)
        if packet.pts is not None and packet.time_base is not None
    ]
    return sorted(found)
