"""What each node does to sizes and lengths, one row a type; and the traps that show on the way."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

from latent_ladder.comfyui.analysis.shape_inference import (
    Both,
    Clip,
    Frames,
    Look,
    Picture,
    Rule,
    Sound,
    audio_latents,
    empty_picture,
    seconds_of,
    spoken_size,
)
from latent_ladder.latents.shapes import FRAMES_PER_LATENT

Results = tuple[Any, ...]


# --- latents --------------------------------------------------------------------------------------


def _empty_video(look: Look) -> Results:
    asked = look.wholes("width", "height", "length")
    if asked is None or min(asked) < 1:
        return ()
    made = empty_picture(*asked)
    if min(made.width, made.height) == 0:
        look.trap(
            "no_size", f"{spoken_size(*asked[:2])} is smaller than one latent of 32x32 pixels"
        )
        return ()
    if made.frames != made.asked_frames:
        text = f"length {made.asked_frames} is cut to {made.frames} frames: latents hold 8k+1"
        look.trap("frames_truncated", text)
    return (made,)


def _image_to_video(look: Look) -> Results:
    made = _empty_video(look)
    return (None, None, replace(made[0], masked=True)) if made else ()


def _empty_audio(look: Look) -> Results:
    frames, fps = look.whole("frames_number"), look.number("frame_rate")
    if frames is None or fps is None or fps <= 0:
        return ()
    return (Sound(seconds_of(audio_latents(frames, fps))),)


def _concat(look: Look) -> Results:
    return (Both(look.picture("video_latent"), look.sound("audio_latent")),)


def _separate(look: Look) -> Results:
    return (look.picture("av_latent"), look.sound("av_latent"))


def _in_place(look: Look) -> Results:
    picture = look.picture("latent")
    if picture is None or look.get("bypass") is True:
        return (look.get("latent"),)
    return (look.with_picture("latent", replace(picture, masked=True, lost_mask=False)),)


def _guide(look: Look) -> Results:
    picture = look.picture("latent")
    guided = replace(picture, guides=True, lost_mask=False) if picture else None
    return (None, None, look.with_picture("latent", guided))


def _crop_guides(look: Look) -> Results:
    picture = look.picture("latent")
    cropped = replace(picture, guides=False) if picture else None
    return (None, None, look.with_picture("latent", cropped))


def _upsampler(look: Look) -> Results:
    picture = look.picture("samples")
    doing = look.get("upscale_model")
    if picture is None or not isinstance(doing, tuple):
        return ()
    if picture.guides:
        look.trap("guides_kept", "its latent still has guide frames: put LTXVCropGuides before it")
    axis, factor = doing
    kept = replace(picture, masked=False, lost_mask=picture.masked or picture.lost_mask)
    if axis == "temporal":
        latents = (picture.frames - 1) // FRAMES_PER_LATENT + 1
        frames = (round(latents * factor) - 1 - 1) * FRAMES_PER_LATENT + 1
        return (replace(kept, frames=frames, asked_frames=frames),)
    width, height = (round(side * factor / 32) * 32 for side in (picture.width, picture.height))
    asked = (picture.asked[0] * factor, picture.asked[1] * factor)
    return (replace(kept, width=width, height=height, asked=asked),)


def _upscale_model(look: Look) -> Results:
    """What a latent upsampler does, by what the file says or else by its name."""
    name = str(look.get("model_name") or "")
    known = look.forecast.factors.get(name)
    return (known or named_factor(name),)


def named_factor(name: str) -> tuple[str, Fraction]:
    """What a latent upsampler does, by its name: x2 where it says nothing."""
    found = re.search(r"x(\d+(?:\.\d+)?)", name.lower())
    axis = "temporal" if "temporal" in name.lower() else "spatial"
    return axis, Fraction(found[1]) if found else Fraction(2)


def _latent_upscale(look: Look) -> Results:
    picture, size = look.picture("samples"), look.wholes("width", "height")
    if picture is None or size is None or 0 in size:
        return ()
    width, height = (side // 32 * 32 for side in size)
    asked = (Fraction(size[0]), Fraction(size[1]))
    return (
        look.with_picture("samples", replace(picture, width=width, height=height, asked=asked)),
    )


def _latent_upscale_by(look: Look) -> Results:
    picture, by = look.picture("samples"), look.number("scale_by")
    if picture is None or by is None:
        return ()
    width, height = (round(side / 32 * by) * 32 for side in (picture.width, picture.height))
    asked = (picture.asked[0] * Fraction(by), picture.asked[1] * Fraction(by))
    return (
        look.with_picture("samples", replace(picture, width=width, height=height, asked=asked)),
    )


def _same(name: str, *before: None) -> Rule:
    """The value of an input, passed on."""

    def rule(look: Look) -> Results:
        return (*before, look.get(name))

    return rule


def _mask(look: Look) -> Results:
    picture = look.picture("samples")
    if picture is None:
        return (look.get("samples"),)
    return (look.with_picture("samples", replace(picture, masked=True)),)


def _sampled(name: str) -> Rule:
    """The latent of an input, after one more stage."""

    def rule(look: Look) -> Results:
        picture = look.picture(name)
        if picture is None:
            return (look.get(name),) * 2
        if picture.lost_mask:
            look.trap(
                "conditioning_dropped",
                "the upsampler drops the mask of the image at the start: put it on again before "
                "this stage, or it is sampled away",
            )
        done = replace(picture, stages=(*picture.stages, look.node.id), lost_mask=False)
        return (look.with_picture(name, done),) * 2

    return rule


# --- to pixels and back ---------------------------------------------------------------------------


def _decoded(name: str) -> Rule:
    def rule(look: Look) -> Results:
        picture = look.picture(name)
        if picture is None:
            return ()
        if picture.guides:
            look.trap("guides_kept", "guide frames are decoded as well: put LTXVCropGuides before")
        _temporal_tiles(look, picture)
        _space_tiles(look, picture)
        return (Frames(picture.width, picture.height, picture.frames, picture),)

    return rule


def _temporal_tiles(look: Look, picture: Picture) -> None:
    """Ordinary tiles decode each stretch as if it were the first; others blend or have none."""
    size = look.whole("temporal_size")
    if look.node.class_type != "VAEDecodeTiled" or size is None:
        return
    if size >= picture.frames:
        look.trap(
            "no_temporal_tiles",
            f"temporal_size {size} covers all {picture.frames} frames: time is not tiled, which is "
            "seamless and takes the memory of the whole clip",
        )
    else:
        look.trap(
            "temporal_seams",
            f"stretches of {size} frames are decoded as if each were the first: expect flicker "
            "where they meet; LTXVSpatioTemporalTiledVAEDecode cross-fades",
        )


def _space_tiles(look: Look, picture: Picture) -> None:
    """Tiles that are narrower than their overlap, which the pack's decoders cannot place."""
    both = look.whole("spatial_tiles")
    across = both or look.whole("horizontal_tiles") or 1
    down = both or look.whole("vertical_tiles") or 1
    overlap = look.whole("spatial_overlap") if both else look.whole("overlap")
    if look.node.class_type == "VAEDecodeTiled" or overlap is None:
        return
    for side, count in ((picture.width // 32, across), (picture.height // 32, down)):
        size = (side + (count - 1) * overlap) // count
        if count > 1 and size < overlap:
            look.trap(
                "tiles_too_narrow",
                f"{count} tiles across {side} latents are {size} wide and overlap by {overlap}, "
                "which fails: use fewer tiles",
            )
            return


def _encoded(look: Look) -> Results:
    frames = look.frames("pixels")
    if frames is None:
        return ()
    made = empty_picture(frames.width, frames.height, frames.count)
    return (replace(made, stages=frames.latent.stages if frames.latent else ()),)


def _sound_decoded(look: Look) -> Results:
    return (look.sound("samples"),)


def _resized(look: Look) -> Results:
    frames, kind = look.frames("input"), look.get("resize_type")
    size = _new_size(look, str(kind), frames)
    if size is None:
        return ()
    count = frames.count if frames else 1
    return (Frames(*size, count, frames.latent if frames else None),)


def _new_size(look: Look, kind: str, frames: Frames | None) -> tuple[int, int] | None:
    if kind == "scale dimensions":
        size = look.wholes("resize_type.width", "resize_type.height")
        return None if size is None or 0 in size else (size[0], size[1])
    if frames is None:
        return None
    width, height = frames.width, frames.height
    match kind:
        case "scale by multiplier":
            by = look.number("resize_type.multiplier")
        case "scale longer dimension":
            by = _ratio(look.whole("resize_type.longer_size"), max(width, height))
        case "scale shorter dimension":
            by = _ratio(look.whole("resize_type.shorter_size"), min(width, height))
        case "scale width":
            by = _ratio(look.whole("resize_type.width"), width)
        case "scale height":
            by = _ratio(look.whole("resize_type.height"), height)
        case "scale to multiple":
            by, multiple = None, look.whole("resize_type.multiple")
            return (
                (width // multiple * multiple, height // multiple * multiple) if multiple else None
            )
        case _:
            by = None
    return None if by is None else (round(width * by), round(height * by))


def _ratio(wanted: int | None, side: int) -> float | None:
    return wanted / side if wanted and side else None


def _image_scale(look: Look) -> Results:
    frames, size = look.frames("image"), look.wholes("width", "height")
    if frames is None or size is None or 0 in size:
        return ()
    return (replace(frames, width=size[0], height=size[1]),)


def _image_scale_by(look: Look) -> Results:
    frames, by = look.frames("image"), look.number("scale_by")
    return (_scaled(frames, by),) if frames and by else ()


def _scaled(frames: Frames, by: float) -> Frames:
    return replace(frames, width=round(frames.width * by), height=round(frames.height * by))


def _cropped(look: Look) -> Results:
    frames, size = look.frames("image"), look.wholes("width", "height")
    if frames is None or size is None:
        return ()
    width, height = min(size[0], frames.width), min(size[1], frames.height)
    return (replace(frames, width=width, height=height),)


def _with_model(look: Look) -> Results:
    frames, doing = look.frames("image"), look.get("upscale_model")
    return (_scaled(frames, float(doing[1])),) if frames and isinstance(doing, tuple) else ()


def _pixel_model(look: Look) -> Results:
    name = str(look.get("model_name") or "")
    known = look.forecast.factors.get(name)
    found = re.search(r"(?:x(\d)(?!\d)|(?<!\d)(\d)x)", name.lower())
    return (known or (("pixels", Fraction(found[1] or found[2])) if found else None),)


def _rtx(look: Look) -> Results:
    frames = look.frames("images")
    if look.get("resize_type") == "target dimensions":
        size = look.wholes("resize_type.width", "resize_type.height")
    else:
        by = look.number("resize_type.scale")
        size = (int(frames.width * by), int(frames.height * by)) if frames and by else None
    if frames is None or size is None:
        return ()
    width, height = (max(8, round(side / 8) * 8) for side in size)
    return (replace(frames, width=width, height=height),)


def _empty_image(look: Look) -> Results:
    size = look.wholes("width", "height", "batch_size")
    return (Frames(size[0], size[1], size[2]),) if size else ()


def _load_image(look: Look) -> Results:
    size = look.forecast.images.get(str(look.get("image")))
    return (Frames(*size, 1),) if size else ()


def _image_size(look: Look) -> Results:
    frames = look.frames("image")
    counted = (frames.width, frames.height, frames.count) if frames else ()
    return (frames, *counted) if look.node.class_type == "GetImageSizeAndCount" else counted


def _repeated(look: Look) -> Results:
    frames, amount = look.frames("image"), look.whole("amount")
    return (replace(frames, count=frames.count * amount),) if frames and amount else ()


def _from_batch(look: Look) -> Results:
    frames, length = look.frames("image"), look.whole("length")
    return (replace(frames, count=min(frames.count, length)),) if frames and length else ()


# --- clips ----------------------------------------------------------------------------------------


def _clip(look: Look) -> Results:
    return (Clip(look.frames("images"), look.number("fps"), look.sound("audio")),)


def _trimmed(look: Look) -> Results:
    sound, seconds = look.sound("audio"), look.number("duration")
    return (Sound(min(sound.seconds, seconds)),) if sound and seconds is not None else ()


def _rate(look: Look) -> Results:
    rate = look.number("frame_rate")
    return (rate, rate)


def _float_to_int(look: Look) -> Results:
    value = look.number("a")
    if value is None:
        return ()
    if value != round(value):
        text = f"{value:g} becomes {round(value)}: sound is sized for {round(value)} fps"
        look.trap("rate_rounded", f"{text}; LTXVEmptyLatentAudio takes {value:g} as it is")
    return (round(value),)


RULES: Mapping[str, Rule] = {
    "EmptyLTXVLatentVideo": _empty_video,
    "LTXVImgToVideo": _image_to_video,
    "LTXVEmptyLatentAudio": _empty_audio,
    "LTXVConcatAVLatent": _concat,
    "LTXVSeparateAVLatent": _separate,
    "LTXVImgToVideoInplace": _in_place,
    "LTXVImgToVideoConditionOnly": _in_place,
    "LTXVAddGuide": _guide,
    "LTXVAddLatentGuide": _guide,
    "LTXAddVideoICLoRAGuide": _guide,
    "LTXAddVideoICLoRAGuideAdvanced": _guide,
    "LTXVCropGuides": _crop_guides,
    "LTXVConditioning": _rate,
    "LTXVLatentUpsampler": _upsampler,
    "LatentUpscaleModelLoader": _upscale_model,
    "LowVRAMLatentUpscaleModelLoader": _upscale_model,
    "LatentUpscale": _latent_upscale,
    "LatentUpscaleBy": _latent_upscale_by,
    "LTXVAdainLatent": _same("latents"),
    "LTXVStatNormLatent": _same("latents"),
    "SetLatentNoiseMask": _mask,
    "LTXVSetAudioRefTokens": _same("audio_latent", None, None),
    "SamplerCustomAdvanced": _sampled("latent_image"),
    "SamplerCustom": _sampled("latent_image"),
    "KSampler": _sampled("latent_image"),
    "KSamplerAdvanced": _sampled("latent_image"),
    "LTXVNormalizingSampler": _sampled("latent_image"),
    "LTXVLoopingSampler": _sampled("latents"),
    "VAEDecode": _decoded("samples"),
    "VAEDecodeTiled": _decoded("samples"),
    "LTXVTiledVAEDecode": _decoded("latents"),
    "LTXVSpatioTemporalTiledVAEDecode": _decoded("latents"),
    "LTXVAudioVAEDecode": _sound_decoded,
    "VAEDecodeAudio": _sound_decoded,
    "VAEEncode": _encoded,
    "VAEEncodeTiled": _encoded,
    "ResizeImageMaskNode": _resized,
    "ImageScale": _image_scale,
    "ImageScaleBy": _image_scale_by,
    "ImageCrop": _cropped,
    "UpscaleModelLoader": _pixel_model,
    "ImageUpscaleWithModel": _with_model,
    "RTXVideoSuperResolution": _rtx,
    "LTXVPreprocess": _same("image"),
    "LTXVLaplacianPyramidBlend": _same("image_a"),
    "LTXVInpaintPreprocess": _same("images"),
    "EmptyImage": _empty_image,
    "LoadImage": _load_image,
    "GetImageSize": _image_size,
    "GetImageSizeAndCount": _image_size,
    "RepeatImageBatch": _repeated,
    "ImageFromBatch": _from_batch,
    "TrimAudioDuration": _trimmed,
    "CreateVideo": _clip,
    "LTXFloatToInt": _float_to_int,
}
