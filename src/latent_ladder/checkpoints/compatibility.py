"""Compatibility of components with a transformer, checked by the shapes of their tensors.

Every rule returns ``None`` for a component that fits, else a text with what is needed and what was
found. This module selects nothing; see :mod:`latent_ladder.checkpoints.selection`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

from latent_ladder.checkpoints.catalog import SPATIAL_X2, Upsampling
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.families import (
    ARCHITECTURE_NAMES,
    FAMILIES,
    Family,
    detect_family,
    is_stock_gemma_4,
    lora_families,
    marks_keyframes,
    projection_family,
    required_text_encoder,
    stated_family,
    text_encoder_architecture,
    text_encoder_version,
    vae_family,
)
from latent_ladder.checkpoints.gemma_sizes import gemma_size
from latent_ladder.checkpoints.lora_keys import (
    ModuleNames,
    adapter_shape,
    find_adapter_modules,
    is_text_module,
)
from latent_ladder.errors import CheckpointError

_GEMMA_12B = 188_160
"""Width of all hidden states of Gemma 3 12B and of Gemma 4 12B: 3840 x (48 layers + 1)."""


@dataclass(frozen=True)
class TransformerRequirements:
    """The requirements of a transformer on the other components of a model set."""

    transformer: Component

    @cached_property
    def family(self) -> Family:
        """The family of the transformer."""
        return FAMILIES[detect_family(self.transformer)]

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
        except CheckpointError as error:
            return error.message
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            return f"its tensors have shapes that no such component has ({error})"


def header_contradictions(transformer: Component) -> tuple[str, ...]:
    """Warnings about switches in a transformer's header that its tensors contradict.

    The tensors decide, as in ComfyUI.
    """
    in_tensors = {
        "ff_bias": "transformer_blocks.0.ff.net.2.bias" in transformer,
        "use_keyframes_abs_pos_embedding": marks_keyframes(transformer),
    }
    return tuple(
        f"{transformer.file.path.name}: its header has {name} = {str(stated).lower()}, but its "
        f"tensors are {'there' if present else 'missing'}; the tensors decide"
        for name, present in in_tensors.items()
        if (stated := transformer.config.get(name, present)) != present
    )


def vae_contradictions(vae: Component) -> tuple[str, ...]:
    """Warnings about channel multipliers in a video VAE's header that its tensors contradict.

    The tensors decide here; official code builds the network from the header and refuses the file.
    """
    found = ((half, _stated_multipliers(vae, half), _multipliers(vae, half)) for half in _BLOCKS)
    return tuple(
        f"{vae.file.path.name}: its header has the multipliers {stated} of the video {half}, its "
        f"tensors have {present}; the tensors decide, official code refuses such a file"
        for half, stated, present in found
        if stated and present and stated != present
    )


_BLOCKS: Mapping[str, str] = {"encoder": "down_blocks", "decoder": "up_blocks"}
"""Halves of a video VAE, and the names of their blocks."""


def _stated_multipliers(vae: Component, half: str) -> list[Any]:
    """Multipliers of the resamplers in the order of the tensors; empty without a header."""
    section = vae.config.get(half)
    nested = section.get("blocks") if isinstance(section, Mapping) else None
    blocks = nested or vae.config.get(f"{half}_blocks") or ()
    try:
        stated = [
            options.get("multiplier", 2 if name.endswith("_res") else 1)
            for name, options in blocks
            if name.startswith("compress_")
        ]
    except (AttributeError, TypeError, ValueError):
        return []  # blocks that the network's configuration refuses
    return stated if half == "encoder" else stated[::-1]


def _multipliers(vae: Component, half: str) -> list[int]:
    """Ratios of channels before and after each resampler; empty for another kind of network."""
    pattern = re.compile(rf"{half}\.{_BLOCKS[half]}\.(\d+)\.conv\.conv\.weight")
    places = sorted(int(found[1]) for name in vae.names if (found := pattern.fullmatch(name)))
    last = f"{half}.conv_out.conv.weight"
    if not places or last not in vae:
        return []
    names = [f"{half}.{_BLOCKS[half]}.{place}.conv.conv.weight" for place in places]
    widths = [vae.shape(name)[1] for name in [*names, last]]
    pairs = pairwise(widths if half == "encoder" else widths[::-1])
    ratios = [after // before for before, after in pairs]
    return ratios if half == "encoder" else ratios[::-1]


def _connectors(requirements: TransformerRequirements, part: Component) -> str | None:
    registers = "video_embeddings_connector.learnable_registers"
    if registers not in part:
        return "it has no connector for video"
    return _width("width", requirements.context_width, part.shape(registers)[1])


def _projection(requirements: TransformerRequirements, part: Component) -> str | None:
    wrong = _width("width", requirements.context_width, projection_shape(part)[0])
    if wrong:
        return wrong
    family, needed = projection_family(part), requirements.family.name
    if family == needed or (family is None and not requirements.family.projection_with_encoder):
        return None
    trained_for = "another family" if family is None else f"LTX-{family}"
    return f"it is the text projection of {trained_for}, expected that of LTX-{needed}"


def _text_encoder(requirements: TransformerRequirements, part: Component) -> str | None:
    """The reason why the text encoder is another model than that of the transformer's family."""
    family, architecture = requirements.family, text_encoder_architecture(part)
    if architecture != family.text_encoder:
        name = ARCHITECTURE_NAMES[architecture]
        return f"it is {name}, LTX-{family.name} needs {family.text_encoder_name}"
    if is_stock_gemma_4(part):
        return (
            "it is a stock Gemma 4, without the version tag and the text projection of LTX: "
            f"LTX-{family.name} was trained with a Gemma 4 12B of its own"
        )
    needed, found = required_text_encoder(requirements.transformer), text_encoder_version(part)
    if None not in (needed, found) and needed != found:
        return f"it is {found}, the transformer needs {needed}"
    return None


