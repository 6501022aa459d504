"""Measurement of a clip, and comparison of a refined clip with its draft.

Runs on the CPU in constant memory, without weights. This module reads files and pairs frames; the
formulas are in :mod:`latent_ladder.metrics.video`, ``metrics.audio`` and ``metrics.optical_flow``,
and docs/reference/metrics.md lists them. Equal frames give equal numbers on every machine with the
same version of OpenCV.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.media.video_reader import probe, read_audio, read_frames
from latent_ladder.metrics.audio import AudioMetrics, measure_audio, spectral_distance
from latent_ladder.metrics.optical_flow import (
    Luminance,
    changed_pixels,
    compute_flow,
    resize_image,
    to_luminance,
    working_size,
)
from latent_ladder.metrics.video import ClipMeter, VideoMetrics, band_energy, mean_lab

Frames = Iterable[NDArray[np.uint8]]
"""Frames (H, W, 3) or chunks of them (n, H, W, 3), uint8 RGB, in order."""

STILL_PX = 0.05
"""A mean flow below this (px per frame) counts as no motion in the comparison of two clips."""

BAND_FLOOR = 0.01
"""Added to both band energies (levels²), so that images without detail give finite decibels."""

ASPECT_TOLERANCE = 0.05

RUN_CHECK_EVERY = 7
"""A run checks the flow of two in so many pairs, to keep the cost of measuring low.

Not a multiple of the frames per latent, or the checks would always be at the same frame of them.
"""


@dataclass(frozen=True)
class ClipMetrics(VideoMetrics):
    """The metrics of a clip: those of its video, and ``sound``, ``None`` without audio."""

    sound: AudioMetrics | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """Likely faults of the clip, one phrase each."""
        return tuple(text for bad, text in _WARNINGS if bad(self))


@dataclass(frozen=True)
class ComparisonMetrics:
    """Comparison of a refined clip with its draft, over the ``frames`` that both have.

    - ``motion_kept``: 1 - sum |f_r - f_d| / sum (|f_r| + |f_d|) over pixels and pairs, where f are
      the flows at the draft's size (short side at most 256 px); 0..1, 1 = equal, ``None`` for one
      frame.
    - ``motion_error_px``: mean |f_r - f_d| of these flows (end-point error), px per frame;
      ``motion_error``: the same in % of the diagonal per second.
    - ``structure_similarity``: SSIM of luminance at the draft's size, mean over frames, -1..1.
    - ``detail_added_db``: 10 log10 of the fine-detail energy of the refined clip over that of the
      draft enlarged to its size (Lanczos); 0 = none added, negative = lost.
    - ``color_drift``: CIE 1976 difference of mean Lab colours, mean over frames.
    - ``spectral_distance``: mean difference of log-mel spectrograms, dB; ``None`` without audio.
    - ``notes``: differences in length or frame rate, one sentence each.
    """

    frames: int
    motion_kept: float | None
    motion_error_px: float | None
    motion_error: float | None
    structure_similarity: float
    detail_added_db: float
    color_drift: float
    spectral_distance: float | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain JSON data."""
        return asdict(self)


_WARNINGS: tuple[tuple[Callable[[ClipMetrics], bool], str], ...] = (
    (lambda m: m.dynamic_degree is not None and m.dynamic_degree < 1.0, "static: hardly moves"),
    (
        lambda m: m.freeze is not None and m.freeze_longest_s >= 0.5 and m.freeze < 1.0,
        "frozen: repeats one frame for half a second or more",
    ),
    (
        lambda m: m.last_second_flash is not None and m.last_second_flash > 12.0,
        "flashing: the brightness jumps in the last second",
    ),
    (lambda m: m.flicker is not None and m.flicker > 6.0, "flickering: the brightness fluctuates"),
    (lambda m: m.clipped_blacks > 0.5, "dark: more than half of all pixels are black"),
    (
        lambda m: m.clipped_whites > 0.25,
        "overexposed: more than a quarter of all pixels are white",
    ),
    (lambda m: m.sound is not None and m.sound.clipping > 0.001, "the audio is clipped"),
    (lambda m: m.sound is not None and m.sound.silence > 0.95, "the audio is silent"),
)


