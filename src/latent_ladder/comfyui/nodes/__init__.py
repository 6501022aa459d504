"""The implementations of all node types that can run, one module per topic."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.comfyui.nodes import (
    audio,
    conditioning,
    decoding,
    guides,
    images,
    inpainting,
    keyframes,
    latents,
    loaders,
    looping_sampler,
    primitives,
    sampling,
    saving,
    sigmas,
    videos,
)
from latent_ladder.comfyui.nodes.node_context import NodeFunction

NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        **loaders.NODES,
        **primitives.NODES,
        **conditioning.NODES,
        **guides.NODES,
        **keyframes.NODES,
        **latents.NODES,
        **sigmas.NODES,
        **sampling.NODES,
        **looping_sampler.NODES,
        **decoding.NODES,
        **images.NODES,
        **inpainting.NODES,
        **audio.NODES,
        **videos.NODES,
        **saving.NODES,
    }
)
"""Implementations by node type: one for each definition without ``unsupported_reason``."""
