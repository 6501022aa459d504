"""Video input files: their properties, and their frames resampled to the frame times of a clip.

Files of any frame rate, constant or variable, are sampled at the clip's frame times: each frame of
the clip is the nearest frame of the file. Frames are upright and fitted to the canvas one by one,
so that only a few are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.exr_sequence import Colours, ExrSequence, find_exr_sequence
from latent_ladder.media.frame_form import FrameForm
from latent_ladder.media.frame_times import find_rate, has_variable_rate, read_frame_times
from latent_ladder.media.image_files import open_image
from latent_ladder.media.image_input import check_image, load_image
from latent_ladder.media.image_resize import fit_image
from latent_ladder.media.open_media import find_audio_stream, open_media, video_stream
from latent_ladder.media.video_reader import timed_frames
from latent_ladder.storage.read_file import check_regular_file

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".tga")
"""Suffixes of files that are read as one image."""

Pixels = NDArray[np.uint8] | NDArray[np.float32]

IMAGE_FPS = Fraction(24)
"""Frame rate of an image as a video of one frame."""


@dataclass(frozen=True)
class InputVideo:
    """The properties of an input video.

    ``size`` is the upright (width, height); ``rotated``: the stored frames are not upright.
    ``fps`` is the exact rate, or the mean one if frames last for different times
    (``variable_rate``). ``notes`` say what is converted: pixel shape, interlacing, HDR, gamut.
    """

    size: tuple[int, int]
    frames: int
    fps: Fraction
    duration_s: float
    variable_rate: bool
    rotated: bool
    has_audio: bool
    notes: tuple[str, ...] = ()
    sound_file: Path | None = None
    """The file of the sound; of EXR files a file beside them."""


def check_video(path: Path, fps: Fraction | None = None) -> InputVideo:
    """Read the properties of a video; decodes only its first frame.

    An image counts as a video of one frame. EXR files have the rate in the metadata beside them,
    or ``fps``, or :data:`IMAGE_FPS`. Raises :class:`MediaError` for a file without video, or
    one that cannot be read.
    """
    if (sequence := find_exr_sequence(path)) is not None:
        return _check_sequence(sequence, fps)
    if check_regular_file(path, MediaError, "file").st_size == 0:
        raise MediaError(f"{path.name} is empty: 0 bytes", "give a video file")
    if is_image(path):
        image = check_image(path)
        return InputVideo(
            image.size, 1, IMAGE_FPS, float(1 / IMAGE_FPS), False, False, False, image.notes
        )
    with open_media(path) as container:
        stream = video_stream(container, path)
        times = read_frame_times(container, stream)
        has_audio = find_audio_stream(container) is not None
        if not times:
            raise MediaError(f"{path.name} has no frames", "use another video file")
        fps = find_rate(times, stream)
        variable = has_variable_rate(times, stream)
    with open_media(path) as container:
        stream = video_stream(container, path)
        stored = next(container.decode(stream), None)
        if stored is None:
            raise MediaError(f"{path.name} has no frames", "use another video file")
        form = FrameForm.of_stream(stream)
        height, width, _ = form.to_rgb(stored).shape
        notes, turned = tuple(form.describe(stored)), bool(round(stored.rotation / 90) % 4)
    return InputVideo(
        size=(width, height),
        frames=len(times),
        fps=fps,
        duration_s=float(times[-1] - times[0] + 1 / fps),
        variable_rate=variable,
        rotated=turned,
        has_audio=has_audio,
        notes=notes,
        sound_file=path if has_audio else None,
    )


def _check_sequence(sequence: ExrSequence, fps: Fraction | None) -> InputVideo:
    rate, count = sequence.fps or fps or IMAGE_FPS, len(sequence.files)
    for file in (sequence.files[0], sequence.files[-1]):
        check_regular_file(file, MediaError, "EXR image")
    return InputVideo(
        size=sequence.size,
        frames=count,
        fps=rate,
        duration_s=float(count / rate),
        variable_rate=False,
        rotated=False,
        has_audio=sequence.sound is not None,
        sound_file=sequence.sound,
    )


def is_image(path: Path) -> bool:
    """True for a file that is read as one image; animations are videos."""
    suffix = path.suffix.lower()
    if suffix != ".webp" or not path.is_file():
        return suffix in IMAGE_SUFFIXES
    with open_image(path, decode=False) as image:
        return getattr(image, "n_frames", 1) == 1


def sample_frames(
    path: Path,
    times: Sequence[Fraction],
    canvas: tuple[int, int],
    window: tuple[int, int],
    fit: str = "cover",
    *,
    fps: Fraction = IMAGE_FPS,
    colours: Colours | None = None,
) -> Iterator[Pixels]:
    """The frames nearest to ``times`` (seconds, ascending), each (H, W, 3) on ``canvas``.

    They are uint8; of EXR files with ``colours``, at the rate ``fps``, float32 codes from 0 to 255.

    A time before the first frame gives the first, a time after the last frame the last one. For
    ``canvas``, ``window`` and ``fit`` see :func:`~latent_ladder.media.image_resize.fit_image`.
    """
    done = 0
    for until, frame in _with_end_times(_timed(path, fps, colours)):
        shown: Pixels | None = None
        while done < len(times) and (until is None or times[done] <= until):
            if shown is None:
                shown = fit_image(frame, canvas, window, fit)
            yield shown
            done += 1
        if done == len(times):
            break


def _timed(path: Path, fps: Fraction, colours: Colours | None) -> Iterator[tuple[Fraction, Pixels]]:
    """Every frame with its time."""
    sequence = find_exr_sequence(path)
    if sequence is not None:
        if colours is None:
            raise MediaError(f"{path.name} is HDR", "use it in a request with hdr=acescct or logc3")
        yield from ((i / fps, codes) for i, codes in enumerate(sequence.codes(colours)))
    elif is_image(path):
        yield Fraction(0), load_image(path)
    else:
        yield from timed_frames(path)


def _with_end_times(
    frames: Iterator[tuple[Fraction, Pixels]],
) -> Iterator[tuple[Fraction | None, Pixels]]:
    """Every frame with the time up to which it is the nearest frame, ``None`` for the last."""
    before: tuple[Fraction, Pixels] | None = None
    for time, frame in frames:
        if before is not None:
            yield (before[0] + time) / 2, before[1]
        before = (time, frame)
    if before is not None:
        yield None, before[1]
