"""What every node type does, one module a topic; ``MEANINGS`` is the table of them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.workflow.meaning import (
    conditions,
    decoding,
    latents,
    loaders,
    pictures,
    plain,
    sampling,
    saving,
    sigmas,
    sounds,
)
from latent_ladder.workflow.meaning.means import Meaning

MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        class_type: meaning
        for topic in (
            loaders, plain, conditions, latents, sigmas, sampling, decoding, pictures, sounds,
            saving,
        )
        for class_type, meaning in topic.MEANINGS.items()
    }
)  # fmt: skip
"""By the name of the type; a row of the table of types that can run has one here."""
