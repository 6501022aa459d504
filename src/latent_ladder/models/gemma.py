"""Gemma 3 as a text encoder: prompt ids in, hidden states of every layer out.

The network is transformers' ``Gemma3TextModel``; its sizes come from the file's shapes, the rest
from the file's ``gemma_config`` where it has one. Knows nothing about what the states are for.
Source: https://github.com/huggingface/transformers, ``models/gemma3``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latent_ladder.checkpoints.layout import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.loading import load_module

EMBEDDING = "embed_tokens.weight"

# What the shapes cannot tell, as in every published Gemma 3; a header config overrides it.
WINDOW, FULL_EVERY, EPS = 1024, 6, 1e-6
FULL_ROPE: Mapping[str, Any] = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0}
SLIDING_ROPE: Mapping[str, Any] = {"rope_type": "default", "rope_theta": 10_000.0}

_LAYER = re.compile(r"layers\.(\d+)\.")
_NETWORK_KEY = re.compile(r"layers\.\d+\.|norm\.weight$")


@dataclass(frozen=True)
class Gemma:
    """A loaded text encoder. ``embeddings`` stays in the file: a prompt needs only some rows."""

    network: nn.Module
    embeddings: Tensor
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def hidden_states(self, ids: Sequence[int]) -> Tensor:
        """States (layers + 1, n, hidden) of one unpadded prompt.

        Index 0 is the scaled embeddings, the last one is after the final norm. Padding is not
        run: with a causal mask and relative positions, tokens behind left padding get the same
        states as tokens without it.
        """
        rows = self.embeddings[torch.tensor(ids)].to(self.device, self.dtype)
        scale = torch.tensor(rows.shape[-1] ** 0.5).to(self.dtype)
        output = self.network(
            inputs_embeds=(rows * scale)[None], use_cache=False, output_hidden_states=True
        )
        return torch.cat(output.hidden_states)


def load_gemma(text_encoder: Component, *, device: torch.device | str, dtype: torch.dtype) -> Gemma:
    """Load the text model; the vision tower and the embedding table are left in the file.

    Raises :class:`UnknownLayout` when the file is not a complete Gemma 3.
    """
    network = load_module(
        partial(build_network, gemma_settings(text_encoder)),
        {key: partial(text_encoder.read, key) for key in text_encoder.names if _is_network(key)},
        device=device,
        dtype=dtype,
        what=f"{text_encoder.file.path.name} (text encoder)",
    )
    return Gemma(network, text_encoder.read(EMBEDDING), torch.device(device), dtype)


def build_network(settings: Mapping[str, Any]) -> nn.Module:
    """``Gemma3TextModel`` without its embedding table (it is called with embeddings)."""
    from transformers import Gemma3TextConfig, Gemma3TextModel

    network: nn.Module = Gemma3TextModel(Gemma3TextConfig(**settings))
    network.embed_tokens = nn.Identity()
    return network


def _is_network(key: str) -> bool:
    return _NETWORK_KEY.match(key) is not None


def gemma_settings(text_encoder: Component) -> dict[str, Any]:
    """Arguments of ``Gemma3TextConfig``: sizes from shapes, the rest from the header.

    Raises :class:`UnknownLayout` when shapes are missing or contradict the header's sizes.
    """
    sizes = _sizes(text_encoder)
    stated = text_encoder.config.get("text_config", text_encoder.config)
    for name, size in sizes.items():
        if stated.get(name, size) != size:
            raise UnknownLayout(
                f"{text_encoder.file.path.name}: its header says {name} = {stated[name]}, "
                f"its tensors {size}",
                "the header was copied from another model; use an unmodified file",
            )
    return {
        **sizes,
        # One row: the table itself is never part of the network.
        "vocab_size": 1,
        "pad_token_id": 0,
        "eos_token_id": None,
        "bos_token_id": None,
        "rms_norm_eps": stated.get("rms_norm_eps", EPS),
        "hidden_activation": stated.get("hidden_activation", "gelu_pytorch_tanh"),
        "query_pre_attn_scalar": stated.get("query_pre_attn_scalar", sizes["head_dim"]),
        "attn_logit_softcapping": stated.get("attn_logit_softcapping"),
        "sliding_window": stated.get("sliding_window", WINDOW),
        "layer_types": _layer_types(stated, sizes["num_hidden_layers"]),
        "rope_parameters": _rope(stated),
    }


def _sizes(text_encoder: Component) -> dict[str, int]:
    layers = {int(m[1]) for key in text_encoder.names if (m := _LAYER.match(key))}
    attention = "layers.0.self_attn."
    (head_dim,) = text_encoder.shape(f"{attention}q_norm.weight")
    vocabulary, hidden = text_encoder.shape(EMBEDDING)
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "num_hidden_layers": len(layers),
        "head_dim": head_dim,
        "num_attention_heads": text_encoder.shape(f"{attention}q_proj.weight")[0] // head_dim,
        "num_key_value_heads": text_encoder.shape(f"{attention}k_proj.weight")[0] // head_dim,
        "intermediate_size": text_encoder.shape("layers.0.mlp.gate_proj.weight")[0],
    }


def _layer_types(stated: Mapping[str, Any], layers: int) -> list[str]:
    """Every sixth layer attends to the whole prompt, the others to a sliding window."""
    if "layer_types" in stated:
        return list(stated["layer_types"])
    every = stated.get("sliding_window_pattern", FULL_EVERY)
    return ["sliding_attention" if n % every else "full_attention" for n in range(1, layers + 1)]


def _rope(stated: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Rotary settings per layer type, in transformers' new spelling, from either spelling.

    transformers' own default has no linear factor, which no Gemma 3 above 1 B was trained with.
    """
    if "rope_parameters" in stated:
        return {kind: dict(values) for kind, values in stated["rope_parameters"].items()}
    full, sliding = dict(FULL_ROPE), dict(SLIDING_ROPE)
    if "rope_scaling" in stated:
        scaling = stated["rope_scaling"] or {"rope_type": "default"}
        full = {"rope_theta": full["rope_theta"], **scaling}
    full["rope_theta"] = stated.get("rope_theta", full["rope_theta"])
    sliding["rope_theta"] = stated.get("rope_local_base_freq", sliding["rope_theta"])
    return {"full_attention": full, "sliding_attention": sliding}
