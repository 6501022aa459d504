"""Guide and reference voice nodes.

A guide is an image or video that conditions the clip at a position in time. As in ComfyUI's
``LTXVAddGuide`` and the IC-LoRA guides of ComfyUI-LTXVideo, its latent frames are appended to the
latent, and the conditioning has their positions in the clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

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
    Mask,
    Model,
    Value,
    VideoVaeFile,
)
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT
from latent_ladder.models.transformer.rope_tables import video_positions


@dataclass(frozen=True)
class Guide:
    """A guide: latents (1, C, F, H, W) that condition the clip from ``start_frame`` on.

    ``start_frame`` counts pixel frames. ``single_first_frame``: the first latent frame represents
    one pixel frame, as at the start of a clip. ``stride`` s: the latents are s times smaller than
    those of the clip. ``attention``: factor of the attention between clip and guide, times
    ``attention_mask`` (pixel frames, H, W) if there is one. ``is_dropped``: it takes up its frames,
    and has no tokens.
    """

    latents: Tensor
    start_frame: int
    strength: float
    single_first_frame: bool
    stride: int = 1
    attention: float = 1.0
    attention_mask: Tensor | None = None
    is_dropped: bool = False

    def attention_weights(self) -> Tensor | None:
        """Weights (N,) of the guide's tokens, ``None`` if all are 1."""
        f, h, w = self.latents.shape[2:]
        if self.attention_mask is not None:
            return (latent_mask(self.attention_mask, (f, h, w)) * self.attention).flatten()
        return None if self.attention == 1.0 else torch.full((f * h * w,), self.attention)


