"""Guides: pictures that are shown to the transformer at a place in time, behind the clip's latent.

Facts of ComfyUI's ``LTXVAddGuide`` and of ComfyUI-LTXVideo's IC-LoRA guides. A guide's latent
frames are appended to the latent; the conditioning says where in the clip they belong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.audio import encode_audio
from latent_ladder.comfyui.nodes.decoding import encode_images
from latent_ladder.comfyui.nodes.loaders import downscale_factor
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import resize_frames
from latent_ladder.comfyui.nodes.sampling import make_patch
from latent_ladder.comfyui.runtime.values import (
    Audio,
    AudioVaeFile,
    Conditioning,
    GuideFrames,
    IcLoraParameters,
    Images,
    Latent,
    Model,
    Value,
    VideoVaeFile,
)
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.models.transformer.rope_tables import video_positions


@dataclass(frozen=True)
class Guide:
    """Latents (1, C, F, H, W) to show from pixel frame ``at`` on.

    ``lone_first``: the first latent frame stands for one frame, as at a clip's beginning.
    ``stride`` s: the latents are s times smaller than the clip's.
    """

    latents: Tensor
    at: int
    strength: float
    lone_first: bool
    stride: int = 1


# --- placing ------------------------------------------------------------------------------------


def clip_frames(latent: Tensor, positive: Conditioning) -> int:
    """Latent frames of the clip itself, without guides."""
    return int(latent.shape[2]) - positive.guide_frames


def guide_start_frame(frame: int, images: int, latent_frames: int) -> int:
    """The pixel frame at which a guide begins: from the end if negative, on 8k + 1 if a video."""
    if frame < 0:
        frame = max((latent_frames - 1) * FRAMES_PER_LATENT + 1 + frame, 0)
    if images > 1 and frame != 0:
        frame = (frame - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    return frame


def guide_positions(guide: Guide) -> Tensor:
    """Bounds (1, 3, N, 2) of a guide's tokens: pixel frames, pixels, pixels of the clip."""
    frames, rows, cols = guide.latents.shape[2:]
    places = video_positions(frames, rows, cols, 1.0)
    if not guide.lone_first:
        starts = torch.arange(frames, dtype=torch.float32) * FRAMES_PER_LATENT
        starts = starts.repeat_interleave(rows * cols)
        places[:, 0] = torch.stack([starts, starts + FRAMES_PER_LATENT], -1)
    places[:, 0] += guide.at
    places[:, 1:] *= guide.stride
    return places


@dataclass(frozen=True)
class GuidedLatent:
    """Both conditionings and the latent that they belong to."""

    positive: Conditioning
    negative: Conditioning
    latent: Latent

    def with_guide(self, guide: Guide) -> GuidedLatent:
        """A guide behind the clip. Raises ``ValueError`` for one of another size."""
        video = self.latent.video
        if video is None:
            raise TypeError("a latent without video")
        grid = guide.latents
        mask = torch.full((1, 1, *grid.shape[2:]), max(0.0, 1.0 - guide.strength))
        if guide.stride > 1:
            grid, mask = dilate_guide(grid, mask, guide.stride)
        if grid.shape[1] != video.shape[1] or grid.shape[3:] != video.shape[3:]:
            got, want = list(grid.shape[1:]), list(video.shape[1:])
            raise ValueError(f"the guide's latents are {got}, the clip's {want}")
        latent = replace(
            self.latent,
            video=torch.cat([video, grid.to(video)], dim=2),
            video_mask=torch.cat([self.latent.full_video_mask(), mask], dim=2),
        )
        frames = GuideFrames(grid.shape[2], guide_positions(guide), guide.stride)
        return GuidedLatent(
            replace(self.positive, guides=(*self.positive.guides, frames)),
            replace(self.negative, guides=(*self.negative.guides, frames)),
            latent,
        )

    def without_guides(self) -> GuidedLatent:
        """The clip alone."""
        count, latent = self.positive.guide_frames, self.latent
        if count and latent.video is not None:
            mask = None if latent.video_mask is None else latent.full_video_mask()[:, :, :-count]
            latent = replace(latent, video=latent.video[:, :, :-count], video_mask=mask)
        positive, negative = replace(self.positive, guides=()), replace(self.negative, guides=())
        return GuidedLatent(positive, negative, latent)


