"""The table of node types, by the class name that graphs use.

Names, order of inputs, defaults and ranges are those of ComfyUI and of the node packs named in each
definition, as of autumn 2026. A type without ``unsupported_reason`` has an implementation of the
same name in :data:`latent_ladder.comfyui.nodes.NODES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.comfyui.node_defs import (
    conditioning,
    images,
    latents,
    loaders,
    media,
    primitives,
    sampling,
    unsupported,
)
from latent_ladder.comfyui.node_defs.schema import NodeType
from latent_ladder.comfyui.node_defs.unsupported import unknown_node_type

NODE_TYPES: Mapping[str, NodeType] = MappingProxyType(
    {
        node_type.class_type: node_type
        for topic in (
            loaders, primitives, conditioning, latents, sampling, images, media, unsupported,
        )
        for node_type in topic.NODE_DEFS
    }
)  # fmt: skip
"""All known node types, including those that cannot run here."""

FRONTEND_ONLY = frozenset(
    {
        "Note", "MarkdownNote", "Reroute", "PrimitiveNode", "GetNode", "SetNode",
        "Label (rgthree)", "Bookmark (rgthree)", "Reroute (rgthree)",
        "Fast Groups Bypasser (rgthree)", "Fast Groups Muter (rgthree)",
        "Fast Bypasser (rgthree)", "Fast Muter (rgthree)", "Mute / Bypass Repeater (rgthree)",
        "Mute / Bypass Relay (rgthree)", "Node Collector (rgthree)", "Random Unmuter (rgthree)",
        "Fast Actions Button (rgthree)", "ReroutePrimitive|pysssss", "easy getNode", "easy setNode",
    }
)  # fmt: skip
"""Types that exist in the interface only and never appear in the API format."""


def node_type(class_type: str, pack: str = "") -> NodeType:
    """Return the definition of a type.

    An unknown type gets a definition that states why it cannot run and names ``pack``.
    """
    found = NODE_TYPES.get(class_type)
    return found if found is not None else unknown_node_type(class_type, pack)
