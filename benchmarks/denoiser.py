"""Time and memory of the denoiser, compared with diffusers' transformer on the same weights.

``python benchmarks/denoiser.py [--cases pocket wide] [--threads 2] [--rounds 5]``

Cases: a plain forward, a guided step (4 passes: prompt, negative prompt, STG in one block,
modality), and both with a conditioning first frame (per-token noise levels). float32 on the CPU.
Both sides alternate within each round. Reported are medians, and the ratios of medians, of minima
and of minimal processor time, which other processes affect least. Memory is the peak above loaded
weights and inputs, in a new process per side. The roofline line is the rate of the plain forward
relative to that of a matrix product in the same run. Writes
``benchmarks/results/denoiser.json``.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rival import Workload, build_rival, rival_forward, rival_guided_step
from torch import Tensor, nn

from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.sampling.guiders import Guidance

RESULTS = Path(__file__).parent / "results"
GUIDANCE = (3.0, 1.0, 3.0, 0.7)


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison: transformer, latent frames, height, width, audio and text tokens."""

    layers: int
    heads: int
    head_dim: int
    audio_heads: int
    audio_head_dim: int
    frames: int
    height: int
    width: int
    audio: int
    text: int

    @property
    def stg_block(self) -> int:
        """Block for STG, at the same relative depth as block 28 of 48."""
        return self.layers * 28 // 48

    def config(self) -> TransformerConfig:
        """Configuration of a 2.3 transformer of this size."""
        dim, audio_dim = self.heads * self.head_dim, self.audio_heads * self.audio_head_dim
        video = StreamConfig(
            128, 128, self.heads, self.head_dim, 4 * dim, dim, (20.0, 2048.0, 2048.0)
        )
        audio = StreamConfig(
            128, 128, self.audio_heads, self.audio_head_dim, 4 * audio_dim, audio_dim, (20.0,)
        )
        return TransformerConfig(self.layers, video, audio)


CASES: Mapping[str, Case] = {
    "pocket": Case(6, 4, 32, 4, 16, 4, 8, 8, 25, 128),
    "wide": Case(4, 32, 128, 32, 64, 4, 16, 16, 51, 256),
    "medium": Case(6, 16, 64, 16, 32, 4, 16, 16, 51, 256),
}
TASKS = ("forward", "guided", "image_forward", "image_guided")


def workload(case: Case, kept: int = 0) -> Workload:
    """Random latents and text contexts of the case's sizes; ``kept`` tokens are conditioning."""
    torch.manual_seed(1)
    config = case.config()
    tokens = case.frames * case.height * case.width
    texts = [
        torch.randn(1, case.text, dim)
        for dim in (config.video.dim, config.audio.dim, config.video.dim, config.audio.dim)
    ]
    return Workload(
        torch.randn(1, tokens, 128),
        torch.randn(1, case.audio, 128),
        video_positions(case.frames, case.height, case.width, 24),
        audio_positions(case.audio),
        texts[0],
        texts[1],
        texts[2],
        texts[3],
        sigma=0.7,
        kept=kept,
    )


def build(case: Case) -> Transformer:
    """Build our transformer with random weights, none of them zero."""
    model = Transformer(case.config())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("norm.weight"):
                weight.fill_(1)
            else:
                weight.uniform_(-1, 1, generator=generator).mul_((3 / weight.shape[-1]) ** 0.5)
    return model.eval().requires_grad_(False)


def our_tasks(model: Transformer, case: Case) -> dict[str, Callable[[], Tensor]]:
    """Functions that compute one step's packed x0, by name; rotation tables are built before."""
    tasks: dict[str, Callable[[], Tensor]] = {}
    for name in TASKS:
        work = workload(case, case.height * case.width if name.startswith("image") else 0)
        guidance = Guidance()
        if name.endswith("guided"):
            cfg, stg, modality, rescale = GUIDANCE
            guidance = Guidance(cfg, stg, modality, rescale, (case.stg_block,))
        video = DenoiserStream(
            work.video_positions,
            work.video_context,
            work.negative_video_context,
            mask=work.mask,
            guidance=guidance,
        )
        audio = DenoiserStream(
            work.audio_positions,
            work.audio_context,
            work.negative_audio_context,
            guidance=guidance,
        )
        denoiser = Denoiser(model, video, audio)
        x = denoiser.packing.pack(work.video, work.audio)
        tasks[name] = partial(_predict, denoiser, x)
    return tasks


def _predict(denoiser: Denoiser, x: Tensor) -> Tensor:
    return denoiser(x, 0.7, 0).denoised


def rival_tasks(model: nn.Module, case: Case) -> dict[str, Callable[[], Tensor]]:
    """The same functions for diffusers."""

    def run(name: str, work: Workload) -> Tensor:
        with torch.inference_mode():
            if name.endswith("guided"):
                x0 = rival_guided_step(model, work, [case.stg_block], GUIDANCE)
            else:
                v, a = rival_forward(model, work)
                x0 = work.video - v * (work.sigma * work.mask), work.audio - a * work.sigma
            return torch.cat([t.flatten(1) for t in x0], 1)

    tasks: dict[str, Callable[[], Tensor]] = {}
    for name in TASKS:
        work = workload(case, case.height * case.width if name.startswith("image") else 0)
        tasks[name] = partial(run, name, work)
    return tasks


class Seconds(NamedTuple):
    """Duration of one call in wall time and processor time of all threads."""

    wall: float
    cpu: float


