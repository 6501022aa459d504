"""The nodes of one sampling run: guider, sampler, sigmas."""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

from latent_ladder.comfyui.exporter.graph_builder import Sheet
from latent_ladder.comfyui.graph import Link, Value
from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, StreamGuidance
from latent_ladder.sampling.schedules import DEFAULT_TOKENS, SCHEDULES

COMFY_SCHEDULES = frozenset(
    {
        "simple", "normal", "sgm_uniform", "ddim_uniform", "beta", "linear_quadratic", "karras",
        "exponential", "kl_optimal",
    }
)  # fmt: skip
"""Schedules that ComfyUI's BasicScheduler has under the same name and with our defaults."""
RENAMED_SAMPLERS = {"dpmpp_2m_rf": "dpmpp_2m"}
"""Samplers that no node has, and the nearest one that a node has."""
ANCESTRAL = {
    "euler_ancestral": "SamplerEulerAncestral",
    "euler_ancestral_cfg_pp": "SamplerEulerAncestralCFGPP",
}
"""Samplers with dials, by the node that has them."""
RES_2S_ETA = 0.5


class Prompts(NamedTuple):
    """Encoded prompts."""

    positive: Link
    negative: Link


def guider(sheet: Sheet, stage: BaseStage | RefineStage, model: Link, texts: Prompts) -> Link:
    """The guider node that combines passes as the stage's guidance does."""
    video, audio = stage.guidance.video, stage.guidance.audio
    inputs: dict[str, Link | Value] = {
        "model": model,
        "positive": texts.positive,
        "negative": texts.negative,
    }
    if only_cfg(video) and only_cfg(audio):
        if video.cfg == audio.cfg:
            return sheet.put("CFGGuider", {"cfg": video.cfg, **inputs})[0]
        scales = {"video_cfg": video.cfg, "audio_cfg": audio.cfg}
        return sheet.put("LTXVDualCFGGuider", {**scales, **inputs})[0]
    parameters = _parameters(sheet, "AUDIO", audio, None)
    parameters = _parameters(sheet, "VIDEO", video, parameters)
    blocks = ", ".join(str(b) for b in sorted({*video.stg_blocks, *audio.stg_blocks}))
    return sheet.put(
        "MultimodalGuider", {"skip_blocks": blocks, **inputs, "parameters": parameters}
    )[0]


def only_cfg(guidance: StreamGuidance) -> bool:
    """Whether nothing but text guidance is asked for."""
    return (
        guidance.stg == 0
        and guidance.modality == 1
        and not guidance.skip_step
        and (guidance.rescale == 0 or guidance.cfg == 1)
    )


def _parameters(sheet: Sheet, modality: str, guidance: StreamGuidance, before: Link | None) -> Link:
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
    return sheet.put("GuiderParameters", values)[0]


def sampler_node(sheet: Sheet, stage: BaseStage | RefineStage, seed: int) -> Link:
    """The node that gives the stage's sampler, with its dials where a node has them."""
    name, options = stage.sampler, stage.options
    if name == "res_2s":
        return sheet.add(
            "ClownSampler_Beta",
            eta=RES_2S_ETA if options.eta is None else options.eta,
            sampler_name="exponential/res_2s",
            seed=seed,
            bongmath=options.bong is not False,
        )[0]
    if name in ANCESTRAL and (options.eta is not None or options.s_noise is not None):
        eta = 1.0 if options.eta is None else options.eta
        s_noise = 1.0 if options.s_noise is None else options.s_noise
        return sheet.add(ANCESTRAL[name], eta=eta, s_noise=s_noise)[0]
    return sheet.add("KSamplerSelect", sampler_name=RENAMED_SAMPLERS.get(name, name))[0]


def sigmas_node(sheet: Sheet, request: Request, position: int, model: Link, counted: Link) -> Link:
    """The node that gives the stage's sigmas; exact numbers where no schedule node gives them.

    ``counted`` is the latent whose tokens count.
    """
    stage = request.stages[position]
    walk = request.sigmas(position)
    if not isinstance(stage, BaseStage | RefineStage):
        raise TypeError(f"stage {position} does not sample")
    asked = stage.schedule
    whole = (
        asked is not None and stage.sigmas_for(request.resolutions[position].video_tokens) == walk
    )
    if asked is None or not whole:
        return manual(sheet, walk)
    if asked.name == "ltx" and stage.share == 1.0:
        tokens = asked.tokens or DEFAULT_TOKENS
        if tokens in ("actual", DEFAULT_TOKENS):
            defaults = SCHEDULES["ltx"].parameters
            given = asked.model_dump(exclude_none=True)
            kept = ("max_shift", "base_shift", "stretch", "terminal")
            values = {name: given.get(name, defaults[name]) for name in kept}
            linked = {"latent": counted} if tokens == "actual" else {}
            return sheet.put("LTXVScheduler", {"steps": asked.steps, **values, **linked})[0]
    own = asked.model_dump(exclude_none=True, exclude={"name", "steps"})
    if asked.name in COMFY_SCHEDULES and not own:
        return sheet.add(
            "BasicScheduler",
            scheduler=asked.name,
            steps=asked.steps,
            denoise=stage.share,
            model=model,
        )[0]
    return manual(sheet, walk)


def manual(sheet: Sheet, walk: tuple[float, ...]) -> Link:
    """Sigmas as text, every digit of them; never with an exponent, which ComfyUI misreads."""
    return sheet.add("ManualSigmas", sigmas=", ".join(plain(sigma) for sigma in walk))[0]


def plain(number: float) -> str:
    """The shortest decimal text that reads back to the same number: ``0.85``, ``0.00001``."""
    text = format(Decimal(repr(number)), "f")
    return text if "." in text else f"{text}.0"
