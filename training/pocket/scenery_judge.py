"""Check clips of the second world against their prompts: forced-choice judge, prompts, tracker.

As in `judge.py`, nothing is trained. The judge compares a clip (four frames at 64 x 64 px) with
renders of the prompted scene in which one attribute varies, each at a few positions; the attribute
counts as right if the prompted value comes closest. Properties that a prompt does not describe
(hills, light, position of the sun) are the same in all renders of a comparison.
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

HELD_OUT_SEED = 778  # of the test prompts; not a seed of any training run
SIZE = 64
FRAMES = 25
SHIFTS = (-0.14, 0.0, 0.14)
JUDGED = ("shape", "color", "finish", "motion", "ground", "time", "weather", "camera",
          "second_shape", "second_color")  # fmt: skip
"""Attributes that the judge checks. Not the texture: a weave is too fine for 64 px."""


def held_out(count: int, seconds: float = 1.0) -> tuple[list[Scene], list[str]]:
    """Test scenes, and whole-sentence prompts of at least ten words."""
    rng = random.Random(HELD_OUT_SEED)
    scenes, prompts = [example_scene()], ["a red ball rolls to the right over a striped floor"]
    while len(scenes) < count:
        scene = random_scene(rng, seconds)
        prompt = caption(scene, rng)
        if len(prompt.split()) >= 10:
            scenes.append(scene)
            prompts.append(prompt)
    return scenes, prompts


def thumbnails(frames: Tensor) -> Tensor:
    """Four frames from first to last, uint8 (F, H, W, 3) -> float (4, 3, 64, 64)."""
    last = len(frames) - 1
    picked = frames[[0, last // 3, 2 * last // 3, last]].permute(0, 3, 1, 2).float()
    return F.interpolate(picked, size=(SIZE, SIZE), mode="area")


def replace_attribute(scene: Scene, attribute: str, value: str) -> Scene:
    """The scene with one attribute replaced."""
    if attribute in ("shape", "color", "finish"):
        return dataclasses.replace(
            scene, first=dataclasses.replace(scene.first, **{attribute: value})
        )
    if attribute == "motion":
        return dataclasses.replace(scene, first=center_body(scene.first, value))
    if attribute.startswith("second_"):
        name = attribute.removeprefix("second_")
        if value == "none":
            return dataclasses.replace(scene, second=None)
        second = scene.second or _default_second()
        return dataclasses.replace(scene, second=dataclasses.replace(second, **{name: value}))
    return dataclasses.replace(scene, **{attribute: value})


def _default_second() -> Body:
    """A second object for renders of scenes that have none."""
    radius = 0.19
    return Body("ball", "white", "plain", "matte", "still", 0.6, scenery.REST_BEHIND + radius,
                radius, scenery.REST_BEHIND)  # fmt: skip


def center_body(body: Body, motion: str) -> Body:
    """The first object with this motion, at its mean start position in a clip of one second."""
    radius = 0.325 * (0.8 if motion == "closer" else 1.0)
    half = scenery.SPEED / 2
    y = scenery.REST + radius
    y += {"up": 0.06, "down": 2 * half + 0.05, "bounce": scenery.BOUNCE_HEIGHT}.get(motion, 0.0)
    x = {"left": half, "right": -half}.get(motion, 0.0)
    return dataclasses.replace(body, motion=motion, x=x, y=y, radius=radius)


def center_scene(scene: Scene) -> Scene:
    """The scene with position and size of the first object replaced by their means."""
    return dataclasses.replace(scene, first=center_body(scene.first, scene.first.motion))


def distance(clip: Tensor, scene: Scene) -> float:
    """Smallest mean squared difference of thumbnails `clip` from renders of a scene.

    The position of the first object differs between the renders.
    """
    variants = [
        dataclasses.replace(scene, first=dataclasses.replace(scene.first, x=scene.first.x + a))
        for a in SHIFTS
    ]
    renders = render(variants, 4, SIZE, fps=3 * 24 / (FRAMES - 1)).permute(0, 1, 4, 2, 3).float()
    return float((renders - clip).square().mean((1, 2, 3, 4)).min())


def judge(clip: Tensor, scene: Scene) -> dict[str, bool]:
    """For each of `JUDGED`, True if a square clip (25, H, W, 3) shows the prompted value."""
    small, base = thumbnails(clip), center_scene(scene)
    wanted = attributes(scene)
    out = {}
    for name in JUDGED:
        values = [v for v in LABELS[name] if _is_possible(scene, name, v)]
        errors = {v: distance(small, replace_attribute(base, name, v)) for v in values}
        out[name] = min(errors, key=errors.__getitem__) == wanted[name]
    return out


def _is_possible(scene: Scene, attribute: str, value: str) -> bool:
    """False for a value that cannot occur, such as an aurora by day."""
    if attribute == "weather":
        return value != "aurora" or scene.time == "night"
    if attribute == "time":
        return value == "night" or scene.weather != "aurora"
    return attribute != "second_color" or (value == "none") == (scene.second is None)


def track(frames: Tensor, scene: Scene) -> Tensor:
    """Centre x, y and radius (F, 3) of the first object in frames (F, H, W, 3) of a square clip.

    They are those of the render of the scene that comes closest to each frame.
    """
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(SIZE, SIZE), mode="area")
    fixed = dataclasses.replace(scene, camera="fixed")
    rough = torch.linspace(-0.75, 0.75, 11)
    candidates = torch.cartesian_prod(
        rough, torch.linspace(-0.3, 0.6, 7), torch.tensor([0.28, 0.36])
    )
    found = _fit(small, fixed, candidates)
    for step in (0.07, 0.03):
        moves = torch.tensor([-step, 0.0, step])
        offsets = torch.cartesian_prod(moves, moves, torch.tensor([-step / 2, 0.0, step / 2]))
        found = torch.stack([
            _fit(frame[None], fixed, at + offsets)[0]
            for frame, at in zip(small, found, strict=True)
        ])  # fmt: skip
    return found


def _fit(small: Tensor, scene: Scene, candidates: Tensor) -> Tensor:
    """The best candidates (F, 3), out of (N, 3), for frames (F, 3, 64, 64)."""
    still = dataclasses.replace(scene.first, motion="still")
    variants = [
        dataclasses.replace(scene, first=dataclasses.replace(still, x=x, y=y, radius=r))
        for x, y, r in candidates.tolist()
    ]
    renders = render(variants, 1, SIZE)[:, 0].permute(0, 3, 1, 2).float()
    return candidates[torch.cdist(small.flatten(1), renders.flatten(1)).argmin(1)]
