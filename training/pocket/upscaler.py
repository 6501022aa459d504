"""The x2 pixel upscaler of the pocket model: a compact network trained on renders of the world.

    python training/pocket/upscaler.py train --seconds 560
    python training/pocket/upscaler.py measure

The world is analytic, so a pair is one window rendered at a size and at twice that size: true
detail, not the inverse of some blur. Windows lie on the objects' outlines, where there is something
to learn; a little noise on half of them keeps the network from sharpening what a decoder leaves
behind.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time

import torch
import world
from safetensors.torch import load_file, save_file
from state import MODELS, log
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.upscale.compact import Compact, CompactShape, load_compact
from latent_ladder.upscale.lanczos import resize

FILE = "upscale_models/pocket-x2.safetensors"
SHAPE = CompactShape(features=32, convolutions=6, scale=2)
SIZES = (128, 256, 256, 512)
PATCH = 40
HELD_OUT_SEED = 777


def pair(rng: random.Random, size: int, patch: int) -> tuple[Tensor, Tensor]:
    """One window (3, patch, patch) of a frame of ``size`` px, and the same of twice the size."""
    scene = world.random_scene(rng)
    frame = rng.randrange(25)
    x, y, radius = (float(v) for v in world.trajectory(scene, torch.tensor(frame / 24)))
    angle, reach = rng.uniform(0, 2 * math.pi), radius * rng.uniform(0.6, 1.2)
    if rng.random() < 0.25:  # anywhere
        x, y, reach = rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.9), 0.0
    column = (x + reach * math.cos(angle) + 1) / 2 * size - patch / 2
    row = (1 - y - reach * math.sin(angle)) / 2 * size - patch / 2
    top, left = (round(min(max(v, 0), size - patch)) for v in (row, column))
    small = world.render([scene], 1, size, 24, frame, (top, left, patch, patch))
    large = world.render([scene], 1, 2 * size, 24, frame, (2 * top, 2 * left, 2 * patch, 2 * patch))
    return tuple(v[0, 0].permute(2, 0, 1).float() / 255 for v in (small, large))  # type: ignore[return-value]


class Pairs:
    """Pairs rendered so far by size; some are added with every batch, all are used many times,
    turned and with exchanged colours."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known: dict[int, list[tuple[Tensor, Tensor]]] = {size: [] for size in SIZES}

    def batch(self, count: int, fresh: int = 3) -> tuple[Tensor, Tensor]:
        """Pairs of one size; half of the small ones with noise of up to 2 steps of 8 bits."""
        known = self._known[size := self._rng.choice(SIZES)]
        for _ in range(fresh if len(known) >= count else count):
            known.append(pair(self._rng, size, PATCH))
        turned = [self._turned(self._rng.choice(known)) for _ in range(count)]
        x, y = (torch.stack(side) for side in zip(*turned, strict=True))
        strength = torch.rand(count, 1, 1, 1).sub(0.5).clamp_(min=0) * 4 / 255
        return x + strength * torch.randn_like(x), y

    def _turned(self, both: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        turns, colours = self._rng.randrange(4), self._rng.sample(range(3), 3)
        return tuple(torch.rot90(v[colours], turns, (1, 2)) for v in both)


def train(seconds: float, count: int, lr: float) -> None:
    """Charbonnier loss, Adam, a rate that falls to 0 with the time given."""
    torch.manual_seed(0)
    pairs = Pairs(random.Random(0))
    network = Compact(SHAPE)
    torch.nn.init.zeros_(network.body[-1].weight)
    torch.nn.init.zeros_(network.body[-1].bias)
    optimizer = torch.optim.Adam(network.parameters(), lr, betas=(0.9, 0.99))
    start, step, total = time.monotonic(), 0, 0.0
    while (gone := (time.monotonic() - start) / seconds) < 1:
        rate = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * gone))
        for group in optimizer.param_groups:
            group["lr"] = rate
        small, large = pairs.batch(count)
        loss = ((network(small) - large).square() + 1e-6).sqrt().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        step, total = step + 1, total + float(loss.detach())
        if step % 100 == 0:
            log("upscaler", step=step, loss=total / 100, rate=rate)
            total = 0.0
    export(network, step)


def export(network: Compact, steps: int) -> None:
    """Write the shipped file, float16."""
    path = MODELS / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"_class_name": "SRVGGNetCompact", "scale": SHAPE.scale, "trained_steps": steps}
    metadata = {"config": json.dumps(facts), "preset": "pocket", "format": "pt"}
    state = {k: v.detach().half().contiguous() for k, v in network.state_dict().items()}
    fresh = path.with_suffix(".new")
    save_file(state, fresh, metadata=metadata)
    fresh.replace(path)
    log("upscaler", bytes=path.stat().st_size, step=steps)


def psnr(a: Tensor, b: Tensor) -> float:
    """Of values 0..1, in dB."""
    return -10 * math.log10(float((a - b).square().mean()))


def edge_error(got: Tensor, true: Tensor) -> float:
    """Mean error, in 8-bit steps, at the twentieth of the pixels where the true gradient is
    steepest."""
    grey = true.mean(0, keepdim=True)
    steep = (
        F.pad(grey[:, 1:] - grey[:, :-1], (0, 0, 0, 1)).abs()
        + F.pad(grey[..., 1:] - grey[..., :-1], (0, 1)).abs()
    )
    cut = steep.flatten().kthvalue(int(0.95 * steep.numel())).values
    at = (steep > cut).expand_as(true)
    return float((got - true).abs()[at].mean() * 255)


def measure(count: int = 24) -> None:
    """Against Lanczos on whole held-out frames, 256 -> 512 and 512 -> 1024."""
    network = load_compact(load_file(MODELS / FILE), torch.float32)
    if network is None:
        raise SystemExit(f"{FILE} is no compact network")
    for size in (256, 512):
        rng = random.Random(HELD_OUT_SEED)
        rows = []
        for _ in range(count):
            scene, frame = world.random_scene(rng), rng.randrange(25)
            small, true = (
                world.render([scene], 1, s, 24, frame)[0, 0].permute(2, 0, 1).float() / 255
                for s in (size, 2 * size)
            )
            with torch.inference_mode():
                ours = network(small[None])[0].clamp(0, 1)
            lanczos = resize(small[None], (2 * size, 2 * size))[0].clamp(0, 1)
            rows.append([f(v, true) for f in (psnr, edge_error) for v in (ours, lanczos)])
        means = torch.tensor(rows).mean(0).tolist()
        names = ("psnr", "psnr_lanczos", "edge_error", "edge_error_lanczos")
        log("upscaler_measure", size=size, frames=count, **dict(zip(names, means, strict=True)))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("train", "measure"))
    parser.add_argument("--seconds", type=float, default=560)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "train":
        train(options.seconds, options.batch, options.lr)
    else:
        measure()


if __name__ == "__main__":
    main()
