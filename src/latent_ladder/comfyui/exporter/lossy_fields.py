"""Request fields that no ComfyUI node can express, with a sentence on the effect."""

from __future__ import annotations

from collections.abc import Iterator

from latent_ladder.comfyui.exporter.output import CODECS
from latent_ladder.comfyui.exporter.sampling import (
    ANCESTRAL_NODES,
    SAMPLER_SUBSTITUTES,
    uses_only_cfg,
)
from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, UpscaleStage


def find_lossy_fields(request: Request) -> list[tuple[str, str]]:
    """Return pairs of field and sentence for every field that the nodes cannot express."""
    return [*_check_request(request), *_check_stages(request), *_check_output(request)]


def _check_request(request: Request) -> Iterator[tuple[str, str]]:
    if request.noise_order != "comfyui":
        yield "noise_order", "ComfyUI generates noise in another order: the clip differs."
    if request.mask_convention != "comfyui" and request.active_images:
        yield "mask_convention", "an image strength between 0 and 1 acts differently in ComfyUI."
    if request.model_convention == "ltx":
        text = (
            "ComfyUI since 0.33 lets the sound see the updated picture, and encodes text its way."
        )
        yield "model_convention", text
    if request.image_resize != "comfyui" and request.active_images:
        yield "image_resize", "ComfyUI resizes images in its own way: they differ a little."
    if request.models.precision != "stored":
        yield "models.precision", "pick fp8 in the loader, or start ComfyUI with --fp8_e4m3fn-unet."
    for i, image in enumerate(request.images):
        if image.fit != "cover":
            yield f"images[{i}].fit", "ComfyUI crops an image of another aspect ratio."
        if "/" in image.file.replace("\\", "/"):
            yield f"images[{i}].file", f"copy {image.file} to ComfyUI's input folder."
    if request.audio_in is not None:
        yield "audio_in", f"copy {request.audio_in} to ComfyUI's input folder."
    if request.video is not None:
        text = f"copy {request.video.file} to ComfyUI's input folder; its own frames are used."
        yield "video", text


def _check_stages(request: Request) -> Iterator[tuple[str, str]]:
    for stage, resolved in zip(request.stages, request.resolved.stages, strict=True):
        name, resolution = resolved.name, resolved.resolution
        if isinstance(stage, BaseStage | RefineStage):
            yield from _check_sampling(stage, name)
        if isinstance(stage, RefineStage) and stage.tiles_for(resolution) is not None:
            yield f"{name}.tiles", "ComfyUI samples the stage without tiles: it needs more memory."
        if isinstance(stage, RefineStage) and stage.keyframes != "none":
            text = "the graph samples the stage whole: nodes have no keyframes-first clips."
            yield f"{name}.keyframes", text
        if isinstance(stage, UpscaleStage) and stage.name == "rtx":
            yield f"{name}.name", "RTX super resolution needs NVIDIA's node pack and an RTX GPU."


def _check_sampling(stage: BaseStage | RefineStage, name: str) -> Iterator[tuple[str, str]]:
    if stage.sampler in SAMPLER_SUBSTITUTES:
        substitute = SAMPLER_SUBSTITUTES[stage.sampler]
        yield f"{name}.sampler", f"ComfyUI has no {stage.sampler}: the graph uses {substitute}."
    if stage.sampler == "res_2s":
        yield f"{name}.sampler", "res_2s needs the node pack RES4LYF."
    options = stage.options.model_dump(exclude_none=True)
    supported = {"res_2s": {"eta", "bong"}}.get(stage.sampler, set())
    supported = {"eta", "s_noise"} if stage.sampler in ANCESTRAL_NODES else supported
    if missing := sorted(set(options) - supported):
        yield f"{name}.options", f"the node of {stage.sampler} has no {', '.join(missing)}."
    video, audio = stage.guidance.video, stage.guidance.audio
    for stream, guidance in (("video", video), ("audio", audio)):
        if guidance.sigma_low != 0 or guidance.sigma_high != 1:
            text = "ComfyUI's guiders apply guidance at every sigma."
            yield f"{name}.guidance.{stream}.sigma_low/high", text
    if video.has_nag or audio.has_nag:
        text = "LTX2_NAG of the node pack KJNodes does not modulate the negative prompt."
        yield f"{name}.guidance.nag", text
    if video.has_nag and audio.has_nag and video.nag != audio.nag:
        yield f"{name}.guidance.audio.nag", "LTX2_NAG uses the numbers of the video for the sound."
    blocks = {guidance.stg_blocks for guidance in (video, audio) if guidance.stg_blocks}
    if len(blocks) > 1 and not (uses_only_cfg(video) and uses_only_cfg(audio)):
        yield f"{name}.guidance", "the guider perturbs the same blocks for video and audio."


def _check_output(request: Request) -> Iterator[tuple[str, str]]:
    output = request.output
    if output.codec != "auto" and output.codec not in CODECS:
        yield "output.codec", f"SaveVideo has no {output.codec}."
    changed = output.model_dump(exclude_defaults=True, exclude={"codec"})
    if changed:
        yield "output", f"SaveVideo has no {', '.join(sorted(changed))}."
