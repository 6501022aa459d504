"""Settings of the published Gemma 3 models, for files that do not state them.

Values of ``config.json`` in https://huggingface.co/google: the 4B, 12B and 27B divide the positions
of full attention layers by 8, the 270M and 1B do not and have a window of 512. llama.cpp writes the
factor into a GGUF file only where there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.families import text_encoder_architecture


@dataclass(frozen=True)
class GemmaDefaults:
    """Settings that tensor shapes do not show.

    ``factor`` divides the positions of full attention layers, ``scalar`` is the square of what
    attention scores are divided by (``None``: the width of a head). ``size`` names the model.
    """

    size: str
    factor: float
    window: int = 1024
    scalar: int | None = None


_PUBLISHED: Mapping[tuple[int, int], GemmaDefaults] = {
    (640, 18): GemmaDefaults("Gemma 3 270M", 1.0, 512),
    (1152, 26): GemmaDefaults("Gemma 3 1B", 1.0, 512),
    (2560, 34): GemmaDefaults("Gemma 3 4B", 8.0),
    (3840, 48): GemmaDefaults("Gemma 3 12B", 8.0),
    (5376, 62): GemmaDefaults("Gemma 3 27B", 8.0, scalar=168),
}
"""(hidden width, layers) -> settings."""

_UNKNOWN = GemmaDefaults("an unknown size", 8.0)
"""A file of another size: as the text encoder of LTX-2, Gemma 3 12B."""

_LAYER = re.compile(r"layers\.(\d+)\.")


def gemma_size(encoder: Component) -> tuple[int, int]:
    """(hidden width, number of layers) of a Gemma text encoder."""
    layers = {match[1] for key in encoder.names if (match := _LAYER.match(key))}
    return encoder.shape("norm.weight")[0], len(layers)


def gemma_defaults(encoder: Component) -> GemmaDefaults:
    """The settings of the published model of the same size, else those of Gemma 3 12B."""
    return _PUBLISHED.get(gemma_size(encoder), _UNKNOWN)


def gemma_header(encoder: Component) -> Mapping[str, Any]:
    """Statements of the file, with the keys of transformers' text configuration."""
    header = encoder.config.get("text_config", encoder.config)
    return header if isinstance(header, Mapping) else {}


def assumed_rope_factor(encoder: Component) -> str | None:
    """A sentence on the RoPE factor that is assumed; ``None`` for a file that states one."""
    header = gemma_header(encoder)
    if text_encoder_architecture(encoder) != "gemma3":
        return None
    if "rope_parameters" in header or "rope_scaling" in header:
        return None
    defaults, (hidden, layers) = gemma_defaults(encoder), gemma_size(encoder)
    return (
        f"{encoder.file.path.name} states no RoPE factor: {defaults.factor:g} is assumed, as for "
        + (defaults.size if defaults is not _UNKNOWN else f"Gemma 3 12B, for {hidden} x {layers}")
    )


def has_unknown_size(encoder: Component) -> bool:
    """True for a Gemma of a size that was never published."""
    return gemma_defaults(encoder) is _UNKNOWN
