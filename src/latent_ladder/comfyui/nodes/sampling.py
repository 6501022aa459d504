"""Noise, samplers, sigmas, guiders, and the nodes that sample with them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.node_defs.sampling import RES4LYF_SAMPLER, SAMPLER_ALIASES
from latent_ladder.comfyui.nodes.denoise import DenoisedLatents, SamplingJob, denoise
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.sigmas import ltx_mu, schedule_sigmas
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Guider,
    GuiderParameters,
    Latent,
    Model,
    Noise,
    Patch,
    Sampler,
    SigmaList,
    StreamTerms,
    Value,
)
from latent_ladder.sampling.samplers import SAMPLERS, SamplerOptions
from latent_ladder.sampling.schedules import Sigmas, shift_time

# --- noise and samplers -------------------------------------------------------------------------


def make_noise(ctx: NodeContext) -> list[Value]:
    """``RandomNoise``."""
    return [Noise(ctx.integer("noise_seed"))]


def disable_noise(_: NodeContext) -> list[Value]:
    """``DisableNoise``."""
    return [Noise(empty=True)]


def select_sampler(ctx: NodeContext) -> list[Value]:
    """``KSamplerSelect``."""
    return [named_sampler(ctx, ctx.text("sampler_name"))]


def named_sampler(ctx: NodeContext, name: str) -> Sampler:
    """The sampler that ComfyUI calls so."""
    name = SAMPLER_ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise ctx.error(*_unknown_sampler(name))
    return Sampler(name)


def _unknown_sampler(name: str) -> tuple[str, str]:
    known = ", ".join(sorted({*SAMPLERS, *SAMPLER_ALIASES}))
    return f"the sampler {name} is not known here; known: {known}", "use euler"


def check_sampler(node: Node) -> str:
    """Why a node with this ``sampler_name`` cannot run."""
    name = node.inputs.get("sampler_name", "euler")
    if not isinstance(name, str) or name in SAMPLERS or name in SAMPLER_ALIASES:
        return ""
    return _unknown_sampler(name)[0]


def euler_ancestral(ctx: NodeContext) -> list[Value]:
    """``SamplerEulerAncestral``: eta 0 is euler."""
    options = SamplerOptions(eta=ctx.number("eta"), s_noise=ctx.number("s_noise"))
    return [Sampler("euler_ancestral", options)]


def euler_ancestral_cfg_pp(ctx: NodeContext) -> list[Value]:
    """``SamplerEulerAncestralCFGPP``."""
    options = SamplerOptions(eta=ctx.number("eta"), s_noise=ctx.number("s_noise"))
    return [Sampler("euler_ancestral_cfg_pp", options)]


def res4lyf_sampler(ctx: NodeContext) -> list[Value]:
    """RES4LYF's sampler for the rules that are here too; its noise is the pack's own."""
    name, eta = ctx.text("sampler_name"), ctx.number("eta")
    found = RES4LYF_SAMPLER.match(name)
    if found is None:
        raise ctx.error(_unknown_res4lyf_sampler(name), "use exponential/res_2s")
    ctx.warn(
        "another_sampler",
        f"{name} of RES4LYF is carried out as {found[1]} of the official pipelines, whose noise "
        "is drawn in another way: alike, not equal",
    )
    options = SamplerOptions(eta=eta, bong=ctx.boolean("bongmath") if ctx.has("bongmath") else True)
    return [Sampler("res_2s" if found[1] == "res_2s" else "euler_ancestral", options)]


def _unknown_res4lyf_sampler(name: object) -> str:
    return f"the sampler {name} of RES4LYF is not known here"


def check_res4lyf_sampler(node: Node) -> str:
    """Why a ``ClownSampler_Beta`` cannot run."""
    name = node.inputs.get("sampler_name", "multistep/res_2m")
    if isinstance(name, str) and RES4LYF_SAMPLER.match(name) is None:
        return _unknown_res4lyf_sampler(name)
    return ""


# --- guiders ------------------------------------------------------------------------------------


def basic_guider(ctx: NodeContext) -> list[Value]:
    """``BasicGuider``: the prompt alone."""
    positive, plain = ctx.get("conditioning", Conditioning), StreamTerms()
    return [Guider(ctx.get("model", Model), positive, None, plain, plain)]


def cfg_guider(ctx: NodeContext) -> list[Value]:
    """``CFGGuider``: one scale for picture and sound."""
    return [_make_guider(ctx, StreamTerms(ctx.number("cfg")), StreamTerms(ctx.number("cfg")))]


def dual_guider(ctx: NodeContext) -> list[Value]:
    """``LTXVDualCFGGuider``: a scale for each; where they differ, the negative prompt is evaluated
    even at a scale of 1."""
    video, audio = StreamTerms(ctx.number("video_cfg")), StreamTerms(ctx.number("audio_cfg"))
    return [replace(_make_guider(ctx, video, audio), always_uncond=video != audio)]


def _make_guider(ctx: NodeContext, video: StreamTerms, audio: StreamTerms) -> Guider:
    positive, negative = ctx.get("positive", Conditioning), ctx.get("negative", Conditioning)
    return Guider(ctx.get("model", Model), positive, negative, video, audio)


def guider_parameters(ctx: NodeContext) -> list[Value]:
    """``GuiderParameters``: the terms of one stream, beside those of an earlier node."""
    modality = ctx.text("modality")
    before = ctx.get_optional("parameters", GuiderParameters)
    terms = {} if before is None else before.terms
    if modality in terms:
        raise ctx.error(f"{modality} has parameters already", "choose the other modality")
    own = StreamTerms(
        cfg=ctx.number("cfg"),
        stg=ctx.number("stg"),
        rescale=ctx.number("rescale"),
        modality=ctx.number("modality_scale"),
        skip_step=ctx.integer("skip_step"),
    )
    perturbs = {} if before is None else before.perturb_attn
    cross = {} if before is None else before.cross_attn
    return [
        GuiderParameters(
            {**terms, modality: own},
            {**perturbs, modality: ctx.boolean("perturb_attn")},
            {**cross, modality: ctx.boolean("cross_attn")},
        )
    ]


def multimodal_guider(ctx: NodeContext) -> list[Value]:
    """``MultimodalGuider``: each stream with its own terms, STG in the blocks that are listed."""
    given = ctx.get("parameters", GuiderParameters)
    blocks = parse_integers(ctx, "skip_blocks")
    streams = []
    for modality in ("VIDEO", "AUDIO"):
        terms = given.terms.get(modality)
        if terms is None:
            raise ctx.error(f"there are no parameters for {modality}", "add GuiderParameters")
        perturbed = given.perturb_attn[modality]
        if not given.cross_attn[modality]:
            ctx.warn("cross_attn", f"cross_attn of {modality} stays on: it cannot be switched off")
        streams.append(replace(terms, stg_blocks=blocks if perturbed else ()))
    return [_make_guider(ctx, *streams)]


def stg_guider(ctx: NodeContext) -> list[Value]:
    """``STGGuider``: the blocks are those of ``LTXVApplySTG``."""
    model = ctx.get("model", Model)
    blocks = () if model.stg is None else model.stg.blocks
    terms = StreamTerms(
        ctx.number("cfg"), ctx.number("stg"), rescale=ctx.number("rescale"), stg_blocks=blocks
    )
    return [replace(_make_guider(ctx, terms, terms), model=replace(model, stg=None))]


def stg_guider_advanced(ctx: NodeContext) -> list[Value]:
    """``STGGuiderAdvanced``: terms by sigma, CFG-Zero*, first steps zero."""
    if ctx.has("apply_apg") and ctx.boolean("apply_apg"):
        raise ctx.error("adaptive projected guidance is not known here", "switch apply_apg off")
    if ctx.has("preset"):
        raise ctx.error("presets are not known here", "write its values into the node")
    sigmas, cfgs = parse_floats(ctx, "sigmas"), parse_floats(ctx, "cfg_values")
    scales, rescales = (
        parse_floats(ctx, "stg_scale_values"),
        parse_floats(ctx, "stg_rescale_values"),
    )
    blocks = [
        tuple(int(word) for word in re.findall(r"\d+", group))
        for group in re.findall(r"\[([^\]]*)\]", ctx.text("stg_layers_indices"))
    ]
    if len({len(row) for row in (sigmas, cfgs, scales, rescales, blocks)}) != 1:
        raise ctx.error("its lists differ in length", "give one value for each of its sigmas")
    star = ctx.boolean("cfg_star_rescale")
    rows = tuple(
        (s, StreamTerms(cfg, stg, rescale=r, stg_blocks=b, cfg_star=star))
        for s, cfg, stg, r, b in zip(sigmas, cfgs, scales, rescales, blocks, strict=True)
    )
    plain = _make_guider(ctx, StreamTerms(), StreamTerms())
    return [
        replace(
            plain, terms_by_sigma=rows, zero_above_sigma=ctx.number("skip_steps_sigma_threshold")
        )
    ]


def apply_stg(ctx: NodeContext) -> list[Value]:
    """``LTXVApplySTG``: names the blocks; the guider says how strongly."""
    named = Patch(0.0, blocks=parse_integers(ctx, "block_indices"))
    return [replace(ctx.get("model", Model), stg=named)]


def stg_patch(ctx: NodeContext) -> list[Value]:
    """``LTXVSpatioTemporalGuidance``."""
    blocks = parse_integers(ctx, "blocks")
    model = ctx.get("model", Model)
    return [replace(model, stg=replace(make_patch(ctx, model, "scale"), blocks=blocks))]


def modality_patch(ctx: NodeContext) -> list[Value]:
    """``LTXVModalityGuidance``."""
    model = ctx.get("model", Model)
    return [replace(model, modality=make_patch(ctx, model, "modality_scale"))]


def make_patch(ctx: NodeContext, model: Model, scale: str) -> Patch:
    """A term for a part of the run; the range is in percent of the model's time."""
    start, end = ctx.number("start_percent"), ctx.number("end_percent")
    return Patch(
        ctx.number(scale), percent_to_sigma(start, model.shift), percent_to_sigma(end, model.shift)
    )


