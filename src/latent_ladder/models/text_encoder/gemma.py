"""Gemma text encoder: token ids in, hidden states of all layers out.

One layer is in memory at a time, read from the memory-mapped file: the peak is one layer (0.5 GB
for a 12B model) instead of the model (24 GB), and each layer is read once for all prompts. A
quantised layer is moved in its stored form and dequantised on the device; of the embedding table
only the rows of the prompts are dequantised. Gemma 3 and Gemma 4 are one network with the
differences of :mod:`latent_ladder.models.text_encoder.gemma_config`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.text_encoder.gemma_config import (
    AttentionConfig,
    GemmaConfig,
    RopeParameters,
    read_gemma_config,
)
from latent_ladder.models.weights.loading import EmptyOnMeta, TensorReader, load_module
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor, read_stored

EMBEDDING = "embed_tokens.weight"


@torch.no_grad()
def compute_hidden_states(
    prompts: Sequence[Sequence[int]],
    text_encoder: Component,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    round_norms: bool = False,
) -> list[Tensor]:
    """Compute hidden states (layers + 1, n, hidden) of each prompt of n token ids, unpadded.

    Index 0 is the scaled embeddings; the last one is after the final norm. Left padding is not
    computed: with causal attention and relative positions it does not change the other tokens.
    ``round_norms``: the scale 1 + w of a norm is rounded to the type that the file stores w in, as
    ComfyUI does; else it is float32.
    Raises :class:`UnknownLayout` if header, shapes or token ids do not match, and
    :class:`CorruptCheckpoint` for damaged quantised weights.
    """
    config = read_gemma_config(text_encoder)
    scale = torch.tensor(config.hidden**0.5).to(dtype)
    states = [[rows.to(device) * scale] for rows in _embeddings(text_encoder, prompts, dtype)]
    for number in range(len(config.layers)):
        layer = load_layer(text_encoder, number, config, device, dtype, round_norms=round_norms)
        for each in states:
            each.append(layer(each[-1]))
    norm = _Norm(config.hidden, config)
    target = _Target(device, dtype, config.norm_offset if round_norms else 0)
    norm.weight = nn.Parameter(_read_weight(text_encoder, "norm.weight", (config.hidden,), target))
    for each in states:
        each[-1] = norm(each[-1])
    return [torch.stack(each) for each in states]


def _embeddings(
    text_encoder: Component, prompts: Sequence[Sequence[int]], dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Look up embeddings (n, hidden) of each prompt; only these rows are dequantised."""
    ids = torch.tensor([number for prompt in prompts for number in prompt])
    table = read_stored(text_encoder, EMBEDDING)
    if int(ids.max()) >= table.shape[0]:
        raise UnknownLayout(
            f"{text_encoder.file.path.name}: its tokenizer returns token id {int(ids.max())}, but "
            f"there are {table.shape[0]} embeddings",
            "use the tokenizer of this model, in the file or next to it",
        )
    rows = (
        table.dequantize_rows(ids, dtype)
        if isinstance(table, QuantizedTensor)
        else table[ids].to(dtype)
    )
    hidden = text_encoder.shape("norm.weight")[0]
    return torch.split(rows[:, :hidden], [len(prompt) for prompt in prompts])


class _Target(NamedTuple):
    """Device and dtype of weights; offset of norm weights that is added and rounded as stored."""

    device: torch.device | str
    dtype: torch.dtype
    rounded_offset: float


def load_layer(
    text_encoder: Component,
    number: int,
    config: GemmaConfig,
    device: torch.device | str,
    dtype: torch.dtype,
    *,
    round_norms: bool = False,
) -> GemmaLayer:
    target = _Target(device, dtype, config.norm_offset if round_norms else 0)
    prefix = f"layers.{number}."
    build = partial(GemmaLayer, config, config.layers[number])
    with EmptyOnMeta():
        shapes = {name: tuple(t.shape) for name, t in build().state_dict().items()}
    names = [key[len(prefix) :] for key in text_encoder.names if key.startswith(prefix)]
    layer = load_module(
        build,
        {
            name: partial(_read_weight, text_encoder, prefix + name, shapes.get(name), target)
            for name in names
        },
        device=target.device,
        dtype=target.dtype,
        label=f"{text_encoder.file.path.name} (layer {number} of the text encoder)",
    )
    for name in names:
        TensorReader(text_encoder, prefix + name).release()
    return layer


