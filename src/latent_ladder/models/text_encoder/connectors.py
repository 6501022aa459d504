"""Text features and contexts of each stream: projection of Gemma's states, then a connector.

There are two kinds, distinguished by the projection's tensors: LTX-2.3 and 2.5 normalise each token
of each layer and have one projection per stream; LTX-2.0 normalises each layer over the prompt and
has one projection for both. A connector is a small transformer, which fills the context after the
prompt with learnable registers. Only prompt tokens are projected, so no mask is needed.
Source: LTX-2, ``text_encoders/gemma`` (feature extractors, embeddings connector).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.text_loras import Loras
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.lora.text_parts import (
    adapt_layers,
    projection_branches,
    with_branches,
)
from latent_ladder.models.network_configs import connector_config
from latent_ladder.models.weights.loading import load_module, tensor_readers
from latent_ladder.models.weights.quantized_tensor import read_float

EPS = 1e-6
THETA = 10000.0
"""RoPE base of the connectors; the theta in the header is the transformer's."""
SHARED = "aggregate_embed"
"""Name of the shared projection of LTX-2.0."""


# --- projection -----------------------------------------------------------------------------------


Features = dict[str, Tensor]
"""Features of one prompt of n tokens by stream, "video" and "audio": (n, D_stream)."""


@torch.no_grad()
def project_features(
    hidden: Sequence[Tensor], projection: Component, loras: Loras = ()
) -> list[Features]:
    """Project hidden states (layers, n, D) of each prompt to features; weights are read once.

    Prompts are projected one by one: in one product the last bits of a prompt would depend on the
    others, but a resumed run must be bit-identical to an uninterrupted one. Device and dtype are
    those of ``hidden``. ``loras`` may change the projection. Raises :class:`UnknownLayout` if the
    projection is for another text encoder.
    """
    if f"{SHARED}.weight" in projection:
        packed = [_normalise_range(states) for states in hidden]
        shared = _linear(packed, projection, loras, SHARED)
        return [{"video": features, "audio": features} for features in shared]
    packed = [_normalise_tokens(states) for states in hidden]
    width = hidden[0].shape[-1]
    video = _linear(packed, projection, loras, f"video_{SHARED}", width)
    audio = _linear(packed, projection, loras, f"audio_{SHARED}", width)
    return [{"video": v, "audio": a} for v, a in zip(video, audio, strict=True)]


def _normalise_tokens(hidden: Tensor) -> Tensor:
    """RMS-normalise each token of each layer; returns (n, D * layers), layers innermost."""
    return _stack_layers(F.rms_norm(hidden.float(), hidden.shape[-1:], eps=EPS), hidden.dtype)


def _normalise_range(hidden: Tensor) -> Tensor:
    """Normalise each layer over the prompt: 8 (x - mean) / (max - min); returns (n, D * layers)."""
    x = hidden.float()
    layers = x.flatten(1)
    mean = layers.sum(1) / (layers.shape[1] + EPS)
    value_range = layers.amax(1) - layers.amin(1) + EPS
    return _stack_layers(8 * (x - mean[:, None, None]) / value_range[:, None, None], hidden.dtype)


def _stack_layers(states: Tensor, dtype: torch.dtype) -> Tensor:
    return states.to(dtype).permute(1, 2, 0).flatten(1)


def _linear(
    prompts: Sequence[Tensor],
    projection: Component,
    loras: Loras,
    name: str,
    scaled_from: int | None = None,
) -> list[Tensor]:
    """Compute ``scale * states @ W.T + b`` of each prompt.

    ``scale`` is sqrt(out / ``scaled_from``), or 1 without ``scaled_from``. It is applied inside
    the product, so neither states nor W are copied.
    """
    like = prompts[0]
    weight = read_float(projection, f"{name}.weight", like.dtype).to(like.device)
    if weight.shape[1] != like.shape[1]:
        raise UnknownLayout(
            f"{projection.file.path.name}: its text projection needs {weight.shape[1]} features "
            f"per token, the text encoder outputs {like.shape[1]}",
            "use the text encoder that the checkpoint was trained with: Gemma 3 12B for LTX-2.0 "
            "and 2.3, LTX's own Gemma 4 12B for LTX-2.5",
        )
    scale = math.sqrt(weight.shape[0] / scaled_from) if scaled_from else 1.0
    start, bias = like.new_zeros(()), f"{name}.bias"
    if bias in projection:
        start = read_float(projection, bias, like.dtype).to(like.device)
    outputs = [torch.addmm(start, states, weight.T, alpha=scale) for states in prompts]
    if not loras:
        return outputs
    layer = with_branches(weight, start if bias in projection else None)
    branches = projection_branches(loras, name, layer)
    for number, states in enumerate(prompts if branches else ()):
        for branch in branches:
            outputs[number] = branch.add_to(outputs[number], states * scale, layer)
    return outputs


