"""Train the x2 pixel upscaler of the pocket model, a compact network for its decoded frames.

    python training/pocket/upscaler.py pairs --count 400
    python training/pocket/upscaler.py train --seconds 900
    python training/pocket/upscaler.py measure

A training pair is a window of a 512 px clip through the VAE and the same window of a true 1024 px
render, so the network learns to correct the decoder's errors at edges. Most windows are at the
outlines of objects. The initial network is bilinear interpolation in three of its channels. Pairs
are in runs/cache/upscale.pt: `small` (N, 3, 64, 64) and `large` (N, 3, 128, 128), 8 bit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measures
import torch
import vae as video_vae
import vae_train
import world
from safetensors.torch import load_file, save_file
from state import MODELS, RUNS, log, save
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.upscale.lanczos import lanczos_resize
from latent_ladder.upscale.srvgg import CompactNetwork, CompactShape, load_compact

FILE = "upscale_models/pocket-compact-x2.safetensors"
PAIRS = RUNS / "cache" / "upscale.pt"
SHAPE = CompactShape(features=32, convolutions=6, scale=2)
SIZE = 512
WINDOWS = ((9, 128), (17, 128))  # frames and side of the windows
FRAMES_EACH = 3  # frames of a window that become pairs
INNER = 64  # side of the middle of a window, in pixels
PATCH = 48  # side of a training patch, in pixels
GRADIENT_WEIGHT = 0.5
HELD_OUT_SEED = 777


def _planes(frames: Tensor) -> Tensor:
    """uint8 (F, H, W, 3) -> uint8 (F, 3, H, W)."""
    return frames.permute(0, 3, 1, 2).contiguous()


def corner(rng: random.Random, scene: world.Scene, window: int) -> tuple[int, int]:
    """Top and left of a random window, multiples of 32: 75 % at the outline of the object."""
    last = (SIZE - window) // 32
    if rng.random() < 0.25:
        return 32 * rng.randint(0, last), 32 * rng.randint(0, last)
    x, y, radius = (float(v) for v in world.trajectory(scene, torch.tensor(rng.random())))
    angle, distance = rng.uniform(0, 2 * math.pi), radius * rng.uniform(0.5, 1.2)

    def start(position: float) -> int:
        """First pixel of a window around a position, in half sides from the border."""
        first = (position / 2 * SIZE - rng.uniform(0.25, 0.75) * window) / 32
        return 32 * min(max(round(first), 0), last)

    return start(1 - y - distance * math.sin(angle)), start(x + distance * math.cos(angle) + 1)


@torch.no_grad()
def pair(vae: Any, encode: video_vae.Transform, rng: random.Random) -> tuple[Tensor, Tensor]:
    """`FRAMES_EACH` frames of the middle of one random window, decoded and true."""
    frames, window = rng.choice(WINDOWS)
    scene = world.random_scene(rng)
    top, left = corner(rng, scene, window)
    signal = video_vae.to_signal(
        world.render([scene], frames, SIZE, crop=(top, left, window, window))
    )
    decoded = video_vae.decode(vae, encode(signal))[0]
    edge = (window - INNER) // 2
    inside = slice(edge, edge + INNER)
    picked = rng.sample(range(frames), FRAMES_EACH)
    crop = (2 * (top + edge), 2 * (left + edge), 2 * INNER, 2 * INNER)
    large = [world.render([scene], 1, 2 * SIZE, 24, f, crop)[0] for f in picked]
    return _planes(decoded[picked][:, inside, inside]), _planes(torch.cat(large))


def make_pairs(count: int, seed: int) -> None:
    """Write pairs of `count` windows to runs/cache/upscale.pt."""
    vae = vae_train.load()
    encode = video_vae.transform(vae)
    rng = random.Random(seed)
    sides = []
    for number in range(count):
        sides.append(pair(vae, encode, rng))
        if (number + 1) % 100 == 0 or number + 1 == count:
            small, large = (torch.cat(side) for side in zip(*sides, strict=True))
            save({"small": small, "large": large}, PAIRS)
            log("upscaler_pairs", windows=number + 1, frames=len(small))


def batches(rng: random.Random, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of pairs in 0..1, with random crops, rotations, flips and channel orders."""
    pairs = torch.load(PAIRS, weights_only=True)
    while True:
        small, large = [], []
        for _ in range(count):
            index, turns = rng.randrange(len(pairs["small"])), rng.randrange(4)
            colours, flip = rng.sample(range(3), 3), rng.random() < 0.5
            top, left = (rng.randrange(INNER - PATCH + 1) for _ in range(2))
            x = pairs["small"][index][colours, top : top + PATCH, left : left + PATCH]
            y = pairs["large"][index][
                colours, 2 * top : 2 * (top + PATCH), 2 * left : 2 * (left + PATCH)
            ]
            sides = [torch.rot90(v.flip(2) if flip else v, turns, (1, 2)) for v in (x, y)]
            small.append(sides[0]), large.append(sides[1])
        yield torch.stack(small).float() / 255, torch.stack(large).float() / 255


