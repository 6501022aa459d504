"""From the last latents of a graph back to the first: the stages that made them.

Latents are followed through nodes that join, part, hold and crop, to the sampling run or the latent
upsampler behind them, until there is an empty latent or a video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.importer.graph_walker import Trail, does_not_fit
from latent_ladder.comfyui.importer.output import audio_file
from latent_ladder.comfyui.importer.sampling import SAMPLING_NODES, Sampling, read_sampling

Place = tuple[Node, int]


@dataclass
class HeldImage:
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
    images: list[HeldImage] = field(default_factory=list)
    audio: Place | None = None


@dataclass
class UpsampledStage:
    """One latent upsampler; ``adain`` is what pulls its statistics back."""

    node: Node
    file: str
    adain: float = 0.0


@dataclass
class Climb:
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


def climb(trail: Trail, last: Place) -> Climb:
    """Follow latents from the decoder back. Raises :class:`WorkflowError` at what does not fit."""
    found = Climb()
    walk = _Walk(trail, found)
    place: Place | None = last
    while place is not None:
        node, slot = place
        step = _STEPS.get(node.class_type)
        if step is None:
            raise does_not_fit(node, "makes latents in a way that stages do not know")
        place = step(walk, node, slot)
    found.stages.reverse()
    if found.reference is not None and walk.referred is not found.stages[0]:
        raise does_not_fit(found.reference, "guides a later stage alone")
    return found


class _Walk:
    """The way back, and the sampling run whose start is being followed."""

    def __init__(self, trail: Trail, found: Climb) -> None:
        self.trail, self.found = trail, found
        self.referred: SampledStage | None = None
        self.adain: tuple[Node, float] | None = None

    @property
    def stage(self) -> SampledStage | None:
        """The stage whose start this is; ``None`` between stages and behind the last one."""
        last = self.found.stages[-1] if self.found.stages else None
        return last if isinstance(last, SampledStage) else None

    def hold(self, image: HeldImage) -> None:
        if self.stage is None:
            raise does_not_fit(image.node, "holds a picture after the last sampling run")
        self.stage.images.insert(0, image)


def _sampled(walk: _Walk, node: Node, _slot: int) -> Place:
    sampling = read_sampling(walk.trail, node)
    walk.found.stages.append(SampledStage(sampling))
    return sampling.start


def _parted(walk: _Walk, node: Node, slot: int) -> Place:
    if slot != 0:
        raise does_not_fit(node, "gives sound where the picture is expected")
    return walk.trail.needed(node, "av_latent")


def _joined(walk: _Walk, node: Node, _slot: int) -> Place:
    if walk.stage is not None and walk.stage.audio is None:
        walk.stage.audio = walk.trail.needed(node, "audio_latent")
    return walk.trail.needed(node, "video_latent")


def _cropped(walk: _Walk, node: Node, _slot: int) -> Place:
    return walk.trail.needed(node, "latent")


def _upsampled(walk: _Walk, node: Node, _slot: int) -> Place:
    trail = walk.trail
    loader, _ = trail.needed(node, "upscale_model")
    if "model_name" not in loader.inputs:
        raise does_not_fit(loader, "loads a latent upsampler in another way")
    trail.source(node, "vae")
    stage = UpsampledStage(node, trail.text(loader, "model_name"))
    before = trail.needed(node, "samples")
    if walk.adain is not None:
        adain, factor = walk.adain
        if _behind(trail, trail.needed(adain, "reference")) != _behind(trail, before):
            raise does_not_fit(adain, "takes its statistics from other latents")
        stage.adain, walk.adain = factor, None
    walk.found.stages.append(stage)
    return before


def _behind(trail: Trail, place: Place) -> str:
    """The node that made latents, parting and cropping looked through."""
    node, _ = place
    through = {"LTXVSeparateAVLatent": "av_latent", "LTXVCropGuides": "latent"}
    while node.class_type in through:
        node, _ = trail.needed(node, through[node.class_type])
    return node.id


def _adain(walk: _Walk, node: Node, _slot: int) -> Place:
    place = walk.trail.needed(node, "latents")
    if place[0].class_type != "LTXVLatentUpsampler":
        raise does_not_fit(node, "works on latents that no upsampler made")
    walk.adain = (node, walk.trail.number(node, "factor"))
    return place


def _image_in_place(walk: _Walk, node: Node, _slot: int) -> Place:
    trail = walk.trail
    trail.source(node, "vae")
    if not trail.value(node, "bypass") and (strength := trail.number(node, "strength")) > 0:
        file, crf = _picture(trail, node)
        walk.hold(HeldImage(node, file, 0, strength, crf))
    else:
        _met_behind(trail, node, "image")
    return trail.needed(node, "latent")


def _image_to_video(walk: _Walk, node: Node, _slot: int) -> None:
    """The older node that makes the empty latent too."""
    file, crf = _picture(walk.trail, node)
    walk.trail.source(node, "vae")
    walk.hold(HeldImage(node, file, 0, walk.trail.number(node, "strength"), crf))
    walk.found.empty = node


def _guide(walk: _Walk, node: Node, _slot: int) -> Place:
    trail = walk.trail
    trail.source(node, "vae")
    for name in ("attention_mask", "iclora_parameters"):
        if name in node.inputs:
            trail.lose(node, f"{name} has no counterpart")
    file, crf = _picture(trail, node)
    frame, strength = trail.whole(node, "frame_idx"), trail.number(node, "strength")
    walk.hold(HeldImage(node, file, frame, strength, crf))
    return trail.needed(node, "latent")


def _reference(walk: _Walk, node: Node, _slot: int) -> Place:
    """Of several stages that a reference guides, the first one counts: it is met last."""
    trail = walk.trail
    if walk.stage is None:
        raise does_not_fit(node, "guides after the last sampling run")
    if walk.found.reference is not None:
        trail.lose(walk.found.reference, "guides a later stage too; a request guides the first")
    if trail.whole(node, "frame_idx") != 0:
        trail.lose(node, "places the reference at another frame; a request begins with it")
    for name in ("vae", "latent_downscale_factor", "attention_mask"):
        trail.source(node, name)
    walk.found.reference = node
    walk.referred = walk.stage
    return trail.needed(node, "latent")


def _empty(walk: _Walk, node: Node, _slot: int) -> None:
    if walk.trail.whole(node, "batch_size") != 1:
        walk.trail.lose(node, "makes several clips at once; a request makes one")
    walk.found.empty = node


def _encoded(walk: _Walk, node: Node, _slot: int) -> None:
    walk.trail.source(node, "vae")
    walk.found.video = node


_STEPS: Mapping[str, Callable[[_Walk, Node, int], Place | None]] = {
    **dict.fromkeys(SAMPLING_NODES, _sampled),
    "LTXVSeparateAVLatent": _parted,
    "LTXVConcatAVLatent": _joined,
    "LTXVCropGuides": _cropped,
    "LTXVLatentUpsampler": _upsampled,
    "LTXVAdainLatent": _adain,
    "LTXVImgToVideoInplace": _image_in_place,
    "LTXVImgToVideoConditionOnly": _image_in_place,
    "LTXVImgToVideo": _image_to_video,
    "LTXVAddGuide": _guide,
    "LTXAddVideoICLoRAGuide": _reference,
    "EmptyLTXVLatentVideo": _empty,
    "VAEEncode": _encoded,
    "VAEEncodeTiled": _encoded,
}


# -- pictures, prompts, sound ---------------------------------------------------------------------

SCALERS = {
    "ResizeImageMaskNode": "input", "ImageScale": "image", "ImageScaleBy": "image",
    "ResizeImagesByLongerEdge": "images", "ResizeAndPadImage": "image",
}  # fmt: skip
"""Nodes that only resize, and the input that they resize."""


def _picture(trail: Trail, node: Node) -> tuple[str, int]:
    """The file of a picture and the compression it goes through."""
    crf = 0
    source, _ = trail.needed(node, "image")
    while source.class_type != "LoadImage":
        if source.class_type == "LTXVPreprocess":
            crf = trail.whole(source, "img_compression")
            source, _ = trail.needed(source, "image")
        elif source.class_type in SCALERS:
            source, _ = trail.needed(source, SCALERS[source.class_type])
        else:
            raise does_not_fit(source, "gives a picture that is not a file's")
    return trail.text(source, "image"), crf


def _met_behind(trail: Trail, node: Node, name: str) -> None:
    """Remember what feeds an input that is switched off."""
    source = trail.source(node, name)
    while source is not None:
        behind, _ = source
        feeds = [n for n, _ in behind.links if n in ("image", "input", "images")]
        source = trail.source(behind, feeds[0]) if feeds else None


@dataclass
class Prompted:
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


def read_prompt(trail: Trail, place: Place) -> Prompted:
    """The prompt behind a conditioning input. Raises :class:`WorkflowError`."""
    fps: float | None = None
    zeroed = False
    node, slot = place
    while node.class_type != "CLIPTextEncode":
        if node.class_type in _TWO_PROMPTS:
            if node.class_type == "LTXVConditioning" and fps is None:
                fps = trail.number(node, "frame_rate")
            node, slot = trail.needed(node, ("positive", "negative")[slot])
        elif node.class_type == "ConditioningZeroOut":
            trail.lose(node, "sets the prompt to zeros; the request has an empty one")
            zeroed = True
            node, slot = trail.needed(node, "conditioning")
        else:
            raise does_not_fit(node, "changes the prompt in a way that no request can say")
    return Prompted("" if zeroed else trail.text(node, "text"), fps, node)


@dataclass
class Heard:
    """Where the sound latents of a stage come from: ``kind`` and what belongs to it."""

    kind: str
    node: Node
    file: str = ""


def read_sound(trail: Trail, place: Place) -> Heard:
    """``fresh`` (empty), ``before`` (another run's), ``given`` (a file, held) or ``video``."""
    node, _ = place
    held = False
    while node.class_type == "SetLatentNoiseMask":
        mask, _ = trail.needed(node, "mask")
        if mask.class_type != "SolidMask" or trail.number(mask, "value") != 0:
            raise does_not_fit(mask, "holds a part of the sound")
        held = True
        node, _ = trail.needed(node, "samples")
    if node.class_type == "LTXVEmptyLatentAudio":
        trail.source(node, "audio_vae")
        return Heard("fresh", node)
    if node.class_type == "LTXVSeparateAVLatent":
        run, _ = trail.needed(node, "av_latent")
        return Heard("before", run)
    if node.class_type in ("LTXVAudioVAEEncode", "VAEEncodeAudio"):
        trail.source(node, "audio_vae" if "audio_vae" in node.inputs else "vae")
        sound = trail.needed(node, "audio")
        file = audio_file(trail, sound)
        if file is not None and held:
            return Heard("given", node, file)
        if file is None and sound[0].class_type == "GetVideoComponents":
            return Heard("video", node)
    raise does_not_fit(node, "gives the sound in a way that stages do not know")
