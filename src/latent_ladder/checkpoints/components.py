"""Which tensors of a file form which component, and the original key names of each.

Works on names, shapes and headers: nothing here reads a weight, knows a network class or looks at
a file's name. The names themselves are in :mod:`latent_ladder.checkpoints.key_names`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile
from latent_ladder.checkpoints.key_names import (
    LORA_KEY,
    ROLES,
    SIGNATURES,
    Placed,
    gemma_places,
    places,
)
from latent_ladder.checkpoints.quant_formats import (
    PLAIN,
    StoredTensor,
    StoredTensors,
    precision,
    stored_tensors,
)
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ROLES",
    "Component",
    "StoredTensor",
    "components",
    "family",
    "unclaimed",
]

_KEYFRAMES = "keyframes_abs_pos_embedding"


@dataclass(frozen=True)
class Component:
    """One part of a file: its tensors under their original names, without the file's prefix.

    ``names`` maps the name inside the component to the name in the file; scales and markers are
    not listed, they belong to their weight. ``config`` is the part of the header's configuration
    that belongs to it, empty where the file has none. ``norm_offset`` is what the file adds to
    the weights of norms: 1 in GGUF files of Gemma 3.
    """

    role: str
    file: CheckpointFile
    names: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    norm_offset: float = 0.0

    @property
    def id(self) -> str:
        """Names the content: the file's id and the role."""
        return f"{self.file.id}:{self.role}"

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors with their scales."""
        return sum(self._forms.nbytes(name) for name in self.names.values())

    @cached_property
    def precision(self) -> str:
        """How most weights are stored: ``bf16``, ``fp8``, ``nvfp4``, ``q4_k_m``, ``mixed`` ..."""
        return precision(self._forms, self.names.values())

    def __contains__(self, key: str) -> bool:
        return key in self.names

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor once decoded."""
        return _shape(key, self._forms.shape(self._name(key)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor once decoded."""
        return {key: _shape(key, self._forms.shape(name)) for key, name in self.names.items()}

    def stored(self, key: str) -> StoredTensor:
        """How one tensor lies in the file.

        Raises :class:`UnsupportedQuantization` for a format without a decoder.
        """
        return self._forms.check(self._name(key))

    def nbytes_of(self, key: str) -> int:
        """Bytes of one tensor with its scales."""
        return self._forms.nbytes(self._name(key))

    def check_readable(self) -> None:
        """Raise :class:`UnsupportedQuantization` for the first tensor without a decoder."""
        forms = self._forms
        for name in self.names.values():
            if forms.seen_format(name) not in PLAIN:
                forms.check(name)

    def read(self, key: str) -> Tensor:
        """One tensor as stored. Raises :class:`UnknownLayout` when the component lacks it."""
        tensor = self.file.read(self._name(key))
        return tensor.reshape(_shape(key, tuple(tensor.shape)))

    @cached_property
    def _forms(self) -> StoredTensors:
        return stored_tensors(self.file)

    def _name(self, key: str) -> str:
        if key not in self.names:
            raise UnknownLayout(
                f"{self.file.path.name}: the {self.role.replace('_', ' ')} has no tensor {key}",
                "the file is incomplete, or of a family this version does not know",
            )
        return self.names[key]


def _shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """GGUF drops a leading dimension of 1."""
    return (1, *shape) if key == _KEYFRAMES and len(shape) == 1 else shape


def components(file: CheckpointFile) -> dict[str, Component]:
    """The components in a file by role, recognised by the names and shapes of its tensors.

    Raises :class:`UnknownLayout` when the file holds none.
    """
    forms = stored_tensors(file)
    if any(LORA_KEY.search(name) for name in forms):
        return {"lora": Component("lora", file, {name: name for name in forms}, _lora_facts(file))}
    found: dict[str, dict[str, str]] = {}
    for name, placed in _places(file, forms).items():
        if placed.role is not None:
            found.setdefault(placed.role, {})[placed.key] = name
    parts = {
        role: Component(role, file, found[role], _config_of(role, file), _norm_offset(role, file))
        for role in ROLES
        if role in found and any(SIGNATURES[role].match(key) for key in found[role])
    }
    if not parts:
        raise UnknownLayout(
            f"{file.path.name}: not a model file of the LTX-2 family ({_what(file)})",
            "needed are LTX-2.0/2.3 checkpoints, their parts, Gemma 3, upsamplers or LoRAs",
        )
    return parts


def unclaimed(file: CheckpointFile) -> list[str]:
    """Names in the file that belong to no component, sorted: worth a warning, never an error."""
    forms = stored_tensors(file)
    used = {name for part in components(file).values() for name in part.names.values()}
    return sorted(set(forms) - used - set(_places(file, forms)))


def family(transformer: Component) -> str:
    """The family of a transformer, "2.0", "2.3" or "2.5", from its tensors alone.

    Raises :class:`UnknownLayout` for others, e.g. the video-only LTX-Video 0.9.
    """
    if "audio_patchify_proj.weight" in transformer:
        for name, (present, absent) in _FAMILY_MARKS.items():
            if present in transformer and (absent is None or absent not in transformer):
                return name
    if "audio_proj_in.weight" in transformer:
        raise UnknownLayout(
            f"{transformer.file.path.name}: a transformer in the names of the diffusers library",
            "use the original file, or one for ComfyUI",
        )
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


def _places(file: CheckpointFile, names: Iterable[str]) -> dict[str, Placed]:
    """The place of every name; a bare VAE is told by its kernels."""
    found = gemma_places(names) if _may_be_gemma(file) else {}
    found = found or places(names)
    kind = _bare_vae_role(file)
    return {
        name: Placed(kind, placed.key) if placed.role == "vae" else placed
        for name, placed in found.items()
    }


def _may_be_gemma(file: CheckpointFile) -> bool:
    return file.container == "gguf" and file.kv.get("general.architecture") in ("gemma3", None)


def _norm_offset(role: str, file: CheckpointFile) -> float:
    """llama.cpp stores 1 + w for Gemma's norms, everyone else w."""
    return 1.0 if role == "text_encoder" and "output_norm.weight" in file.tensors else 0.0


def _bare_vae_role(file: CheckpointFile) -> str:
    for part in ("encoder", "decoder"):
        kernel = file.tensors.get(f"{part}.conv_in.conv.weight")
        if kernel is not None:
            return "audio_vae" if len(kernel.shape) == 4 else "video_vae"
    return "video_vae"


def _what(file: CheckpointFile) -> str:
    """What a file of another model is, as far as it says so."""
    architecture = file.kv.get("general.architecture")
    if isinstance(architecture, str):
        return f"a GGUF file of the architecture {architecture!r}"
    return f"it holds {', '.join(sorted(file.tensors)[:3]) or 'no tensors'}"


# --- configuration ------------------------------------------------------------------------------

_CONFIG_SECTIONS: Mapping[str, str] = {
    "transformer": "transformer",
    "connectors": "transformer",
    "text_projection": "transformer",
    "video_vae": "vae",
    "audio_vae": "audio_vae",
    "vocoder": "vocoder",
}


def _config_of(role: str, file: CheckpointFile) -> Mapping[str, Any]:
    if role == "latent_upsampler":
        return file.config if "spatial_upsample" in file.config else {}
    if role == "text_encoder":
        return _gemma_config(file)
    section = file.config.get(_CONFIG_SECTIONS.get(role, ""), {})
    return section if isinstance(section, Mapping) else {}


_LORA_FACTS = (
    "reference_downscale_factor",
    "reference_temporal_scale_factor",
    "lora_alpha",
    "lora_rank",
)


def _lora_facts(file: CheckpointFile) -> Mapping[str, Any]:
    """The numbers that trainers write into a LoRA's header."""
    stated = {key: file.metadata[key] for key in _LORA_FACTS if key in file.metadata}
    return {key: float(text) for key, text in stated.items() if _NUMBER.fullmatch(text)}


_NUMBER = re.compile(r"\d+(\.\d*)?")


def _gemma_config(file: CheckpointFile) -> Mapping[str, Any]:
    """What a file says of its Gemma, in the names of transformers' configuration."""
    if file.container == "gguf":
        return _gguf_gemma_config(file.kv)
    text = file.metadata.get("gemma_config") or _config_beside(file)
    if text is None:
        return {}
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(
            f"{file.path.name}: damaged, the `gemma_config` in its header is not JSON",
            "download the file again",
        ) from error
    return config if isinstance(config, Mapping) else {}


def _config_beside(file: CheckpointFile) -> str | None:
    """The ``config.json`` of a Gemma 3 folder as transformers saves it."""
    path = (file.path if file.path.is_dir() else file.path.parent) / "config.json"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if _GEMMA_3.search(text) else None


_GEMMA_3 = re.compile(r'"model_type"\s*:\s*"gemma3(_text)?"')

_GGUF_GEMMA = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
}


def _gguf_gemma_config(kv: Mapping[str, Any]) -> Mapping[str, Any]:
    values = {name: kv.get(f"gemma3.{key}") for key, name in _GGUF_GEMMA.items()}
    config: dict[str, Any] = {name: v for name, v in values.items() if isinstance(v, (int, float))}
    factor = kv.get("gemma3.rope.scaling.factor")
    if isinstance(factor, (int, float)):
        config["rope_scaling"] = {"factor": float(factor)}
    return config
