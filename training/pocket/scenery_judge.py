"""Forced-choice judge of the second world, its held-out prompts, and a tracker of the first object.

As `judge.py`: nothing is trained. A clip, reduced to 64 px, is compared with renders of the
prompted scene in which one attribute varies, each at a few places; the attribute counts as right if
the prompted value comes closest. What a prompt leaves open (hills, light, place of the sun) differs
from the clip in every render alike.
"""

from __future__ import annotations

import dataclasses
import random

import scenery
import torch
from scenery import Body, Scene, random_scene
from scenery_captions import attributes, caption
from scenery_render import render
from scenery_world import LABELS, example_scene
from torch import Tensor
from torch.nn import functional as F

HELD_OUT_SEED = 778  # no training run draws from it
SIZE = 64
FRAMES = 25
SHIFTS = (-0.14, 0.0, 0.14)
JUDGED = ("shape", "color", "finish", "motion", "ground", "time", "weather", "camera",
          "second_shape", "second_color")  # fmt: skip
"""A weave is too fine for the judge's pictures."""


def held_out(count: int, seconds: float = 1.0) -> tuple[list[Scene], list[str]]:
    """Scenes and whole-sentence prompts that name place, time and motion."""
    rng = random.Random(HELD_OUT_SEED)
    scenes, prompts = [example_scene()], ["a red ball rolls to the right over a striped floor"]
    while len(scenes) < count:
        scene = random_scene(rng, seconds)
        text = caption(scene, rng)
        if len(text.split()) >= 10:
            scenes.append(scene)
            prompts.append(text)
    return scenes, prompts


def thumbnails(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float (4, 3, 64, 64) of four frames from first to last."""
    last = len(frames) - 1
    picked = frames[[0, last // 3, 2 * last // 3, last]].permute(0, 3, 1, 2).float()
    return F.interpolate(picked, size=(SIZE, SIZE), mode="area")


def changed(scene: Scene, attribute: str, value: str) -> Scene:
    """The scene with one attribute replaced."""
    if attribute in ("shape", "color", "finish"):
        return dataclasses.replace(
            scene, first=dataclasses.replace(scene.first, **{attribute: value})
        )
    if attribute == "motion":
        return dataclasses.replace(scene, first=placed(scene.first, value))
    if attribute.startswith("second_"):
        name = attribute.removeprefix("second_")
        if value == "none":
            return dataclasses.replace(scene, second=None)
        second = scene.second or _second()
        return dataclasses.replace(scene, second=dataclasses.replace(second, **{name: value}))
    return dataclasses.replace(scene, **{attribute: value})


def _second() -> Body:
    """A second object for renders of scenes that have none."""
    radius = 0.19
    return Body("ball", "white", "plain", "matte", "still", 0.6, scenery.REST_BEHIND + radius,
                radius, scenery.REST_BEHIND)  # fmt: skip


def placed(body: Body, motion: str) -> Body:
    """The first object in the middle of where this motion starts in a clip of one second."""
    radius = 0.325 * (0.8 if motion == "closer" else 1.0)
    half = scenery.SPEED / 2
    y = scenery.REST + radius
    y += {"up": 0.06, "down": 2 * half + 0.05, "bounce": scenery.BOUNCE_HEIGHT}.get(motion, 0.0)
    x = {"left": half, "right": -half}.get(motion, 0.0)
    return dataclasses.replace(body, motion=motion, x=x, y=y, radius=radius)


def neutral(scene: Scene) -> Scene:
    """The scene as its prompt tells it: place and size of the first object are not known."""
    return dataclasses.replace(scene, first=placed(scene.first, scene.first.motion))


def distance(clip: Tensor, scene: Scene) -> float:
    """Smallest mean squared difference between thumbnails and renders of a scene near its place."""
    variants = [
        dataclasses.replace(scene, first=dataclasses.replace(scene.first, x=scene.first.x + a))
        for a in SHIFTS
    ]
    renders = render(variants, 4, SIZE, fps=3 * 24 / (FRAMES - 1)).permute(0, 1, 4, 2, 3).float()
    return float((renders - clip).square().mean((1, 2, 3, 4)).min())


def judge(clip: Tensor, scene: Scene) -> dict[str, bool]:
    """Attributes of the prompted scene that a clip (25, H, W, 3) of a square canvas shows."""
    small, base = thumbnails(clip), neutral(scene)
    wanted = attributes(scene)
    out = {}
    for name in JUDGED:
        values = [v for v in LABELS[name] if _possible(scene, name, v)]
        errors = {v: distance(small, changed(base, name, v)) for v in values}
        out[name] = min(errors, key=errors.__getitem__) == wanted[name]
    return out


def _possible(scene: Scene, attribute: str, value: str) -> bool:
    """Leave out what the world does not hold: an aurora by day, two answers for no second."""
    if attribute == "weather":
        return value != "aurora" or scene.time == "night"
    if attribute == "time":
        return value == "night" or scene.weather != "aurora"
    return attribute != "second_color" or (value == "none") == (scene.second is None)


def track(frames: Tensor, scene: Scene) -> Tensor:
    """(F, 3) place x, y and radius of the first object in every frame (F, H, W, 3) of a square
    canvas, fitted with renders of the scene."""
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(SIZE, SIZE), mode="area")
    fixed = dataclasses.replace(scene, camera="fixed")
    rough = torch.linspace(-0.75, 0.75, 11)
    places = torch.cartesian_prod(rough, torch.linspace(-0.3, 0.6, 7), torch.tensor([0.28, 0.36]))
    found = _fit(small, fixed, places)
    for step in (0.07, 0.03):
        moves = torch.tensor([-step, 0.0, step])
        offsets = torch.cartesian_prod(moves, moves, torch.tensor([-step / 2, 0.0, step / 2]))
        found = torch.stack([
            _fit(frame[None], fixed, at + offsets)[0]
            for frame, at in zip(small, found, strict=True)
        ])  # fmt: skip
    return found


def _fit(small: Tensor, scene: Scene, places: Tensor) -> Tensor:
    """The best of places (N, 3) for each of the frames (F, 3, 64, 64): (F, 3)."""
    still = dataclasses.replace(scene.first, motion="still")
    variants = [
        dataclasses.replace(scene, first=dataclasses.replace(still, x=x, y=y, radius=r))
        for x, y, r in places.tolist()
    ]
    renders = render(variants, 1, SIZE)[:, 0].permute(0, 3, 1, 2).float()
    return places[torch.cdist(small.flatten(1), renders.flatten(1)).argmin(1)]
