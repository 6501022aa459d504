"""Compatibility of components with a transformer, checked by the shapes of their tensors.

Every rule returns ``None`` for a component that fits, else a text with what is needed and what was
found. This module selects nothing; see :mod:`latent_ladder.checkpoints.selection`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from latent_ladder.checkpoints.catalog import SPATIAL_X2, Upsampling
from latent_ladder.checkpoints.components import Component, detect_family
from latent_ladder.checkpoints.gemma_sizes import gemma_size
from latent_ladder.checkpoints.lora_keys import (
    ModuleNames,
    adapter_shape,
    find_adapter_modules,
    is_text_module,
)
from latent_ladder.errors import CheckpointError, UnknownLayout

_GEMMA_12B = 188_160
"""Width of all hidden states of Gemma 3 12B: 3840 x (48 layers + 1)."""


@dataclass(frozen=True)
class TransformerRequirements:
    """The requirements of a transformer on the other components of a model set."""

    transformer: Component

    @property
    def latent_channels(self) -> int:
        """Number of channels of the video latents."""
        return self.transformer.shape("patchify_proj.weight")[1]

    @property
    def context_width(self) -> int:
        """Width of the text context at the input of the transformer."""
        if "caption_projection.linear_1.weight" in self.transformer:
            return self.transformer.shape("caption_projection.linear_1.weight")[1]
        return self.transformer.shape("transformer_blocks.0.attn2.to_k.weight")[1]

    @cached_property
    def modules(self) -> ModuleNames:
        """The modules of the transformer, by which those of a LoRA are found."""
        names = (n for n in self.transformer.names if n.endswith(".weight"))
        return ModuleNames(name.removesuffix(".weight") for name in names)

    def mismatch(self, role: str, part: Component) -> str | None:
        """The reason why a component does not fit the role, ``None`` if it fits."""
        rule = _RULES.get(role)
        if rule is None:
            return None
        try:
            return rule(self, part)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            return f"its tensors have shapes that no such component has ({error})"


def _connectors(requirements: TransformerRequirements, part: Component) -> str | None:
    registers = "video_embeddings_connector.learnable_registers"
    if registers not in part:
        return "it has no connector for video"
    return _width("width", requirements.context_width, part.shape(registers)[1])


def _projection(requirements: TransformerRequirements, part: Component) -> str | None:
    return _width("width", requirements.context_width, projection_shape(part)[0])


def _video_vae(requirements: TransformerRequirements, part: Component) -> str | None:
    wrong = _width("latent channels", requirements.latent_channels, _statistics(part))
    if wrong:
        return wrong
    part_family, transformer_family = vae_family(part), detect_family(requirements.transformer)
    if (
        part_family is not None
        and transformer_family in _VAE_FAMILIES.values()
        and part_family != transformer_family
    ):
        return (
            f"it is the video VAE of LTX-{part_family}, expected that of LTX-{transformer_family}"
        )
    return None


def _audio_vae(requirements: TransformerRequirements, part: Component) -> str | None:
    wanted = requirements.transformer.shape("audio_patchify_proj.weight")[1]
    return _width("audio latent channels", wanted, _statistics(part))


def _upsampler(requirements: TransformerRequirements, part: Component) -> str | None:
    channels = part.shape("final_conv.weight")[0]
    wrong = _width("latent channels", requirements.latent_channels, channels)
    if wrong:
        return wrong
    old = "upsampler.conv.weight" in part and detect_upsampling(part) == SPATIAL_X2
    if old and detect_family(requirements.transformer) == "2.3":
        return "it is the x2 upscaler of LTX-2.0, expected that of LTX-2.3"
    return None


def _lora(requirements: TransformerRequirements, part: Component) -> str | None:
    transformer_family, part_family = detect_family(requirements.transformer), lora_family(part)
    if part_family is not None and part_family != transformer_family:
        return f"it is a LoRA for LTX-{part_family}, the transformer is LTX-{transformer_family}"
    match = match_lora(part, requirements)
    if match.conflict:
        return match.conflict
    if match.matched * 2 < max(match.total, 1):
        return f"only {match.matched} of its {match.total} modules are in the transformer"
    return None


_RULES: Mapping[str, Callable[[TransformerRequirements, Component], str | None]] = {
    "connectors": _connectors,
    "text_projection": _projection,
    "video_vae": _video_vae,
    "audio_vae": _audio_vae,
    "latent_upsampler": _upsampler,
    "lora": _lora,
}


def _width(what: str, needed: int, found: int) -> str | None:
    return None if needed == found else f"needs {what} {needed}, found {found}"


def text_encoder_mismatch(encoder: Component, features: int) -> str | None:
    """The reason why an encoder does not fit a projection of ``features`` values per token.

    ``None`` if it fits.
    """
    hidden, layers = gemma_size(encoder)
    if hidden * (layers + 1) == features:
        return None
    if features == _GEMMA_12B:
        return f"needs hidden 3840 and 48 layers (Gemma 3 12B), found {hidden} and {layers}"
    return f"needs hidden x (layers + 1) = {features}, found {hidden} x {layers + 1}"


def projection_shape(projection: Component) -> tuple[int, ...]:
    """(context width, width of all hidden states concatenated) of the projection for video."""
    first = "video_aggregate_embed.weight"
    return projection.shape(first if first in projection else "aggregate_embed.weight")


def _statistics(vae: Component) -> int:
    key = "per_channel_statistics.mean-of-means"
    return vae.shape(key)[0] if key in vae else -1


_VAE_FAMILIES = {6: "2.0", 8: "2.3"}
"""Number of the last block of the video decoder -> family."""


def vae_family(vae: Component) -> str | None:
    """The family of a video VAE by its decoder, ``None`` if that does not determine it."""
    blocks = (re.match(r"decoder\.up_blocks\.(\d+)\.", key) for key in vae.names)
    return _VAE_FAMILIES.get(max((int(m[1]) for m in blocks if m), default=-1))


def component_family(part: Component) -> str | None:
    """The family of a component, ``None`` if its tensors do not determine it."""
    if part.role == "transformer":
        try:
            return detect_family(part)
        except UnknownLayout:
            return None
    rules = {"video_vae": vae_family, "lora": lora_family}
    return rules[part.role](part) if part.role in rules else None


def detect_upsampling(upsampler: Component) -> Upsampling:
    """The axis and factor of an upsampler, from its tensors, else from the header's ``config``.

    A pixel shuffle by n needs n*n (spatial) or n (temporal) input channels per output channel.
    Rational factors shuffle by n, then downsample with a stride of 2 (x1.5 = 3/2); if n is 2 or 4,
    the scale in the header decides.
    """
    middle = upsampler.shape("initial_conv.weight")[0]
    if "upsampler.conv.weight" in upsampler:
        factor = round((upsampler.shape("upsampler.conv.weight")[0] // middle) ** 0.5)
        scale = upsampler.config.get("spatial_scale")
        if scale is not None:
            return "spatial", Fraction(scale).limit_denominator(4)
        return "spatial", Fraction(factor, 2 if factor % 2 else 1)
    shape = upsampler.shape("upsampler.0.weight")
    if len(shape) == 5:
        return "temporal", Fraction(shape[0] // middle)
    return "spatial", Fraction(round((shape[0] // middle) ** 0.5))


# --- LoRAs ---------------------------------------------------------------------------------------


class LoraMatch(NamedTuple):
    """Match of a LoRA: ``matched`` of ``total`` modules, and the first conflict of shapes.

    Modules of text connectors and text projection count only where the file has no others, and
    then as matched: their shapes are compared when they are applied.
    """

    matched: int
    total: int
    conflict: str | None


def match_lora(lora: Component, requirements: TransformerRequirements) -> LoraMatch:
    """Compare the modules and matrix shapes of a LoRA, of any kind, with those of a transformer."""
    try:
        modules, _ = find_adapter_modules(lora)
        shapes = {m.name: adapter_shape(lora, m) for m in modules}
    except CheckpointError as error:
        return LoraMatch(0, 1, error.message)
    n_text = sum(is_text_module(name) for name in shapes)
    if n_text == len(shapes):
        return LoraMatch(n_text, n_text, None)
    meant = requirements.modules.match(name for name in shapes if not is_text_module(name))
    matched, conflict = 0, None
    for written, found in shapes.items():
        known = meant.get(written)
        if known is None:
            continue
        needed = requirements.transformer.shape(f"{known}.weight")
        if found is None or found == needed:
            matched += 1
        elif conflict is None:
            conflict = f"{written} needs {_format_shape(needed)}, found {_format_shape(found)}"
    return LoraMatch(matched, len(shapes) - n_text, conflict)


def _format_shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def lora_family(lora: Component) -> str | None:
    """The family a LoRA was trained for, from its header, its modules or its file name.

    ``None`` if none of them determines it.
    """
    stated = lora.file.metadata.get("model_version", "")[:3]
    if stated in ("2.0", "2.3", "2.5"):
        return stated
    for family_name, mark in _LORA_MARKS.items():
        if any(mark.search(key) for key in lora.names):
            return family_name
    return "2.0" if re.search(r"ltx-?2-19b|ltx2[-_]19b", lora.file.path.name.lower()) else None


_LORA_MARKS = {
    "2.3": re.compile(r"to[._]gate[._]logits"),
    "2.0": re.compile(r"caption[._]projection"),
}
"""Modules that only one family has; some files have underscores instead of dots."""


def is_distilled_lora(lora: Component) -> bool:
    """True for a LoRA whose file name says distilled; its tensors do not differ from others."""
    return "distilled" in lora.file.path.name.lower()


# --- components of another training variant ------------------------------------------------------


def training_variant(name: str) -> str | None:
    """``"dev"`` or ``"distilled"`` by the file name; ``None`` if it says neither."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((word for word in ("distilled", "dev") if word in words), None)


def training_mismatch(role: str, part: Component, transformer: Component) -> str | None:
    """A warning for a text component of a dev model with a distilled transformer, or the reverse.

    ``None`` if there is nothing to warn about.
    """
    part_name, transformer_name = part.file.path.name, transformer.file.path.name
    variants = training_variant(part_name), training_variant(transformer_name)
    if role not in ("connectors", "text_projection") or None in variants:
        return None
    if variants[0] == variants[1]:
        return None
    return (
        f"{part_name} ({role.replace('_', ' ')}) belongs to the {variants[0]} model and "
        f"{transformer_name} to the {variants[1]} model: they run together, but were not trained "
        "together, so the clip may follow the prompt less well"
    )
