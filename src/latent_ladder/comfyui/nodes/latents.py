"""Latents: made, joined, taken apart, masked, upscaled, normalised, kept in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.nodes.latent_statistics import adain, normed
from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
from latent_ladder.comfyui.nodes.resize import resized
from latent_ladder.comfyui.nodes.sampling import numbers
from latent_ladder.comfyui.runtime.values import (
    AudioVaeFile,
    Latent,
    Mask,
    Model,
    StepStatistics,
    UpsamplerFile,
    Value,
    VideoVaeFile,
)
from latent_ladder.latents.shapes import (
    FRAMES_PER_LATENT,
    PIXELS_PER_LATENT,
    audio_latents,
)
from latent_ladder.models.latent_upsampler.upsample import load_upsampler, upsample
from latent_ladder.models.vae_loading import statistics

PIXELS_OF_IMAGE_LATENTS = 8
"""What ``LatentUpscale`` takes a latent for: it was made for pictures."""


# --- made ---------------------------------------------------------------------------------------


def latent_frames(length: int) -> int:
    """As ComfyUI cuts any length: 126 frames are 16 latent frames, which are 121 frames."""
    return (length - 1) // FRAMES_PER_LATENT + 1


def empty_shape(ask: Ask) -> tuple[int, int, int]:
    """Frames, rows and columns of an empty latent; what is cut off is told."""
    width, height, length = ask.whole("width"), ask.whole("height"), ask.whole("length")
    side = PIXELS_PER_LATENT
    if width % side or height % side:
        ask.warn(
            "size_truncated",
            f"{width}x{height} is cut to {width // side * side}x{height // side * side}",
        )
    frames = latent_frames(length)
    if (length - 1) % FRAMES_PER_LATENT:
        ask.warn(
            "length_truncated",
            f"{length} frames are cut to {(frames - 1) * FRAMES_PER_LATENT + 1}",
        )
    if ask.whole("batch_size") != 1:
        raise ask.error(
            f"batch_size is {ask.whole('batch_size')}, expected 1",
            "queue the workflow once per clip, with a seed of its own",
        )
    return frames, max(height // side, 1), max(width // side, 1)


def empty_video(ask: Ask) -> list[Value]:
    """``EmptyLTXVLatentVideo``; it gets the channels of the model that samples it."""
    f, h, w = empty_shape(ask)
    return [Latent(video=torch.zeros(1, ask.channels, f, h, w))]


def empty_audio(ask: Ask) -> list[Value]:
    """``LTXVEmptyLatentAudio``: 25 latents a second, rounded."""
    frames, fps = ask.whole("frames_number"), ask.number("frame_rate")
    if ask.whole("batch_size") != 1:
        raise ask.error("batch_size is not 1", "queue the workflow once per clip")
    length = audio_latents(frames, Fraction(fps).limit_denominator(1_000_000))
    channels, bins = audio_shape(ask.get("audio_vae", AudioVaeFile))
    return [Latent(audio=torch.zeros(1, channels, max(length, 1), bins))]


def audio_shape(vae: AudioVaeFile) -> tuple[int, int]:
    """Channels and bins of a VAE's audio latents."""
    component = vae.component
    values = component.shape("per_channel_statistics.mean-of-means")[0]
    channels = component.shape("decoder.conv_in.conv.weight")[1]
    return channels, values // channels


def concat(ask: Ask) -> list[Value]:
    """``LTXVConcatAVLatent``: if one part has a mask, the other gets one of ones.

    Onto a latent that has sound already, the new sound takes its place and its length.
    """
    video, sound = ask.get("video_latent", Latent), ask.get("audio_latent", Latent)
    if video.video is None or sound.audio is None:
        raise ask.error(
            "video_latent needs a video latent and audio_latent one of sound",
            "connect EmptyLTXVLatentVideo and LTXVEmptyLatentAudio, or what was made of them",
        )
    audio, mask = sound.audio, sound.audio_mask
    if video.audio is not None:
        audio, mask = _as_long(audio, mask, video.audio.shape[2])
    both = Latent(video.video, audio, video.video_mask, mask)
    if both.video_mask is None and both.audio_mask is None:
        return [both]
    return [
        replace(
            both,
            video_mask=both.full_video_mask(),
            audio_mask=_ones(audio) if mask is None else mask,
        )
    ]


