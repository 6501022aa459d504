"""What one sampling node does, as the fields of a stage: guidance, sampler, sigmas, LoRAs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_ladder.comfyui.exporter.sampling import COMFY_SCHEDULES
from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import RUN_IT, Trail, does_not_fit
from latent_ladder.errors import RequestError
from latent_ladder.request.stages import Schedule
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import SCHEDULES

Place = tuple[Node, int]

SAMPLING_NODES = frozenset(
    {"SamplerCustomAdvanced", "SamplerCustom", "KSampler", "KSamplerAdvanced"}
)
_LORA_NODES = frozenset({"LoraLoaderModelOnly", "LoraLoader", "LTXICLoRALoaderModelOnly"})
_NUMBER = re.compile(r"[-+]?(?:\d*\.*\d+)")
"""How ComfyUI's ManualSigmas finds numbers in its text."""


@dataclass(frozen=True)
class ModelChain:
    """The transformer of a stage: the node that loads it, LoRAs from it outwards, other guidance.

    ``terms`` are ``stg``, ``stg_blocks`` and ``modality`` of nodes that patch the model.
    """

    loader: Node
    loras: tuple[dict[str, Any], ...] = ()
    terms: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampling:
    """One sampling node: the stage's fields but for its sigmas, and where its inputs come from.

    ``sigmas`` is the place of a schedule node, or ``None`` where ``fields`` hold a schedule.
    """

    node: Node
    fields: dict[str, Any]
    seed: int
    model: ModelChain
    positive: Place
    negative: Place | None
    start: Place
    sigmas: Place | None


def read_sampling(trail: Trail, node: Node) -> Sampling:
    """Everything but the latents of a sampling node. Raises :class:`WorkflowError`."""
    if node.class_type == "SamplerCustomAdvanced":
        return _custom(trail, node)
    if node.class_type == "SamplerCustom":
        return _custom_one(trail, node)
    if node.class_type == "KSampler":
        return _ksampler(trail, node)
    raise does_not_fit(node, "runs a part of a schedule")


def _custom(trail: Trail, node: Node) -> Sampling:
    noise, _ = trail.needed(node, "noise")
    if noise.class_type != "RandomNoise":
        raise does_not_fit(noise, "samples without noise of its own")
    guider, _ = trail.needed(node, "guider")
    if guider.class_type not in _GUIDERS:
        raise does_not_fit(guider, "guides in a way that stages do not know")
    model = read_model(trail, trail.needed(guider, "model"))
    guidance = _with_terms(guider, _GUIDERS[guider.class_type](trail, guider), model.terms)
    positive = "conditioning" if guider.class_type == "BasicGuider" else "positive"
    sampler, _ = trail.needed(node, "sampler")
    return Sampling(
        node,
        {**_sampler(trail, sampler), "guidance": guidance, "loras": list(model.loras)},
        trail.whole(noise, "noise_seed"),
        model,
        trail.needed(guider, positive),
        trail.source(guider, "negative"),
        trail.needed(node, "latent_image"),
        trail.needed(node, "sigmas"),
    )


def _custom_one(trail: Trail, node: Node) -> Sampling:
    if not trail.value(node, "add_noise"):
        raise does_not_fit(node, "samples without noise of its own")
    model = read_model(trail, trail.needed(node, "model"))
    guidance = _with_terms(node, _both(trail.number(node, "cfg")), model.terms)
    sampler, _ = trail.needed(node, "sampler")
    return Sampling(
        node,
        {**_sampler(trail, sampler), "guidance": guidance, "loras": list(model.loras)},
        trail.whole(node, "noise_seed"),
        model,
        trail.needed(node, "positive"),
        trail.source(node, "negative"),
        trail.needed(node, "latent_image"),
        trail.needed(node, "sigmas"),
    )


def _ksampler(trail: Trail, node: Node) -> Sampling:
    model = read_model(trail, trail.needed(node, "model"))
    guidance = _with_terms(node, _both(trail.number(node, "cfg")), model.terms)
    name = _known_sampler(node, trail.text(node, "sampler_name"))
    return Sampling(
        node,
        {
            "sampler": name,
            "guidance": guidance,
            "loras": list(model.loras),
            "schedule": _scheduled(trail, node),
            "denoise": trail.number(node, "denoise"),
        },
        trail.whole(node, "seed"),
        model,
        trail.needed(node, "positive"),
        trail.source(node, "negative"),
        trail.needed(node, "latent_image"),
        None,
    )


def _scheduled(trail: Trail, node: Node) -> dict[str, Any]:
    name = trail.text(node, "scheduler")
    if name not in COMFY_SCHEDULES:
        raise does_not_fit(node, f"has the scheduler {name}, which stages do not know")
    return {"name": name, "steps": trail.whole(node, "steps")}


