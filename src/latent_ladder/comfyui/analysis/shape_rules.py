"""Shape rules: the effect of each node type on sizes, frame counts and lengths, with their lint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from latent_ladder.comfyui.analysis.shape_inference import (
    AudioLength,
    AudioVideoShape,
    ClipShape,
    FramesShape,
    Rule,
    ShapeContext,
    VideoShape,
    audio_latent_count,
    audio_seconds,
    empty_video_shape,
    format_size,
)
from latent_ladder.comfyui.node_defs.images import rtx_size
from latent_ladder.latents.shapes import FRAMES_PER_LATENT

InferredOutputs = tuple[Any, ...]


# --- latents --------------------------------------------------------------------------------------


def _empty_video(ctx: ShapeContext) -> InferredOutputs:
    requested = ctx.integers("width", "height", "length")
    if requested is None or min(requested) < 1:
        return ()
    video = empty_video_shape(*requested)
    if min(video.width, video.height) == 0:
        size = format_size(*requested[:2])
        ctx.warn("no_size", f"{size} is smaller than one latent of 32x32 pixels")
        return ()
    if video.frames != video.requested_frames:
        text = f"length {video.requested_frames} is truncated to {video.frames} frames"
        ctx.warn("frames_truncated", f"{text}: latents represent 8k+1 frames")
    return (video,)


def _image_to_video(ctx: ShapeContext) -> InferredOutputs:
    outputs = _empty_video(ctx)
    return (None, None, replace(outputs[0], masked=True)) if outputs else ()


def _empty_audio(ctx: ShapeContext) -> InferredOutputs:
    frames, fps = ctx.integer("frames_number"), ctx.number("frame_rate")
    if frames is None or fps is None or fps <= 0:
        return ()
    return (AudioLength(audio_seconds(audio_latent_count(frames, fps))),)


def _concat(ctx: ShapeContext) -> InferredOutputs:
    return (AudioVideoShape(ctx.video("video_latent"), ctx.audio("audio_latent")),)


def _separate(ctx: ShapeContext) -> InferredOutputs:
    return (ctx.video("av_latent"), ctx.audio("av_latent"))


def _in_place(ctx: ShapeContext) -> InferredOutputs:
    video = ctx.video("latent")
    if video is None or ctx.get("bypass") is True:
        return (ctx.get("latent"),)
    return (ctx.with_video("latent", replace(video, masked=True, mask_dropped=False)),)


def _add_guide(ctx: ShapeContext) -> InferredOutputs:
    video = ctx.video("latent")
    guided = replace(video, has_guides=True, mask_dropped=False) if video else None
    return (None, None, ctx.with_video("latent", guided))


def _crop_guides(ctx: ShapeContext) -> InferredOutputs:
    video = ctx.video("latent")
    cropped = replace(video, has_guides=False) if video else None
    return (None, None, ctx.with_video("latent", cropped))


def _separate_keyframes(ctx: ShapeContext) -> InferredOutputs:
    """The clip without them; the number of keyframes is not known before the graph runs."""
    return (*_crop_guides(ctx), None)


def _freeze(ctx: ShapeContext) -> InferredOutputs:
    video = ctx.video("latent")
    if video is None:
        return (ctx.get("latent"),)
    return (ctx.with_video("latent", replace(video, masked=True, mask_dropped=False)),)


def _upsample_latents(ctx: ShapeContext) -> InferredOutputs:
    video = ctx.video("samples")
    upsampling = ctx.get("upscale_model")
    if video is None or not isinstance(upsampling, tuple):
        return ()
    if video.has_guides:
        ctx.warn("guides_kept", "its latent still has guide frames: add LTXVCropGuides before it")
    axis, factor = upsampling
    unmasked = replace(video, masked=False, mask_dropped=video.masked or video.mask_dropped)
    if axis == "temporal":
        latents = (video.frames - 1) // FRAMES_PER_LATENT + 1
        frames = (round(latents * factor) - 1 - 1) * FRAMES_PER_LATENT + 1
        return (replace(unmasked, frames=frames, requested_frames=frames),)
    width, height = (round(side * factor / 32) * 32 for side in (video.width, video.height))
    requested = (video.requested_size[0] * factor, video.requested_size[1] * factor)
    return (replace(unmasked, width=width, height=height, requested_size=requested),)


def _load_latent_upsampler(ctx: ShapeContext) -> InferredOutputs:
    """Return the axis and factor of a latent upsampler, from its file or else from its name."""
    name = str(ctx.get("model_name") or "")
    known = ctx.shapes.upscale_factors.get(name)
    return (known or factor_from_name(name),)


def factor_from_name(name: str) -> tuple[str, Fraction]:
    """Return the axis and factor of a latent upsampler by its file name; the default is x2."""
    found = re.search(r"x(\d+(?:\.\d+)?)", name.lower())
    axis = "temporal" if "temporal" in name.lower() else "spatial"
    return axis, Fraction(found[1]) if found else Fraction(2)


def _latent_upscale(ctx: ShapeContext) -> InferredOutputs:
    video, size = ctx.video("samples"), ctx.integers("width", "height")
    if video is None or size is None or 0 in size:
        return ()
    width, height = (side // 32 * 32 for side in size)
    requested = (Fraction(size[0]), Fraction(size[1]))
    return (
        ctx.with_video(
            "samples", replace(video, width=width, height=height, requested_size=requested)
        ),
    )


def _latent_upscale_by(ctx: ShapeContext) -> InferredOutputs:
    video, by = ctx.video("samples"), ctx.number("scale_by")
    if video is None or by is None:
        return ()
    width, height = (round(side / 32 * by) * 32 for side in (video.width, video.height))
    requested = (video.requested_size[0] * Fraction(by), video.requested_size[1] * Fraction(by))
    return (
        ctx.with_video(
            "samples", replace(video, width=width, height=height, requested_size=requested)
        ),
    )


def _pass_through(name: str, *before: None) -> Rule:
    """Return a rule that passes an input through as the output after ``before``."""

    def rule(ctx: ShapeContext) -> InferredOutputs:
        return (*before, ctx.get(name))

    return rule


def _set_noise_mask(ctx: ShapeContext) -> InferredOutputs:
    video = ctx.video("samples")
    if video is None:
        return (ctx.get("samples"),)
    return (ctx.with_video("samples", replace(video, masked=True)),)


def _sample(name: str) -> Rule:
    """Return a rule that records a sampling stage on the latent of an input."""

    def rule(ctx: ShapeContext) -> InferredOutputs:
        video = ctx.video(name)
        if video is None:
            return (ctx.get(name),) * 2
        if video.mask_dropped:
            ctx.warn(
                "conditioning_dropped",
                "the upsampler drops the noise mask of the image at the start: apply the image "
                "again before this stage, or it is sampled away",
            )
        sampled = replace(video, stages=(*video.stages, ctx.node.id), mask_dropped=False)
        return (ctx.with_video(name, sampled),) * 2

    return rule


# --- to pixels and back ---------------------------------------------------------------------------


def _decode(name: str) -> Rule:
    def rule(ctx: ShapeContext) -> InferredOutputs:
        video = ctx.video(name)
        if video is None:
            return ()
        if video.has_guides:
            ctx.warn("guides_kept", "it also decodes guide frames: add LTXVCropGuides before it")
        _check_temporal_tiles(ctx, video)
        _check_spatial_tiles(ctx, video)
        return (FramesShape(video.width, video.height, video.frames, video),)

    return rule


def _check_temporal_tiles(ctx: ShapeContext, video: VideoShape) -> None:
    """Check the temporal tiles of ``VAEDecodeTiled``.

    It decodes each tile as if it were the start of a clip; the pack's decoders blend tiles or have
    none in time.
    """
    size = ctx.integer("temporal_size")
    if ctx.node.class_type != "VAEDecodeTiled" or size is None:
        return
    if size >= video.frames:
        ctx.warn(
            "no_temporal_tiles",
            f"temporal_size {size} covers all {video.frames} frames: without tiles in time there "
            "are no seams, and the memory use is that of the whole clip",
        )
    else:
        ctx.warn(
            "temporal_seams",
            f"tiles of {size} frames are decoded as if each were the start of a clip: expect "
            "flicker where they meet; LTXVSpatioTemporalTiledVAEDecode cross-fades them",
        )


def _check_spatial_tiles(ctx: ShapeContext, video: VideoShape) -> None:
    """Check for tiles that are narrower than their overlap, which fails in the pack's decoders."""
    both = ctx.integer("spatial_tiles")
    across = both or ctx.integer("horizontal_tiles") or 1
    down = both or ctx.integer("vertical_tiles") or 1
    overlap = ctx.integer("spatial_overlap") if both else ctx.integer("overlap")
    if ctx.node.class_type == "VAEDecodeTiled" or overlap is None:
        return
    for side, count in ((video.width // 32, across), (video.height // 32, down)):
        size = (side + (count - 1) * overlap) // count
        if count > 1 and size < overlap:
            ctx.warn(
                "tiles_too_narrow",
                f"{count} tiles over {side} latents are {size} wide but overlap by {overlap}, "
                "which fails: use fewer tiles",
            )
            return


def _encode(ctx: ShapeContext) -> InferredOutputs:
    frames = ctx.frames("pixels")
    if frames is None:
        return ()
    video = empty_video_shape(frames.width, frames.height, frames.count)
    return (replace(video, stages=frames.latent.stages if frames.latent else ()),)


def _decode_audio(ctx: ShapeContext) -> InferredOutputs:
    return (ctx.audio("samples"),)


def _resize(ctx: ShapeContext) -> InferredOutputs:
    frames, kind = ctx.frames("input"), ctx.get("resize_type")
    size = _new_size(ctx, str(kind), frames)
    if size is None:
        return ()
    count = frames.count if frames else 1
    return (FramesShape(*size, count, frames.latent if frames else None),)


def _new_size(ctx: ShapeContext, kind: str, frames: FramesShape | None) -> tuple[int, int] | None:
    if kind == "scale dimensions":
        size = ctx.integers("resize_type.width", "resize_type.height")
        return None if size is None or 0 in size else (size[0], size[1])
    if frames is None:
        return None
    width, height = frames.width, frames.height
    match kind:
        case "scale by multiplier":
            by = ctx.number("resize_type.multiplier")
        case "scale longer dimension":
            by = _ratio(ctx.integer("resize_type.longer_size"), max(width, height))
        case "scale shorter dimension":
            by = _ratio(ctx.integer("resize_type.shorter_size"), min(width, height))
        case "scale width":
            by = _ratio(ctx.integer("resize_type.width"), width)
        case "scale height":
            by = _ratio(ctx.integer("resize_type.height"), height)
        case "scale to multiple":
            by, multiple = None, ctx.integer("resize_type.multiple")
            return (
                (width // multiple * multiple, height // multiple * multiple) if multiple else None
            )
        case _:
            by = None
    return None if by is None else (round(width * by), round(height * by))


def _ratio(wanted: int | None, side: int) -> float | None:
    return wanted / side if wanted and side else None


def _image_scale(ctx: ShapeContext) -> InferredOutputs:
    frames, size = ctx.frames("image"), ctx.integers("width", "height")
    if frames is None or size is None or 0 in size:
        return ()
    return (replace(frames, width=size[0], height=size[1]),)


def _image_scale_by(ctx: ShapeContext) -> InferredOutputs:
    frames, by = ctx.frames("image"), ctx.number("scale_by")
    return (_scale(frames, by),) if frames and by else ()


def _scale(frames: FramesShape, by: float) -> FramesShape:
    return replace(frames, width=round(frames.width * by), height=round(frames.height * by))


def _crop_image(ctx: ShapeContext) -> InferredOutputs:
    frames, size = ctx.frames("image"), ctx.integers("width", "height")
    if frames is None or size is None:
        return ()
    width, height = min(size[0], frames.width), min(size[1], frames.height)
    return (replace(frames, width=width, height=height),)


def _upscale_with_model(ctx: ShapeContext) -> InferredOutputs:
    frames, model = ctx.frames("image"), ctx.get("upscale_model")
    return (_scale(frames, float(model[1])),) if frames and isinstance(model, tuple) else ()


def _load_upscale_model(ctx: ShapeContext) -> InferredOutputs:
    name = str(ctx.get("model_name") or "")
    known = ctx.shapes.upscale_factors.get(name)
    found = re.search(r"(?:x(\d)(?!\d)|(?<!\d)(\d)x)", name.lower())
    return (known or (("pixels", Fraction(found[1] or found[2])) if found else None),)


def _rtx_upscale(ctx: ShapeContext) -> InferredOutputs:
    frames = ctx.frames("images")
    if ctx.get("resize_type") == "target dimensions":
        found = ctx.integers("resize_type.width", "resize_type.height")
        size = rtx_size(*found) if found else None
    else:
        by = ctx.number("resize_type.scale")
        size = rtx_size(frames.width * by, frames.height * by) if frames and by else None
    if frames is None or size is None:
        return ()
    width, height = size
    return (replace(frames, width=width, height=height),)


def _empty_image(ctx: ShapeContext) -> InferredOutputs:
    size = ctx.integers("width", "height", "batch_size")
    return (FramesShape(size[0], size[1], size[2]),) if size else ()


def _load_image(ctx: ShapeContext) -> InferredOutputs:
    size = ctx.shapes.image_sizes.get(str(ctx.get("image")))
    return (FramesShape(*size, 1),) if size else ()


def _get_image_size(ctx: ShapeContext) -> InferredOutputs:
    frames = ctx.frames("image")
    sizes = (frames.width, frames.height, frames.count) if frames else ()
    return (frames, *sizes) if ctx.node.class_type == "GetImageSizeAndCount" else sizes


def _repeat_images(ctx: ShapeContext) -> InferredOutputs:
    frames, amount = ctx.frames("image"), ctx.integer("amount")
    return (replace(frames, count=frames.count * amount),) if frames and amount else ()


def _image_from_batch(ctx: ShapeContext) -> InferredOutputs:
    frames, length = ctx.frames("image"), ctx.integer("length")
    return (replace(frames, count=min(frames.count, length)),) if frames and length else ()


# --- clips ----------------------------------------------------------------------------------------


def _create_video(ctx: ShapeContext) -> InferredOutputs:
    return (ClipShape(ctx.frames("images"), ctx.number("fps"), ctx.audio("audio")),)


def _trim_audio(ctx: ShapeContext) -> InferredOutputs:
    sound, seconds = ctx.audio("audio"), ctx.number("duration")
    return (AudioLength(min(sound.seconds, seconds)),) if sound and seconds is not None else ()


def _set_frame_rate(ctx: ShapeContext) -> InferredOutputs:
    rate = ctx.number("frame_rate")
    return (rate, rate)


def _float_to_int(ctx: ShapeContext) -> InferredOutputs:
    value = ctx.number("a")
    if value is None:
        return ()
    if value != round(value):
        text = f"{value:g} becomes {round(value)}: audio is sized for {round(value)} fps"
        ctx.warn("rate_rounded", f"{text}; LTXVEmptyLatentAudio accepts {value:g} directly")
    return (round(value),)


RULES: Mapping[str, Rule] = {
    "EmptyLTXVLatentVideo": _empty_video,
    "LTXVImgToVideo": _image_to_video,
    "LTXVEmptyLatentAudio": _empty_audio,
    "LTXVConcatAVLatent": _concat,
    "LTXVSeparateAVLatent": _separate,
    "LTXVImgToVideoInplace": _in_place,
    "LTXVImgToVideoConditionOnly": _in_place,
    "LTXVAddGuide": _add_guide,
    "LTXVAddLatentGuide": _add_guide,
    "LTXAddVideoICLoRAGuide": _add_guide,
    "LTXAddVideoICLoRAGuideAdvanced": _add_guide,
    "LTXVAddGeneratedKeyframes": _add_guide,
    "LTXVGeneratedKeyframesToGuides": _add_guide,
    "LTXVSeparateGeneratedKeyframes": _separate_keyframes,
    "LTXVFreezeLatent": _freeze,
    "LTXVCropGuides": _crop_guides,
    "LTXVConditioning": _set_frame_rate,
    "LTXVLatentUpsampler": _upsample_latents,
    "LatentUpscaleModelLoader": _load_latent_upsampler,
    "LowVRAMLatentUpscaleModelLoader": _load_latent_upsampler,
    "LatentUpscale": _latent_upscale,
    "LatentUpscaleBy": _latent_upscale_by,
    "LTXVAdainLatent": _pass_through("latents"),
    "LTXVStatNormLatent": _pass_through("latents"),
    "SetLatentNoiseMask": _set_noise_mask,
    "LTXVSetAudioRefTokens": _pass_through("audio_latent", None, None),
    "SamplerCustomAdvanced": _sample("latent_image"),
    "SamplerCustom": _sample("latent_image"),
    "KSampler": _sample("latent_image"),
    "KSamplerAdvanced": _sample("latent_image"),
    "LTXVNormalizingSampler": _sample("latent_image"),
    "LTXVLoopingSampler": _sample("latents"),
    "VAEDecode": _decode("samples"),
    "VAEDecodeTiled": _decode("samples"),
    "LTXVTiledVAEDecode": _decode("latents"),
    "LTXVSpatioTemporalTiledVAEDecode": _decode("latents"),
    "LTXVAudioVAEDecode": _decode_audio,
    "VAEDecodeAudio": _decode_audio,
    "VAEEncode": _encode,
    "VAEEncodeTiled": _encode,
    "ResizeImageMaskNode": _resize,
    "ImageScale": _image_scale,
    "ImageScaleBy": _image_scale_by,
    "ImageCrop": _crop_image,
    "UpscaleModelLoader": _load_upscale_model,
    "ImageUpscaleWithModel": _upscale_with_model,
    "RTXVideoSuperResolution": _rtx_upscale,
    "LTXVPreprocess": _pass_through("image"),
    "LTXVLaplacianPyramidBlend": _pass_through("image_a"),
    "LTXVInpaintPreprocess": _pass_through("images"),
    "EmptyImage": _empty_image,
    "LoadImage": _load_image,
    "GetImageSize": _get_image_size,
    "GetImageSizeAndCount": _get_image_size,
    "RepeatImageBatch": _repeat_images,
    "ImageFromBatch": _image_from_batch,
    "TrimAudioDuration": _trim_audio,
    "CreateVideo": _create_video,
    "LTXFloatToInt": _float_to_int,
}
