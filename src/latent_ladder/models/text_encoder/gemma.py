"""Gemma 3 text encoder: token ids in, hidden states of all layers out.

One layer is in memory at a time, read from the memory-mapped file: the peak is one layer (0.5 GB
for Gemma 3 12B) instead of the model (24 GB), and each layer is read once for all prompts. A
quantised layer is moved in its stored form and dequantised on the device; of the embedding table
only the rows of the prompts are dequantised. Sizes are read from tensor shapes, other settings
from ``gemma_config`` in the header, if present. Source: Gemma 3 technical report, arXiv 2503.19786.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.weights.loading import EmptyOnMeta, TensorReader, load_module
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor, read_stored

EMBEDDING = "embed_tokens.weight"

# Settings that shapes do not show, as in all published Gemma 3; a header overrides them.
WINDOW, FULL_EVERY, EPS = 1024, 6, 1e-6
FULL_THETA, FULL_FACTOR, SLIDING_THETA = 1_000_000.0, 8.0, 10_000.0

_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class RopeParameters:
    """RoPE base ``theta``, and the factor that positions are divided by."""

    theta: float
    factor: float = 1.0


@dataclass(frozen=True)
class GemmaConfig:
    """Configuration of a Gemma 3 text encoder.

    ``full_attention``: for each layer, True if it attends to the whole prompt, False if to a
    sliding ``window``. ``scalar``: attention scores are divided by its square root.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    full_attention: tuple[bool, ...]
    window: int
    scalar: float
    eps: float
    full_rope: RopeParameters
    sliding_rope: RopeParameters


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
    target = _Target(device, dtype, round_norms)
    states = [[rows.to(device) * scale] for rows in _embeddings(text_encoder, prompts, dtype)]
    for number, full_attention in enumerate(config.full_attention):
        layer = _load_layer(text_encoder, number, config, target)
        for each in states:
            each.append(layer(each[-1], full_attention))
    norm = _read_weight(text_encoder, "norm.weight", (config.hidden,), target)
    for each in states:
        each[-1] = _norm(each[-1], norm, config.eps)
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
    """Device and dtype of weights, and whether 1 + w of norms is rounded as stored."""

    device: torch.device | str
    dtype: torch.dtype
    round_norms: bool