# -- guidance -------------------------------------------------------------------------------------


def _both(cfg: float) -> dict[str, Any]:
    return {"video": {"cfg": cfg}, "audio": {"cfg": cfg}}


def _cfg_guider(trail: Trail, node: Node) -> dict[str, Any]:
    return _both(trail.number(node, "cfg"))


def _basic_guider(_trail: Trail, _node: Node) -> dict[str, Any]:
    return _both(1.0)


def _dual_guider(trail: Trail, node: Node) -> dict[str, Any]:
    streams = {"video": "video_cfg", "audio": "audio_cfg"}
    return {stream: {"cfg": trail.number(node, name)} for stream, name in streams.items()}


def _multimodal_guider(trail: Trail, node: Node) -> dict[str, Any]:
    written = trail.text(node, "skip_blocks")
    blocks = [int(b) for b in re.findall(r"\d+", written)]
    found: dict[str, Any] = {}
    parameters = trail.source(node, "parameters")
    while parameters is not None:
        one, _ = parameters
        if one.class_type != "GuiderParameters":
            raise does_not_fit(one, "gives guidance in a way that stages do not know")
        stream = trail.text(one, "modality").lower()
        if stream in found:
            raise one.error(f"is a second one for {stream}", "take one of the two out")
        found[stream] = _stream(trail, one, blocks)
        parameters = trail.source(one, "parameters")
    if missing := {"video", "audio"} - set(found):
        trail.lose(node, f"has no parameters for {' and '.join(sorted(missing))}: not guided")
    return found


def _stream(trail: Trail, node: Node, blocks: list[int]) -> dict[str, Any]:
    perturbed = bool(trail.value(node, "perturb_attn"))
    modality = trail.number(node, "modality_scale")
    if modality != 1 and not trail.value(node, "cross_attn"):
        trail.lose(node, "cross_attn is off; a request has no such switch")
    return {
        "cfg": trail.number(node, "cfg"),
        "stg": trail.number(node, "stg") if perturbed else 0.0,
        "modality": modality,
        "rescale": trail.number(node, "rescale"),
        "stg_blocks": blocks if perturbed else [],
        "skip_step": trail.whole(node, "skip_step"),
    }


_GUIDERS: Mapping[str, Callable[[Trail, Node], dict[str, Any]]] = {
    "CFGGuider": _cfg_guider,
    "BasicGuider": _basic_guider,
    "LTXVDualCFGGuider": _dual_guider,
    "MultimodalGuider": _multimodal_guider,
}


def _with_terms(node: Node, guidance: dict[str, Any], terms: Mapping[str, Any]) -> dict[str, Any]:
    if terms and node.class_type == "MultimodalGuider":
        raise does_not_fit(node, "guides together with nodes that patch the model")
    return {stream: {**values, **terms} for stream, values in guidance.items()}


# -- models ---------------------------------------------------------------------------------------


def read_model(trail: Trail, place: Place) -> ModelChain:
    """LoRAs and guidance between a model input and the node that loads the model."""
    loras: list[dict[str, Any]] = []
    terms: dict[str, Any] = {}
    node, _ = place
    while "model" in node.inputs:
        if node.class_type in _LORA_NODES:
            strength = trail.number(node, "strength_model")
            loras.insert(0, {"name": trail.text(node, "lora_name"), "strength": strength})
        elif node.class_type in _TERMS and _always(trail, node):
            terms |= _TERMS[node.class_type](trail, node)
        else:
            trail.lose(node, "patches the model, which no request can ask for")
        node, _ = trail.needed(node, "model")
    return ModelChain(node, tuple(loras), terms)


def _always(trail: Trail, node: Node) -> bool:
    return trail.number(node, "start_percent") <= 0 and trail.number(node, "end_percent") >= 1


def _modality_terms(trail: Trail, node: Node) -> dict[str, Any]:
    return {"modality": trail.number(node, "modality_scale")}


def _stg_terms(trail: Trail, node: Node) -> dict[str, Any]:
    blocks = [int(b) for b in re.findall(r"\d+", trail.text(node, "blocks"))]
    return {"stg": trail.number(node, "scale"), "stg_blocks": blocks}


_TERMS: Mapping[str, Callable[[Trail, Node], dict[str, Any]]] = {
    "LTXVModalityGuidance": _modality_terms,
    "LTXVSpatioTemporalGuidance": _stg_terms,
}


# -- samplers -------------------------------------------------------------------------------------


