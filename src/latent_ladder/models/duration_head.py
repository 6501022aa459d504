"""Duration head of LTX-2.5: seconds that a prompt suggests for its clip.

One learned query attends to the text contexts of both streams, registers included; two layers give
the logarithm of the seconds. Source: LTX-2 ``DurationHead``.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.latents.shapes import clip_frames
from latent_ladder.models.weights.loading import load_module, tensor_readers

__all__ = ["DurationHead", "clip_frames", "load_duration_head"]

HEADS = 4
"""Attention heads of the published file; no tensor shows them."""


class DurationHead(nn.Module):
    """Duration head; loaded with :func:`load_duration_head`."""

    def __init__(
        self, widths: tuple[int, int], hidden: int, mlp: int, queries: int, heads: int
    ) -> None:
        super().__init__()
        self.video_input_proj = nn.Linear(widths[0], hidden)
        self.audio_input_proj = nn.Linear(widths[1], hidden)
        self.video_modality_emb = nn.Parameter(torch.empty(hidden))
        self.audio_modality_emb = nn.Parameter(torch.empty(hidden))
        self.attention_pooler = _Pooler(hidden, queries, heads)
        self.mlp_hidden = nn.Linear(queries * hidden, mlp)
        self.mlp_out = nn.Linear(mlp, 1)

    def forward(self, video: Tensor | None, audio: Tensor | None) -> Tensor:
        """Seconds (B,) for the contexts (B, L, D) of one stream or both."""
        parts = []
        if video is not None:
            parts.append(self.video_input_proj(video) + self.video_modality_emb)
        if audio is not None:
            parts.append(self.audio_input_proj(audio) + self.audio_modality_emb)
        pooled = self.attention_pooler(torch.cat(parts, 1)).flatten(1)
        hidden = F.gelu(self.mlp_hidden(pooled), approximate="tanh")
        return cast(Tensor, self.mlp_out(hidden))[:, 0].exp()


class _Pooler(nn.Module):
    def __init__(self, hidden: int, queries: int, heads: int) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.empty(queries, hidden))
        self.cross_attn = _CrossAttention(hidden, heads)

    def forward(self, tokens: Tensor) -> Tensor:
        queries = self.query_tokens.expand(len(tokens), -1, -1)
        return cast(Tensor, self.cross_attn(queries, tokens))


class _CrossAttention(nn.Module):
    """Multi-head attention with the parameter names of ``torch.nn.MultiheadAttention``."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * hidden, hidden))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * hidden))
        self.out_proj = nn.Linear(hidden, hidden)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((queries, tokens, tokens), weights, biases, strict=True)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return cast(Tensor, self.out_proj(y))


def load_duration_head(component: Component, *, device: torch.device | str) -> DurationHead:
    """Load a duration head, in float32; raises :class:`UnknownLayout` if its tensors do not fit.

    Sizes are read from shapes, the number of heads from ``duration_head`` in the header.
    """
    section = component.file.config.get("duration_head", {})
    queries, hidden = component.shape("attention_pooler.query_tokens")
    widths = tuple(component.shape(f"{s}_input_proj.weight")[1] for s in ("video", "audio"))
    mlp = component.shape("mlp_hidden.weight")[0]
    heads = int(section.get("num_pooler_heads", HEADS)) if isinstance(section, dict) else HEADS
    return load_module(
        lambda: DurationHead((widths[0], widths[1]), hidden, mlp, queries, heads),
        tensor_readers(component),
        device=device,
        dtype=torch.float32,
        label=f"{component.file.path.name} (duration head)",
    )