def percent_to_sigma(percent: float, shift: float) -> float:
    """Where a part of the run begins or ends."""
    if percent <= 0:
        return math.inf
    return 0.0 if percent >= 1 else shift_time(1 - percent, shift)


def parse_integers(ctx: NodeContext, name: str) -> tuple[int, ...]:
    """A list such as ``"14, 19"``; brackets do not matter."""
    words = re.split(r"[\s,\[\]]+", ctx.text(name).strip("[] ,\n"))
    try:
        return tuple(int(word) for word in words if word)
    except ValueError:
        raise ctx.error(f"{name} is {ctx.text(name)!r}, expected numbers such as 14, 19") from None


# --- runs ---------------------------------------------------------------------------------------


def sample_custom_advanced(ctx: NodeContext) -> list[Value]:
    """``SamplerCustomAdvanced``: the latent, and the last prediction of it."""
    found = denoise(ctx, _sampling_job(ctx))
    return [found.output, found.last]


def _sampling_job(ctx: NodeContext) -> SamplingJob:
    return SamplingJob(
        ctx.get("guider", Guider),
        ctx.get("sampler", Sampler),
        ctx.get("sigmas", SigmaList).sigmas,
        ctx.get("noise", Noise),
        ctx.get("latent_image", Latent),
    )


