"""Ceilings of linear codes: PSNR that N numbers per block of 8 x 32 x 32 pixels can reach.

    python training/pocket/scenery_ceilings.py --windows 400

The code is made of the principal components of blocks of random windows, and the PSNR is measured
on other windows. The script also measures which share of a woven texture's energy (the difference
between a woven and a plain object) lies in the components of the second world.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
from typing import Any

import scenery
import scenery_render
import torch
import world
from state import log, prepare
from torch import Tensor

COUNTS = (64, 128, 256)
SIDE = 128


def window(scene: Any, size: int, crop: tuple[int, int, int, int], first: int) -> Tensor:
    """The blocks (16, 24576) of a window of 8 frames, with values from 0 to 1."""
    draw = world.render if isinstance(scene, world.Scene) else scenery_render.render
    clip = draw([scene], 8, size, first_frame=first, crop=crop)[0].float() / 255
    cut = clip.reshape(8, SIDE // 32, 32, SIDE // 32, 32, 3)
    return cut.permute(1, 3, 5, 0, 2, 4).reshape((SIDE // 32) ** 2, -1)


def draw_scene(kind: str, rng: random.Random) -> Any:
    """A random scene of the first world, of one ground, or of any ground (`mixed`)."""
    if kind == "first":
        return world.random_scene(rng)
    scene = scenery.random_scene(rng)
    return scene if kind == "mixed" else dataclasses.replace(scene, ground=kind)


def blocks(kind: str, size: int, count: int, seed: int) -> Tensor:
    """Blocks of `count` windows of random scenes."""
    rng, out = random.Random(seed), []
    for _ in range(count):
        scene = draw_scene(kind, rng)
        top, left = (32 * rng.randrange((size - SIDE) // 32 + 1) for _ in range(2))
        out.append(window(scene, size, (top, left, SIDE, SIDE), rng.randrange(16)))
    return torch.cat(out)


def components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and principal components (256, D) of rows (N, D), most important first."""
    mean = rows.mean(0)
    _, _, basis = torch.svd_lowrank(rows - mean, q=COUNTS[-1] + 16, niter=3)
    return mean, basis.T[: COUNTS[-1]]


def ceilings(rows: Tensor, mean: Tensor, basis: Tensor) -> dict[str, float]:
    """PSNR in dB by number of components."""
    centred = rows - mean
    codes, energy = centred @ basis.T, centred.square().mean()
    out = {}
    for count in COUNTS:
        residual = energy - codes[:, :count].square().sum() / centred.numel()
        out[f"db_{count}"] = float(-10 * torch.log10(residual))
    return out


def energy_shares(difference: Tensor, basis: Tensor) -> dict[str, float]:
    """Share of the energy of rows (N, D) in the first components, by their number."""
    codes, energy = difference @ basis.T, difference.square().sum()
    return {f"share_{n}": float(codes[:, :n].square().sum() / energy) for n in COUNTS}


def weave_blocks(count: int, seed: int) -> Tensor:
    """Difference of woven and plain objects, as blocks of windows around them at 512 px."""
    rng, out = random.Random(seed), []
    for _ in range(count):
        scene = scenery.random_scene(rng)
        x, y, _ = (float(v) for v in scenery.trajectory(scene.first, torch.tensor(0.3)))
        left, top = (32 * round((256 * v - SIDE / 2) / 32) for v in (1 + x, 1 - y))
        crop = (max(0, min(512 - SIDE, top)), max(0, min(512 - SIDE, left)), SIDE, SIDE)
        plain, woven = (
            window(dataclasses.replace(scene, first=dataclasses.replace(scene.first, texture=t)),
                   512, crop, 7)
            for t in ("plain", "woven")
        )  # fmt: skip
        out.append(woven - plain)
    return torch.cat(out)


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--windows", type=int, default=400, help="a quarter more to measure on")
    parser.add_argument("--kinds", default=",".join(("first", *scenery.GROUNDS, "mixed")))
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    prepare(options.threads)
    for kind in options.kinds.split(","):
        for size in (256, 512):
            mean, basis = components(blocks(kind, size, options.windows, 1))
            test = blocks(kind, size, options.windows // 4, 2)
            log("ceiling", kind=kind, size=size, **ceilings(test, mean, basis))
            if kind == "mixed" and size == 512:
                log("ceiling_weave", **energy_shares(weave_blocks(options.windows // 8, 3), basis))


if __name__ == "__main__":
    main()