def latent_mask(mask: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Reduce a mask (pixel frames, H, W) to latents (F, H, W): means over the pixels of each.

    The first latent frame is the first pixel frame, the others are means of equal groups; a single
    pixel frame is repeated. Source: the behaviour of ComfyUI's guide attention.
    """
    f, h, w = size
    small = F.interpolate(mask[:, None].float(), (h, w), mode="area")[:, 0]
    first, rest = small[:1], small[1:]
    if f == 1:
        return first
    if not len(rest):
        return first.expand(f, h, w)
    group = len(rest) // (f - 1)
    if group:
        later = rest[: group * (f - 1)].unflatten(0, (f - 1, group)).mean(1)
    else:
        later = F.interpolate(rest.flatten(1).T[None], f - 1, mode="nearest")[0].T.view(f - 1, h, w)
    return torch.cat([first, later])


# --- positions ----------------------------------------------------------------------------------


def clip_frames(latent: Tensor, positive: Conditioning) -> int:
    """Return the number of latent frames of the clip, without guides."""
    return int(latent.shape[2]) - positive.guide_frames


def guide_start_frame(frame: int, images: int, latent_frames: int) -> int:
    """Return the first pixel frame of a guide.

    A negative ``frame`` counts from the end of the clip; a video is moved to a frame 8k + 1.
    """
    if frame < 0:
        frame = max((latent_frames - 1) * FRAMES_PER_LATENT + 1 + frame, 0)
    if images > 1 and frame != 0:
        frame = (frame - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    return frame


def guide_positions(guide: Guide) -> Tensor:
    """Return the bounds (1, 3, N, 2) of a guide's tokens in pixel frames, pixels, pixels."""
    frames, rows, cols = guide.latents.shape[2:]
    positions = video_positions(frames, rows, cols, 1.0)
    if not guide.single_first_frame:
        starts = torch.arange(frames, dtype=torch.float32) * FRAMES_PER_LATENT
        starts = starts.repeat_interleave(rows * cols)
        positions[:, 0] = torch.stack([starts, starts + FRAMES_PER_LATENT], -1)
    positions[:, 0] += guide.start_frame
    positions[:, 1:] *= guide.stride
    return positions


@dataclass(frozen=True)
class GuidedLatent:
    """A latent and its two conditionings, which change together when a guide is added."""

    positive: Conditioning
    negative: Conditioning
    latent: Latent

    def with_guide(self, guide: Guide) -> GuidedLatent:
        """Append a guide. Raises ``ValueError`` if its size does not fit the clip."""
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
        positions, weights = guide_positions(guide), guide.attention_weights()
        if guide.is_dropped:
            positions, weights = positions[:, :, :0], None
        frames = GuideFrames(grid.shape[2], positions, guide.stride, weights)
        return GuidedLatent(
            replace(self.positive, guides=(*self.positive.guides, frames)),
            replace(self.negative, guides=(*self.negative.guides, frames)),
            latent,
        )

    def without_guides(self) -> GuidedLatent:
        """Return the clip without its guides."""
        count, latent = self.positive.guide_frames, self.latent
        if count and latent.video is not None:
            mask = None if latent.video_mask is None else latent.full_video_mask()[:, :, :-count]
            latent = replace(latent, video=latent.video[:, :, :-count], video_mask=mask)
        positive, negative = replace(self.positive, guides=()), replace(self.negative, guides=())
        return GuidedLatent(positive, negative, latent)


def guided_input(ctx: NodeContext) -> GuidedLatent:
    """The conditionings and the video latent of a node."""
    return GuidedLatent(
        ctx.get("positive", Conditioning), ctx.get("negative", Conditioning), _video_latent(ctx)
    )


def append_guide(ctx: NodeContext, guide: Guide, clip: GuidedLatent | None = None) -> list[Value]:
    """Return the conditionings and the latent of a node, or of ``clip``, with a guide appended."""
    try:
        guided = (clip or guided_input(ctx)).with_guide(guide)
    except ValueError as error:
        raise ctx.error(str(error), "use the VAE and the size of the clip") from error
    return [guided.positive, guided.negative, guided.latent]


def dilate_guide(latents: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Spread small latents over the clip's grid, with values at every ``stride``-th position."""
    b, c, f, h, w = latents.shape
    grid = latents.new_zeros(b, c, f, h * stride, w * stride)
    grid[..., ::stride, ::stride] = latents
    grid_mask = torch.ones(1, 1, f, h * stride, w * stride)
    grid_mask[..., ::stride, ::stride] = mask
    return grid, grid_mask


def _video_latent(ctx: NodeContext) -> Latent:
    latent = ctx.get("latent", Latent)
    if latent.video is None or latent.audio is not None:
        raise ctx.error(
            "guides need a video latent", "connect the latent before LTXVConcatAVLatent"
        )
    return latent


# --- nodes --------------------------------------------------------------------------------------


def add_guide(ctx: NodeContext) -> list[Value]:
    """``LTXVAddGuide``: an image or a video of 8n + 1 frames, cropped to the clip's shape."""
    parameters = ctx.get_optional("iclora_parameters", IcLoraParameters)
    factor = 1 if parameters is None else round(parameters.downscale_factor)
    return append_guide(ctx, _encode_guide(ctx, factor, "center"))


def add_ic_guide(ctx: NodeContext) -> list[Value]:
    """``LTXAddVideoICLoRAGuide``: a reference, reduced by the factor of its LoRA.

    It is encoded without tiles, which is exact. A negative ``frame_idx`` is a position before the
    clip, not one counted from its end.
    """
    if ctx.has("use_streaming") and ctx.boolean("use_streaming"):
        raise ctx.error("use_streaming needs an unsupported sampler", "switch it off")
    factor = round(ctx.number("latent_downscale_factor"))
    return append_guide(ctx, _encode_guide(ctx, factor, ctx.text("crop")))


def _encode_guide(ctx: NodeContext, factor: int, crop: str) -> Guide:
    """Encode the images of a guide node at the clip's size divided by ``factor``."""
    video = _video_latent(ctx).video
    if video is None:
        raise TypeError("a latent without video")
    rows, cols = video.shape[3:]
    if factor > 1 and (rows % factor or cols % factor):
        raise ctx.error(
            f"the size of the latent, {cols}x{rows}, is not divisible by {factor}",
            f"use sides that are multiples of {factor * PIXELS_PER_LATENT}",
        )
    images, index = ctx.get("image", Images), ctx.integer("frame_idx")
    count = (images.count - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    length = clip_frames(video, ctx.get("positive", Conditioning))
    before_clip = index < 0 and ctx.node.class_type != "LTXVAddGuide"
    start = index if before_clip else guide_start_frame(index, count, length)
    single_first_frame = (index if before_clip else start) == 0 or count == 1
    latents = _encode_frames(
        ctx, images.first(count), (rows // factor, cols // factor), crop, single_first_frame
    )
    first = (start + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT
    if not before_clip and first + latents.shape[2] > length:
        raise ctx.error(
            f"the guide's {latents.shape[2]} latent frames from frame {start} on exceed the clip's "
            f"{length}",
            "use fewer images or a smaller frame_idx",
        )
    guide = Guide(latents, start, ctx.number("strength"), single_first_frame, factor)
    return _with_attention(ctx, _limit_strength(ctx, guide))


def _limit_strength(ctx: NodeContext, guide: Guide) -> Guide:
    """The guide without tokens where its strength is above 1 on a smaller grid, as in ComfyUI.

    There a noise mask below 0 marks the gaps between the tokens of such a guide, and 1 - strength
    is not limited to 0: all its tokens count as gaps.
    """
    if guide.stride == 1 or guide.strength <= 1:
        return guide
    ctx.warn(
        "guide_dropped",
        f"strength {guide.strength:g} above 1 with a downscale factor of {guide.stride} leaves out "
        "the whole guide in ComfyUI, and here: set it to 1",
    )
    return replace(guide, is_dropped=True)


def _with_attention(ctx: NodeContext, guide: Guide) -> Guide:
    """The guide with the attention of its node: ComfyUI's own nodes use the strength for it too."""
    attention = 1.0
    if ctx.node.class_type in ("LTXVAddGuide", "LTXVAddLatentGuide"):
        attention = guide.strength
    elif ctx.has("attention_strength"):
        attention = ctx.number("attention_strength")
    mask = ctx.get_optional("attention_mask", Mask)
    return replace(guide, attention=attention, attention_mask=None if mask is None else mask.values)


def _encode_frames(
    ctx: NodeContext, images: Images, grid: tuple[int, int], crop: str, single_first_frame: bool
) -> Tensor:
    size = (grid[1] * PIXELS_PER_LATENT, grid[0] * PIXELS_PER_LATENT)
    fitted = images.map(lambda frames: resize_frames(frames, size, "bilinear", crop), size)

    def compute() -> dict[str, Tensor]:
        # A video in mid-clip has no single first frame: one is added before it and dropped again.
        frames = fitted if single_first_frame else _repeat_first_frame(fitted)
        latents = encode_images(ctx, frames, ctx.get("vae", VideoVaeFile))
        return {"latents": latents if single_first_frame else latents[:, :, 1:]}

    return ctx.load_or_compute("guide", compute)["latents"]


def _repeat_first_frame(images: Images) -> Images:
    def pixels() -> Iterator[Tensor]:
        first = True
        for chunk in images.pixels():
            if first:
                yield chunk[:1]
                first = False
            yield chunk

    return replace(images, count=images.count + 1, pixels=pixels, pixels_uint8=None)


def add_latent_guide(ctx: NodeContext) -> list[Value]:
    """``LTXVAddLatentGuide``: latents as a guide from a latent frame on; below 0 is before it."""
    video, guide = _video_latent(ctx).video, ctx.get("guiding_latent", Latent).video
    if video is None or guide is None:
        raise ctx.error("guiding_latent is an audio latent", "connect a video latent")
    index = ctx.integer("latent_idx")
    start = index * FRAMES_PER_LATENT if index <= 0 else (index - 1) * FRAMES_PER_LATENT + 1
    rows, cols = video.shape[3:]
    factor = rows // guide.shape[3]
    if guide.shape[3] * factor != rows or guide.shape[4] * factor != cols:
        raise ctx.error("the size of the clip is not a multiple of the guide's size")
    single_first = start == 0 or guide.shape[2] == 1
    made = _limit_strength(ctx, Guide(guide, start, ctx.number("strength"), single_first, factor))
    return append_guide(ctx, _with_attention(ctx, made))


def crop_guides(ctx: NodeContext) -> list[Value]:
    """``LTXVCropGuides``: the conditionings and the latent without guides."""
    positive, negative = ctx.get("positive", Conditioning), ctx.get("negative", Conditioning)
    clip = GuidedLatent(positive, negative, ctx.get("latent", Latent)).without_guides()
    return [clip.positive, clip.negative, clip.latent]


def get_ic_parameters(ctx: NodeContext) -> list[Value]:
    """``GetICLoRAParameters``: the downscale factor of the last LoRA of a model that has one."""
    factors = [downscale_factor(lora) for lora, _ in ctx.get("iclora_model", Model).loras]
    return [IcLoraParameters(next((f for f in reversed(factors) if f != 1.0), 1.0))]


# --- voices -------------------------------------------------------------------------------------


def set_voice_tokens(ctx: NodeContext) -> list[Value]:
    """``LTXVSetAudioRefTokens``: conditionings with a reference voice, and its frozen latent."""
    audio = ctx.get("audio_latent", Latent).audio
    if audio is None:
        raise ctx.error("audio_latent is a video latent", "connect LTXVAudioVAEEncode")
    conditionings = [
        replace(ctx.get(name, Conditioning), reference_audio=audio)
        for name in ("positive", "negative")
    ]
    frozen = Latent(audio=audio, audio_mask=torch.zeros(1, 1, audio.shape[2], 1))
    return [*conditionings, frozen]


def add_voice(ctx: NodeContext) -> list[Value]:
    """``LTXVReferenceAudio``: conditionings with a reference voice, and guidance towards it."""
    vae, audio = ctx.get("audio_vae", AudioVaeFile), ctx.get("reference_audio", Audio)
    stored = ctx.load_or_compute("voice", lambda: {"latents": encode_audio(ctx, vae, audio)})
    latents = stored["latents"]
    conditionings = [
        replace(ctx.get(name, Conditioning), reference_audio=latents)
        for name in ("positive", "negative")
    ]
    model, scale = ctx.get("model", Model), ctx.number("identity_guidance_scale")
    if scale:
        model = replace(model, identity=make_patch(ctx, model, "identity_guidance_scale"))
    return [model, *conditionings]


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LTXVAddGuide": NodeFunction(add_guide, version=3),
        "LTXVAddLatentGuide": NodeFunction(add_latent_guide, version=2),
        "LTXVCropGuides": NodeFunction(crop_guides),
        "LTXAddVideoICLoRAGuide": NodeFunction(add_ic_guide),
        "LTXAddVideoICLoRAGuideAdvanced": NodeFunction(add_ic_guide, version=2),
        "GetICLoRAParameters": NodeFunction(get_ic_parameters),
        "LTXVSetAudioRefTokens": NodeFunction(set_voice_tokens),
        "LTXVReferenceAudio": NodeFunction(add_voice, version=2),
    }
)
