"""The multi-stage guide's claims, tested: one command writes docs/laboratory/claims.md.

    python benchmarks/claims.py                                   # pocket model, 24 prompts
    python benchmarks/claims.py --models ~/ComfyUI/models --preset balanced --size 1280x704
    python benchmarks/claims.py --page-only                       # the page from the numbers

Every prompt gets one draft, from which all arms are made, so that all comparisons are paired. Clips
are measured in memory and never encoded. After each prompt its numbers are in the raw file (--raw,
else beside the page); the same command goes on with the prompts that are missing. Other models,
sizes or settings start anew. Prompts are one a line, # for comments.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import claims_page
import cv2
import numpy as np
import torch
from claims_page import BASE_ARM, DENOISE, Arm
from numpy.typing import NDArray

from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.drafts.seeds import read_prompts
from latent_ladder.errors import LadderError
from latent_ladder.memory.planner import MemoryPlan
from latent_ladder.metrics.measure import compare_clips
from latent_ladder.metrics.video import ClipMeter
from latent_ladder.models.device import choose_runtime
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.models.video_vae.vae import decode_video, load_video_vae
from latent_ladder.pipeline.model_runner import ModelRunner
from latent_ladder.pipeline.plan import PlannedStage, RunPlan
from latent_ladder.pipeline.run import (
    Prepared,
    RunOptions,
    default_preset,
    execute,
    fit_memory,
    policy_of,
    prepare,
)
from latent_ladder.pipeline.run_session import MEMORY_NAMES
from latent_ladder.pipeline.stages.decoding import DecodeJob, decode_draft_frames, decode_frames
from latent_ladder.pipeline.stages.stage_job import StageJob
from latent_ladder.pipeline.stages.table import STAGES
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.storage.artifact_store import Store, artefact_key
from latent_ladder.sweeps.sweep_plan import Point, plan_points

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "laboratory" / "claims.md"
VERSION = 1
REFINE_STEPS = 5
"""Stage-2 steps where the preset has a fixed list: whole steps then meet every share closely."""
POCKET_FRAMES = 17
CHECK_EVERY = 7
Frames = NDArray[np.uint8]


@dataclass
class Made:
    """An artefact in memory, and what it took: seconds of processor and of clock, peak bytes."""

    tensors: dict[str, torch.Tensor]
    cpu_s: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass
class Bench:
    """Makes latents and frames of any plan with one loaded transformer; shares by artefact key."""

    prepared: Prepared
    points: Sequence[Point]
    device: str
    made: dict[str, Made] = field(default_factory=dict)
    memories: dict[str, MemoryPlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        runtime, memory = choose_runtime(self.device), self.prepared.memory
        policy = policy_of(self.prepared.request, self.prepared.options)
        self.runner = ModelRunner(runtime, memory.budget, policy)
        texts = [s.text for p in self.points for s in p.stages if s.kind == "prompt"]
        self.contexts: dict[str, Conditioning | None] = dict.fromkeys(texts)

    def memory(self, plan: RunPlan) -> MemoryPlan:
        """The memory plan of a run plan, computed once so that it is not part of any time."""
        if plan.run_key not in self.memories:
            device = self.runner.device.type
            self.memories[plan.run_key] = fit_memory(plan, self.prepared.options, device)
        return self.memories[plan.run_key]

    def latents(self, plan: RunPlan, stage: PlannedStage) -> Made:
        """What a stage makes, its inputs first; each artefact once."""
        if stage.key not in self.made:
            inputs = [self.latents(plan, plan.stage(key)).tensors for key in stage.inputs]
            self.memory(plan)
            self.made[stage.key] = self.timed(lambda: self.run_stage(plan, stage, inputs))
        return self.made[stage.key]

    def run_stage(
        self, plan: RunPlan, stage: PlannedStage, inputs: Sequence[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        job = StageJob(stage, plan, self.runner, tuple(inputs), self.contexts, warn=_warn)
        memory = self.memory(plan).of(MEMORY_NAMES.get(stage.kind, stage.name))
        return STAGES[stage.kind](job, memory)[0]

    def timed(self, work: Callable[[], dict[str, torch.Tensor]]) -> Made:
        self.runner.start_measuring()
        cpu, clock = time.process_time(), time.monotonic()
        tensors = work()
        cpu, clock = time.process_time() - cpu, time.monotonic() - clock
        return Made(tensors, cpu, clock, self.runner.peak_bytes())

    def frames(self, plan: RunPlan, latents: dict[str, torch.Tensor]) -> Frames:
        """All frames of the clip."""
        job = DecodeJob(plan, self.runner, self.memory(plan).of("decode"))
        return np.concatenate(list(decode_frames(job, latents["video"])))

    def draft_frames(self, plan: RunPlan, latents: dict[str, torch.Tensor]) -> Frames:
        """All frames of latents at a resolution below the clip's."""
        job = DecodeJob(plan, self.runner, self.memory(plan).of("decode"))
        return np.concatenate(list(decode_draft_frames(job, latents["video"])))

    def forget(self) -> None:
        """Drop everything but encoded prompts."""
        prompts = {s.key for p in self.points for s in p.stages if s.kind == "prompt"}
        self.made = {key: made for key, made in self.made.items() if key in prompts}