def _video_vae(requirements: TransformerRequirements, part: Component) -> str | None:
    wrong = _width("latent channels", requirements.latent_channels, _statistics(part))
    if wrong:
        return wrong
    family = vae_family(part)
    if family is None or FAMILIES[family].latent_space == requirements.family.latent_space:
        return None
    return f"it is the video VAE of LTX-{family}, expected that of LTX-{requirements.family.name}"


def _audio_vae(requirements: TransformerRequirements, part: Component) -> str | None:
    wanted = requirements.transformer.shape("audio_patchify_proj.weight")[1]
    return _width("audio latent channels", wanted, _statistics(part))


def _upsampler(requirements: TransformerRequirements, part: Component) -> str | None:
    channels = part.shape("final_conv.weight")[0]
    wrong = _width("latent channels", requirements.latent_channels, channels)
    if wrong:
        return wrong
    old = "upsampler.conv.weight" in part and detect_upsampling(part) == SPATIAL_X2
    if old and requirements.family.latent_space != "2.0":
        return f"it is the x2 upscaler of LTX-2.0, expected that of LTX-{requirements.family.name}"
    return None


def _lora(requirements: TransformerRequirements, part: Component) -> str | None:
    transformer_family, families = requirements.family.name, lora_families(part)
    if families and transformer_family not in families:
        return _other_family(families, transformer_family)
    match = match_lora(part, requirements)
    if match.conflict:
        return match.conflict
    if match.matched * 2 < max(match.total, 1):
        return f"only {match.matched} of its {match.total} modules are in the transformer"
    return None


def _other_family(families: Sequence[str], transformer_family: str) -> str:
    trained_for = " or ".join(f"LTX-{name}" for name in families)
    return f"it is a LoRA for {trained_for}, the transformer is LTX-{transformer_family}"


def lora_family_note(lora: Component, transformer_family: str) -> str | None:
    """A warning for a LoRA that the user named although it was trained for another family."""
    families = lora_families(lora)
    if not families or transformer_family in families:
        return None
    return (
        f"{lora.file.path.name}: {_other_family(families, transformer_family)}; its modules may "
        "fit, but it was trained on other weights and works poorly"
    )


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


def text_encoder_mismatch(
    requirements: TransformerRequirements, encoder: Component, projection: Component | None
) -> str | None:
    """The reason why an encoder does not fit a transformer and its projection, ``None`` if it fits.

    Without a ``projection`` its size is not checked.
    """
    wrong = _text_encoder(requirements, encoder)
    if wrong or projection is None:
        return wrong
    return features_mismatch(encoder, projection)


def features_mismatch(encoder: Component, projection: Component) -> str | None:
    """The reason why a projection does not take the output of an encoder, ``None`` if it does."""
    family, architecture = projection_family(projection), text_encoder_architecture(encoder)
    if family is not None and FAMILIES[family].text_encoder != architecture:
        name = ARCHITECTURE_NAMES[architecture]
        return f"the text projection is that of LTX-{family}, the encoder is {name}"
    features = projection_shape(projection)[1]
    hidden, layers = gemma_size(encoder)
    if hidden * (layers + 1) == features:
        return None
    if features == _GEMMA_12B:
        name = ARCHITECTURE_NAMES[architecture]
        return f"needs hidden 3840 and 48 layers ({name} 12B), found {hidden} and {layers}"
    return f"needs hidden x (layers + 1) = {features}, found {hidden} x {layers + 1}"


def projection_shape(projection: Component) -> tuple[int, ...]:
    """(context width, width of all hidden states concatenated) of the projection for video."""
    first = "video_aggregate_embed.weight"
    return projection.shape(first if first in projection else "aggregate_embed.weight")


def _statistics(vae: Component) -> int:
    key = "per_channel_statistics.mean-of-means"
    return vae.shape(key)[0] if key in vae else -1


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


def is_distilled_lora(lora: Component) -> bool:
    """True for a LoRA whose file name says distilled, or with the header of LTX-2.5's own.

    Its tensors do not differ from those of others.
    """
    of_newest = stated_family(lora.file) == "2.5" and lora.file.metadata.get("lora_rank") == "450"
    return of_newest or "distilled" in lora.file.path.name.lower()


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
