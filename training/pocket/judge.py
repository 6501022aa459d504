"""The forced-choice judge of the pocket world, the prompts it is asked about, and a tracker.

Nothing here is trained. A decoded clip is compared (64 x 64 px, four frames) with analytic renders
of the prompted scene in which one attribute varies, each at a few places; the attribute counts as
right if the prompted value comes closest. `track` fits the place and size of the object frame by
frame in the same way. Ceilings are measured on real renders (see evaluate.py).
"""

from __future__ import annotations

import dataclasses
import random

import torch
import world
from torch import Tensor
from torch.nn import functional as F

HELD_OUT_SEED = 777  # no training run draws from it
CHOICES: dict[str, tuple[str, ...]] = {
    "shape": world.SHAPES,
    "color": tuple(world.COLORS),
    "texture": world.TEXTURES,
    "motion": world.MOTIONS,
    "background": world.BACKGROUNDS,
    "background_color": tuple(world.BACKGROUND_COLORS),
}
SIZE = 64
SHIFTS = (-0.12, 0.0, 0.12)


def thumbnails(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> float (4, 3, 64, 64) of frames 0, 8, 16, 24."""
    picked = frames[[0, 8, 16, 24]].permute(0, 3, 1, 2).float()
    return F.interpolate(picked, size=(SIZE, SIZE), mode="area")


def placed(scene: world.Scene, motion: str) -> world.Scene:
    """The scene in the middle of where this motion starts, without jitter."""
    starts = [world._start(motion, random.Random(i)) for i in range(24)]
    x, y = (sum(v) / len(v) for v in zip(*starts, strict=True))
    radius = 0.42 * (0.75 if motion == "grow" else 1.0)
    neutral = {"tint": (0, 0, 0), "background_tint": (0, 0, 0)}
    return dataclasses.replace(scene, motion=motion, x=x, y=y, radius=radius, **neutral)


def distance(clip: Tensor, scene: world.Scene, phases: tuple[float, ...], wide: bool) -> float:
    """Smallest mean squared difference between thumbnails and renders of a scene near its place."""
    shifts = [(a, b) for a in SHIFTS for b in SHIFTS] if wide else [(0.0, 0.0)]
    variants = [
        dataclasses.replace(scene, x=scene.x + a, y=scene.y + b, phase=p)
        for a, b in shifts
        for p in phases
    ]
    renders = world.render(variants, 4, SIZE, fps=3).permute(0, 1, 4, 2, 3).float()
    return float((renders - clip).square().mean((1, 2, 3, 4)).min())


def judge(clip: Tensor, scene: world.Scene) -> dict[str, bool]:
    """Which attributes of the prompted scene a clip (F, H, W, 3) shows."""
    small = thumbnails(clip)
    hills = tuple(i / 8 for i in range(8))
    phases = hills if scene.background == "hills" else (0.0,)
    base = placed(scene, scene.motion)
    if len(phases) > 1:  # fit the hills once
        best = min(phases, key=lambda p: distance(small, base, (p,), False))
        phases = (best,)
    out = {}
    for name, values in CHOICES.items():
        errors = {}
        for value in values:
            other = dataclasses.replace(scene, **{name: value})
            other = placed(other, other.motion)
            tried = hills if name == "background" and value == "hills" else phases
            errors[value] = distance(small, other, tried, wide=len(tried) == 1)
        out[name] = min(errors, key=errors.__getitem__) == getattr(scene, name)
    return out


def rates(results: list[dict[str, bool]]) -> dict[str, float]:
    """Share of right answers by attribute."""
    return {name: sum(r[name] for r in results) / len(results) for name in CHOICES}


def held_out(count: int) -> tuple[list[world.Scene], list[str]]:
    """Scenes and full-sentence prompts that name everything, from a seed no training run uses."""
    rng = random.Random(HELD_OUT_SEED)
    scenes, prompts = (
        [world.example_scene()],
        ["a red ball rolls to the right over a striped floor"],
    )
    while len(scenes) < count:
        scene = world.random_scene(rng)
        prompt = world.caption(scene, rng)
        named = any(w in prompt for w in world._BACKGROUND_COLOR_WORDS[scene.background_color])
        if named and len(prompt.split()) >= 8:
            scenes.append(scene)
            prompts.append(prompt)
    return scenes, prompts


RARE_WORDS = (
    "crimson", "golden", "violet", "disc", "box", "block", "pyramid", "stripy", "slides", "rolls",
    "sinks", "floats", "rises", "drops", "beige", "light blue", "mint green",
)  # fmt: skip


def in_other_words(scene: world.Scene) -> str:
    """A held-out caption of a scene with as many of the rarer words as some tries find."""
    rng = random.Random(f"{HELD_OUT_SEED}/{scene.seed}")
    tries = [world.caption(scene, rng) for _ in range(60)]
    names = world._BACKGROUND_COLOR_WORDS[scene.background_color]
    whole = [t for t in tries if len(t.split()) >= 8 and any(n in t for n in names)]
    return max(whole, key=lambda t: sum(w in t for w in RARE_WORDS))


def track(frames: Tensor, scene: world.Scene) -> Tensor:
    """(F, 3) place x, y and radius in half sides of the object in every frame (F, H, W, 3), fitted
    with renders of the scene's shape, colours and background."""
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(SIZE, SIZE), mode="area")
    rough = torch.linspace(-0.7, 0.7, 15)
    places = torch.cartesian_prod(rough, rough, torch.tensor([0.33, 0.42, 0.52]))
    first = _fit(small, scene, places)
    steps = torch.tensor([-0.05, 0.0, 0.05])
    offsets = torch.cartesian_prod(steps, steps, steps)
    return torch.stack([
        _fit(frame[None], scene, at + offsets)[0] for frame, at in zip(small, first, strict=True)
    ])  # fmt: skip


def _fit(small: Tensor, scene: world.Scene, places: Tensor) -> Tensor:
    """The best of places (N, 3) for each of the frames (F, 3, 64, 64): (F, 3)."""
    neutral = {"motion": "still", "tint": (0, 0, 0), "background_tint": (0, 0, 0)}
    still = dataclasses.replace(scene, **neutral)
    variants = [dataclasses.replace(still, x=x, y=y, radius=r) for x, y, r in places.tolist()]
    renders = world.render(variants, 1, SIZE)[:, 0].permute(0, 3, 1, 2).float()
    errors = torch.cdist(small.flatten(1), renders.flatten(1))
    return places[errors.argmin(1)]
