"""Import of the stages of a graph, from the last latents back to the first.

Latents are followed through nodes that concatenate, separate, mask and crop, to the sampling node
or latent upsampler before them, until an empty latent or a video is reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import GraphWalker, OutputSlot, unsupported_node
from latent_ladder.comfyui.importer.output import find_audio_file
from latent_ladder.comfyui.importer.sampling import SAMPLING_NODES, Sampling, read_sampling


@dataclass
class ConditioningImage:
    """An image that conditions a stage; ``frame`` is an index into the frames of that stage."""

    node: Node
    file: str
    frame: int
    strength: float
    crf: int


@dataclass
class SampledStage:
    """A sampling node, its images and the source of its audio latents."""

    sampling: Sampling
    images: list[ConditioningImage] = field(default_factory=list)
    audio: OutputSlot | None = None


@dataclass
class UpsampledStage:
    """A latent upsampler; ``adain`` is the factor of the AdaIN node after it."""

    node: Node
    file: str
    adain: float = 0.0


@dataclass
class StageChain:
    """All stages in order, and the start of the first one.

    ``empty`` is the node of the empty latent, ``video`` the node that encodes a video to start
    from, ``reference`` the node that adds a reference video to the first stage.
    """

    stages: list[SampledStage | UpsampledStage] = field(default_factory=list)
    empty: Node | None = None
    video: Node | None = None
    reference: Node | None = None

    @property
    def sampled_stages(self) -> list[SampledStage]:
        """The sampling stages, in order."""
        return [s for s in self.stages if isinstance(s, SampledStage)]


def find_stages(walker: GraphWalker, last: OutputSlot) -> StageChain:
    """Find the stages that lead to ``last``, the input of the decoder.

    Raises :class:`WorkflowError` for a node that no request can express.
    """
    chain = StageChain()
    reader = _ChainReader(walker, chain)
    source: OutputSlot | None = last
    while source is not None:
        node, slot = source
        read = _NODE_READERS.get(node.class_type)
        if read is None:
            raise unsupported_node(node, "is an unsupported source of latents")
        source = read(reader, node, slot)
    chain.stages.reverse()
    if chain.reference is not None and reader.reference_stage is not chain.stages[0]:
        raise unsupported_node(chain.reference, "applies the reference to a later stage only")
    return chain


class _ChainReader:
    """State while the chain of stages is followed backwards."""

    def __init__(self, walker: GraphWalker, chain: StageChain) -> None:
        self.walker, self.chain = walker, chain
        self.reference_stage: SampledStage | None = None
        self.adain: tuple[Node, float] | None = None

    @property
    def stage(self) -> SampledStage | None:
        """The stage whose input is followed; ``None`` between stages and after the last one."""
        last = self.chain.stages[-1] if self.chain.stages else None
        return last if isinstance(last, SampledStage) else None

    def add_image(self, image: ConditioningImage) -> None:
        if self.stage is None:
            raise unsupported_node(image.node, "adds an image after the last sampling node")
        self.stage.images.insert(0, image)


def _read_sampling_node(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    sampling = read_sampling(reader.walker, node)
    reader.chain.stages.append(SampledStage(sampling))
    return sampling.start


def _follow_video_stream(reader: _ChainReader, node: Node, slot: int) -> OutputSlot:
    if slot != 0:
        raise unsupported_node(node, "supplies audio where video is expected")
    return reader.walker.required_source(node, "av_latent")


def _follow_concat(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    if reader.stage is not None and reader.stage.audio is None:
        reader.stage.audio = reader.walker.required_source(node, "audio_latent")
    return reader.walker.required_source(node, "video_latent")


def _follow_crop(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    return reader.walker.required_source(node, "latent")


def _read_upsampler(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    walker = reader.walker
    loader, _ = walker.required_source(node, "upscale_model")
    if "model_name" not in loader.inputs:
        raise unsupported_node(loader, "is an unsupported loader for a latent upsampler")
    walker.source(node, "vae")
    stage = UpsampledStage(node, walker.text(loader, "model_name"))
    before = walker.required_source(node, "samples")
    if reader.adain is not None:
        adain, factor = reader.adain
        reference = walker.required_source(adain, "reference")
        if _latents_source(walker, reference) != _latents_source(walker, before):
            raise unsupported_node(
                adain, "takes its statistics from other latents than the upsampler"
            )
        stage.adain, reader.adain = factor, None
    reader.chain.stages.append(stage)
    return before


def _latents_source(walker: GraphWalker, source: OutputSlot) -> str:
    """Return the id of the node that made latents, through nodes that separate or crop them."""
    node, _ = source
    through = {"LTXVSeparateAVLatent": "av_latent", "LTXVCropGuides": "latent"}
    while node.class_type in through:
        node, _ = walker.required_source(node, through[node.class_type])
    return node.id


def _read_adain(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    source = reader.walker.required_source(node, "latents")
    if source[0].class_type != "LTXVLatentUpsampler":
        raise unsupported_node(node, "is applied to latents that are not upsampled")
    reader.adain = (node, reader.walker.number(node, "factor"))
    return source


def _read_image_in_place(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    walker = reader.walker
    walker.source(node, "vae")
    if not walker.value(node, "bypass") and (strength := walker.number(node, "strength")) > 0:
        file, crf = _find_image(walker, node)
        reader.add_image(ConditioningImage(node, file, 0, strength, crf))
    else:
        _mark_unused_input(walker, node, "image")
    return walker.required_source(node, "latent")


def _read_image_to_video(reader: _ChainReader, node: Node, _slot: int) -> None:
    """Read ``LTXVImgToVideo``, which also creates the empty latent."""
    file, crf = _find_image(reader.walker, node)
    reader.walker.source(node, "vae")
    reader.add_image(ConditioningImage(node, file, 0, reader.walker.number(node, "strength"), crf))
    reader.chain.empty = node


def _read_guide(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    walker = reader.walker
    walker.source(node, "vae")
    for name in ("attention_mask", "iclora_parameters"):
        if name in node.inputs:
            walker.report_loss(node, f"has {name}, which a request cannot express")
    file, crf = _find_image(walker, node)
    frame, strength = walker.integer(node, "frame_idx"), walker.number(node, "strength")
    if strength != 1:
        text = f"has strength {strength:g}, which also scales the attention to the guide; a request"
        walker.report_loss(node, f"{text} has the noise mask alone")
    strength = min(strength, 1.0)  # above 1 it only scales the attention
    reader.add_image(ConditioningImage(node, file, frame, strength, crf))
    return walker.required_source(node, "latent")


def _read_reference(reader: _ChainReader, node: Node, _slot: int) -> OutputSlot:
    """Read a reference video; of several stages with one the first counts, which is read last."""
    walker = reader.walker
    if reader.stage is None:
        raise unsupported_node(node, "adds a reference after the last sampling node")
    if reader.chain.reference is not None:
        walker.report_loss(
            reader.chain.reference, "also guides a later stage; a request guides the first only"
        )
    if walker.integer(node, "frame_idx") != 0:
        walker.report_loss(
            node, "starts the reference at another frame; a request starts it at the first"
        )
    for name in ("vae", "latent_downscale_factor", "attention_mask"):
        walker.source(node, name)
    reader.chain.reference = node
    reader.reference_stage = reader.stage
    return walker.required_source(node, "latent")


def _read_empty_latent(reader: _ChainReader, node: Node, _slot: int) -> None:
    if reader.walker.integer(node, "batch_size") != 1:
        reader.walker.report_loss(node, "makes several clips at once; a request makes one")
    reader.chain.empty = node


def _read_encoded_video(reader: _ChainReader, node: Node, _slot: int) -> None:
    reader.walker.source(node, "vae")
    reader.chain.video = node


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


# -- images, prompts, audio -----------------------------------------------------------------------

RESIZE_NODES = {
    "ResizeImageMaskNode": "input", "ImageScale": "image", "ImageScaleBy": "image",
    "ResizeImagesByLongerEdge": "images", "ResizeAndPadImage": "image",
}  # fmt: skip
"""Nodes that only resize images, and their image input."""


def _find_image(walker: GraphWalker, node: Node) -> tuple[str, int]:
    """Return the file of an image and the crf of its compression, 0 without."""
    crf = 0
    source, _ = walker.required_source(node, "image")
    while source.class_type != "LoadImage":
        if source.class_type == "LTXVPreprocess":
            crf = walker.integer(source, "img_compression")
            source, _ = walker.required_source(source, "image")
        elif source.class_type in RESIZE_NODES:
            source, _ = walker.required_source(source, RESIZE_NODES[source.class_type])
        else:
            raise unsupported_node(source, "supplies an image that is not loaded from a file")
    return walker.text(source, "image"), crf


def _mark_unused_input(walker: GraphWalker, node: Node, name: str) -> None:
    """Mark the nodes that are linked to an unused image input as visited."""
    source = walker.source(node, name)
    while source is not None:
        linked, _ = source
        inputs = [n for n, _ in linked.links if n in ("image", "input", "images")]
        source = walker.source(linked, inputs[0]) if inputs else None


@dataclass
class PromptSource:
    """The source of a conditioning: prompt text, frame rate, and the node that encodes it."""

    text: str
    fps: float | None
    encoder: Node


_CONDITIONING_NODES = frozenset(
    {
        "LTXVConditioning", "LTXVAddGuide", "LTXVCropGuides", "LTXVImgToVideo",
        "LTXAddVideoICLoRAGuide",
    }
)  # fmt: skip
"""Nodes with a positive and a negative conditioning as inputs and outputs."""


def find_prompt(walker: GraphWalker, source: OutputSlot) -> PromptSource:
    """Find the prompt of a conditioning. Raises :class:`WorkflowError` if it is modified."""
    fps: float | None = None
    zeroed = False
    node, slot = source
    while node.class_type != "CLIPTextEncode":
        if node.class_type in _CONDITIONING_NODES:
            if node.class_type == "LTXVConditioning" and fps is None:
                fps = walker.number(node, "frame_rate")
            node, slot = walker.required_source(node, ("positive", "negative")[slot])
        elif node.class_type == "ConditioningZeroOut":
            walker.report_loss(
                node, "sets the prompt embedding to zeros; the request has an empty prompt"
            )
            zeroed = True
            node, slot = walker.required_source(node, "conditioning")
        else:
            raise unsupported_node(node, "modifies the prompt embedding")
    return PromptSource("" if zeroed else walker.text(node, "text"), fps, node)


@dataclass
class AudioSource:
    """The source of audio latents.

    ``kind`` is ``empty`` (an empty latent), ``previous`` (another sampling node), ``file`` (a
    frozen audio file) or ``video`` (the audio of a video).
    """

    kind: Literal["empty", "previous", "file", "video"]
    node: Node
    file: str = ""


def find_audio_source(walker: GraphWalker, source: OutputSlot) -> AudioSource:
    """Find the source of audio latents. Raises :class:`WorkflowError` for an unsupported one."""
    node, _ = source
    frozen = False
    while node.class_type == "SetLatentNoiseMask":
        mask, _ = walker.required_source(node, "mask")
        if mask.class_type != "SolidMask" or walker.number(mask, "value") != 0:
            raise unsupported_node(mask, "protects only a part of the audio")
        frozen = True
        node, _ = walker.required_source(node, "samples")
    if node.class_type == "LTXVEmptyLatentAudio":
        walker.source(node, "audio_vae")
        return AudioSource("empty", node)
    if node.class_type == "LTXVSeparateAVLatent":
        run, _ = walker.required_source(node, "av_latent")
        return AudioSource("previous", run)
    if node.class_type in ("LTXVAudioVAEEncode", "VAEEncodeAudio"):
        walker.source(node, "audio_vae" if "audio_vae" in node.inputs else "vae")
        audio = walker.required_source(node, "audio")
        file = find_audio_file(walker, audio)
        if file is not None and frozen:
            return AudioSource("file", node, file)
        if file is None and audio[0].class_type == "GetVideoComponents":
            return AudioSource("video", node)
    raise unsupported_node(node, "is an unsupported source of audio")
