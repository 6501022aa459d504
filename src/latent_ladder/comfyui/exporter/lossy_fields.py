"""What of a request no ComfyUI node can say, in words for the reader of an exported graph."""

from __future__ import annotations

from collections.abc import Iterator

from latent_ladder.comfyui.exporter.output import CODECS
from latent_ladder.comfyui.exporter.sampling import ANCESTRAL, RENAMED_SAMPLERS, only_cfg
from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, UpscaleStage


def not_carried(request: Request) -> list[tuple[str, str]]:
    """``(field, sentence)`` for every field whose meaning the graph's nodes do not have."""
    return [*_of_request(request), *_of_stages(request), *_of_output(request)]


def _of_request(request: Request) -> Iterator[tuple[str, str]]:
    if request.noise_order != "comfyui":
        yield "noise_order", "ComfyUI draws the noise of a seed in its own order: another clip."
    if request.mask_convention != "comfyui" and request.active_images:
        yield "mask_convention", "a strength between 0 and 1 holds differently in ComfyUI."
    if request.models.precision != "stored":
        yield "models.precision", "pick fp8 in the loader, or start ComfyUI with --fp8_e4m3fn-unet."
    for i, image in enumerate(request.images):
        if image.fit != "cover":
            yield f"images[{i}].fit", "ComfyUI cuts a picture of another shape at two sides."
        if "/" in image.file.replace("\\", "/"):
            yield f"images[{i}].file", f"put {image.file} into ComfyUI's input folder."
    if request.audio_in is not None:
        yield "audio_in", f"put {request.audio_in} into ComfyUI's input folder."
    if request.video is not None:
        text = f"put {request.video.file} into ComfyUI's input folder; its own frames are used."
        yield "video", text


def _of_stages(request: Request) -> Iterator[tuple[str, str]]:
    for position, name in enumerate(request.stage_names):
        stage, resolution = request.stages[position], request.resolutions[position]
        if isinstance(stage, BaseStage | RefineStage):
            yield from _of_sampling(stage, name)
        if isinstance(stage, RefineStage) and stage.tiles_for(resolution) is not None:
            yield f"{name}.tiles", "ComfyUI denoises this canvas whole: it needs more memory."
        if isinstance(stage, UpscaleStage) and stage.name == "rtx":
            yield f"{name}.name", "RTX super resolution needs NVIDIA's node pack and an RTX card."


def _of_sampling(stage: BaseStage | RefineStage, name: str) -> Iterator[tuple[str, str]]:
    if stage.sampler in RENAMED_SAMPLERS:
        near = RENAMED_SAMPLERS[stage.sampler]
        yield f"{name}.sampler", f"ComfyUI has no {stage.sampler}: {near} stands in its place."
    if stage.sampler == "res_2s":
        yield f"{name}.sampler", "res_2s is a sampler of the pack RES4LYF, which must be there."
    asked = stage.options.model_dump(exclude_none=True)
    carried = {"res_2s": {"eta", "bong"}}.get(stage.sampler, set())
    carried = {"eta", "s_noise"} if stage.sampler in ANCESTRAL else carried
    if lost := sorted(set(asked) - carried):
        yield f"{name}.options", f"the node of {stage.sampler} has no {', '.join(lost)}."
    video, audio = stage.guidance.video, stage.guidance.audio
    for stream, one in (("video", video), ("audio", audio)):
        if one.sigma_low != 0 or one.sigma_high != 1:
            text = "ComfyUI's guiders guide at every sigma."
            yield f"{name}.guidance.{stream}.sigma_low/high", text
    blocks = {one.stg_blocks for one in (video, audio) if one.stg_blocks}
    if len(blocks) > 1 and not (only_cfg(video) and only_cfg(audio)):
        yield f"{name}.guidance", "the guider perturbs the same blocks for picture and sound."


def _of_output(request: Request) -> Iterator[tuple[str, str]]:
    output = request.output
    if output.codec != "auto" and output.codec not in CODECS:
        yield "output.codec", f"SaveVideo has no {output.codec}."
    given = output.model_dump(exclude_defaults=True, exclude={"codec"})
    if given:
        yield "output", f"SaveVideo has no {', '.join(sorted(given))}."
