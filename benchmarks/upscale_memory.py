"""Peak memory of upscaling and encoding 25 and 241 frames, each in a separate process.

python benchmarks/upscale_memory.py --size 480x272 --by 2 --upscale lanczos
python benchmarks/upscale_memory.py --frames 9,25 --size 64x64   # tiny
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import torch

from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.pipeline.stages.decoding import integer_frames
from latent_ladder.request.stages import UpscaleStage
from latent_ladder.upscale.stream import load_upscaler, upscale_frames
from latent_ladder.upscale.upscale_plan import plan_upscale


def frames(count: int, size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """Generate moving ramps in chunks of eight frames, as the decoder does."""
    width, height = size
    base = torch.linspace(0, 1, width).expand(3, height, width)
    for first in range(0, count, 8):
        n = min(8, count - first)
        yield torch.stack([base.roll(first + i, -1) for i in range(n)])


def measure(name: str, count: int, size: tuple[int, int], by: float) -> dict[str, object]:
    """Upscale and encode one clip in this process; ``peak_mib`` is above the memory before."""
    torch.set_num_threads(1)
    plan = plan_upscale(UpscaleStage(name=name, factor=by), size, scan(model_folders(())))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    enlarge = load_upscaler(plan, device=device, dtype=torch.float32)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        chunks = upscale_frames((f.to(device) for f in frames(count, size)), plan, enlarge)
        spec = VideoSpec(plan.target, Fraction(24), EncoderSettings("h265"))
        write_video(Path(folder) / "a.mp4", integer_frames(chunks, 10), spec)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "frames": count,
        "target": list(plan.target),
        "peak_mib": round((after - before) / 1024, 1),
        "seconds": round(time.monotonic() - began, 2),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upscale", default="lanczos")
    parser.add_argument("--size", default="480x272")
    parser.add_argument("--by", type=float, default=2.0)
    parser.add_argument("--frames", default="25,241")
    parser.add_argument("--one", type=int, help="measure this many frames in this process")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    if args.one is not None:
        print(json.dumps(measure(args.upscale, args.one, (width, height), args.by)))
        return
    for count in args.frames.split(","):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--one", count], check=True)


if __name__ == "__main__":
    main()
