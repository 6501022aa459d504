"""What one sampling node does, as the fields of a stage: guidance, sampler, sigmas, LoRAs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_ladder.comfyui.exporter.sampling import COMFY_SCHEDULES
from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import RUN_HINT, GraphWalker, unsupported_node
from latent_ladder.comfyui.node_defs.sampling import MANUAL_SIGMA
from latent_ladder.errors import RequestError
from latent_ladder.request.stages import Schedule
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import SCHEDULES

OutputSlot = tuple[Node, int]

SAMPLING_NODES = frozenset(
    {"SamplerCustomAdvanced", "SamplerCustom", "KSampler", "KSamplerAdvanced"}
)
_LORA_NODES = frozenset({"LoraLoaderModelOnly", "LoraLoader", "LTXICLoRALoaderModelOnly"})


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
    positive: OutputSlot
    negative: OutputSlot | None
    start: OutputSlot
    sigmas: OutputSlot | None


def read_sampling(walker: GraphWalker, node: Node) -> Sampling:
    """Everything but the latents of a sampling node. Raises :class:`WorkflowError`."""
    if node.class_type == "SamplerCustomAdvanced":
        return _read_custom_advanced(walker, node)
    if node.class_type == "SamplerCustom":
        return _read_custom(walker, node)
    if node.class_type == "KSampler":
        return _read_ksampler(walker, node)
    raise unsupported_node(node, "runs a part of a schedule")


def _read_custom_advanced(walker: GraphWalker, node: Node) -> Sampling:
    noise, _ = walker.required_source(node, "noise")
    if noise.class_type != "RandomNoise":
        raise unsupported_node(noise, "samples without noise of its own")
    guider, _ = walker.required_source(node, "guider")
    if guider.class_type not in _GUIDER_READERS:
        raise unsupported_node(guider, "guides in a way that stages do not know")
    model = read_model(walker, walker.required_source(guider, "model"))
    guidance = _add_terms(guider, _GUIDER_READERS[guider.class_type](walker, guider), model.terms)
    positive = "conditioning" if guider.class_type == "BasicGuider" else "positive"
    sampler, _ = walker.required_source(node, "sampler")
    return Sampling(
        node,
        {**_read_sampler(walker, sampler), "guidance": guidance, "loras": list(model.loras)},
        walker.integer(noise, "noise_seed"),
        model,
        walker.required_source(guider, positive),
        walker.source(guider, "negative"),
        walker.required_source(node, "latent_image"),
        walker.required_source(node, "sigmas"),
    )


def _read_custom(walker: GraphWalker, node: Node) -> Sampling:
    if not walker.value(node, "add_noise"):
        raise unsupported_node(node, "samples without noise of its own")
    model = read_model(walker, walker.required_source(node, "model"))
    guidance = _add_terms(node, _same_for_streams(walker.number(node, "cfg")), model.terms)
    sampler, _ = walker.required_source(node, "sampler")
    return Sampling(
        node,
        {**_read_sampler(walker, sampler), "guidance": guidance, "loras": list(model.loras)},
        walker.integer(node, "noise_seed"),
        model,
        walker.required_source(node, "positive"),
        walker.source(node, "negative"),
        walker.required_source(node, "latent_image"),
        walker.required_source(node, "sigmas"),
    )


def _read_ksampler(walker: GraphWalker, node: Node) -> Sampling:
    model = read_model(walker, walker.required_source(node, "model"))
    guidance = _add_terms(node, _same_for_streams(walker.number(node, "cfg")), model.terms)
    name = _check_sampler(node, walker.text(node, "sampler_name"))
    return Sampling(
        node,
        {
            "sampler": name,
            "guidance": guidance,
            "loras": list(model.loras),
            "schedule": _read_schedule(walker, node),
            "denoise": walker.number(node, "denoise"),
        },
        walker.integer(node, "seed"),
        model,
        walker.required_source(node, "positive"),
        walker.source(node, "negative"),
        walker.required_source(node, "latent_image"),
        None,
    )


def _read_schedule(walker: GraphWalker, node: Node) -> dict[str, Any]:
    name = walker.text(node, "scheduler")
    if name not in COMFY_SCHEDULES:
        raise unsupported_node(node, f"has the scheduler {name}, which stages do not know")
    return {"name": name, "steps": walker.integer(node, "steps")}


# -- guidance -------------------------------------------------------------------------------------


def _same_for_streams(cfg: float) -> dict[str, Any]:
    return {"video": {"cfg": cfg}, "audio": {"cfg": cfg}}


def _read_cfg_guider(walker: GraphWalker, node: Node) -> dict[str, Any]:
    return _same_for_streams(walker.number(node, "cfg"))


def _read_basic_guider(_trail: GraphWalker, _node: Node) -> dict[str, Any]:
    return _same_for_streams(1.0)


def _read_dual_guider(walker: GraphWalker, node: Node) -> dict[str, Any]:
    streams = {"video": "video_cfg", "audio": "audio_cfg"}
    return {stream: {"cfg": walker.number(node, name)} for stream, name in streams.items()}


def _read_multimodal_guider(walker: GraphWalker, node: Node) -> dict[str, Any]:
    written = walker.text(node, "skip_blocks")
    blocks = [int(b) for b in re.findall(r"\d+", written)]
    found: dict[str, Any] = {}
    parameters = walker.source(node, "parameters")
    while parameters is not None:
        one, _ = parameters
        if one.class_type != "GuiderParameters":
            raise unsupported_node(one, "gives guidance in a way that stages do not know")
        stream = walker.text(one, "modality").lower()
        if stream in found:
            raise one.error(f"is a second one for {stream}", "take one of the two out")
        found[stream] = _read_stream(walker, one, blocks)
        parameters = walker.source(one, "parameters")
    if missing := {"video", "audio"} - set(found):
        walker.report_loss(
            node, f"has no parameters for {' and '.join(sorted(missing))}: not guided"
        )
    return found


def _read_stream(walker: GraphWalker, node: Node, blocks: list[int]) -> dict[str, Any]:
    perturbed = bool(walker.value(node, "perturb_attn"))
    modality = walker.number(node, "modality_scale")
    if modality != 1 and not walker.value(node, "cross_attn"):
        walker.report_loss(node, "cross_attn is off; a request has no such switch")
    return {
        "cfg": walker.number(node, "cfg"),
        "stg": walker.number(node, "stg") if perturbed else 0.0,
        "modality": modality,
        "rescale": walker.number(node, "rescale"),
        "stg_blocks": blocks if perturbed else [],
        "skip_step": walker.integer(node, "skip_step"),
    }


_GUIDER_READERS: Mapping[str, Callable[[GraphWalker, Node], dict[str, Any]]] = {
    "CFGGuider": _read_cfg_guider,
    "BasicGuider": _read_basic_guider,
    "LTXVDualCFGGuider": _read_dual_guider,
    "MultimodalGuider": _read_multimodal_guider,
}


def _add_terms(node: Node, guidance: dict[str, Any], terms: Mapping[str, Any]) -> dict[str, Any]:
    if terms and node.class_type == "MultimodalGuider":
        raise unsupported_node(node, "guides together with nodes that patch the model")
    return {stream: {**values, **terms} for stream, values in guidance.items()}


# -- models ---------------------------------------------------------------------------------------


def read_model(walker: GraphWalker, place: OutputSlot) -> ModelChain:
    """LoRAs and guidance between a model input and the node that loads the model."""
    loras: list[dict[str, Any]] = []
    terms: dict[str, Any] = {}
    node, _ = place
    while "model" in node.inputs:
        if node.class_type in _LORA_NODES:
            strength = walker.number(node, "strength_model")
            loras.insert(0, {"name": walker.text(node, "lora_name"), "strength": strength})
        elif node.class_type in _TERM_READERS and _is_always_active(walker, node):
            terms |= _TERM_READERS[node.class_type](walker, node)
        else:
            walker.report_loss(node, "patches the model, which no request can ask for")
        node, _ = walker.required_source(node, "model")
    return ModelChain(node, tuple(loras), terms)


def _is_always_active(walker: GraphWalker, node: Node) -> bool:
    return walker.number(node, "start_percent") <= 0 and walker.number(node, "end_percent") >= 1


def _modality_terms(walker: GraphWalker, node: Node) -> dict[str, Any]:
    return {"modality": walker.number(node, "modality_scale")}


def _stg_terms(walker: GraphWalker, node: Node) -> dict[str, Any]:
    blocks = [int(b) for b in re.findall(r"\d+", walker.text(node, "blocks"))]
    return {"stg": walker.number(node, "scale"), "stg_blocks": blocks}


_TERM_READERS: Mapping[str, Callable[[GraphWalker, Node], dict[str, Any]]] = {
    "LTXVModalityGuidance": _modality_terms,
    "LTXVSpatioTemporalGuidance": _stg_terms,
}


# -- samplers -------------------------------------------------------------------------------------


def _read_sampler(walker: GraphWalker, node: Node) -> dict[str, Any]:
    if node.class_type == "KSamplerSelect":
        return {"sampler": _check_sampler(node, walker.text(node, "sampler_name"))}
    if node.class_type in ("SamplerEulerAncestral", "SamplerEulerAncestralCFGPP"):
        name = "euler_ancestral" + ("_cfg_pp" if node.class_type.endswith("CFGPP") else "")
        options = {k: walker.number(node, k) for k in ("eta", "s_noise")}
        return {"sampler": name, "options": options}
    if node.class_type == "ClownSampler_Beta":
        name = walker.text(node, "sampler_name").rpartition("/")[2]
        if name == "res_2s":
            walker.report_loss(node, "draws its noise as RES4LYF does, from a seed of its own")
            options = {
                "eta": walker.number(node, "eta"),
                "bong": bool(walker.value(node, "bongmath")),
            }
            return {"sampler": name, "options": options}
    raise unsupported_node(node, "is a sampler that stages do not know")


def _check_sampler(node: Node, name: str) -> str:
    if name not in SAMPLER_FACTS:
        raise unsupported_node(node, f"samples with {name}, which stages do not know")
    return name


# -- sigmas ---------------------------------------------------------------------------------------


def sigma_fields(walker: GraphWalker, place: OutputSlot, tokens: int) -> dict[str, Any]:
    """``sigmas``, or ``schedule`` and ``denoise``, of a schedule node for ``tokens`` tokens."""
    node, slot = place
    reader = _SIGMA_READERS.get(node.class_type)
    if reader is None:
        raise unsupported_node(node, "makes sigmas in a way that stages do not know")
    return reader(walker, node, slot, tokens)


def resolve_sigmas(fields: Mapping[str, Any], tokens: int) -> list[float]:
    """The numbers that such fields stand for. Raises :class:`RequestError`."""
    if "sigmas" in fields:
        return list(fields["sigmas"])
    schedule = Schedule.model_validate(fields["schedule"])
    return list(schedule.sigmas(tokens, fields.get("denoise", 1.0)))


def parse_manual_sigmas(text: str) -> list[float]:
    """The numbers of a ManualSigmas text as ComfyUI reads them: an exponent becomes a number."""
    return [float(found) for found in MANUAL_SIGMA.findall(text)]


def _read_manual_sigmas(
    walker: GraphWalker, node: Node, _slot: int, _tokens: int
) -> dict[str, Any]:
    text = walker.text(node, "sigmas")
    found = parse_manual_sigmas(text)
    usual = re.split(r"[\s,]+", text.strip())
    if len(usual) != len(found):
        walker.report_loss(node, f"ComfyUI reads {text!r} as {found}")
    return {"sigmas": found}


def _read_ltx_schedule(walker: GraphWalker, node: Node, _slot: int, _tokens: int) -> dict[str, Any]:
    schedule: dict[str, Any] = {"name": "ltx", "steps": walker.integer(node, "steps")}
    for name in ("max_shift", "base_shift", "terminal"):
        schedule[name] = walker.number(node, name)
    schedule["stretch"] = bool(walker.value(node, "stretch"))
    defaults = SCHEDULES["ltx"].parameters
    schedule = {k: v for k, v in schedule.items() if k not in defaults or v != defaults[k]}
    if walker.source(node, "latent") is not None:
        schedule["tokens"] = "actual"
    return {"schedule": schedule}


def _read_basic_schedule(
    walker: GraphWalker, node: Node, _slot: int, _tokens: int
) -> dict[str, Any]:
    found: dict[str, Any] = {"schedule": _read_schedule(walker, node)}
    denoise = walker.number(node, "denoise")
    walker.required_source(node, "model")
    return found | ({"denoise": denoise} if denoise < 1 else {})


def _read_split(walker: GraphWalker, node: Node, slot: int, tokens: int) -> dict[str, Any]:
    whole = _input_sigmas(walker, node, tokens)
    step = walker.integer(node, "step")
    return {"sigmas": whole[step:] if slot else whole[: step + 1]}


def _read_split_denoise(walker: GraphWalker, node: Node, slot: int, tokens: int) -> dict[str, Any]:
    whole = _input_sigmas(walker, node, tokens)
    kept = round((len(whole) - 1) * walker.number(node, "denoise"))
    return {"sigmas": whole[-(kept + 1) :] if slot else whole[: len(whole) - kept]}


def _read_set_first(walker: GraphWalker, node: Node, _slot: int, tokens: int) -> dict[str, Any]:
    return {"sigmas": [walker.number(node, "sigma"), *_input_sigmas(walker, node, tokens)[1:]]}


def _input_sigmas(walker: GraphWalker, node: Node, tokens: int) -> list[float]:
    try:
        return resolve_sigmas(
            sigma_fields(walker, walker.required_source(node, "sigmas"), tokens), tokens
        )
    except RequestError as error:
        raise node.error(error.message, RUN_HINT) from error


_SIGMA_READERS: Mapping[str, Callable[[GraphWalker, Node, int, int], dict[str, Any]]] = {
    "ManualSigmas": _read_manual_sigmas,
    "LTXVScheduler": _read_ltx_schedule,
    "BasicScheduler": _read_basic_schedule,
    "SplitSigmas": _read_split,
    "SplitSigmasDenoise": _read_split_denoise,
    "SetFirstSigma": _read_set_first,
}
