"""Drafts with the transformer's own faults, and the true 512 px clip that each of them means.

    python training/pocket/drafts.py --count 160
    python training/pocket/drafts.py --refine 48   # some of them through stage 2, after lora.py

A draft has no true clip to compare it with; but the world is analytic, so the scene that explains a
draft best can be solved for: place, size and phase by Gauss-Newton steps on the latents of its
masks, colours by least squares. The 512 px latents of that scene are what stage 2 should make of
the draft. Drafts start from true clips noised to `LEVELS`, or from noise alone. Shards hold `small`
(N, C, 4, 8, 8) and `high` (N, C, 4, 16, 16) in float16, the fitted scenes and `misfit` (N,).
"""

from __future__ import annotations

import argparse
import dataclasses
import random

import cache
import dit
import sampling
import torch
import world
from fit import Fit
from state import RUNS, log, save
from torch import Tensor
from upsampler import channel_weights
from vae import transform
from vae_train import load

FOLDER = RUNS / "cache"
REFINED = FOLDER / "refined.pt"
DENOISE = (0.35, 0.45, 0.45, 0.55)
LEVELS = (1.0, 0.93, 1.0, 0.85)
STEPS = 12
CFG = 2.0
FRAMES = 4  # latent frames
KEPT = 0.8  # share of the drafts with the smallest misfit


def make(
    trainee: dit.Trainee, latents: Tensor, scenes: list[world.Scene], level: float, seed: int
) -> Tensor:
    """Latents (B, C, 4, 8, 8) noised to a level and denoised under the preset's guidance."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    prompts = [world.caption(s, rng) for s in scenes]
    sigmas = sampling.schedule(STEPS)
    sigmas = [level, *(s for s in sigmas if s < level - 0.01)]
    tokens = dit.video_tokens(latents)
    noise = torch.randn(tokens.shape, generator=generator)
    video = (1 - level) * tokens + level * noise
    audio = torch.randn(
        len(scenes), sampling.audio_length(FRAMES), dit.AUDIO_CHANNELS, generator=generator
    )
    grid = tuple(latents.shape[2:])
    denoise = sampling.Guided.of(trainee, prompts, grid, CFG)  # type: ignore[arg-type]
    video, _ = sampling.euler(denoise, video, audio, sigmas)
    return video.transpose(1, 2).unflatten(2, grid)


def work(count: int, batch: int, seed: int) -> None:
    """Add a shard per batch until `count` drafts were made."""
    trainee, vae = dit.trained(), load()
    encode = transform(vae, normalized=True)
    torch.set_grad_enabled(False)
    source = cache.Cache(encode, 256)
    fit = Fit(encode, cache.offset(encode), channel_weights(vae))
    for number in range(count // batch):
        rng = random.Random(f"{seed}/{number}")
        latents, scenes = source.sample(rng, batch, FRAMES)
        level = LEVELS[number % len(LEVELS)]
        drafts = make(trainee, latents, scenes, level, rng.randrange(2**31))
        fitted = [fit(d, s) for d, s in zip(drafts, scenes, strict=True)]
        misfit = torch.tensor([m for _, _, m in fitted])
        moved = [
            abs(f.x - s.x) + abs(f.y - s.y) for (_, f, _), s in zip(fitted, scenes, strict=True)
        ]
        save({
            "small": drafts.half(), "high": torch.stack([h for h, _, _ in fitted]).half(),
            "scenes": [dataclasses.asdict(s) for _, s, _ in fitted], "misfit": misfit,
        }, FOLDER / f"drafts-{seed}-{number:04d}.pt")  # fmt: skip
        log("drafts", number=number, level=level, misfit=float(misfit.median()),
            moved=sum(moved) / len(moved))  # fmt: skip


def kept() -> list[tuple[Tensor, Tensor, world.Scene]]:
    """(small, high, scene) of the drafts that a scene explains well."""
    shards = [torch.load(p, weights_only=True) for p in sorted(FOLDER.glob("drafts-*.pt"))]
    if not shards:
        return []
    limit = float(torch.cat([s["misfit"] for s in shards]).quantile(KEPT))
    return [
        (small, high, world.Scene(**scene))
        for s in shards
        for small, high, scene, misfit in zip(
            s["small"], s["high"], s["scenes"], s["misfit"], strict=True
        )
        if float(misfit) <= limit
    ]


def explained() -> list[tuple[Tensor, world.Scene]]:
    """(small, scene in the draft's own colours) of `kept`: what its decoded frames should be."""
    known = kept()
    if not known:
        return []
    vae = load()
    encode = transform(vae, normalized=True)
    with torch.no_grad():
        fit = Fit(encode, cache.offset(encode), channel_weights(vae))
        return [(small.float(), fit.tinted(small.float(), scene)) for small, _, scene in known]


def refined() -> list[tuple[Tensor, world.Scene]]:
    """(latents (C, 4, 16, 16) after stage 2, scene) as `explained`."""
    if not REFINED.exists():
        return []
    shard = torch.load(REFINED, weights_only=True)
    return [
        (z.float(), world.Scene(**s)) for z, s in zip(shard["large"], shard["scenes"], strict=True)
    ]


def refine(count: int, seed: int) -> None:
    """Put some of `explained` through upsampler and refine stage, as far as lora.py has come."""
    import lora
    import upsampler

    rng = random.Random(seed)
    known = explained()
    vae, zoom, trainee = load(), upsampler.trained(), dit.trained()
    lora.restore(lora.adapt(trainee.net), torch.load(lora.STATE, weights_only=True)["lora"])
    large, scenes = [], []
    with torch.no_grad():
        for number, (small, scene) in enumerate(rng.sample(known, min(count, len(known)))):
            up = sampling.zoomed(zoom, vae, small[None])
            audio = torch.randn(1, sampling.audio_length(FRAMES), dit.AUDIO_CHANNELS)
            levels = sampling.refine_sigmas(rng.choice(DENOISE))
            prompt = world.caption(scene, rng)
            large.append(sampling.refine(trainee, [prompt], up, audio, levels, number)[0][0].half())
            scenes.append(dataclasses.asdict(scene))
    save({"large": torch.stack(large), "scenes": scenes}, REFINED)
    log("drafts_refined", count=len(large))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=160)
    parser.add_argument("--refine", type=int, default=0, help="instead: drafts for stage 2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.refine:
        refine(options.refine, options.seed)
    else:
        work(options.count, options.batch, options.seed)


if __name__ == "__main__":
    main()