def sample_custom(ctx: NodeContext) -> list[Value]:
    """``SamplerCustom``."""
    noise = Noise(ctx.integer("noise_seed"), empty=not ctx.boolean("add_noise"))
    cfg = StreamTerms(ctx.number("cfg"))
    job = SamplingJob(
        _make_guider(ctx, cfg, cfg),
        ctx.get("sampler", Sampler),
        ctx.get("sigmas", SigmaList).sigmas,
        noise,
        ctx.get("latent_image", Latent),
    )
    found = denoise(ctx, job)
    return [found.output, found.last]


def sample_ksampler(ctx: NodeContext) -> list[Value]:
    """``KSampler``: the generic schedules, their last steps for a denoise below 1."""
    sigmas = _schedule(ctx, ctx.number("denoise"))
    return [_sample_ksampler(ctx, sigmas, Noise(ctx.integer("seed"))).output]


def sample_ksampler_advanced(ctx: NodeContext) -> list[Value]:
    """``KSamplerAdvanced``: a part of the steps, with noise or without."""
    sigmas = _schedule(ctx, 1.0)
    first, last = ctx.integer("start_at_step"), ctx.integer("end_at_step")
    if last < len(sigmas) - 1:
        sigmas = sigmas[: last + 1]
        if ctx.text("return_with_leftover_noise") == "disable":
            sigmas = (*sigmas[:-1], 0.0)
    noise = Noise(ctx.integer("noise_seed"), empty=ctx.text("add_noise") != "enable")
    part = sigmas[first:] if first < len(sigmas) - 1 else ()
    return [_sample_ksampler(ctx, part, noise).output]


