"""Readers of video frames, audio, images and their metadata, for all files that FFmpeg reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.audio_input import read_audio_input
from latent_ladder.media.container_metadata import decode_comment, read_image_tags
from latent_ladder.media.frame_form import FrameForm, FramePadding, decode_progressive
from latent_ladder.media.frame_times import count_stated_frames, find_rate
from latent_ladder.media.image_sequence import read_sidecar
from latent_ladder.media.open_media import SAMPLE_RATE, find_audio_stream, open_media, video_stream
from latent_ladder.storage.read_file import is_file, is_folder

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_PICTURES = (".png", ".gif", ".webp")


@dataclass(frozen=True)
class VideoInfo:
    """The properties of a video file; width and height as displayed, after rotation.

    Durations are in seconds; ``audio_duration_s`` and ``audio_rate`` (Hz) are ``None`` without
    audio.
    """

    width: int
    height: int
    frames: int
    fps: Fraction
    duration_s: float
    audio_duration_s: float | None
    audio_rate: int | None
    metadata: Mapping[str, str]


def probe(path: Path) -> VideoInfo:
    """Read the properties of a video file; decodes only its first frame.

    Raises :class:`MediaError` if the file is missing, has no video or its first frame is damaged.
    """
    with open_media(path) as container:
        stream = video_stream(container, path)
        times, duration, audio_end = _measure(container, stream)
        audio = find_audio_stream(container)
        fps = find_rate(times, stream)
        metadata = _metadata(container)
    height, width, _ = next(read_frames(path)).shape
    return VideoInfo(
        width=width,
        height=height,
        frames=len(times),
        fps=fps,
        duration_s=float(duration),
        audio_duration_s=None if audio is None else float(audio_end),
        audio_rate=None if audio is None else audio.rate,
        metadata=metadata,
    )


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata tags of a video, image or audio file; names from MKV are in lower case.

    For the folder or name pattern of an image sequence: the tags in its ``request.json``. Raises
    :class:`MediaError` if they cannot be read.
    """
    if is_folder(path) or "%" in path.name:
        tags = read_sidecar(path if is_folder(path) else path.parent)
        return {name: value for name, value in tags.items() if isinstance(value, str)}
    if path.suffix.lower() in _PICTURES and is_file(path):
        return read_image_tags(path)
    with open_media(path) as container:
        return _metadata(container)


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Every frame that the video shows, one at a time: (H, W, 3) uint8 RGB in BT.709.

    Frames are upright, with square pixels, without interlacing; HDR and wide gamut are converted to
    SDR. Colour matrix and range are those in the file. Raises :class:`MediaError` if the file ends
    before the number of frames in its header.
    """
    return (frame for _, frame in timed_frames(path))


def read_float_frames(path: Path) -> Iterator[NDArray[np.float32]]:
    """The frames of :func:`read_frames` as (H, W, 3) float32 RGB 0..1, not rounded to 8 bits.

    See :meth:`FrameForm.to_float`.
    """
    padding = FramePadding()
    return (form.to_float(frame, padding) for _, frame, form in _decoded_frames(path))


def timed_frames(path: Path) -> Iterator[tuple[Fraction, NDArray[np.uint8]]]:
    """The frames of :func:`read_frames`, each with its time in seconds; the first is at 0."""
    return ((time, form.to_rgb(frame)) for time, frame, form in _decoded_frames(path))


def _decoded_frames(path: Path) -> Iterator[tuple[Fraction, VideoFrame, FrameForm]]:
    """The decoded frames with their times from 0 on and the form that makes them visible."""
    count, first = 0, None
    with open_media(path) as container:
        stream = video_stream(container, path)
        stream.thread_type = "AUTO"
        expected = count_stated_frames(container, stream)
        rate = stream.average_rate or stream.guessed_rate or 24
        form = FrameForm.of_stream(stream)
        for frame in decode_progressive(container, stream):
            time, pts, base = Fraction(count) / Fraction(rate), frame.pts, frame.time_base
            if pts is not None and base is not None:
                time = Fraction(pts * base)
            first = time if first is None else first
            count += 1
            yield time - first, frame, form
    if count == 0 or count < expected:
        raise MediaError(
            f"{path.name} is truncated: {count} of {expected or 'its'} frames can be read",
            hint="make or download the file again",
        )


def read_audio(path: Path, rate: int = SAMPLE_RATE) -> NDArray[np.float32]:
    """The whole audio track as stereo (2, S) float32 at ``rate`` Hz; S = 0 without audio.

    Time 0 is that of the first picture. MP4 and MOV return exactly the samples that were written.
    MKV does not store where the audio ends, so the padding of the encoder's last block (21 ms) is
    returned too.
    """
    with open_media(path) as container:
        if find_audio_stream(container) is None:
            return np.zeros((2, 0), np.float32)
    return read_audio_input(path, None, rate)


def extract_frames(path: Path, folder: Path, pattern: str = "{:05d}.png") -> list[Path]:
    """Write every frame of a video to ``folder`` as a PNG and return the files.

    Creates the folder. Raises :class:`MediaError` if it cannot be written.
    """
    from PIL import Image

    written = []
    for i, frame in enumerate(read_frames(path)):
        file = folder / pattern.format(i)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(file)
        except OSError as error:
            raise MediaError(f"frame {i} cannot be written to {folder}: {error}") from error
        written.append(file)
    return written


def _metadata(container: InputContainer) -> dict[str, str]:
    upper = "matroska" in container.format.name
    found = {k.lower() if upper else k: v for k, v in container.metadata.items()}
    return found | (decode_comment(found.get("comment", "")) or {})


def _measure(
    container: InputContainer, video: VideoStream
) -> tuple[list[Fraction], Fraction, Fraction]:
    """Times of the shown frames, video and audio duration in seconds, from headers or packets."""
    audio = find_audio_stream(container)
    streams = [stream for stream in (video, audio) if stream is not None]
    spans = [_header_duration(stream) for stream in streams]
    times: set[Fraction] = set()
    ends = {stream.index: Fraction(0) for stream in streams}
    for packet in container.demux(streams):
        if packet.pts is None or packet.time_base is None or packet.is_discard:
            continue
        begin = Fraction(packet.pts * packet.time_base)
        if packet.stream_index == video.index:
            times.add(begin)
        end = begin + (packet.duration or 0) * packet.time_base
        ends[packet.stream_index] = max(ends[packet.stream_index], end)
    if not all(spans):
        spans = [ends[stream.index] for stream in streams]
    return sorted(times), spans[0], spans[-1] if audio is not None else Fraction(0)


def _header_duration(stream: Stream) -> Fraction:
    """The duration of a stream in seconds that the header states, 0 if it states none."""
    if not stream.duration or not stream.time_base:
        return Fraction(0)
    return Fraction(stream.duration * stream.time_base)
