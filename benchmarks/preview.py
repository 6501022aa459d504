"""What a projected preview costs against a full decode, and what the fit costs once.

    python benchmarks/preview.py [--size 256] [--frames 25] [--checkpoint FILE] [--device cpu]

Random latents: the work does not depend on what they hold. Prints one JSON object; the goal is
``share`` <= 0.05. ``tests/pipeline/test_latent_preview.py``
tells how much of the picture the projection explains.
"""

from __future__ import annotations

import argparse
import json
import time

import torch

from latent_ladder.checkpoints.selection import model_folders, scan, select_models
from latent_ladder.models.video_vae.vae import decode_video, load_video_vae
from latent_ladder.pipeline.latent_preview import fit


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--checkpoint")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    choice = {"checkpoint": asked.checkpoint} if asked.checkpoint else {}
    component = select_models(scan(model_folders(())), choice).video_vae
    began = time.process_time()
    to_rgb = fit(component)
    fit_s = time.process_time() - began
    dtype = torch.float32 if asked.device == "cpu" else torch.bfloat16
    vae = load_video_vae(component, device=asked.device, dtype=dtype, parts=("decoder",))
    side, count = asked.size // vae.config.spatial_scale, (asked.frames - 1) // 8 + 1
    latents = torch.randn(1, vae.latent_channels, count, side, side, device=asked.device)
    took = {
        name: _seconds(lambda work=work: sum(len(chunk) for chunk in work(latents)), asked.device)
        for name, work in (("rgb", to_rgb.stream), ("full", lambda z: decode_video(z, vae)))
    }
    body = {"size": asked.size, "frames": asked.frames, "fit_cpu_s": fit_s, **took}
    print(json.dumps({**body, "share": took["rgb"] / took["full"]}))


def _seconds(work: object, device: str) -> float:
    """The faster of two runs: CPU time on the CPU, which other work does not change, else wall."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(2):
        began = clock()
        work()  # type: ignore[operator]
        best = min(best, clock() - began)
    return best


if __name__ == "__main__":
    main()