def _load_layer(
    text_encoder: Component,
    number: int,
    config: GemmaConfig,
    target: _Target,
) -> GemmaLayer:
    prefix = f"layers.{number}."
    with EmptyOnMeta():
        shapes = {name: tuple(t.shape) for name, t in GemmaLayer(config).state_dict().items()}
    names = [key[len(prefix) :] for key in text_encoder.names if key.startswith(prefix)]
    layer = load_module(
        partial(GemmaLayer, config),
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
    if key.endswith("norm.weight") and target.round_norms:
        # exact in bfloat16 too: 1 + w rounded to 8 bits, minus 1, has at most 8 bits
        stored = (stored + 1).float() - 1
    return stored.to(device, dtype)


class GemmaLayer(nn.Module):
    """Gemma 3 layer: attention and gated feed-forward, each between two norms."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden, config.eps
        self.input_layernorm = _Norm(hidden, eps)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _Norm(hidden, eps)
        self.pre_feedforward_layernorm = _Norm(hidden, eps)
        self.mlp = _Mlp(hidden, config.inner)
        self.post_feedforward_layernorm = _Norm(hidden, eps)

    def forward(self, x: Tensor, full_attention: bool) -> Tensor:
        x = x + self.post_attention_layernorm(
            self.self_attn(self.input_layernorm(x), full_attention)
        )
        y: Tensor = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x + y


class _Norm(nn.Module):
    """RMS norm computed in float32; its weight is stored minus one."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return _norm(x, self.weight, self.eps)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.float(), weight.shape, 1 + weight.float(), eps).to(x.dtype)


class _Attention(nn.Module):
    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        s = self.config = config
        self.q_proj = nn.Linear(s.hidden, s.heads * s.head_dim, bias=False)
        self.k_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.v_proj = nn.Linear(s.hidden, s.kv_heads * s.head_dim, bias=False)
        self.o_proj = nn.Linear(s.heads * s.head_dim, s.hidden, bias=False)
        self.q_norm = _Norm(s.head_dim, s.eps)
        self.k_norm = _Norm(s.head_dim, s.eps)

    def forward(self, x: Tensor, full_attention: bool) -> Tensor:
        """Causal self-attention, (n, hidden) to (n, hidden)."""
        s, n = self.config, len(x)
        rotation = _rotation(s.full_rope if full_attention else s.sliding_rope, s.head_dim, x)
        q = _apply_rope(self.q_norm(_heads(self.q_proj(x), s.head_dim)), rotation)
        k = _apply_rope(self.k_norm(_heads(self.k_proj(x), s.head_dim)), rotation)
        v = _heads(self.v_proj(x), s.head_dim)
        mask = None if full_attention or n <= s.window else _window_mask(n, s.window, x.device)
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
    """Mask (n, n): True if token i attends to token j, that is i - window < j <= i."""
    ones = torch.ones(n, n, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


def _rotation(rope: RopeParameters, head_dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    exponents = torch.arange(0, head_dim, 2, device=like.device).float() / head_dim
    frequencies = 1 / rope.theta**exponents / rope.factor
    angles = torch.arange(len(like), device=like.device).float()[:, None] * frequencies
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _apply_rope(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


# --- settings ---------------------------------------------------------------------------------


def read_gemma_config(text_encoder: Component) -> GemmaConfig:
    """Read the configuration: sizes from tensor shapes, the rest from the header.

    Raises :class:`UnknownLayout` if tensors are missing, sizes differ from those in the header,
    or the header requests something that Gemma 3 does not have.
    """
    header = text_encoder.config.get("text_config", text_encoder.config)
    layers = {int(m[1]) for key in text_encoder.names if (m := _LAYER.match(key))}
    attention = "layers.0.self_attn."
    (head_dim,) = text_encoder.shape(f"{attention}q_norm.weight")
    rope = _rope_parameters(header)
    sizes = {
        "hidden_size": text_encoder.shape("norm.weight")[0],
        "num_attention_heads": text_encoder.shape(f"{attention}q_proj.weight")[0] // head_dim,
        "num_key_value_heads": text_encoder.shape(f"{attention}k_proj.weight")[0] // head_dim,
        "head_dim": head_dim,
        "intermediate_size": text_encoder.shape("layers.0.mlp.gate_proj.weight")[0],
    }
    _check(text_encoder, header, sizes | {"num_hidden_layers": len(layers)})
    hidden, heads, kv_heads, head_dim, inner = sizes.values()
    return GemmaConfig(
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        inner=inner,
        full_attention=_full_layers(header, len(layers)),
        window=header.get("sliding_window", WINDOW),
        scalar=header.get("query_pre_attn_scalar", head_dim),
        eps=header.get("rms_norm_eps", EPS),
        full_rope=rope["full_attention"],
        sliding_rope=rope["sliding_attention"],
    )


_FIXED = {"hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": None}
"""Header entries with the same value in all Gemma 3 models."""


def _check(text_encoder: Component, header: Mapping[str, Any], sizes: Mapping[str, int]) -> None:
    for name, expected in {**sizes, **_FIXED}.items():
        if header.get(name, expected) != expected:
            raise UnknownLayout(
                f"{text_encoder.file.path.name}: its header has {name} = {header[name]}, "
                f"expected {expected}",
                "the header was copied from another model; use an unmodified file",
            )


def _full_layers(header: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """For each layer, True if it attends to the whole prompt (every sixth layer by default)."""
    if "layer_types" in header:
        return tuple(kind == "full_attention" for kind in header["layer_types"])
    every = header.get("sliding_window_pattern", FULL_EVERY)
    return tuple(n % every == 0 for n in range(1, layers + 1))


def _rope_parameters(header: Mapping[str, Any]) -> dict[str, RopeParameters]:
    """RoPE parameters per layer type, from the new or the old config format of transformers."""
    if "rope_parameters" in header:
        return {
            kind: RopeParameters(values["rope_theta"], values.get("factor", 1.0))
            for kind, values in header["rope_parameters"].items()
        }
    scaling = header.get("rope_scaling", {"factor": FULL_FACTOR}) or {}
    return {
        "full_attention": RopeParameters(
            header.get("rope_theta", FULL_THETA), scaling.get("factor", 1.0)
        ),
        "sliding_attention": RopeParameters(header.get("rope_local_base_freq", SLIDING_THETA)),
    }
