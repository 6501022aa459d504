"""Latent nodes: create, concatenate, separate, mask, upscale, normalise, save and load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.graph import Node
from latent_ladder.comfyui.nodes.latent_statistics import adain, normalise_statistics
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.nodes.resize import resize_frames
from latent_ladder.comfyui.nodes.sampling import parse_floats
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
from latent_ladder.models.vae_loading import read_latent_statistics

IMAGE_PIXELS_PER_LATENT = 8
"""Pixels per latent that ``LatentUpscale`` assumes, as it was written for image models."""


# --- create, concatenate, mask ------------------------------------------------------------------


def latent_frames(length: int) -> int:
    """Return the latent frames for a number of frames: 126 frames give 16, which are 121 frames."""
    return (length - 1) // FRAMES_PER_LATENT + 1


def empty_shape(ctx: NodeContext) -> tuple[int, int, int]:
    """Return the frames, rows and columns of an empty latent, with warnings about truncation."""
    width, height, length = ctx.integer("width"), ctx.integer("height"), ctx.integer("length")
    side = PIXELS_PER_LATENT
    if width % side or height % side:
        ctx.warn(
            "size_truncated",
            f"{width}x{height} is truncated to {width // side * side}x{height // side * side}",
        )
    frames = latent_frames(length)
    if (length - 1) % FRAMES_PER_LATENT:
        ctx.warn(
            "length_truncated",
            f"{length} frames are truncated to {(frames - 1) * FRAMES_PER_LATENT + 1}",
        )
    if ctx.integer("batch_size") != 1:
        raise ctx.error(
            f"batch_size is {ctx.integer('batch_size')}, expected 1",
            "queue the workflow once per clip, each with another seed",
        )
    return frames, max(height // side, 1), max(width // side, 1)


def empty_video(ctx: NodeContext) -> list[Value]:
    """``EmptyLTXVLatentVideo``: zeros with the channels of the graph's model."""
    f, h, w = empty_shape(ctx)
    return [Latent(video=torch.zeros(1, ctx.channels, f, h, w))]


def empty_audio(ctx: NodeContext) -> list[Value]:
    """``LTXVEmptyLatentAudio``: zeros, 25 latents per second, rounded."""
    frames, fps = ctx.integer("frames_number"), ctx.number("frame_rate")
    if ctx.integer("batch_size") != 1:
        raise ctx.error("batch_size is not 1", "queue the workflow once per clip")
    length = audio_latents(frames, Fraction(fps).limit_denominator(1_000_000))
    channels, bins = audio_shape(ctx.get("audio_vae", AudioVaeFile))
    return [Latent(audio=torch.zeros(1, channels, max(length, 1), bins))]


def audio_shape(vae: AudioVaeFile) -> tuple[int, int]:
    """Return the channels and frequency bins of a VAE's audio latents."""
    component = vae.component
    values = component.shape("per_channel_statistics.mean-of-means")[0]
    channels = component.shape("decoder.conv_in.conv.weight")[1]
    return channels, values // channels


def concat_streams(ctx: NodeContext) -> list[Value]:
    """``LTXVConcatAVLatent``: an audio-video latent; if one stream has a mask, both get one.

    If ``video_latent`` already contains audio, the new audio replaces it and gets its length.
    """
    video, audio_latent = ctx.get("video_latent", Latent), ctx.get("audio_latent", Latent)
    if video.video is None or audio_latent.audio is None:
        raise ctx.error(
            "video_latent must be a video latent and audio_latent an audio latent",
            "connect, for example, EmptyLTXVLatentVideo and LTXVEmptyLatentAudio",
        )
    audio, mask = audio_latent.audio, audio_latent.audio_mask
    if video.audio is not None:
        audio, mask = _fit_audio_length(audio, mask, video.audio.shape[2])
    both = Latent(video.video, audio, video.video_mask, mask)
    if both.video_mask is None and both.audio_mask is None:
        return [both]
    return [
        replace(
            both,
            video_mask=both.full_video_mask(),
            audio_mask=_full_mask(audio) if mask is None else mask,
        )
    ]


