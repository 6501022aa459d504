"""Simulated memory of whole jobs of LTX-2.3 on common GPUs, next to the plan.

    python benchmarks/memory_simulation.py                    # all 420 jobs, about an hour
    python benchmarks/memory_simulation.py --precision fp8 --card 16 --size 1080p
    python benchmarks/memory_simulation.py --write      # writes docs/explanation/memory.md

The product's own code runs on tensors that say ``cuda`` and have no data (tests/pretended), with
files of the published names, shapes and dtypes. All 48 blocks are loaded, placed and streamed as
planned; three of them compute in each of two forwards per stage, which has the same peak as all of
them (tests/pretended/test_real_size.py).

A job is simulated in four parts: sampling (images, base, upsample, refine: one run, with the blocks
that change places in between), prompt, sound and decode. Before and after each part nothing is on
the card, which is checked. Parts of jobs whose decisions are the same are simulated once: the plan
of a card of 48 GB is often that of 80 GB. Parts are kept in memory_simulation.json under a hash of
the code that runs in them, so that an interrupted run goes on; plans are made anew each time. Not
simulated: memory that cuDNN takes for itself.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from memory_simulation_page import write_page  # noqa: E402
from pretended.allocator import peak_expandable  # noqa: E402
from pretended.real_job import ALL_KINDS, JobResult, RealJob, plan_jobs, simulate  # noqa: E402

from latent_ladder.memory.planner import MemoryPlan, StageMemory  # noqa: E402
from latent_ladder.pipeline.run_session import MEMORY_NAMES  # noqa: E402

RESULTS = Path(__file__).with_name("memory_simulation.json")
PRECISIONS = ("bf16", "fp8", "nvfp4", "q8_0", "q4_k_m")
CARDS = (8, 12, 16, 24, 32, 48, 80)
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080), "1440p": (2560, 1440)}
FRAMES = (121, 241)
INPUTS = {"text": (False, False), "LoRA+image": (True, True)}
PARTS = {
    "prompt": frozenset({"prompt"}),
    "sampling": frozenset({"images", "base", "upsample", "refine"}),
    "sound": frozenset({"sound"}),
    "decode": frozenset({"decode"}),
}
"""Kinds of stage that each part of a job runs."""
EVERY_PART = (
    "src/latent_ladder/models/weights", "src/latent_ladder/latents",
    "src/latent_ladder/pipeline/model_runner.py", "tests/pretended/ghost.py",
    "tests/pretended/placement.py", "tests/helpers/true_size.py",
    "tests/helpers/checkpoint_layouts.py",
)  # fmt: skip
RUN_BY = {
    "prompt": ("src/latent_ladder/models/text_encoder",),
    "sampling": (
        "src/latent_ladder/models/transformer", "src/latent_ladder/models/lora",
        "src/latent_ladder/models/latent_upsampler", "src/latent_ladder/sampling",
        "src/latent_ladder/pipeline/stages/denoising.py",
        "src/latent_ladder/pipeline/stages/latent_upsampling.py",
        "src/latent_ladder/pipeline/stages/input_encoding.py",
    ),
    "sound": (
        "src/latent_ladder/models/audio_vae", "src/latent_ladder/models/audio_chunks.py",
        "src/latent_ladder/pipeline/stages/audio_decoding.py",
    ),
    "decode": (
        "src/latent_ladder/models/video_vae", "src/latent_ladder/models/network_configs.py",
        "src/latent_ladder/models/host_frames.py", "src/latent_ladder/pipeline/stages/decoding.py",
    ),
}  # fmt: skip
"""Code that runs in a part; stored results of another version are simulated again. Cost model and
planner are not among it: what they decide is part of a part's name."""
LEFT_OVER = 64 * 2**20
"""Bytes that a part may leave on the card: its own results."""
Parts = dict[str, dict[str, Any]]
Axes = dict[str, Any]


@lru_cache
def code_version(kind: str) -> str:
    """Hash of the code that runs in a part of a kind."""
    found = hashlib.sha256()
    for name in (*EVERY_PART, *RUN_BY[kind]):
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()[:16]


def jobs(layers: int = 48) -> Iterator[tuple[Axes, RealJob]]:
    """The axes of every job, and the job; ``card`` is one of them."""
    for frames, inputs, precision, size, card in itertools.product(
        FRAMES, INPUTS, PRECISIONS, SIZES, CARDS
    ):
        lora, image = INPUTS[inputs]
        axes = {
            "precision": precision, "size": size, "frames": frames, "inputs": inputs, "card": card,
            "blocks": layers,
        }  # fmt: skip
        yield axes, RealJob(precision, layers, SIZES[size], frames, lora=lora, image=image)


def part_names(axes: Axes, plan: MemoryPlan) -> dict[str, str]:
    """A name for each part of a job that says all that its simulation depends on."""
    where = f"{axes['size']}, {axes['frames']} frames"
    sampling = [s for s in plan.stages if s.cost.kind in ("base", "upsample", "refine")]
    decisions = "; ".join(f"{s.cost.name}: {_decision(s)}" for s in sampling)
    whole = f"{axes['precision']}, {where}, {axes['inputs']}, {axes['blocks']} blocks"
    return {
        "prompt": f"prompt, {axes['precision']}",
        "sampling": f"{whole}; {decisions}",
        "sound": f"sound, {axes['precision']}, {axes['frames']} frames",
        "decode": f"decode, {where}, {_decision(plan.of('decode'))}",
    }


