"""The second world under the names of `world.py`, for the training scripts."""

from __future__ import annotations

import dataclasses
from typing import Any

import scenery
import torch
from scenery import Body, Scene, impacts, random_scene, trajectory
from scenery_captions import VOCABULARY, attributes, caption, is_mentioned
from scenery_render import render
from torch import Tensor

__all__ = [
    "LABELS", "VOCABULARY", "Scene", "attributes", "caption", "example_scene", "height", "impacts",
    "is_mentioned", "random_scene", "render", "sound_key", "trajectory",
]  # fmt: skip

LABELS: dict[str, tuple[str, ...]] = {
    "shape": scenery.SHAPES,
    "color": tuple(scenery.COLORS),
    "texture": scenery.TEXTURES,
    "finish": scenery.FINISHES,
    "motion": scenery.MOTIONS,
    "ground": scenery.GROUNDS,
    "time": scenery.TIMES,
    "weather": scenery.WEATHERS,
    "camera": scenery.CAMERAS,
    "second_shape": (*scenery.SHAPES, "none"),
    "second_color": (*scenery.COLORS, "none"),
}
"""The possible values of each attribute."""


def height(scene: Scene, t: Tensor) -> Tensor:
    """Height y of the first object's centre at times t (seconds), in half sides."""
    return trajectory(scene.first, torch.as_tensor(t))[1]


def sound_key(scene: Scene) -> tuple[Any, ...]:
    """The values of a scene on which its sound depends: all of them."""
    return dataclasses.astuple(scene)


def example_scene() -> Scene:
    """The scene of the product's default prompt: a red ball rolls right over a striped floor."""
    radius = 0.33
    ball = Body("ball", "red", "plain", "matte", "right", -0.15, scenery.REST + radius, radius)
    return Scene("wood", "day", "clear", "fixed", ball, sun=0.4, light=0.8, seed=3)
