"""Export of one sampling run: guider, sampler and sigmas."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from latent_ladder.comfyui.exporter.graph_builder import GraphBuilder
from latent_ladder.comfyui.graph import Link, Value
from latent_ladder.request.model import Request
from latent_ladder.request.sampling_options import StreamGuidance
from latent_ladder.request.stages import BaseStage, RefineStage
from latent_ladder.sampling.schedules import DEFAULT_TOKENS, SCHEDULES

COMFY_SCHEDULES = frozenset(
    {
        "simple", "normal", "sgm_uniform", "ddim_uniform", "beta", "linear_quadratic", "karras",
        "exponential", "kl_optimal",
    }
)  # fmt: skip
"""Schedules that ComfyUI's BasicScheduler has under the same name with the same defaults."""
SAMPLER_SUBSTITUTES = {"dpmpp_2m_rf": "dpmpp_2m"}
"""Samplers that ComfyUI lacks, with the closest one that it has."""
ANCESTRAL_NODES = {
    "euler_ancestral": "SamplerEulerAncestral",
    "euler_ancestral_cfg_pp": "SamplerEulerAncestralCFGPP",
}
"""Nodes with the options of a sampler, by sampler name."""
RES_2S_ETA = 0.5


class Prompts(NamedTuple):
    """Links to the encoded prompts."""

    positive: Link
    negative: Link


def add_guider(
    builder: GraphBuilder, stage: BaseStage | RefineStage, model: Link, prompts: Prompts
) -> Link:
    """Add the guider node for the guidance of a stage."""
    video, audio = stage.guidance.video, stage.guidance.audio
    inputs: dict[str, Link | Value] = {
        "model": model,
        "positive": prompts.positive,
        "negative": prompts.negative,
    }
    if uses_only_cfg(video) and uses_only_cfg(audio):
        if video.cfg == audio.cfg:
            return builder.add_node_with("CFGGuider", {"cfg": video.cfg, **inputs})[0]
        scales = {"video_cfg": video.cfg, "audio_cfg": audio.cfg}
        return builder.add_node_with("LTXVDualCFGGuider", {**scales, **inputs})[0]
    parameters = _add_guider_parameters(builder, "AUDIO", audio, None)
    parameters = _add_guider_parameters(builder, "VIDEO", video, parameters)
    blocks = ", ".join(str(b) for b in sorted({*video.stg_blocks, *audio.stg_blocks}))
    return builder.add_node_with(
        "MultimodalGuider", {"skip_blocks": blocks, **inputs, "parameters": parameters}
    )[0]


def uses_only_cfg(guidance: StreamGuidance) -> bool:
    """Return whether a stream has no guidance but CFG."""
    return (
        guidance.stg == 0
        and guidance.modality == 1
        and not guidance.skip_step
        and (guidance.rescale == 0 or guidance.cfg == 1)
    )


def _add_guider_parameters(
    builder: GraphBuilder, modality: str, guidance: StreamGuidance, before: Link | None
) -> Link:
    values: dict[str, Link | Value] = {
        "modality": modality,
        "cfg": guidance.cfg,
        "stg": guidance.stg,
        "perturb_attn": bool(guidance.stg_blocks),
        "rescale": guidance.rescale,
        "modality_scale": guidance.modality,
        "skip_step": guidance.skip_step,
        "cross_attn": True,
    }
    if before is not None:
        values["parameters"] = before
    return builder.add_node_with("GuiderParameters", values)[0]


def add_nag(
    builder: GraphBuilder,
    stage: BaseStage | RefineStage,
    model: Link,
    negative: Link,
    *,
    has_audio: bool,
) -> Link:
    """Add KJNodes' node for NAG between model and guider, if the stage has NAG.

    It has one set of numbers for both streams: that of the video, if the video has NAG.
    """
    streams = {"video": stage.guidance.video}
    if has_audio:
        streams["audio"] = stage.guidance.audio
    nags = {name: one.nag for name, one in streams.items() if one.has_nag and one.nag is not None}
    if not nags:
        return model
    numbers = next(iter(nags.values()))
    inputs: dict[str, Link | Value] = {f"nag_cond_{stream}": negative for stream in nags}
    return builder.reuse_node(
        "LTX2_NAG",
        model=model,
        nag_scale=numbers.scale,
        nag_alpha=numbers.alpha,
        nag_tau=numbers.tau,
        **inputs,
    )[0]


def add_sampler(builder: GraphBuilder, stage: BaseStage | RefineStage, seed: int) -> Link:
    """Add the node for the sampler of a stage, with its options if a node has them."""
    name, options = stage.sampler, stage.options
    if name == "res_2s":
        return builder.add_node(
            "ClownSampler_Beta",
            eta=RES_2S_ETA if options.eta is None else options.eta,
            sampler_name="exponential/res_2s",
            seed=seed,
            bongmath=options.bong is not False,
        )[0]
    if name in ANCESTRAL_NODES and (options.eta is not None or options.s_noise is not None):
        eta = 1.0 if options.eta is None else options.eta
        s_noise = 1.0 if options.s_noise is None else options.s_noise
        return builder.add_node(ANCESTRAL_NODES[name], eta=eta, s_noise=s_noise)[0]
    return builder.add_node("KSamplerSelect", sampler_name=SAMPLER_SUBSTITUTES.get(name, name))[0]


def add_sigmas(
    builder: GraphBuilder, request: Request, position: int, model: Link, latent: Link
) -> Link:
    """Add the node for the sigmas of a stage: a scheduler, or else the exact numbers.

    ``latent`` is the latent whose tokens a scheduler counts.
    """
    stage = request.stages[position]
    sigmas = request.resolved.stages[position].sigmas
    if not isinstance(stage, BaseStage | RefineStage):
        raise TypeError(f"stage {position} does not sample")
    schedule = stage.schedule
    tokens = request.resolutions[position].video_tokens
    # a video to start from shortens the sigmas of the base stage
    if schedule is None or stage.sigmas_for(tokens) != sigmas:
        return add_manual_sigmas(builder, sigmas)
    counted = schedule.tokens or DEFAULT_TOKENS
    if schedule.name == "ltx" and stage.share == 1.0 and counted in ("actual", DEFAULT_TOKENS):
        defaults = SCHEDULES["ltx"].parameters
        fields = schedule.model_dump(exclude_none=True)
        names = ("max_shift", "base_shift", "stretch", "terminal")
        values = {name: fields.get(name, defaults[name]) for name in names}
        linked = {"latent": latent} if counted == "actual" else {}
        return builder.add_node_with(
            "LTXVScheduler", {"steps": schedule.steps, **values, **linked}
        )[0]
    parameters = schedule.model_dump(exclude_none=True, exclude={"name", "steps"})
    if schedule.name in COMFY_SCHEDULES and not parameters:
        return builder.add_node(
            "BasicScheduler",
            scheduler=schedule.name,
            steps=schedule.steps,
            denoise=stage.share,
            model=model,
        )[0]
    return add_manual_sigmas(builder, sigmas)


def add_manual_sigmas(builder: GraphBuilder, sigmas: tuple[float, ...]) -> Link:
    """Add a node with all digits of the sigmas, without exponents, which ComfyUI misreads."""
    return builder.add_node(
        "ManualSigmas", sigmas=", ".join(format_decimal(sigma) for sigma in sigmas)
    )[0]


def format_decimal(number: float) -> str:
    """Return the shortest decimal text of a number without exponent: ``0.85``, ``0.00001``."""
    text = format(Decimal(repr(number)), "f")
    return text if "." in text else f"{text}.0"