def _decision(stage: StageMemory) -> str:
    plan = stage.offload_plan
    if stage.cost.kind == "upsample":
        return "next to the transformer" if stage.kept_bytes else "alone"
    return f"{plan}, chunks of {plan.chunk_tokens}" if stage.cost.kind != "decode" else str(plan)


def part(result: JobResult) -> dict[str, Any]:
    """Results of a part as plain data, in bytes. Raises if it leaves something on the card."""
    if result.left > LEFT_OVER:
        raise RuntimeError(f"{result.left} bytes stay on the card after {result.stages[-1].name}")
    return {
        "needed": peak_expandable(result.log.trace).needed,
        "stages": {
            stage.name: {
                "peak": stage.peak,
                "before": stage.before,
                "flops": stage.flops,
            }
            for stage in result.stages
        },
    }


def row(axes: Axes, plan: MemoryPlan, parts: Parts) -> dict[str, Any] | None:
    """One job: simulated and planned bytes of each stage; ``None`` while a part is missing."""
    found = [parts.get(name) for name in part_names(axes, plan).values()]
    if any(one is None for one in found):
        return None
    stages = {}
    for one in found:
        for name, stage in (one or {})["stages"].items():
            kind = name.split()[0]  # images and videos are named with their size
            planned = plan.of(MEMORY_NAMES.get(kind, name))
            stages[name] = {
                "simulated": stage["peak"],
                "planned": planned.peak_bytes,
                "before": stage["before"],
            }
    return {
        **axes,
        "budget": plan.budget.device_bytes,
        "needed": max((one or {})["needed"] for one in found),
        "resident": [plan.of(name).offload_plan.resident for name in ("base", "refine")],
        "stages": stages,
    }


def read_results() -> dict[str, Any]:
    """The stored parts and rows; parts of other code are left out, their rows until made anew."""
    found: dict[str, Any] = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    parts = found.get("parts", {}).items()
    kept = {name: one for name, one in parts if one["code"] == code_version(one["part"])}
    return {"parts": kept, "rows": found.get("rows", [])}


def save(results: dict[str, Any]) -> None:
    """Write parts and rows, in one step."""
    fresh = RESULTS.with_suffix(".new")
    fresh.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8")
    fresh.replace(RESULTS)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for axis in ("precision", "size", "inputs"):
        parser.add_argument(f"--{axis}", action="append")
    for axis in ("card", "frames"):
        parser.add_argument(f"--{axis}", action="append", type=int)
    parser.add_argument("--blocks", type=int, default=48, help="a smaller model, for a quick look")
    parser.add_argument("--write", action="store_true", help="write the page and simulate nothing")
    parser.add_argument("--plans", action="store_true", help="renew the plans, simulate nothing")
    asked = parser.parse_args()
    results = read_results()
    if asked.write:
        write_page(results["rows"])
        return
    names = ("precision", "size", "inputs", "card", "frames")
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            (axes, job)
            for axes, job in jobs(asked.blocks)
            if all(getattr(asked, k) is None or axes[k] in getattr(asked, k) for k in names)
        ]
        simulate_all(chosen, Path(folder), results, only_plans=asked.plans)
    save(results)


def simulate_all(
    chosen: list[tuple[Axes, RealJob]], folder: Path, results: dict[str, Any], *, only_plans: bool
) -> None:
    """Plan all jobs, simulate the parts that are missing, and make the rows anew."""
    parts: Parts = results["parts"]
    plans = plan_jobs([(job, axes["card"]) for axes, job in chosen], folder)
    planned = list(zip(chosen, plans, strict=True))
    missing: dict[str, tuple[RealJob, int, str]] = {}
    for (axes, job), plan in planned:
        if isinstance(plan, MemoryPlan):
            for kind, name in part_names(axes, plan).items():
                if name not in parts:
                    missing.setdefault(name, (job, axes["card"], kind))
    for number, (name, (job, card, kind)) in enumerate(missing.items(), 1):
        if only_plans:
            break
        print(f"{number} of {len(missing)}: {name}", flush=True)
        (result,) = simulate(replace(job, skip=ALL_KINDS - PARTS[kind]), [card], folder)
        parts[name] = part(result) | {"part": kind, "code": code_version(kind)}
        save(results)
    key = ("precision", "size", "frames", "inputs", "card", "blocks")
    rows = {tuple(r[k] for k in key): r for r in results["rows"]}
    for (axes, _), plan in planned:
        if isinstance(plan, str):
            found: dict[str, Any] | None = {**axes, "refused": plan}
        else:
            found = row(axes, plan, parts)
        if found is not None:
            rows[tuple(axes[k] for k in key)] = found
    results["rows"] = list(rows.values())


if __name__ == "__main__":
    main()