def arms(request: Request) -> Iterator[tuple[Arm, Request]]:
    """Every clip that is made of one prompt."""
    fields = request.to_dict()

    def with_sets(*sets: str) -> Request:
        return Request.from_dict(apply_sets(fields, sets))

    for share in DENOISE:
        yield f"denoise {share:g}", with_sets(f"refine.denoise={share}")
    base = f"refine.denoise={BASE_ARM}"
    yield "other seed", with_sets(base, f"refine.seed={request.seed + 1000}")
    steps = 2 * len(request.sigmas(0)) - 2
    yield "twice the steps", with_sets("refine.denoise=0.35", f"base.steps={steps}")
    single = [s for s in fields["stages"] if s["kind"] == "base"]
    yield "single pass", Request.from_dict({**fields, "stages": single})


def measured(frames: Frames, fps: float) -> dict[str, Any]:
    """The clip's own numbers."""
    meter = ClipMeter(fps, check_every=CHECK_EVERY)
    for frame in frames:
        meter.add(frame)
    found = meter.result()
    names = ("motion", "detail", "flicker", "warping_error", "color_drift", "seam_energy")
    return {name: getattr(found, name) for name in names}


def against(draft: Frames, frames: Frames, fps: float) -> dict[str, Any]:
    """The numbers of a clip against a draft."""
    found = compare_clips(draft, frames, fps)
    names = ("motion_kept", "detail_added_db", "structure_similarity", "color_drift")
    return {name: getattr(found, name) for name in names}


def row_of(bench: Bench, points: dict[Arm, Point]) -> dict[str, Any]:
    """All numbers of one prompt."""
    first = points[f"denoise {BASE_ARM:g}"]
    plan, fps = first.plan, float(first.plan.request.fps)
    if first.draft is None:
        raise LadderError("the preset has no refine stage")
    up = bench.latents(plan, first.draft)
    row: dict[str, Any] = {"arms": {}}
    for point in points.values():
        bench.latents(point.plan, point.plan.latents)
    pixel, took = _pixel_arm(bench, plan)
    bench.runner.release()
    draft = bench.draft_frames(plan, up.tensors)
    base = next(s for s in plan.stages if s.kind == "base")
    small = bench.draft_frames(plan, bench.made[base.key].tensors)
    row["draft"] = measured(draft, fps)
    for arm, point in points.items():
        clock, cpu = time.monotonic(), time.process_time()
        frames = bench.frames(point.plan, bench.made[point.plan.latents.key].tensors)
        numbers = measured(frames, fps) | _cost(bench, point, clock, cpu)
        if arm != "single pass":
            numbers["against"] = against(draft, frames, fps)
        if arm == f"denoise {BASE_ARM:g}":
            numbers["against stage 1"] = against(small, frames, fps)
            later = [s for s in point.plan.stages if s.kind in ("upsample", "refine")]
            numbers["stage_2_seconds"] = sum(bench.made[s.key].seconds for s in later)
            numbers["stage_2_cpu_s"] = sum(bench.made[s.key].cpu_s for s in later)
        row["arms"][arm] = numbers
    frames = bench.frames(plan, pixel)
    numbers = measured(frames, fps) | took
    row["arms"]["pixel upscale"] = numbers | {"against stage 1": against(small, frames, fps)}
    return row


def _cost(bench: Bench, point: Point, clock: float, cpu: float) -> dict[str, float]:
    """What the latents of a clip and its decode took, prompts left out: they are the same."""
    stages = [bench.made[s.key] for s in point.plan.stages if s.kind != "prompt"]
    return {
        "cpu_s": sum(m.cpu_s for m in stages) + time.process_time() - cpu,
        "seconds": sum(m.seconds for m in stages) + time.monotonic() - clock,
        "denoise_s": sum(m.seconds for m in stages),
        "denoise_peak": max(m.peak_bytes for m in stages),
    }


