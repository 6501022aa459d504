"""What every node type does, one module a topic; ``MEANINGS`` is the table of them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.comfyui.nodes.audio import MEANINGS as SOUNDS
from latent_ladder.comfyui.nodes.conditioning import MEANINGS as CONDITIONS
from latent_ladder.comfyui.nodes.decoding import MEANINGS as DECODING
from latent_ladder.comfyui.nodes.guides import MEANINGS as GUIDES
from latent_ladder.comfyui.nodes.images import MEANINGS as PICTURES
from latent_ladder.comfyui.nodes.inpainting import MEANINGS as INPAINTING
from latent_ladder.comfyui.nodes.latents import MEANINGS as LATENTS
from latent_ladder.comfyui.nodes.loaders import MEANINGS as LOADERS
from latent_ladder.comfyui.nodes.looping_sampler import MEANINGS as LOOPING
from latent_ladder.comfyui.nodes.node_context import Meaning
from latent_ladder.comfyui.nodes.primitives import MEANINGS as PLAIN
from latent_ladder.comfyui.nodes.sampling import MEANINGS as SAMPLING
from latent_ladder.comfyui.nodes.saving import MEANINGS as SAVING
from latent_ladder.comfyui.nodes.sigmas import MEANINGS as SIGMAS
from latent_ladder.comfyui.nodes.videos import MEANINGS as VIDEOS

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
