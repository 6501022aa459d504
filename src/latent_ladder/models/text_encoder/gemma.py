"""Gemma 3 as a text encoder: prompt ids in, hidden states of every layer out.

One layer is in memory at a time, read from the file's mapping when it is its turn: the peak is a
layer (0.5 GB of Gemma 3 12B) instead of the model (24 GB), and all prompts share each read. A
quantised layer is moved as it is stored and decoded where it is needed, once for all prompts; of
the embeddings only the rows of the prompts are. Sizes come from the file's shapes, the rest from
its ``gemma_config`` where it has one. Knows nothing about what the states are for. Source: the
Gemma 3 technical report, arXiv 2503.19786.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.weights.loading import EmptyOnMeta, TensorReader, load_module
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor, read_stored

EMBEDDING = "embed_tokens.weight"

# What the shapes cannot tell, as in every published Gemma 3; a header config overrides it.
WINDOW, FULL_EVERY, EPS = 1024, 6, 1e-6
FULL_THETA, FULL_FACTOR, SLIDING_THETA = 1_000_000.0, 8.0, 10_000.0

_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class Rope:
    """Rotary base and the factor positions are divided by."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True)
class GemmaSettings:
    """Sizes of a text encoder, and which of its layers attend to the whole prompt."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    full: tuple[bool, ...]
    window: int
    scalar: float
    eps: float
    full_rope: Rope
    sliding_rope: Rope


@torch.no_grad()
def hidden_states(
    prompts: Sequence[Sequence[int]],
    text_encoder: Component,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
) -> list[Tensor]:
    """States (layers + 1, n, hidden) of each unpadded prompt of n ids.

    Index 0 is the scaled embeddings, the last one is after the final norm. Padding is not run:
    with a causal mask and relative positions, tokens behind left padding get the same states.
    """
    settings = gemma_settings(text_encoder)
    scale = torch.tensor(settings.hidden**0.5).to(dtype)
    states = [[rows.to(device) * scale] for rows in _embeddings(text_encoder, prompts, dtype)]
    for number, full in enumerate(settings.full):
        layer = _load_layer(text_encoder, number, settings, device, dtype)
        for each in states:
            each.append(layer(each[-1], full))
    norm = _numbers(text_encoder, "norm.weight", (settings.hidden,), device, dtype)
    for each in states:
        each[-1] = _norm(each[-1], norm, settings.eps)
    return [torch.stack(each) for each in states]


def _embeddings(
    text_encoder: Component, prompts: Sequence[Sequence[int]], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Rows (n, hidden) of the embedding table for each prompt; no other row is decoded."""
    ids = torch.tensor([number for prompt in prompts for number in prompt])
    table = read_stored(text_encoder, EMBEDDING)
    if int(ids.max()) >= table.shape[0]:
        raise UnknownLayout(
            f"{text_encoder.file.path.name}: its tokenizer gives the id {int(ids.max())}, the "
            f"embeddings are {table.shape[0]}",
            "the tokenizer in or beside the file belongs to another model",
        )
    rows = (
        table.dequantize_rows(ids, dtype)
        if isinstance(table, QuantizedTensor)
        else table[ids].to(dtype)
    )
    hidden = text_encoder.shape("norm.weight")[0]
    return torch.split(rows[:, :hidden], [len(prompt) for prompt in prompts])


def _load_layer(
    text_encoder: Component,
    number: int,
    settings: GemmaSettings,
    device: torch.device | str,
    dtype: torch.dtype,
) -> GemmaLayer:
    prefix = f"layers.{number}."
    with EmptyOnMeta():
        shapes = {name: tuple(t.shape) for name, t in GemmaLayer(settings).state_dict().items()}
    names = [key[len(prefix) :] for key in text_encoder.names if key.startswith(prefix)]
    layer = load_module(
        partial(GemmaLayer, settings),
        {
            name: partial(_numbers, text_encoder, prefix + name, shapes.get(name), device, dtype)
            for name in names
        },
        device=device,
        dtype=dtype,
        label=f"{text_encoder.file.path.name} (layer {number} of the text encoder)",
    )
    for name in names:
        TensorReader(text_encoder, prefix + name).release()
    return layer


def _numbers(
    text_encoder: Component,
    key: str,
    shape: tuple[int, ...] | None,
    device: torch.device | str,
    dtype: torch.dtype,
) -> Tensor:
    """One weight decoded on the device. The scale that AWQ gives a layer's input is put into it."""
    found = read_stored(text_encoder, key, shape)
    if isinstance(found, QuantizedTensor):
        found.check_scales(f"{text_encoder.file.path.name}: {key}")
        on_device = found.to(device)
        scale = on_device.input_scale
        if scale is None:
            return on_device.dequantize(dtype)
        weight = on_device.dequantize(torch.float32)
        return weight.mul_(scale.float()[: weight.shape[1]]).to(dtype)
    if key.endswith("norm.weight") and text_encoder.norm_offset:
        found = found.float() - text_encoder.norm_offset
    return found.to(device, dtype)


class GemmaLayer(nn.Module):
    """Attention and gated feed-forward, each between two norms."""

    def __init__(self, settings: GemmaSettings) -> None:
        super().__init__()
        hidden, eps = settings.hidden, settings.eps
        self.input_layernorm = _Norm(hidden, eps)
        self.self_attn = _Attention(settings)
        self.post_attention_layernorm = _Norm(hidden, eps)
        self.pre_feedforward_layernorm = _Norm(hidden, eps)
        self.mlp = _Mlp(hidden, settings.inner)
        self.post_feedforward_layernorm = _Norm(hidden, eps)

    def forward(self, x: Tensor, full: bool) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), full))
        y: Tensor = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x + y


