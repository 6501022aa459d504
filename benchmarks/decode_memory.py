"""Peak memory of decoding latents into an H.264 file, by number of frames.

Each case runs in a separate process, for its own peak memory:

* ``decode_streamed``: this package, without tiles, frames encoded as they are decoded;
* ``at once``: the whole clip through diffusers' ``AutoencoderKLLTX2Video``, then encoded.

Weights are random, with the widths of the pocket's video VAE (64 latent channels, decoder 40 to
160 channels): the numbers show how memory grows, not how much the 2.3 model needs.

    python benchmarks/decode_memory.py    # prints a table, writes results/decode_memory.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.models.network_configs import VideoVaeConfig
from latent_ladder.models.vae_loading import LatentStatistics
from latent_ladder.models.video_vae.networks import VideoDecoder, pack_kernels
from latent_ladder.models.video_vae.vae import VideoVae, decode_video

RESULTS = Path(__file__).parent / "results" / "decode_memory.json"
FRAMES = (25, 73, 121, 241)
SIDE = 512
CASES = ("streamed", "at once")
DECODER = VideoVaeConfig(
    latent_channels=64,
    patch=4,
    widths=(160, 80, 80, 40, 20),
    layers=(1, 1, 1, 1, 1),
    resamplers=("all", "all", "time", "space"),
    padding="zeros",
    causal=False,
    residual=(False,) * 4,
)


def decode_streamed(latents: Tensor) -> Iterator[np.ndarray]:
    """Decode with this package, in chunks of frames."""
    plain = LatentStatistics(torch.zeros(64), torch.ones(64))
    decoder = pack_kernels(VideoDecoder(DECODER).eval().requires_grad_(False))
    vae = VideoVae(None, decoder, DECODER, plain, torch.device("cpu"), torch.float32)
    return decode_video(latents, vae)


@torch.no_grad()
def decode_at_once(latents: Tensor) -> Iterator[np.ndarray]:
    """Decode all frames at once with the same network in diffusers."""
    from diffusers import AutoencoderKLLTX2Video

    vae = AutoencoderKLLTX2Video(
        latent_channels=64,
        block_out_channels=(64, 64, 128, 128),
        layers_per_block=(0, 1, 1, 1, 1),
        decoder_block_out_channels=(40, 80, 80, 160),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        decoder_spatio_temporal_scaling=(True,) * 4,
        decoder_inject_noise=(False,) * 5,
        upsample_type=("spatiotemporal", "spatiotemporal", "temporal", "spatial"),
        upsample_residual=(False,) * 4,
        upsample_factor=(2, 2, 1, 2),
        decoder_causal=False,
        decoder_spatial_padding_mode="zeros",
    ).eval()
    pixels = vae.decode(latents, return_dict=False)[0]
    frames = ((pixels[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    yield frames.permute(1, 2, 3, 0).numpy()


def run_case(case: str, frames: int) -> dict[str, Any]:
    """Decode and encode in this process; measures peak memory, also above that at start."""
    torch.manual_seed(0)
    latents = torch.randn(1, 64, 1 + (frames - 1) // 8, SIDE // 32, SIDE // 32)
    chunks = decode_streamed(latents) if case == "streamed" else decode_at_once(latents)
    before, started = peak_mib(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        spec = VideoSpec((SIDE, SIDE), Fraction(24))
        written = write_video(Path(folder) / "clip.mp4", chunks, spec)
    return {
        "case": case,
        "frames": written.frames,
        "peak_mib": round(peak_mib()),
        "above_start_mib": round(peak_mib() - before),
        "seconds": round(time.perf_counter() - started, 1),
    }


def peak_mib() -> float:
    """Peak resident memory of this process (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_in_process(case: str, frames: int) -> dict[str, Any]:
    """Run one case in a new process; a failure (out of memory) is part of the result."""
    command = [sys.executable, __file__, "--case", case, "--frames", str(frames)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"case": case, "frames": frames, "failed": done.stderr.strip()[-200:]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown table with one line per number of frames."""
    lines = [f"| frames {SIDE}x{SIDE} | streamed MiB | at once MiB | streamed s | at once s |"]
    lines.append("|---|---|---|---|---|")
    for frames in dict.fromkeys(row["frames"] for row in rows):
        by_case = {row["case"]: row for row in rows if row["frames"] == frames}
        cells = [
            str(by_case[case].get(key, "failed"))
            for key in ("peak_mib", "seconds")
            for case in CASES
        ]
        lines.append(f"| {frames} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=CASES, help="run only this case, in this process")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case, arguments.frames[0])))
        return
    rows = []
    for frames in arguments.frames:
        for case in CASES:
            rows.append(run_in_process(case, frames))
            print(rows[-1], file=sys.stderr, flush=True)
    print(table(rows))
    RESULTS.parent.mkdir(exist_ok=True)
    environment = {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "size": [SIDE, SIDE],
        "decoder_widths": DECODER.widths,
    }
    RESULTS.write_text(json.dumps({"about": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
