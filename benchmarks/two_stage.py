"""Time and memory of a whole two-stage job (prompt to MP4 with audio), compared with diffusers.

    python benchmarks/two_stage.py --models src/latent_ladder/pocket/models --rounds 5

Both sides use the same weights, prompt, seed, sigmas and guidance, in float32 on the CPU. Each run
is a separate process, measured from interpreter start to exit, in alternating order; wall time and
peak resident memory are those of the operating system. Before that, the models are converted to
diffusers' layout, and one round checks that both sides compute the same stage-1 latents and counts
their floating-point operations.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SIDES = {"ladder": HERE / "ladder_side.py", "diffusers": HERE / "diffusers_side.py"}
GOAL = 0.5

DISTILLED_SIGMAS = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]
REFINE_SIGMAS = [0.909375, 0.725, 0.421875, 0.0]
PROMPT = "A large red circle moves to the right in front of green hills. A low tone is heard."

PLAIN = {"cfg": 1.0, "stg": 0.0, "modality": 1.0, "rescale": 0.0, "stg_blocks": []}
GUIDANCE = {
    "none": {"video": PLAIN, "audio": PLAIN},
    "cfg": {"video": PLAIN | {"cfg": 3.0}, "audio": PLAIN | {"cfg": 7.0}},
    "full": {
        "video": {"cfg": 3.0, "stg": 1.0, "modality": 3.0, "rescale": 0.7, "stg_blocks": [1]},
        "audio": {"cfg": 7.0, "stg": 1.0, "modality": 3.0, "rescale": 0.7, "stg_blocks": [1]},
    },
}
"""Guidance of stage 1 with 1, 2 and 4 passes per step. Stage 2 has none, as in all recipes."""


@dataclass(frozen=True)
class Sample:
    """Measurements of one process; other processes affect processor time less than wall time."""

    side: str
    wall_s: float
    cpu_s: float
    peak_mib: float
    spent: dict[str, tuple[float, float]]
    flops: int | None = None


def main() -> int:
    """Run all rounds, print the comparison and write it as JSON."""
    options = _arguments()
    with tempfile.TemporaryDirectory(prefix="two-stage-") as name:
        folder = Path(name)
        facts = _convert_models(options.models, folder / "diffusers")
        job = _job(options, facts)
        warm = {side: _run(side, job, folder, options.threads, check=True) for side in SIDES}
        agreement = _compare_latents(folder)
        samples: list[Sample] = []
        for turn in range(options.rounds):
            for side in sorted(SIDES, reverse=bool(turn % 2)):
                samples.append(_run(side, job, folder, options.threads))
                _print_line(f"round {turn + 1}: {_line(samples[-1])}")
        clips = {side: _probe(folder / f"{side}.mp4") for side in SIDES}
    report = _report(options, job, samples, warm) | {"agreement": agreement, "clips": clips}
    report["matmul_gflops"] = _matmul_rate(options.threads)
    _print_report(report)
    path = options.out / f"two_stage-{options.guidance}-{options.label}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    _print_line(f"wrote {path}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="ComfyUI's models/ layout")
    parser.add_argument("--label", default="pocket", help="part of the result file's name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--guidance", choices=GUIDANCE, default="cfg")
    parser.add_argument(
        "--steps", type=int, help="steps of stage 1, evenly spaced; default: 8 distilled"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.models = options.models.resolve()
    return options


def _job(options: argparse.Namespace, facts: dict[str, Any]) -> dict[str, Any]:
    steps = options.steps
    return {
        "models": str(options.models),
        "prompt": PROMPT,
        "negative_prompt": "blurry",
        "width": options.width,
        "height": options.height,
        "frames": options.frames,
        "fps": 24,
        "seed": 7,
        "sigmas_1": [1 - n / steps for n in range(steps + 1)] if steps else DISTILLED_SIGMAS,
        "sigmas_2": REFINE_SIGMAS,
        "guidance": GUIDANCE[options.guidance],
        **facts,
    }


def _convert_models(models: Path, folder: Path) -> dict[str, Any]:
    """Convert the models to diffusers' layout in a separate process; returns its facts."""
    folder.mkdir()
    command = [sys.executable, *map(str, (HERE / "diffusers_models.py", models, folder))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the models could not be converted:\n{done.stderr[-3000:]}")
    facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
    return facts


def _run(side: str, job: dict[str, Any], folder: Path, threads: int, check: bool = False) -> Sample:
    """Make one clip with one side, in a new process and (ours) a new store."""
    work = folder / "store" if side == "ladder" else folder / "diffusers"
    if side == "ladder":
        shutil.rmtree(work, ignore_errors=True)
    record, output, path = (folder / f"{side}.{end}" for end in ("record", "mp4", "job"))
    output.unlink(missing_ok=True)
    run_job = {
        **job,
        "folder": str(work),
        "check": str(folder / f"{side}.pt") if check else "",
        "record": str(record),
        "output": str(output),
    }
    path.write_text(json.dumps(run_job))
    environment = os.environ | {
        name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    with (folder / f"{side}.log").open("w") as log:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, SIDES[side], path], env=environment, stdout=log, stderr=log
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{side} failed:\n{(folder / f'{side}.log').read_text()[-3000:]}")
    record_data = json.loads(record.read_text())
    cpu = usage.ru_utime + usage.ru_stime
    peak_mib = max(usage.ru_maxrss / 1024, record_data.get("peak_mib", 0.0))
    return Sample(side, wall, cpu, peak_mib, record_data["spent"], record_data.get("flops"))


def _compare_latents(folder: Path) -> dict[str, float]:
    """Relative distance of the stage-1 latents of both sides; exits if they differ too much."""
    import torch

    ours, theirs = (torch.load(folder / f"{side}.pt").float() for side in ("ladder", "diffusers"))
    if ours.shape != theirs.shape:
        raise SystemExit(f"stage 1: shapes {tuple(ours.shape)} and {tuple(theirs.shape)} differ")
    distance = float((ours - theirs).norm() / theirs.norm())
    if distance > 0.1:
        raise SystemExit(
            f"the stage-1 latents of both sides differ by {distance:.3g}, expected at most 0.1"
        )
    return {"stage_1_relative_distance": distance}


def _probe(path: Path) -> dict[str, Any]:
    """Frames, size and audio streams of a written file."""
    import av

    with av.open(str(path)) as opened:
        video = opened.streams.video[0]
        return {
            "frames": sum(1 for _ in opened.decode(video=0)),
            "size": [video.width, video.height],
            "audio_streams": len(opened.streams.audio),
            "bytes": path.stat().st_size,
        }


def _matmul_rate(threads: int) -> float:
    """GFLOP/s of a large float32 matrix product, best of five."""
    import torch

    torch.set_num_threads(threads)
    n = 1536
    a, b = torch.randn(n, n), torch.randn(n, n)
    a @ b
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - began)
    return 2 * n**3 / best / 1e9