def measure_clip(
    frames: Frames,
    fps: float,
    sound: tuple[NDArray[np.float32], int] | None = None,
    *,
    tile: tuple[int, int] | None = None,
) -> ClipMetrics:
    """Measure frames one by one; ``sound`` is a waveform (channels, S) in -1..1 and its rate in Hz.

    ``tile`` is the (height, width) period in px of a known tile grid. Raises ``ValueError`` without
    frames or for frames of several sizes.
    """
    meter = ClipMeter(fps, tile)
    for frame in iterate_frames(frames):
        meter.add(frame)
    return collect_metrics(meter, fps, sound)


def collect_metrics(
    meter: ClipMeter, fps: float, sound: tuple[NDArray[np.float32], int] | None
) -> ClipMetrics:
    """The metrics of a meter after the last frame, with those of the audio."""
    audio = None if sound is None else measure_audio(*sound, meter.motion, fps)
    return ClipMetrics(**meter.result().to_dict(), sound=audio)


class RunMeter:
    """Meter of a clip while it is written: frames pass through, the file is not read again.

    ``flicker`` and ``warping_error`` are computed for two in :data:`RUN_CHECK_EVERY` pairs.
    """

    def __init__(self, fps: float) -> None:
        self._frame_rate = fps
        self._meter = ClipMeter(fps, check_every=RUN_CHECK_EVERY)
        self._read_waveform: tuple[NDArray[np.float32], int] | None = None

    def measure_chunks(self, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """Yield the chunks unchanged, each after it was measured."""
        for chunk in chunks:
            for frame in iterate_frames([chunk]):
                self._meter.add(frame)
            yield chunk

    def set_audio(self, sound: tuple[NDArray[np.float32], int] | None) -> None:
        """Set the clip's audio: waveform (channels, S) and sample rate in Hz, or ``None``."""
        self._read_waveform = sound

    def result(self) -> ClipMetrics | None:
        """The metrics; ``None`` if no frame was written, as for a WAV file."""
        return (
            collect_metrics(self._meter, self._frame_rate, self._read_waveform)
            if self._meter.frames
            else None
        )


def measure_file(path: Path, *, tile: tuple[int, int] | None = None) -> ClipMetrics:
    """Measure a video file; see :func:`measure_clip`. Raises :class:`MediaError`."""
    return measure_clip(read_frames(path), _frame_rate(path), _read_waveform(path), tile=tile)


def compare_clips(
    draft: Frames,
    refined: Frames,
    fps: float,
    sounds: tuple[NDArray[np.float32], NDArray[np.float32], int] | None = None,
    refined_fps: float | None = None,
) -> ComparisonMetrics:
    """Compare two clips frame by frame, at the frame rate of the slower one.

    ``fps`` is the draft's rate, ``sounds`` both waveforms (channels, S) and their sample rate. The
    rest of the longer clip is left out, and ``notes`` states it. Raises :class:`MediaError` for
    clips of different aspect ratios.
    """
    refined_fps = refined_fps or fps
    rate = min(fps, refined_fps)
    pair = _ComparisonMeter(rate)
    clips = [
        _select_frames(iterate_frames(draft), fps, rate),
        _select_frames(iterate_frames(refined), refined_fps, rate),
    ]
    notes: list[str] = []
    if fps != refined_fps:
        notes.append(f"{fps:g} and {refined_fps:g} fps: compared at {rate:g} fps")
    while True:
        a, b = (next(clip, None) for clip in clips)
        if a is None or b is None:
            break
        pair.add(a, b)
    if (a is None) != (b is None):
        notes.append(f"different lengths: only the first {pair.frames} frames are compared")
    distance = None if sounds is None else spectral_distance(*sounds)
    return pair.result(distance, tuple(notes))


def compare_files(draft: Path, refined: Path) -> ComparisonMetrics:
    """Compare two video files. Raises :class:`MediaError`."""
    sounds = [_read_waveform(draft), _read_waveform(refined)]
    a, b = sounds
    both = None if a is None or b is None else (a[0], b[0], SAMPLE_RATE)
    return compare_clips(
        read_frames(draft), read_frames(refined), _frame_rate(draft), both, _frame_rate(refined)
    )


class _ComparisonMeter:
    """Meter of pairs of frames from two clips; keeps sums and the last pair."""

    def __init__(self, fps: float) -> None:
        self.frames = 0
        self._frame_rate = fps
        self._last: tuple[Luminance, Luminance] | None = None
        self._error = self._length = 0.0
        self._diagonal = 1.0
        self._similar: list[float] = []
        self._drift: list[float] = []
        self._bands = np.zeros(2)

    def add(self, draft: NDArray[np.uint8], refined: NDArray[np.uint8]) -> None:
        _check_shapes(draft, refined)
        self.frames += 1
        small, large = to_luminance(draft), to_luminance(refined)
        down = resize_image(large, _shape(small))
        self._similar.append(ssim(small, down))
        self._drift.append(float(np.linalg.norm(mean_lab(draft) - mean_lab(refined))))
        enlarged = resize_image(small, _shape(large))
        self._bands += band_energy(enlarged), band_energy(large)
        size = working_size(*_shape(small))
        now = resize_image(small, size), resize_image(down, size)
        if self._last is not None:
            self._add_motion(self._last, now)
        self._last = now

    def _add_motion(
        self, before: tuple[Luminance, Luminance], after: tuple[Luminance, Luminance]
    ) -> None:
        changed = [changed_pixels(a, b)[..., None] for a, b in zip(before, after, strict=True)]
        flows = [
            compute_flow(a, b) * where for a, b, where in zip(before, after, changed, strict=True)
        ]
        # A pixel that changed in one clip only has no motion in the other: that is a difference.
        self._error += _length(flows[1] - flows[0])
        self._length += _length(flows[0]) + _length(flows[1])
        self._diagonal = math.hypot(*before[0].shape)

    def result(self, distance: float | None, notes: tuple[str, ...]) -> ComparisonMetrics:
        if not self.frames:
            raise ValueError("clips without frames cannot be compared")
        pairs = self.frames - 1
        error = self._error / pairs if pairs else None
        kept = None
        if pairs:
            still = self._length / pairs < 2 * STILL_PX
            kept = 1.0 if still else 1.0 - self._error / self._length
        draft, refined = self._bands / self.frames + BAND_FLOOR
        return ComparisonMetrics(
            frames=self.frames,
            motion_kept=kept,
            motion_error_px=error,
            motion_error=None
            if error is None
            else 100.0 * error * self._frame_rate / self._diagonal,
            structure_similarity=float(np.mean(self._similar)),
            detail_added_db=10.0 * math.log10(refined / draft),
            color_drift=float(np.mean(self._drift)),
            spectral_distance=distance,
            notes=notes,
        )


def ssim(a: Luminance, b: Luminance) -> float:
    """Structural similarity of two luminance images (H, W), mean over pixels, -1..1.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004:
    Gaussian window of 11 px, sigma 1.5, K1 = 0.01, K2 = 0.03, range 255.
    """
    import cv2

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5), np.float32)

    x, y = a.astype(np.float32), b.astype(np.float32)
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    value = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return float(value.mean(dtype=np.float64))


