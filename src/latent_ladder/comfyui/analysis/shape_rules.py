"""What each node does to sizes and lengths, one row a type; and the traps that show on the way."""

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
from latent_ladder.latents.shapes import FRAMES_PER_LATENT

InferredOutputs = tuple[Any, ...]


# --- latents --------------------------------------------------------------------------------------


def _empty_video(ctx: ShapeContext) -> InferredOutputs:
    asked = ctx.integers("width", "height", "length")
    if asked is None or min(asked) < 1:
        return ()
    made = empty_video_shape(*asked)
    if min(made.width, made.height) == 0:
        ctx.warn("no_size", f"{format_size(*asked[:2])} is smaller than one latent of 32x32 pixels")
        return ()
    if made.frames != made.requested_frames:
        text = f"length {made.requested_frames} is cut to {made.frames} frames: latents hold 8k+1"
        ctx.warn("frames_truncated", text)
    return (made,)


def _image_to_video(ctx: ShapeContext) -> InferredOutputs:
    made = _empty_video(ctx)
    return (None, None, replace(made[0], masked=True)) if made else ()


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
    picture = ctx.video("latent")
    if picture is None or ctx.get("bypass") is True:
        return (ctx.get("latent"),)
    return (ctx.with_video("latent", replace(picture, masked=True, mask_dropped=False)),)


def _add_guide(ctx: ShapeContext) -> InferredOutputs:
    picture = ctx.video("latent")
    guided = replace(picture, has_guides=True, mask_dropped=False) if picture else None
    return (None, None, ctx.with_video("latent", guided))


def _crop_guides(ctx: ShapeContext) -> InferredOutputs:
    picture = ctx.video("latent")
    cropped = replace(picture, has_guides=False) if picture else None
    return (None, None, ctx.with_video("latent", cropped))


def _upsample_latents(ctx: ShapeContext) -> InferredOutputs:
    picture = ctx.video("samples")
    doing = ctx.get("upscale_model")
    if picture is None or not isinstance(doing, tuple):
        return ()
    if picture.has_guides:
        ctx.warn("guides_kept", "its latent still has guide frames: put LTXVCropGuides before it")
    axis, factor = doing
    kept = replace(picture, masked=False, mask_dropped=picture.masked or picture.mask_dropped)
    if axis == "temporal":
        latents = (picture.frames - 1) // FRAMES_PER_LATENT + 1
        frames = (round(latents * factor) - 1 - 1) * FRAMES_PER_LATENT + 1
        return (replace(kept, frames=frames, requested_frames=frames),)
    width, height = (round(side * factor / 32) * 32 for side in (picture.width, picture.height))
    asked = (picture.requested_size[0] * factor, picture.requested_size[1] * factor)
    return (replace(kept, width=width, height=height, requested_size=asked),)


def _load_latent_upsampler(ctx: ShapeContext) -> InferredOutputs:
    """What a latent upsampler does, by what the file says or else by its name."""
    name = str(ctx.get("model_name") or "")
    known = ctx.shapes.upscale_factors.get(name)
    return (known or factor_from_name(name),)


def factor_from_name(name: str) -> tuple[str, Fraction]:
    """What a latent upsampler does, by its name: x2 where it says nothing."""
    found = re.search(r"x(\d+(?:\.\d+)?)", name.lower())
    axis = "temporal" if "temporal" in name.lower() else "spatial"
    return axis, Fraction(found[1]) if found else Fraction(2)


