"""From the last latents of a graph back to the first: the stages that made them.

Latents are followed through nodes that join, part, hold and crop, to the sampling run or the latent
upsampler behind them, until there is an empty latent or a video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import GraphWalker, unsupported_node
from latent_ladder.comfyui.importer.output import find_audio_file
from latent_ladder.comfyui.importer.sampling import SAMPLING_NODES, Sampling, read_sampling

OutputSlot = tuple[Node, int]


@dataclass
class ConditioningImage:
    """One picture that a stage holds: ``frame`` counts in that stage's frames."""

    node: Node
    file: str
    frame: int
    strength: float
    crf: int


@dataclass
class SampledStage:
    """One sampling run and what it starts from."""

    sampling: Sampling
    images: list[ConditioningImage] = field(default_factory=list)
    audio: OutputSlot | None = None


@dataclass
class UpsampledStage:
    """One latent upsampler; ``adain`` is what pulls its statistics back."""

    node: Node
    file: str
    adain: float = 0.0


@dataclass
class StageChain:
    """All stages, first to last, and where the first one starts.

    ``empty`` is the node of the empty latent, ``video`` that of a video's frames, ``reference``
    that which lays a reference video beside the first stage.
    """

    stages: list[SampledStage | UpsampledStage] = field(default_factory=list)
    empty: Node | None = None
    video: Node | None = None
    reference: Node | None = None

    @property
    def sampled(self) -> list[SampledStage]:
        """The sampling runs, first to last."""
        return [s for s in self.stages if isinstance(s, SampledStage)]


def find_stages(walker: GraphWalker, last: OutputSlot) -> StageChain:
    """Follow latents from the decoder back. Raises :class:`WorkflowError` at what does not fit."""
    found = StageChain()
    walk = _ChainReader(walker, found)
    place: OutputSlot | None = last
    while place is not None:
        node, slot = place
        step = _NODE_READERS.get(node.class_type)
        if step is None:
            raise unsupported_node(node, "makes latents in a way that stages do not know")
        place = step(walk, node, slot)
    found.stages.reverse()
    if found.reference is not None and walk.referred is not found.stages[0]:
        raise unsupported_node(found.reference, "guides a later stage alone")
    return found


class _ChainReader:
    """The way back, and the sampling run whose start is being followed."""

    def __init__(self, walker: GraphWalker, found: StageChain) -> None:
        self.walker, self.found = walker, found
        self.referred: SampledStage | None = None
        self.adain: tuple[Node, float] | None = None

    @property
    def stage(self) -> SampledStage | None:
        """The stage whose start this is; ``None`` between stages and behind the last one."""
        last = self.found.stages[-1] if self.found.stages else None
        return last if isinstance(last, SampledStage) else None

    def hold(self, image: ConditioningImage) -> None:
        if self.stage is None:
            raise unsupported_node(image.node, "holds a picture after the last sampling run")
        self.stage.images.insert(0, image)


