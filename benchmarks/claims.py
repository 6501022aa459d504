"""Test of the multi-stage guide's claims; writes docs/laboratory/claims.md.

    python benchmarks/claims.py                                   # pocket model, 24 prompts
    python benchmarks/claims.py --models ~/ComfyUI/models --preset balanced --size 1280x704
    python benchmarks/claims.py --page-only                       # write the page from the numbers

Every prompt gets one draft, from which all arms are made, so all comparisons are paired. Clips are
measured in memory and never encoded. The numbers of each prompt are written to the raw file (--raw,
by default next to the page); running the same command again continues with the missing prompts.
Other models, sizes or settings start a new file. Prompt files have one prompt per line and #
comments.
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
"""Stage-2 steps for presets with a fixed list, so that whole steps are close to every denoise."""
POCKET_FRAMES = 17
CHECK_EVERY = 7
Frames = NDArray[np.uint8]


@dataclass
class Artefact:
    """Artefact in memory, with its processor seconds, wall seconds and peak bytes."""

    tensors: dict[str, torch.Tensor]
    cpu_s: float = 0.0
    seconds: float = 0.0
    peak_bytes: int = 0


@dataclass
class Bench:
    """Maker of latents and frames of all plans with one loaded transformer; caches artefacts."""

    prepared: Prepared
    points: Sequence[Point]
    device: str
    artefacts: dict[str, Artefact] = field(default_factory=dict)
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

    def latents(self, plan: RunPlan, stage: PlannedStage) -> Artefact:
        """Make the artefact of a stage, its inputs first; each artefact is made once."""
        if stage.key not in self.artefacts:
            inputs = [self.latents(plan, plan.stage(key)).tensors for key in stage.inputs]
            self.memory(plan)
            self.artefacts[stage.key] = self.make_timed(lambda: self.run_stage(plan, stage, inputs))
        return self.artefacts[stage.key]

    def run_stage(
        self, plan: RunPlan, stage: PlannedStage, inputs: Sequence[dict[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        job = StageJob(stage, plan, self.runner, tuple(inputs), self.contexts, warn=_warn)
        memory = self.memory(plan).of(MEMORY_NAMES.get(stage.kind, stage.name))
        return STAGES[stage.kind](job, memory)[0]

    def make_timed(self, work: Callable[[], dict[str, torch.Tensor]]) -> Artefact:
        self.runner.start_measuring()
        cpu, clock = time.process_time(), time.monotonic()
        tensors = work()
        cpu, clock = time.process_time() - cpu, time.monotonic() - clock
        return Artefact(tensors, cpu, clock, self.runner.peak_bytes())

    def frames(self, plan: RunPlan, latents: dict[str, torch.Tensor]) -> Frames:
        """All frames of the clip."""
        job = DecodeJob(plan, self.runner, self.memory(plan).of("decode"))
        return np.concatenate(list(decode_frames(job, latents["video"])))

    def draft_frames(self, plan: RunPlan, latents: dict[str, torch.Tensor]) -> Frames:
        """All frames of latents at a resolution below the clip's."""
        job = DecodeJob(plan, self.runner, self.memory(plan).of("decode"))
        return np.concatenate(list(decode_draft_frames(job, latents["video"])))

    def drop_artefacts(self) -> None:
        """Delete all artefacts except encoded prompts."""
        prompts = {s.key for p in self.points for s in p.stages if s.kind == "prompt"}
        self.artefacts = {key: made for key, made in self.artefacts.items() if key in prompts}


def arms(request: Request) -> Iterator[tuple[Arm, Request]]:
    """Yield the arms of one prompt: name and request of each clip."""
    fields = request.to_dict()

    def with_sets(*sets: str) -> Request:
        return Request.from_dict(apply_sets(fields, sets))

    for share in DENOISE:
        yield f"denoise {share:g}", with_sets(f"refine.denoise={share}")
    base = f"refine.denoise={BASE_ARM}"
    yield "other seed", with_sets(base, f"refine.seed={request.seed + 1000}")
    steps = 2 * len(request.resolved.stages[0].sigmas) - 2
    yield "twice the steps", with_sets("refine.denoise=0.35", f"base.steps={steps}")
    single = [s for s in fields["stages"] if s["kind"] == "base"]
    yield "single pass", Request.from_dict({**fields, "stages": single})


def measure_clip_metrics(frames: Frames, fps: float) -> dict[str, Any]:
    """Measure the metrics of one clip."""
    meter = ClipMeter(fps, check_every=CHECK_EVERY)
    for frame in frames:
        meter.add(frame)
    found = meter.result()
    names = ("motion", "detail", "flicker", "warping_error", "color_drift", "seam_energy")
    return {name: getattr(found, name) for name in names}


def compare_with_draft(draft: Frames, frames: Frames, fps: float) -> dict[str, Any]:
    """Compare a clip with its draft."""
    found = compare_clips(draft, frames, fps)
    names = ("motion_kept", "detail_added_db", "structure_similarity", "color_drift")
    return {name: getattr(found, name) for name in names}


