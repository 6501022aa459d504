"""Predicted memory and FLOPs of encoding prompts. Pure numbers, no device.

Text encoder, projection and connectors are on the device one after the other; the states of all
layers of the text encoder are there until they have been projected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from latent_ladder.checkpoints.components import Component

CONNECTOR_COPIES = 18
"""Tensors of a text context's size in memory at once: 4 of the feed-forward's hidden layer before
and after its activation, 10 of the residual stream, of attention and its rotations."""
STATE_COPIES = 2
"""States of all layers of the text encoder and the same states side by side, per prompt."""


@dataclass(frozen=True)
class TextSizes:
    """Numbers of values of what encodes prompts, for a context of ``length`` tokens.

    ``encoder`` are the matrices of the text encoder's layers, ``layers`` their number,
    ``attention`` the width of all heads of one together. ``states`` is the width of all its states
    side by side, which the ``projection`` reads. ``connectors`` are the matrices of the text
    connectors, ``connector_attention`` the widths of all their layers together.
    """

    length: int = 1024
    encoder: int = 0
    layers: int = 0
    attention: int = 0
    states: int = 0
    projection: int = 0
    connectors: int = 0
    connector_attention: int = 0


NO_TEXT = TextSizes()


def text_sizes(parts: Mapping[str, Component], length: int) -> TextSizes:
    """Sizes from the headers of text encoder, projection and connectors; 0 for an absent one."""
    encoder, projection = parts.get("text_encoder"), parts.get("text_projection")
    layers = _matrices(encoder, "layers.")
    queries = [shape[0] for key, shape in layers.items() if key.endswith("self_attn.q_proj.weight")]
    projections = _matrices(projection, "")
    connectors = _matrices(parts.get("connectors"), "")
    return TextSizes(
        length=length,
        encoder=_values(layers),
        layers=len(queries),
        attention=max(queries, default=0),
        states=max((shape[1] for shape in projections.values()), default=0),
        projection=_values(projections),
        connectors=_values(connectors),
        connector_attention=sum(
            shape[0] for key, shape in connectors.items() if key.endswith("attn1.to_q.weight")
        ),
    )


def _matrices(part: Component | None, prefix: str) -> Mapping[str, tuple[int, ...]]:
    """Shapes of a component's matrices by name; registers and tables are not multiplied."""
    if part is None:
        return {}
    known = part.file.cached
    if (part.role, "matrices") not in known:
        known[part.role, "matrices"] = {
            key: shape
            for key, shape in part.shapes().items()
            if len(shape) == 2 and key.startswith(prefix) and not key.endswith("registers")
        }
    found: Mapping[str, tuple[int, ...]] = known[part.role, "matrices"]
    return found


def _values(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(rows * columns for rows, columns in shapes.values())


def prompt_flops(text: TextSizes, tokens: int) -> float:
    """FLOPs of encoding one prompt of ``tokens`` tokens (with the one that begins it).

    The connectors process the whole context, registers included.
    """
    encoder = 2 * text.encoder * tokens + 4 * tokens**2 * text.attention * text.layers
    connectors = 2 * text.connectors * text.length
    connectors += 4 * text.length**2 * text.connector_attention
    return encoder + 2 * text.projection * tokens + connectors


def prompt_activations(text: TextSizes, width: int, prompts: int, value_bytes: int) -> int:
    """Bytes of the connectors' activations; ``width`` is that of the video's text context."""
    context = text.length * width * value_bytes
    return CONNECTOR_COPIES * context + 2 * prompts * context


def projection_bytes(text: TextSizes, tokens: int, value_bytes: int) -> int:
    """Bytes of the states of prompts of ``tokens`` tokens together, while they are projected."""
    return STATE_COPIES * tokens * text.states * value_bytes
