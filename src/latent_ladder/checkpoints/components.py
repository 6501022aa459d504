"""Components of a checkpoint: detects them by tensor names and maps these to the original names.

Uses names, shapes and headers only: it reads no weights, knows no network classes and ignores file
names. The tables of names are in :mod:`latent_ladder.checkpoints.key_names`.
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
    ROLES,
    SIGNATURES,
    TensorRole,
    assign_gemma_roles,
    assign_roles,
    is_lora,
)
from latent_ladder.checkpoints.lora_scale import LoraScales, number, read_lora_scales
from latent_ladder.checkpoints.quant_formats import (
    PLAIN,
    StoredTensor,
    StoredTensors,
    describe_precision,
    stored_tensors,
)
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout
from latent_ladder.storage.read_file import read_small_text

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "ROLES",
    "Component",
    "StoredTensor",
    "components",
    "find_unused_tensors",
]

_KEYFRAMES = "keyframes_abs_pos_embedding"


@dataclass(frozen=True)
class Component:
    """One component of a file: its tensors under their original names, without prefixes.

    ``role`` is one of :data:`ROLES`. ``names`` maps the name in the component to the name in the
    file; scales and markers of quantised weights belong to their weight and are not listed.
    ``config`` is its part of the configuration in the header, empty if there is none.
    ``norm_offset`` is added to the weights of norms in the file: 1 in GGUF files of Gemma 3.
    """

    role: str
    file: CheckpointFile
    names: Mapping[str, str]
    config: Mapping[str, Any] = field(default_factory=dict)
    norm_offset: float = 0.0

    @property
    def id(self) -> str:
        """Identifies the content in artefact keys: the file's id and the role.

        Of a LoRA whose header states a scale other than 1, that as well.
        """
        scale = self.lora_scales.key
        return f"{self.file.id}:{self.role}" + (f":{scale}" if scale else "")

    @cached_property
    def lora_scales(self) -> LoraScales:
        """Alpha and rank in the header of a LoRA, where they count; see :mod:`lora_scale`."""
        if self.role != "lora" or any(name.endswith(".alpha") for name in self.names):
            return LoraScales()
        has_kohya_names = any(_KOHYA_NAME.search(name) for name in self.names)
        return read_lora_scales(self.file.metadata, self.file.path).for_names(has_kohya_names)

    @cached_property
    def nbytes(self) -> int:
        """Size in bytes of all tensors with their scales."""
        return sum(self._stored_tensors.nbytes(name) for name in self.names.values())

    @cached_property
    def precision(self) -> str:
        """The format of most weights: ``bf16``, ``fp8``, ``nvfp4``, ``q4_k_m``, ``mixed`` ..."""
        return describe_precision(self._stored_tensors, self.names.values())

    def __contains__(self, key: str) -> bool:
        return key in self.names

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor after decoding."""
        return _shape(key, self._stored_tensors.shape(self._name(key)))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors after decoding, by name."""
        return {
            key: _shape(key, self._stored_tensors.shape(name)) for key, name in self.names.items()
        }

    def stored_tensor(self, key: str) -> StoredTensor:
        """The storage format and parts of one tensor.

        Raises :class:`UnsupportedQuantization` for a format without a decoder.
        """
        return self._stored_tensors.check(self._name(key))

    def nbytes_of(self, key: str) -> int:
        """Size in bytes of one tensor with its scales."""
        return self._stored_tensors.nbytes(self._name(key))

    def check_readable(self) -> None:
        """Raise :class:`UnsupportedQuantization` for the first tensor without a decoder."""
        stored = self._stored_tensors
        for name in self.names.values():
            if stored.format_by_type(name) not in PLAIN:
                stored.check(name)

    def read(self, key: str) -> Tensor:
        """One tensor as stored. Raises :class:`UnknownLayout` if there is no such tensor."""
        tensor = self.file.read(self._name(key))
        return tensor.reshape(_shape(key, tuple(tensor.shape)))

    @cached_property
    def _stored_tensors(self) -> StoredTensors:
        return stored_tensors(self.file)

    def _name(self, key: str) -> str:
        if key not in self.names:
            raise UnknownLayout(
                f"{self.file.path.name}: the {self.role.replace('_', ' ')} has no tensor {key}",
                "use a complete file of LTX-2.0, LTX-2.3 or LTX-2.5",
            )
        return self.names[key]


def _shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with the leading dimension of 1 that GGUF drops."""
    return (1, *shape) if key == _KEYFRAMES and len(shape) == 1 else shape


def components(file: CheckpointFile) -> dict[str, Component]:
    """The components in a file by role, detected by the names and shapes of its tensors.

    Raises :class:`UnknownLayout` if there are none.
    """
    stored = stored_tensors(file)
    if is_lora(stored):
        return {
            "lora": Component("lora", file, {name: name for name in stored}, _lora_settings(file))
        }
    found: dict[str, dict[str, str]] = {}
    for name, assigned in _assign_roles(file, stored).items():
        if assigned.role is not None:
            found.setdefault(assigned.role, {})[assigned.key] = name
    parts = {
        role: Component(role, file, found[role], _config_of(role, file), _norm_offset(role, file))
        for role in ROLES
        if role in found and any(SIGNATURES[role].match(key) for key in found[role])
    }
    if not parts:
        raise UnknownLayout(
            f"{file.path.name}: not a model file of the LTX-2 family ({_describe_content(file)})",
            "use an LTX-2 checkpoint, one of its components, Gemma, an upsampler or a LoRA",
        )
    return parts


