"""Noise, samplers, sigmas, guiders, and the nodes that sample with them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.nodes.denoise import Denoised, Job, denoised
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
from latent_ladder.comfyui.nodes.sigmas import ltx_mu, scheduled
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

ALIASES = MappingProxyType({"ddim": "euler"})
"""Samplers that are another one under their own name: ddim starts as euler does."""
CLOWN = re.compile(r"(?:.*/)?(res_2s|euler)$")


# --- noise and samplers -------------------------------------------------------------------------


def random_noise(ask: Ask) -> list[Value]:
    """``RandomNoise``."""
    return [Noise(ask.whole("noise_seed"))]


def no_noise(_: Ask) -> list[Value]:
    """``DisableNoise``."""
    return [Noise(empty=True)]


def sampler(ask: Ask) -> list[Value]:
    """``KSamplerSelect``."""
    return [named_sampler(ask, ask.text("sampler_name"))]


def named_sampler(ask: Ask, name: str) -> Sampler:
    """The sampler that ComfyUI calls so."""
    name = ALIASES.get(name, name)
    if name not in SAMPLERS:
        raise ask.error(*_unknown_sampler(name))
    return Sampler(name)


def _unknown_sampler(name: str) -> tuple[str, str]:
    known = ", ".join(sorted({*SAMPLERS, *ALIASES}))
    return f"the sampler {name} is not known here; known: {known}", "use euler"


def refuses_sampler(node: Node) -> str:
    """Why a node with this ``sampler_name`` cannot run."""
    name = node.inputs.get("sampler_name", "euler")
    if not isinstance(name, str) or name in SAMPLERS or name in ALIASES:
        return ""
    return _unknown_sampler(name)[0]


def euler_ancestral(ask: Ask) -> list[Value]:
    """``SamplerEulerAncestral``: eta 0 is euler."""
    options = SamplerOptions(eta=ask.number("eta"), s_noise=ask.number("s_noise"))
    return [Sampler("euler_ancestral", options)]


def euler_ancestral_cfg_pp(ask: Ask) -> list[Value]:
    """``SamplerEulerAncestralCFGPP``."""
    options = SamplerOptions(eta=ask.number("eta"), s_noise=ask.number("s_noise"))
    return [Sampler("euler_ancestral_cfg_pp", options)]


def clown(ask: Ask) -> list[Value]:
    """RES4LYF's sampler for the rules that are here too; its noise is the pack's own."""
    name, eta = ask.text("sampler_name"), ask.number("eta")
    found = CLOWN.match(name)
    if found is None:
        raise ask.error(_unknown_clown(name), "use exponential/res_2s")
    ask.warn(
        "another_sampler",
        f"{name} of RES4LYF is carried out as {found[1]} of the official pipelines, whose noise "
        "is drawn in another way: alike, not equal",
    )
    options = SamplerOptions(eta=eta, bong=ask.flag("bongmath") if ask.has("bongmath") else True)
    return [Sampler("res_2s" if found[1] == "res_2s" else "euler_ancestral", options)]


def _unknown_clown(name: object) -> str:
    return f"the sampler {name} of RES4LYF is not known here"


def refuses_clown(node: Node) -> str:
    """Why a ``ClownSampler_Beta`` cannot run."""
    name = node.inputs.get("sampler_name", "multistep/res_2m")
    if isinstance(name, str) and CLOWN.match(name) is None:
        return _unknown_clown(name)
    return ""


# --- guiders ------------------------------------------------------------------------------------


def basic_guider(ask: Ask) -> list[Value]:
    """``BasicGuider``: the prompt alone."""
    positive, plain = ask.get("conditioning", Conditioning), StreamTerms()
    return [Guider(ask.get("model", Model), positive, None, plain, plain)]


def cfg_guider(ask: Ask) -> list[Value]:
    """``CFGGuider``: one scale for picture and sound."""
    return [_guider(ask, StreamTerms(ask.number("cfg")), StreamTerms(ask.number("cfg")))]


def dual_guider(ask: Ask) -> list[Value]:
    """``LTXVDualCFGGuider``: a scale for each; where they differ, the negative prompt is evaluated
    even at a scale of 1."""
    video, audio = StreamTerms(ask.number("video_cfg")), StreamTerms(ask.number("audio_cfg"))
    return [replace(_guider(ask, video, audio), always_uncond=video != audio)]


def _guider(ask: Ask, video: StreamTerms, audio: StreamTerms) -> Guider:
    positive, negative = ask.get("positive", Conditioning), ask.get("negative", Conditioning)
    return Guider(ask.get("model", Model), positive, negative, video, audio)


def guider_parameters(ask: Ask) -> list[Value]:
    """``GuiderParameters``: the terms of one stream, beside those of an earlier node."""
    modality = ask.text("modality")
    before = ask.maybe("parameters", GuiderParameters)
    terms = {} if before is None else before.terms
    if modality in terms:
        raise ask.error(f"{modality} has parameters already", "choose the other modality")
    own = StreamTerms(
        cfg=ask.number("cfg"),
        stg=ask.number("stg"),
        rescale=ask.number("rescale"),
        modality=ask.number("modality_scale"),
        skip_step=ask.whole("skip_step"),
    )
    perturbs = {} if before is None else before.perturbs
    cross = {} if before is None else before.cross
    return [
        GuiderParameters(
            {**terms, modality: own},
            {**perturbs, modality: ask.flag("perturb_attn")},
            {**cross, modality: ask.flag("cross_attn")},
        )
    ]


def multimodal_guider(ask: Ask) -> list[Value]:
    """``MultimodalGuider``: each stream with its own terms, STG in the blocks that are listed."""
    given = ask.get("parameters", GuiderParameters)
    blocks = whole_numbers(ask, "skip_blocks")
    streams = []
    for modality in ("VIDEO", "AUDIO"):
        terms = given.terms.get(modality)
        if terms is None:
            raise ask.error(f"there are no parameters for {modality}", "add GuiderParameters")
        perturbed = given.perturbs[modality]
        if not given.cross[modality]:
            ask.warn("cross_attn", f"cross_attn of {modality} stays on: it cannot be switched off")
        streams.append(replace(terms, stg_blocks=blocks if perturbed else ()))
    return [_guider(ask, *streams)]


def stg_guider(ask: Ask) -> list[Value]:
    """``STGGuider``: the blocks are those of ``LTXVApplySTG``."""
    model = ask.get("model", Model)
    blocks = () if model.stg is None else model.stg.blocks
    terms = StreamTerms(
        ask.number("cfg"), ask.number("stg"), rescale=ask.number("rescale"), stg_blocks=blocks
    )
    return [replace(_guider(ask, terms, terms), model=replace(model, stg=None))]


def stg_guider_advanced(ask: Ask) -> list[Value]:
    """``STGGuiderAdvanced``: terms by sigma, CFG-Zero*, first steps zero."""
    if ask.has("apply_apg") and ask.flag("apply_apg"):
        raise ask.error("adaptive projected guidance is not known here", "switch apply_apg off")
    if ask.has("preset"):
        raise ask.error("presets are not known here", "write its values into the node")
    sigmas, cfgs = numbers(ask, "sigmas"), numbers(ask, "cfg_values")
    scales, rescales = numbers(ask, "stg_scale_values"), numbers(ask, "stg_rescale_values")
    blocks = [
        tuple(int(word) for word in re.findall(r"\d+", group))
        for group in re.findall(r"\[([^\]]*)\]", ask.text("stg_layers_indices"))
    ]
    if len({len(row) for row in (sigmas, cfgs, scales, rescales, blocks)}) != 1:
        raise ask.error("its lists differ in length", "give one value for each of its sigmas")
    star = ask.flag("cfg_star_rescale")
    rows = tuple(
        (s, StreamTerms(cfg, stg, rescale=r, stg_blocks=b, cfg_star=star))
        for s, cfg, stg, r, b in zip(sigmas, cfgs, scales, rescales, blocks, strict=True)
    )
    plain = _guider(ask, StreamTerms(), StreamTerms())
    return [replace(plain, by_sigma=rows, zero_above=ask.number("skip_steps_sigma_threshold"))]


def apply_stg(ask: Ask) -> list[Value]:
    """``LTXVApplySTG``: names the blocks; the guider says how strongly."""
    named = Patch(0.0, blocks=whole_numbers(ask, "block_indices"))
    return [replace(ask.get("model", Model), stg=named)]


def stg_patch(ask: Ask) -> list[Value]:
    """``LTXVSpatioTemporalGuidance``."""
    blocks = whole_numbers(ask, "blocks")
    model = ask.get("model", Model)
    return [replace(model, stg=replace(patch(ask, model, "scale"), blocks=blocks))]


def modality_patch(ask: Ask) -> list[Value]:
    """``LTXVModalityGuidance``."""
    model = ask.get("model", Model)
    return [replace(model, modality=patch(ask, model, "modality_scale"))]


def patch(ask: Ask, model: Model, scale: str) -> Patch:
    """A term for a part of the run; the range is in percent of the model's time."""
    start, end = ask.number("start_percent"), ask.number("end_percent")
    return Patch(
        ask.number(scale), percent_to_sigma(start, model.shift), percent_to_sigma(end, model.shift)
    )


