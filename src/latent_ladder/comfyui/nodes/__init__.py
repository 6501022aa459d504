"""What every node type does, one module a topic; ``NODES`` is the table of them all."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.comfyui.nodes.audio import NODES as SOUNDS
from latent_ladder.comfyui.nodes.conditioning import NODES as CONDITIONS
from latent_ladder.comfyui.nodes.decoding import NODES as DECODING
from latent_ladder.comfyui.nodes.guides import NODES as GUIDES
from latent_ladder.comfyui.nodes.images import NODES as PICTURES
from latent_ladder.comfyui.nodes.inpainting import NODES as INPAINTING
from latent_ladder.comfyui.nodes.latents import NODES as LATENTS
from latent_ladder.comfyui.nodes.loaders import NODES as LOADERS
from latent_ladder.comfyui.nodes.looping_sampler import NODES as LOOPING
from latent_ladder.comfyui.nodes.node_context import NodeFunction
from latent_ladder.comfyui.nodes.primitives import NODES as PLAIN
from latent_ladder.comfyui.nodes.sampling import NODES as SAMPLING
from latent_ladder.comfyui.nodes.saving import NODES as SAVING
from latent_ladder.comfyui.nodes.sigmas import NODES as SIGMAS
from latent_ladder.comfyui.nodes.videos import NODES as VIDEOS

NODES: Mapping[str, NodeFunction] = MappingProxyType(
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