def _read_weight(
    text_encoder: Component,
    key: str,
    shape: tuple[int, ...] | None,
    target: _Target,
) -> Tensor:
    """Read a weight and dequantise it on the device, multiplied by AWQ's input scale if any."""
    device, dtype = target.device, target.dtype
    stored = read_stored(text_encoder, key, shape)
    if isinstance(stored, QuantizedTensor):
        stored.check_scales(f"{text_encoder.file.path.name}: {key}")
        on_device = stored.to(device)
        scale = on_device.input_scale
        if scale is None:
            return on_device.dequantize(dtype)
        weight = on_device.dequantize(torch.float32)
        return weight.mul_(scale.float()[: weight.shape[1]]).to(dtype)
    if key.endswith("norm.weight") and text_encoder.norm_offset:
        stored = stored.float() - text_encoder.norm_offset
    if key.endswith("norm.weight") and target.rounded_offset:
        # exact in bfloat16 too: 1 + w rounded to 8 bits, minus 1, has at most 8 bits
        stored = (stored + target.rounded_offset).float() - target.rounded_offset
    return stored.to(device, dtype)


class GemmaLayer(nn.Module):
    """Gemma layer: attention and gated feed-forward, each between two norms."""

    def __init__(self, config: GemmaConfig, attention: AttentionConfig) -> None:
        super().__init__()
        hidden = config.hidden
        self.input_layernorm = _Norm(hidden, config)
        self.self_attn = _Attention(config, attention)
        self.post_attention_layernorm = _Norm(hidden, config)
        self.pre_feedforward_layernorm = _Norm(hidden, config)
        self.mlp = _Mlp(hidden, config.inner)
        self.post_feedforward_layernorm = _Norm(hidden, config)
        self.layer_scalar = nn.Parameter(torch.empty(1)) if config.layer_scalar else None

    def forward(self, x: Tensor) -> Tensor:
        """Residual stream (n, hidden) after the layer."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x)))
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x if self.layer_scalar is None else x * self.layer_scalar


class _Norm(nn.Module):
    """RMS norm computed in float32."""

    def __init__(self, width: int, config: GemmaConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.offset, self.eps = config.norm_offset, config.eps

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float() + self.offset
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: GemmaConfig, attention: AttentionConfig) -> None:
        super().__init__()
        s, self.eps = attention, config.eps
        self.config = s
        self.q_proj = nn.Linear(config.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden, s.kv_heads * s.head_dim, bias=False)
        if not s.keys_as_values:
            self.v_proj = nn.Linear(config.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, config.hidden, bias=False)
        self.q_norm = _Norm(s.head_dim, config)
        self.k_norm = _Norm(s.head_dim, config)

    def forward(self, x: Tensor) -> Tensor:
        """Causal self-attention, (n, hidden) to (n, hidden)."""
        out: Tensor = self.o_proj(self.attend(x))
        return out

    def attend(self, x: Tensor) -> Tensor:
        """Outputs of all heads before their projection, (n, heads * head_dim)."""
        s, n = self.config, len(x)
        rotation = rotation_table(s.rope, s.head_dim, x)
        keys = _heads(self.k_proj(x), s.head_dim)
        q = _apply_rope(self.q_norm(_heads(self.q_proj(x), s.head_dim)), rotation)
        k = _apply_rope(self.k_norm(keys), rotation)
        v = keys if s.keys_as_values else _heads(self.v_proj(x), s.head_dim)
        if s.value_norm:
            v = F.rms_norm(v.float(), (s.head_dim,), eps=self.eps).to(x.dtype)
        mask = None if s.window is None or n <= s.window else _window_mask(n, s.window, x.device)
        y = F.scaled_dot_product_attention(
            q[None], k[None], v[None], mask,
            is_causal=mask is None, scale=s.scale, enable_gqa=True,
        )[0]  # fmt: skip
        return y.transpose(0, 1).flatten(1)


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
    """Mask (n, n): True if token i attends to token j, that is i - window < j <= i."""
    ones = torch.ones(n, n, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


def rotation_table(rope: RopeParameters, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (n, head_dim / 2) of all positions of ``like`` (n, ...), in its dtype."""
    exponents = torch.arange(0, head_dim, 2, device=like.device).float() / head_dim
    frequencies = 1 / rope.theta**exponents / rope.factor
    frequencies[int(rope.rotary * len(frequencies)) :] = 0
    angles = torch.arange(len(like), device=like.device).float()[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _apply_rope(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