def _read_sampling_node(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    sampling = read_sampling(walk.walker, node)
    walk.found.stages.append(SampledStage(sampling))
    return sampling.start


def _follow_video_stream(walk: _ChainReader, node: Node, slot: int) -> OutputSlot:
    if slot != 0:
        raise unsupported_node(node, "gives sound where the picture is expected")
    return walk.walker.required_source(node, "av_latent")


def _follow_concat(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    if walk.stage is not None and walk.stage.audio is None:
        walk.stage.audio = walk.walker.required_source(node, "audio_latent")
    return walk.walker.required_source(node, "video_latent")


def _follow_crop(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    return walk.walker.required_source(node, "latent")


def _read_upsampler(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    walker = walk.walker
    loader, _ = walker.required_source(node, "upscale_model")
    if "model_name" not in loader.inputs:
        raise unsupported_node(loader, "loads a latent upsampler in another way")
    walker.source(node, "vae")
    stage = UpsampledStage(node, walker.text(loader, "model_name"))
    before = walker.required_source(node, "samples")
    if walk.adain is not None:
        adain, factor = walk.adain
        if _latents_source(walker, walker.required_source(adain, "reference")) != _latents_source(
            walker, before
        ):
            raise unsupported_node(adain, "takes its statistics from other latents")
        stage.adain, walk.adain = factor, None
    walk.found.stages.append(stage)
    return before


def _latents_source(walker: GraphWalker, place: OutputSlot) -> str:
    """The node that made latents, parting and cropping looked through."""
    node, _ = place
    through = {"LTXVSeparateAVLatent": "av_latent", "LTXVCropGuides": "latent"}
    while node.class_type in through:
        node, _ = walker.required_source(node, through[node.class_type])
    return node.id


def _read_adain(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    place = walk.walker.required_source(node, "latents")
    if place[0].class_type != "LTXVLatentUpsampler":
        raise unsupported_node(node, "works on latents that no upsampler made")
    walk.adain = (node, walk.walker.number(node, "factor"))
    return place


def _read_image_in_place(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    walker = walk.walker
    walker.source(node, "vae")
    if not walker.value(node, "bypass") and (strength := walker.number(node, "strength")) > 0:
        file, crf = _find_image(walker, node)
        walk.hold(ConditioningImage(node, file, 0, strength, crf))
    else:
        _mark_unused_input(walker, node, "image")
    return walker.required_source(node, "latent")


def _read_image_to_video(walk: _ChainReader, node: Node, _slot: int) -> None:
    """The older node that makes the empty latent too."""
    file, crf = _find_image(walk.walker, node)
    walk.walker.source(node, "vae")
    walk.hold(ConditioningImage(node, file, 0, walk.walker.number(node, "strength"), crf))
    walk.found.empty = node


def _read_guide(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    walker = walk.walker
    walker.source(node, "vae")
    for name in ("attention_mask", "iclora_parameters"):
        if name in node.inputs:
            walker.report_loss(node, f"{name} has no counterpart")
    file, crf = _find_image(walker, node)
    frame, strength = walker.integer(node, "frame_idx"), walker.number(node, "strength")
    walk.hold(ConditioningImage(node, file, frame, strength, crf))
    return walker.required_source(node, "latent")


def _read_reference(walk: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    """Of several stages that a reference guides, the first one counts: it is met last."""
    walker = walk.walker
    if walk.stage is None:
        raise unsupported_node(node, "guides after the last sampling run")
    if walk.found.reference is not None:
        walker.report_loss(
            walk.found.reference, "guides a later stage too; a request guides the first"
        )
    if walker.integer(node, "frame_idx") != 0:
        walker.report_loss(node, "places the reference at another frame; a request begins with it")
    for name in ("vae", "latent_downscale_factor", "attention_mask"):
        walker.source(node, name)
    walk.found.reference = node
    walk.referred = walk.stage
    return walker.required_source(node, "latent")


def _read_empty_latent(walk: _ChainReader, node: Node, _slot: int) -> None:
    if walk.walker.integer(node, "batch_size") != 1:
        walk.walker.report_loss(node, "makes several clips at once; a request makes one")
    walk.found.empty = node


def _read_encoded_video(walk: _ChainReader, node: Node, _slot: int) -> None:
    walk.walker.source(node, "vae")
    walk.found.video = node


_NODE_READERS: Mapping[str, Callable[[_ChainReader, Node, int], OutputSlot | None]] = {
    **dict.fromkeys(SAMPLING_NODES, _read_sampling_node),
    "LTXVSeparateAVLatent": _follow_video_stream,
    "LTXVConcatAVLatent": _follow_concat,
    "LTXVCropGuides": _follow_crop,
    "LTXVLatentUpsampler": _read_upsampler,
    "LTXVAdainLatent": _read_adain,
    "LTXVImgToVideoInplace": _read_image_in_place,
    "LTXVImgToVideoConditionOnly": _read_image_in_place,
    "LTXVImgToVideo": _read_image_to_video,
    "LTXVAddGuide": _read_guide,
    "LTXAddVideoICLoRAGuide": _read_reference,
    "EmptyLTXVLatentVideo": _read_empty_latent,
    "VAEEncode": _read_encoded_video,
    "VAEEncodeTiled": _read_encoded_video,
}


# -- pictures, prompts, sound ---------------------------------------------------------------------

RESIZE_NODES = {
    "ResizeImageMaskNode": "input", "ImageScale": "image", "ImageScaleBy": "image",
    "ResizeImagesByLongerEdge": "images", "ResizeAndPadImage": "image",
}  # fmt: skip
"""Nodes that only resize, and the input that they resize."""


def _find_image(walker: GraphWalker, node: Node) -> tuple[str, int]:
    """The file of a picture and the compression it goes through."""
    crf = 0
    source, _ = walker.required_source(node, "image")
    while source.class_type != "LoadImage":
        if source.class_type == "LTXVPreprocess":
            crf = walker.integer(source, "img_compression")
            source, _ = walker.required_source(source, "image")
        elif source.class_type in RESIZE_NODES:
            source, _ = walker.required_source(source, RESIZE_NODES[source.class_type])
        else:
            raise unsupported_node(source, "gives a picture that is not a file's")
    return walker.text(source, "image"), crf


def _mark_unused_input(walker: GraphWalker, node: Node, name: str) -> None:
    """Remember what feeds an input that is switched off."""
    source = walker.source(node, name)
    while source is not None:
        behind, _ = source
        feeds = [n for n, _ in behind.links if n in ("image", "input", "images")]
        source = walker.source(behind, feeds[0]) if feeds else None


@dataclass
class PromptSource:
    """An encoded prompt: its text, the frame rate it was given, the node that encodes it."""

    text: str
    fps: float | None
    encoder: Node


_TWO_PROMPTS = frozenset(
    {
        "LTXVConditioning", "LTXVAddGuide", "LTXVCropGuides", "LTXVImgToVideo",
        "LTXAddVideoICLoRAGuide",
    }
)  # fmt: skip


def find_prompt(walker: GraphWalker, place: OutputSlot) -> PromptSource:
    """The prompt behind a conditioning input. Raises :class:`WorkflowError`."""
    fps: float | None = None
    zeroed = False
    node, slot = place
    while node.class_type != "CLIPTextEncode":
        if node.class_type in _TWO_PROMPTS:
            if node.class_type == "LTXVConditioning" and fps is None:
                fps = walker.number(node, "frame_rate")
            node, slot = walker.required_source(node, ("positive", "negative")[slot])
        elif node.class_type == "ConditioningZeroOut":
            walker.report_loss(node, "sets the prompt to zeros; the request has an empty one")
            zeroed = True
            node, slot = walker.required_source(node, "conditioning")
        else:
            raise unsupported_node(node, "changes the prompt in a way that no request can say")
    return PromptSource("" if zeroed else walker.text(node, "text"), fps, node)


@dataclass
class AudioSource:
    """Where the sound latents of a stage come from: ``kind`` and what belongs to it."""

    kind: str
    node: Node
    file: str = ""


def find_audio_source(walker: GraphWalker, place: OutputSlot) -> AudioSource:
    """``fresh`` (empty), ``before`` (another run's), ``given`` (a file, held) or ``video``."""
    node, _ = place
    held = False
    while node.class_type == "SetLatentNoiseMask":
        mask, _ = walker.required_source(node, "mask")
        if mask.class_type != "SolidMask" or walker.number(mask, "value") != 0:
            raise unsupported_node(mask, "holds a part of the sound")
        held = True
        node, _ = walker.required_source(node, "samples")
    if node.class_type == "LTXVEmptyLatentAudio":
        walker.source(node, "audio_vae")
        return AudioSource("fresh", node)
    if node.class_type == "LTXVSeparateAVLatent":
        run, _ = walker.required_source(node, "av_latent")
        return AudioSource("before", run)
    if node.class_type in ("LTXVAudioVAEEncode", "VAEEncodeAudio"):
        walker.source(node, "audio_vae" if "audio_vae" in node.inputs else "vae")
        sound = walker.required_source(node, "audio")
        file = find_audio_file(walker, sound)
        if file is not None and held:
            return AudioSource("given", node, file)
        if file is None and sound[0].class_type == "GetVideoComponents":
            return AudioSource("video", node)
    raise unsupported_node(node, "gives the sound in a way that stages do not know")
