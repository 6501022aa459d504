"""A cache of latents of rendered clips of the second world, and pairs of the same clip at 256 and
512 px.

    python training/pocket/scenery_cache.py --size 256 --count 16000
    python training/pocket/scenery_cache.py --size 512 --count 3000

Shards hold clips of one shape each: `latents` (N, C, F', H', W') in float16, normalised, and the
scenes. The first scenes of both sizes are the same, and cut to the same number of frames they are
the pairs. A worker adds shards while others train.
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
LENGTHS = 16, 4  # latent frames that are stored at most at 256 and at 512 px
# (height, width in units of the size / 256, frames, share): the smaller side is the size
KINDS: dict[int, tuple[tuple[int, int, int, int], ...]] = {
    256: ((256, 256, 25, 4), (256, 448, 25, 2), (448, 256, 25, 1), (256, 256, 121, 1)),
    512: ((512, 512, 25, 4), (512, 896, 25, 2), (896, 512, 25, 1), (512, 512, 25, 1)),
}


def kind_of(size: int, number: int) -> tuple[int, int, int]:
    """(height, width, frames) of the clips of a shard: the kinds take turns by their shares."""
    turns = [kind[:3] for kind in KINDS[size] for _ in range(kind[3])]
    return turns[(number * 3) % len(turns)]


def scenes_of(number: int, seed: int, count: int) -> list[Scene]:
    """The scenes of a shard, the same at both sizes. Paths fit the frames at 256 px."""
    frames = kind_of(256, number)[2]
    rng = random.Random(f"{seed}/{number}")
    return [random_scene(rng, frames / 24) for _ in range(count)]


def pack(scene: Scene) -> dict[str, Any]:
    """A scene in plain values."""
    return dataclasses.asdict(scene)


def unpack(values: dict[str, Any]) -> Scene:
    """The scene that `pack` wrote."""
    bodies = {n: Body(**values[n]) if values[n] else None for n in ("first", "second")}
    return Scene(**(values | bodies))


@torch.no_grad()
def work(size: int, count: int, seed: int, shard: int) -> None:
    """Add shards until `count` clips exist."""
    folder = RUNS / "cache"
    vae = scenery_vae.load()
    number = len(list(folder.glob(f"scenery-{size}-*.pt")))
    while number * shard < count:
        start = time.time()
        height, width, frames = kind_of(size, number)
        scenes = scenes_of(number, seed, shard)
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


class Clips:
    """Every shard of one size that exists, in memory; `refresh` reads what came since."""

    def __init__(self, size: int, folder: Path = RUNS / "cache") -> None:
        self.size, self.folder = size, folder
        self.shards: dict[str, tuple[Tensor, list[Scene]]] = {}
        self.refresh()

    def refresh(self) -> int:
        """Number of clips in memory."""
        for path in sorted(self.folder.glob(f"scenery-{self.size}-*.pt")):
            if path.name not in self.shards:
                shard = read(path)
                self.shards[path.name] = (shard["latents"], [unpack(s) for s in shard["scenes"]])
        return sum(len(scenes) for _, scenes in self.shards.values())

    def sample(self, rng: random.Random, count: int, frames: int) -> tuple[Tensor, list[Scene]]:
        """(normalised latents (B, C, frames, H', W'), scenes) of one shape, the first `frames`
        latent frames (fewer where the chosen clips are shorter)."""
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


class Twins:
    """Square clips of the same scenes at both sizes, four latent frames of each; the last `HELD`
    of them (a quarter at most) are for measuring."""

    HELD = 32
    FRAMES = 4

    def __init__(self, small: Clips, large: Clips) -> None:
        self.pairs: list[tuple[Tensor, Tensor, Scene]] = []
        for name, (high, scenes) in large.shards.items():
            low = small.shards.get(name.replace("-512-", "-256-"))
            if low is not None and high.shape[3] == high.shape[4] == 2 * low[0].shape[3]:
                cut = low[0][:, :, : self.FRAMES]
                self.pairs += list(zip(cut, high[:, :, : self.FRAMES], scenes, strict=False))
        self.held = min(self.HELD, len(self.pairs) // 4)

    def sample(
        self, rng: random.Random, count: int, held_out: bool = False
    ) -> tuple[Tensor, Tensor, list[Scene]]:
        """Normalised latents (B, C, 4, 8, 8) and (B, C, 4, 16, 16), and their scenes."""
        pool = self.pairs[-self.held :] if held_out else self.pairs[: len(self.pairs) - self.held]
        picks = [rng.choice(pool) for _ in range(count)]
        low, high, scenes = zip(*picks, strict=True)
        return torch.stack(low).float(), torch.stack(high).float(), list(scenes)


def open_cache(size: int) -> Clips:
    """What is stored of one size."""
    return Clips(size)


def open_twins() -> Twins:
    """What is stored at both sizes."""
    return Twins(Clips(256), Clips(512))


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
    work(options.size, options.count, options.seed, options.shard)


if __name__ == "__main__":
    main()