def _latent_upscale(ctx: ShapeContext) -> InferredOutputs:
    picture, size = ctx.video("samples"), ctx.integers("width", "height")
    if picture is None or size is None or 0 in size:
        return ()
    width, height = (side // 32 * 32 for side in size)
    asked = (Fraction(size[0]), Fraction(size[1]))
    return (
        ctx.with_video(
            "samples", replace(picture, width=width, height=height, requested_size=asked)
        ),
    )


def _latent_upscale_by(ctx: ShapeContext) -> InferredOutputs:
    picture, by = ctx.video("samples"), ctx.number("scale_by")
    if picture is None or by is None:
        return ()
    width, height = (round(side / 32 * by) * 32 for side in (picture.width, picture.height))
    asked = (picture.requested_size[0] * Fraction(by), picture.requested_size[1] * Fraction(by))
    return (
        ctx.with_video(
            "samples", replace(picture, width=width, height=height, requested_size=asked)
        ),
    )


def _pass_through(name: str, *before: None) -> Rule:
    """The value of an input, passed on."""

    def rule(ctx: ShapeContext) -> InferredOutputs:
        return (*before, ctx.get(name))

    return rule


def _set_noise_mask(ctx: ShapeContext) -> InferredOutputs:
    picture = ctx.video("samples")
    if picture is None:
        return (ctx.get("samples"),)
    return (ctx.with_video("samples", replace(picture, masked=True)),)


def _sample(name: str) -> Rule:
    """The latent of an input, after one more stage."""

    def rule(ctx: ShapeContext) -> InferredOutputs:
        picture = ctx.video(name)
        if picture is None:
            return (ctx.get(name),) * 2
        if picture.mask_dropped:
            ctx.warn(
                "conditioning_dropped",
                "the upsampler drops the mask of the image at the start: put it on again before "
                "this stage, or it is sampled away",
            )
        done = replace(picture, stages=(*picture.stages, ctx.node.id), mask_dropped=False)
        return (ctx.with_video(name, done),) * 2

    return rule


# --- to pixels and back ---------------------------------------------------------------------------


def _decode(name: str) -> Rule:
    def rule(ctx: ShapeContext) -> InferredOutputs:
        picture = ctx.video(name)
        if picture is None:
            return ()
        if picture.has_guides:
            ctx.warn("guides_kept", "guide frames are decoded as well: put LTXVCropGuides before")
        _check_temporal_tiles(ctx, picture)
        _check_spatial_tiles(ctx, picture)
        return (FramesShape(picture.width, picture.height, picture.frames, picture),)

    return rule


def _check_temporal_tiles(ctx: ShapeContext, picture: VideoShape) -> None:
    """Ordinary tiles decode each stretch as if it were the first; others blend or have none."""
    size = ctx.integer("temporal_size")
    if ctx.node.class_type != "VAEDecodeTiled" or size is None:
        return
    if size >= picture.frames:
        ctx.warn(
            "no_temporal_tiles",
            f"temporal_size {size} covers all {picture.frames} frames: time is not tiled, which is "
            "seamless and takes the memory of the whole clip",
        )
    else:
        ctx.warn(
            "temporal_seams",
            f"stretches of {size} frames are decoded as if each were the first: expect flicker "
            "where they meet; LTXVSpatioTemporalTiledVAEDecode cross-fades",
        )


def _check_spatial_tiles(ctx: ShapeContext, picture: VideoShape) -> None:
    """Tiles that are narrower than their overlap, which the pack's decoders cannot place."""
    both = ctx.integer("spatial_tiles")
    across = both or ctx.integer("horizontal_tiles") or 1
    down = both or ctx.integer("vertical_tiles") or 1
    overlap = ctx.integer("spatial_overlap") if both else ctx.integer("overlap")
    if ctx.node.class_type == "VAEDecodeTiled" or overlap is None:
        return
    for side, count in ((picture.width // 32, across), (picture.height // 32, down)):
        size = (side + (count - 1) * overlap) // count
        if count > 1 and size < overlap:
            ctx.warn(
                "tiles_too_narrow",
                f"{count} tiles across {side} latents are {size} wide and overlap by {overlap}, "
                "which fails: use fewer tiles",
            )
            return


def _encode(ctx: ShapeContext) -> InferredOutputs:
    frames = ctx.frames("pixels")
    if frames is None:
        return ()
    made = empty_video_shape(frames.width, frames.height, frames.count)
    return (replace(made, stages=frames.latent.stages if frames.latent else ()),)


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
    frames, doing = ctx.frames("image"), ctx.get("upscale_model")
    return (_scale(frames, float(doing[1])),) if frames and isinstance(doing, tuple) else ()


def _load_upscale_model(ctx: ShapeContext) -> InferredOutputs:
    name = str(ctx.get("model_name") or "")
    known = ctx.shapes.upscale_factors.get(name)
    found = re.search(r"(?:x(\d)(?!\d)|(?<!\d)(\d)x)", name.lower())
    return (known or (("pixels", Fraction(found[1] or found[2])) if found else None),)


def _rtx_upscale(ctx: ShapeContext) -> InferredOutputs:
    frames = ctx.frames("images")
    if ctx.get("resize_type") == "target dimensions":
        size = ctx.integers("resize_type.width", "resize_type.height")
    else:
        by = ctx.number("resize_type.scale")
        size = (int(frames.width * by), int(frames.height * by)) if frames and by else None
    if frames is None or size is None:
        return ()
    width, height = (max(8, round(side / 8) * 8) for side in size)
    return (replace(frames, width=width, height=height),)


def _empty_image(ctx: ShapeContext) -> InferredOutputs:
    size = ctx.integers("width", "height", "batch_size")
    return (FramesShape(size[0], size[1], size[2]),) if size else ()


def _load_image(ctx: ShapeContext) -> InferredOutputs:
    size = ctx.shapes.image_sizes.get(str(ctx.get("image")))
    return (FramesShape(*size, 1),) if size else ()


def _get_image_size(ctx: ShapeContext) -> InferredOutputs:
    frames = ctx.frames("image")
    counted = (frames.width, frames.height, frames.count) if frames else ()
    return (frames, *counted) if ctx.node.class_type == "GetImageSizeAndCount" else counted


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
        text = f"{value:g} becomes {round(value)}: sound is sized for {round(value)} fps"
        ctx.warn("rate_rounded", f"{text}; LTXVEmptyLatentAudio takes {value:g} as it is")
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