# --- connectors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConnectorSettings:
    """Sizes of a connector, and the position scale and base of its RoPE."""

    width: int
    heads: int
    layers: int
    registers: int
    gated: bool
    max_position: float
    theta: float


def read_connector_settings(connectors: Component, stream: str) -> ConnectorSettings:
    """Read the settings of the connector of ``stream``, "video" or "audio", from shapes and header.

    Raises :class:`UnknownLayout` if neither shows the number of heads, or the RoPE type is not
    that of the published models.
    """
    config = connector_config(connectors.shapes(), connectors.config, stream)
    if connectors.config.get("rope_type", "split") != "split":
        raise UnknownLayout(
            f"{connectors.file.path.name}: text connectors with rope_type "
            f"{connectors.config['rope_type']!r}, expected 'split'",
            "use the connectors of a published LTX-2 model",
        )
    return ConnectorSettings(
        width=config.heads * config.head_dim,
        heads=config.heads,
        layers=config.layers,
        registers=config.registers,
        gated=config.gated,
        max_position=connectors.config.get("connector_positional_embedding_max_pos", [4096])[0],
        theta=THETA,
    )


def load_connector(
    connectors: Component,
    stream: str,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    loras: Loras = (),
) -> Connector:
    """Load the connector of ``stream``, "video" or "audio", with adapters of ``loras``.

    Raises :class:`UnknownLayout`, and the errors of a LoRA whose shapes do not fit.
    """
    prefix = f"{stream}_embeddings_connector."
    connector = load_module(
        partial(Connector, read_connector_settings(connectors, stream)),
        tensor_readers(connectors, prefix),
        device=device,
        dtype=dtype,
        label=f"{connectors.file.path.name} ({stream} text connector)",
    )
    if loras:
        adapt_layers(connector, loras, prefix)
    return connector


class Connector(nn.Module):
    """Connector: transformer over the text context, prompt tokens first, then registers."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.learnable_registers = nn.Parameter(torch.empty(settings.registers, settings.width))
        self.transformer_1d_blocks = nn.ModuleList(_Block(settings) for _ in range(settings.layers))

    def forward(self, features: Tensor, length: int) -> Tensor:
        """Turn features (n, D) of a prompt into its context (1, ``length``, D).

        Each position ``i`` after the prompt has register ``i mod registers``. Raises
        :class:`UnknownLayout` unless ``length`` is a multiple of the number of registers.
        """
        if length % self.settings.registers:
            raise UnknownLayout(
                f"a text context of {length} tokens is not a multiple of the connector's "
                f"{self.settings.registers} registers",
                "use the text encoder of the checkpoint: its `text_length` does not match",
            )
        tail = self.learnable_registers.repeat(length // self.settings.registers, 1)
        x: Tensor = torch.cat((features, tail[len(features) :]))[None]
        rotation = _rotation(self.settings, length, x)
        for block in self.transformer_1d_blocks:
            x = block(x, rotation)
        return _rms(x)


class _Block(nn.Module):
    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__()
        self.attn1 = _Attention(settings)
        self.ff = _FeedForward(settings.width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn1(_rms(x), rotation)
        y: Tensor = x + self.ff(_rms(x))
        return y


class _Attention(nn.Module):
    """Self-attention with QK norm over all heads, split RoPE and per-head output gates."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__()
        width, self.heads = settings.width, settings.heads
        self.q_norm = nn.RMSNorm(width, eps=EPS)
        self.k_norm = nn.RMSNorm(width, eps=EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_gate_logits = nn.Linear(width, self.heads) if settings.gated else None

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        q = _apply_rope(self._split(self.q_norm(self.to_q(x))), rotation)
        k = _apply_rope(self._split(self.k_norm(self.to_k(x))), rotation)
        y = F.scaled_dot_product_attention(q, k, self._split(self.to_v(x)))
        if self.to_gate_logits is not None:
            y = y * (2 * torch.sigmoid(self.to_gate_logits(x))).transpose(1, 2)[..., None]
        joined: Tensor = self.to_out[0](y.transpose(1, 2).flatten(2))
        return joined

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class _FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        # Named as in the checkpoints: net.0.proj and net.2.
        self.net = nn.ModuleDict({"0": _Projection(width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net["2"](self.net["0"](x))
        return y


class _Projection(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def _rotation(settings: ConnectorSettings, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (heads, L, head_dim / 2); a float64 frequency grid, float32 angles."""
    exponents = torch.linspace(0, 1, settings.width // 2, dtype=torch.float64)
    frequencies = (math.pi / 2 * settings.theta**exponents).float()
    position = torch.arange(length, dtype=torch.float32) / settings.max_position
    angles = (2 * position - 1)[:, None] * frequencies
    angles = angles.reshape(length, settings.heads, -1).transpose(0, 1).to(like.device)
    return angles.cos(), angles.sin()


def _apply_rope(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
