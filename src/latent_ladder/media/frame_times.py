"""Times of the frames that a video shows, and its frame rate, from packets without decoding.

Frames that an edit list hides (clips cut without loss) are not counted. The rate is that of the
times: a container that rounds them, as Matroska does to milliseconds, still gives 24 or 24000/1001
if all rounded times fit that rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

VARIABLE_RATE_RATIO = 1.5
"""A video whose longest frame lasts more than this times its shortest one has a variable rate."""
STANDARD_RATES = (
    *(Fraction(24), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(30)),
    *(Fraction(n) for n in (50, 60, 48, 12, 15, 8, 10, 16, 20, 100, 120)),
    *(Fraction(n * 1000, 1001) for n in (60, 48, 120, 12, 15)),
)
"""Rates that are tried when the times fit none that the header states."""
DEFAULT_RATE = Fraction(24)
"""Rate of a single frame without a stated rate."""


def read_frame_times(container: InputContainer, stream: VideoStream) -> list[Fraction]:
    """The time in seconds of every frame that is shown, ascending."""
    found = {
        Fraction(packet.pts) * packet.time_base
        for packet in container.demux(stream)
        if packet.pts is not None and packet.time_base is not None and not packet.is_discard
    }
    return sorted(found)


def count_stated_frames(container: InputContainer, stream: VideoStream) -> int:
    """The number of shown frames that the header states, 0 if it states none."""
    if "mov" not in container.format.name or not stream.frames:
        return stream.frames
    shown = sum(not entry.is_discard for entry in stream.index_entries)
    return min(shown, stream.frames)


def find_rate(times: Sequence[Fraction], stream: VideoStream) -> Fraction:
    """The frame rate of ``times``: exact where they fit a known rate, else the mean rate.

    Rates in the header come first, then :data:`STANDARD_RATES`. A rate fits if every time is that
    of its frame within the rounding of the container's time base.
    """
    stated = [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]
    if len(times) < 2:
        return Fraction(stated[0]) if stated else DEFAULT_RATE
    unit = Fraction(stream.time_base or 0)
    mean = (len(times) - 1) / (times[-1] - times[0])
    for rate in (*map(Fraction, stated), *sorted(STANDARD_RATES, key=lambda r: abs(r - mean))):
        if _fits(rate, times, unit):
            return rate
    return mean.limit_denominator(1001)


def has_variable_rate(times: Sequence[Fraction], stream: VideoStream) -> bool:
    """True if frames last for different times, beyond the rounding of the time base."""
    unit = Fraction(stream.time_base or 0)
    steps = [b - a for a, b in pairwise(times)]
    return bool(steps) and max(steps) - unit > VARIABLE_RATE_RATIO * (min(steps) + unit)


def _fits(rate: Fraction, times: Sequence[Fraction], unit: Fraction) -> bool:
    differences = [time - number / rate for number, time in enumerate(times)]
    return max(differences) - min(differences) <= unit