def _sampler(trail: Trail, node: Node) -> dict[str, Any]:
    if node.class_type == "KSamplerSelect":
        return {"sampler": _known_sampler(node, trail.text(node, "sampler_name"))}
    if node.class_type in ("SamplerEulerAncestral", "SamplerEulerAncestralCFGPP"):
        name = "euler_ancestral" + ("_cfg_pp" if node.class_type.endswith("CFGPP") else "")
        options = {k: trail.number(node, k) for k in ("eta", "s_noise")}
        return {"sampler": name, "options": options}
    if node.class_type == "ClownSampler_Beta":
        name = trail.text(node, "sampler_name").rpartition("/")[2]
        if name == "res_2s":
            trail.lose(node, "draws its noise as RES4LYF does, from a seed of its own")
            options = {
                "eta": trail.number(node, "eta"),
                "bong": bool(trail.value(node, "bongmath")),
            }
            return {"sampler": name, "options": options}
    raise does_not_fit(node, "is a sampler that stages do not know")


def _known_sampler(node: Node, name: str) -> str:
    if name not in SAMPLER_FACTS:
        raise does_not_fit(node, f"samples with {name}, which stages do not know")
    return name


# -- sigmas ---------------------------------------------------------------------------------------


def sigma_fields(trail: Trail, place: Place, tokens: int) -> dict[str, Any]:
    """``sigmas``, or ``schedule`` and ``denoise``, of a schedule node for ``tokens`` tokens."""
    node, slot = place
    reader = _SIGMAS.get(node.class_type)
    if reader is None:
        raise does_not_fit(node, "makes sigmas in a way that stages do not know")
    return reader(trail, node, slot, tokens)


def walked(fields: Mapping[str, Any], tokens: int) -> list[float]:
    """The numbers that such fields stand for. Raises :class:`RequestError`."""
    if "sigmas" in fields:
        return list(fields["sigmas"])
    schedule = Schedule.model_validate(fields["schedule"])
    return list(schedule.sigmas(tokens, fields.get("denoise", 1.0)))


def manual_numbers(text: str) -> list[float]:
    """The numbers of a ManualSigmas text as ComfyUI reads them: an exponent becomes a number."""
    return [float(found) for found in _NUMBER.findall(text)]


def _manual(trail: Trail, node: Node, _slot: int, _tokens: int) -> dict[str, Any]:
    text = trail.text(node, "sigmas")
    found = manual_numbers(text)
    usual = re.split(r"[\s,]+", text.strip())
    if len(usual) != len(found):
        trail.lose(node, f"ComfyUI reads {text!r} as {found}")
    return {"sigmas": found}


def _ltx(trail: Trail, node: Node, _slot: int, _tokens: int) -> dict[str, Any]:
    schedule: dict[str, Any] = {"name": "ltx", "steps": trail.whole(node, "steps")}
    for name in ("max_shift", "base_shift", "terminal"):
        schedule[name] = trail.number(node, name)
    schedule["stretch"] = bool(trail.value(node, "stretch"))
    defaults = SCHEDULES["ltx"].parameters
    schedule = {k: v for k, v in schedule.items() if k not in defaults or v != defaults[k]}
    if trail.source(node, "latent") is not None:
        schedule["tokens"] = "actual"
    return {"schedule": schedule}


def _basic(trail: Trail, node: Node, _slot: int, _tokens: int) -> dict[str, Any]:
    found: dict[str, Any] = {"schedule": _scheduled(trail, node)}
    denoise = trail.number(node, "denoise")
    trail.needed(node, "model")
    return found | ({"denoise": denoise} if denoise < 1 else {})


def _split(trail: Trail, node: Node, slot: int, tokens: int) -> dict[str, Any]:
    whole = _numbers_behind(trail, node, tokens)
    step = trail.whole(node, "step")
    return {"sigmas": whole[step:] if slot else whole[: step + 1]}


def _split_denoise(trail: Trail, node: Node, slot: int, tokens: int) -> dict[str, Any]:
    whole = _numbers_behind(trail, node, tokens)
    kept = round((len(whole) - 1) * trail.number(node, "denoise"))
    return {"sigmas": whole[-(kept + 1) :] if slot else whole[: len(whole) - kept]}


def _set_first(trail: Trail, node: Node, _slot: int, tokens: int) -> dict[str, Any]:
    return {"sigmas": [trail.number(node, "sigma"), *_numbers_behind(trail, node, tokens)[1:]]}


def _numbers_behind(trail: Trail, node: Node, tokens: int) -> list[float]:
    try:
        return walked(sigma_fields(trail, trail.needed(node, "sigmas"), tokens), tokens)
    except RequestError as error:
        raise node.error(error.message, RUN_IT) from error


_SIGMAS: Mapping[str, Callable[[Trail, Node, int, int], dict[str, Any]]] = {
    "ManualSigmas": _manual,
    "LTXVScheduler": _ltx,
    "BasicScheduler": _basic,
    "SplitSigmas": _split,
    "SplitSigmasDenoise": _split_denoise,
    "SetFirstSigma": _set_first,
}
