"""Lint rules: settings that ComfyUI accepts silently but whose effect may be unexpected.

These rules cover samplers, schedules, guidance and frame rates; those about sizes and lengths are
in ``shape_rules.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from latent_ladder.comfyui.analysis.shape_inference import InferredShapes, ShapeContext
from latent_ladder.comfyui.graph import Link, LintFinding, Node
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.comfyui.node_defs.sampling import parse_manual_sigmas
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import start_of

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SAMPLERS = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp",
}
"""Nodes that define a sampler with settings of its own, and the sampler's name."""
MAX_SHIFT = 6.0
"""With a larger shift, nearly all steps are at pure noise."""


def lint_nodes(shapes: InferredShapes, required: tuple[str, ...]) -> Iterator[LintFinding]:
    """Return the findings for the required nodes."""
    for key in required:
        ctx = ShapeContext(shapes, shapes.graph.nodes[key])
        rule = _RULES.get(ctx.node.class_type)
        for code, message in rule(ctx) if rule else ():
            yield LintFinding(code, message, key)
    yield from _lint_frame_rates(shapes, required)


def _lint_manual_sigmas(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    text = ctx.get("sigmas")
    if not isinstance(text, str):
        return
    try:
        parsed = parse_manual_sigmas(text)
    except ValueError as error:
        yield "sigmas_misread", f"{error}: the node fails"
        return
    intended = [float(found) for found in _NUMBER.findall(text)]
    if parsed != intended:
        got, expected = _join_numbers(parsed), _join_numbers(intended)
        yield "sigmas_misread", f"{text!r} is read as {got}, not as {expected}"
    if not parsed:
        yield "no_sigmas", f"{text!r} contains no number: the latent passes through unchanged"
        return
    if any(b >= a for a, b in pairwise(parsed)):
        yield "sigmas_rise", f"the sigmas do not decrease: {_join_numbers(parsed)}"
    if parsed[-1] != 0:
        yield "noise_left", f"the sigmas end at {parsed[-1]:g}, so noise is left in the clip"
    if max(parsed) > 1:
        yield "sigmas_above_1", f"the sigmas start at {max(parsed):g}; 1 is pure noise"


def _join_numbers(values: list[float]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:8])
    return shown + (", ..." if len(values) > 8 else "")


