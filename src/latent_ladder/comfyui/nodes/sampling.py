"""Sampling nodes: noise, samplers, guiders, model patches, and sampling runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.node_defs.sampling import RES4LYF_SAMPLER, SAMPLER_ALIASES
from latent_ladder.comfyui.nodes.denoise import DenoisedLatents, denoise
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.sampling_tokens import SamplingJob
from latent_ladder.comfyui.nodes.sigmas import ltx_mu, schedule_sigmas
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    GuidancePatch,
    Guider,
    GuiderParameters,
    Latent,
    Model,
    NagPatch,
    Noise,
    Sampler,
    SigmaList,
    StreamTerms,
    Value,
)
from latent_ladder.sampling.samplers import SAMPLERS, SamplerOptions
from latent_ladder.sampling.schedules import Sigmas, shift_time

# --- noise and samplers -------------------------------------------------------------------------


def make_noise(ctx: NodeContext) -> list[Value]:
    """``RandomNoise``: the noise of a seed."""
    return [Noise(ctx.integer("noise_seed"))]


def disable_noise(_: NodeContext) -> list[Value]:
    """``DisableNoise``: no initial noise."""
    return [Noise(empty=True)]


def select_sampler(ctx: NodeContext) -> list[Value]:
    """``KSamplerSelect``: a sampler by name."""
    return [named_sampler(ctx, ctx.text("sampler_name"))]


def named_sampler(ctx: NodeContext, name: str) -> Sampler:
    """Return the sampler with a name in ComfyUI."""
    name = SAMPLER_ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise ctx.error(*_unknown_sampler(name))
    return Sampler(name)


def _unknown_sampler(name: str) -> tuple[str, str]:
    known = ", ".join(sorted({*SAMPLERS, *SAMPLER_ALIASES}))
    return f"the sampler {name} is not supported; supported: {known}", "use euler"


def check_sampler(node: Node) -> str:
    """Return why the ``sampler_name`` of a node is not supported."""
    name = node.inputs.get("sampler_name", "euler")
    if not isinstance(name, str) or name in SAMPLERS or name in SAMPLER_ALIASES:
        return ""
    return _unknown_sampler(name)[0]


def euler_ancestral(ctx: NodeContext) -> list[Value]:
    """``SamplerEulerAncestral``: with eta 0 it equals euler."""
    options = SamplerOptions(eta=ctx.number("eta"), s_noise=ctx.number("s_noise"))
    return [Sampler("euler_ancestral", options)]


def euler_ancestral_cfg_pp(ctx: NodeContext) -> list[Value]:
    """``SamplerEulerAncestralCFGPP``: the CFG++ variant of euler_ancestral."""
    options = SamplerOptions(eta=ctx.number("eta"), s_noise=ctx.number("s_noise"))
    return [Sampler("euler_ancestral_cfg_pp", options)]


def res4lyf_sampler(ctx: NodeContext) -> list[Value]:
    """``ClownSampler_Beta`` of RES4LYF, for the samplers that exist here; the noise differs."""
    name, eta = ctx.text("sampler_name"), ctx.number("eta")
    match = RES4LYF_SAMPLER.match(name)
    if match is None:
        raise ctx.error(_unknown_res4lyf_sampler(name), "use exponential/res_2s")
    ctx.warn(
        "another_sampler",
        f"{name} of RES4LYF runs as {match[1]} of the official pipelines, whose noise differs: the "
        "clip is similar, not equal",
    )
    options = SamplerOptions(eta=eta, bong=ctx.boolean("bongmath") if ctx.has("bongmath") else True)
    return [Sampler("res_2s" if match[1] == "res_2s" else "euler_ancestral", options)]


def _unknown_res4lyf_sampler(name: object) -> str:
    return f"the sampler {name} of RES4LYF is not supported"


def check_res4lyf_sampler(node: Node) -> str:
    """Return why a ``ClownSampler_Beta`` cannot run."""
    name = node.inputs.get("sampler_name", "multistep/res_2m")
    if isinstance(name, str) and RES4LYF_SAMPLER.match(name) is None:
        return _unknown_res4lyf_sampler(name)
    return ""


# --- guiders ------------------------------------------------------------------------------------


def basic_guider(ctx: NodeContext) -> list[Value]:
    """``BasicGuider``: the positive prompt only."""
    positive, terms = ctx.get("conditioning", Conditioning), StreamTerms()
    return [Guider(ctx.get("model", Model), positive, None, terms, terms)]


def cfg_guider(ctx: NodeContext) -> list[Value]:
    """``CFGGuider``: one CFG scale for video and audio."""
    return [_make_guider(ctx, StreamTerms(ctx.number("cfg")), StreamTerms(ctx.number("cfg")))]


def dual_guider(ctx: NodeContext) -> list[Value]:
    """``LTXVDualCFGGuider``: a CFG scale for each stream.

    If they differ, the negative prompt is evaluated even at a scale of 1.
    """
    video, audio = StreamTerms(ctx.number("video_cfg")), StreamTerms(ctx.number("audio_cfg"))
    return [replace(_make_guider(ctx, video, audio), always_uncond=video != audio)]


def _make_guider(ctx: NodeContext, video: StreamTerms, audio: StreamTerms) -> Guider:
    positive, negative = ctx.get("positive", Conditioning), ctx.get("negative", Conditioning)
    return Guider(ctx.get("model", Model), positive, negative, video, audio)


def guider_parameters(ctx: NodeContext) -> list[Value]:
    """``GuiderParameters``: the guidance of one stream, added to that of an earlier node."""
    modality = ctx.text("modality")
    before = ctx.get_optional("parameters", GuiderParameters)
    terms = {} if before is None else before.terms
    if modality in terms:
        raise ctx.error(f"{modality} already has parameters", "choose the other modality")
    own = StreamTerms(
        cfg=ctx.number("cfg"),
        stg=ctx.number("stg"),
        rescale=ctx.number("rescale"),
        modality=ctx.number("modality_scale"),
        skip_step=ctx.integer("skip_step"),
    )
    perturb_attn = {} if before is None else before.perturb_attn
    cross_attn = {} if before is None else before.cross_attn
    return [
        GuiderParameters(
            {**terms, modality: own},
            {**perturb_attn, modality: ctx.boolean("perturb_attn")},
            {**cross_attn, modality: ctx.boolean("cross_attn")},
        )
    ]


def multimodal_guider(ctx: NodeContext) -> list[Value]:
    """``MultimodalGuider``: separate guidance for each stream, STG in the listed blocks."""
    parameters = ctx.get("parameters", GuiderParameters)
    blocks = parse_integers(ctx, "skip_blocks")
    streams = []
    for modality in ("VIDEO", "AUDIO"):
        terms = parameters.terms.get(modality)
        if terms is None:
            raise ctx.error(f"there are no parameters for {modality}", "add GuiderParameters")
        perturbed = parameters.perturb_attn[modality]
        if not parameters.cross_attn[modality]:
            ctx.warn("cross_attn", f"cross_attn of {modality} stays on: it cannot be disabled here")
        streams.append(replace(terms, stg_blocks=blocks if perturbed else ()))
    return [_make_guider(ctx, *streams)]


def stg_guider(ctx: NodeContext) -> list[Value]:
    """``STGGuider``: CFG and STG in the blocks of ``LTXVApplySTG``."""
    model = ctx.get("model", Model)
    blocks = () if model.stg is None else model.stg.blocks
    terms = StreamTerms(
        ctx.number("cfg"), ctx.number("stg"), rescale=ctx.number("rescale"), stg_blocks=blocks
    )
    return [replace(_make_guider(ctx, terms, terms), model=replace(model, stg=None))]


def stg_guider_advanced(ctx: NodeContext) -> list[Value]:
    """``STGGuiderAdvanced``: guidance by sigma, with CFG-Zero* and zero first steps."""
    if ctx.has("apply_apg") and ctx.boolean("apply_apg"):
        raise ctx.error("adaptive projected guidance is not supported", "switch apply_apg off")
    if ctx.has("preset"):
        raise ctx.error("presets are not supported", "enter the values in the node")
    sigmas, cfgs = parse_floats(ctx, "sigmas"), parse_floats(ctx, "cfg_values")
    scales, rescales = (
        parse_floats(ctx, "stg_scale_values"),
        parse_floats(ctx, "stg_rescale_values"),
    )
    blocks = [
        tuple(int(word) for word in re.findall(r"\d+", group))
        for group in re.findall(r"\[([^\]]*)\]", ctx.text("stg_layers_indices"))
    ]
    if len({len(values) for values in (sigmas, cfgs, scales, rescales, blocks)}) != 1:
        raise ctx.error("its lists differ in length", "enter one value for each sigma")
    star = ctx.boolean("cfg_star_rescale")
    terms = tuple(
        (s, StreamTerms(cfg, stg, rescale=r, stg_blocks=b, cfg_star=star))
        for s, cfg, stg, r, b in zip(sigmas, cfgs, scales, rescales, blocks, strict=True)
    )
    guider = _make_guider(ctx, StreamTerms(), StreamTerms())
    return [
        replace(
            guider, terms_by_sigma=terms, zero_above_sigma=ctx.number("skip_steps_sigma_threshold")
        )
    ]


def apply_stg(ctx: NodeContext) -> list[Value]:
    """``LTXVApplySTG``: the STG blocks; the scale comes from the guider."""
    patch = GuidancePatch(0.0, blocks=parse_integers(ctx, "block_indices"))
    return [replace(ctx.get("model", Model), stg=patch)]


def stg_patch(ctx: NodeContext) -> list[Value]:
    """``LTXVSpatioTemporalGuidance``: a model with STG in a range of the schedule."""
    blocks = parse_integers(ctx, "blocks")
    model = ctx.get("model", Model)
    return [replace(model, stg=replace(make_patch(ctx, model, "scale"), blocks=blocks))]


def modality_patch(ctx: NodeContext) -> list[Value]:
    """``LTXVModalityGuidance``: a model with modality guidance in a range of the schedule."""
    model = ctx.get("model", Model)
    return [replace(model, modality=make_patch(ctx, model, "modality_scale"))]


def nag_patch(ctx: NodeContext) -> list[Value]:
    """``LTX2_NAG`` of KJNodes: a model with normalized attention guidance."""
    model, scale = ctx.get("model", Model), ctx.number("nag_scale")
    if scale == 0:
        return [model]
    patch = NagPatch(
        scale,
        ctx.number("nag_tau"),
        ctx.number("nag_alpha"),
        ctx.get_optional("nag_cond_video", Conditioning),
        ctx.get_optional("nag_cond_audio", Conditioning),
    )
    return [replace(model, nag=patch)]


def make_patch(ctx: NodeContext, model: Model, scale: str) -> GuidancePatch:
    """Return the guidance term of a node for a part of the schedule, given in percent of it."""
    start, end = ctx.number("start_percent"), ctx.number("end_percent")
    return GuidancePatch(
        ctx.number(scale), percent_to_sigma(start, model.shift), percent_to_sigma(end, model.shift)
    )


def percent_to_sigma(percent: float, shift: float) -> float:
    """Return the sigma at a fraction of the schedule of a model with a shift."""
    if percent <= 0:
        return math.inf
    return 0.0 if percent >= 1 else shift_time(1 - percent, shift)


def parse_integers(ctx: NodeContext, name: str) -> tuple[int, ...]:
    """Parse a list of integers such as ``"14, 19"``, with or without brackets."""
    words = re.split(r"[\s,\[\]]+", ctx.text(name).strip("[] ,\n"))
    try:
        return tuple(int(word) for word in words if word)
    except ValueError:
        raise ctx.error(f"{name} is {ctx.text(name)!r}, expected numbers such as 14, 19") from None


# --- sampling runs ------------------------------------------------------------------------------


def sample_custom_advanced(ctx: NodeContext) -> list[Value]:
    """``SamplerCustomAdvanced``: the sampled latent, and the last x0 prediction."""
    result = denoise(ctx, _sampling_job(ctx))
    return [result.output, result.prediction]


def _sampling_job(ctx: NodeContext) -> SamplingJob:
    return SamplingJob(
        ctx.get("guider", Guider),
        ctx.get("sampler", Sampler),
        ctx.get("sigmas", SigmaList).sigmas,
        ctx.get("noise", Noise),
        ctx.get("latent_image", Latent),
    )


def sample_custom(ctx: NodeContext) -> list[Value]:
    """``SamplerCustom``: the sampled latent, and the last x0 prediction."""
    noise = Noise(ctx.integer("noise_seed"), empty=not ctx.boolean("add_noise"))
    cfg = StreamTerms(ctx.number("cfg"))
    job = SamplingJob(
        _make_guider(ctx, cfg, cfg),
        ctx.get("sampler", Sampler),
        ctx.get("sigmas", SigmaList).sigmas,
        noise,
        ctx.get("latent_image", Latent),
    )
    result = denoise(ctx, job)
    return [result.output, result.prediction]


def sample_ksampler(ctx: NodeContext) -> list[Value]:
    """``KSampler``: a schedule by name, only its last steps with a denoise below 1."""
    sigmas = _schedule(ctx, ctx.number("denoise"))
    return [_sample_ksampler(ctx, sigmas, Noise(ctx.integer("seed"))).output]


def sample_ksampler_advanced(ctx: NodeContext) -> list[Value]:
    """``KSamplerAdvanced``: a range of the steps, with or without initial noise."""
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
    """``LTXVNormalizingSampler``: sampling with scaled predictions.

    After each step whose factors are not 1, the x0 prediction is multiplied by them and noised
    again with the same noise.
    """
    job = _sampling_job(ctx)
    if not job.latent.is_audio_video:
        raise ctx.error("latent_image is not an audio-video latent", "connect LTXVConcatAVLatent")
    if len(job.sigmas) < 2:
        return [denoise(ctx, job).prediction]
    steps = len(job.sigmas) - 1
    video, audio = (
        _factors_per_step(ctx, name, steps)
        for name in ("video_normalization_factors", "audio_normalization_factors")
    )
    cuts = [i + 1 for i in range(steps) if video[i] != 1.0 or audio[i] != 1.0]
    latent, start = job.latent, 0
    for cut in dict.fromkeys([*cuts, steps]):
        part = replace(job, latent=latent, sigmas=job.sigmas[start : cut + 1])
        latent = denoise(ctx, part).prediction
        if latent.video is None or latent.audio is None:
            raise TypeError("a stream of the latent is missing")
        latent = replace(
            latent, video=latent.video * video[cut - 1], audio=latent.audio * audio[cut - 1]
        )
        start = cut
    return [latent]


def _factors_per_step(ctx: NodeContext, name: str, count: int) -> list[float]:
    """Return ``count`` factors of a list; its last factor is repeated."""
    factors = parse_floats(ctx, name)
    return [factors[min(i, len(factors) - 1)] for i in range(count)]


def parse_floats(ctx: NodeContext, name: str) -> list[float]:
    """Parse a list of numbers such as ``"0.9, 0.75, 0.0"``."""
    text = ctx.text(name)
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ctx.error(f"{name} is {text!r}, expected numbers such as 1, 0.5") from None


def shift_model(ctx: NodeContext) -> list[Value]:
    """``ModelSamplingLTXV``: a model with the shift for a number of video tokens."""
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
        "LTX2_NAG": NodeFunction(nag_patch),
        "SamplerCustomAdvanced": NodeFunction(sample_custom_advanced, stored=True, samples=True),
        "SamplerCustom": NodeFunction(sample_custom, stored=True, samples=True),
        "KSampler": NodeFunction(sample_ksampler, stored=True, check=check_sampler, samples=True),
        "KSamplerAdvanced": NodeFunction(
            sample_ksampler_advanced, stored=True, check=check_sampler, samples=True
        ),
        "LTXVNormalizingSampler": NodeFunction(sample_normalizing, stored=True, samples=True),
    }
)
