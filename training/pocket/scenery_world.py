"""The second world as training modules see it: the names of `world.py` for `scenery.py`."""

from __future__ import annotations

import dataclasses
from typing import Any

import scenery
import torch
from scenery import Body, Scene, impacts, random_scene, trajectory
from scenery_captions import VOCABULARY, attributes, caption, is_named
from scenery_render import render
from torch import Tensor

__all__ = [
    "LABELS", "VOCABULARY", "Scene", "attributes", "caption", "example_scene", "height", "impacts",
    "is_named", "random_scene", "render", "sound_key", "trajectory",
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
"""The values each attribute can take."""


def height(scene: Scene, t: Tensor) -> Tensor:
    """y of the first object at times t."""
    return trajectory(scene.first, torch.as_tensor(t))[1]


def sound_key(scene: Scene) -> tuple[Any, ...]:
    """Key of the sound of a scene: everything in it."""
    return dataclasses.astuple(scene)


def example_scene() -> Scene:
    """The scene of the product's first prompt: a red ball rolls right over a striped floor."""
    radius = 0.33
    ball = Body("ball", "red", "plain", "matte", "right", -0.15, scenery.REST + radius, radius)
    return Scene("wood", "day", "clear", "fixed", ball, sun=0.4, light=0.8, seed=3)
