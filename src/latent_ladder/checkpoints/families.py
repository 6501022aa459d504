"""Families of LTX-2: which one a component belongs to, and what follows from it.

The transformer decides the family of a set of models, by its tensors; headers and file names only
where tensors of several families are alike. What differs between families is a row of
:data:`FAMILIES`; no other module asks for a family by its name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile
from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout

DecoderKind = Literal["conv", "diffusion"]
"""A convolutional video decoder, or the pixel diffusion decoder of LTX-2.5."""
TextEncoderArchitecture = Literal["gemma3", "gemma4"]
ARCHITECTURE_NAMES: Mapping[TextEncoderArchitecture, str] = {
    "gemma3": "Gemma 3", "gemma4": "Gemma 4",
}  # fmt: skip
"""Names of the architectures in messages."""


@dataclass(frozen=True)
class Family:
    """One family of models.

    ``text_encoder`` is the architecture it was trained with, ``text_encoder_name`` the model's name
    in messages. ``projection_with_encoder``: the text projection is in the text encoder's file, so
    the encoder is selected first. Families with the same ``latent_space`` exchange latents of
    videos, so their video VAEs fit each other. ``image_crf`` is the CRF of the H.264 compression
    that its training images had. ``decoder`` is the kind of video decoder that it is published
    with first. ``duration_head``: it has a small network that predicts the length of a clip.
    """

    name: str
    text_encoder: TextEncoderArchitecture
    text_encoder_name: str
    latent_space: str
    image_crf: int
    projection_with_encoder: bool = False
    decoder: DecoderKind = "conv"
    duration_head: bool = False


FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family("2.0", "gemma3", "Gemma 3 12B", "2.0", 33),
        Family("2.3", "gemma3", "Gemma 3 12B", "2.3", 33),
        Family("2.5", "gemma4", "LTX's own Gemma 4 12B", "2.3", 18, True, "diffusion", True),
    )
}
"""All families by name, the oldest first."""


def detect_family(transformer: Component) -> str:
    """The family of a transformer, "2.0", "2.3" or "2.5", by its tensors.

    Raises :class:`UnknownLayout` for another one, e.g. the video-only LTX-Video 0.9.
    """
    if "audio_patchify_proj.weight" in transformer:
        for name, (present, absent) in _FAMILY_MARKS.items():
            if present in transformer and (absent is None or absent not in transformer):
                return name
    if "audio_proj_in.weight" in transformer:
        raise UnknownLayout(
            f"{transformer.file.path.name}: a transformer with the tensor names of diffusers",
            "use the original file, or one for ComfyUI",
        )
    raise UnknownLayout(
        f"{transformer.file.path.name}: a transformer of an unknown family",
        "use one of LTX-2.0, LTX-2.3 or LTX-2.5 with audio",
    )


# Family -> a tensor that it has, and one that it must not have. Checked in this order.
_FAMILY_MARKS: Mapping[str, tuple[str, str | None]] = {
    "2.5": ("transformer_blocks.0.prompt_scale_shift_table", "transformer_blocks.0.ff.net.2.bias"),
    "2.3": ("transformer_blocks.0.prompt_scale_shift_table", None),
    "2.0": ("caption_projection.linear_1.weight", None),
}


KEYFRAME_MARK = "keyframes_abs_pos_embedding"
"""The learned vector that LTX-2.5 adds to tokens of keyframes."""


def marks_keyframes(transformer: Component) -> bool:
    """True if a transformer marks the first latent frame and generated keyframes."""
    return KEYFRAME_MARK in transformer


def component_family(part: Component) -> str | None:
    """The family of a component, ``None`` if it fits several or does not show it."""
    if part.role == "transformer":
        try:
            return detect_family(part)
        except UnknownLayout:
            return None
    rules = {
        "video_vae": vae_family,
        "lora": lora_family,
        "text_encoder": _text_encoder_family,
        "text_projection": projection_family,
    }
    rule = rules.get(part.role)
    if rule is not None:
        return rule(part)
    return stated_family(part.file) or family_in_name(part.file.path.name)


def stated_family(file: CheckpointFile) -> str | None:
    """The family that ``model_version`` in a file's header names, ``None`` without one."""
    stated = file.metadata.get("model_version", "")[:3]
    return stated if stated in FAMILIES else None


# --- text encoders and projections ---------------------------------------------------------------


def text_encoder_architecture(encoder: Component) -> TextEncoderArchitecture:
    """The architecture of a text encoder: only Gemma 4 has a learned number per layer."""
    return "gemma4" if "layers.0.layer_scalar" in encoder else "gemma3"