def _ones(audio: Tensor) -> Tensor:
    return torch.ones(1, 1, audio.shape[2], 1)


def _as_long(audio: Tensor, mask: Tensor | None, length: int) -> tuple[Tensor, Tensor | None]:
    """Sound cut or filled up with zeros, which are generated."""
    have = audio.shape[2]
    if have == length:
        return audio, mask
    if have > length:
        return audio[:, :, :length], None if mask is None else mask[:, :, :length]
    mask = _ones(audio) if mask is None else mask
    return F.pad(audio, (0, 0, 0, length - have)), F.pad(mask, (0, 0, 0, length - have), value=1.0)


def separate(ask: Ask) -> list[Value]:
    """``LTXVSeparateAVLatent``."""
    both = ask.get("av_latent", Latent)
    if both.video is None or both.audio is None:
        raise ask.error("av_latent is not an audio-video latent", "connect LTXVConcatAVLatent")
    return [
        Latent(video=both.video, video_mask=both.video_mask),
        Latent(audio=both.audio, audio_mask=both.audio_mask),
    ]


def noise_mask(ask: Ask) -> list[Value]:
    """``SetLatentNoiseMask``: 1 is generated, 0 kept; resized to the latent."""
    latent, mask = ask.get("samples", Latent), ask.get("mask", Mask).values
    if latent.video is None:
        if latent.audio is None:
            raise ask.error("samples is an empty latent")
        planes = F.interpolate(mask[None], latent.audio.shape[2:], mode="bilinear")
        return [replace(latent, audio_mask=planes[:, :1, :, :1])]
    cube = F.interpolate(mask[None, None], latent.video.shape[2:], mode="trilinear")
    return [replace(latent, video_mask=cube)]


def sound_only_model(ask: Ask) -> list[Value]:
    """``LTXVAudioOnlyModel``: the video stream is not run."""
    return [replace(ask.get("model", Model), audio_only=True)]


def sound_only_video(ask: Ask) -> list[Value]:
    """``LTXVAudioOnlyEmptyVideoLatent``: a place holder of one latent."""
    return [Latent(video=torch.zeros(1, ask.channels, 1, 1, 1))]


# --- changed ------------------------------------------------------------------------------------


@torch.inference_mode()
def upsampled(ask: Ask) -> list[Value]:
    """``LTXVLatentUpsampler``: larger in space or time; a mask is dropped."""
    latent, vae = ask.get("samples", Latent), ask.get("vae", VideoVaeFile)
    if latent.video is None or latent.audio is not None:
        raise ask.error(
            "samples is not a latent of video alone",
            "connect the video output of LTXVSeparateAVLatent",
        )
    if latent.video_mask is not None and bool((latent.video_mask < 1).any()):
        ask.warn("mask_dropped", "the noise mask is dropped: apply the image again behind it")
    video, file = latent.video, ask.get("upscale_model", UpsamplerFile).component
    engine = ask.engine

    def work() -> Tensor:
        runtime = engine.runtime
        upsampler = load_upsampler(file, device=runtime.device, dtype=runtime.dtype)
        larger = upsample(video.to(runtime.device), upsampler, statistics(vae.component))
        return larger.float().cpu()

    return [Latent(video=engine.runner.retry_without_transformer(work, ask.warn))]


