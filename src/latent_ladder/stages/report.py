"""A plan in words and numbers, for ``ladder plan``: sizes, tokens, sigmas, work, files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_ladder.advice import refine_start
from latent_ladder.checkpoints.layout import Component
from latent_ladder.memory import DitSize, ModelSizes, StageCost, estimate, weight_bytes
from latent_ladder.models.config import TransformerConfig
from latent_ladder.shapes import duration
from latent_ladder.stages.plan import PlannedStage, RunPlan
from latent_ladder.text.tokenizer import text_length


def headline(plan: RunPlan) -> str:
    """One line: what comes out, through which stages, with which seed."""
    request = plan.request
    seconds = float(duration(request.frames, request.fps))
    sound = "no sound" if plan.sound is None else "sound"
    return (
        f"{request.width}x{request.height}, {request.frames} frames at {float(request.fps):g} fps "
        f"({seconds:.2f} s), {sound}, seed {request.seed}, preset {request.preset or '-'}, "
        f"LTX-{plan.models.family}"
    )


def plan_report(plan: RunPlan) -> dict[str, Any]:
    """The plan as plain data.

    ``stages`` holds numbers for programs, ``rows`` the same in short words for a table.
    """
    costs = {cost.name: cost for cost in estimate(plan.request, model_sizes(plan))}
    stages = [_stage(plan, stage, costs.get(stage.name)) for stage in plan.stages]
    return {
        "headline": headline(plan),
        "request": plan.request.to_dict(),
        "crop": plan.request.crop._asdict(),
        "stages": stages,
        "rows": [_row(stage) for stage in stages],
        "models": [{"role": role, "file": str(c.file.path)} for role, c in _files(plan).items()],
    }


def model_sizes(plan: RunPlan) -> ModelSizes:
    """Sizes of the models that the plan uses, read from their headers."""
    config = TransformerConfig.from_component(plan.models.transformer)
    length = text_length(plan.models.text_encoder)
    dit = DitSize(config.layers, config.video.dim, config.audio.dim, length)
    weights = {role: weight_bytes(component) for role, component in _files(plan).items()}
    upsampler = next((s.upsampler for s in plan.stages if s.upsampler is not None), None)
    if upsampler is None:
        return ModelSizes(dit, weights)
    channels = upsampler.shape("initial_conv.weight")[0]
    return ModelSizes(dit, weights, upsampler_channels=channels)


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
    }
    for stage in plan.stages:
        if stage.upsampler is not None:
            parts["latent_upsampler"] = stage.upsampler
        for lora, _ in stage.loras:
            is_distilled = lora is models.loras.get("distilled_lora")
            parts["distilled_lora" if is_distilled else f"lora {lora.file.path.name}"] = lora
    return {role: part for role, part in parts.items() if part is not None}


def _stage(plan: RunPlan, stage: PlannedStage, cost: StageCost | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "stage": stage.name,
        "kind": stage.kind,
        "key": stage.key,
        "stored": stage.stored,
        "sigmas": list(stage.sigmas),
        "loras": [{"file": c.file.path.name, "strength": s} for c, s in stage.loras],
    }
    if stage.rung is not None:
        rung = stage.rung
        channels = plan.models.transformer.shape("patchify_proj.weight")[1]
        body |= {
            "width": rung.width,
            "height": rung.height,
            "frames": rung.frames,
            "fps": str(rung.fps),
            "video_latents": list(rung.video_latent_shape(channels)),
            "video_tokens": rung.video_tokens,
            "audio_tokens": 0 if plan.sound is None else rung.audio_latents,
        }
    if cost is not None:
        body |= {"flops": cost.flops, "forwards": cost.forwards, "peak_bytes": cost.peak_bytes}
    if stage.kind == "refine" and stage.position is not None:
        start = refine_start(plan.request, stage.position)
        body |= {"denoise": start.denoise, "start_sigma": start.sigma}
    return body


def _row(stage: Mapping[str, Any]) -> dict[str, Any]:
    """One line of the table."""
    latents = stage.get("video_latents")
    tokens = stage.get("video_tokens")
    return {
        "stage": stage["stage"],
        "canvas": f"{stage['width']}x{stage['height']}" if latents else "",
        "latents": "x".join(map(str, latents[1:])) if latents else "",
        "tokens": f"{tokens} + {stage['audio_tokens']}" if tokens else "",
        "sigmas": _sigmas(stage),
        "work": _work(stage),
        "stored": stage["stored"],
    }


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
    return f"{forwards}{_flops(flops)}"


def _flops(flops: float) -> str:
    for unit, size in (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if flops >= size:
            return f"{flops / size:.3g} {unit}"
    return f"{flops / 1e6:.3g} MFLOP"
