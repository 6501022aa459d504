"""Sound files as inputs: how long they are, and as many samples as a clip needs.

Any file that FFmpeg reads, a video's sound track too. Reading stops where the clip ends, so hours
of sound cost no memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.video_reader import opened

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

RATE = 48_000
"""Samples per second of a clip's given sound, whatever the file has."""
SHORTEST_S = 0.02
"""One latent of sound lasts 40 ms; below half of it there is nothing to hear."""


@dataclass(frozen=True)
class SoundInfo:
    """How long a sound lasts, in seconds, its sample rate and its channels."""

    duration_s: float
    rate: int
    channels: int


def check_sound(path: Path) -> SoundInfo:
    """Look at a sound file. Raises :class:`MediaError` for one without a sound to use."""
    if path.exists() and path.stat().st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a WAV, FLAC, MP3 or M4A file")
    with opened(path, "a sound") as container:
        stream = _stream(container, path)
        duration = _declared(stream) or _measured(container, stream)
        rate, channels = stream.rate, stream.channels
    if duration < SHORTEST_S:
        raise MediaError(
            f"the sound of {path.name} lasts {float(duration):g} s", "give one with something in it"
        )
    return SoundInfo(float(duration), rate, channels)


def read_sound(path: Path, seconds: Fraction, rate: int = RATE) -> NDArray[np.float32]:
    """The first ``seconds`` of a sound as (2, S) float32 at ``rate``, stereo; less if it ends.

    Raises :class:`MediaError`.
    """
    import av

    wanted, have = round(seconds * rate), 0
    parts = [np.zeros((2, 0), np.float32)]
    with opened(path, "a sound") as container:
        stream = _stream(container, path)
        ends = _declared(stream)
        if ends:  # the last block of AAC is longer than the sound
            wanted = min(wanted, round(ends * rate))
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
        for frame in container.decode(stream):
            new = [part.to_ndarray() for part in resampler.resample(frame)]
            parts += new
            have += sum(part.shape[1] for part in new)
            if have >= wanted:
                break
        else:
            parts += [part.to_ndarray() for part in resampler.resample(None)]
    samples: NDArray[np.float32] = np.concatenate(parts, 1)[:, :wanted]
    return samples


def _stream(container: InputContainer, path: Path) -> AudioStream:
    if not container.streams.audio:
        raise MediaError(f"{path.name} has no sound", "give a file with a sound track")
    return container.streams.audio[0]


def _declared(stream: AudioStream) -> Fraction:
    if not stream.duration or not stream.time_base:
        return Fraction(0)
    return Fraction(stream.duration * stream.time_base)


def _measured(container: InputContainer, stream: AudioStream) -> Fraction:
    """Where the last packet ends; for containers that do not say how long they are."""
    end = Fraction(0)
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return end
