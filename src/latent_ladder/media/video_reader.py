"""Readers of video frames, audio, images and their metadata, for all files that FFmpeg reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.container_metadata import decode_comment, read_image_tags

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# FFmpeg's AVColorSpace numbers.
_BT709, _UNSPECIFIED = 1, 2
_PICTURES = (".png", ".gif", ".webp")
_HD_WIDTH, _HD_HEIGHT = 1280, 576
"""Video without a colour tag, of at least this width or above this height, is read as BT.709."""


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
        stream = _video_stream(container, path)
        frames, duration, audio_end = _measure(container, stream)
        audio = container.streams.audio[0] if container.streams.audio else None
        fps = stream.average_rate or stream.guessed_rate or Fraction(0)
        metadata = _metadata(container)
    height, width, _ = next(read_frames(path)).shape
    return VideoInfo(
        width=width,
        height=height,
        frames=frames,
        fps=Fraction(fps),
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
    if path.is_dir() or "%" in path.name:
        return _sidecar(path if path.is_dir() else path.parent)
    if path.suffix.lower() in _PICTURES and path.is_file():
        return _image_tags(path)
    with open_media(path) as container:
        return _metadata(container)


def _sidecar(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / "request.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MediaError(
            f"folder {folder} has no readable request.json: {error}",
            "give a clip, or the folder of an image sequence",
        ) from error
    return {k: v for k, v in found.items() if isinstance(v, str)}


def _image_tags(path: Path) -> dict[str, str]:
    from PIL import Image, UnidentifiedImageError

    try:
        return read_image_tags(path)
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(f"{path.name} cannot be read as an image: {error}") from error


def read_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Every frame of the video, upright, one at a time: (H, W, 3) uint8 RGB.

    Colour matrix and range are those in the file. Raises :class:`MediaError` if the file ends
    before the number of frames in its header.
    """
    return (frame for _, frame in timed_frames(path))


def timed_frames(path: Path) -> Iterator[tuple[Fraction, NDArray[np.uint8]]]:
    """The frames of :func:`read_frames`, each with its time in seconds; the first is at 0."""
    count, first = 0, None
    with open_media(path) as container:
        stream = _video_stream(container, path)
        stream.thread_type = "AUTO"
        expected, rate = stream.frames, stream.average_rate or stream.guessed_rate or 24
        for frame in container.decode(stream):
            time, pts, base = Fraction(count) / Fraction(rate), frame.pts, frame.time_base
            if pts is not None and base is not None:
                time = Fraction(pts * base)
            first = time if first is None else first
            count += 1
            yield time - first, _to_rgb(frame)
    if count == 0 or count < expected:
        raise MediaError(
            f"{path.name} is truncated: {count} of {expected or 'its'} frames can be read",
            hint="make or download the file again",
        )


def read_audio(path: Path, rate: int) -> NDArray[np.float32]:
    """The whole audio track as stereo (2, S) float32 at ``rate`` Hz; S = 0 without audio.

    MP4 and MOV return exactly the samples that were written. MKV does not store where the audio
    ends, so the padding of the encoder's last block (21 ms) is returned too.
    """
    import av

    with open_media(path) as container:
        if not container.streams.audio:
            return np.zeros((2, 0), np.float32)
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
        parts = [
            part.to_ndarray()
            for frame in container.decode(stream)
            for part in resampler.resample(frame)
        ]
        parts += [part.to_ndarray() for part in resampler.resample(None)]
        samples: NDArray[np.float32] = np.concatenate([np.zeros((2, 0), np.float32), *parts], 1)
        if stream.duration and stream.time_base:
            # MP4 excludes the padding of the last AAC frame by an edit list, which the decoder
            # ignores.
            samples = samples[:, : round(stream.duration * stream.time_base * rate)]
    return samples


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as (H, W, 3) uint8 RGB, rotated as its EXIF says, transparent parts white.

    Raises :class:`MediaError` if it cannot be read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as stored:
            image = ImageOps.exif_transpose(stored)
            if image.has_transparency_data:
                solid = image.convert("RGBA")
                image = Image.new("RGBA", solid.size, "white")
                image.alpha_composite(solid)
            return np.array(image.convert("RGB"), np.uint8)
    except FileNotFoundError as error:
        raise MediaError(f"image {path} does not exist", hint="check the path") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(
            f"{path.name} cannot be read as an image: {error}", hint="use a PNG, JPEG or WebP file"
        ) from error


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


@contextmanager
def open_media(path: Path, what: str = "a video") -> Iterator[InputContainer]:
    """An open container; FFmpeg's errors inside the block become a :class:`MediaError`.

    ``what`` names the expected kind of file in the message.
    """
    import av

    try:
        with av.open(str(path)) as container:
            yield container
    except FileNotFoundError as error:
        raise MediaError(f"file {path} does not exist", hint="check the path") from error
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{path.name} cannot be read as {what}: {reason}",
            hint="use another file: this is not a media file, or it is truncated or damaged",
        ) from error


def _video_stream(container: InputContainer, path: Path) -> VideoStream:
    if not container.streams.video:
        raise MediaError(f"{path.name} has no video track", hint="use a video file")
    return container.streams.video[0]


def _metadata(container: InputContainer) -> dict[str, str]:
    upper = "matroska" in container.format.name
    found = {k.lower() if upper else k: v for k, v in container.metadata.items()}
    return found | (decode_comment(found.get("comment", "")) or {})


def _measure(container: InputContainer, video: VideoStream) -> tuple[int, Fraction, Fraction]:
    """Number of frames, video and audio duration in seconds, from the header, else from packets."""
    audio = container.streams.audio[0] if container.streams.audio else None
    spans = [_header_duration(stream) for stream in (video, audio) if stream is not None]
    if video.frames and all(spans):
        return video.frames, spans[0], spans[-1]
    ends = {stream.index: Fraction(0) for stream in (video, audio) if stream is not None}
    frames = 0
    for packet in container.demux([stream for stream in (video, audio) if stream is not None]):
        if packet.pts is None or packet.time_base is None:
            continue
        frames += packet.stream_index == video.index
        end = (packet.pts + (packet.duration or 0)) * packet.time_base
        ends[packet.stream_index] = max(ends[packet.stream_index], end)
    return frames, ends[video.index], ends[audio.index] if audio is not None else Fraction(0)


def _header_duration(stream: Stream) -> Fraction:
    """The duration of a stream in seconds that the header states, 0 if it states none."""
    if not stream.duration or not stream.time_base:
        return Fraction(0)
    return Fraction(stream.duration * stream.time_base)


def _to_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
    hd = frame.width >= _HD_WIDTH or frame.height > _HD_HEIGHT
    # PyAV (since 17) uses the frame's own matrix if it has one, BT.601 otherwise.
    matrix = _BT709 if hd and frame.colorspace == _UNSPECIFIED else None
    converted = frame.reformat(format="rgb24", src_colorspace=matrix)
    rgb: NDArray[np.uint8] = np.asarray(converted.to_ndarray(), np.uint8)
    # The display matrix rotates counter-clockwise, like rot90.
    turns = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
