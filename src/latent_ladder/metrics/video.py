"""Video metrics of one clip, computed frame by frame by :class:`ClipMeter`.

It keeps two frames and a few numbers per frame, so memory does not grow with the clip. Formulas,
units and sources are in :class:`VideoMetrics`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.metrics.optical_flow import (
    BidirectionalFlow,
    Flow,
    Luminance,
    check_flow,
    compute_flow,
    moving_flow,
    resize_image,
    steady_speed,
    to_luminance,
    warp,
    working_size,
)

Values = NDArray[np.float64]

TOP_SHARE = 0.05
VBENCH_FPS, VBENCH_PIXELS, VBENCH_SIDE = 8.0, 6.0, 256.0
FREEZE_LEVELS, FREEZE_BLOCK = 1.0, 16
BLACK, WHITE = 2, 253
SEAM_STEP, SEAM_WINDOW, SEAM_FLOOR = 32, 8, 0.25
LAB_SIDE = 64
CONSECUTIVE_CHECKS = 2  # flicker needs three consecutive frames


@dataclass(frozen=True)
class VideoMetrics:
    """Video metrics of a clip; a level is 1/255. ``None``: too few frames for this metric.

    - ``motion``: mean flow length, % of the diagonal per second. Only flow that explains the change
      between two frames and goes on in the next pair counts, so noise and flicker do not.
    - ``dynamic_degree``: mean of each pair's 5 % longest flows, % of the diagonal per second;
      ``dynamic_share``: share of pairs where these exceed 6 px at 8 fps and a short side of 256 px
      (the rule of VBench's ``dynamic_degree``, with DIS instead of RAFT).
    - ``detail``: RMS of Y - gauss(Y, sigma 1 px) at the clip's own size, levels.
    - ``flicker``: mean |Y_t - (Y_t-1 + Y_t+1) / 2|, neighbours warped along the flow, levels.
    - ``warping_error``: RMS of Y_t minus Y_t+1 warped along the flow, over pixels visible in both,
      levels (the square root of E_warp in Lai et al., "Learning blind video temporal consistency",
      ECCV 2018).
    - ``seam_energy``: excess of the gradients on the lines of a tile grid over those next to them;
      0 = none, see :func:`seam_energy`.
    - ``last_second_flash``: largest jump of mean luminance in the last second, minus the 95th
      percentile of the jumps before, levels.
    - ``freeze``: share of pairs where no block of 16 px changes by a level;
      ``freeze_longest_s``: longest run of such pairs, seconds.
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
        """The metrics as plain JSON data."""
        return asdict(self)


@dataclass
class _Series:
    """The collected numbers: one per frame, or one per pair of consecutive frames."""

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
    """Meter of a clip: :meth:`add` its frames in order, then read the :meth:`result`.

    ``tile`` is the (height, width) period in px of a known tile grid. ``check_every``: the backward
    flow and the metrics that need it (``flicker``, ``warping_error``) are computed for the first
    two of every n pairs; for n up to 2 for all pairs.
    """

    def __init__(
        self, fps: float, tile: tuple[int, int] | None = None, check_every: int = 1
    ) -> None:
        self._fps, self._tile, self._every = fps, tile, check_every
        self._series = _Series()
        self._size = (0, 0)
        self._last: Luminance | None = None
        self._before: tuple[Luminance, BidirectionalFlow] | None = None
        self._flow: Flow | None = None
        self._first: int | None = None
        self._columns: Values = np.zeros(0)
        self._rows: Values = np.zeros(0)

    def add(self, frame: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
        """Add one frame (H, W, 3) RGB, uint8 or uint16.

        Raises ``ValueError`` for another shape, or a size other than that of the first frame.
        """
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
        luminance = to_luminance(frame)
        small = resize_image(luminance, working_size(*size))
        self._add_image(frame, luminance, small)
        if self._last is not None:
            self._add_pair(self._last, small)
        self._last = small

    @property
    def frames(self) -> int:
        """Number of frames added so far."""
        return len(self._series.luma)

    @property
    def motion(self) -> Values:
        """Mean flow length per pair, % of the diagonal per second."""
        return np.asarray(self._series.motion)

    def result(self) -> VideoMetrics:
        """The metrics of all frames added so far. Raises ``ValueError`` before the first."""
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
            last_second_flash=last_second_flash(s.luma, fps),
            freeze=_mean(s.frozen),
            freeze_longest_s=_longest_run(s.frozen) / fps,
            color_drift=float(np.linalg.norm(drift)),
            clipped_blacks=float(np.mean(s.black)),
            clipped_whites=float(np.mean(s.white)),
            brightness=float(np.mean(s.luma)),
        )

    def _add_image(self, frame: NDArray[np.uint8], luminance: Luminance, small: Luminance) -> None:
        s = self._series
        s.luma.append(float(small.mean()))
        s.lab.append(mean_lab(frame))
        s.band.append(band_energy(luminance))
        s.black.append(float(np.mean(luminance <= BLACK)))
        s.white.append(float(np.mean(luminance >= WHITE)))
        self._columns += _pixel_steps(luminance, 1).mean(0, dtype=np.float64)
        self._rows += _pixel_steps(luminance, 0).mean(1, dtype=np.float64)

    def _add_pair(self, before: Luminance, after: Luminance) -> None:
        s = self._series
        s.frozen.append(_is_frozen(before, after))
        forward = compute_flow(before, after)
        self._add_motion(moving_flow(forward, before, after))
        if (len(s.frozen) - 1) % self._every >= CONSECUTIVE_CHECKS:
            self._before = None
            return
        between = check_flow(forward, before, after)
        error = before - warp(after.astype(np.float32), between.forward)
        if between.visible_after.any():
            s.warp.append(float(np.mean(error[between.visible_after] ** 2)))
        if self._before is not None:
            s.flicker += self._flicker(before, after, between)
        self._before = (before, between)

    def _add_motion(self, flow: Flow) -> None:
        """Add the speed of a pair; that of the first moving pair is known with the next one.

        A repeated frame has none, and the motion before it may go on after it.
        """
        s, earlier = self._series, self._flow
        if s.frozen[-1]:
            self._set_speed(len(s.motion), np.zeros(flow.shape[:2], np.float32))
            return
        self._flow = flow
        if earlier is None:
            self._first = len(s.motion)
            self._set_speed(len(s.motion), steady_speed(flow, flow))
            return
        if self._first is not None:
            self._set_speed(self._first, steady_speed(earlier, warp(flow, earlier)))
            self._first = None
        self._set_speed(len(s.motion), steady_speed(flow, warp(earlier, -flow)))

    def _set_speed(self, pair: int, speed: NDArray[np.float32]) -> None:
        """Set, or add at the end, the speed (h, w) in pixels per frame of a pair of frames."""
        s, (height, width) = self._series, speed.shape
        percent = 100.0 * self._fps / math.hypot(height, width)
        count = max(1, round(TOP_SHARE * speed.size))
        s.motion[pair : pair + 1] = [float(speed.mean()) * percent]
        s.top[pair : pair + 1] = [
            float(np.partition(speed, -count, axis=None)[-count:].mean()) * percent
        ]

    def _flicker(self, now: Luminance, after: Luminance, between: BidirectionalFlow) -> list[float]:
        """The flow-compensated second difference at ``now``, as a list of one number.

        Empty if no pixel is visible in all three frames.
        """
        if self._before is None:
            return []
        past, earlier = self._before
        seen = earlier.visible_before & between.visible_after
        if not seen.any():
            return []
        back = warp(past.astype(np.float32), earlier.backward)
        ahead = warp(after.astype(np.float32), between.forward)
        return [float(np.abs(now - (back + ahead) / 2)[seen].mean())]


def band_energy(luminance: Luminance) -> float:
    """Energy of fine detail: mean square of Y - gauss(Y, sigma 1 px), levels²."""
    import cv2

    values = luminance.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), 1.0)
    return float(np.mean(np.square(values, out=values)))