def percent_to_sigma(percent: float, shift: float) -> float:
    """Where a part of the run begins or ends."""
    if percent <= 0:
        return math.inf
    return 0.0 if percent >= 1 else shift_time(1 - percent, shift)


def whole_numbers(ask: Ask, name: str) -> tuple[int, ...]:
    """A list such as ``"14, 19"``; brackets do not matter."""
    words = re.split(r"[\s,\[\]]+", ask.text(name).strip("[] ,\n"))
    try:
        return tuple(int(word) for word in words if word)
    except ValueError:
        raise ask.error(f"{name} is {ask.text(name)!r}, expected numbers such as 14, 19") from None


# --- runs ---------------------------------------------------------------------------------------


def custom_advanced(ask: Ask) -> list[Value]:
    """``SamplerCustomAdvanced``: the latent, and the last prediction of it."""
    found = denoised(ask, _job(ask))
    return [found.output, found.last]


def _job(ask: Ask) -> Job:
    return Job(
        ask.get("guider", Guider),
        ask.get("sampler", Sampler),
        ask.get("sigmas", SigmaList).sigmas,
        ask.get("noise", Noise),
        ask.get("latent_image", Latent),
    )


def custom(ask: Ask) -> list[Value]:
    """``SamplerCustom``."""
    noise = Noise(ask.whole("noise_seed"), empty=not ask.flag("add_noise"))
    cfg = StreamTerms(ask.number("cfg"))
    job = Job(
        _guider(ask, cfg, cfg),
        ask.get("sampler", Sampler),
        ask.get("sigmas", SigmaList).sigmas,
        noise,
        ask.get("latent_image", Latent),
    )
    found = denoised(ask, job)
    return [found.output, found.last]


def ksampler(ask: Ask) -> list[Value]:
    """``KSampler``: the generic schedules, their last steps for a denoise below 1."""
    sigmas = _model_sigmas(ask, ask.number("denoise"))
    return [_ksampled(ask, sigmas, Noise(ask.whole("seed"))).output]


def ksampler_advanced(ask: Ask) -> list[Value]:
    """``KSamplerAdvanced``: a part of the steps, with noise or without."""
    sigmas = _model_sigmas(ask, 1.0)
    first, last = ask.whole("start_at_step"), ask.whole("end_at_step")
    if last < len(sigmas) - 1:
        sigmas = sigmas[: last + 1]
        if ask.text("return_with_leftover_noise") == "disable":
            sigmas = (*sigmas[:-1], 0.0)
    noise = Noise(ask.whole("noise_seed"), empty=ask.text("add_noise") != "enable")
    part = sigmas[first:] if first < len(sigmas) - 1 else ()
    return [_ksampled(ask, part, noise).output]


def _model_sigmas(ask: Ask, denoise: float) -> Sigmas:
    model = ask.get("model", Model)
    return scheduled(ask, ask.text("scheduler"), ask.whole("steps"), denoise, model.shift)


def _ksampled(ask: Ask, sigmas: Sigmas, noise: Noise) -> Denoised:
    cfg = StreamTerms(ask.number("cfg"))
    chosen = named_sampler(ask, ask.text("sampler_name"))
    latent = ask.get("latent_image", Latent)
    return denoised(ask, Job(_guider(ask, cfg, cfg), chosen, sigmas, noise, latent))


