"""Prompts to the text context the transformer reads.

Text encoder (layer by layer), projection and connectors are loaded one after the other, each once
for all prompts and each freed before the next: the peak is the largest of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.models.text_encoder.connectors import Features, load_connector, project
from latent_ladder.models.text_encoder.gemma import hidden_states
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer, text_length

__all__ = ["Conditioning", "encode_prompts"]


def encode_prompts(
    prompts: Sequence[str],
    *,
    text_encoder: Component,
    projection: Component,
    connectors: Component,
    device: torch.device | str,
    dtype: torch.dtype,
) -> list[Conditioning]:
    """The context of each prompt, in order, on ``device`` in ``dtype``.

    Prompts are stripped; an empty one is legal (negative prompts often are). Tokens beyond the
    text length are dropped, see :func:`latent_ladder.models.text_encoder.tokenizer.token_report`.
    """
    hidden = _hidden_states(prompts, text_encoder, device, dtype)
    features = project(hidden, projection)
    return _connect(features, connectors, text_length(text_encoder))


def _hidden_states(
    prompts: Sequence[str], text_encoder: Component, device: torch.device | str, dtype: torch.dtype
) -> list[Tensor]:
    """States (layers + 1, n, D) per prompt."""
    tokenizer, length = load_tokenizer(text_encoder), text_length(text_encoder)
    ids = [tokenizer.tokenize(prompt, length).ids for prompt in prompts]
    return hidden_states(ids, text_encoder, device=device, dtype=dtype)


@torch.no_grad()
def _connect(
    features: Sequence[Features], connectors: Component, length: int
) -> list[Conditioning]:
    """Contexts (1, L, D) per prompt from features (n, D); one connector in memory at a time."""
    streams = []
    for stream in ("video", "audio"):
        like = features[0][stream]
        connector = load_connector(connectors, stream, device=like.device, dtype=like.dtype)
        streams.append([connector(each[stream], length) for each in features])
        del connector
    return list(starmap(Conditioning, zip(*streams, strict=True)))
