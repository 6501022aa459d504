"""How good the pocket model is: a forced-choice judge, PSNR of the VAE, explained variance of x2.

    python training/pocket/evaluate.py --prompts 64

The judge is not trained. A decoded clip is compared (64 x 64 px, four frames) with analytic renders
of the prompted scene in which one attribute varies, each at a few places; the attribute counts as
right if the prompted value comes closest. Its ceiling is measured on real renders sent through the
VAE. Results go to runs/evaluation.json and runs/evaluation.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import time
from pathlib import Path

import dit
import sampling
import torch
import vae as video_vae
import world
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from vae_train import HELD_OUT_SEED, RUNS, load, log

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


def sheet(clips: Tensor, path: Path, columns: int = 4) -> None:
    """Contact sheet: frames 0, 12 and 24 of each clip (B, F, H, W, 3)."""
    strips = [torch.cat([c[0], c[12], c[24]], dim=1) for c in clips]
    strips = [s[::2, ::2] if s.shape[0] > 128 else s for s in strips]
    strips += [torch.zeros_like(strips[0])] * (-len(strips) % columns)
    rows = [torch.cat(strips[i : i + columns], 1) for i in range(0, len(strips), columns)]
    Image.fromarray(torch.cat(rows, 0).numpy()).save(path)


@torch.no_grad()
def sampled(
    trainee: dit.Trainee, vae: object, prompts: list[str], steps: int, cfg: float
) -> Tensor:
    """uint8 clips of prompts, in batches of 8."""
    clips = []
    for i in range(0, len(prompts), 8):
        latents, _ = sampling.generate(trainee, prompts[i : i + 8], seed=i, steps=steps, cfg=cfg)
        clips.append(video_vae.decode(vae, video_vae.denormalize(vae, latents)))
    return torch.cat(clips)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--cfg", type=float, default=3.0)
    parser.add_argument("--ceiling", type=int, default=0, help="real clips to judge")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--name", default="evaluation")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vae, trainee = load(), dit.trained()
    trainee.net.eval(), trainee.tower.eval()
    start = time.time()
    scenes, prompts = held_out(max(options.prompts, options.ceiling))
    result: dict[str, object] = {"step": int(torch.load(dit.STATE, weights_only=True)["step"])}
    if options.ceiling:
        clips = [world.render([s], 25, 256) for s in scenes[: options.ceiling]]
        coded = [
            video_vae.decode(vae, video_vae._encode(vae, video_vae.to_signal(c)))[0] for c in clips
        ]
        judged = [judge(c, s) for c, s in zip(coded, scenes, strict=False)]
        result["ceiling"] = rates(judged)
        result["psnr_256"] = video_vae.score(vae, scenes[:6], 256)
        result["psnr_512"] = video_vae.score(vae, scenes[:6], 512)
    if options.prompts:
        clips = sampled(trainee, vae, prompts[: options.prompts], options.steps, options.cfg)
        result["prompts"] = options.prompts
        result["rates"] = rates([judge(c, s) for c, s in zip(clips, scenes, strict=False)])
        sheet(clips[:24], RUNS / f"{options.name}.png")
    result["seconds"] = time.time() - start
    (RUNS / f"{options.name}.json").write_text(json.dumps(result, indent=1))
    log("evaluation", **result)


if __name__ == "__main__":
    main()
