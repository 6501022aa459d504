"""What every node type does, one module a topic; ``MEANINGS`` is the table of them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.workflow.meaning.conditions import MEANINGS as CONDITIONS
from latent_ladder.workflow.meaning.decoding import MEANINGS as DECODING
from latent_ladder.workflow.meaning.guides import MEANINGS as GUIDES
from latent_ladder.workflow.meaning.inpainting import MEANINGS as INPAINTING
from latent_ladder.workflow.meaning.latents import MEANINGS as LATENTS
from latent_ladder.workflow.meaning.loaders import MEANINGS as LOADERS
from latent_ladder.workflow.meaning.looping import MEANINGS as LOOPING
from latent_ladder.workflow.meaning.means import Meaning
from latent_ladder.workflow.meaning.pictures import MEANINGS as PICTURES
from latent_ladder.workflow.meaning.plain import MEANINGS as PLAIN
from latent_ladder.workflow.meaning.sampling import MEANINGS as SAMPLING
from latent_ladder.workflow.meaning.saving import MEANINGS as SAVING
from latent_ladder.workflow.meaning.sigmas import MEANINGS as SIGMAS
from latent_ladder.workflow.meaning.sounds import MEANINGS as SOUNDS
from latent_ladder.workflow.meaning.videos import MEANINGS as VIDEOS

MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        **LOADERS,
        **PLAIN,
        **CONDITIONS,
        **GUIDES,
        **LATENTS,
        **SIGMAS,
        **SAMPLING,
        **LOOPING,
        **DECODING,
        **PICTURES,
        **INPAINTING,
        **SOUNDS,
        **VIDEOS,
        **SAVING,
    }
)
"""By the name of the type; a row of the table of types that can run has one here."""
