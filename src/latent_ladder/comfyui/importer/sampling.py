"""Import of one sampling node as the fields of a stage: guidance, sampler, sigmas, LoRAs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latent_ladder.comfyui.exporter.sampling import COMFY_SCHEDULES
from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import (
    RUN_HINT,
    GraphWalker,
    OutputSlot,
    unsupported_node,
)
from latent_ladder.comfyui.node_defs.sampling import parse_manual_sigmas, split_by_denoise
from latent_ladder.errors import RequestError
from latent_ladder.request.sampling_options import Schedule
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import SCHEDULES

SAMPLING_NODES = frozenset(
    {"SamplerCustomAdvanced", "SamplerCustom", "KSampler", "KSamplerAdvanced"}
)
_LORA_NODES = frozenset({"LoraLoaderModelOnly", "LoraLoader", "LTXICLoRALoaderModelOnly"})


@dataclass(frozen=True)
class ModelChain:
    """The model input of a stage: its loader node, its LoRAs in order, and patched guidance.

    ``terms`` are the fields ``stg``, ``stg_blocks`` and ``modality`` from nodes that patch the
    model, ``nag`` the fields of NAG by stream, and ``nag_prompts`` its negative prompts.
    """

    loader: Node
    loras: tuple[dict[str, Any], ...] = ()
    terms: Mapping[str, Any] = field(default_factory=dict)
    nag: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    nag_prompts: tuple[OutputSlot, ...] = ()


@dataclass(frozen=True)
class Sampling:
    """One sampling node: the fields of its stage, and the sources of its inputs.

    ``sigmas`` is the output of a scheduler node, or ``None`` if ``fields`` contain a schedule.
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
    """Read a sampling node and the nodes linked to it. Raises :class:`WorkflowError`."""
    if node.class_type == "SamplerCustomAdvanced":
        return _read_custom_advanced(walker, node)
    if node.class_type == "SamplerCustom":
        return _read_custom(walker, node)
    if node.class_type == "KSampler":
        return _read_ksampler(walker, node)
    raise unsupported_node(node, "runs only a part of a schedule")


def _read_custom_advanced(walker: GraphWalker, node: Node) -> Sampling:
    noise, _ = walker.required_source(node, "noise")
    if noise.class_type != "RandomNoise":
        raise unsupported_node(noise, "does not start from the noise of a seed")
    guider, _ = walker.required_source(node, "guider")
    if guider.class_type not in _GUIDER_READERS:
        raise unsupported_node(guider, "is an unsupported guider")
    model = read_model(walker, walker.required_source(guider, "model"))
    guidance = _add_terms(guider, _GUIDER_READERS[guider.class_type](walker, guider), model)
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
        raise unsupported_node(node, "does not start from the noise of a seed")
    model = read_model(walker, walker.required_source(node, "model"))
    guidance = _add_terms(node, _same_for_streams(walker.number(node, "cfg")), model)
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
    guidance = _add_terms(node, _same_for_streams(walker.number(node, "cfg")), model)
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
        raise unsupported_node(node, f"uses the unsupported scheduler {name}")
    return {"name": name, "steps": walker.integer(node, "steps")}


# -- guidance -------------------------------------------------------------------------------------


def _same_for_streams(cfg: float) -> dict[str, Any]:
    return {"video": {"cfg": cfg}, "audio": {"cfg": cfg}}


def _read_cfg_guider(walker: GraphWalker, node: Node) -> dict[str, Any]:
    return _same_for_streams(walker.number(node, "cfg"))


def _read_basic_guider(_walker: GraphWalker, _node: Node) -> dict[str, Any]:
    return _same_for_streams(1.0)


def _read_dual_guider(walker: GraphWalker, node: Node) -> dict[str, Any]:
    streams = {"video": "video_cfg", "audio": "audio_cfg"}
    return {stream: {"cfg": walker.number(node, name)} for stream, name in streams.items()}


def _read_multimodal_guider(walker: GraphWalker, node: Node) -> dict[str, Any]:
    text = walker.text(node, "skip_blocks")
    blocks = [int(b) for b in re.findall(r"\d+", text)]
    guidance: dict[str, Any] = {}
    source = walker.source(node, "parameters")
    while source is not None:
        parameters, _ = source
        if parameters.class_type != "GuiderParameters":
            raise unsupported_node(parameters, "is an unsupported source of guidance parameters")
        stream = walker.text(parameters, "modality").lower()
        if stream in guidance:
            raise parameters.error(f"is a second node for {stream}", "remove one of them")
        guidance[stream] = _read_stream(walker, parameters, blocks)
        source = walker.source(parameters, "parameters")
    if missing := {"video", "audio"} - set(guidance):
        streams = " and ".join(sorted(missing))
        walker.report_loss(node, f"has no parameters for {streams}: imported without guidance")
    return guidance


def _read_stream(walker: GraphWalker, node: Node, blocks: list[int]) -> dict[str, Any]:
    is_perturbed = bool(walker.value(node, "perturb_attn"))
    modality = walker.number(node, "modality_scale")
    if modality != 1 and not walker.value(node, "cross_attn"):
        walker.report_loss(node, "has cross_attn off, which a request cannot express")
    return {
        "cfg": walker.number(node, "cfg"),
        "stg": walker.number(node, "stg") if is_perturbed else 0.0,
        "modality": modality,
        "rescale": walker.number(node, "rescale"),
        "stg_blocks": blocks if is_perturbed else [],
        "skip_step": walker.integer(node, "skip_step"),
    }


_GUIDER_READERS: Mapping[str, Callable[[GraphWalker, Node], dict[str, Any]]] = {
    "CFGGuider": _read_cfg_guider,
    "BasicGuider": _read_basic_guider,
    "LTXVDualCFGGuider": _read_dual_guider,
    "MultimodalGuider": _read_multimodal_guider,
}