def find_unused_tensors(file: CheckpointFile) -> list[str]:
    """The tensor names in a file that belong to no component, sorted. Not an error."""
    stored = stored_tensors(file)
    used = {name for part in components(file).values() for name in part.names.values()}
    return sorted(set(stored) - used - set(_assign_roles(file, stored)))


def _assign_roles(file: CheckpointFile, names: Iterable[str]) -> dict[str, TensorRole]:
    """The role of every name; a VAE without a prefix is video or audio by its kernels."""
    found = assign_gemma_roles(names) if _may_be_gemma(file) else {}
    found = found or assign_roles(names)
    vae_role = _bare_vae_role(file)
    return {
        name: TensorRole(vae_role, assigned.key) if assigned.role == "vae" else assigned
        for name, assigned in found.items()
    }


def _may_be_gemma(file: CheckpointFile) -> bool:
    return file.container == "gguf" and _gguf_architecture(file) in ("gemma3", "gemma4", None)


def _gguf_architecture(file: CheckpointFile) -> Any:
    return file.kv.get("general.architecture")


def _norm_offset(role: str, file: CheckpointFile) -> float:
    """1 for a Gemma 3 of llama.cpp, which stores 1 + w for the weights w of norms; else 0."""
    is_llama_cpp = role == "text_encoder" and "output_norm.weight" in file.tensors
    return 1.0 if is_llama_cpp and _gguf_architecture(file) != "gemma4" else 0.0


def _bare_vae_role(file: CheckpointFile) -> str:
    """``audio_vae`` for kernels without a time axis, else ``video_vae``."""
    for part in ("encoder", "decoder"):
        kernel = file.tensors.get(f"{part}.conv_in.conv.weight")
        if kernel is not None:
            return "audio_vae" if len(kernel.shape) == 4 else "video_vae"
    return "video_vae"


def _describe_content(file: CheckpointFile) -> str:
    """The content of an unknown model file, for the error message."""
    architecture = file.kv.get("general.architecture")
    if isinstance(architecture, str):
        return f"a GGUF file of the architecture {architecture!r}"
    return f"it contains {', '.join(sorted(file.tensors)[:3]) or 'no tensors'}"


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


_LORA_SETTINGS = ("reference_downscale_factor", "reference_temporal_scale_factor")
_KOHYA_NAME = re.compile(r"\.lora_(down|up)\b")


_HDR_SETTINGS = ("hdr_transform", "use_hdr_transform")


def _lora_settings(file: CheckpointFile) -> Mapping[str, Any]:
    """The settings of an IC-LoRA that training programs write into its header.

    Factors are numbers from 1; ``hdr_transform`` names the encoding of HDR pictures, "" for one
    that is not named.
    """
    stated = {key: number(file.metadata.get(key)) for key in _LORA_SETTINGS}
    factors = {key: value for key, value in stated.items() if value is not None and value >= 1}
    transform, used = (file.metadata.get(key, "").strip().lower() for key in _HDR_SETTINGS)
    if transform in _OFF and used in _OFF:
        return factors
    return {**factors, "hdr_transform": "" if transform in _OFF else transform}


_OFF = ("", "0", "false", "none", "null")


def _gemma_config(file: CheckpointFile) -> Mapping[str, Any]:
    """The configuration of a Gemma text encoder, with the keys of the transformers library."""
    if file.container == "gguf":
        return _gguf_gemma_config(file.kv)
    text = file.metadata.get("gemma_config") or _read_transformers_config(file)
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


def _read_transformers_config(file: CheckpointFile) -> str | None:
    """The text of ``config.json`` in a transformers folder of Gemma 3 or 4; ``None`` without it."""
    path = (file.path if file.path.is_dir() else file.path.parent) / "config.json"
    try:
        text = read_small_text(path, MAX_CONFIG_BYTES, CorruptCheckpoint)
    except CorruptCheckpoint:
        return None
    return text if _GEMMA.search(text) else None


MAX_CONFIG_BYTES = 2**20
"""Largest ``config.json`` that is read."""
_GEMMA = re.compile(r'"model_type"\s*:\s*"gemma(3|4_unified)(_text)?"')

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
_GGUF_GEMMA_4 = {
    **_GGUF_GEMMA,
    "attention.key_length": "global_head_dim",
    "attention.key_length_swa": "head_dim",
}


def _gguf_gemma_config(kv: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of a Gemma of llama.cpp; lists (one entry per layer) show in its shapes."""
    architecture = "gemma4" if kv.get("general.architecture") == "gemma4" else "gemma3"
    names = _GGUF_GEMMA_4 if architecture == "gemma4" else _GGUF_GEMMA
    values = {name: kv.get(f"{architecture}.{key}") for key, name in names.items()}
    config: dict[str, Any] = {name: v for name, v in values.items() if isinstance(v, (int, float))}
    factor = kv.get(f"{architecture}.rope.scaling.factor")
    if isinstance(factor, (int, float)):
        config["rope_scaling"] = {"factor": float(factor)}
    sliding = kv.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(sliding, list):
        config["layer_types"] = [_LAYER_TYPES[bool(each)] for each in sliding]
    version = kv.get("ltx.gemma_version")
    return config | ({"gemma_version": version} if isinstance(version, str) else {})


_LAYER_TYPES = {True: "sliding_attention", False: "full_attention"}