def _schedule(ctx: NodeContext, denoise: float) -> Sigmas:
    model = ctx.get("model", Model)
    return schedule_sigmas(ctx, ctx.text("scheduler"), ctx.integer("steps"), denoise, model.shift)


def _sample_ksampler(ctx: NodeContext, sigmas: Sigmas, noise: Noise) -> DenoisedLatents:
    cfg = StreamTerms(ctx.number("cfg"))
    chosen = named_sampler(ctx, ctx.text("sampler_name"))
    latent = ctx.get("latent_image", Latent)
    return denoise(ctx, SamplingJob(_make_guider(ctx, cfg, cfg), chosen, sigmas, noise, latent))


def sample_normalizing(ctx: NodeContext) -> list[Value]:
    """``LTXVNormalizingSampler``: after every step whose factors are not 1, the prediction is
    multiplied by them and noised again with the same noise."""
    job = _sampling_job(ctx)
    if not job.latent.is_audio_video:
        raise ctx.error("it needs an audio-video latent", "connect LTXVConcatAVLatent")
    steps = len(job.sigmas) - 1
    video, audio = (
        _factors_per_step(ctx, name, steps)
        for name in ("video_normalization_factors", "audio_normalization_factors")
    )
    cuts = [i + 1 for i in range(steps) if video[i] != 1.0 or audio[i] != 1.0]
    latent, start = job.latent, 0
    for cut in dict.fromkeys([*cuts, steps]):
        part = replace(job, latent=latent, sigmas=job.sigmas[start : cut + 1])
        latent = denoise(ctx, part).last
        if latent.video is None or latent.audio is None:
            raise TypeError("a part of the latent got lost")
        latent = replace(
            latent, video=latent.video * video[cut - 1], audio=latent.audio * audio[cut - 1]
        )
        start = cut
    return [latent]


def _factors_per_step(ctx: NodeContext, name: str, count: int) -> list[float]:
    """A list of factors, its last one repeated."""
    factors = parse_floats(ctx, name)
    return [factors[min(i, len(factors) - 1)] for i in range(count)]


def parse_floats(ctx: NodeContext, name: str) -> list[float]:
    """A list such as ``"0.9, 0.75, 0.0"``."""
    try:
        found = [float(word) for word in ctx.text(name).split(",")]
    except ValueError:
        raise ctx.error(f"{name} is {ctx.text(name)!r}, expected numbers such as 1, 0.5") from None
    return found


def shift_model(ctx: NodeContext) -> list[Value]:
    """``ModelSamplingLTXV``: the model's sigma table by the number of video tokens."""
    mu = ltx_mu(ctx, ctx.number("max_shift"), ctx.number("base_shift"))
    return [replace(ctx.get("model", Model), shift=mu)]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "RandomNoise": NodeFunction(make_noise),
        "DisableNoise": NodeFunction(disable_noise),
        "KSamplerSelect": NodeFunction(select_sampler, check=check_sampler),
        "SamplerEulerAncestral": NodeFunction(euler_ancestral),
        "SamplerEulerAncestralCFGPP": NodeFunction(euler_ancestral_cfg_pp),
        "ClownSampler_Beta": NodeFunction(res4lyf_sampler, check=check_res4lyf_sampler),
        "ModelSamplingLTXV": NodeFunction(shift_model),
        "BasicGuider": NodeFunction(basic_guider),
        "CFGGuider": NodeFunction(cfg_guider),
        "LTXVDualCFGGuider": NodeFunction(dual_guider),
        "GuiderParameters": NodeFunction(guider_parameters),
        "MultimodalGuider": NodeFunction(multimodal_guider),
        "STGGuider": NodeFunction(stg_guider),
        "STGGuiderAdvanced": NodeFunction(stg_guider_advanced),
        "LTXVApplySTG": NodeFunction(apply_stg),
        "LTXVSpatioTemporalGuidance": NodeFunction(stg_patch),
        "LTXVModalityGuidance": NodeFunction(modality_patch),
        "SamplerCustomAdvanced": NodeFunction(sample_custom_advanced, stored=True),
        "SamplerCustom": NodeFunction(sample_custom, stored=True),
        "KSampler": NodeFunction(sample_ksampler, stored=True, check=check_sampler),
        "KSamplerAdvanced": NodeFunction(
            sample_ksampler_advanced, stored=True, check=check_sampler
        ),
        "LTXVNormalizingSampler": NodeFunction(sample_normalizing, stored=True),
    }
)