def _add_terms(node: Node, guidance: dict[str, Any], model: ModelChain) -> dict[str, Any]:
    if model.terms and node.class_type == "MultimodalGuider":
        raise unsupported_node(node, "combines its guidance with nodes that patch the model")
    found = {stream: {**values, **model.terms} for stream, values in guidance.items()}
    for stream, nag in model.nag.items():
        found[stream] = {**found.get(stream, {}), "nag": nag}
    return found


# -- models ---------------------------------------------------------------------------------------


def read_model(walker: GraphWalker, source: OutputSlot) -> ModelChain:
    """Read the nodes between a model input and the loader of the model."""
    loras: list[dict[str, Any]] = []
    terms: dict[str, Any] = {}
    nag: dict[str, dict[str, Any]] = {}
    nag_prompts: list[OutputSlot] = []
    node, _ = source
    while "model" in node.inputs:
        if node.class_type in _LORA_NODES:
            strength = walker.number(node, "strength_model")
            loras.insert(0, {"name": walker.text(node, "lora_name"), "strength": strength})
        elif node.class_type == "LTX2_NAG":
            fields, prompts = _read_nag(walker, node)
            nag = {**fields, **nag}
            nag_prompts += prompts
        elif node.class_type in _TERM_READERS and _is_always_active(walker, node):
            terms |= _TERM_READERS[node.class_type](walker, node)
        else:
            walker.report_loss(node, "patches the model, which a request cannot express")
        node, _ = walker.required_source(node, "model")
    return ModelChain(node, tuple(loras), terms, nag, tuple(nag_prompts))


def _is_always_active(walker: GraphWalker, node: Node) -> bool:
    return walker.number(node, "start_percent") <= 0 and walker.number(node, "end_percent") >= 1


def _read_nag(
    walker: GraphWalker, node: Node
) -> tuple[dict[str, dict[str, Any]], list[OutputSlot]]:
    """The fields of NAG for each stream that has a negative prompt, and these prompts."""
    sources = {stream: walker.source(node, f"nag_cond_{stream}") for stream in ("video", "audio")}
    linked = {stream: source for stream, source in sources.items() if source is not None}
    scale, tau = walker.number(node, "nag_scale"), walker.number(node, "nag_tau")
    if scale == 0 or not linked:
        return {}, []
    if scale < 1 or tau <= 0:
        text = f"has nag_scale {scale:g} and nag_tau {tau:g}, which a request cannot express"
        walker.report_loss(node, f"{text}: imported without NAG")
        return {}, []
    walker.report_loss(
        node, "does not modulate its negative prompt by the noise level, as a request does"
    )
    fields = {"scale": scale, "tau": tau, "alpha": walker.number(node, "nag_alpha")}
    return {stream: dict(fields) for stream in linked}, list(linked.values())


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
            walker.report_loss(node, "generates noise as RES4LYF does, from a separate seed")
            options = {
                "eta": walker.number(node, "eta"),
                "bong": bool(walker.value(node, "bongmath")),
            }
            return {"sampler": name, "options": options}
    raise unsupported_node(node, "is an unsupported sampler node")


def _check_sampler(node: Node, name: str) -> str:
    if name not in SAMPLER_FACTS:
        raise unsupported_node(node, f"uses the unsupported sampler {name}")
    return name


# -- sigmas ---------------------------------------------------------------------------------------


def sigma_fields(walker: GraphWalker, source: OutputSlot, tokens: int) -> dict[str, Any]:
    """Return ``sigmas``, or ``schedule`` and ``denoise``, of a scheduler node.

    ``tokens`` is the number of video tokens of the stage.
    """
    node, slot = source
    reader = _SIGMA_READERS.get(node.class_type)
    if reader is None:
        raise unsupported_node(node, "is an unsupported source of sigmas")
    return reader(walker, node, slot, tokens)


def resolve_sigmas(fields: Mapping[str, Any], tokens: int) -> list[float]:
    """Return the sigmas of such fields. Raises :class:`RequestError`."""
    if "sigmas" in fields:
        return list(fields["sigmas"])
    schedule = Schedule.model_validate(fields["schedule"])
    return list(schedule.sigmas(tokens, fields.get("denoise", 1.0)))


def _read_manual_sigmas(
    walker: GraphWalker, node: Node, _slot: int, _tokens: int
) -> dict[str, Any]:
    text = walker.text(node, "sigmas")
    try:
        sigmas = parse_manual_sigmas(text)
    except ValueError as error:
        raise node.error(str(error), "write 0.85, 0.725, 0.4219, 0.0") from error
    words = re.split(r"[\s,]+", text.strip())
    if len(words) != len(sigmas):
        walker.report_loss(node, f"ComfyUI reads {text!r} as {sigmas}")
    return {"sigmas": sigmas}


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
    fields: dict[str, Any] = {"schedule": _read_schedule(walker, node)}
    denoise = walker.number(node, "denoise")
    walker.required_source(node, "model")
    return fields | ({"denoise": denoise} if denoise < 1 else {})


def _read_split(walker: GraphWalker, node: Node, slot: int, tokens: int) -> dict[str, Any]:
    sigmas = _input_sigmas(walker, node, tokens)
    step = walker.integer(node, "step")
    return {"sigmas": sigmas[step:] if slot else sigmas[: step + 1]}


def _read_split_denoise(walker: GraphWalker, node: Node, slot: int, tokens: int) -> dict[str, Any]:
    sigmas = _input_sigmas(walker, node, tokens)
    return {"sigmas": list(split_by_denoise(sigmas, walker.number(node, "denoise"))[slot])}


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