def time_call(task: Callable[[], object]) -> Seconds:
    """Time one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    task()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def matmul_rate(case: Case) -> float:
    """FLOP/s of a feed-forward matrix product of this case's size, best of five."""
    tokens, dim = case.frames * case.height * case.width, case.heads * case.head_dim
    a, b = torch.randn(tokens, dim), torch.randn(dim, 4 * dim)
    repeats = max(1, int(2e10 / (8 * tokens * dim**2)))

    def product() -> None:
        for _ in range(repeats):
            torch.mm(a, b)

    product()
    return repeats * 8 * tokens * dim**2 / min(time_call(product).wall for _ in range(5))


def forward_flops(case: Case) -> float:
    """Floating-point operations of one plain forward: matrix products and attention."""
    d, s = case.heads * case.head_dim, case.audio_heads * case.audio_head_dim
    n, m, text = case.frames * case.height * case.width, case.audio, case.text
    linear = n * (4 * d * d + 2 * d * d + 8 * d * d + 2 * d * s + 2 * d * s)
    linear += m * (4 * s * s + 2 * s * s + 8 * s * s + 4 * s * s) + 2 * text * (d * d + s * s)
    attention = 2 * (n * n * d + m * m * s + n * text * d + m * text * s + 2 * n * m * s)
    return 2.0 * case.layers * (linear + attention)


def compare_times(name: str, rounds: int) -> dict[str, Any]:
    """Compare times of both sides in this process, alternating."""
    case = CASES[name]
    ours = build(case)
    sides = {"ours": our_tasks(ours, case), "diffusers": rival_tasks(build_rival(ours), case)}
    report: dict[str, Any] = {}
    rates = [matmul_rate(case)]
    for task in TASKS:
        first = {side: tasks[task]() for side, tasks in sides.items()}
        times: dict[str, list[Seconds]] = {side: [] for side in sides}
        for r in range(rounds):
            for side in sorted(sides, reverse=bool(r % 2)):
                times[side].append(time_call(sides[side][task]))
        report[task] = _summary(times) | {
            "largest_difference": (first["ours"] - first["diffusers"]).abs().max().item()
        }
    rates.append(matmul_rate(case))
    achieved = forward_flops(case) / report["forward"]["ours_min_s"]
    report["roofline"] = {
        "matmul_gflops": max(rates) / 1e9,
        "forward_gflops": achieved / 1e9,
        "share": achieved / max(rates),
    }
    return report


def _summary(times: Mapping[str, list[Seconds]]) -> dict[str, float]:
    report = {}
    for side, samples in times.items():
        walls = [t.wall for t in samples]
        report[f"{side}_s"] = statistics.median(walls)
        report[f"{side}_min_s"] = min(walls)
        report[f"{side}_cpu_s"] = min(t.cpu for t in samples)
    for kind in ("s", "min_s", "cpu_s"):
        report[f"ratio_{kind}"] = report[f"ours_{kind}"] / report[f"diffusers_{kind}"]
    return report


def peak_memory(name: str, side: str, task: str) -> dict[str, float]:
    """Peak resident bytes of the first call in this process, above weights and inputs."""
    case = CASES[name]
    ours = build(case)
    if side == "ours":
        call = our_tasks(ours, case)[task]
    else:
        call = rival_tasks(build_rival(ours), case)[task]
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return {"peak_bytes": _status("VmHWM") - before, "resident_bytes": before}


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def compare_memory(name: str, threads: int) -> dict[str, dict[str, float]]:
    """Compare peak memory, in a new process per side and task."""
    report = {}
    for task in TASKS:
        peaks = {}
        for side in ("ours", "diffusers"):
            command = [sys.executable, __file__, "--threads", str(threads)]
            command += ["--peak", name, side, task]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[side] = json.loads(done.stdout.splitlines()[-1])["peak_bytes"]
        report[task] = {
            "ours_mib": peaks["ours"] / 2**20,
            "diffusers_mib": peaks["diffusers"] / 2**20,
            "memory_ratio": peaks["ours"] / peaks["diffusers"],
        }
    return report


def print_table(results: Mapping[str, dict[str, Any]]) -> None:
    """Print one line per case and task."""
    print(f"{'case':8}{'task':16}{'ours':>9}{'diffusers':>11}{'time':>7}", end="")
    print(f"{'(min)':>8}{'(cpu)':>8}", end="")
    print(f"{'ours MiB':>10}{'MiB':>8}{'memory':>8}")
    for name, result in results.items():
        for task in TASKS:
            t: Mapping[str, float] = result["time"][task]
            m: Mapping[str, float] = result["memory"][task]
            print(
                f"{name:8}{task:16}{t['ours_s']:8.3f}s{t['diffusers_s']:10.3f}s"
                f"{t['ratio_s']:7.2f}{t['ratio_min_s']:8.2f}{t['ratio_cpu_s']:8.2f}"
                f"{m['ours_mib']:10.0f}{m['diffusers_mib']:8.0f}{m['memory_ratio']:8.2f}"
            )
        roof: Mapping[str, float] = result["time"]["roofline"]
        print(
            f"{name:8}plain forward: {roof['forward_gflops']:.0f} of {roof['matmul_gflops']:.0f} "
            f"GFLOP/s ({roof['share']:.0%} of this machine's matrix product)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", default=["pocket", "wide"], choices=sorted(CASES))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", nargs=3, metavar=("CASE", "SIDE", "TASK"), help="internal")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print(json.dumps(peak_memory(*args.peak)))
        return
    results: dict[str, dict[str, Any]] = {}
    for name in args.cases:
        case = CASES[name]
        memory = compare_memory(name, args.threads)
        times = compare_times(name, args.rounds if name != "wide" else max(2, args.rounds // 2))
        results[name] = {"sizes": asdict(case), "time": times, "memory": memory}
        gc.collect()
    print_table(results)
    environment = {
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "torch": torch.__version__,
        "load_average": os.getloadavg()[0],
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "denoiser.json"
    path.write_text(json.dumps({"about": environment, "cases": results}, indent=1) + "\n")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