class _Norm(nn.Module):
    """RMS norm whose weight is stored minus one, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _norm(x, self.weight, self.eps)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, 1 + weight.float(), eps).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, settings: GemmaSettings) -> None:
        super().__init__()
        s = self.settings = settings
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.q_norm = _Norm(s.head_dim, s.eps)
        self.k_norm = _Norm(s.head_dim, s.eps)

    def forward(self, x: Tensor, full: bool) -> Tensor:
        """(n, hidden) -> (n, hidden); each token sees itself and what is before it."""
        s, n = self.settings, len(x)
        rotation = _rotation(s.full_rope if full else s.sliding_rope, s.head_dim, x)
        q = _rotated(self.q_norm(_heads(self.q_proj(x), s.head_dim)), rotation)
        k = _rotated(self.k_norm(_heads(self.k_proj(x), s.head_dim)), rotation)
        v = _heads(self.v_proj(x), s.head_dim)
        mask = None if full or n <= s.window else _window_mask(n, s.window, x.device)
        y = F.scaled_dot_product_attention(
            q[None], k[None], v[None], mask,
            is_causal=mask is None, scale=s.scalar**-0.5, enable_gqa=True,
        )[0]  # fmt: skip
        out: Tensor = self.o_proj(y.transpose(0, 1).flatten(1))
        return out


class _Mlp(nn.Module):
    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))
        return y


def _heads(x: Tensor, head_dim: int) -> Tensor:
    return x.reshape(len(x), -1, head_dim).transpose(0, 1)


def _window_mask(n: int, window: int, device: torch.device) -> Tensor:
    """True where token i may see token j: i - window < j <= i."""
    seen = torch.ones(n, n, dtype=torch.bool, device=device)
    return seen.tril() & seen.triu(1 - window)


def _rotation(rope: Rope, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, device=like.device).float() / head_dim
    frequencies = 1 / rope.theta**exponents / rope.factor
    angles = torch.arange(len(like), device=like.device).float()[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


# --- settings ---------------------------------------------------------------------------------


def gemma_settings(text_encoder: Component) -> GemmaSettings:
    """Sizes from shapes, the rest from the header.

    Raises :class:`UnknownLayout` when shapes are missing, contradict the header's sizes, or the
    header asks for something that Gemma 3 does not have.
    """
    stated = text_encoder.config.get("text_config", text_encoder.config)
    layers = {int(m[1]) for key in text_encoder.names if (m := _LAYER.match(key))}
    attention = "layers.0.self_attn."
    (head_dim,) = text_encoder.shape(f"{attention}q_norm.weight")
    rope = _rope(stated)
    sizes = {
        "hidden_size": text_encoder.shape("norm.weight")[0],
        "num_attention_heads": text_encoder.shape(f"{attention}q_proj.weight")[0] // head_dim,
        "num_key_value_heads": text_encoder.shape(f"{attention}k_proj.weight")[0] // head_dim,
        "head_dim": head_dim,
        "intermediate_size": text_encoder.shape("layers.0.mlp.gate_proj.weight")[0],
    }
    _check(text_encoder, stated, sizes | {"num_hidden_layers": len(layers)})
    hidden, heads, kv_heads, head_dim, inner = sizes.values()
    return GemmaSettings(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=inner,
        full=_full_layers(stated, len(layers)),
        window=stated.get("sliding_window", WINDOW),
        scalar=stated.get("query_pre_attn_scalar", head_dim),
        eps=stated.get("rms_norm_eps", EPS),
        full_rope=rope["full_attention"],
        sliding_rope=rope["sliding_attention"],
    )


_ONLY = {"hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None}
"""What a header may say of things that every Gemma 3 has alike."""


def _check(text_encoder: Component, stated: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    for name, found in {**sizes, **_ONLY}.items():
        if stated.get(name, found) != found:
            raise UnknownLayout(
                f"{text_encoder.file.path.name}: its header says {name} = {stated[name]}, "
                f"known or found in its tensors is {found}",
                "the header was copied from another model; use an unmodified file",
            )


def _full_layers(stated: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Every sixth layer attends to the whole prompt, the others to a sliding window."""
    if "layer_types" in stated:
        return tuple(kind == "full_attention" for kind in stated["layer_types"])
    every = stated.get("sliding_window_pattern", FULL_EVERY)
    return tuple(n % every == 0 for n in range(1, layers + 1))


def _rope(stated: Mapping[str, Any]) -> dict[str, Rope]:
    """Rotary settings per layer type, from transformers' new spelling or its old one."""
    if "rope_parameters" in stated:
        return {
            kind: Rope(values["rope_theta"], values.get("factor", 1.0))
            for kind, values in stated["rope_parameters"].items()
        }
    scaling = stated.get("rope_scaling", {"factor": FULL_FACTOR}) or {}
    return {
        "full_attention": Rope(stated.get("rope_theta", FULL_THETA), scaling.get("factor", 1.0)),
        "sliding_attention": Rope(stated.get("rope_local_base_freq", SLIDING_THETA)),
    }