def _lint_guider_parameters(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    scale = ctx.number("modality_scale")
    if scale == 0:
        yield (
            "modality_scale_0",
            f"modality_scale 0 of {ctx.get('modality')} runs one more pass per step and subtracts "
            "its difference; 1 disables modality guidance",
        )
    if ctx.get("cross_attn") is False:
        yield (
            "cross_attn_stays",
            f"cross_attn of {ctx.get('modality')} cannot be disabled here",
        )


def _lint_res4lyf_sampler(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    name = str(ctx.get("sampler_name"))
    yield (
        "another_sampler",
        f"{name} of RES4LYF runs as {name.rpartition('/')[2]} of the official pipelines, whose "
        "noise differs: the clip is similar, not equal",
    )


def _lint_prompt_enhancer(_: ShapeContext) -> Iterator[tuple[str, str]]:
    yield (
        "prompt_as_written",
        "no language model rewrites prompts here: the prompt is used as written",
    )


def _lint_guided_sampler(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    """Check for a negative prompt that has no effect, or that costs a second pass."""
    guider = _source_node(ctx, "guider")
    name = _sampler_name(ctx)
    if guider is None or guider.class_type != "CFGGuider" or name is None:
        return
    cfg = ShapeContext(ctx.shapes, guider).number("cfg")
    facts = SAMPLER_FACTS.get(name)
    if cfg != 1 or facts is None:
        return
    if not facts.needs_uncond:
        if text := _prompt_text(ShapeContext(ctx.shapes, guider), "negative"):
            excerpt = text if len(text) <= 40 else f"{text[:37]}..."
            yield "negative_unused", f"at cfg 1 {name} ignores the negative prompt {excerpt!r}"
    else:
        yield "two_passes", f"{name} uses the negative prompt at cfg 1: two passes per step"


def _lint_ksampler(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    yield from _lint_denoise(ctx)
    name, cfg = ctx.get("sampler_name"), ctx.number("cfg")
    if cfg == 1 and isinstance(name, str) and name in SAMPLER_FACTS:
        text = _prompt_text(ctx, "negative")
        if text and not SAMPLER_FACTS[name].needs_uncond:
            yield "negative_unused", f"at cfg 1 {name} ignores the negative prompt"


def _lint_denoise(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    denoise, scheduler = ctx.number("denoise"), ctx.get("scheduler")
    if denoise is None or denoise >= 0.9999:
        return
    if denoise <= 0:
        yield "no_sigmas", "denoise 0 gives no steps: the latent passes through unchanged"
    elif scheduler == "simple":
        start = start_of(denoise)
        yield "denoise_starts", f"denoise {denoise:g} starts at about sigma {start:.2f}"


def _lint_ltxv_scheduler(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    if "latent" not in ctx.node.inputs:
        yield "scheduler_alone", "no latent is connected: the shift is that of 4096 tokens"
        return
    video = ctx.video("latent")
    high, low = ctx.number("max_shift"), ctx.number("base_shift")
    if video is None or high is None or low is None:
        return
    tokens = video.width * video.height // 1024 * ((video.frames - 1) // 8 + 1)
    shift = low + (tokens - 1024) * (high - low) / 3072
    if shift > MAX_SHIFT:
        yield (
            "steep_shift",
            f"{tokens} tokens give a shift of {shift:.1f}, which has no upper limit: nearly all "
            "steps stay at pure noise",
        )


def _lint_tiled_decode(ctx: ShapeContext) -> Iterator[tuple[str, str]]:
    tiles = max(ctx.integer("horizontal_tiles") or 1, ctx.integer("vertical_tiles") or 1)
    if tiles > 1 and ctx.integer("overlap") == 1:
        yield "thin_overlap", "tiles overlap by 1 latent (32 pixels): seams may show; try 4 or more"


_SIGMA_RULES: Mapping[str, Callable[[ShapeContext], Iterator[tuple[str, str]]]] = {
    "ManualSigmas": _lint_manual_sigmas,
    "LTXVScheduler": _lint_ltxv_scheduler,
    "BasicScheduler": _lint_denoise,
}
_RULES: Mapping[str, Callable[[ShapeContext], Iterator[tuple[str, str]]]] = {
    **_SIGMA_RULES,
    "GuiderParameters": _lint_guider_parameters,
    "ClownSampler_Beta": _lint_res4lyf_sampler,
    "SamplerCustomAdvanced": _lint_guided_sampler,
    "LTXVNormalizingSampler": _lint_guided_sampler,
    "KSampler": _lint_ksampler,
    "LTXVTiledVAEDecode": _lint_tiled_decode,
    "TextGenerateLTX2Prompt": _lint_prompt_enhancer,
}


def _lint_frame_rates(shapes: InferredShapes, required: tuple[str, ...]) -> Iterator[LintFinding]:
    """Check that the conditioning and the written clip have the same frame rate."""
    names = {"LTXVConditioning": "frame_rate", "CreateVideo": "fps"}
    found: dict[str, tuple[str, float]] = {}
    for key in required:
        node = shapes.graph.nodes[key]
        name = names.get(node.class_type)
        rate = ShapeContext(shapes, node).number(name) if name else None
        if rate is not None:
            found.setdefault(node.class_type, (key, rate))
    if len(found) == 2:
        (_, conditioned), (key, written) = found["LTXVConditioning"], found["CreateVideo"]
        if not math.isclose(conditioned, written, rel_tol=1e-3):
            text = f"the clip is written at {written:g} fps but conditioned on {conditioned:g} fps"
            yield LintFinding("rates_differ", f"{text}: video and audio differ in speed", key)


# --- following links ------------------------------------------------------------------------------


def _source_node(ctx: ShapeContext, name: str) -> Node | None:
    link = ctx.node.inputs.get(name)
    return ctx.shapes.graph.nodes.get(link.node) if isinstance(link, Link) else None


def _sampler_name(ctx: ShapeContext) -> str | None:
    node = _source_node(ctx, "sampler")
    if node is not None and node.class_type in _SAMPLERS:
        return _SAMPLERS[node.class_type]
    name = ShapeContext(ctx.shapes, node).get("sampler_name") if node else ctx.get("sampler_name")
    return name if isinstance(name, str) else None


def _prompt_text(ctx: ShapeContext, name: str) -> str:
    """Return the prompt text of a conditioning input, or an empty string if it is unknown."""
    for _ in range(len(ctx.shapes.graph.nodes)):
        link = ctx.node.inputs.get(name)
        node = _source_node(ctx, name)
        if node is None or not isinstance(link, Link):
            return ""
        ctx = ShapeContext(ctx.shapes, node)
        if node.class_type == "CLIPTextEncode":
            text = ctx.get("text")
            return text.strip() if isinstance(text, str) else ""
        results = node_type(node.class_type).outputs
        name = results[link.slot].name if link.slot < len(results) else ""
    return ""


def describe_stage(shapes: InferredShapes, key: str) -> dict[str, Any]:
    """Return the known settings of a sampling node: sampler, steps, guidance, seed."""
    ctx = ShapeContext(shapes, shapes.graph.nodes[key])
    noise, guider, schedule = (_source_node(ctx, name) for name in ("noise", "guider", "sigmas"))
    scheduler = ShapeContext(shapes, schedule) if schedule else ctx
    manual = schedule is not None and schedule.class_type == "ManualSigmas"
    text = scheduler.get("sigmas") if manual else None
    try:
        sigmas = parse_manual_sigmas(text) if isinstance(text, str) else []
    except ValueError:
        sigmas = []
    facts = {
        "node": key,
        "title": ctx.node.title,
        "sampler": _sampler_name(ctx),
        "steps": max(len(sigmas) - 1, 0) if sigmas else scheduler.integer("steps"),
        "start_sigma": sigmas[0] if sigmas else None,
        "guider": guider.class_type if guider else None,
        "cfg": ShapeContext(shapes, guider).number("cfg") if guider else ctx.number("cfg"),
        "seed": ShapeContext(shapes, noise).integer("noise_seed") if noise else ctx.integer("seed"),
    }
    return {name: value for name, value in facts.items() if value is not None}
