"""Which parts fit a transformer, by their shapes; and the words for those that do not.

Every rule answers ``None`` for a part that fits, else what is needed and what was found. Nothing
here chooses; that is :mod:`latent_ladder.checkpoints.selection`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from latent_ladder.checkpoints.catalog import SPATIAL_X2, Upsampling
from latent_ladder.checkpoints.components import Component, family
from latent_ladder.checkpoints.lora_keys import adapter_shape, find_adapter_modules, finder
from latent_ladder.errors import CheckpointError, UnknownLayout

_GEMMA_12B = 188_160
"""Width of all hidden states of Gemma 3 12B: 3840 x (48 layers + 1)."""


@dataclass(frozen=True)
class Fit:
    """What the other parts must look like to fit a transformer."""

    transformer: Component

    @property
    def latent_channels(self) -> int:
        """Channels of the video latents."""
        return self.transformer.shape("patchify_proj.weight")[1]

    @property
    def context_width(self) -> int:
        """Width of the text context that enters the transformer."""
        if "caption_projection.linear_1.weight" in self.transformer:
            return self.transformer.shape("caption_projection.linear_1.weight")[1]
        return self.transformer.shape("transformer_blocks.0.attn2.to_k.weight")[1]

    @cached_property
    def find_module(self) -> Callable[[str], str | None]:
        """The transformer's module that a LoRA's spelling of a module means."""
        names = (n for n in self.transformer.names if n.endswith(".weight"))
        return finder(name.removesuffix(".weight") for name in names)

    def misfit(self, role: str, part: Component) -> str | None:
        """Why a part cannot play the role, ``None`` if it can."""
        rule = _RULES.get(role)
        return rule(self, part) if rule else None


def _connectors(fit: Fit, part: Component) -> str | None:
    registers = "video_embeddings_connector.learnable_registers"
    if registers not in part:
        return "it has no connector for video"
    return _width("width", fit.context_width, part.shape(registers)[1])


def _projection(fit: Fit, part: Component) -> str | None:
    return _width("width", fit.context_width, projection_shape(part)[0])


def _video_vae(fit: Fit, part: Component) -> str | None:
    wrong = _width("latent channels", fit.latent_channels, _statistics(part))
    if wrong:
        return wrong
    theirs, ours = vae_family(part), family(fit.transformer)
    if theirs is not None and ours in _VAE_FAMILIES.values() and theirs != ours:
        return f"it is the video VAE of LTX-{theirs}, needed is that of LTX-{ours}"
    return None


def _audio_vae(fit: Fit, part: Component) -> str | None:
    wanted = fit.transformer.shape("audio_patchify_proj.weight")[1]
    return _width("audio latent channels", wanted, _statistics(part))


def _upsampler(fit: Fit, part: Component) -> str | None:
    channels = part.shape("final_conv.weight")[0]
    wrong = _width("latent channels", fit.latent_channels, channels)
    if wrong:
        return wrong
    old = "upsampler.conv.weight" in part and upsampling(part) == SPATIAL_X2
    if old and family(fit.transformer) == "2.3":
        return "it is the x2 upscaler of LTX-2.0, needed is that of LTX-2.3"
    return None


def _lora(fit: Fit, part: Component) -> str | None:
    ours, theirs = family(fit.transformer), lora_family(part)
    if theirs is not None and theirs != ours:
        return f"it is a LoRA for LTX-{theirs}, the transformer is LTX-{ours}"
    match = lora_match(part, fit)
    if match.conflict:
        return match.conflict
    if match.matched * 2 < max(match.total, 1):
        return f"{match.matched} of its {match.total} modules are in the transformer"
    return None


_RULES: Mapping[str, Callable[[Fit, Component], str | None]] = {
    "connectors": _connectors,
    "text_projection": _projection,
    "video_vae": _video_vae,
    "audio_vae": _audio_vae,
    "latent_upsampler": _upsampler,
    "lora": _lora,
}


def _width(what: str, needed: int, found: int) -> str | None:
    return None if needed == found else f"needs {what} {needed}, found {found}"


def text_encoder_misfit(encoder: Component, features: int) -> str | None:
    """Why an encoder does not feed a projection that reads ``features`` values per token."""
    hidden, layers = gemma_size(encoder)
    if hidden * (layers + 1) == features:
        return None
    if features == _GEMMA_12B:
        return f"needs hidden 3840 and 48 layers (Gemma 3 12B), found {hidden} and {layers}"
    return f"needs hidden x (layers + 1) = {features}, found {hidden} x {layers + 1}"


def gemma_size(encoder: Component) -> tuple[int, int]:
    """(hidden width, layers) of a Gemma."""
    layers = {int(k.split(".")[1]) for k in encoder.names if k.startswith("layers.")}
    return encoder.shape("norm.weight")[0], len(layers)


def projection_shape(projection: Component) -> tuple[int, ...]:
    """(context width, width of all hidden states side by side) of the projection for video."""
    first = "video_aggregate_embed.weight"
    return projection.shape(first if first in projection else "aggregate_embed.weight")


def _statistics(vae: Component) -> int:
    key = "per_channel_statistics.mean-of-means"
    return vae.shape(key)[0] if key in vae else -1


_VAE_FAMILIES = {6: "2.0", 8: "2.3"}
"""The last block of the video decoder -> family."""


def vae_family(vae: Component) -> str | None:
    """The family of a video VAE, ``None`` where its decoder does not tell."""
    blocks = (re.match(r"decoder\.up_blocks\.(\d+)\.", key) for key in vae.names)
    return _VAE_FAMILIES.get(max((int(m[1]) for m in blocks if m), default=-1))


def part_family(part: Component) -> str | None:
    """The family that a component shows it belongs to, ``None`` where it does not tell."""
    if part.role == "transformer":
        try:
            return family(part)
        except UnknownLayout:
            return None
    telling = {"video_vae": vae_family, "lora": lora_family}
    return telling[part.role](part) if part.role in telling else None


def upsampling(upsampler: Component) -> Upsampling:
    """What an upsampler does, from its tensors; the header's ``config`` where shapes are silent.

    A pixel shuffle by n makes n*n (space) or n (time) channels of each; the blur kernel of the
    rational ones strides by 2 (x1.5 = 3/2) or, where n is 2 or 4, by the header's scale.
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
    """How many modules of a LoRA a transformer has, of how many; the first of another width."""

    matched: int
    total: int
    conflict: str | None


