"""Palettes, helpers and the soft lens of the second world's renderer."""

from __future__ import annotations

import dataclasses
import math
import random

import torch
from torch import Tensor

LENS_PX = 1.0  # standard deviation of the lens
EDGE_PX = 2.0

# top, middle and horizon of the sky; light of the sun or moon; light from everywhere
SKIES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "day": ((0.30, 0.55, 0.86), (0.58, 0.77, 0.93), (0.91, 0.94, 0.95)),
    "dusk": ((0.24, 0.22, 0.48), (0.78, 0.44, 0.55), (1.00, 0.76, 0.50)),
    "night": ((0.03, 0.05, 0.15), (0.07, 0.13, 0.31), (0.20, 0.30, 0.48)),
}
SUNS = {"day": (1.0, 0.97, 0.90), "dusk": (1.0, 0.66, 0.40), "night": (0.62, 0.72, 1.0)}
SUN_HEIGHTS = {"day": 1.15, "dusk": 0.10, "night": 0.62}
DIRECT = {"day": 0.80, "dusk": 0.62, "night": 0.52}
AMBIENT = {"day": 0.46, "dusk": 0.46, "night": 0.34}
GROUNDS: dict[str, tuple[float, float, float]] = {
    "wood": (0.66, 0.45, 0.28),
    "water": (0.10, 0.26, 0.34),
    "sand": (0.86, 0.72, 0.50),
    "grass": (0.33, 0.52, 0.22),
}
HILLS: dict[str, tuple[float, float, float]] = {
    "day": (0.30, 0.46, 0.44),
    "dusk": (0.34, 0.22, 0.36),
    "night": (0.05, 0.09, 0.19),
}


def rgb(color: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(color, device=like.device)


def mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """a (..., 3) and b (..., 3) mixed by share (...)."""
    return a + share[..., None] * (b - a)


def step(x: Tensor, low: float, high: float) -> Tensor:
    """Smoothstep from 0 at low to 1 at high."""
    u = ((x - low) / (high - low)).clamp(0, 1)
    return u * u * (3 - 2 * u)


def lens(frequency: Tensor) -> Tensor:
    """Share of the amplitude that the lens passes at a frequency in cycles per pixel."""
    return torch.exp(-2 * (math.pi * LENS_PX * frequency) ** 2)


def numbers(seed: int, count: int, name: str) -> list[float]:
    """Fixed numbers in [0, 1) of a scene."""
    rng = random.Random(f"{seed}/{name}")
    return [rng.random() for _ in range(count)]


@dataclasses.dataclass(frozen=True)
class View:
    """Pixel coordinates: x (1, 1, W) and y (1, H, 1) on the canvas, times t (T, 1, 1), camera x
    (T, 1, 1), `pixel` the size of one."""

    x: Tensor
    y: Tensor
    t: Tensor
    camera: Tensor
    pixel: float
