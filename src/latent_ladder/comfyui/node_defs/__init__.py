"""The table of node types: one row a type, by the name that graphs use.

Facts (names, order, defaults, ranges) are those of ComfyUI and of the packs named in each row, read
in autumn 2026. A row without ``why_not`` has a meaning of the same name in ``workflow/meaning``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.comfyui.node_defs.conditioning import ROWS as CONDITIONING
from latent_ladder.comfyui.node_defs.images import ROWS as IMAGES
from latent_ladder.comfyui.node_defs.latents import ROWS as LATENTS
from latent_ladder.comfyui.node_defs.loaders import ROWS as LOADERS
from latent_ladder.comfyui.node_defs.media import ROWS as MEDIA
from latent_ladder.comfyui.node_defs.primitives import ROWS as PLAIN
from latent_ladder.comfyui.node_defs.sampling import ROWS as SAMPLING
from latent_ladder.comfyui.node_defs.schema import NodeType
from latent_ladder.comfyui.node_defs.unsupported import ROWS as ELSEWHERE
from latent_ladder.comfyui.node_defs.unsupported import unknown

NODE_TYPES: Mapping[str, NodeType] = MappingProxyType(
    {
        row.class_type: row
        for topic in (LOADERS, PLAIN, CONDITIONING, LATENTS, SAMPLING, IMAGES, MEDIA, ELSEWHERE)
        for row in topic
    }
)
"""Every type a graph may carry that is known here, whether or not it runs."""

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
"""Types that exist in the interface only and never reach the API format."""


def node_type(class_type: str, pack: str = "") -> NodeType:
    """The row of a type; for one that no table has, a row that says so and names ``pack``."""
    row = NODE_TYPES.get(class_type)
    return row if row is not None else unknown(class_type, pack)
