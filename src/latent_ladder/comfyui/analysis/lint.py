"""What a graph does that its author may not expect, told from its values alone.

Each is something that ComfyUI carries out without a word. Sizes and lengths have their traps in
``forecast_rules.py``; these are about samplers, schedules, guidance and frame rates.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from latent_ladder.comfyui.analysis.shape_inference import Forecast, Look
from latent_ladder.comfyui.graph import Link, Node, Trap
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import start_of

_AS_COMFYUI = re.compile(r"[-+]?(?:\d*\.*\d+)")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_SAMPLERS = {
    "SamplerEulerAncestral": "euler_ancestral",
    "SamplerEulerAncestralCFGPP": "euler_ancestral_cfg_pp",
}
"""Nodes that are a sampler, with settings of their own."""
STEEP = 6.0
"""Shifts above it leave nearly all steps at pure noise."""


def sigmas_in(text: str) -> list[float]:
    """The numbers that ComfyUI finds in a text: exponents and trailing points are not read."""
    return [float(found) for found in _AS_COMFYUI.findall(text) if found.count(".") <= 1]


def noticed(told: Forecast, needed: tuple[str, ...]) -> Iterator[Trap]:
    """The traps of the nodes that are needed."""
    for key in needed:
        look = Look(told, told.graph.nodes[key])
        rule = _RULES.get(look.node.class_type)
        for code, message in rule(look) if rule else ():
            yield Trap(code, message, key)
    yield from _rates(told, needed)


def _manual(look: Look) -> Iterator[tuple[str, str]]:
    text = look.get("sigmas")
    if not isinstance(text, str):
        return
    read, meant = sigmas_in(text), [float(found) for found in _NUMBER.findall(text)]
    if read != meant:
        shown, wanted = _listed(read), _listed(meant)
        yield "sigmas_misread", f"{text!r} is read as {shown}, not as {wanted}"
    if not read:
        yield "no_sigmas", f"{text!r} holds no number: the latent is passed on as it is"
        return
    if any(b >= a for a, b in pairwise(read)):
        yield "sigmas_rise", f"the sigmas do not fall: {_listed(read)}"
    if read[-1] != 0:
        yield "noise_left", f"the sigmas end at {read[-1]:g}, so noise is left in the clip"
    if max(read) > 1:
        yield "sigmas_above_1", f"the sigmas start at {max(read):g}; 1 is pure noise"


def _listed(values: list[float]) -> str:
    shown = ", ".join(f"{v:g}" for v in values[:8])
    return shown + (", ..." if len(values) > 8 else "")


def _parameters(look: Look) -> Iterator[tuple[str, str]]:
    scale = look.number("modality_scale")
    if scale == 0:
        yield (
            "modality_scale_0",
            f"modality_scale 0 of {look.get('modality')} runs one more pass each step and takes "
            "its difference away; 1 switches it off",
        )

    if look.get("cross_attn") is False:
        yield (
            "cross_attn_stays",
            f"cross_attn of {look.get('modality')} cannot be switched off here",
        )


def _clown(look: Look) -> Iterator[tuple[str, str]]:
    name = str(look.get("sampler_name"))
    yield (
        "another_sampler",
        f"{name} of RES4LYF is carried out as {name.rpartition('/')[2]} of the official pipelines, "
        "whose noise is drawn in another way: alike, not equal",
    )


def _enhanced(_: Look) -> Iterator[tuple[str, str]]:
    yield (
        "prompt_as_written",
        "no language model rewrites prompts here: the prompt is taken as it is written",
    )


def _guided(look: Look) -> Iterator[tuple[str, str]]:
    """A negative prompt that is never looked at."""
    guider = _source(look, "guider")
    name = _sampler_name(look)
    if guider is None or guider.class_type != "CFGGuider" or name is None:
        return
    cfg = Look(look.forecast, guider).number("cfg")
    facts = SAMPLER_FACTS.get(name)
    if cfg != 1 or facts is None:
        return
    if not facts.needs_uncond:
        if text := _prompt(Look(look.forecast, guider), "negative"):
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            yield "negative_unused", f"at cfg 1 {name} never reads the negative prompt {shown!r}"
    else:
        yield "two_passes", f"{name} reads the negative prompt at cfg 1: two passes each step"


def _ksampler(look: Look) -> Iterator[tuple[str, str]]:
    yield from _denoise(look)
    name, cfg = look.get("sampler_name"), look.number("cfg")
    if cfg == 1 and isinstance(name, str) and name in SAMPLER_FACTS:
        text = _prompt(look, "negative")
        if text and not SAMPLER_FACTS[name].needs_uncond:
            yield "negative_unused", f"at cfg 1 {name} never reads the negative prompt"


def _denoise(look: Look) -> Iterator[tuple[str, str]]:
    denoise, scheduler = look.number("denoise"), look.get("scheduler")
    if denoise is None or denoise >= 0.9999:
        return
    if denoise <= 0:
        yield "no_sigmas", "denoise 0 gives no steps: the latent is passed on as it is"
    elif scheduler == "simple":
        start = start_of(denoise)
        yield "denoise_starts", f"denoise {denoise:g} starts at about sigma {start:.2f}"


def _scheduler(look: Look) -> Iterator[tuple[str, str]]:
    if "latent" not in look.node.inputs:
        yield "scheduler_alone", "no latent is connected: the shift is that of 4096 tokens"
        return
    picture = look.picture("latent")
    high, low = look.number("max_shift"), look.number("base_shift")
    if picture is None or high is None or low is None:
        return
    tokens = picture.width * picture.height // 1024 * ((picture.frames - 1) // 8 + 1)
    shift = low + (tokens - 1024) * (high - low) / 3072
    if shift > STEEP:
        yield (
            "steep_shift",
            f"{tokens} tokens give a shift of {shift:.1f}, which nothing clamps: nearly all steps "
            "stay at pure noise",
        )


def _one_latent(look: Look) -> Iterator[tuple[str, str]]:
    tiles = max(look.whole("horizontal_tiles") or 1, look.whole("vertical_tiles") or 1)
    if tiles > 1 and look.whole("overlap") == 1:
        yield "thin_overlap", "tiles overlap by 1 latent (32 pixels): seams may show; try 4 or more"


_SIGMA_RULES: Mapping[str, Callable[[Look], Iterator[tuple[str, str]]]] = {
    "ManualSigmas": _manual,
    "LTXVScheduler": _scheduler,
    "BasicScheduler": _denoise,
}
_RULES: Mapping[str, Callable[[Look], Iterator[tuple[str, str]]]] = {
    **_SIGMA_RULES,
    "GuiderParameters": _parameters,
    "ClownSampler_Beta": _clown,
    "SamplerCustomAdvanced": _guided,
    "LTXVNormalizingSampler": _guided,
    "KSampler": _ksampler,
    "LTXVTiledVAEDecode": _one_latent,
    "TextGenerateLTX2Prompt": _enhanced,
}


def _rates(told: Forecast, needed: tuple[str, ...]) -> Iterator[Trap]:
    """One frame rate from the prompt to the file, or the sound drifts."""
    names = {"LTXVConditioning": "frame_rate", "CreateVideo": "fps"}
    found: dict[str, tuple[str, float]] = {}
    for key in needed:
        node = told.graph.nodes[key]
        name = names.get(node.class_type)
        rate = Look(told, node).number(name) if name else None
        if rate is not None:
            found.setdefault(node.class_type, (key, rate))
    if len(found) == 2:
        (_, wanted), (key, shown) = found["LTXVConditioning"], found["CreateVideo"]
        if not math.isclose(wanted, shown, rel_tol=1e-3):
            text = f"the clip is written at {shown:g} fps and was made for {wanted:g}"
            yield Trap("rates_differ", f"{text}: it plays at another speed than its sound", key)


# --- along links ----------------------------------------------------------------------------------


def _source(look: Look, name: str) -> Node | None:
    link = look.node.inputs.get(name)
    return look.forecast.graph.nodes.get(link.node) if isinstance(link, Link) else None


def _sampler_name(look: Look) -> str | None:
    node = _source(look, "sampler")
    if node is not None and node.class_type in _SAMPLERS:
        return _SAMPLERS[node.class_type]
    name = Look(look.forecast, node).get("sampler_name") if node else look.get("sampler_name")
    return name if isinstance(name, str) else None


def _prompt(look: Look, name: str) -> str:
    """The text of a conditioning, through nodes that pass it on; empty if it cannot be told."""
    for _ in range(len(look.forecast.graph.nodes)):
        link = look.node.inputs.get(name)
        node = _source(look, name)
        if node is None or not isinstance(link, Link):
            return ""
        look = Look(look.forecast, node)
        if node.class_type == "CLIPTextEncode":
            text = look.get("text")
            return text.strip() if isinstance(text, str) else ""
        results = node_type(node.class_type).outputs
        name = results[link.slot].name if link.slot < len(results) else ""
    return ""


def stage_facts(told: Forecast, key: str) -> dict[str, Any]:
    """What a sampling node does: sampler, steps, guidance, seed, as far as it can be told."""
    look = Look(told, told.graph.nodes[key])
    noise, guider, schedule = (_source(look, name) for name in ("noise", "guider", "sigmas"))
    own = Look(told, schedule) if schedule else look
    sigmas = own.get("sigmas") if schedule and schedule.class_type == "ManualSigmas" else None
    read = sigmas_in(sigmas) if isinstance(sigmas, str) else []
    facts = {
        "node": key,
        "title": look.node.title,
        "sampler": _sampler_name(look),
        "steps": max(len(read) - 1, 0) if read else own.whole("steps"),
        "start_sigma": read[0] if read else None,
        "guider": guider.class_type if guider else None,
        "cfg": Look(told, guider).number("cfg") if guider else look.number("cfg"),
        "seed": Look(told, noise).whole("noise_seed") if noise else look.whole("seed"),
    }
    return {name: value for name, value in facts.items() if value is not None}
