"""LoRAs for the text connectors and the text projection: which there are, and whether they fit.

Reads names only. :mod:`latent_ladder.models.lora.text_parts` applies them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.lora_keys import (
    PROJECTION,
    ModuleNames,
    find_adapter_modules,
    is_text_module,
)
from latent_ladder.errors import CheckpointError

Loras = Sequence[tuple[Component, float]]
"""LoRAs with their strengths, in order."""

_PROJECTION_MODULE = re.compile(r"text_embedding_projection|aggregate_embed|text_proj_in")
_GEMMA_MODULE = re.compile(
    r"(?:^|[._])(?:text_encoders?\d?|lora_te\d?|gemma\w*|language_model)[._]|"
    r"(?:^|[._])layers[._]\d+[._](?:self_attn|mlp)[._]"
)
MAX_SHOWN = 3


@dataclass(frozen=True)
class TextLoras:
    """The LoRAs of one prompt: ``connectors`` for the connectors, ``projection`` for that.

    Each has a module for its part and a strength that is not 0.
    """

    connectors: tuple[tuple[Component, float], ...] = ()
    projection: tuple[tuple[Component, float], ...] = ()

    @classmethod
    def select(cls, connectors: Loras, projection: Loras) -> TextLoras:
        """The LoRAs that have modules for the connectors, and those for the projection."""
        return cls(
            tuple(x for x in connectors if x[1] and connector_modules(x[0])),
            tuple(x for x in projection if x[1] and projection_modules(x[0])),
        )

    def __bool__(self) -> bool:
        return bool(self.connectors or self.projection)

    @property
    def all(self) -> tuple[tuple[Component, float], ...]:
        """All of them, each once."""
        return tuple({id(x[0]): x for x in (*self.connectors, *self.projection)}.values())


def connector_modules(lora: Component) -> tuple[str, ...]:
    """The modules of the text connectors in a LoRA file, by their names there."""
    return tuple(name for name in _text_modules(lora) if not _PROJECTION_MODULE.search(name))


def projection_modules(lora: Component) -> tuple[str, ...]:
    """The modules of the text projection in a LoRA file, by their names there."""
    return tuple(name for name in _text_modules(lora) if _PROJECTION_MODULE.search(name))


def gemma_modules(lora: Component) -> tuple[str, ...]:
    """The modules of a LoRA file that are for the text encoder itself, which has no LoRAs."""
    return tuple(name for name in _module_names(lora) if _GEMMA_MODULE.search(name))


def _text_modules(lora: Component) -> Iterable[str]:
    return (name for name in _module_names(lora) if is_text_module(name))


def _module_names(lora: Component) -> tuple[str, ...]:
    known = lora.file.cached.get(_NAMES)
    if not isinstance(known, tuple):
        known = tuple(module.name for module in find_adapter_modules(lora)[0])
        lora.file.cached[_NAMES] = known
    return known


_NAMES = "adapter_module_names"


def check_text_loras(loras: TextLoras, connectors: Component, projection: Component) -> None:
    """Raise :class:`CheckpointError` for a module that the connectors or projection do not have."""
    for part, prefix, wanted, find in (
        (connectors, "", loras.connectors, connector_modules),
        (projection, PROJECTION, loras.projection, projection_modules),
    ):
        weights = (name for name in part.names if name.endswith(".weight"))
        known = ModuleNames(prefix + name.removesuffix(".weight") for name in weights)
        for lora, _ in wanted:
            names = find(lora)
            missing = sorted(set(names) - set(known.match(names)))
            if missing:
                more = ", ..." if len(missing) > MAX_SHOWN else ""
                raise CheckpointError(
                    f"{lora.file.path.name}: {len(missing)} of its {len(names)} modules for the "
                    f"{part.role.replace('_', ' ')} are not in {part.file.path.name}: "
                    f"{', '.join(missing[:MAX_SHOWN])}{more}",
                    "use a LoRA of the same model family, or the connectors it was trained with",
                )
