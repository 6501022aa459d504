"""Optical flow between two small luminance images, and the forward-backward consistency check.

DIS flow (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016) of OpenCV,
``cv2.DISOpticalFlow`` with the medium preset. It needs no weights; its error is about 0.06 px.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Luminance = NDArray[np.uint8]
Flow = NDArray[np.float32]
"""(h, w, 2): displacement of each pixel to the right and down, in pixels."""

WORKING_SIDE = (64, 256)
"""Range of the short side for the computation of flow, so that clips of all sizes compare."""

CHANGE_WINDOW, CHANGE_LEVELS = 9, 0.75
"""A pixel counts as moved only if its window (px) changed by this mean, in levels of 255."""

UNEXPLAINED_SHARE = 0.6
"""A flow explains a change if following it leaves less than this share of the change."""

UNSTEADY_SHARE = 0.5
"""A flow goes on if it differs from that of the neighbouring pair by less than this share of it."""


@dataclass(frozen=True)
class BidirectionalFlow:
    """The flows between two images in both directions.

    ``visible_after``: mask (h, w) of the pixels of the first image that are visible in the second;
    ``visible_before``: the same from the second to the first.
    """

    forward: Flow
    backward: Flow
    visible_after: NDArray[np.bool_]
    visible_before: NDArray[np.bool_]


def moving_flow(forward: Flow, before: Luminance, after: Luminance) -> Flow:
    """``forward`` where it explains a change between the two images, 0 elsewhere.

    Noise and flicker change an image too, and the flow between such images is arbitrary: a change
    counts as motion only if following the flow removes a good part of it.
    """
    import cv2

    window = (CHANGE_WINDOW, CHANGE_WINDOW)
    first, second = before.astype(np.float32), after.astype(np.float32)
    change = cv2.blur(np.abs(first - second), window)
    left = cv2.blur(np.abs(first - warp(second, forward)), window)
    moved = (change > CHANGE_LEVELS) & (left < UNEXPLAINED_SHARE * change)
    return np.asarray(forward * moved[..., None], np.float32)


def steady_speed(flow: Flow, neighbour: Flow) -> NDArray[np.float32]:
    """|flow| (h, w) in pixels per frame; 0 where the flow of the neighbouring pair differs.

    ``neighbour`` is that flow at the places that the same content has in its pair.
    What moves goes on moving for a frame; flicker that looks like motion does not.
    """
    size = (flow**2).sum(-1)
    agrees = ((flow - neighbour) ** 2).sum(-1) < UNSTEADY_SHARE**2 * size
    return np.asarray(np.sqrt(size) * agrees, np.float32)


def working_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) scaled so that the short side is in :data:`WORKING_SIDE`."""
    short = min(height, width)
    scale = min(max(short, WORKING_SIDE[0]), WORKING_SIDE[1]) / short
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: Luminance, size: tuple[int, int]) -> Luminance:
    """Resize an image to (height, width): area average to shrink it, Lanczos to enlarge it."""
    import cv2

    height, width = size
    if image.shape[:2] == size:
        return image
    smaller = height * width < image.shape[0] * image.shape[1]
    interpolation = cv2.INTER_AREA if smaller else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def to_luminance(frame: NDArray[np.uint8]) -> Luminance:
    """Luminance (H, W) uint8 of an RGB frame (H, W, 3), 0.299 R + 0.587 G + 0.114 B (BT.601)."""
    import cv2

    return np.asarray(cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY), np.uint8)


def compute_flow(before: Luminance, after: Luminance) -> Flow:
    """DIS flow from image ``before`` to image ``after``.

    At full resolution: the preset stops at half of it, which loses a tenth of the motion of an
    object of 48 px at its edges.

    OpenCV divides the image into one strip per thread, which changes the result. One thread is used
    here, so that all machines agree, and the number of threads is restored afterwards.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        dis: Any = cv2.DISOpticalFlow.create(cv2.DISOpticalFlow_PRESET_MEDIUM)
        dis.setFinestScale(0)
        found = dis.calc(before, after, None)
    finally:
        cv2.setNumThreads(threads)
    return np.asarray(found, np.float32)


def changed_pixels(before: Luminance, after: Luminance) -> NDArray[np.bool_]:
    """Mask (h, w) of the pixels whose neighbourhood changed.

    Flow in uniform areas is only interpolated from distant edges.
    """
    import cv2

    change = cv2.absdiff(before, after).astype(np.float32)
    mean = cv2.blur(change, (CHANGE_WINDOW, CHANGE_WINDOW))
    return np.asarray(mean > CHANGE_LEVELS)


def warp(image: NDArray[np.float32], flow: Flow) -> NDArray[np.float32]:
    """``image`` sampled along a flow (u, v): out[y, x] = image[y + v, x + u], edges repeated."""
    import cv2

    h, w = flow.shape[:2]
    xs = flow[..., 0] + np.arange(w, dtype=np.float32)
    ys = flow[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    out = cv2.remap(image, xs, ys, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(out, np.float32)


def check_flow(forward: Flow, before: Luminance, after: Luminance) -> BidirectionalFlow:
    """Compute the backward flow and check ``forward`` against it.

    A pixel counts as visible in both images where |f + b(f)|² <= 0.01 (|f|² + |b(f)|²) + 0.5
    (Sundaram, Brox, Keutzer, "Dense point trajectories by GPU-accelerated large displacement
    optical flow", ECCV 2010).
    """
    backward = compute_flow(after, before)
    visible_after, visible_before = _consistent(forward, backward), _consistent(backward, forward)
    return BidirectionalFlow(forward, backward, visible_after, visible_before)


def _consistent(there: Flow, back: Flow) -> NDArray[np.bool_]:
    returned = warp(back, there)
    error = ((there + returned) ** 2).sum(-1)
    size = (there**2).sum(-1) + (returned**2).sum(-1)
    h, w = there.shape[:2]
    x = there[..., 0] + np.arange(w, dtype=np.float32)
    y = there[..., 1] + np.arange(h, dtype=np.float32)[:, None]
    inside = (x >= 0) & (x <= w - 1) & (y >= 0) & (y <= h - 1)
    return np.asarray((error <= 0.01 * size + 0.5) & inside)
