"""Frames of evenly spaced generated keyframes."""

from __future__ import annotations


def slot_frames(count: int, frames: int) -> tuple[int, ...]:
    """Frames of ``count`` evenly spaced keyframes inside a clip of ``frames`` frames."""
    return tuple(round(i * (frames - 1) / (count + 1)) for i in range(1, count + 1))