def _full_mask(audio: Tensor) -> Tensor:
    return torch.ones(1, 1, audio.shape[2], 1)


def _fit_audio_length(
    audio: Tensor, mask: Tensor | None, length: int
) -> tuple[Tensor, Tensor | None]:
    """Return audio latents cut or padded with zeros to a length; the padding is generated."""
    have = audio.shape[2]
    if have == length:
        return audio, mask
    if have > length:
        return audio[:, :, :length], None if mask is None else mask[:, :, :length]
    mask = _full_mask(audio) if mask is None else mask
    return F.pad(audio, (0, 0, 0, length - have)), F.pad(mask, (0, 0, 0, length - have), value=1.0)


def separate_streams(ctx: NodeContext) -> list[Value]:
    """``LTXVSeparateAVLatent``: the video and the audio of an audio-video latent."""
    both = ctx.get("av_latent", Latent)
    if both.video is None or both.audio is None:
        raise ctx.error("av_latent is not an audio-video latent", "connect LTXVConcatAVLatent")
    return [
        Latent(video=both.video, video_mask=both.video_mask),
        Latent(audio=both.audio, audio_mask=both.audio_mask),
    ]


def set_noise_mask(ctx: NodeContext) -> list[Value]:
    """``SetLatentNoiseMask``: a mask resized to the latent; 1 is generated, 0 is preserved."""
    latent, mask = ctx.get("samples", Latent), ctx.get("mask", Mask).values
    if latent.video is None:
        if latent.audio is None:
            raise ctx.error("samples is an empty latent")
        planes = F.interpolate(mask[None], latent.audio.shape[2:], mode="bilinear")
        return [replace(latent, audio_mask=planes[:, :1, :, :1])]
    cube = F.interpolate(mask[None, None], latent.video.shape[2:], mode="trilinear")
    return [replace(latent, video_mask=cube)]


