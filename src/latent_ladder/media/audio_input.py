"""Audio input files: their duration, and the samples that a clip needs.

Reads every file that FFmpeg reads, also the audio track of a video. Reading stops at the end of
the clip, so hours of audio need no more memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.video_reader import open_media

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

INPUT_AUDIO_RATE = 48_000
"""Sample rate in Hz to which input audio is resampled."""
MIN_DURATION_S = 0.02
"""One audio latent lasts 40 ms; input shorter than half of it is refused."""


@dataclass(frozen=True)
class InputAudio:
    """An input audio track: duration in seconds, sample rate in Hz, number of channels."""

    duration_s: float
    rate: int
    channels: int


def check_audio(path: Path) -> InputAudio:
    """Read the duration and format of an audio file.

    Raises :class:`MediaError` for a file without audio, or with less than :data:`MIN_DURATION_S`.
    """
    if path.exists() and path.stat().st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a WAV, FLAC, MP3 or M4A file")
    with open_media(path, "audio") as container:
        stream = _stream(container, path)
        duration = _header_duration(stream) or _last_packet_end(container, stream)
        rate, channels = stream.rate, stream.channels
    if duration < MIN_DURATION_S:
        raise MediaError(
            f"the audio of {path.name} lasts {float(duration):g} s, expected at least "
            f"{MIN_DURATION_S:g} s",
            "give a longer file",
        )
    return InputAudio(float(duration), rate, channels)


def read_audio_input(
    path: Path, seconds: Fraction, rate: int = INPUT_AUDIO_RATE
) -> NDArray[np.float32]:
    """The first ``seconds`` of an audio file as stereo (2, S) float32 at ``rate`` Hz.

    A shorter file gives all its samples. Raises :class:`MediaError` for a file that cannot be read.
    """
    import av

    wanted, have = round(seconds * rate), 0
    parts = [np.zeros((2, 0), np.float32)]
    with open_media(path, "audio") as container:
        stream = _stream(container, path)
        duration = _header_duration(stream)
        if duration:  # the last block of AAC is padded beyond the end of the audio
            wanted = min(wanted, round(duration * rate))
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
        raise MediaError(f"{path.name} has no audio", "give a file with an audio track")
    return container.streams.audio[0]


def _header_duration(stream: AudioStream) -> Fraction:
    """The duration in seconds that the header states, 0 if it states none."""
    if not stream.duration or not stream.time_base:
        return Fraction(0)
    return Fraction(stream.duration * stream.time_base)


def _last_packet_end(container: InputContainer, stream: AudioStream) -> Fraction:
    """The end of the last packet in seconds, for containers that do not state a duration."""
    end = Fraction(0)
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return end
