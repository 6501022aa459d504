"""Measure a clip, or a refined clip against its draft: no weights, CPU only, memory flat.

Reading and pairing live here; the formulas in :mod:`latent_ladder.metrics.video`,
``metrics.audio`` and ``metrics.optical_flow``. docs/metrics.md lists
them all. Equal frames give equal numbers on every machine with the same OpenCV.
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
from latent_ladder.media.video_reader import probe, read_audio, read_frames
from latent_ladder.metrics.audio import RATE, SoundMetrics, measure_sound, spectral_distance
from latent_ladder.metrics.optical_flow import Gray, flow, gray, moved, resized, working_size
from latent_ladder.metrics.video import ClipMeter, VideoMetrics, band_energy, mean_lab

Frames = Iterable[NDArray[np.uint8]]
"""Frames (H, W, 3) or chunks of them (n, H, W, 3), uint8 RGB, in order."""

STILL_PX = 0.05
"""Flow shorter than this per frame, on average, is no motion that could be kept or lost."""

BAND_FLOOR = 0.01
"""Added to both band energies (levels²): a plain picture has no detail, not minus infinity."""

ASPECT_TOLERANCE = 0.05

RUN_CHECK_EVERY = 7
"""A run checks the flow of two of so many pairs: measuring must not be felt in it.

No multiple of the frames of a latent, or it would always meet the same place in them.
"""


@dataclass(frozen=True)
class ClipMetrics(VideoMetrics):
    """A clip's picture and ``sound``, which is ``None`` where it has none."""

    sound: SoundMetrics | None = None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is likely wrong with the clip, one sentence each."""
        return tuple(text for bad, text in _FAULTS if bad(self))


@dataclass(frozen=True)
class ComparisonMetrics:
    """A refined clip against its draft, over the ``frames`` both have.

    - ``motion_kept``: 1 - sum |f_r - f_d| / sum (|f_r| + |f_d|) over pixels and pairs, f the flows
      at the draft's size (short side 256 px at most); 0..1, 1 = the same, ``None`` for one frame.
    - ``motion_error_px``: mean |f_r - f_d| there (end-point error), px per frame;
      ``motion_error``: the same in % of the diagonal per second.
    - ``structure_similarity``: SSIM of luminance at the draft's size, mean over frames, -1..1.
    - ``detail_added_db``: 10 log10 of the fine-detail energy of the refined clip over that of the
      draft enlarged (Lanczos) to its size; 0 = none added, negative = lost.
    - ``color_drift``: CIE 1976 difference of mean Lab colours, mean over frames.
    - ``spectral_distance``: mean difference of log-mel spectrograms, dB; ``None`` without sound.
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
        """Plain data."""
        return asdict(self)


_FAULTS: tuple[tuple[Callable[[ClipMetrics], bool], str], ...] = (
    (lambda m: m.dynamic_degree is not None and m.dynamic_degree < 1.0, "static: hardly moves"),
    (
        lambda m: m.freeze is not None and m.freeze_longest_s >= 0.5 and m.freeze < 1.0,
        "frozen: stands still for half a second or more",
    ),
    (
        lambda m: m.last_second_flash is not None and m.last_second_flash > 12.0,
        "flashing: the brightness jumps in the last second",
    ),
    (lambda m: m.flicker is not None and m.flicker > 6.0, "flickering: brightness trembles"),
    (lambda m: m.clipped_blacks > 0.5, "dark: more than half of the picture is black"),
    (lambda m: m.clipped_whites > 0.25, "burnt out: more than a quarter of the picture is white"),
    (lambda m: m.sound is not None and m.sound.clipping > 0.001, "the sound is clipped"),
    (lambda m: m.sound is not None and m.sound.silence > 0.95, "the sound is silent"),
)


def measure_clip(
    frames: Frames,
    fps: float,
    sound: tuple[NDArray[np.float32], int] | None = None,
    *,
    tile: tuple[int, int] | None = None,
) -> ClipMetrics:
    """Measure frames as they come; ``sound`` is a waveform (channels, S) in -1..1 and its rate.

    ``tile`` is the known (height, width) distance of tile borders. Raises ``ValueError`` without
    frames or for frames of several sizes.
    """
    meter = ClipMeter(fps, tile)
    for frame in single(frames):
        meter.add(frame)
    return finished(meter, fps, sound)


def finished(
    meter: ClipMeter, fps: float, sound: tuple[NDArray[np.float32], int] | None
) -> ClipMetrics:
    """The metrics of a meter that has seen all frames, with the sound's."""
    heard = None if sound is None else measure_sound(*sound, meter.motion, fps)
    return ClipMetrics(**meter.result().to_dict(), sound=heard)


class RunMeter:
    """Measures a clip while it is written: frames pass through, nothing is read again.

    ``flicker`` and ``warping_error`` are those of two in :data:`RUN_CHECK_EVERY` pairs.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self._meter = ClipMeter(fps, check_every=RUN_CHECK_EVERY)
        self._sound: tuple[NDArray[np.float32], int] | None = None

    def watching(self, chunks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        """The chunks unchanged, each measured before it goes on."""
        for chunk in chunks:
            for frame in single([chunk]):
                self._meter.add(frame)
            yield chunk

    def hear(self, sound: tuple[NDArray[np.float32], int] | None) -> None:
        """The clip's sound: (channels, S) and its rate."""
        self._sound = sound

    def result(self) -> ClipMetrics | None:
        """The measures; ``None`` where no frame was written, as in a WAV."""
        return finished(self._meter, self._fps, self._sound) if self._meter.frames else None