def _pixel_arm(bench: Bench, plan: RunPlan) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The refine stage from a draft that was decoded, enlarged with Lanczos and encoded again."""
    refine = next(s for s in plan.stages if s.kind == "refine")
    base = next(s for s in plan.stages if s.kind == "base")
    if refine.resolution is None:
        raise LadderError("the refine stage has no canvas")
    began, cpu = time.monotonic(), time.process_time()
    runtime = bench.runner.runtime
    vae = load_video_vae(plan.models.video_vae, device=runtime.device, dtype=runtime.dtype)
    latents = bench.made[base.key].tensors
    size = refine.resolution.width, refine.resolution.height
    decoded = np.concatenate(list(decode_video(latents["video"].to(vae.device), vae)))
    large = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_LANCZOS4) for f in decoded])
    encoded = {**latents, "video": vae.encode(large).float().cpu()}
    contexts = [bench.made[key].tensors for key in refine.inputs[1:]]
    found = bench.run_stage(plan, refine, [encoded, *contexts])
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    return found, {"stage_2_seconds": seconds, "stage_2_cpu_s": cpu}


def _warn(code: str, message: str) -> None:
    print(f"warning: {code}: {message}", file=sys.stderr)


# --- in processes of their own -------------------------------------------------------------------


def alone(request: Request, args: argparse.Namespace) -> dict[str, float]:
    """Make one clip in a process of its own: seconds and the peak of memory of the whole of it."""
    command = [sys.executable, __file__, "--alone", request.to_json()]
    command += ["--device", args.device, *(w for f in args.models for w in ("--models", str(f)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LadderError(f"a clip in a process of its own failed: {done.stderr[-800:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def run_alone(text: str, args: argparse.Namespace) -> None:
    """The other end of :func:`alone`."""
    with tempfile.TemporaryDirectory() as folder:
        library, store = scan(model_folders(args.models)), Store(Path(folder) / "store")
        prepared = prepare(Request.from_json(text), library, store, None, args.device)
        options = RunOptions(device=args.device, measure=False)
        cpu, clock = time.process_time(), time.monotonic()
        result = execute(prepared, Path(folder) / "clip.mp4", options)
        body = {
            "cpu_s": time.process_time() - cpu,
            "seconds": time.monotonic() - clock,
            "peak_bytes": max(s.peak_memory_bytes or 0 for s in result.stages),
        }
    print(json.dumps(body))


# --- the run -------------------------------------------------------------------------------------


def planned(prompt: str, number: int, args: argparse.Namespace) -> dict[Arm, Request]:
    """The requests of all arms of a prompt."""
    library = scan(model_folders(args.models))
    preset = args.preset or default_preset(library)
    changes: dict[str, Any] = {"prompt": prompt, "seed": args.seed + number}
    if args.size:
        width, height = args.size.lower().split("x")
        changes |= {"width": int(width), "height": int(height)}
    frames = args.frames or (POCKET_FRAMES if preset == "pocket" else None)
    changes |= {"frames": frames} if frames else {}
    fields = Request.from_preset(preset, **changes).to_dict()
    refine = next((s for s in fields["stages"] if s["kind"] == "refine"), None)
    if refine is None or sum(s["kind"] == "refine" for s in fields["stages"]) != 1:
        raise LadderError(f"preset {preset} has not exactly one refine stage", "try balanced")
    if "schedule" not in refine or args.refine_steps:
        fields = apply_sets(fields, [f"refine.steps={args.refine_steps or REFINE_STEPS}"])
    return dict(arms(Request.from_dict(fields)))


def fingerprint(prepared: Prepared, requests: dict[Arm, Request]) -> str:
    """Names the models and settings: rows of others do not belong to this page."""
    fields = {
        a: {k: v for k, v in r.to_dict().items() if k != "prompt"} for a, r in requests.items()
    }
    models = prepared.plan.models
    ids = [models.transformer.id, models.video_vae.id, *(c.id for c in models.upsamplers.values())]
    return artefact_key("claims", VERSION, fields, [], ids)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make and measure what the raw file lacks."""
    library = scan(model_folders(args.models))
    is_pocket = (args.preset or default_preset(library)) == "pocket"
    listed = HERE / ("claims_pocket.txt" if is_pocket else "claims_world.txt")
    prompts = read_prompts(args.prompts or listed)[: args.count]
    tables = [planned(prompt, n, args) for n, prompt in enumerate(prompts)]
    first = tables[0][f"denoise {BASE_ARM:g}"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(first, library, Store(Path(folder)), None, args.device)
        body = _started(args, prepared, tables[0], is_pocket)
        _processes(body, tables, args)
        todo = [(p, t) for p, t in zip(prompts, tables, strict=True) if p not in body["rows"]]
        planned_points = [
            plan_points(prepared, [({"arm": arm}, request) for arm, request in table.items()])
            for _, table in todo
        ]
        everything = [point for points in planned_points for point in points]
        bench = Bench(prepared, everything, args.device) if todo else None
        began = time.monotonic()
        for n, ((prompt, table), points) in enumerate(zip(todo, planned_points, strict=True), 1):
            if bench is None:
                break
            cpu = time.process_time()
            try:
                row = row_of(bench, dict(zip(table, points, strict=True)))
            except LadderError as error:
                _warn("left out", f"{prompt!r}: {error.message}")
                continue
            finally:
                bench.forget()
            body["rows"][prompt] = row | {"cpu_s": time.process_time() - cpu}
            _save(args.raw, body)
            each = (time.monotonic() - began) / n
            left = each * (len(todo) - n)
            print(
                f"{len(body['rows'])}/{len(prompts)} prompts, {each:.0f} s each "
                f"({body['rows'][prompt]['cpu_s']:.0f} s of processor), {left / 60:.1f} min left",
                flush=True,
            )
    rows = {p: body["rows"][p] for p in prompts if p in body["rows"]}
    if not rows:
        raise LadderError("no prompt could be made", "see the warnings above")
    found: dict[str, Any] = _rounded({**body, "rows": rows})  # as --page-only reads it
    return found


def _processes(
    body: dict[str, Any], tables: Sequence[dict[Arm, Request]], args: argparse.Namespace
) -> None:
    """Two-stage and single pass in processes of their own, before anything is held here."""
    for n, table in enumerate(tables[: args.alone_count]):
        if len(body["alone"]) > n:
            continue
        arms_alone = (f"denoise {BASE_ARM:g}", "single pass")
        try:
            pair = {arm: alone(table[arm], args) for arm in arms_alone}
        except LadderError as error:
            _warn("left out", error.message)
            return
        body["alone"].append(pair)
        _save(args.raw, body)
        print(f"{n + 1}/{args.alone_count} pairs in processes of their own", flush=True)


def _started(
    args: argparse.Namespace, prepared: Prepared, table: dict[Arm, Request], is_pocket: bool
) -> dict[str, Any]:
    """The raw file's body if it belongs to these models and settings, else a new one."""
    request = prepared.request
    own = fingerprint(prepared, table)
    body: dict[str, Any] = json.loads(args.raw.read_text("utf-8")) if args.raw.exists() else {}
    if body.get("fingerprint") == own:
        return body
    refine = next(i for i, stage in enumerate(request.stages) if stage.kind == "refine")
    starts = {a: round(r.sigmas(refine)[0], 4) for a, r in table.items() if len(r.stages) > refine}
    resolutions = request.resolutions
    return {
        "fingerprint": own,
        "is_pocket": is_pocket,
        "preset": request.preset,
        "size": [request.width, request.height],
        "stage_1": [resolutions[0].width, resolutions[0].height],
        "frames": request.frames,
        "fps": float(request.fps),
        "steps": [len(request.sigmas(0)) - 1, len(request.sigmas(refine)) - 1],
        "start_sigmas": starts,
        "device": choose_runtime(args.device).device.type,
        "made": time.strftime("%Y-%m-%d"),
        "alone": [],
        "rows": {},
    }


def _save(path: Path, body: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(_rounded(body), ensure_ascii=False, separators=(",", ":")) + "\n")
    part.replace(path)


def _rounded(value: Any) -> Any:
    """Five digits are more than any of the numbers means."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, default=PAGE, help=f"the page ({PAGE.name})")
    parser.add_argument("--raw", type=Path, help="the numbers, else the page's name with .json")
    parser.add_argument("--page-only", action="store_true", help="write the page from the numbers")
    parser.add_argument("--models", type=Path, action="append", default=[], help="a models/ folder")
    parser.add_argument("--preset", help="a two-stage preset, else that of the models")
    parser.add_argument("--size", help="WIDTHxHEIGHT, else the preset's")
    parser.add_argument("--frames", type=int, help="8k+1, else the preset's (pocket: 17)")
    parser.add_argument("--prompts", type=Path, help="a file with one prompt a line")
    parser.add_argument("--count", type=int, default=24, help="how many prompts")
    parser.add_argument("--refine-steps", type=int, help="steps of stage 2")
    parser.add_argument("--alone-count", type=int, default=3, help="pairs in own processes")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.raw = args.raw or args.write.with_suffix(".json")
    return args


def main() -> None:
    """Run, and write the page."""
    args = parsed()
    if args.alone is not None:
        run_alone(args.alone, args)
        return
    try:
        body = json.loads(args.raw.read_text("utf-8")) if args.page_only else run(args)
    except LadderError as error:
        sys.exit(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
    args.write.write_text(claims_page.page(body), "utf-8")
    print(args.write)


if __name__ == "__main__":
    main()
