"""Time and peak memory of ``ladder measure`` on a 1920x1080 clip; the goal is 121 frames in 60 s.

The frames are a pan over noise, generated one by one, so no clip is in memory, and decoding (about
10 ms per frame) is not measured. Memory is shown for two lengths, as it should not grow.

    taskset -c 0,1 python benchmarks/measure.py           # 25 and 121 frames
    taskset -c 0,1 python benchmarks/measure.py --frames 3 6
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from latent_ladder.metrics.measure import measure_clip

RESULTS = Path(__file__).parent / "results" / "measure.json"
SIZE = (1080, 1920)


def pan_frames(frames: int) -> Iterator[np.ndarray]:
    """Generate frames of a pan by 4 px per frame, (H, W, 3) uint8."""
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[0], SIZE[1], 3), np.uint8)
    soft = cv2.GaussianBlur(noise, (0, 0), 3)
    for i in range(frames):
        yield np.roll(soft, -4 * i, 1)


def run_case(frames: int) -> dict[str, Any]:
    """Measure ``frames`` frames in this process."""
    measure_clip(pan_frames(2), 24.0)
    before, wall, cpu = peak_mib(), time.perf_counter(), time.process_time()
    measure_clip(pan_frames(frames), 24.0)
    return {
        "frames": frames,
        "seconds": round(time.perf_counter() - wall, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "peak_mib": round(peak_mib()),
        "above_two_frames_mib": round(peak_mib() - before),
    }


def peak_mib() -> float:
    """Peak resident memory of this process (ru_maxrss is in KiB on Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", type=int, help="run only this many frames, in this process")
    parser.add_argument("--frames", type=int, nargs="+", default=(25, 121))
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(run_case(arguments.case)))
        return
    rows = []
    for frames in arguments.frames:
        command = [sys.executable, __file__, "--case", str(frames)]
        completed = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(completed.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    if arguments.save:
        environment = {
            "opencv": cv2.__version__,
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"about": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