def measure_file(path: Path, *, tile: tuple[int, int] | None = None) -> ClipMetrics:
    """Measure a video file. Raises :class:`MediaError`."""
    return measure_clip(read_frames(path), _fps(path), _sound(path), tile=tile)


def compare_clips(
    draft: Frames,
    refined: Frames,
    fps: float,
    sounds: tuple[NDArray[np.float32], NDArray[np.float32], int] | None = None,
    refined_fps: float | None = None,
) -> ComparisonMetrics:
    """Compare two clips frame by frame; one twice as fast is thinned out to the slower one.

    ``fps`` is the draft's, ``sounds`` both waveforms and their rate. The longer clip's rest is
    left out and ``notes`` says so. Raises :class:`MediaError` for other shapes of picture.
    """
    refined_fps = refined_fps or fps
    rate = min(fps, refined_fps)
    pair = _PairMeter(rate)
    ends = [_thinned(single(draft), fps, rate), _thinned(single(refined), refined_fps, rate)]
    notes: list[str] = []
    if fps != refined_fps:
        notes.append(f"{fps:g} and {refined_fps:g} fps: compared at {rate:g} fps")
    while True:
        a, b = (next(end, None) for end in ends)
        if a is None or b is None:
            break
        pair.add(a, b)
    if (a is None) != (b is None):
        notes.append(f"different lengths: only the {pair.frames} frames both have are compared")
    distance = None if sounds is None else spectral_distance(*sounds)
    return pair.result(distance, tuple(notes))


def compare_files(draft: Path, refined: Path) -> ComparisonMetrics:
    """Compare two video files. Raises :class:`MediaError`."""
    sounds = [_sound(draft), _sound(refined)]
    a, b = sounds
    both = None if a is None or b is None else (a[0], b[0], RATE)
    return compare_clips(read_frames(draft), read_frames(refined), _fps(draft), both, _fps(refined))


class _PairMeter:
    """Sums over pairs of frames, two pairs in memory."""

    def __init__(self, fps: float) -> None:
        self.frames = 0
        self._fps = fps
        self._last: tuple[Gray, Gray] | None = None
        self._error = self._length = 0.0
        self._diagonal = 1.0
        self._similar: list[float] = []
        self._drift: list[float] = []
        self._bands = np.zeros(2)

    def add(self, draft: NDArray[np.uint8], refined: NDArray[np.uint8]) -> None:
        _check_shapes(draft, refined)
        self.frames += 1
        small, large = gray(draft), gray(refined)
        down = resized(large, _shape(small))
        self._similar.append(ssim(small, down))
        self._drift.append(float(np.linalg.norm(mean_lab(draft) - mean_lab(refined))))
        enlarged = resized(small, _shape(large))
        self._bands += band_energy(enlarged), band_energy(large)
        size = working_size(*_shape(small))
        now = resized(small, size), resized(down, size)
        if self._last is not None:
            self._move(self._last, now)
        self._last = now

    def _move(self, before: tuple[Gray, Gray], after: tuple[Gray, Gray]) -> None:
        changed = [moved(a, b)[..., None] for a, b in zip(before, after, strict=True)]
        flows = [flow(a, b) * where for a, b, where in zip(before, after, changed, strict=True)]
        # Where one changed and the other did not, the other stands still: that is motion lost.
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
            motion_error=None if error is None else 100.0 * error * self._fps / self._diagonal,
            structure_similarity=float(np.mean(self._similar)),
            detail_added_db=10.0 * math.log10(refined / draft),
            color_drift=float(np.mean(self._drift)),
            spectral_distance=distance,
            notes=notes,
        )


def ssim(a: Gray, b: Gray) -> float:
    """Structural similarity of two luminance pictures, mean over pixels, -1..1.

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


def single(frames: Frames) -> Iterator[NDArray[np.uint8]]:
    """Frames one by one, from frames or chunks of them."""
    for chunk in frames:
        if chunk.ndim == 3:
            yield chunk
        else:
            yield from chunk


def _thinned(
    frames: Iterator[NDArray[np.uint8]], fps: float, wanted: float
) -> Iterator[NDArray[np.uint8]]:
    """Of a clip at ``fps`` the frames nearest to the times of one at ``wanted`` fps, no faster."""
    taken = 0
    for i, frame in enumerate(frames):
        if i == round(taken * fps / wanted):
            taken += 1
            yield frame


def _length(flows: NDArray[np.float32]) -> float:
    return float(np.hypot(flows[..., 0], flows[..., 1]).mean())


def _shape(picture: Gray) -> tuple[int, int]:
    return picture.shape[0], picture.shape[1]


def _check_shapes(draft: NDArray[np.uint8], refined: NDArray[np.uint8]) -> None:
    (h, w), (height, width) = draft.shape[:2], refined.shape[:2]
    if abs((w / h) / (width / height) - 1.0) > ASPECT_TOLERANCE:
        raise MediaError(
            f"{w}x{h} and {width}x{height} are pictures of different shape",
            hint="compare clips of one aspect ratio, such as a draft and its refined clip",
        )


def _fps(path: Path) -> float:
    fps = float(probe(path).fps)
    if fps <= 0:
        raise MediaError(
            f"{path.name} does not say its frame rate", hint="write it again as an MP4"
        )
    return fps


def _sound(path: Path) -> tuple[NDArray[np.float32], int] | None:
    waveform = read_audio(path, RATE)
    return (waveform, RATE) if waveform.shape[1] else None
