"""Audio input files: their duration, and the samples that a clip needs.

Reads every file in :data:`~latent_ladder.media.open_media.CONTAINER_FORMATS`, also the audio track
of a video. Time 0 is the first picture of a video, else the first sample: sound that starts later
begins with silence, gaps between its blocks are silent. Reading stops at the end of the clip, so
hours of audio need no more memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.open_media import (
    SAMPLE_RATE,
    find_audio_stream,
    find_video_stream,
    open_media,
)
from latent_ladder.storage.read_file import check_regular_file

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

MIN_DURATION_S = 0.02
"""One audio latent lasts 40 ms; input shorter than half of it is refused."""
START_TOLERANCE_S, GAP_TOLERANCE_S = Fraction(2, 1000), Fraction(30, 1000)
"""Smaller differences between a block's time and the sound before it are rounding of times."""
MAX_GAP_S = 3600
"""A longer gap is taken for damage."""
Waveform = NDArray[np.float32]


@dataclass(frozen=True)
class InputAudio:
    """An input audio track: duration in seconds, sample rate in Hz, number of channels."""

    duration_s: float
    rate: int
    channels: int


def check_audio(path: Path, seconds: Fraction | None = None) -> InputAudio:
    """Read the duration and format of an audio file, and check the samples that can be invalid.

    ``seconds``: only so much of it will be used. Raises :class:`MediaError` for a file without
    audio, with less than :data:`MIN_DURATION_S`, or with NaN or infinite samples.
    """
    if check_regular_file(path, MediaError, "file").st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a WAV, FLAC, MP3 or M4A file")
    with open_media(path, "audio") as container:
        stream = _stream(container, path)
        origin = _origin(container)
        duration = _stated_duration(stream, origin)
        duration = duration or _last_packet_end(container, stream, origin)
        rate, channels = stream.rate, stream.channels
    if duration < MIN_DURATION_S:
        raise MediaError(
            f"the audio of {path.name} lasts {float(duration):g} s, expected at least "
            f"{MIN_DURATION_S:g} s",
            "give a longer file",
        )
    check_samples(path, seconds)
    return InputAudio(float(duration), rate, channels)


def check_samples(path: Path, seconds: Fraction | None = None) -> None:
    """Raise :class:`MediaError` if the first ``seconds`` have NaN or infinite samples.

    Only codecs that store floating-point samples are decoded; the others cannot have them.
    """
    with open_media(path, "audio") as container:
        codec = _stream(container, path).codec_context.name
    if codec.startswith("pcm_f") or codec == "wavpack":
        for _ in _read_blocks(path, seconds):
            pass


def read_audio_input(path: Path, seconds: Fraction | None, rate: int = SAMPLE_RATE) -> Waveform:
    """The first ``seconds`` of an audio file as stereo (2, S) float32 at ``rate`` Hz.

    ``None``: all of it. A shorter file gives all its samples. Both channels of a mono file are
    equal to it. Raises :class:`MediaError` for a file that cannot be read.
    """
    import av

    parts = [np.zeros((2, 0), np.float32)]
    resampler, end = None, None
    for block in _read_blocks(path, seconds):
        end = block.end
        if resampler is None:
            layout = "mono" if len(block.samples) == 1 else "stereo"
            resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray(block.samples, format="fltp", layout=block.layout)
        frame.sample_rate = block.rate
        parts += [_to_stereo(part.to_ndarray()) for part in resampler.resample(frame)]
    if resampler is not None:
        parts += [_to_stereo(part.to_ndarray()) for part in resampler.resample(None)]
    samples: Waveform = np.concatenate(parts, 1)
    limits = [limit for limit in (seconds, end) if limit is not None]
    return samples[:, : round(min(limits) * rate)] if limits else samples


def read_original_audio(path: Path, *, padded: bool = False) -> tuple[Waveform, int]:
    """All samples (C, S) float32 of an audio file with its own channels, and its rate in Hz.

    Codecs such as AAC fill their last block with silence; it is cut off at the end that the header
    states, unless ``padded``, as ComfyUI reads files.
    Raises :class:`MediaError` for a file without audio, or one that cannot be read.
    """
    blocks = list(_read_blocks(path, None))
    if not blocks:
        raise MediaError(f"the audio track of {path.name} is empty", "use another file")
    samples = np.concatenate([block.samples for block in blocks], 1)
    rate, end = blocks[-1].rate, blocks[-1].end
    return samples if end is None or padded else samples[:, : round(end * rate)], rate