def measure_prompt(bench: Bench, points: dict[Arm, Point]) -> dict[str, Any]:
    """Make and measure all arms of one prompt."""
    first = points[f"denoise {BASE_ARM:g}"]
    plan, fps = first.plan, float(first.plan.request.fps)
    if first.draft is None:
        raise LadderError("the preset has no refine stage")
    up = bench.latents(plan, first.draft)
    row: dict[str, Any] = {"arms": {}}
    for point in points.values():
        bench.latents(point.plan, point.plan.latents)
    pixel, took = _make_pixel_arm(bench, plan)
    bench.runner.release()
    draft = bench.draft_frames(plan, up.tensors)
    base = next(s for s in plan.stages if s.kind == "base")
    small = bench.draft_frames(plan, bench.artefacts[base.key].tensors)
    row["draft"] = measure_clip_metrics(draft, fps)
    for arm, point in points.items():
        clock, cpu = time.monotonic(), time.process_time()
        frames = bench.frames(point.plan, bench.artefacts[point.plan.latents.key].tensors)
        numbers = measure_clip_metrics(frames, fps) | _cost(bench, point, clock, cpu)
        if arm != "single pass":
            numbers["against"] = compare_with_draft(draft, frames, fps)
        if arm == f"denoise {BASE_ARM:g}":
            numbers["against stage 1"] = compare_with_draft(small, frames, fps)
            later = [s for s in point.plan.stages if s.kind in ("upsample", "refine")]
            numbers["stage_2_seconds"] = sum(bench.artefacts[s.key].seconds for s in later)
            numbers["stage_2_cpu_s"] = sum(bench.artefacts[s.key].cpu_s for s in later)
        row["arms"][arm] = numbers
    frames = bench.frames(plan, pixel)
    numbers = measure_clip_metrics(frames, fps) | took
    row["arms"]["pixel upscale"] = numbers | {
        "against stage 1": compare_with_draft(small, frames, fps)
    }
    return row


def _cost(bench: Bench, point: Point, clock: float, cpu: float) -> dict[str, float]:
    """Cost of a clip's latents and its decoding, without the prompts, which are shared."""
    stages = [bench.artefacts[s.key] for s in point.plan.stages if s.kind != "prompt"]
    return {
        "cpu_s": sum(m.cpu_s for m in stages) + time.process_time() - cpu,
        "seconds": sum(m.seconds for m in stages) + time.monotonic() - clock,
        "denoise_s": sum(m.seconds for m in stages),
        "denoise_peak": max(m.peak_bytes for m in stages),
    }


