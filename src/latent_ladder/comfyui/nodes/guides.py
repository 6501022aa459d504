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

from latent_ladder.comfyui.nodes.audio import encoded_sound
from latent_ladder.comfyui.nodes.decoding import encoded
from latent_ladder.comfyui.nodes.loaders import downscale_factor
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
from latent_ladder.comfyui.nodes.resize import resized
from latent_ladder.comfyui.nodes.sampling import patch
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


def placed(frame: int, images: int, latent_frames: int) -> int:
    """The pixel frame at which a guide begins: from the end if negative, on 8k + 1 if a video."""
    if frame < 0:
        frame = max((latent_frames - 1) * FRAMES_PER_LATENT + 1 + frame, 0)
    if images > 1 and frame != 0:
        frame = (frame - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    return frame


def positions(guide: Guide) -> Tensor:
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
class Told:
    """Both conditionings and the latent that they belong to."""

    positive: Conditioning
    negative: Conditioning
    latent: Latent

    def with_guide(self, guide: Guide) -> Told:
        """A guide behind the clip. Raises ``ValueError`` for one of another size."""
        video = self.latent.video
        if video is None:
            raise TypeError("a latent without video")
        grid = guide.latents
        mask = torch.full((1, 1, *grid.shape[2:]), max(0.0, 1.0 - guide.strength))
        if guide.stride > 1:
            grid, mask = dilated(grid, mask, guide.stride)
        if grid.shape[1] != video.shape[1] or grid.shape[3:] != video.shape[3:]:
            got, want = list(grid.shape[1:]), list(video.shape[1:])
            raise ValueError(f"the guide's latents are {got}, the clip's {want}")
        latent = replace(
            self.latent,
            video=torch.cat([video, grid.to(video)], dim=2),
            video_mask=torch.cat([self.latent.full_video_mask(), mask], dim=2),
        )
        frames = GuideFrames(grid.shape[2], positions(guide), guide.stride)
        return Told(
            replace(self.positive, guides=(*self.positive.guides, frames)),
            replace(self.negative, guides=(*self.negative.guides, frames)),
            latent,
        )

    def without_guides(self) -> Told:
        """The clip alone."""
        count, latent = self.positive.guide_frames, self.latent
        if count and latent.video is not None:
            mask = None if latent.video_mask is None else latent.full_video_mask()[:, :, :-count]
            latent = replace(latent, video=latent.video[:, :, :-count], video_mask=mask)
        positive, negative = replace(self.positive, guides=()), replace(self.negative, guides=())
        return Told(positive, negative, latent)


def _told(ask: Ask) -> Told:
    return Told(ask.get("positive", Conditioning), ask.get("negative", Conditioning), _video(ask))


def appended(ask: Ask, guide: Guide) -> list[Value]:
    """The conditionings and the latent with a guide behind the clip."""
    try:
        found = _told(ask).with_guide(guide)
    except ValueError as error:
        raise ask.error(str(error), "use the VAE and the size of the clip") from error
    return [found.positive, found.negative, found.latent]


def dilated(latents: Tensor, mask: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Small latents spread over the clip's grid: values at every ``stride``-th place only."""
    b, c, f, h, w = latents.shape
    grid = latents.new_zeros(b, c, f, h * stride, w * stride)
    grid[..., ::stride, ::stride] = latents
    whole = torch.ones(1, 1, f, h * stride, w * stride)
    whole[..., ::stride, ::stride] = mask
    return grid, whole


def _video(ask: Ask) -> Latent:
    latent = ask.get("latent", Latent)
    if latent.video is None or latent.audio is not None:
        raise ask.error(
            "guides belong to a latent of video alone", "connect it before LTXVConcatAVLatent"
        )
    return latent


# --- nodes --------------------------------------------------------------------------------------


def add_guide(ask: Ask) -> list[Value]:
    """``LTXVAddGuide``: a picture or a video of 8n + 1 frames, cropped to the clip's shape."""
    parameters = ask.maybe("iclora_parameters", IcLoraParameters)
    factor = 1 if parameters is None else round(parameters.downscale_factor)
    return appended(ask, _guide(ask, factor, "center"))


def ic_guide(ask: Ask) -> list[Value]:
    """``LTXAddVideoICLoRAGuide``: a reference, smaller by the LoRA's factor.

    Encoded exactly, so its tiles are not needed. A negative ``frame_idx`` is a place before the
    clip, not one counted from its end.
    """
    if ask.has("use_streaming") and ask.flag("use_streaming"):
        raise ask.error("use_streaming needs a sampler that is not known here", "switch it off")
    factor = round(ask.number("latent_downscale_factor"))
    return appended(ask, _guide(ask, factor, ask.text("crop")))


def _guide(ask: Ask, factor: int, crop: str) -> Guide:
    """The images of a guide node, encoded at the clip's size divided by ``factor``."""
    if ask.has("attention_mask") or (
        ask.has("attention_strength") and ask.number("attention_strength") != 1.0
    ):
        ask.warn("attention_mask", "the guide counts fully: attention masks are left out")
    video = _video(ask).video
    if video is None:
        raise TypeError("a latent without video")
    rows, cols = video.shape[3:]
    if factor > 1 and (rows % factor or cols % factor):
        raise ask.error(
            f"the latent has {cols}x{rows} places, which {factor} does not divide",
            f"use sides that are multiples of {factor * PIXELS_PER_LATENT}",
        )
    images, asked = ask.get("image", Images), ask.whole("frame_idx")
    count = (images.count - 1) // FRAMES_PER_LATENT * FRAMES_PER_LATENT + 1
    length = clip_frames(video, ask.get("positive", Conditioning))
    before_clip = asked < 0 and ask.node.class_type != "LTXVAddGuide"
    at = asked if before_clip else placed(asked, count, length)
    lone_first = (asked if before_clip else at) == 0 or count == 1
    latents = _encoded(ask, images.first(count), (rows // factor, cols // factor), crop, lone_first)
    first = (at + FRAMES_PER_LATENT - 1) // FRAMES_PER_LATENT
    if not before_clip and first + latents.shape[2] > length:
        raise ask.error(
            f"the guide's {latents.shape[2]} latent frames from frame {at} on go beyond the clip's "
            f"{length}",
            "use fewer images or a smaller frame_idx",
        )
    return Guide(latents, at, ask.number("strength"), lone_first, factor)


def _encoded(
    ask: Ask, images: Images, grid: tuple[int, int], crop: str, lone_first: bool
) -> Tensor:
    size = (grid[1] * PIXELS_PER_LATENT, grid[0] * PIXELS_PER_LATENT)
    fitted = images.mapped(lambda frames: resized(frames, size, "bilinear", crop), size)

    def make() -> dict[str, Tensor]:
        # A video in mid-clip has no lone first frame: one is put before it and dropped again.
        whole = fitted if lone_first else _with_first_twice(fitted)
        latents = encoded(ask, whole, ask.get("vae", VideoVaeFile))
        return {"latents": latents if lone_first else latents[:, :, 1:]}

    return ask.keep("guide", make)["latents"]


def _with_first_twice(images: Images) -> Images:
    def pixels() -> Iterator[Tensor]:
        first = True
        for chunk in images.pixels():
            if first:
                yield chunk[:1]
                first = False
            yield chunk

    return replace(images, count=images.count + 1, pixels=pixels, integers=None)


def add_latent_guide(ask: Ask) -> list[Value]:
    """``LTXVAddLatentGuide``: latents as they are, from a latent frame on; below 0 is before it."""
    video, guide = _video(ask).video, ask.get("guiding_latent", Latent).video
    if video is None or guide is None:
        raise ask.error("guiding_latent is a latent of sound", "connect a video latent")
    index = ask.whole("latent_idx")
    at = index * FRAMES_PER_LATENT if index <= 0 else (index - 1) * FRAMES_PER_LATENT + 1
    rows, cols = video.shape[3:]
    factor = rows // guide.shape[3]
    if guide.shape[3] * factor != rows or guide.shape[4] * factor != cols:
        raise ask.error("the guide's size does not divide the clip's")
    lone = at == 0 or guide.shape[2] == 1
    return appended(ask, Guide(guide, at, ask.number("strength"), lone, factor))


def crop_guides(ask: Ask) -> list[Value]:
    """``LTXVCropGuides``: the clip without its guides, the conditionings without their places."""
    positive, negative = ask.get("positive", Conditioning), ask.get("negative", Conditioning)
    found = Told(positive, negative, ask.get("latent", Latent)).without_guides()
    return [found.positive, found.negative, found.latent]


def ic_parameters(ask: Ask) -> list[Value]:
    """``GetICLoRAParameters``: of the last LoRA on a model that says by how much it is smaller."""
    found = [downscale_factor(lora) for lora, _ in ask.get("iclora_model", Model).loras]
    return [IcLoraParameters(next((f for f in reversed(found) if f != 1.0), 1.0))]


# --- voices -------------------------------------------------------------------------------------


def voice_tokens(ask: Ask) -> list[Value]:
    """``LTXVSetAudioRefTokens``: a voice to sound like; also the sound itself, frozen."""
    audio = ask.get("audio_latent", Latent).audio
    if audio is None:
        raise ask.error("audio_latent is a latent of video", "connect LTXVAudioVAEEncode")
    told = [
        replace(ask.get(name, Conditioning), reference_audio=audio)
        for name in ("positive", "negative")
    ]
    frozen = Latent(audio=audio, audio_mask=torch.zeros(1, 1, audio.shape[2], 1))
    return [*told, frozen]


def voice(ask: Ask) -> list[Value]:
    """``LTXVReferenceAudio``: a voice from a sound, and guidance towards it by one more pass."""
    vae, sound = ask.get("audio_vae", AudioVaeFile), ask.get("reference_audio", Audio)
    latents = ask.keep("voice", lambda: {"latents": encoded_sound(ask, vae, sound)})["latents"]
    told = [
        replace(ask.get(name, Conditioning), reference_audio=latents)
        for name in ("positive", "negative")
    ]
    model, scale = ask.get("model", Model), ask.number("identity_guidance_scale")
    if scale:
        model = replace(model, identity=patch(ask, model, "identity_guidance_scale"))
    return [model, *told]


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "LTXVAddGuide": Meaning(add_guide),
        "LTXVAddLatentGuide": Meaning(add_latent_guide),
        "LTXVCropGuides": Meaning(crop_guides),
        "LTXAddVideoICLoRAGuide": Meaning(ic_guide),
        "LTXAddVideoICLoRAGuideAdvanced": Meaning(ic_guide),
        "GetICLoRAParameters": Meaning(ic_parameters),
        "LTXVSetAudioRefTokens": Meaning(voice_tokens),
        "LTXVReferenceAudio": Meaning(voice),
    }
)
