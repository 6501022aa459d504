"""Cache of latents from which a training clip in any colours is mixed without rendering it again.

The encoder is affine and a scene is a sum of masks times colours, so the latents of a clip are the
sum of the masks' latents times the colours. One cached *geometry* (shape, motion, background,
position) therefore gives a clip for every colour of object and background, plain or striped. A
shard file contains float16 tensors `parts` (N, 4, 3, C, F', H', W') and the scenes; a process can
add shards while others train.

    python training/pocket/cache.py --size 256 --count 4000
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import time
from pathlib import Path

import torch
import world
from state import RUNS, log, save
from torch import Tensor
from vae import LATENT_CHANNELS, Transform, space_to_depth, transform
from vae_train import load

FRAMES = 33
SHARD = 64
BACKGROUND, BACKGROUND_FIXED, OBJECT, STRIPE = range(4)


def _mask_latents(encode: Transform, mask: Tensor) -> Tensor:
    """Latents (3, C, F', H/32, W/32) of one mask (F, H, W) in red, green and blue, without bias."""
    channels = encode.weight.shape[0]
    first = encode.weight.sum(2).reshape(channels * 3, -1)
    flat = encode.weight.reshape(channels * 3, -1)
    video = mask[None, None]
    parts = [first @ space_to_depth(video[:, :, :1], (1, 32, 32))[0].flatten(1)]
    shape = (1, mask.shape[1] // 32, mask.shape[2] // 32)
    if mask.shape[0] > 1:
        parts.append(flat @ space_to_depth(video[:, :, 1:], (8, 32, 32))[0].flatten(1))
    frames = [p.reshape(channels, 3, -1, *shape[1:]).transpose(0, 1) for p in parts]
    return torch.cat(frames, dim=2)


def geometry(encode: Transform, scene: world.Scene, size: int, frames: int = 0) -> Tensor:
    """Latents `parts` (4, 3, C, F', size/32, size/32) of a scene's four masks.

    `palette` gives the colours to multiply them with, `offset` the latent to add.
    """
    pixel = 2 / size
    xs = (torch.arange(size) + 0.5) * pixel - 1
    ys = 1 - (torch.arange(size) + 0.5) * pixel
    t = torch.arange(frames or (FRAMES if size == 256 else 25)) / 24
    soft = world.EDGE_PX * pixel
    back = world.backdrop(scene, xs, ys, pixel)
    latent_frames = 1 + (len(t) - 1) // 8
    out = torch.zeros(4, 3, LATENT_CHANNELS, latent_frames, size // 32, size // 32)
    for part, field in ((BACKGROUND, back.color_mask), (BACKGROUND_FIXED, back.fixed_mask)):
        out[part] = _mask_latents(
            encode, field[None]
        )  # the still background: one frame stands for all
    cx, cy, radius = world.trajectory(scene, t)
    rows, columns = (
        slice(s.start // 32 * 32, -(-s.stop // 32) * 32)
        for s in (world.covered_range(ys, cy, radius), world.covered_range(xs, cx, radius))
    )
    mask, color_share = world.coverage(scene, xs[columns], ys[rows], t, soft)
    window = (..., slice(rows.start // 32, rows.stop // 32), slice(columns.start // 32,
              columns.stop // 32))  # fmt: skip
    for part, field in ((BACKGROUND, back.color_mask), (BACKGROUND_FIXED, back.fixed_mask)):
        if bool(field.any()):
            out[part][window] -= _mask_latents(encode, mask * field[rows, columns])
    out[OBJECT][window] = _mask_latents(encode, mask * color_share)
    out[STRIPE][window] = _mask_latents(encode, mask - mask * color_share)
    return out


def palette(scene: world.Scene) -> Tensor:
    """Colours (4, 3) of the parts in signal units above black, 0 to 2."""
    object_color = world.object_color(scene)
    stripe = world.stripe_color(scene) if scene.texture == "striped" else object_color
    fixed = torch.tensor([float(c) for c in world.WALL])
    if scene.background != "floor":
        fixed = torch.tensor([float(c) for c in world.HAZE])
    return torch.stack([world.background_color(scene), fixed, object_color, stripe]) / 127.5


def offset(encode: Transform) -> Tensor:
    """Latent (C, 1, 1, 1) of a black clip (signal -1)."""
    return (encode.bias - encode.weight.sum((1, 2, 3, 4))).view(-1, 1, 1, 1)


def recolor_scene(scene: world.Scene, rng: random.Random) -> world.Scene:
    """The scene with other random colours and texture."""
    other = world.random_scene(rng)
    names = ("color", "texture", "background_color", "tint", "background_tint")
    return dataclasses.replace(scene, **{name: getattr(other, name) for name in names})


LENGTHS = 5, 4  # latent frames of a cached clip at 256 and at 512 px


class Cache:
    """All shards of one size, in memory; `refresh` reads shards written since."""

    def __init__(self, encode: Transform, size: int, folder: Path = RUNS / "cache") -> None:
        self.folder, self.size = folder, size
        self.offset = offset(encode)
        self.parts: list[Tensor] = []
        self.scenes: list[world.Scene] = []
        self.seen: set[str] = set()
        self.refresh()

    def refresh(self) -> int:
        """Read new shards; returns the number of geometries in memory."""
        for path in sorted(self.folder.glob(f"{self.size}-*.pt")):
            if path.name not in self.seen:
                shard = torch.load(path, weights_only=True)
                self.parts.extend(shard["parts"])
                self.scenes.extend(world.Scene(**s) for s in shard["scenes"])
                self.seen.add(path.name)
        return len(self.scenes)

    def sample(
        self, rng: random.Random, count: int, frames: int
    ) -> tuple[Tensor, list[world.Scene]]:
        """Random geometries in new colours: normalised latents (B, C, frames, H', W'), scenes."""
        picks = [rng.randrange(len(self.scenes)) for _ in range(count)]
        scenes = [recolor_scene(self.scenes[i], rng) for i in picks]
        out = []
        for i, scene in zip(picks, scenes, strict=True):
            parts = self.parts[i]
            colors = palette(scene)
            out.append(torch.tensordot(colors, parts[:, :, :, :frames].float(), 2) + self.offset)
        return torch.stack(out), scenes


def open_cache(size: int) -> Cache:
    """Read the cached clips of `size` px."""
    return Cache(transform(load(), normalized=True), size)


class PairedCache:
    """The geometries that are cached at both 256 and 512 px.

    The last `MAX_HELD_OUT` of them (a quarter at most) are held out for measuring.
    """

    MAX_HELD_OUT = 32

    def __init__(self, encode: Transform) -> None:
        self.small, self.large = Cache(encode, 256), Cache(encode, 512)
        small_index = {_scene_key(s): i for i, s in enumerate(self.small.scenes)}
        matches = [(small_index.get(_scene_key(s)), j) for j, s in enumerate(self.large.scenes)]
        self.pairs = [(i, j) for i, j in matches if i is not None]
        self.held_out_count = min(self.MAX_HELD_OUT, len(self.pairs) // 4)

    def sample(
        self, rng: random.Random, count: int, held_out: bool = False
    ) -> tuple[Tensor, Tensor, list[world.Scene]]:
        """Normalised latents (B, C, 4, 8, 8) and (B, C, 4, 16, 16) of scenes in new colours."""
        count_out = self.held_out_count
        pool = self.pairs[-count_out:] if held_out else self.pairs[:-count_out]
        low, high, scenes = [], [], []
        for _ in range(count):
            i, j = rng.choice(pool)
            scene = recolor_scene(self.large.scenes[j], rng)
            colors = palette(scene)
            for parts, out in ((self.small.parts[i], low), (self.large.parts[j], high)):
                mixed = torch.tensordot(colors, parts[:, :, :, :4].float(), 2)
                out.append(mixed + self.small.offset)
            scenes.append(scene)
        return torch.stack(low), torch.stack(high), scenes


def open_paired_cache() -> PairedCache:
    """Read the clips that are cached at both sizes."""
    return PairedCache(transform(load(), normalized=True))


def _scene_key(scene: world.Scene) -> tuple[float, ...]:
    return scene.x, scene.y, scene.radius, scene.phase


def fill_cache(size: int, count: int, seed: int, shard_size: int = SHARD) -> None:
    """Write shards to runs/cache until it has `count` geometries of `size` px."""
    folder = RUNS / "cache"
    folder.mkdir(parents=True, exist_ok=True)
    encode = transform(load(), normalized=True)
    number = len(list(folder.glob(f"{size}-*.pt")))
    while number * shard_size < count:
        start = time.time()
        small = folder / f"256-{number:05d}.pt"
        if size != 256 and small.exists():  # the same scenes at both sizes
            fields = torch.load(small, weights_only=True)["scenes"]
            scenes = [world.Scene(**s) for s in fields]
        else:
            rng = random.Random(f"{seed}/{size}/{number}")
            scenes = [world.random_scene(rng) for _ in range(shard_size)]
        parts = torch.stack([geometry(encode, s, size).half() for s in scenes])
        shard = {"parts": parts, "scenes": [dataclasses.asdict(s) for s in scenes]}
        save(shard, folder / f"{size}-{number:05d}.pt")
        number += 1
        log(
            "cache",
            size=size,
            held=number * shard_size,
            seconds_each=(time.time() - start) / shard_size,
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--shard", type=int, default=SHARD, help="geometries per file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    fill_cache(options.size, options.count, options.seed, options.shard)


if __name__ == "__main__":
    main()