def audio_only_model(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioOnlyModel``: a model that runs the audio stream only."""
    return [replace(ctx.get("model", Model), audio_only=True)]


def audio_only_video(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioOnlyEmptyVideoLatent``: a placeholder of one frame of 64x64 pixels.

    Its noise is drawn before that of the audio, so its size decides the audio's noise.
    """
    return [Latent(video=torch.zeros(1, ctx.channels, 1, 2, 2))]


# --- upscale, normalise, combine ----------------------------------------------------------------


@torch.inference_mode()
def upsample_latent(ctx: NodeContext) -> list[Value]:
    """``LTXVLatentUpsampler``: latents upsampled in space or time; a mask is dropped."""
    latent, vae = ctx.get("samples", Latent), ctx.get("vae", VideoVaeFile)
    if latent.video is None or latent.audio is not None:
        raise ctx.error(
            "samples is not a video latent",
            "connect the video output of LTXVSeparateAVLatent",
        )
    if latent.video_mask is not None and bool((latent.video_mask < 1).any()):
        ctx.warn("mask_dropped", "the noise mask is dropped: apply the image again after this node")
    video, file = latent.video, ctx.get("upscale_model", UpsamplerFile).component
    engine = ctx.engine

    def work() -> Tensor:
        runtime = engine.runtime
        upsampler = load_upsampler(file, device=runtime.device, dtype=runtime.dtype)
        larger = upsample(
            video.to(runtime.device), upsampler, read_latent_statistics(vae.component)
        )
        return larger.float().cpu()

    return [Latent(video=engine.runner.retry_without_transformer(work, ctx.warn))]


def upscale_latent(ctx: NodeContext) -> list[Value]:
    """``LatentUpscale``: sizes assume 8 pixels per latent, although these latents have 32."""
    latent = ctx.get("samples", Latent)
    width, height = ctx.integer("width"), ctx.integer("height")
    if not width and not height:
        return [latent]
    h, w = _require_video(ctx, latent).shape[-2:]
    if width == 0:
        height = max(64, height)
        width = max(64, round(w * height / h))
    elif height == 0:
        width = max(64, width)
        height = max(64, round(h * width / w))
    else:
        width, height = max(64, width), max(64, height)
    unit = IMAGE_PIXELS_PER_LATENT
    return [_resize_latent(ctx, latent, (width // unit, height // unit), ctx.text("crop"))]


def upscale_latent_by(ctx: NodeContext) -> list[Value]:
    """``LatentUpscaleBy``: latents resized by a factor."""
    latent, factor = ctx.get("samples", Latent), ctx.number("scale_by")
    h, w = _require_video(ctx, latent).shape[-2:]
    return [_resize_latent(ctx, latent, (round(w * factor), round(h * factor)), "disabled")]


def _require_video(ctx: NodeContext, latent: Latent) -> Tensor:
    if latent.video is None:
        raise ctx.error("samples is an audio latent", "connect a video latent")
    return latent.video


def _resize_latent(ctx: NodeContext, latent: Latent, size: tuple[int, int], crop: str) -> Latent:
    video = _require_video(ctx, latent)
    frames = resize_frames(video[0].transpose(0, 1), size, ctx.text("upscale_method"), crop)
    side = PIXELS_PER_LATENT
    ctx.warn("latent_size", f"the latent becomes {size[0] * side}x{size[1] * side} pixels")
    return replace(latent, video=frames.transpose(0, 1)[None], video_mask=None)


def check_upscale_method(node: Node) -> str:
    """Return why an upscale method is not supported."""
    if node.inputs.get("upscale_method") == "bislerp":
        return "bislerp is not supported: use bicubic"
    return ""


def adain_latent(ctx: NodeContext) -> list[Value]:
    """``LTXVAdainLatent``: latents with the statistics of a reference."""
    latent, reference = ctx.get("latents", Latent), ctx.get("reference", Latent)
    if latent.video is None or reference.video is None:
        raise ctx.error("latents and reference must be video latents")
    per_frame = ctx.has("per_frame") and ctx.boolean("per_frame")
    try:
        video = adain(latent.video, reference.video, ctx.number("factor"), per_frame=per_frame)
    except ValueError as error:
        raise ctx.error(str(error)) from error
    return [replace(latent, video=video)]


def stat_norm_latent(ctx: NodeContext) -> list[Value]:
    """``LTXVStatNormLatent``: latents with a given mean and standard deviation."""
    latent = ctx.get("latents", Latent)
    if latent.video is None:
        raise ctx.error("latents is an audio latent", "connect a video latent")
    return [
        replace(
            latent,
            video=normalise_statistics(
                latent.video, _target_statistics(ctx, ()), ctx.number("factor")
            ),
        )
    ]


def _target_statistics(ctx: NodeContext, factors: tuple[float, ...]) -> StepStatistics:
    return StepStatistics(
        factors,
        None,
        ctx.number("target_mean"),
        ctx.number("target_std"),
        ctx.number("percentile"),
        ctx.boolean("clip_outliers"),
    )


def patch_step_adain(ctx: NodeContext) -> list[Value]:
    """``LTXVPerStepAdainPatcher``: a model with AdaIN after each step."""
    reference = ctx.get("reference", Latent).video
    if reference is None:
        raise ctx.error("reference is an audio latent", "connect a video latent")
    per_frame = ctx.has("per_frame") and ctx.boolean("per_frame")
    factors = tuple(parse_floats(ctx, "factors"))
    target = StepStatistics(factors, reference, per_frame=per_frame)
    return [replace(ctx.get("model", Model), adain=target)]


def patch_step_stat_norm(ctx: NodeContext) -> list[Value]:
    """``LTXVPerStepStatNormPatcher``: a model with normalised statistics after each step."""
    target = _target_statistics(ctx, tuple(parse_floats(ctx, "factors")))
    return [replace(ctx.get("model", Model), adain=target)]


def select_latents(ctx: NodeContext) -> list[Value]:
    """``LTXVSelectLatents``: latent frames from a start to an end index, both included."""
    latent = ctx.get("samples", Latent)
    video = _require_video(ctx, latent)
    count = video.shape[2]
    first, last = (
        i + count if i < 0 else i for i in (ctx.integer("start_index"), ctx.integer("end_index"))
    )
    first, last = max(first, 0), min(last, count - 1)
    if first > last:
        raise ctx.error(f"latent frames {first} to {last} of {count} are an empty range")
    mask = None if latent.video_mask is None else latent.full_video_mask()[:, :, first : last + 1]
    return [replace(latent, video=video[:, :, first : last + 1], video_mask=mask)]


def add_latents(ctx: NodeContext) -> list[Value]:
    """``LTXVAddLatents``: two latents concatenated in time."""
    first, second = ctx.get("latents1", Latent), ctx.get("latents2", Latent)
    if first.video is None or second.video is None:
        raise ctx.error("latents1 and latents2 must be video latents")
    if first.video.shape[3:] != second.video.shape[3:]:
        raise ctx.error("latents1 and latents2 differ in size")
    mask = None
    if first.video_mask is not None or second.video_mask is not None:
        mask = torch.cat([first.full_video_mask(), second.full_video_mask()], dim=2)
    return [Latent(video=torch.cat([first.video, second.video], dim=2), video_mask=mask)]


# --- files --------------------------------------------------------------------------------------

LATENT_FORMAT_TENSOR = "latent_format_version_0"
"""The tensor that marks a latent file as unscaled in ComfyUI."""


def serialise_latent(latent: Latent, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a ``.latent`` file: video as in ComfyUI, plus audio and masks."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in latent.tensors().items()}
    main = tensors.pop("video", None)
    if main is None:
        main = tensors.pop("audio")
    body = {"latent_tensor": main, LATENT_FORMAT_TENSOR: torch.tensor([]), **tensors}
    if latent.video is None:
        body["is_audio"] = torch.tensor([1])
    data: bytes = save(body, dict(metadata))
    return data


def parse_latent(data: bytes) -> Latent:
    """Return the latent of a ``.latent`` file. Raises ``ValueError`` for another file."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(data)
        main = tensors.pop("latent_tensor").float()
    except (SafetensorError, KeyError) as error:
        raise ValueError("it is not a latent file") from error
    if LATENT_FORMAT_TENSOR not in tensors:
        main = main / 0.18215
    is_audio = "is_audio" in tensors or (main.ndim == 4 and "audio" not in tensors)
    names = {
        name: t for name, t in tensors.items() if name in ("audio", "video_mask", "audio_mask")
    }
    return Latent.from_tensors({("audio" if is_audio else "video"): main, **names})


def load_latent(ctx: NodeContext) -> list[Value]:
    """``LoadLatent``: the latent of a file."""
    path = ctx.engine.input_file(ctx.text("latent"))
    try:
        return [parse_latent(path.read_bytes())]
    except ValueError as error:
        raise ctx.error(f"{path.name} cannot be read: {error}") from error


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "EmptyLTXVLatentVideo": NodeFunction(empty_video),
        "LTXVEmptyLatentAudio": NodeFunction(empty_audio),
        "LTXVConcatAVLatent": NodeFunction(concat_streams),
        "LTXVSeparateAVLatent": NodeFunction(separate_streams),
        "SetLatentNoiseMask": NodeFunction(set_noise_mask),
        "LTXVAudioOnlyModel": NodeFunction(audio_only_model),
        "LTXVAudioOnlyEmptyVideoLatent": NodeFunction(audio_only_video, version=2),
        "LTXVLatentUpsampler": NodeFunction(upsample_latent, stored=True),
        "LatentUpscale": NodeFunction(upscale_latent, check=check_upscale_method),
        "LatentUpscaleBy": NodeFunction(upscale_latent_by, check=check_upscale_method),
        "LTXVAdainLatent": NodeFunction(adain_latent),
        "LTXVStatNormLatent": NodeFunction(stat_norm_latent),
        "LTXVPerStepAdainPatcher": NodeFunction(patch_step_adain),
        "LTXVPerStepStatNormPatcher": NodeFunction(patch_step_stat_norm),
        "LTXVSelectLatents": NodeFunction(select_latents),
        "LTXVAddLatents": NodeFunction(add_latents),
        "LoadLatent": NodeFunction(load_latent),
    }
)