def _report(
    options: argparse.Namespace,
    job: dict[str, Any],
    samples: list[Sample],
    warm: dict[str, Sample],
) -> dict[str, Any]:
    medians: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        own = [s for s in samples if s.side == side]
        medians[side] = {
            "wall_s": statistics.median(s.wall_s for s in own),
            "best_wall_s": min(s.wall_s for s in own),
            "cpu_s": statistics.median(s.cpu_s for s in own),
            "peak_mib": statistics.median(s.peak_mib for s in own),
            "gflop": (warm[side].flops or 0) / 1e9,
            "spent": {
                name: [statistics.median(s.spent[name][i] for s in own) for i in (0, 1)]
                for name in own[0].spent
            },
        }
    ours, theirs = medians["ladder"], medians["diffusers"]
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "load_at_end": os.getloadavg()[0],
        "job": {k: v for k, v in job.items() if k != "models"},
        "medians": medians,
        "ratio": {
            name: ours[name] / theirs[name]
            for name in ("wall_s", "best_wall_s", "cpu_s", "peak_mib")
        },
        "samples": [asdict(sample) for sample in samples],
    }


def _print_report(report: dict[str, Any]) -> None:
    rate = report["matmul_gflops"]
    for side, medians in report["medians"].items():
        achieved = medians["gflop"] / medians["wall_s"]
        _print_line(
            f"{side:10} {medians['wall_s']:6.2f} s (best {medians['best_wall_s']:.2f}, "
            f"processor {medians['cpu_s']:.2f})  "
            f"{medians['peak_mib']:6.0f} MiB  {medians['gflop']:.0f} GFLOP at "
            f"{achieved:.1f} GFLOP/s, "
            f"{achieved / rate:.0%} of the matmul rate {rate:.0f}"
        )
        for name, (wall, processor) in medians["spent"].items():
            _print_line(f"  {wall:7.2f} s  {processor:7.2f} s processor  {name}")
    ratio = report["ratio"]
    is_met = all(ratio[name] <= GOAL for name in ("wall_s", "peak_mib"))
    _print_line(
        f"ratio      {ratio['wall_s']:.2f} of the time ({ratio['cpu_s']:.2f} processor time), "
        f"{ratio['peak_mib']:.2f} of the peak memory "
        f"(goal {GOAL}: {'met' if is_met else 'not met'}); stage-1 latents agree to "
        f"{report['agreement']['stage_1_relative_distance']:.1e}"
    )


def _line(sample: Sample) -> str:
    return (
        f"{sample.side} {sample.wall_s:.2f} s ({sample.cpu_s:.2f} s processor), "
        f"{sample.peak_mib:.0f} MiB"
    )


def _print_line(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