def normalizing(ask: Ask) -> list[Value]:
    """``LTXVNormalizingSampler``: after every step whose factors are not 1, the prediction is
    multiplied by them and noised again with the same noise."""
    job = _job(ask)
    if not job.latent.is_both:
        raise ask.error("it needs an audio-video latent", "connect LTXVConcatAVLatent")
    steps = len(job.sigmas) - 1
    video, audio = (
        _extended(ask, name, steps)
        for name in ("video_normalization_factors", "audio_normalization_factors")
    )
    cuts = [i + 1 for i in range(steps) if video[i] != 1.0 or audio[i] != 1.0]
    latent, start = job.latent, 0
    for cut in dict.fromkeys([*cuts, steps]):
        part = replace(job, latent=latent, sigmas=job.sigmas[start : cut + 1])
        latent = denoised(ask, part).last
        if latent.video is None or latent.audio is None:
            raise TypeError("a part of the latent got lost")
        latent = replace(
            latent, video=latent.video * video[cut - 1], audio=latent.audio * audio[cut - 1]
        )
        start = cut
    return [latent]


def _extended(ask: Ask, name: str, count: int) -> list[float]:
    """A list of factors, its last one repeated."""
    factors = numbers(ask, name)
    return [factors[min(i, len(factors) - 1)] for i in range(count)]


def numbers(ask: Ask, name: str) -> list[float]:
    """A list such as ``"0.9, 0.75, 0.0"``."""
    try:
        found = [float(word) for word in ask.text(name).split(",")]
    except ValueError:
        raise ask.error(f"{name} is {ask.text(name)!r}, expected numbers such as 1, 0.5") from None
    return found


def shifted_model(ask: Ask) -> list[Value]:
    """``ModelSamplingLTXV``: the model's sigma table by the number of video tokens."""
    mu = ltx_mu(ask, ask.number("max_shift"), ask.number("base_shift"))
    return [replace(ask.get("model", Model), shift=mu)]


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "RandomNoise": Meaning(random_noise),
        "DisableNoise": Meaning(no_noise),
        "KSamplerSelect": Meaning(sampler, refuses=refuses_sampler),
        "SamplerEulerAncestral": Meaning(euler_ancestral),
        "SamplerEulerAncestralCFGPP": Meaning(euler_ancestral_cfg_pp),
        "ClownSampler_Beta": Meaning(clown, refuses=refuses_clown),
        "ModelSamplingLTXV": Meaning(shifted_model),
        "BasicGuider": Meaning(basic_guider),
        "CFGGuider": Meaning(cfg_guider),
        "LTXVDualCFGGuider": Meaning(dual_guider),
        "GuiderParameters": Meaning(guider_parameters),
        "MultimodalGuider": Meaning(multimodal_guider),
        "STGGuider": Meaning(stg_guider),
        "STGGuiderAdvanced": Meaning(stg_guider_advanced),
        "LTXVApplySTG": Meaning(apply_stg),
        "LTXVSpatioTemporalGuidance": Meaning(stg_patch),
        "LTXVModalityGuidance": Meaning(modality_patch),
        "SamplerCustomAdvanced": Meaning(custom_advanced, keeps=True),
        "SamplerCustom": Meaning(custom, keeps=True),
        "KSampler": Meaning(ksampler, keeps=True, refuses=refuses_sampler),
        "KSamplerAdvanced": Meaning(ksampler_advanced, keeps=True, refuses=refuses_sampler),
        "LTXVNormalizingSampler": Meaning(normalizing, keeps=True),
    }
)
