"""Encode prompts to the text contexts of the transformer.

Text encoder (layer by layer), projection and connectors are loaded one after the other, once for
all prompts, and each is freed before the next is loaded: peak memory is that of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.text_loras import Loras, TextLoras, check_text_loras
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.models.text_encoder.connectors import Features, load_connector, project_features
from latent_ladder.models.text_encoder.gemma import compute_hidden_states
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer, text_length

__all__ = ["Conditioning", "encode_prompts"]

NO_LORAS = TextLoras()


def encode_prompts(
    prompts: Sequence[str],
    *,
    text_encoder: Component,
    projection: Component,
    connectors: Component,
    device: torch.device | str,
    dtype: torch.dtype,
    loras: TextLoras = NO_LORAS,
) -> list[Conditioning]:
    """Encode each prompt, in order, to a conditioning on ``device`` in ``dtype``.

    ``loras`` change connectors and projection where they have modules for them.

    Prompts are stripped; a prompt may be empty (negative prompts often are). Tokens beyond the
    text length are dropped, see :func:`latent_ladder.models.text_encoder.tokenizer.token_report`.
    Raises :class:`UnknownLayout` if the parts do not match each other, and
    :class:`CorruptCheckpoint` for damaged files.
    """
    check_text_loras(loras, connectors, projection)
    hidden = _hidden_states(prompts, text_encoder, device, dtype)
    features = project_features(hidden, projection, loras.projection)
    return _connect(features, connectors, text_length(text_encoder), loras.connectors)


def _hidden_states(
    prompts: Sequence[str], text_encoder: Component, device: torch.device | str, dtype: torch.dtype
) -> list[Tensor]:
    """Hidden states (layers + 1, n, D) of each prompt."""
    tokenizer, length = load_tokenizer(text_encoder), text_length(text_encoder)
    ids = [tokenizer.tokenize(prompt, length).ids for prompt in prompts]
    return compute_hidden_states(ids, text_encoder, device=device, dtype=dtype)


@torch.no_grad()
def _connect(
    features: Sequence[Features], connectors: Component, length: int, loras: Loras
) -> list[Conditioning]:
    """Turn features (n, D) of each prompt into contexts (1, L, D), one connector at a time."""
    streams = []
    for stream in ("video", "audio"):
        like = features[0][stream]
        connector = load_connector(
            connectors, stream, device=like.device, dtype=like.dtype, loras=loras
        )
        streams.append([connector(each[stream], length) for each in features])
        del connector
    return list(starmap(Conditioning, zip(*streams, strict=True)))
