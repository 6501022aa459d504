"""Every kind of output by its name: a video file, single frames, sound alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.encoders import (
    CONTAINERS,
    SOUND_SUFFIX,
    STILLS,
    EncoderSettings,
    choose_encoding,
    require_encoder,
)
from latent_ladder.media.image_sequence import (
    Stills,
    check_stills,
    is_sound,
    write_sound,
    write_stills,
)
from latent_ladder.media.video_writer import (
    Frames,
    VideoSpec,
    WrittenVideo,
    check_file,
    check_output,
    write_video,
)

ENDINGS = (*CONTAINERS, SOUND_SUFFIX)


def check_clip(path: Path, overwrite: bool, settings: EncoderSettings) -> None:
    """Raise :class:`MediaError` if nothing could be written to ``path`` so; write nothing.

    Whatever the name, the codec, its settings and this build of FFmpeg decide is found here,
    before anything is computed.
    """
    if Stills.of(path) is not None:
        check_stills(path, overwrite)
        return
    suffix = path.suffix.lower()
    if suffix in STILLS:
        frames = path.parent / path.stem / f"%05d{suffix}"
        raise MediaError(f"output {path.name} is one picture, not a clip", f"write to {frames}")
    if is_sound(path):
        require_encoder("pcm_s24le")
        check_file(path, overwrite)
        return
    check_output(path, overwrite)
    choose_encoding(path, settings)


def bits_kept(path: Path, settings: EncoderSettings) -> int:
    """Bits per channel that a checked output keeps: 8, or more, and then frames should have 16."""
    if Stills.of(path) is not None:
        return 8 if path.suffix.lower() == ".png" else 16
    return 8 if is_sound(path) else choose_encoding(path, settings).bits


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
    """Write a clip to whatever ``path`` names; ``frames`` are not asked for where it is sound."""
    if is_sound(path):
        return write_sound(path, audio, duration, metadata=metadata, overwrite=overwrite)
    write = write_video if Stills.of(path) is None else write_stills
    return write(path, frames, spec, audio=audio, metadata=metadata, overwrite=overwrite)
