"""Encode prompts to the text contexts of the transformer.

Text encoder (layer by layer), projection and connectors are loaded one after the other, once for
all prompts, and each is freed before the next is loaded: peak memory is that of the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import starmap

import torch

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.text_loras import Loras, TextLoras, check_text_loras
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.models.text_encoder.connectors import Features, load_connector, project_features
from latent_ladder.models.text_encoder.gemma import compute_hidden_states
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer, text_length

__all__ = ["Conditioning", "encode_prompts"]

NO_LORAS = TextLoras()


def encode_prompts(  # noqa: PLR0913 - each part is a file of its own
    prompts: Sequence[str],
    *,
    text_encoder: Component,
    projection: Component,
    connectors: Component,
    device: torch.device | str,
    dtype: torch.dtype,
    loras: TextLoras = NO_LORAS,
    as_comfyui: bool = False,
) -> list[Conditioning]:
    """Encode each prompt, in order, to a conditioning on ``device`` in ``dtype``.

    ``loras`` change connectors and projection where they have modules for them.

    Prompts are stripped; a prompt may be empty (negative prompts often are). Tokens beyond the
    text length are dropped, see :func:`latent_ladder.models.text_encoder.tokenizer.token_report`.
    ``as_comfyui``: tokens, length and norms are ComfyUI's, see
    :meth:`Tokenizer.tokenize_as_comfyui` and :func:`compute_hidden_states`. Raises
    :class:`UnknownLayout` if the parts do not match each other, and
    :class:`CorruptCheckpoint` for damaged files.
    """
    check_text_loras(loras, connectors, projection)
    ids = _token_ids(prompts, text_encoder, as_comfyui)
    # No name for the hidden states of all layers: they are freed before the connectors are loaded.
    features = project_features(
        compute_hidden_states(
            ids, text_encoder, device=device, dtype=dtype, round_norms=as_comfyui
        ),
        projection,
        loras.projection,
    )
    return _connect(features, connectors, text_length(text_encoder), loras.connectors)


def _token_ids(
    prompts: Sequence[str], text_encoder: Component, as_comfyui: bool
) -> list[tuple[int, ...]]:
    tokenizer, length = load_tokenizer(text_encoder), text_length(text_encoder)
    if as_comfyui:
        return [tokenizer.tokenize_as_comfyui(prompt) for prompt in prompts]
    return [tokenizer.tokenize(prompt, length).ids for prompt in prompts]


@torch.no_grad()
def _connect(
    features: Sequence[Features], connectors: Component, length: int, loras: Loras
) -> list[Conditioning]:
    """Turn features (n, D) of each prompt into contexts (1, L, D), one connector at a time.

    L is ``length``, or more for a longer prompt: the next multiple of the number of registers.
    """
    streams = []
    for stream in ("video", "audio"):
        like = features[0][stream]
        connector = load_connector(
            connectors, stream, device=like.device, dtype=like.dtype, loras=loras
        )
        registers = connector.settings.registers
        streams.append(
            [
                connector(each[stream], max(length, -(-len(each[stream]) // registers) * registers))
                for each in features
            ]
        )
        del connector
    return list(starmap(Conditioning, zip(*streams, strict=True)))