def _make_pixel_arm(
    bench: Bench, plan: RunPlan
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Run the refine stage on a draft that was decoded, upscaled with Lanczos and encoded again."""
    refine = next(s for s in plan.stages if s.kind == "refine")
    base = next(s for s in plan.stages if s.kind == "base")
    if refine.resolution is None:
        raise LadderError("the refine stage has no canvas")
    began, cpu = time.monotonic(), time.process_time()
    runtime = bench.runner.runtime
    vae = load_video_vae(plan.models.video_vae, device=runtime.device, dtype=runtime.dtype)
    latents = bench.artefacts[base.key].tensors
    size = refine.resolution.width, refine.resolution.height
    decoded = np.concatenate(list(decode_video(latents["video"].to(vae.device), vae)))
    large = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_LANCZOS4) for f in decoded])
    encoded = {**latents, "video": vae.encode(large).float().cpu()}
    contexts = [bench.artefacts[key].tensors for key in refine.inputs[1:]]
    found = bench.run_stage(plan, refine, [encoded, *contexts])
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    return found, {"stage_2_seconds": seconds, "stage_2_cpu_s": cpu}


def _warn(code: str, message: str) -> None:
    print(f"warning: {code}: {message}", file=sys.stderr)


# --- in separate processes -------------------------------------------------------------------


def make_in_process(request: Request, args: argparse.Namespace) -> dict[str, float]:
    """Make one clip in a separate process; returns its seconds and peak memory."""
    command = [sys.executable, __file__, "--alone", request.to_json()]
    command += ["--device", args.device, *(w for f in args.models for w in ("--models", str(f)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LadderError(f"making a clip in a separate process failed: {done.stderr[-800:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def make_and_print(text: str, args: argparse.Namespace) -> None:
    """Make one clip and print its cost; runs in the process started by :func:`make_in_process`."""
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


def arm_requests(prompt: str, number: int, args: argparse.Namespace) -> dict[Arm, Request]:
    """Requests of all arms of a prompt."""
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
        raise LadderError(
            f"preset {preset} does not have one refine stage", "use --preset balanced"
        )
    if "schedule" not in refine or args.refine_steps:
        fields = apply_sets(fields, [f"refine.steps={args.refine_steps or REFINE_STEPS}"])
    return dict(arms(Request.from_dict(fields)))


def fingerprint(prepared: Prepared, requests: dict[Arm, Request]) -> str:
    """Hash of models and settings, to recognise rows that belong to this page."""
    fields = {
        a: {k: v for k, v in r.to_dict().items() if k != "prompt"} for a, r in requests.items()
    }
    models = prepared.plan.models
    ids = [models.transformer.id, models.video_vae.id, *(c.id for c in models.upsamplers.values())]
    return artefact_key("claims", VERSION, fields, [], ids)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Make and measure the prompts that are missing in the raw file."""
    library = scan(model_folders(args.models))
    is_pocket = (args.preset or default_preset(library)) == "pocket"
    listed = HERE / ("claims_pocket.txt" if is_pocket else "claims_world.txt")
    prompts = read_prompts(args.prompts or listed)[: args.count]
    tables = [arm_requests(prompt, n, args) for n, prompt in enumerate(prompts)]
    first = tables[0][f"denoise {BASE_ARM:g}"]
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(first, library, Store(Path(folder)), None, args.device)
        body = _load_rows(args, prepared, tables[0], is_pocket)
        _measure_processes(body, tables, args)
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
                row = measure_prompt(bench, dict(zip(table, points, strict=True)))
            except LadderError as error:
                _warn("left out", f"{prompt!r}: {error.message}")
                continue
            finally:
                bench.drop_artefacts()
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
    found: dict[str, Any] = _round_floats({**body, "rows": rows})  # as --page-only reads it
    return found


def _measure_processes(
    body: dict[str, Any], tables: Sequence[dict[Arm, Request]], args: argparse.Namespace
) -> None:
    """Measure two stages and a single pass in separate processes, before this one loads models."""
    for n, table in enumerate(tables[: args.alone_count]):
        if len(body["alone"]) > n:
            continue
        arms_alone = (f"denoise {BASE_ARM:g}", "single pass")
        try:
            pair = {arm: make_in_process(table[arm], args) for arm in arms_alone}
        except LadderError as error:
            _warn("left out", error.message)
            return
        body["alone"].append(pair)
        _save(args.raw, body)
        print(f"{n + 1}/{args.alone_count} pairs in separate processes", flush=True)


def _load_rows(
    args: argparse.Namespace, prepared: Prepared, table: dict[Arm, Request], is_pocket: bool
) -> dict[str, Any]:
    """Read the raw file if it belongs to these models and settings, otherwise start a new one."""
    request = prepared.request
    own = fingerprint(prepared, table)
    body: dict[str, Any] = json.loads(args.raw.read_text("utf-8")) if args.raw.exists() else {}
    if body.get("fingerprint") == own:
        return body
    refine = next(i for i, stage in enumerate(request.stages) if stage.kind == "refine")
    starts = {
        arm: round(one.resolved.stages[refine].sigmas[0], 4)
        for arm, one in table.items()
        if len(one.stages) > refine
    }
    resolved = request.resolved.stages
    return {
        "fingerprint": own,
        "is_pocket": is_pocket,
        "preset": request.preset,
        "size": [request.width, request.height],
        "stage_1": [resolved[0].resolution.width, resolved[0].resolution.height],
        "frames": request.frames,
        "fps": float(request.fps),
        "steps": [len(resolved[i].sigmas) - 1 for i in (0, refine)],
        "start_sigmas": starts,
        "device": choose_runtime(args.device).device.type,
        "made": time.strftime("%Y-%m-%d"),
        "alone": [],
        "rows": {},
    }


def _save(path: Path, body: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(
        json.dumps(_round_floats(body), ensure_ascii=False, separators=(",", ":")) + "\n"
    )
    part.replace(path)


def _round_floats(value: Any) -> Any:
    """Round all floats to five significant digits."""
    if isinstance(value, dict):
        return {key: _round_floats(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_round_floats(inner) for inner in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, default=PAGE, help=f"the page ({PAGE.name})")
    parser.add_argument(
        "--raw", type=Path, help="file of the numbers; default: the page's name with .json"
    )
    parser.add_argument("--page-only", action="store_true", help="write the page from the numbers")
    parser.add_argument("--models", type=Path, action="append", default=[], help="a models/ folder")
    parser.add_argument("--preset", help="two-stage preset; default: that of the models")
    parser.add_argument("--size", help="WIDTHxHEIGHT; default: the preset's")
    parser.add_argument("--frames", type=int, help="8k+1; default: the preset's (pocket: 17)")
    parser.add_argument("--prompts", type=Path, help="file with one prompt per line")
    parser.add_argument("--count", type=int, default=24, help="number of prompts")
    parser.add_argument("--refine-steps", type=int, help="steps of stage 2")
    parser.add_argument("--alone-count", type=int, default=3, help="pairs in separate processes")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.raw = args.raw or args.write.with_suffix(".json")
    return args


def main() -> None:
    """Run and write the page."""
    args = parse_arguments()
    if args.alone is not None:
        make_and_print(args.alone, args)
        return
    try:
        body = json.loads(args.raw.read_text("utf-8")) if args.page_only else run(args)
    except LadderError as error:
        sys.exit(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
    args.write.write_text(claims_page.page(body), "utf-8")
    print(args.write)


if __name__ == "__main__":
    main()
