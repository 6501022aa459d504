"""Optical flow between two small luminance pictures, and what follows from a pair of flows.

DIS flow (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016) as OpenCV has
it, ``cv2.DISOpticalFlow`` with its medium preset: no weights, about 0.06 px of error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Gray = NDArray[np.uint8]
Flow = NDArray[np.float32]
"""(h, w, 2): how far each pixel goes to the right and down, in pixels."""

WORKING_SIDE = (64, 256)
"""Flow is computed with the short side brought into this range, so that sizes compare."""

EVIDENCE_WINDOW, EVIDENCE_LEVELS = 9, 0.75
"""A pixel has moved only if its neighbourhood changed by this much, in levels of 255."""


@dataclass(frozen=True)
class Motion:
    """Both flows between two pictures, and which pixels are seen in both."""

    forward: Flow
    backward: Flow
    seen_after: NDArray[np.bool_]
    seen_before: NDArray[np.bool_]


def speed(forward: Flow, before: Gray, after: Gray) -> NDArray[np.float32]:
    """|forward| in pixels per frame; 0 where nothing changed between the two pictures."""
    length: NDArray[np.float32] = np.hypot(forward[..., 0], forward[..., 1])
    return length * moved(before, after)


def working_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) with the short side in :data:`WORKING_SIDE`."""
    short = min(height, width)
    scale = min(max(short, WORKING_SIDE[0]), WORKING_SIDE[1]) / short
    return max(1, round(height * scale)), max(1, round(width * scale))


def resized(picture: Gray, size: tuple[int, int]) -> Gray:
    """The picture at (height, width): areas averaged when smaller, Lanczos when larger."""
    import cv2

    height, width = size
    if picture.shape[:2] == size:
        return picture
    smaller = height * width < picture.shape[0] * picture.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def gray(frame: NDArray[np.uint8]) -> Gray:
    """Luminance of an RGB frame, 0.299 R + 0.587 G + 0.114 B (BT.601), 0..255."""
    import cv2

    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), np.uint8)


def flow(before: Gray, after: Gray) -> Flow:
    """DIS flow from one picture to the next.

    OpenCV cuts the picture into as many strips as it has threads, which changes the result; here
    it is one strip, on every machine, and the number of threads is put back afterwards.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        dis: Any = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
        found = dis.calc(before, after, None)
    finally:
        cv2.setNumThreads(threads)
    return np.asarray(found, np.float32)


def moved(before: Gray, after: Gray) -> NDArray[np.bool_]:
    """Where the picture changed at all. Flow in plain areas is a guess spread from far edges."""
    import cv2

    change = cv2.absdiff(before, after).astype(np.float32)
    mean = cv2.blur(change, (EVIDENCE_WINDOW, EVIDENCE_WINDOW))
    return np.asarray(mean > EVIDENCE_LEVELS)


def warped(picture: NDArray[np.float32], along: Flow) -> NDArray[np.float32]:
    """``picture`` fetched along a flow: out[y, x] = picture[y + v, x + u], edges repeated."""
    import cv2

    h, w = along.shape[:2]
    xs = along[..., 0] + np.arange(w, dtype=np.float32)
    ys = along[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    out = cv2.remap(picture, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32)


def checked(forward: Flow, before: Gray, after: Gray) -> Motion:
    """The flow with that back again, and the forward-backward check.

    A pixel counts as seen in both where |f + b(f)|² <= 0.01 (|f|² + |b(f)|²) + 0.5 (Sundaram,
    Brox, Keutzer, "Dense point trajectories by GPU-accelerated large displacement optical flow",
    ECCV 2010).
    """
    backward = flow(after, before)
    seen_after, seen_before = _consistent(forward, backward), _consistent(backward, forward)
    return Motion(forward, backward, seen_after, seen_before)


def _consistent(there: Flow, back: Flow) -> NDArray[np.bool_]:
    returned = warped(back, there)
    error = ((there + returned) ** 2).sum(-1)
    size = (there**2).sum(-1) + (returned**2).sum(-1)
    h, w = there.shape[:2]
    x = there[..., 0] + np.arange(w, dtype=np.float32)
    y = there[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    return np.asarray((error <= 0.01 * size + 0.5) & inside)
