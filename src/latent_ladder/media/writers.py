"""Output of a clip by the name of its file: a video, images, or audio only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.encoders import (
    AUDIO_SUFFIX,
    CONTAINERS,
    IMAGE_ENCODERS,
    EncoderSettings,
    choose_encoding,
    require_encoder,
)
from latent_ladder.media.hdr import EXR_SUFFIX, load_exr, sdr_of_light
from latent_ladder.media.image_sequence import (
    FramePattern,
    check_image_file,
    check_image_sequence,
    is_audio_file,
    write_audio,
    write_image_file,
    write_image_sequence,
)
from latent_ladder.media.video_reader import read_frames
from latent_ladder.media.video_writer import (
    Frames,
    VideoSpec,
    WrittenVideo,
    check_output_path,
    check_video_path,
    write_video,
)

OUTPUT_SUFFIXES = (*CONTAINERS, AUDIO_SUFFIX)


def check_clip(
    path: Path, overwrite: bool, settings: EncoderSettings, frames: int | None = None
) -> None:
    """Raise :class:`MediaError` if a clip could not be written to ``path`` with these settings.

    A clip of one frame (``frames`` is 1) can be one image. Checks the path, the codec, its settings
    and the encoders of this FFmpeg before anything is computed, and leaves no file.
    """
    suffix = path.suffix.lower()
    if settings.transfer != "sdr" and suffix in IMAGE_ENCODERS and suffix != EXR_SUFFIX:
        raise MediaError(
            f"{suffix} files are not written in HDR", f"write to {path.with_suffix(EXR_SUFFIX)}"
        )
    if settings.transfer != "sdr" and not is_audio_file(path):
        check_output_path(preview_path(path), overwrite)
    if FramePattern.from_path(path) is not None:
        check_image_sequence(path, overwrite)
        return
    if suffix in IMAGE_ENCODERS and frames == 1:
        check_image_file(path, overwrite)
        return
    if suffix in IMAGE_ENCODERS:
        pattern = path.parent / path.stem / f"%05d{suffix}"
        raise MediaError(f"output {path.name} is one image, not a clip", f"write to {pattern}")
    if is_audio_file(path):
        require_encoder("pcm_s24le")
        check_output_path(path, overwrite)
        return
    check_video_path(path, overwrite)
    choose_encoding(path, settings)


def preview_path(path: Path) -> Path:
    """The SDR preview of an HDR clip: ``NAME.sdr.mp4``, ``NAME.sdr.png`` of a single image."""
    if FramePattern.from_path(path) is not None:
        return path.parent.with_name(f"{path.parent.name}.sdr.mp4")
    return path.with_name(
        f"{path.stem}.sdr{'.png' if path.suffix.lower() == EXR_SUFFIX else '.mp4'}"
    )


def sdr_frames(path: Path, count: int) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) of an HDR clip that was written, read back and shown in SDR."""
    if path.suffix.lower() != EXR_SUFFIX:
        yield from read_frames(path)
        return
    pattern = FramePattern.from_path(path)
    files = [path] if pattern is None else [path.parent / pattern.name(n) for n in range(count)]
    for file in files:
        yield sdr_of_light(load_exr(file))


def bit_depth(path: Path, settings: EncoderSettings) -> int:
    """Bits per channel of the output: 8, or more, and then the frames to write should have 16.

    ``path`` must have passed :func:`check_clip`.
    """
    if FramePattern.from_path(path) is not None or path.suffix.lower() in IMAGE_ENCODERS:
        return 8 if path.suffix.lower() == ".png" else 16
    return 8 if is_audio_file(path) else choose_encoding(path, settings).bits


def write_clip_file(
    path: Path,
    frames: Iterable[Frames],
    spec: VideoSpec,
    *,
    audio: tuple[NDArray[np.float32], int] | None,
    duration: Fraction,
    metadata: Mapping[str, str],
    overwrite: bool,
) -> WrittenVideo:
    """Write a clip to a video, an image sequence or an audio file, by the name of ``path``.

    ``frames`` is not read for an audio file. For the arguments and errors see
    :func:`~latent_ladder.media.video_writer.write_video`; ``duration`` is in seconds.
    """
    if is_audio_file(path):
        return write_audio(path, audio, duration, metadata=metadata, overwrite=overwrite)
    if path.suffix.lower() in IMAGE_ENCODERS and FramePattern.from_path(path) is None:
        return write_image_file(path, frames, spec, metadata=metadata, overwrite=overwrite)
    write = write_video if FramePattern.from_path(path) is None else write_image_sequence
    return write(path, frames, spec, audio=audio, metadata=metadata, overwrite=overwrite)
