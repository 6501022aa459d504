"""Nodes of popular packs, replaced by nodes of ComfyUI that compute the same.

Patches that change speed or previews only are left out; loaders of several LoRAs, switches and the
video nodes of VideoHelperSuite become chains of ComfyUI's own nodes, so that check, run and import
need to know only those. Every replacement is a finding of the graph.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from latent_ladder.comfyui.graph import Graph, Link, LintFinding, Node, Value

CODE = "pack_node"
"""Code of the findings of this module."""


@dataclass(frozen=True)
class Replacement:
    """Nodes in place of one, and the new source of each of its outputs.

    An output without a source is no longer linked.
    """

    nodes: tuple[Node, ...] = ()
    outputs: Mapping[int, Link | Value] = field(default_factory=dict)
    note: str = ""


Rule = Callable[[Node], Replacement | None]
Inputs = dict[str, Link | Value]


def replace_pack_nodes(graph: Graph) -> Graph:
    """Return the graph without the nodes of :data:`RULES`; their ids stay where a node remains."""
    nodes: dict[str, Node] = {}
    moved: dict[Link, Link | Value] = {}
    gone: set[str] = set()
    findings = list(graph.findings)
    for node in graph.nodes.values():
        rule = RULES.get(node.class_type)
        found = rule(node) if rule else None
        if found is None:
            nodes[node.id] = node
            continue
        nodes |= {one.id: one for one in found.nodes}
        moved |= {Link(node.id, slot): source for slot, source in found.outputs.items()}
        gone.add(node.id)
        findings.append(LintFinding(CODE, f"{node.class_type}: {found.note}", node.id))
    if not gone:
        return graph
    linked = {name: _relink(node, moved, gone) for name, node in nodes.items()}
    return replace(graph, nodes=linked, findings=tuple(findings))


def _relink(node: Node, moved: Mapping[Link, Link | Value], gone: set[str]) -> Node:
    inputs: dict[str, Link | Value] = {}
    for name, given in node.inputs.items():
        source, steps = given, 0
        while isinstance(source, Link) and source in moved and steps <= len(moved):
            if source == moved[source]:
                break
            source, steps = moved[source], steps + 1
        dropped = isinstance(source, Link) and source.node in gone and source not in moved
        if not dropped:
            inputs[name] = source
    return replace(node, inputs=inputs)


# --- patches without an effect on the picture -----------------------------------------------------


def _skip(name: str, note: str) -> Rule:
    """Rule that leaves a node out and passes its input ``name`` on."""

    def rule(node: Node) -> Replacement | None:
        source = node.inputs.get(name)
        return Replacement((), {0: source}, note) if isinstance(source, Link) else None

    return rule


_SPEED = "changes speed and memory only; both are planned here, and it is left out"
_PREVIEW = "changes previews only and is left out"


def _debug(node: Node) -> Replacement | None:
    """``VRAM_Debug`` passes up to three values on."""
    names = ("any_input", "image_pass", "model_pass")
    outputs = {i: node.inputs[name] for i, name in enumerate(names) if name in node.inputs}
    return Replacement((), outputs, "frees memory, which is planned here, and is left out")


# --- switches and LoRAs of rgthree ----------------------------------------------------------------


def _any_switch(node: Node) -> Replacement | None:
    """The first input that is connected."""
    names = sorted(name for name in node.inputs if name.startswith("any_"))
    first = next((node.inputs[name] for name in names if node.inputs[name] is not None), None)
    if first is None:
        return None
    return Replacement((), {0: first}, "the first connected input is used")


def _random_seed(node: Node) -> Replacement | None:
    """A negative seed is drawn; other seeds are left to the node itself."""
    seed = node.inputs.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed >= 0:
        return None
    drawn = secrets.randbelow(2**50)
    made = replace(node, inputs={"seed": drawn})
    return Replacement((made,), {0: Link(node.id, 0)}, f"the random seed is {drawn}")


def _power_loras(node: Node) -> Replacement | None:
    """A chain of LoRA loaders for the LoRAs that are on; CLIP is passed on."""
    model, clip = node.inputs.get("model"), node.inputs.get("clip")
    if not isinstance(model, Link):
        return None
    chain: list[Node] = []
    wanted = list(_loras_on(node))
    for i, (name, strength) in enumerate(wanted, 1):
        key = node.id if i == len(wanted) else f"{node.id}:lora_{i}"
        source = Link(chain[-1].id, 0) if chain else model
        inputs: Inputs = {"model": source, "lora_name": name, "strength_model": strength}
        chain.append(Node(key, "LoraLoaderModelOnly", node.title, inputs, "comfy-core"))
    outputs: dict[int, Link | Value] = {0: Link(node.id, 0) if chain else model}
    if isinstance(clip, Link):
        outputs[1] = clip
    count = f"{len(chain)} LoRA{'s' * (len(chain) != 1)}"
    return Replacement(tuple(chain), outputs, f"{count} loaded one after the other")


def _loras_on(node: Node) -> Iterator[tuple[str, float]]:
    for name, entry in node.inputs.items():
        if not name.startswith("lora_") or not isinstance(entry, dict):
            continue
        file, strength = entry.get("lora"), entry.get("strength", 1.0)
        if not entry.get("on", True) or not isinstance(file, str) or file in ("", "None"):
            continue
        if isinstance(strength, int | float) and not isinstance(strength, bool) and strength:
            yield file, float(strength)


# --- loaders of KJNodes ---------------------------------------------------------------------------


def _checkpoint_loader(node: Node) -> Replacement | None:
    made = replace(
        node, class_type="CheckpointLoaderSimple", inputs=_only(node, {"ckpt_name": "ckpt_name"})
    )
    return Replacement((made,), _same(node.id, 3), "is CheckpointLoaderSimple here")


def _diffusion_loader(node: Node) -> Replacement | None:
    made = replace(node, class_type="UNETLoader", inputs=_only(node, {"model_name": "unet_name"}))
    return Replacement((made,), _same(node.id, 1), "is UNETLoader here")


# --- VideoHelperSuite -----------------------------------------------------------------------------


def _load_video(node: Node) -> Replacement | None:
    """Load a video, and take a part of its frames and another size."""
    inputs = node.inputs
    if not isinstance(inputs.get("video"), str | Link):
        return None
    if _number(inputs, "force_rate") or _number(inputs, "select_every_nth", 1) != 1:
        return None  # no node of ComfyUI drops frames by time
    width, height = int(_number(inputs, "custom_width")), int(_number(inputs, "custom_height"))
    if bool(width) != bool(height):
        return None
    load, parts = f"{node.id}:load", f"{node.id}:parts"
    nodes = [
        _core(load, "LoadVideo", node, {"file": inputs["video"]}),
        _core(parts, "GetVideoComponents", node, {"video": Link(load, 0)}),
    ]
    images = Link(parts, 0)
    skip, cap = int(_number(inputs, "skip_first_frames")), int(_number(inputs, "frame_load_cap"))
    if skip or cap:
        batch: Inputs = {"image": images, "batch_index": skip, "length": cap or MAX_FRAMES}
        nodes.append(_core(f"{node.id}:range", "ImageFromBatch", node, batch))
        images = Link(nodes[-1].id, 0)
    if width:
        scale: Inputs = {"image": images, "upscale_method": "lanczos", "crop": "center"}
        scale |= {"width": width, "height": height}
        nodes.append(_core(f"{node.id}:scale", "ImageScale", node, scale))
        images = Link(nodes[-1].id, 0)
    count = f"{node.id}:count"
    nodes.append(_core(count, "GetImageSize", node, {"image": images}))
    outputs = {0: images, 1: Link(count, 2), 2: Link(parts, 1)}
    return Replacement(tuple(nodes), outputs, "is LoadVideo and GetVideoComponents here")


MAX_FRAMES = 4096
"""The largest number of frames that ``ImageFromBatch`` takes."""


def _load_audio(node: Node) -> Replacement | None:
    """Load audio, and trim it if a start or duration is set."""
    name = node.inputs.get("audio", node.inputs.get("audio_file"))
    if not isinstance(name, str | Link):
        return None
    start, duration = (
        _number(node.inputs, "start_time", _number(node.inputs, "seek_seconds")),
        _number(node.inputs, "duration"),
    )
    load = f"{node.id}:load"
    nodes = [_core(load, "LoadAudio", node, {"audio": name})]
    sound = Link(load, 0)
    if start or duration:
        trim: Inputs = {"audio": sound, "start_index": start, "duration": duration or MAX_SECONDS}
        nodes.append(_core(f"{node.id}:trim", "TrimAudioDuration", node, trim))
        sound = Link(nodes[-1].id, 0)
    return Replacement(tuple(nodes), {0: sound}, "is LoadAudio here")


MAX_SECONDS = 100_000.0

_FORMATS: Mapping[str, tuple[str, str]] = {
    "video/h264-mp4": ("mp4", "h264"),
    "video/nvenc_h264-mp4": ("mp4", "h264"),
    "video/av1-webm": ("webm", "av1"),
    "video/nvenc_av1-mp4": ("mp4", "av1"),
}
"""Formats of ``VHS_VideoCombine``, and the container and codec of ``SaveVideo``."""


def _combine_video(node: Node) -> Replacement | None:
    """Create a video and save it."""
    inputs = node.inputs
    known = _FORMATS.get(str(inputs.get("format", "video/h264-mp4")))
    if known is None or inputs.get("pingpong") is True or _number(inputs, "loop_count"):
        return None
    container, codec = known
    video: Inputs = {"images": inputs.get("images"), "fps": inputs.get("frame_rate", 8)}
    if isinstance(inputs.get("audio"), Link):
        video["audio"] = inputs["audio"]
    save: Inputs = {
        "video": Link(f"{node.id}:video", 0),
        "filename_prefix": inputs.get("filename_prefix", "AnimateDiff"),
        "format": container,
        "format.codec": codec,
    }
    if isinstance(inputs.get("crf"), int | float):
        save |= {
            "format.codec.encoding": "re-encode",
            "format.codec.encoding.crf": inputs["crf"],
        }
    nodes = (
        _core(f"{node.id}:video", "CreateVideo", node, video),
        Node(node.id, "SaveVideo", node.title, save, "comfy-core"),
    )
    return Replacement(nodes, {}, "is CreateVideo and SaveVideo here")


def _core(key: str, kind: str, node: Node, inputs: Mapping[str, Link | Value]) -> Node:
    return Node(key, kind, node.title, inputs, "comfy-core")


def _only(node: Node, names: Mapping[str, str]) -> dict[str, Link | Value]:
    """Some inputs of a node under new names."""
    return {new: node.inputs[old] for old, new in names.items() if old in node.inputs}


def _same(key: str, count: int) -> dict[int, Link | Value]:
    return {slot: Link(key, slot) for slot in range(count)}


def _number(inputs: Mapping[str, Link | Value], name: str, default: float = 0.0) -> float:
    """A number of an input; NaN, which equals nothing, for a link."""
    given = inputs.get(name, default)
    if isinstance(given, bool) or not isinstance(given, int | float):
        return default if given is None else float("nan")
    return float(given)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "PathchSageAttentionKJ", "ModelPatchTorchSettings", "PatchModelPatcherOrder",
                "TorchCompileModel", "TorchCompileModelAdvanced", "TorchCompileLTXModel",
                "TorchCompileModelFluxAdvanced", "TorchCompileModelFluxAdvancedV2",
                "TorchCompileModelHyVideo", "TorchCompileModelWanVideo",
                "TorchCompileModelWanVideoV2", "LTXVChunkFeedForward",
                "LTX2MemoryEfficientSageAttentionPatch",
            ),
            _skip("model", _SPEED),
        ),
        "TorchCompileVAE": _skip("vae", _SPEED),
        "LTX2SamplingPreviewOverride": _skip("model", _PREVIEW),
        "ModelPreviewOverride": _skip("model", _PREVIEW),
        "ModelPreviewOverrideKJ": _skip("model", _PREVIEW),
        "VRAM_Debug": _debug,
        "CheckpointLoaderKJ": _checkpoint_loader,
        "DiffusionModelLoaderKJ": _diffusion_loader,
        "Any Switch (rgthree)": _any_switch,
        "Seed (rgthree)": _random_seed,
        "Power Lora Loader (rgthree)": _power_loras,
        "VHS_LoadVideo": _load_video,
        "VHS_LoadVideoPath": _load_video,
        "VHS_LoadAudioUpload": _load_audio,
        "VHS_LoadAudio": _load_audio,
        "VHS_VideoCombine": _combine_video,
    }
)  # fmt: skip
"""Replacements by node type; a rule returns ``None`` for settings that have no equivalent."""
