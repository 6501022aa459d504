"""In-context LoRAs: LoRAs that work with a reference video, by the settings in their header."""

from __future__ import annotations

from collections.abc import Iterator

from latent_ladder.checkpoints.components import Component

DOWNSCALE, SLOWER = "reference_downscale_factor", "reference_temporal_scale_factor"
HDR = "hdr_transform"


def is_in_context(lora: Component) -> bool:
    """True for a LoRA whose header has settings of a reference video."""
    return DOWNSCALE in lora.config or SLOWER in lora.config


def reference_factors(lora: Component) -> dict[str, int]:
    """Factors by which the reference of an in-context LoRA is ``smaller`` and ``slower``."""
    return {
        "smaller": int(lora.config.get(DOWNSCALE, 1)),
        "slower": int(lora.config.get(SLOWER, 1)),
    }


def in_context_notes(lora: Component, has_reference: bool) -> Iterator[str]:
    """Warnings about the use of a LoRA in a clip with or without a reference video."""
    name = lora.file.path.name
    if is_in_context(lora) and not has_reference:
        yield (
            f"{name} is an IC-LoRA: it was trained with a reference video and does little without "
            "one; add --video FILE --mode reference"
        )
    if HDR in lora.config:
        encoding = lora.config[HDR] or "a log curve"
        yield (
            f"{name} is an HDR LoRA: its pictures are encoded with {encoding} and look flat until "
            "they are decoded"
        )