def _guided_input(ctx: NodeContext) -> GuidedLatent:
    return GuidedLatent(
        ctx.get("positive", Conditioning), ctx.get("negative", Conditioning), _video_latent(ctx)
    )


def append_guide(ctx: NodeContext, guide: Guide) -> list[Value]:
    """The conditionings and the latent with a guide behind the clip."""
    try:
        found = _guided_input(ctx).with_guide(guide)
    except ValueError as error:
        raise ctx.error(str(error), "use the VAE and the size of the clip") from error
    return [found.positive, found.negative, found.latent]


def dilate_guide(latents: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Small latents spread over the clip's grid: values at every ``stride``-th place only."""
    b, c, f, h, w = latents.shape
    grid = latents.new_zeros(b, c, f, h * stride, w * stride)
    grid[..., ::stride, ::stride] = latents
    whole = torch.ones(1, 1, f, h * stride, w * stride)
    whole[..., ::stride, ::stride] = mask
    return grid, whole


def _video_latent(ctx: NodeContext) -> Latent:
    latent = ctx.get("latent", Latent)
    if latent.video is None or latent.audio is not None:
        raise ctx.error(
            "guides belong to a latent of video alone", "connect it before LTXVConcatAVLatent"
        )
    return latent


# --- nodes --------------------------------------------------------------------------------------


def add_guide(ctx: NodeContext) -> list[Value]:
    """``LTXVAddGuide``: a picture or a video of 8n + 1 frames, cropped to the clip's shape."""
    parameters = ctx.get_optional("iclora_parameters", IcLoraParameters)
    factor = 1 if parameters is None else round(parameters.downscale_factor)
    return append_guide(ctx, _encode_guide(ctx, factor, "center"))


def add_ic_guide(ctx: NodeContext) -> list[Value]:
    """``LTXAddVideoICLoRAGuide``: a reference, smaller by the LoRA's factor.

    Encoded exactly, so its tiles are not needed. A negative ``frame_idx`` is a place before the
    clip, not one counted from its end.
    """
    if ctx.has("use_streaming") and ctx.boolean("use_streaming"):
        raise ctx.error("use_streaming needs a sampler that is not known here", "switch it off")
    factor = round(ctx.number("latent_downscale_factor"))
    return append_guide(ctx, _encode_guide(ctx, factor, ctx.text("crop")))


def _encode_guide(ctx: NodeContext, factor: int, crop: str) -> Guide:
    """The images of a guide node, encoded at the clip's size divided by ``factor``."""
    if ctx.has("attention_mask") or (
        ctx.has("attention_strength") and ctx.number("attention_strength") != 1.0
    ):
        ctx.warn("attention_mask", "the guide counts fully: attention masks are left out")
    video = _video_latent(ctx).video
    if video is None:
        raise TypeError("a latent without video")
    rows, cols = video.shape[3:]
    if factor > 1 and (rows % factor or cols % factor):
        raise ctx.error(
            f"the latent has {cols}x{rows} places, which {factor} does not divide",
            f"use sides that are multiples of {factor * PIXELS_PER_LATENT}",
        )
    images, asked = ctx.get("image", Images), ctx.integer("frame_idx")
    count = (images.count - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    length = clip_frames(video, ctx.get("positive", Conditioning))
    before_clip = asked < 0 and ctx.node.class_type != "LTXVAddGuide"
    at = asked if before_clip else guide_start_frame(asked, count, length)
    lone_first = (asked if before_clip else at) == 0 or count == 1
    latents = _encoded(ctx, images.first(count), (rows // factor, cols // factor), crop, lone_first)
    first = (at + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT
    if not before_clip and first + latents.shape[2] > length:
        raise ctx.error(
            f"the guide's {latents.shape[2]} latent frames from frame {at} on go beyond the clip's "
            f"{length}",
            "use fewer images or a smaller frame_idx",
        )
    return Guide(latents, at, ctx.number("strength"), lone_first, factor)


def _encoded(
    ctx: NodeContext, images: Images, grid: tuple[int, int], crop: str, lone_first: bool
) -> Tensor:
    size = (grid[1] * PIXELS_PER_LATENT, grid[0] * PIXELS_PER_LATENT)
    fitted = images.map(lambda frames: resize_frames(frames, size, "bilinear", crop), size)

    def make() -> dict[str, Tensor]:
        # A video in mid-clip has no lone first frame: one is put before it and dropped again.
        whole = fitted if lone_first else _with_first_twice(fitted)
        latents = encode_images(ctx, whole, ctx.get("vae", VideoVaeFile))
        return {"latents": latents if lone_first else latents[:, :, 1:]}

    return ctx.load_or_compute("guide", make)["latents"]


def _with_first_twice(images: Images) -> Images:
    def pixels() -> Iterator[Tensor]:
        first = True
        for chunk in images.pixels():
            if first:
                yield chunk[:1]
                first = False
            yield chunk

    return replace(images, count=images.count + 1, pixels=pixels, pixels_uint8=None)


def add_latent_guide(ctx: NodeContext) -> list[Value]:
    """``LTXVAddLatentGuide``: latents as they are, from a latent frame on; below 0 is before it."""
    video, guide = _video_latent(ctx).video, ctx.get("guiding_latent", Latent).video
    if video is None or guide is None:
        raise ctx.error("guiding_latent is a latent of sound", "connect a video latent")
    index = ctx.integer("latent_idx")
    at = index * FRAMES_PER_LATENT if index <= 0 else (index - 1) * FRAMES_PER_LATENT + 1
    rows, cols = video.shape[3:]
    factor = rows // guide.shape[3]
    if guide.shape[3] * factor != rows or guide.shape[4] * factor != cols:
        raise ctx.error("the guide's size does not divide the clip's")
    lone = at == 0 or guide.shape[2] == 1
    return append_guide(ctx, Guide(guide, at, ctx.number("strength"), lone, factor))


def crop_guides(ctx: NodeContext) -> list[Value]:
    """``LTXVCropGuides``: the clip without its guides, the conditionings without their places."""
    positive, negative = ctx.get("positive", Conditioning), ctx.get("negative", Conditioning)
    found = GuidedLatent(positive, negative, ctx.get("latent", Latent)).without_guides()
    return [found.positive, found.negative, found.latent]


def get_ic_parameters(ctx: NodeContext) -> list[Value]:
    """``GetICLoRAParameters``: of the last LoRA on a model that says by how much it is smaller."""
    found = [downscale_factor(lora) for lora, _ in ctx.get("iclora_model", Model).loras]
    return [IcLoraParameters(next((f for f in reversed(found) if f != 1.0), 1.0))]


# --- voices -------------------------------------------------------------------------------------


def set_voice_tokens(ctx: NodeContext) -> list[Value]:
    """``LTXVSetAudioRefTokens``: a voice to sound like; also the sound itself, frozen."""
    audio = ctx.get("audio_latent", Latent).audio
    if audio is None:
        raise ctx.error("audio_latent is a latent of video", "connect LTXVAudioVAEEncode")
    told = [
        replace(ctx.get(name, Conditioning), reference_audio=audio)
        for name in ("positive", "negative")
    ]
    frozen = Latent(audio=audio, audio_mask=torch.zeros(1, 1, audio.shape[2], 1))
    return [*told, frozen]


def add_voice(ctx: NodeContext) -> list[Value]:
    """``LTXVReferenceAudio``: a voice from a sound, and guidance towards it by one more pass."""
    vae, sound = ctx.get("audio_vae", AudioVaeFile), ctx.get("reference_audio", Audio)
    latents = ctx.load_or_compute("voice", lambda: {"latents": encode_audio(ctx, vae, sound)})[
        "latents"
    ]
    told = [
        replace(ctx.get(name, Conditioning), reference_audio=latents)
        for name in ("positive", "negative")
    ]
    model, scale = ctx.get("model", Model), ctx.number("identity_guidance_scale")
    if scale:
        model = replace(model, identity=make_patch(ctx, model, "identity_guidance_scale"))
    return [model, *told]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LTXVAddGuide": NodeFunction(add_guide),
        "LTXVAddLatentGuide": NodeFunction(add_latent_guide),
        "LTXVCropGuides": NodeFunction(crop_guides),
        "LTXAddVideoICLoRAGuide": NodeFunction(add_ic_guide),
        "LTXAddVideoICLoRAGuideAdvanced": NodeFunction(add_ic_guide),
        "GetICLoRAParameters": NodeFunction(get_ic_parameters),
        "LTXVSetAudioRefTokens": NodeFunction(set_voice_tokens),
        "LTXVReferenceAudio": NodeFunction(add_voice),
    }
)