def lora_match(lora: Component, fit: Fit) -> LoraMatch:
    """Compare the widths of a LoRA's matrices, of any kind, with those of a transformer."""
    try:
        modules, _ = find_adapter_modules(lora)
        shapes = {m.written: adapter_shape(lora, m) for m in modules}
    except CheckpointError as error:
        return LoraMatch(0, 1, error.message)
    matched, conflict = 0, None
    for written, found in shapes.items():
        known = fit.find_module(written)
        if known is None:
            continue
        needed = fit.transformer.shape(f"{known}.weight")
        if found is None or found == needed:
            matched += 1
        elif conflict is None:
            conflict = f"{written} needs {_by(needed)}, found {_by(found)}"
    return LoraMatch(matched, len(shapes), conflict)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def lora_family(lora: Component) -> str | None:
    """The family a LoRA was trained for: from its header, its modules, else its name."""
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
"""Modules that only one family has; some files write dots as underscores."""


def is_distilled_lora(lora: Component) -> bool:
    """Whether a LoRA calls itself the distilled one; nothing in its tensors tells."""
    return "distilled" in lora.file.path.name.lower()


# --- pairs that fit by shape and were not made for each other ------------------------------------


def training(name: str) -> str | None:
    """``"dev"`` or ``"distilled"``, as a file's name says; ``None`` where it does not."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    return next((word for word in ("distilled", "dev") if word in words), None)


def unpaired(role: str, part: Component, transformer: Component) -> str | None:
    """A warning for a text part of a dev model beside a distilled transformer, or the reverse."""
    theirs, ours = training(part.file.path.name), training(transformer.file.path.name)
    if role not in ("connectors", "text_projection") or None in (theirs, ours) or theirs == ours:
        return None
    return (
        f"{part.file.path.name} ({role.replace('_', ' ')}) is of the {theirs} model and "
        f"{transformer.file.path.name} of the {ours} one: they run together, but the text is "
        "read differently than either was trained for"
    )