def upscaled(ask: Ask) -> list[Value]:
    """``LatentUpscale``: sizes count 8 pixels a latent, as for pictures, also where it is 32."""
    latent = ask.get("samples", Latent)
    width, height = ask.whole("width"), ask.whole("height")
    if not width and not height:
        return [latent]
    h, w = _video_of(ask, latent).shape[-2:]
    if width == 0:
        height = max(64, height)
        width = max(64, round(w * height / h))
    elif height == 0:
        width = max(64, width)
        height = max(64, round(h * width / w))
    else:
        width, height = max(64, width), max(64, height)
    unit = PIXELS_OF_IMAGE_LATENTS
    return [_rescaled(ask, latent, (width // unit, height // unit), ask.text("crop"))]


def upscaled_by(ask: Ask) -> list[Value]:
    """``LatentUpscaleBy``."""
    latent, factor = ask.get("samples", Latent), ask.number("scale_by")
    h, w = _video_of(ask, latent).shape[-2:]
    return [_rescaled(ask, latent, (round(w * factor), round(h * factor)), "disabled")]


def _video_of(ask: Ask, latent: Latent) -> Tensor:
    if latent.video is None:
        raise ask.error("samples is a latent of sound", "connect a video latent")
    return latent.video


def _rescaled(ask: Ask, latent: Latent, size: tuple[int, int], crop: str) -> Latent:
    video = _video_of(ask, latent)
    frames = resized(video[0].transpose(0, 1), size, ask.text("upscale_method"), crop)
    side = PIXELS_PER_LATENT
    ask.warn("latent_size", f"the latent becomes {size[0] * side}x{size[1] * side} pixels")
    return replace(latent, video=frames.transpose(0, 1)[None], video_mask=None)


def refuses_bislerp(node: Node) -> str:
    """Why a latent cannot be resized so."""
    if node.inputs.get("upscale_method") == "bislerp":
        return "bislerp is not known here: use bicubic"
    return ""


def adain_latent(ask: Ask) -> list[Value]:
    """``LTXVAdainLatent``."""
    latent, reference = ask.get("latents", Latent), ask.get("reference", Latent)
    if latent.video is None or reference.video is None:
        raise ask.error("latents and reference are video latents")
    per_frame = ask.has("per_frame") and ask.flag("per_frame")
    try:
        moved = adain(latent.video, reference.video, ask.number("factor"), per_frame=per_frame)
    except ValueError as error:
        raise ask.error(str(error)) from error
    return [replace(latent, video=moved)]


def stat_norm_latent(ask: Ask) -> list[Value]:
    """``LTXVStatNormLatent``."""
    latent = ask.get("latents", Latent)
    if latent.video is None:
        raise ask.error("latents is a latent of sound", "connect a video latent")
    return [replace(latent, video=normed(latent.video, _aim(ask, ()), ask.number("factor")))]


def _aim(ask: Ask, factors: tuple[float, ...]) -> StepStatistics:
    return StepStatistics(
        factors,
        None,
        ask.number("target_mean"),
        ask.number("target_std"),
        ask.number("percentile"),
        ask.flag("clip_outliers"),
    )


def step_adain(ask: Ask) -> list[Value]:
    """``LTXVPerStepAdainPatcher``."""
    reference = ask.get("reference", Latent).video
    if reference is None:
        raise ask.error("reference is a latent of sound", "connect a video latent")
    per_frame = ask.has("per_frame") and ask.flag("per_frame")
    factors = tuple(numbers(ask, "factors"))
    aim = StepStatistics(factors, reference, per_frame=per_frame)
    return [replace(ask.get("model", Model), adain=aim)]


def step_stat_norm(ask: Ask) -> list[Value]:
    """``LTXVPerStepStatNormPatcher``."""
    aim = _aim(ask, tuple(numbers(ask, "factors")))
    return [replace(ask.get("model", Model), adain=aim)]


def selected(ask: Ask) -> list[Value]:
    """``LTXVSelectLatents``: latent frames from one to another, both included."""
    latent = ask.get("samples", Latent)
    video = _video_of(ask, latent)
    count = video.shape[2]
    first, last = (
        i + count if i < 0 else i for i in (ask.whole("start_index"), ask.whole("end_index"))
    )
    first, last = max(first, 0), min(last, count - 1)
    if first > last:
        raise ask.error(f"latent frames {first} to {last} of {count} are none")
    mask = None if latent.video_mask is None else latent.full_video_mask()[:, :, first : last + 1]
    return [replace(latent, video=video[:, :, first : last + 1], video_mask=mask)]


def added(ask: Ask) -> list[Value]:
    """``LTXVAddLatents``: one after the other in time."""
    first, second = ask.get("latents1", Latent), ask.get("latents2", Latent)
    if first.video is None or second.video is None:
        raise ask.error("latents1 and latents2 are video latents")
    if first.video.shape[3:] != second.video.shape[3:]:
        raise ask.error("latents1 and latents2 differ in size")
    mask = None
    if first.video_mask is not None or second.video_mask is not None:
        mask = torch.cat([first.full_video_mask(), second.full_video_mask()], dim=2)
    return [Latent(video=torch.cat([first.video, second.video], dim=2), video_mask=mask)]


# --- files --------------------------------------------------------------------------------------

FORMAT = "latent_format_version_0"
"""The tensor by which ComfyUI knows that a file's latents are not scaled."""


def latent_bytes(latent: Latent, metadata: Mapping[str, str]) -> bytes:
    """A ``.latent`` file: video as ComfyUI stores it, sound and masks beside it."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in latent.tensors().items()}
    main = tensors.pop("video", None)
    if main is None:
        main = tensors.pop("audio")
    body = {"latent_tensor": main, FORMAT: torch.tensor([]), **tensors}
    if latent.video is None:
        body["is_audio"] = torch.tensor([1])
    data: bytes = save(body, dict(metadata))
    return data


def latent_of(data: bytes) -> Latent:
    """The latent of a ``.latent`` file, ComfyUI's own too. Raises ``ValueError`` for others."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        main = tensors.pop("latent_tensor").float()
    except (SafetensorError, KeyError) as error:
        raise ValueError("it is not a latent file") from error
    if FORMAT not in tensors:
        main = main / 0.18215
    is_audio = "is_audio" in tensors or (main.ndim == 4 and "audio" not in tensors)
    names = {
        name: t for name, t in tensors.items() if name in ("audio", "video_mask", "audio_mask")
    }
    return Latent.of({("audio" if is_audio else "video"): main, **names})


def load_latent(ask: Ask) -> list[Value]:
    """``LoadLatent``."""
    path = ask.engine.input_file(ask.text("latent"))
    try:
        return [latent_of(path.read_bytes())]
    except ValueError as error:
        raise ask.error(f"{path.name} cannot be read: {error}") from error


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "EmptyLTXVLatentVideo": Meaning(empty_video),
        "LTXVEmptyLatentAudio": Meaning(empty_audio),
        "LTXVConcatAVLatent": Meaning(concat),
        "LTXVSeparateAVLatent": Meaning(separate),
        "SetLatentNoiseMask": Meaning(noise_mask),
        "LTXVAudioOnlyModel": Meaning(sound_only_model),
        "LTXVAudioOnlyEmptyVideoLatent": Meaning(sound_only_video),
        "LTXVLatentUpsampler": Meaning(upsampled, keeps=True),
        "LatentUpscale": Meaning(upscaled, refuses=refuses_bislerp),
        "LatentUpscaleBy": Meaning(upscaled_by, refuses=refuses_bislerp),
        "LTXVAdainLatent": Meaning(adain_latent),
        "LTXVStatNormLatent": Meaning(stat_norm_latent),
        "LTXVPerStepAdainPatcher": Meaning(step_adain),
        "LTXVPerStepStatNormPatcher": Meaning(step_stat_norm),
        "LTXVSelectLatents": Meaning(selected),
        "LTXVAddLatents": Meaning(added),
        "LoadLatent": Meaning(load_latent),
    }
)