@dataclass(frozen=True)
class _Block:
    """Samples (C, n) at ``rate``; ``end`` is the stated end of the sound in seconds."""

    samples: Waveform
    rate: int
    layout: str
    end: Fraction | None


def _read_blocks(path: Path, seconds: Fraction | None) -> Iterator[_Block]:
    """Decoded blocks in order, each directly after the one before; silence where there is a gap.

    Ends at ``seconds``. Raises :class:`MediaError` for NaN, infinity and changes of format.
    """
    import av

    with open_media(path, "audio") as container:
        stream = _stream(container, path)
        origin = _origin(container)
        to_float, form, position = av.AudioResampler(format="fltp"), None, 0
        end: Fraction | None = None
        for frame in container.decode(stream):
            form = form or (frame.sample_rate, frame.layout.name)
            rate, layout = form
            if form != (frame.sample_rate, frame.layout.name):
                raise MediaError(
                    f"the sound of {path.name} changes its sample rate or channels midway",
                    "convert it to WAV first",
                )
            time = None if frame.pts is None else Fraction(frame.pts * (frame.time_base or 0))
            origin = time if origin is None and time is not None else origin
            end = _stated_duration(stream, origin) or None
            for part in to_float.resample(frame):
                samples: Waveform = np.asarray(part.to_ndarray(), np.float32)
                if time is not None and origin is not None:
                    samples = _place(samples, time - origin, position, rate, path)
                if not np.isfinite(samples).all():
                    raise MediaError(
                        f"the sound of {path.name} has samples that are NaN or infinite",
                        "export the file again",
                    )
                position += samples.shape[1]
                time = None
                if samples.shape[1]:
                    yield _Block(samples, rate, layout, end)
            if seconds is not None and position >= seconds * rate + rate:  # for the resampler
                break


def _place(samples: Waveform, time: Fraction, position: int, rate: int, path: Path) -> Waveform:
    """A block with silence before it, or without its beginning, so that it is heard at ``time``."""
    late = time - Fraction(position, rate)
    if abs(late) <= (GAP_TOLERANCE_S if position else START_TOLERANCE_S):
        return samples
    if late > MAX_GAP_S:
        raise MediaError(
            f"the sound of {path.name} has a gap of {float(late):.0f} s", "repair its timestamps"
        )
    count = round(late * rate)
    if count < 0:
        return samples[:, -count:]
    return np.concatenate([np.zeros((len(samples), count), np.float32), samples], 1)


def _to_stereo(samples: NDArray[np.generic]) -> Waveform:
    found = np.asarray(samples, np.float32)
    return np.repeat(found, 2, 0) if len(found) == 1 else found


def _stream(container: InputContainer, path: Path) -> AudioStream:
    found = find_audio_stream(container)
    if found is None:
        raise MediaError(f"{path.name} has no audio", "give a file with an audio track")
    return found


def _origin(container: InputContainer) -> Fraction | None:
    """The time of the first picture in seconds; ``None`` for a file without video."""
    video = find_video_stream(container)
    if video is None or video.time_base is None:
        return None
    return Fraction(video.start_time or 0) * video.time_base


def _stated_duration(stream: AudioStream, origin: Fraction | None) -> Fraction:
    """Seconds from time 0 to the end that the header states, 0 if it states none."""
    if not stream.duration or not stream.time_base:
        return Fraction(0)
    start = Fraction(stream.start_time or 0) * stream.time_base
    late = Fraction(0) if origin is None else start - origin
    late = late if abs(late) > START_TOLERANCE_S else Fraction(0)
    return max(late + stream.duration * stream.time_base, Fraction(0))


def _last_packet_end(
    container: InputContainer, stream: AudioStream, origin: Fraction | None
) -> Fraction:
    """The end of the last packet in seconds, for containers that do not state a duration."""
    end = Fraction(0)
    for packet in container.demux(stream):
        if packet.pts is not None and packet.time_base is not None:
            end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
    return max(end - (origin or 0), Fraction(0))