def iterate_frames(frames: Frames) -> Iterator[NDArray[np.uint8]]:
    """Frames (H, W, 3) one by one, from frames or chunks (n, H, W, 3)."""
    for chunk in frames:
        if chunk.ndim == 3:
            yield chunk
        else:
            yield from chunk


def _select_frames(
    frames: Iterator[NDArray[np.uint8]], fps: float, wanted: float
) -> Iterator[NDArray[np.uint8]]:
    """The frames of a clip at ``fps`` nearest to the frame times at ``wanted`` fps (<= ``fps``)."""
    taken = 0
    for i, frame in enumerate(frames):
        if i == round(taken * fps / wanted):
            taken += 1
            yield frame


def _length(flows: NDArray[np.float32]) -> float:
    return float(np.hypot(flows[..., 0], flows[..., 1]).mean())


def _shape(image: Luminance) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _check_shapes(draft: NDArray[np.uint8], refined: NDArray[np.uint8]) -> None:
    (h, w), (height, width) = draft.shape[:2], refined.shape[:2]
    if abs((w / h) / (width / height) - 1.0) > ASPECT_TOLERANCE:
        raise MediaError(
            f"the clips are {w}x{h} and {width}x{height}, expected the same aspect ratio",
            hint="compare clips of one aspect ratio, such as a draft and its refined clip",
        )


def _frame_rate(path: Path) -> float:
    fps = float(probe(path).fps)
    if fps <= 0:
        raise MediaError(f"{path.name} does not state its frame rate", hint="convert it to MP4")
    return fps


def _read_waveform(path: Path) -> tuple[NDArray[np.float32], int] | None:
    waveform = read_audio(path, SAMPLE_RATE)
    return (waveform, SAMPLE_RATE) if waveform.shape[1] else None
