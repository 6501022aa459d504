"""Artefact keys of the pipeline: versions, fields and checkpoint ids that decide each result.

A key is a hash of everything that decides the tensors of an artefact, so equal keys mean equal
bits. Changing a function here makes every stored artefact of that kind unusable: raise the number
in :data:`VERSIONS` only when the same inputs begin to give another result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.families import decoder_kind, marks_keyframes
from latent_ladder.checkpoints.selection import ModelSet
from latent_ladder.checkpoints.text_loras import TextLoras
from latent_ladder.latents.shapes import Resolution, duration
from latent_ladder.pipeline.input_files import InputFile, visible_size
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import artefact_key

VERSIONS: Mapping[str, int] = {
    "prompt": 1, "base": 1, "upsample": 1, "refine": 1, "sound": 1, "images": 1, "audio_in": 2,
    "video_in": 2, "source": 2, "copied_sound": 2, "clip": 1, "windows": 1,
}  # fmt: skip
"""Version of each kind of artefact."""


def prompt_key(
    text: str,
    text_encoder: Component,
    projection: Component,
    connectors: Component,
    loras: TextLoras | None = None,
    *,
    as_comfyui: bool = False,
) -> str:
    """Key of an encoded prompt; white space around the text counts only ``as_comfyui``."""
    fields: dict[str, Any] = {"prompt": text.strip()}
    if as_comfyui:
        fields = {"prompt": text, "as": "comfyui"}
    if text_encoder.file.container == "gguf" and _CONTROL_TOKEN.search(text):
        fields["control_tokens"] = 1  # versions before read them as plain text
    if loras:
        pairs = {"connectors": loras.connectors, "projection": loras.projection}
        fields |= {part: [[x.id, strength] for x, strength in pairs[part]] for part in pairs}
    return _key("prompt", fields, (), (text_encoder, projection, connectors))


_CONTROL_TOKEN = re.compile(r"<\w+>|\[\w+\]")


def images_key(
    files: Sequence[InputFile], request: Request, resolution: Resolution, models: ModelSet
) -> str:
    """Key of the input images as latents at one resolution."""
    fields: dict[str, Any] = {
        "files": [file.fields() for file in files],
        "canvas": [resolution.width, resolution.height],
    }
    if request.image_resize != "antialiased":  # left out, as in older keys
        fields["resize"] = request.image_resize
    if any(file.options["fit"] == "letterbox" for file in files):
        fields["window"] = list(visible_size(request, resolution))
    return _key("images", fields, (), (models.video_vae,))


def input_audio_key(file: InputFile, resolution: Resolution, models: ModelSet) -> str:
    """Key of an input sound as audio latents."""
    fields = {"file": file.fields(), "latents": resolution.audio_latents}
    return _key("audio_in", fields, (), (models.audio_vae,))


def input_video_key(
    kind: str,
    file: InputFile,
    sound: InputFile | None,
    request: Request,
    resolution: Resolution,
    models: ModelSet,
    *,
    with_sound: bool,
) -> str:
    """Key of an input video as latents: ``kind`` "video_in", or "source" in place of stage 1."""
    fields = {
        "file": file.fields(),
        "canvas": [resolution.width, resolution.height, resolution.frames],
        "window": list(visible_size(request, resolution)),
        "fps": str(resolution.fps),
        "audio_latents": resolution.audio_latents if with_sound else 0,
        "sound": None if sound is None else sound.fields(),
    }
    return _key(kind, fields, (), (models.video_vae, models.audio_vae))


def upsample_key(
    request: Request,
    position: int,
    inputs: Sequence[str],
    upsampler: Component,
    models: ModelSet,
) -> str:
    """Key of the upsampled latents of stage ``position`` of the request."""
    fields = request.stage_fields(position)
    return _key("upsample", fields, inputs, (upsampler, models.video_vae))


def sampling_key(
    request: Request,
    position: int,
    inputs: Sequence[str],
    loras: Sequence[Component],
    models: ModelSet,
) -> str:
    """Key of the latents of a base or refine stage."""
    kind, fields = request.stages[position].kind, request.stage_fields(position)
    if marks_keyframes(models.transformer):
        fields["first_frame"] = "marked"  # earlier versions ran LTX-2.5 without its mark
    return _key(kind, fields, inputs, (models.transformer, *loras))


def decoded_sound_key(source: str, models: ModelSet) -> str:
    """Key of the waveform decoded from the audio latents of the artefact ``source``."""
    return _key("sound", {}, (source,), (models.audio_vae, models.vocoder))


def copied_sound_key(file: InputFile, request: Request) -> str:
    """Key of the waveform of an input file, cut to the length of the clip."""
    length = duration(request.frames, request.fps)
    fields = {"file": file.fields(), "duration": str(length)}
    return artefact_key("sound", VERSIONS["copied_sound"], fields, (), ())


def clip_key(
    request: Request, inputs: Sequence[str], models: ModelSet, upscaler_id: str | None
) -> str:
    """Key of a run: equal requests on equal models share it."""
    ids = [models.decoding_vae.id, *([] if upscaler_id is None else [upscaler_id])]
    fields = request.clip_fields()
    if decoder_kind(models.decoding_vae) == "diffusion":
        fields["decode_seed"] = request.seed
    return artefact_key("clip", VERSIONS["clip"], fields, inputs, ids)


def partial_key(stage_key: str) -> str:
    """Key of the unfinished result of a stage that is made window by window."""
    return _key("windows", {}, (stage_key,), ())


def _key(
    kind: str,
    fields: Mapping[str, Any],
    inputs: Sequence[str],
    components: Sequence[Component | None],
) -> str:
    ids = [component.id for component in components if component is not None]
    return artefact_key(kind, VERSIONS[kind], fields, inputs, ids)