@torch.no_grad()
def initial_network() -> CompactNetwork:
    """A network with bilinear interpolation in three channels, random weights in the others."""
    torch.manual_seed(0)
    network = CompactNetwork(SHAPE)
    convolutions = [m for m in network.body if isinstance(m, torch.nn.Conv2d)]
    for i, conv in enumerate(convolutions):
        torch.nn.init.zeros_(conv.bias)
        if i + 1 < len(convolutions):
            conv.weight[:3] = 0
            conv.weight[range(3), range(3), 1, 1] = 1
    for m in network.body:
        if isinstance(m, torch.nn.PReLU):
            m.weight[:3] = 1
    last = convolutions[-1].weight
    last.zero_()
    for row in range(2):
        for column in range(2):
            taps = [torch.tensor([0.25, 0.75, 0.0]), torch.tensor([0.0, 0.75, 0.25])]
            kernel = taps[row][:, None] * taps[column]
            kernel[1, 1] -= 1  # the network adds the nearest pixel itself
            for color in range(3):
                last[4 * color + 2 * row + column, color] = kernel
    return network


def compute_loss(out: Tensor, true: Tensor) -> Tensor:
    """Smooth L1 and squared error of values, and L1 of horizontal and vertical differences."""
    error = out - true
    gradients = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return (
        (error.square() + 1e-6).sqrt().mean()
        + GRADIENT_WEIGHT * gradients
        + 2 * error.square().mean()
    )


def train(seconds: float, count: int, lr: float, folder: Path) -> None:
    """Train with Adam and a cosine schedule over `seconds`, then export."""
    network = initial_network()
    source = batches(random.Random(0), count)
    optimizer = torch.optim.Adam(network.parameters(), lr, betas=(0.9, 0.99))
    start, step, loss_sum = time.monotonic(), 0, 0.0
    while (elapsed := (time.monotonic() - start) / seconds) < 1:
        rate = lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * elapsed))
        for group in optimizer.param_groups:
            group["lr"] = rate
        small, large = next(source)
        loss = compute_loss(network(small), large)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()
        step, loss_sum = step + 1, loss_sum + float(loss.detach())
        if step % 100 == 0:
            log("upscaler", step=step, loss=loss_sum / 100, rate=rate)
            loss_sum = 0.0
    export(network, step, folder)


def export(network: CompactNetwork, steps: int, folder: Path) -> None:
    """Write the shipped file (float16) atomically."""
    path = folder / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    config = {"_class_name": "SRVGGNetCompact", "scale": SHAPE.scale, "trained_steps": steps}
    metadata = {"config": json.dumps(config), "preset": "pocket", "format": "pt"}
    state = {k: v.detach().half().contiguous() for k, v in network.state_dict().items()}
    temporary = path.with_suffix(".new")
    save_file(state, temporary, metadata=metadata)
    temporary.replace(path)
    log("upscaler", bytes=path.stat().st_size, step=steps)


def edge_error(got: Tensor, true: Tensor) -> float:
    """Mean error in 8-bit steps over the 5 % of pixels with the steepest true gradient.

    Frames are (F, H, W, 3).
    """
    steep = F.pad(measures.gradients(true), (0, 1, 0, 1))
    threshold = steep.flatten(1).kthvalue(int(0.95 * steep[0].numel()), dim=1).values
    return float(
        (got.float() - true.float()).abs().mean(-1)[steep > threshold[:, None, None]].mean()
    )


def row(got: Tensor, true: Tensor) -> dict[str, float]:
    """Measures of frames (F, 3, H, W) in 0..1 against true ones (F, H, W, 3), 8 bit."""
    frames = got.clamp(0, 1).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return {
        "psnr": measures.psnr(frames, true),
        "edge_error": edge_error(frames, true),
        "edges": measures.edge_sharpness(frames),
    }


@torch.inference_mode()
def compare(clip: Tensor, true: Tensor) -> dict[str, dict[str, float]]:
    """Measures of the shipped network and of Lanczos for decoded frames (F, H, W, 3)."""
    network = load_compact(load_file(MODELS / FILE), torch.float32)
    if network is None:
        raise SystemExit(f"{FILE} is not a compact network")
    small = clip.permute(0, 3, 1, 2).float() / 255
    size = (true.shape[2], true.shape[1])
    return {
        "network": row(network(small), true),
        "lanczos": row(lanczos_resize(small, size), true),
        "true": {"edges": measures.edge_sharpness(true)},
    }


MEASURED_FRAMES = (0, 8, 13, 22)


def measure(vae: Any, count: int = 12) -> dict[str, dict[str, float]]:
    """Mean `compare` over frames of `count` held-out 512 px clips through the VAE, to 1024 px."""
    rng = random.Random(HELD_OUT_SEED)
    measures_by_name: dict[str, list[dict[str, float]]] = {}
    for _ in range(count):
        scene = world.random_scene(rng)
        with torch.no_grad():
            signal = video_vae.to_signal(world.render([scene], 25, SIZE))
            clip = video_vae.decode(vae, video_vae._encode(vae, signal))[0]
        true = torch.cat([world.render([scene], 1, 2 * SIZE, 24, f)[0] for f in MEASURED_FRAMES])
        for name, values in compare(clip[list(MEASURED_FRAMES)], true).items():
            measures_by_name.setdefault(name, []).append(values)
    means = {name: measures.averages(rows) for name, rows in measures_by_name.items()}
    log("upscaler_measure", clips=count, **means)
    return means


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("pairs", "train", "measure"))
    parser.add_argument("--count", type=int, default=400, help="windows, or clips to measure")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=MODELS, help="folder for the exported file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.command == "pairs":
        make_pairs(options.count, seed=0)
    elif options.command == "train":
        train(options.seconds, options.batch, options.lr, options.folder)
    else:
        measure(vae_train.load(), min(options.count, 12))


if __name__ == "__main__":
    main()