def mean_lab(frame: NDArray[np.uint8]) -> Values:
    """Mean CIE Lab colour (3,) (D65, from sRGB) of a frame reduced to a short side of 64 px."""
    import cv2

    height, width = frame.shape[:2]
    scale = min(1.0, LAB_SIDE / min(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    small = resize_image(frame, size).astype(np.float32) / 255.0
    lab = cv2.cvtColor(np.ascontiguousarray(small), cv2.COLOR_RGB2LAB)
    return np.asarray(lab.reshape(-1, 3).mean(0, dtype=np.float64))


def seam_energy(columns: Values, rows: Values, tile: tuple[int, int] | None = None) -> float:
    """Excess of the gradients on the lines of a tile grid over those 1 to 8 px next to them.

    ``columns``[i] is the mean |Y step| from column i to i + 1, ``rows`` likewise. The excess of a
    line is its step divided by the median of its neighbours, minus 1; that of a grid is the mean
    over its lines. With ``tile`` (height, width in px) the result is for that grid, otherwise the
    largest of all grids with a period that is a multiple of 32 px. 0 or more; 1 = twice as strong.
    A straight edge of the scene that stays on such a line counts too.
    """
    known = (None, None) if tile is None else (tile[1], tile[0])
    found = [_strongest_grid(steps, at) for steps, at in zip((columns, rows), known, strict=True)]
    return max(0.0, *found)


def _strongest_grid(steps: Values, period: int | None) -> float:
    size = len(steps) + 1
    periods = range(SEAM_STEP, size, SEAM_STEP) if period is None else [period]
    lines = {p: [_line_excess(steps, at - 1) for at in range(p, size, p)] for p in periods}
    return max((float(np.mean(found)) for found in lines.values() if found), default=0.0)


def _line_excess(steps: Values, at: int) -> float:
    neighbours = np.concatenate(
        [steps[max(0, at - SEAM_WINDOW) : at], steps[at + 1 : at + 1 + SEAM_WINDOW]]
    )
    median = float(np.median(neighbours)) if len(neighbours) else 0.0
    return (float(steps[at]) + SEAM_FLOOR) / (median + SEAM_FLOOR) - 1.0


def last_second_flash(luma: list[float], fps: float) -> float | None:
    """See :class:`VideoMetrics`. Of a clip below two seconds, the last half is the last second."""
    jumps = np.abs(np.diff(luma))
    last = min(max(1, round(fps)), len(jumps) // 2)
    if last == 0:
        return None
    return max(0.0, float(jumps[-last:].max() - np.percentile(jumps[:-last], 95)))


def _pixel_steps(luminance: Luminance, axis: int) -> Luminance:
    import cv2

    if axis:
        return np.asarray(cv2.absdiff(luminance[:, 1:], luminance[:, :-1]), np.uint8)
    return np.asarray(cv2.absdiff(luminance[1:], luminance[:-1]), np.uint8)


def _is_frozen(before: Luminance, after: Luminance) -> bool:
    import cv2

    change = cv2.absdiff(before, after).astype(np.float32)
    h, w = change.shape
    blocks = (max(1, w // FREEZE_BLOCK), max(1, h // FREEZE_BLOCK))
    return bool(cv2.resize(change, blocks, interpolation=cv2.INTER_AREA).max() < FREEZE_LEVELS)


def _diagonal_at(size: tuple[int, int], side: float) -> float:
    return math.hypot(*size) * side / min(size)


def _mean(values: list[float] | list[bool]) -> float | None:
    return float(np.mean(values)) if values else None


def _longest_run(flags: list[bool]) -> int:
    """Length of the longest run of true flags."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest
