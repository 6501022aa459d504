"""Which tensors of a file form which component, and the original key names of each.

Works on names and shapes alone: nothing here reads a tensor, knows a network class or looks at a
file's name. Layouts: the single file of LTX-2.0/2.3/2.5 (https://github.com/Lightricks/LTX-2), the
split files of ComfyUI's model folders, Gemma 3 text encoders, latent upsamplers, LoRAs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from latent_ladder.checkpoints.files import CheckpointFile
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout

if TYPE_CHECKING:
    from torch import Tensor

ROLES = (
    "transformer",
    "connectors",
    "text_projection",
    "video_vae",
    "audio_vae",
    "vocoder",
    "text_encoder",
    "latent_upsampler",
    "lora",
)


@dataclass(frozen=True)
class Component:
    """One part of a file: its tensors under their original names, without the file's prefix.

    ``names`` maps the name inside the component to the name in the file. ``config`` is the part
    of the header's configuration that belongs to it, empty where the file has none.
    """

    role: str
    file: CheckpointFile
    names: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Names the content: the file's id and the role."""
        return f"{self.file.id}:{self.role}"

    def __contains__(self, key: str) -> bool:
        return key in self.names

    def shape(self, key: str) -> tuple[int, ...]:
        """The stored shape of one tensor (packed, where the file is quantised)."""
        return self.file.tensors[self._name(key)].shape

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The stored shape of every tensor."""
        return {key: self.file.tensors[name].shape for key, name in self.names.items()}

    def read(self, key: str) -> Tensor:
        """One tensor as stored. Raises :class:`UnknownLayout` when the component lacks it."""
        return self.file.read(self._name(key))

    def _name(self, key: str) -> str:
        if key not in self.names:
            raise UnknownLayout(
                f"{self.file.path.name}: the {self.role.replace('_', ' ')} has no tensor {key}",
                "the file is incomplete, or of a family this version does not know",
            )
        return self.names[key]


# What a tensor name says about its place: the longest of these prefixes wins. A value is the role
# and what replaces the prefix; None marks parts that are known and not needed.
_PREFIXES: Mapping[str, tuple[str, str] | None] = {
    # Inside the transformer's prefix, or bare in a transformer-only file.
    **{
        f"{wrap}{part}": place
        for wrap in ("model.diffusion_model.", "diffusion_model.", "")
        for part, place in {
            "video_embeddings_connector.": ("connectors", "video_embeddings_connector."),
            "audio_embeddings_connector.": ("connectors", "audio_embeddings_connector."),
        }.items()
    },
    "model.diffusion_model.": ("transformer", ""),
    "diffusion_model.": ("transformer", ""),
    **{
        part: ("transformer", part)
        for part in (
            "transformer_blocks.",
            "patchify_proj.",
            "audio_patchify_proj.",
            "proj_out.",
            "audio_proj_out.",
            "adaln_single.",
            "audio_adaln_single.",
            "prompt_adaln_single.",
            "audio_prompt_adaln_single.",
            "av_ca_",
            "caption_projection.",
            "audio_caption_projection.",
            "scale_shift_table",
            "audio_scale_shift_table",
            "keyframes_abs_pos_embedding",
            "scaled_fp8",
        )
    },
    "text_embedding_projection.": ("text_projection", ""),
    "video_aggregate_embed.": ("text_projection", "video_aggregate_embed."),
    "audio_aggregate_embed.": ("text_projection", "audio_aggregate_embed."),
    "aggregate_embed.": ("text_projection", "aggregate_embed."),
    "vae.": ("video_vae", ""),
    "audio_vae.": ("audio_vae", ""),
    "vocoder.": ("vocoder", ""),
    # A split VAE file is bare; _bare_vae_role tells video from audio by the kernels' rank.
    "encoder.": ("vae", "encoder."),
    "decoder.": ("vae", "decoder."),
    "per_channel_statistics.": ("vae", "per_channel_statistics."),
    # Gemma 3: ComfyUI's single file, and the two spellings of transformers.
    **{
        f"{wrap}{part}": ("text_encoder", part)
        for wrap in ("model.", "language_model.model.", "model.language_model.")
        for part in ("layers.", "embed_tokens.", "norm.")
    },
    "spiece_model": ("text_encoder", "spiece_model"),
    "tokenizer_json": ("text_encoder", "tokenizer_json"),
    "hf_asset__": ("text_encoder", "hf_asset__"),
    **{
        part: ("latent_upsampler", part)
        for part in (
            "initial_conv.",
            "initial_norm.",
            "res_blocks.",
            "upsampler.",
            "post_upsample_res_blocks.",
            "final_conv.",
        )
    },
    "vision_model.": None,
    "vision_tower.": None,
    "model.vision_tower.": None,
    "multi_modal_projector.": None,
    "model.multi_modal_projector.": None,
    "lm_head.": None,
    "language_model.lm_head.": None,
    "duration_head.": None,
}

_VAE_SIGNATURE = r"(encoder|decoder)\.conv_in\.conv\.weight$|per_channel_statistics\.mean-of-means$"

# A role counts only where the file has a tensor that no other family has under that place.
_SIGNATURES: Mapping[str, re.Pattern[str]] = {
    role: re.compile(pattern)
    for role, pattern in {
        "transformer": r"transformer_blocks\.\d+\.(attn1|audio_attn1|audio_ff)\.",
        "connectors": r"(video|audio)_embeddings_connector\.transformer_1d_blocks\.0\.",
        "text_projection": r"(video_|audio_)?aggregate_embed\.weight$",
        "video_vae": _VAE_SIGNATURE,
        "audio_vae": _VAE_SIGNATURE,
        "vocoder": r"(vocoder\.)?conv_pre\.weight$",
        "text_encoder": r"layers\.\d+\.pre_feedforward_layernorm\.weight$",
        "latent_upsampler": r"post_upsample_res_blocks\.0\.conv2\.weight$",
    }.items()
}

_LORA_KEY = re.compile(
    r"\.(lora_(A|B|up|down)(\.\w+)?\.weight|lora_(A|B)|lokr_w\d\w*|hada_w\d_\w)$", re.IGNORECASE
)

_CONFIG_SECTIONS: Mapping[str, str] = {
    "transformer": "transformer",
    "connectors": "transformer",
    "text_projection": "transformer",
    "video_vae": "vae",
    "audio_vae": "audio_vae",
    "vocoder": "vocoder",
}

_PREFIX_LENGTHS = sorted({len(prefix) for prefix in _PREFIXES}, reverse=True)


def components(file: CheckpointFile) -> dict[str, Component]:
    """The components in a file by role, recognised by the names and shapes of its tensors.

    Raises :class:`UnknownLayout` when the file holds none.
    """
    if any(_LORA_KEY.search(name) for name in file.tensors):
        return {"lora": Component("lora", file, {name: name for name in file.tensors})}
    placed = _place(file)
    found = {
        role: Component(role, file, placed[role], _config_of(role, file))
        for role in ROLES
        if role in placed and any(_SIGNATURES[role].match(key) for key in placed[role])
    }
    if not found:
        some = ", ".join(sorted(file.tensors)[:3]) or "no tensors"
        raise UnknownLayout(
            f"{file.path.name}: not a model file of the LTX-2 family (it holds {some})",
            "needed are LTX-2.0/2.3 checkpoints, their parts, Gemma 3, upsamplers or LoRAs",
        )
    return found


def unclaimed(file: CheckpointFile) -> list[str]:
    """Names in the file that belong to no component, sorted: worth a warning, never an error."""
    used = {name for part in components(file).values() for name in part.names.values()}
    known = {name for name in file.tensors if _longest_prefix(name) is not None}
    return sorted(set(file.tensors) - used - known)


def family(transformer: Component) -> str:
    """The family of a transformer, "2.0", "2.3" or "2.5", from its tensors alone.

    Raises :class:`UnknownLayout` for others, e.g. the video-only LTX-Video 0.9.
    """
    if "audio_patchify_proj.weight" in transformer:
        for name, (present, absent) in _FAMILY_MARKS.items():
            if present in transformer and (absent is None or absent not in transformer):
                return name
    raise UnknownLayout(
        f"{transformer.file.path.name}: a transformer of an unknown family",
        "known are LTX-2.0, LTX-2.3 and LTX-2.5 with sound",
    )


# In this order: a tensor the family has, and one that it must not have.
_FAMILY_MARKS: Mapping[str, tuple[str, str | None]] = {
    "2.5": ("transformer_blocks.0.prompt_scale_shift_table", "transformer_blocks.0.ff.net.2.bias"),
    "2.3": ("transformer_blocks.0.prompt_scale_shift_table", None),
    "2.0": ("caption_projection.linear_1.weight", None),
}


def _place(file: CheckpointFile) -> dict[str, dict[str, str]]:
    placed: dict[str, dict[str, str]] = {}
    for name in file.tensors:
        prefix = _longest_prefix(name)
        place = None if prefix is None else _PREFIXES[prefix]
        if prefix is None or place is None:
            continue
        role, instead = place
        if role == "vae":
            role = _bare_vae_role(file)
        placed.setdefault(role, {})[instead + name[len(prefix) :]] = name
    return placed


def _longest_prefix(name: str) -> str | None:
    for length in _PREFIX_LENGTHS:
        if name[:length] in _PREFIXES:
            return name[:length]
    return None


def _bare_vae_role(file: CheckpointFile) -> str:
    for part in ("encoder", "decoder"):
        kernel = file.tensors.get(f"{part}.conv_in.conv.weight")
        if kernel is not None:
            return "audio_vae" if len(kernel.shape) == 4 else "video_vae"
    return "video_vae"


def _config_of(role: str, file: CheckpointFile) -> Mapping[str, Any]:
    if role == "latent_upsampler":
        return file.config if "spatial_upsample" in file.config else {}
    if role == "text_encoder":
        return _gemma_config(file)
    section = file.config.get(_CONFIG_SECTIONS[role], {})
    return section if isinstance(section, Mapping) else {}


def _gemma_config(file: CheckpointFile) -> Mapping[str, Any]:
    text = file.metadata.get("gemma_config")
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except ValueError as error:
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, the `gemma_config` in its header is not JSON",
            "download the file again",
        ) from error
    return config if isinstance(config, Mapping) else {}


# --- original names -> names of the network classes ---------------------------------------------

Renaming = Callable[[Iterable[str]], dict[str, str]]

_SEGMENTS: Mapping[str, Mapping[str, str]] = {
    "video_vae": {"res_blocks": "resnets"},
    "audio_vae": {},
    "vocoder": {
        "resblocks": "resnets",
        "ups": "upsamplers",
        "conv_pre": "conv_in",
        "conv_post": "conv_out",
        "act_post": "act_out",
    },
    "connectors": {
        "video_embeddings_connector": "video_connector",
        "audio_embeddings_connector": "audio_connector",
        "transformer_1d_blocks": "transformer_blocks",
        "q_norm": "norm_q",
        "k_norm": "norm_k",
    },
    "text_projection": {
        "video_aggregate_embed": "video_text_proj_in",
        "audio_aggregate_embed": "audio_text_proj_in",
        "aggregate_embed": "text_proj_in",
    },
    "latent_upsampler": {},
}
"""Names between dots that are spelled differently, by role."""

_WHOLE_NAMES = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}

_VAE_BLOCK = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.")


def network_names(component: Component) -> dict[str, str]:
    """Original name -> name in the network class, for every tensor the network has.

    One-to-one; names that no network uses (unused statistics) are left out, anything else that is
    not in the tables keeps its name, so that a strict load reports it.
    """
    segments = _SEGMENTS[component.role]
    keys = [key for key in component.names if not _is_unused(key)]
    depth = _encoder_depth(keys) if component.role == "video_vae" else 0
    renamed = {}
    for key in keys:
        name = _WHOLE_NAMES.get(key) or ".".join(
            segments.get(part, part) for part in _block_name(key, depth).split(".")
        )
        renamed[key] = name.replace(".lowpass.", ".") if component.role == "vocoder" else name
    return renamed


def _is_unused(key: str) -> bool:
    return key.startswith("per_channel_statistics.") and key not in _WHOLE_NAMES


def _encoder_depth(keys: Iterable[str]) -> int:
    """How many down-sampling blocks (the odd ones) the video encoder has."""
    found = (re.match(r"encoder\.down_blocks\.(\d+)\.conv\.", key) for key in keys)
    return len({match[1] for match in found if match})


def _block_name(key: str, depth: int) -> str:
    """Video VAE: the original counts residual stages and resamplers in one list.

    Encoder 0, 2, 4, ... are stages, 1, 3, 5, ... the resampler after each, the last one stands
    alone; the decoder starts with a lone stage, then resampler and stage alternate.
    """
    match = _VAE_BLOCK.match(key)
    if match is None:
        return key
    path, number, rest = match[1], int(match[2]), key[match.end() :]
    if path.startswith("encoder"):
        if number == 2 * depth:
            return f"encoder.mid_block.{rest}"
        inner = "downsamplers.0." if number % 2 else ""
        return f"{path}.{number // 2}.{inner}{rest}"
    if number == 0:
        return f"decoder.mid_block.{rest}"
    inner = "upsamplers.0." if number % 2 else ""
    return f"{path}.{(number - 1) // 2}.{inner}{rest}"
