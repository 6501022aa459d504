"""Check clips of the pocket model against their prompts: forced-choice judge, prompts, tracker.

Nothing here is trained. The judge compares a decoded clip (four frames at 64 x 64 px) with analytic
renders of the prompted scene in which one attribute varies, each at a few positions; the attribute
counts as right if the prompted value comes closest. `track` finds position and size of the object
in each frame in the same way. evaluate.py measures the ceilings of both on real renders.
"""

from __future__ import annotations

import dataclasses
import random

import torch
import world
from torch import Tensor
from torch.nn import functional as F

HELD_OUT_SEED = 777  # of the test prompts; not a seed of any training run
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
    """Frames 0, 8, 16 and 24 of a clip, uint8 (F, H, W, 3) -> float (4, 3, 64, 64)."""
    picked = frames[[0, 8, 16, 24]].permute(0, 3, 1, 2).float()
    return F.interpolate(picked, size=(SIZE, SIZE), mode="area")


def center_scene(scene: world.Scene, motion: str) -> world.Scene:
    """The scene with this motion, at the mean start position, without jitter."""
    starts = [world._start(motion, random.Random(i)) for i in range(24)]
    x, y = (sum(v) / len(v) for v in zip(*starts, strict=True))
    radius = 0.42 * (0.75 if motion == "grow" else 1.0)
    neutral = {"tint": (0, 0, 0), "background_tint": (0, 0, 0)}
    return dataclasses.replace(scene, motion=motion, x=x, y=y, radius=radius, **neutral)


def distance(clip: Tensor, scene: world.Scene, phases: tuple[float, ...], wide: bool) -> float:
    """Smallest mean squared difference of thumbnails `clip` from renders of a scene.

    Renders differ in phase and, if `wide`, in position.
    """
    shifts = [(a, b) for a in SHIFTS for b in SHIFTS] if wide else [(0.0, 0.0)]
    variants = [
        dataclasses.replace(scene, x=scene.x + a, y=scene.y + b, phase=p)
        for a, b in shifts
        for p in phases
    ]
    renders = world.render(variants, 4, SIZE, fps=3).permute(0, 1, 4, 2, 3).float()
    return float((renders - clip).square().mean((1, 2, 3, 4)).min())


def judge(clip: Tensor, scene: world.Scene) -> dict[str, bool]:
    """For each attribute of the prompted scene, whether a clip (F, H, W, 3) shows it."""
    small = thumbnails(clip)
    hill_phases = tuple(i / 8 for i in range(8))
    phases = hill_phases if scene.background == "hills" else (0.0,)
    base = center_scene(scene, scene.motion)
    if len(phases) > 1:  # fit the phase of the hills once
        best = min(phases, key=lambda p: distance(small, base, (p,), False))
        phases = (best,)
    out = {}
    for name, values in CHOICES.items():
        errors = {}
        for value in values:
            other = dataclasses.replace(scene, **{name: value})
            other = center_scene(other, other.motion)
            candidates = hill_phases if name == "background" and value == "hills" else phases
            errors[value] = distance(small, other, candidates, wide=len(candidates) == 1)
        out[name] = min(errors, key=errors.__getitem__) == getattr(scene, name)
    return out


def rates(results: list[dict[str, bool]]) -> dict[str, float]:
    """Share of right answers by attribute."""
    return {name: sum(r[name] for r in results) / len(results) for name in CHOICES}


def held_out(count: int) -> tuple[list[world.Scene], list[str]]:
    """Test scenes, and whole-sentence prompts that name every attribute."""
    rng = random.Random(HELD_OUT_SEED)
    scenes, prompts = (
        [world.example_scene()],
        ["a red ball rolls to the right over a striped floor"],
    )
    while len(scenes) < count:
        scene = world.random_scene(rng)
        prompt = world.caption(scene, rng)
        names_background = any(
            w in prompt for w in world._BACKGROUND_COLOR_WORDS[scene.background_color]
        )
        if names_background and len(prompt.split()) >= 8:
            scenes.append(scene)
            prompts.append(prompt)
    return scenes, prompts


RARE_WORDS = (
    "crimson", "golden", "violet", "disc", "box", "block", "pyramid", "stripy", "slides", "rolls",
    "sinks", "floats", "rises", "drops", "beige", "light blue", "mint green",
)  # fmt: skip


def rare_word_caption(scene: world.Scene) -> str:
    """The one of 60 random captions of a scene that uses the most of `RARE_WORDS`."""
    rng = random.Random(f"{HELD_OUT_SEED}/{scene.seed}")
    captions = [world.caption(scene, rng) for _ in range(60)]
    names = world._BACKGROUND_COLOR_WORDS[scene.background_color]
    complete = [t for t in captions if len(t.split()) >= 8 and any(n in t for n in names)]
    return max(complete, key=lambda t: sum(w in t for w in RARE_WORDS))


def track(frames: Tensor, scene: world.Scene) -> Tensor:
    """Position x, y and radius (F, 3) of the object in every frame (F, H, W, 3), in half sides.

    Fitted with renders of the scene's shape, colours and background.
    """
    small = F.interpolate(frames.permute(0, 3, 1, 2).float(), size=(SIZE, SIZE), mode="area")
    coarse = torch.linspace(-0.7, 0.7, 15)
    candidates = torch.cartesian_prod(coarse, coarse, torch.tensor([0.33, 0.42, 0.52]))
    first = _fit(small, scene, candidates)
    steps = torch.tensor([-0.05, 0.0, 0.05])
    offsets = torch.cartesian_prod(steps, steps, steps)
    return torch.stack([
        _fit(frame[None], scene, at + offsets)[0] for frame, at in zip(small, first, strict=True)
    ])  # fmt: skip


def _fit(small: Tensor, scene: world.Scene, candidates: Tensor) -> Tensor:
    """The best of the `candidates` (N, 3) for each frame (F, 3, 64, 64): (F, 3)."""
    neutral = {"motion": "still", "tint": (0, 0, 0), "background_tint": (0, 0, 0)}
    still = dataclasses.replace(scene, **neutral)
    variants = [dataclasses.replace(still, x=x, y=y, radius=r) for x, y, r in candidates.tolist()]
    renders = world.render(variants, 1, SIZE)[:, 0].permute(0, 3, 1, 2).float()
    errors = torch.cdist(small.flatten(1), renders.flatten(1))
    return candidates[errors.argmin(1)]
