"""Cache of latents of rendered clips of the second world, with pairs of a clip at 256 and 512 px.

    python training/pocket/scenery_cache.py --size 256 --count 16000
    python training/pocket/scenery_cache.py --size 512 --count 3000

A shard file contains clips of one shape: normalised float16 `latents` (N, C, F', H', W') and the
scenes. The scenes of a shard are the same at both sizes, so that its clips, cut to the same number
of frames, are pairs. A process can add shards while others train.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from pathlib import Path
from typing import Any

import scenery_vae
import torch
import vae as video_vae
from scenery import Body, Scene, random_scene
from scenery_render import render
from state import RUNS, log, prepare, read, save
from torch import Tensor

SHARD = 32
LENGTHS = 16, 4  # most latent frames of a cached clip at 256 and at 512 px
# (height, width in units of the size / 256, frames, share): the smaller side is the size
KINDS: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    256: ((256, 256, 25, 4), (256, 448, 25, 2), (448, 256, 25, 1), (256, 256, 121, 1)),
    512: ((512, 512, 25, 4), (512, 896, 25, 2), (896, 512, 25, 1), (512, 512, 25, 1)),
}


def shard_kind(size: int, number: int) -> tuple[int, int, int]:
    """(height, width, frames) of the clips of a shard, in turn by the shares of `KINDS`."""
    order = [kind[:3] for kind in KINDS[size] for _ in range(kind[3])]
    return order[(number * 3) % len(order)]


def shard_scenes(number: int, seed: int, count: int) -> list[Scene]:
    """The scenes of a shard, the same at both sizes; objects stay in the picture at 256 px."""
    frames = shard_kind(256, number)[2]
    rng = random.Random(f"{seed}/{number}")
    return [random_scene(rng, frames / 24) for _ in range(count)]


def pack(scene: Scene) -> dict[str, Any]:
    """Convert a scene to a dictionary of plain values."""
    return dataclasses.asdict(scene)


def unpack(values: dict[str, Any]) -> Scene:
    """Convert the result of `pack` back to a scene."""
    bodies = {n: Body(**values[n]) if values[n] else None for n in ("first", "second")}
    return Scene(**(values | bodies))


@torch.no_grad()
def fill_cache(size: int, count: int, seed: int, shard: int) -> None:
    """Write shards to runs/cache until it has `count` clips of `size` px."""
    folder = RUNS / "cache"
    vae = scenery_vae.load()
    number = len(list(folder.glob(f"scenery-{size}-*.pt")))
    while number * shard < count:
        start = time.time()
        height, width, frames = shard_kind(size, number)
        scenes = shard_scenes(number, seed, shard)
        latents = []
        for scene in scenes:
            pixels = render([scene], frames, (height, width))
            code = scenery_vae.encode(vae, video_vae.to_signal(pixels))
            latents.append(video_vae.normalize(vae, code)[0].half().cpu())
        state = {"latents": torch.stack(latents), "scenes": [pack(s) for s in scenes]}
        save(state, folder / f"scenery-{size}-{number:05d}.pt")
        number += 1
        log("scenery_cache", size=size, clips=number * shard,
            seconds_each=(time.time() - start) / shard)  # fmt: skip


class Cache:
    """All shards of one size, in memory; `refresh` reads shards written since."""

    def __init__(self, size: int, folder: Path = RUNS / "cache") -> None:
        self.size, self.folder = size, folder
        self.shards: dict[str, tuple[Tensor, list[Scene]]] = {}
        self.refresh()

    def refresh(self) -> int:
        """Read new shards; returns the number of clips in memory."""
        for path in sorted(self.folder.glob(f"scenery-{self.size}-*.pt")):
            if path.name not in self.shards:
                shard = read(path)
                self.shards[path.name] = (shard["latents"], [unpack(s) for s in shard["scenes"]])
        return sum(len(scenes) for _, scenes in self.shards.values())

    def sample(self, rng: random.Random, count: int, frames: int) -> tuple[Tensor, list[Scene]]:
        """Random clips of one shape: normalised latents (B, C, frames, H', W'), scenes.

        There are fewer than `frames` latent frames if the clips are shorter.
        """
        name = rng.choice(list(self.shards))
        shape = self.shards[name][0].shape[1:]
        same = [s for s in self.shards.values() if s[0].shape[1:] == shape]
        latents, scenes = [], []
        for _ in range(count):
            shard, known = rng.choice(same)
            i = rng.randrange(len(known))
            latents.append(shard[i, :, :frames].float())
            scenes.append(known[i])
        return torch.stack(latents), scenes


class PairedCache:
    """Four latent frames of the square clips that are cached at both sizes.

    The last `MAX_HELD_OUT` of them (a quarter at most) are held out for measuring.
    """

    MAX_HELD_OUT = 32
    FRAMES = 4

    def __init__(self, small: Cache, large: Cache) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Scene]] = []
        for name, (high, scenes) in large.shards.items():
            low = small.shards.get(name.replace("-512-", "-256-"))
            if low is not None and high.shape[3] == high.shape[4] == 2 * low[0].shape[3]:
                cut = low[0][:, :, : self.FRAMES]
                self.pairs += list(zip(cut, high[:, :, : self.FRAMES], scenes, strict=False))
        self.held_out_count = min(self.MAX_HELD_OUT, len(self.pairs) // 4)

    def sample(
        self, rng: random.Random, count: int, held_out: bool = False
    ) -> tuple[Tensor, Tensor, list[Scene]]:
        """Normalised latents (B, C, 4, 8, 8) and (B, C, 4, 16, 16) of random scenes."""
        count_out = self.held_out_count
        pool = self.pairs[-count_out:] if held_out else self.pairs[: len(self.pairs) - count_out]
        picks = [rng.choice(pool) for _ in range(count)]
        low, high, scenes = zip(*picks, strict=True)
        return torch.stack(low).float(), torch.stack(high).float(), list(scenes)


def open_cache(size: int) -> Cache:
    """Read the cached clips of `size` px."""
    return Cache(size)


def open_paired_cache() -> PairedCache:
    """Read the clips that are cached at both sizes."""
    return PairedCache(Cache(256), Cache(512))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--count", type=int, default=16000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard", type=int, default=SHARD, help="clips per file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    prepare(options.threads)
    fill_cache(options.size, options.count, options.seed, options.shard)


if __name__ == "__main__":
    main()
