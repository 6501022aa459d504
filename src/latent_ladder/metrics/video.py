"""What one clip shows, collected frame by frame: :class:`ClipMeter` holds two frames at a time.

Besides those two it keeps a few numbers per frame, so memory does not grow with the clip. Formulas,
units and sources stand beside each field of :class:`VideoMetrics`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.metrics.optical_flow import (
    Gray,
    Motion,
    checked,
    flow,
    gray,
    resized,
    speed,
    warped,
    working_size,
)

Values = NDArray[np.float64]

TOP_SHARE = 0.05
VBENCH_FPS, VBENCH_PIXELS, VBENCH_SIDE = 8.0, 6.0, 256.0
FREEZE_LEVELS, FREEZE_BLOCK = 1.0, 16
BLACK, WHITE = 2, 253
SEAM_STEP, SEAM_WINDOW, SEAM_FLOOR = 32, 8, 0.25
LAB_SIDE = 64
CHECKED_TOGETHER = 2  # flicker takes three frames in a row


@dataclass(frozen=True)
class VideoMetrics:
    """Measures of a clip's picture; levels are steps of 255. ``None``: too few frames to tell.

    - ``motion``: mean flow length, % of the diagonal per second.
    - ``dynamic_degree``: mean of each pair's 5 % longest flows, % of the diagonal per second;
      ``dynamic_share``: share of pairs where these exceed 6 px at 8 fps and 256 px (the rule of
      VBench's ``dynamic_degree``, with DIS instead of RAFT).
    - ``detail``: RMS of Y - gauss(Y, sigma 1 px) at the clip's own size, levels.
    - ``flicker``: mean |Y_t - (Y_t-1 + Y_t+1) / 2|, both fetched along the flow, levels.
    - ``warping_error``: RMS of Y_t - Y_t+1 fetched along the flow, where both see it, levels
      (the square root of Lai et al. 2018's E_warp, ECCV, "Learning blind video temporal
      consistency").
    - ``seam_energy``: how far gradients on lines of a tile grid exceed their neighbours'; 0 none.
    - ``last_second_flash``: largest jump of mean luminance in the last second, less the 95th
      percentile of those before, levels.
    - ``freeze``: share of pairs where no 16 px block changes by a level; ``freeze_longest_s``.
    - ``color_drift``: CIE 1976 difference of the mean Lab colours of the first and last second.
    - ``clipped_blacks``, ``clipped_whites``: share of pixels with Y <= 2, Y >= 253.
    - ``brightness``: mean luminance, levels.
    """

    frames: int
    fps: float
    width: int
    height: int
    motion: float | None
    dynamic_degree: float | None
    dynamic_share: float | None
    detail: float
    flicker: float | None
    warping_error: float | None
    seam_energy: float
    last_second_flash: float | None
    freeze: float | None
    freeze_longest_s: float
    color_drift: float
    clipped_blacks: float
    clipped_whites: float
    brightness: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass
class _Series:
    """Numbers per frame, and per pair of frames."""

    luma: list[float] = field(default_factory=list)
    lab: list[Values] = field(default_factory=list)
    band: list[float] = field(default_factory=list)
    black: list[float] = field(default_factory=list)
    white: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    top: list[float] = field(default_factory=list)
    frozen: list[bool] = field(default_factory=list)
    warp: list[float] = field(default_factory=list)
    flicker: list[float] = field(default_factory=list)


class ClipMeter:
    """Takes a clip's frames in order and gives its measures at the end.

    ``tile``: the (height, width) distance of a tile grid's lines, where known. ``check_every``:
    flow back and what follows from it (``flicker``, ``warping_error``) are computed for the first
    two of every n pairs; up to 2 that is for all.
    """

    def __init__(
        self, fps: float, tile: tuple[int, int] | None = None, check_every: int = 1
    ) -> None:
        self._fps, self._tile, self._every = fps, tile, check_every
        self._series = _Series()
        self._size = (0, 0)
        self._last: Gray | None = None
        self._before: tuple[Gray, Motion] | None = None
        self._columns: Values = np.zeros(0)
        self._rows: Values = np.zeros(0)

    def add(self, frame: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        """One frame (H, W, 3) RGB, uint8 or uint16; all of one size, else ``ValueError``."""
        shift = 8 if frame.dtype == np.uint16 else 0
        frame = np.right_shift(frame, shift).astype(np.uint8, copy=False)
        if frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"a frame has shape {frame.shape}, expected (H, W, 3)")
        size = frame.shape[0], frame.shape[1]
        if not self._series.luma:
            self._size = size
            self._columns, self._rows = np.zeros(size[1] - 1), np.zeros(size[0] - 1)
        if size != self._size:
            raise ValueError(f"a frame is {size}, the first was {self._size}")
        luminance = gray(frame)
        small = resized(luminance, working_size(*size))
        self._still(frame, luminance, small)
        if self._last is not None:
            self._pair(self._last, small)
        self._last = small

    @property
    def frames(self) -> int:
        """How many frames were taken."""
        return len(self._series.luma)

    @property
    def motion(self) -> Values:
        """Mean flow length per pair, % of the diagonal per second."""
        return np.asarray(self._series.motion)

    def result(self) -> VideoMetrics:
        """The measures of all frames so far. Raises ``ValueError`` before the first."""
        s, fps = self._series, self._fps
        if not s.luma:
            raise ValueError("a clip without frames cannot be measured")
        limit = 100.0 * VBENCH_PIXELS * VBENCH_FPS / _diagonal_at(self._size, VBENCH_SIDE)
        one = max(1, min(round(fps), len(s.lab) // 2))
        drift = np.mean(s.lab[:one], 0) - np.mean(s.lab[-one:], 0)
        height, width = self._size
        return VideoMetrics(
            frames=len(s.luma),
            fps=fps,
            width=width,
            height=height,
            motion=_mean(s.motion),
            dynamic_degree=_mean(s.top),
            dynamic_share=_mean([top > limit for top in s.top]),
            detail=math.sqrt(np.mean(s.band)),
            flicker=_mean(s.flicker),
            warping_error=math.sqrt(np.mean(s.warp)) if s.warp else None,
            seam_energy=seam_energy(
                self._columns / len(s.luma), self._rows / len(s.luma), self._tile
            ),
            last_second_flash=flash(s.luma, fps),
            freeze=_mean(s.frozen),
            freeze_longest_s=_longest(s.frozen) / fps,
            color_drift=float(np.linalg.norm(drift)),
            clipped_blacks=float(np.mean(s.black)),
            clipped_whites=float(np.mean(s.white)),
            brightness=float(np.mean(s.luma)),
        )

    def _still(self, frame: NDArray[np.uint8], luminance: Gray, small: Gray) -> None:
        s = self._series
        s.luma.append(float(small.mean()))
        s.lab.append(mean_lab(frame))
        s.band.append(band_energy(luminance))
        s.black.append(float(np.mean(luminance <= BLACK)))
        s.white.append(float(np.mean(luminance >= WHITE)))
        self._columns += _steps(luminance, 1).mean(0, dtype=np.float64)
        self._rows += _steps(luminance, 0).mean(1, dtype=np.float64)

    def _pair(self, before: Gray, after: Gray) -> None:
        s = self._series
        s.frozen.append(_is_frozen(before, after))
        forward = flow(before, after)
        fast = speed(forward, before, after)
        percent = 100.0 * self._fps / math.hypot(*before.shape)
        s.motion.append(float(fast.mean()) * percent)
        count = max(1, round(TOP_SHARE * fast.size))
        s.top.append(float(np.partition(fast, -count, axis=None)[-count:].mean()) * percent)
        if (len(s.frozen) - 1) % self._every >= CHECKED_TOGETHER:
            self._before = None
            return
        between = checked(forward, before, after)
        error = before - warped(after.astype(np.float32), between.forward)
        if between.seen_after.any():
            s.warp.append(float(np.mean(error[between.seen_after] ** 2)))
        if self._before is not None:
            s.flicker += self._flicker(before, after, between)
        self._before = (before, between)

    def _flicker(self, now: Gray, after: Gray, between: Motion) -> list[float]:
        """The flow-compensated second difference at ``now``; empty where nothing is seen thrice."""
        if self._before is None:
            return []
        past, earlier = self._before
        seen = earlier.seen_before & between.seen_after
        if not seen.any():
            return []
        back = warped(past.astype(np.float32), earlier.backward)
        ahead = warped(after.astype(np.float32), between.forward)
        return [float(np.abs(now - (back + ahead) / 2)[seen].mean())]


def band_energy(luminance: Gray) -> float:
    """Mean square of Y - gauss(Y, sigma 1 px), levels²: what only fine detail has."""
    import cv2

    values = luminance.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), 1.0)
    return float(np.mean(np.square(values, out=values)))


def mean_lab(frame: NDArray[np.uint8]) -> Values:
    """Mean colour in CIE Lab (D65, from sRGB) of the frame at 64 px short side."""
    import cv2

    height, width = frame.shape[:2]
    scale = min(1.0, LAB_SIDE / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = resized(frame, size).astype(np.float32) / 255.0
    lab = cv2.cvtColor(np.ascontiguousarray(small), cv2.COLOR_RGB2LAB)
    return np.asarray(lab.reshape(-1, 3).mean(0, dtype=np.float64))


def seam_energy(columns: Values, rows: Values, tile: tuple[int, int] | None = None) -> float:
    """How much stronger gradients are on the lines of a tile grid than 1 to 8 px beside them.

    ``columns``[i] is the mean |Y step| from column i to i + 1, ``rows`` likewise. A line's excess
    is its step over the median beside it, less 1; a grid's is the mean over its lines. With
    ``tile`` (height, width) that grid's, else the largest of all grids with a period that is a
    multiple of 32 px. 0 or more; 1 = twice as strong. A straight, still edge of the scene that lies
    on such a line counts too.
    """
    known = (None, None) if tile is None else (tile[1], tile[0])
    found = [_strongest(steps, at) for steps, at in zip((columns, rows), known, strict=True)]
    return max(0.0, *found)


def _strongest(steps: Values, period: int | None) -> float:
    size = len(steps) + 1
    periods = range(SEAM_STEP, size, SEAM_STEP) if period is None else [period]
    lines = {p: [_excess(steps, at - 1) for at in range(p, size, p)] for p in periods}
    return max((float(np.mean(found)) for found in lines.values() if found), default=0.0)


def _excess(steps: Values, at: int) -> float:
    beside = np.concatenate(
        [steps[max(0, at - SEAM_WINDOW) : at], steps[at + 1 : at + 1 + SEAM_WINDOW]]
    )
    around = float(np.median(beside)) if len(beside) else 0.0
    return (float(steps[at]) + SEAM_FLOOR) / (around + SEAM_FLOOR) - 1.0


def flash(luma: list[float], fps: float) -> float | None:
    """See :class:`VideoMetrics`; the last half where a clip is shorter than two seconds."""
    jumps = np.abs(np.diff(luma))
    last = min(max(1, round(fps)), len(jumps) // 2)
    if last == 0:
        return None
    return max(0.0, float(jumps[-last:].max() - np.percentile(jumps[:-last], 95)))


def _steps(luminance: Gray, axis: int) -> Gray:
    import cv2

    if axis:
        return np.asarray(cv2.absdiff(luminance[:, 1:], luminance[:, :-1]), np.uint8)
    return np.asarray(cv2.absdiff(luminance[1:], luminance[:-1]), np.uint8)


def _is_frozen(before: Gray, after: Gray) -> bool:
    import cv2

    change = cv2.absdiff(before, after).astype(np.float32)
    h, w = change.shape
    blocks = (max(1, w // FREEZE_BLOCK), max(1, h // FREEZE_BLOCK))
    return bool(cv2.resize(change, blocks, interpolation=cv2.INTER_AREA).max() < FREEZE_LEVELS)


def _diagonal_at(size: tuple[int, int], side: float) -> float:
    return math.hypot(*size) * side / min(size)


def _mean(values: list[float] | list[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _longest(flags: list[bool]) -> int:
    """Length of the longest run of true flags."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
