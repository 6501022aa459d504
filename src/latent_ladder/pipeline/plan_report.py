"""Report of a plan for ``ladder plan``: sizes, tokens, sigmas, work, files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from latent_ladder.checkpoints.components import Component
from latent_ladder.diagnostics.request_warnings import refine_start
from latent_ladder.latents.shapes import PIXELS_PER_LATENT, duration
from latent_ladder.memory.model_sizes import ModelSizes, sizes_of
from latent_ladder.memory.planner import Machine, MemoryPlan, StageMemory
from latent_ladder.models.text_encoder.tokenizer import prompt_length, text_length
from latent_ladder.pipeline.plan import PlannedStage, RunPlan
from latent_ladder.request.stages import SamplingStage
from latent_ladder.storage.atomic_write import readable_size
from latent_ladder.upscale.upscale_plan import UpscalePlan


def headline(plan: RunPlan, seed: str | None = None) -> str:
    """One line about the clip: size, length, sound, seed, preset, model family.

    ``seed`` replaces the words about the seed.
    """
    request = plan.request
    seconds = float(duration(request.frames, request.fps))
    sound = "no sound" if plan.sound is None else "sound"
    width, height = request.resolved.final_size
    return (
        f"{width}x{height}, {request.frames} frames at {float(request.fps):g} fps "
        f"({seconds:.2f} s), {sound}, {seed or f'seed {request.seed}'}, "
        f"preset {request.preset or '-'}, LTX-{plan.models.family}"
    )


def plan_report(plan: RunPlan, memory: MemoryPlan, machine: Machine | None) -> dict[str, Any]:
    """The plan as plain data; ``machine`` adds the predicted time of each stage.

    ``stages`` holds numbers for programs, ``rows`` the same in short words for a table.
    """
    needs = {stage.cost.name: stage for stage in memory.stages}
    stages = [_stage(plan, stage, needs.get(stage.name), machine) for stage in plan.stages]
    stages.append(_decode(plan, memory.of("decode"), machine))
    if plan.upscale is not None:
        stages.append(_upscale(plan.upscale))
    return {
        "headline": headline(plan),
        "request": plan.request.to_dict(),
        "crop": plan.request.resolved.crop._asdict(),
        "memory": {
            "device": memory.budget.device,
            "budget_bytes": memory.budget.device_bytes,
            "ram_bytes": memory.budget.ram_bytes,
            "peak_bytes": memory.peak_bytes,
        },
        "stages": stages,
        "rows": [_row(stage, plan.request.fps) for stage in stages],
        "models": [
            {"role": role, "file": str(c.file.path), "precision": c.precision, "bytes": c.nbytes}
            for role, c in (*_files(plan).items(), *_upscaler_file(plan))
        ],
    }


def model_sizes(plan: RunPlan, value_bytes: int) -> ModelSizes:
    """Sizes of the models that the plan uses, read from their headers.

    ``value_bytes`` is the width of the numbers computed with.
    """
    parts = dict(_files(plan))
    for stage in plan.stages:
        if stage.loras and stage.position is not None:
            asked = plan.request.stages[stage.position]
            used = (
                [x for x in asked.loras if x.strength] if isinstance(asked, SamplingStage) else []
            )
            for lora, (component, _) in zip(used, stage.loras, strict=True):
                parts[lora.name or "distilled_lora"] = component
    encoder = plan.models.text_encoder
    prompts = [stage.text for stage in plan.stages if stage.kind == "prompt"]
    tokens = tuple(prompt_length(text, encoder) for text in prompts)
    return replace(sizes_of(parts, value_bytes, text_length(encoder)), prompt_tokens=tokens)


def _files(plan: RunPlan) -> Mapping[str, Component]:
    models = plan.models
    parts = {
        "transformer": models.transformer,
        "connectors": models.connectors,
        "text_projection": models.text_projection,
        "text_encoder": models.text_encoder,
        "video_vae": models.video_vae,
        "audio_vae": models.audio_vae,
        "vocoder": models.vocoder,
        "video_decoder": models.video_decoder,
    }
    for stage in plan.stages:
        if stage.upsampler is not None:
            parts["latent_upsampler"] = stage.upsampler
        for lora, _ in stage.loras:
            is_distilled = lora is models.loras.get("distilled_lora")
            parts["distilled_lora" if is_distilled else f"lora {lora.file.path.name}"] = lora
    return {role: part for role, part in parts.items() if part is not None}


def _upscaler_file(plan: RunPlan) -> list[tuple[str, Component]]:
    model = None if plan.upscale is None else plan.upscale.model
    return [] if model is None else [(model.role, model)]


def _upscale(upscale: UpscalePlan) -> dict[str, Any]:
    width, height = upscale.target
    body: dict[str, Any] = {"stage": "upscale", "kind": "upscale", "key": "", "stored": False}
    body |= {"sigmas": [], "loras": []}
    return body | {"method": upscale.name, "width": width, "height": height}


def _costs(need: StageMemory, machine: Machine | None) -> dict[str, Any]:
    """Work, memory and, where the machine was measured, time of a stage."""
    body: dict[str, Any] = {
        "flops": need.cost.flops,
        "forwards": need.cost.forwards,
        "peak_bytes": need.peak_bytes,
        "pinned_bytes": need.pinned_bytes,
        "memory": str(need.offload_plan),
    }
    if machine is not None and need.cost.flops:
        body["seconds"] = machine.seconds(need)
    return body


def _decode(plan: RunPlan, need: StageMemory, machine: Machine | None) -> dict[str, Any]:
    body: dict[str, Any] = {"stage": "decode", "kind": "decode", "key": plan.run_key}
    body |= {"stored": False, "sigmas": [], "loras": []}
    return body | _costs(need, machine)


def _stage(
    plan: RunPlan, stage: PlannedStage, need: StageMemory | None, machine: Machine | None
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "stage": stage.name,
        "kind": stage.kind,
        "key": stage.key,
        "stored": stage.stored,
        "sigmas": list(stage.sigmas),
        "loras": [{"file": c.file.path.name, "strength": s} for c, s in stage.loras],
    }
    if stage.resolution is not None:
        resolution = stage.resolution
        channels = plan.models.transformer.shape("patchify_proj.weight")[1]
        body |= {
            "width": resolution.width,
            "height": resolution.height,
            "frames": resolution.frames,
            "fps": str(resolution.fps),
            "video_latents": list(resolution.video_latent_shape(channels)),
            "video_tokens": resolution.video_tokens,
            "audio_tokens": 0 if plan.sound is None else resolution.audio_latents,
        }
    if need is not None:
        body |= _costs(need, machine)
    if len(stage.windows) > 1 and stage.resolution is not None:
        longest = max(stage.windows, key=len).resolution(stage.resolution)
        body["windows"] = {
            "count": len(stage.windows),
            "frames": longest.frames,
            "seconds": float(longest.frames / longest.fps),
        }
    tiles = None if stage.position is None else plan.request.resolved.stages[stage.position].tiles
    if tiles is not None:
        rows, cols = tiles.largest[1:]
        body["tiles"] = {
            "count": tiles.count,
            "width": PIXELS_PER_LATENT * cols,
            "height": PIXELS_PER_LATENT * rows,
        }
    if stage.kind == "refine" and stage.position is not None:
        start = refine_start(plan.request, stage.position)
        body |= {"denoise": start.denoise, "start_sigma": start.sigma}
    return body


def _row(stage: Mapping[str, Any], fps: Fraction) -> dict[str, Any]:
    """One line of the table; ``fps`` is the clip's."""
    latents = stage.get("video_latents")
    tokens, tiles = stage.get("video_tokens"), stage.get("tiles")
    in_tiles = f" in {tiles['count']} tiles of {tiles['width']}x{tiles['height']}" if tiles else ""
    if (windows := stage.get("windows")) is not None:
        in_tiles += f" in {windows['count']} windows of {windows['frames']} frames"
    slower = latents and Fraction(stage["fps"]) != fps
    rate = f" at {float(Fraction(stage['fps'])):g} fps" if slower else ""
    return {
        "stage": stage["stage"],
        "canvas": f"{stage['width']}x{stage['height']}{rate}{in_tiles}" if "width" in stage else "",
        "latents": "x".join(map(str, latents[1:])) if latents else "",
        "tokens": f"{tokens} + {stage['audio_tokens']}" if tokens else "",
        "sigmas": _sigmas(stage),
        "work": stage.get("method") or _work(stage),
        "memory": _memory(stage),
        "stored": stage["stored"],
    }


def _memory(stage: Mapping[str, Any]) -> str:
    """Bytes at the peak, and the offload plan unless all blocks are resident."""
    if "peak_bytes" not in stage:
        return ""
    text = readable_size(stage["peak_bytes"])
    return text if stage["memory"] == "resident" else f"{text}, {stage['memory']}"


def _sigmas(stage: Mapping[str, Any]) -> str:
    sigmas = stage["sigmas"]
    if not sigmas:
        return ""
    shown = [f"{s:.4g}" for s in sigmas]
    if len(shown) > 6:
        shown = [*shown[:3], "…", *shown[-2:]]
    text = f"{len(sigmas) - 1} steps: {' '.join(shown)}"
    return f"{text} (denoise {stage['denoise']:.2f})" if "denoise" in stage else text


def _work(stage: Mapping[str, Any]) -> str:
    flops = stage.get("flops", 0.0)
    if not flops:
        return ""
    forwards = f"{stage['forwards']} forwards, " if stage["forwards"] else ""
    seconds = f", about {stage['seconds']:.3g} s" if "seconds" in stage else ""
    return f"{forwards}{_flops(flops)}{seconds}"


def _flops(flops: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"
