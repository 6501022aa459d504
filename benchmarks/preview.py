"""Cost of a projected latent preview relative to a full decode, and of fitting the projection.

    python benchmarks/preview.py [--size 256] [--frames 25] [--checkpoint FILE] [--device cpu]

Latents are random, as the time does not depend on their content. Prints one JSON object; the goal
is ``share`` <= 0.05. ``tests/pipeline/test_latent_preview.py`` measures the quality of the
projection.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sized
from functools import partial

import torch
from torch import Tensor

from latent_ladder.checkpoints.selection import model_folders, scan, select_models
from latent_ladder.models.video_vae.vae import decode_video, load_video_vae
from latent_ladder.pipeline.latent_preview import fit


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    choice = {"checkpoint": args.checkpoint} if args.checkpoint else {}
    component = select_models(scan(model_folders(())), choice).video_vae
    began = time.process_time()
    to_rgb = fit(component)
    fit_s = time.process_time() - began
    dtype = torch.float32 if args.device == "cpu" else torch.bfloat16
    vae = load_video_vae(component, device=args.device, dtype=dtype, parts=("decoder",))
    side, count = args.size // vae.config.spatial_scale, (args.frames - 1) // 8 + 1
    latents = torch.randn(1, vae.latent_channels, count, side, side, device=args.device)
    decoders: dict[str, Callable[[Tensor], Iterable[Sized]]] = {
        "rgb": to_rgb.stream,
        "full": lambda z: decode_video(z, vae),
    }
    seconds = {
        name: _seconds(partial(_count_frames, work, latents), args.device)
        for name, work in decoders.items()
    }
    body = {"size": args.size, "frames": args.frames, "fit_cpu_s": fit_s, **seconds}
    print(json.dumps({**body, "share": seconds["rgb"] / seconds["full"]}))


def _count_frames(decode: Callable[[Tensor], Iterable[Sized]], latents: Tensor) -> int:
    return sum(len(chunk) for chunk in decode(latents))


def _seconds(work: Callable[[], object], device: str) -> float:
    """Seconds of the faster of two runs: processor time on the CPU, otherwise wall time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(2):
        began = clock()
        work()
        best = min(best, clock() - began)
    return best


if __name__ == "__main__":
    main()