def _text_encoder_family(encoder: Component) -> str | None:
    return "2.5" if text_encoder_architecture(encoder) == "gemma4" else None


def projection_family(projection: Component) -> str | None:
    """The family of a text projection; those of LTX-2.3 and LTX-2.5 have the same shapes.

    LTX-2.5 stores its own in the file of its text encoder.
    """
    if "aggregate_embed.weight" in projection:
        return "2.0"
    if any(name.endswith("layers.0.layer_scalar") for name in projection.file.tensors):
        return "2.5"
    return stated_family(projection.file) or family_in_name(projection.file.path.name)


def family_in_name(name: str) -> str | None:
    """The family that a file is named after, such as "2.3" for ``ltx-2.3-style.safetensors``."""
    match = re.search(r"ltx[-_. ]?(?:v|video)?[-_. ]?2[._]([035])", name.lower())
    return None if match is None else f"2.{match[1]}"


def required_text_encoder(transformer: Component) -> str | None:
    """The version of Gemma that a transformer's header names, such as ``gemma4-12b-ltx-v1``.

    ``None`` where it names none. Headers of LTX-2.3 name a file of Gemma 3 instead.
    """
    text = transformer.file.metadata.get("gemma_source_checkpoint", "")
    try:
        source = json.loads(text)
    except (ValueError, RecursionError):
        return None
    version = source.get("gemma_version") if isinstance(source, dict) else None
    return version if isinstance(version, str) else None


def text_encoder_version(encoder: Component) -> str | None:
    """The version tag that LTX writes into the header of its own Gemma 4, else ``None``."""
    version = encoder.config.get("gemma_version")
    return version if isinstance(version, str) else None


def is_stock_gemma_4(encoder: Component) -> bool:
    """True for a Gemma 4 that LTX did not fine-tune: no tag, no text projection, no name of LTX."""
    file = encoder.file
    named = f"{file.path.name} {file.kv.get('general.name', '')}".lower()
    return (
        text_encoder_architecture(encoder) == "gemma4"
        and text_encoder_version(encoder) is None
        and not any("aggregate_embed." in name for name in file.tensors)
        and "ltx" not in named
    )


# --- VAEs and LoRAs ------------------------------------------------------------------------------

_DECODER_BLOCKS = {6: "2.0", 8: "2.3"}
"""Number of the last block of the video decoder -> family."""
DIFFUSION_DECODER = "decoder.conv_in_x_t.weight"
"""A tensor that only the diffusion decoder of LTX-2.5 has."""


def decoder_kind(vae: Component) -> DecoderKind:
    """The kind of a video VAE's decoder."""
    return "diffusion" if DIFFUSION_DECODER in vae else "conv"


def vae_family(vae: Component) -> str | None:
    """The family of a video VAE by its decoder, ``None`` if that does not determine it.

    The convolutional VAEs of LTX-2.3 and LTX-2.5 have the same tensors; without a header that
    names LTX-2.5 they count as "2.3".
    """
    if DIFFUSION_DECODER in vae:
        return "2.5"
    blocks = (re.match(r"decoder\.up_blocks\.(\d+)\.", key) for key in vae.names)
    found = _DECODER_BLOCKS.get(max((int(m[1]) for m in blocks if m), default=-1))
    return stated_family(vae.file) or found if found == "2.3" else found


def lora_family(lora: Component) -> str | None:
    """The family a LoRA was trained for, ``None`` if it may be for several."""
    found = lora_families(lora)
    return found[0] if len(found) == 1 else None


def lora_families(lora: Component) -> tuple[str, ...]:
    """The families that a LoRA may have been trained for, by header, modules or file name.

    Empty if none of them tells. LTX-2.3 and LTX-2.5 have the same modules, so that LoRAs of one
    load into the other without an error.
    """
    stated = stated_family(lora.file)
    if stated is not None:
        return (stated,)
    name = lora.file.path.name
    if any(_CAPTION_PROJECTION.search(key) for key in lora.names):
        return ("2.0",)
    named = family_in_name(name)
    if named is not None:
        return (named,)
    if any(_GATES.search(key) for key in lora.names):
        return ("2.3", "2.5")
    return ("2.0",) if re.search(r"ltx-?2-19b|ltx2[-_]19b", name.lower()) else ()


_GATES = re.compile(r"to[._]gate[._]logits")
_CAPTION_PROJECTION = re.compile(r"caption[._]projection")
"""Modules that only some families have; some files have underscores instead of dots."""
