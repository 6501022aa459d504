"""Text features for each stream: projection of Gemma's states, then a small transformer.

Two families, told apart by the projection's tensors: LTX-2.3 normalises each token and layer and
has one projection per stream; LTX-2.0 normalises each layer over the prompt and shares one.
The connectors fill the context behind the prompt with learnable registers. Own modules rather
than borrowed ones: only real tokens are projected, straight from the file's mapping, and no mask
is needed. Source: LTX-2, ``text_encoders/gemma`` (feature extractors, embeddings connector).
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
from latent_ladder.errors import UnknownLayout
from latent_ladder.models.network_configs import connector
from latent_ladder.models.weights.loading import load_module, tensor_readers
from latent_ladder.models.weights.quantized_tensor import read_float

EPS = 1e-6
THETA = 10000.0
"""Base of the connectors' rotary positions; the header's theta is the transformer's."""
SHARED = "aggregate_embed"
"""The one projection of LTX-2.0."""


# --- projection -----------------------------------------------------------------------------------


Features = dict[str, Tensor]
"""By stream, "video" and "audio": (n, D_stream) for the n tokens of one prompt."""


@torch.no_grad()
def project(hidden: Sequence[Tensor], projection: Component) -> list[Features]:
    """States (layers, n, D) of each prompt to its features, the weights read once for all.

    Each prompt has a product of its own: packed together, the last bits of one would depend on
    the others, and a resumed run must give the bits of an uninterrupted one. Device and dtype
    are those of ``hidden``. Raises :class:`UnknownLayout` when the projection was made for
    another text encoder.
    """
    if f"{SHARED}.weight" in projection:
        shared = _linear([_range_normalised(states) for states in hidden], projection, SHARED)
        return [{"video": features, "audio": features} for features in shared]
    packed = [_token_normalised(states) for states in hidden]
    width = hidden[0].shape[-1]
    video = _linear(packed, projection, f"video_{SHARED}", width)
    audio = _linear(packed, projection, f"audio_{SHARED}", width)
    return [{"video": v, "audio": a} for v, a in zip(video, audio, strict=True)]


def _token_normalised(hidden: Tensor) -> Tensor:
    """Root mean square 1 for every token of every layer; (n, D * layers), layers innermost."""
    return _packed(F.rms_norm(hidden.float(), hidden.shape[-1:], eps=EPS), hidden.dtype)


def _range_normalised(hidden: Tensor) -> Tensor:
    """8 * (x - mean) / (max - min) of every layer over the prompt; packed likewise."""
    x = hidden.float()
    layers = x.flatten(1)
    mean = layers.sum(1) / (layers.shape[1] + EPS)
    spread = layers.amax(1) - layers.amin(1) + EPS
    return _packed(8 * (x - mean[:, None, None]) / spread[:, None, None], hidden.dtype)


def _packed(states: Tensor, dtype: torch.dtype) -> Tensor:
    return states.to(dtype).permute(1, 2, 0).flatten(1)


def _linear(
    prompts: Sequence[Tensor], projection: Component, name: str, scaled_from: int | None = None
) -> list[Tensor]:
    """``states @ W.T + b`` of each prompt; states times sqrt(out / ``scaled_from``) if given.

    The factor is applied inside the product, so neither states nor W are copied for it.
    """
    like = prompts[0]
    weight = read_float(projection, f"{name}.weight", like.dtype).to(like.device)
    if weight.shape[1] != like.shape[1]:
        raise UnknownLayout(
            f"{projection.file.path.name}: its text projection takes {weight.shape[1]} numbers "
            f"per token, the text encoder gives {like.shape[1]}",
            "use the text encoder that the checkpoint was trained with (Gemma 3 12B)",
        )
    scale = math.sqrt(weight.shape[0] / scaled_from) if scaled_from else 1.0
    start, bias = like.new_zeros(()), f"{name}.bias"
    if bias in projection:
        start = read_float(projection, bias, like.dtype).to(like.device)
    return [torch.addmm(start, states, weight.T, alpha=scale) for states in prompts]


# --- connectors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConnectorSettings:
    """Sizes of one connector, and the scale and base of its rotary positions."""

    width: int
    heads: int
    layers: int
    registers: int
    gated: bool
    max_position: float
    theta: float


def connector_settings(connectors: Component, stream: str) -> ConnectorSettings:
    """Settings of one ``stream``, "video" or "audio", from shapes and header.

    Raises :class:`UnknownLayout` where the number of heads is in neither, or the rotary positions
    are not those of LTX-2.0 and LTX-2.3.
    """
    found = connector(connectors.shapes(), connectors.config, stream)
    if connectors.config.get("rope_type", "split") != "split":
        raise UnknownLayout(
            f"{connectors.file.path.name}: text connectors with rotation "
            f"{connectors.config['rope_type']!r}, known is 'split'",
            "known are the connectors of LTX-2.0 and LTX-2.3",
        )
    return ConnectorSettings(
        width=found.heads * found.head_dim,
        heads=found.heads,
        layers=found.layers,
        registers=found.registers,
        gated=found.gated,
        max_position=connectors.config.get("connector_positional_embedding_max_pos", [4096])[0],
        theta=THETA,
    )


def load_connector(
    connectors: Component, stream: str, *, device: torch.device | str, dtype: torch.dtype
) -> Connector:
    """Load the connector of one ``stream``, "video" or "audio"."""
    prefix = f"{stream}_embeddings_connector."
    return load_module(
        partial(Connector, connector_settings(connectors, stream)),
        tensor_readers(connectors, prefix),
        device=device,
        dtype=dtype,
        label=f"{connectors.file.path.name} ({stream} text connector)",
    )


class Connector(nn.Module):
    """Transformer over the whole context: prompt tokens first, registers behind them."""

    def __init__(self, settings: ConnectorSettings) -> None:
        super().__init__()
        self.settings = settings
        self.learnable_registers = nn.Parameter(torch.empty(settings.registers, settings.width))
        self.transformer_1d_blocks = nn.ModuleList(_Block(settings) for _ in range(settings.layers))

    def forward(self, features: Tensor, length: int) -> Tensor:
        """Features (n, D) of a prompt to its context (1, ``length``, D).

        Register ``i mod registers`` stands at each position ``i`` behind the prompt. Raises
        :class:`UnknownLayout` unless ``length`` is a multiple of the number of registers.
        """
        if length % self.settings.registers:
            raise UnknownLayout(
                f"a text context of {length} tokens, with {self.settings.registers} registers it "
                "must be a multiple of them",
                "the text encoder's `text_length` does not fit the checkpoint's connectors",
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
    """Self-attention with norms over the full width, rotation per head and output gates."""

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
        q = _rotated(self._split(self.q_norm(self.to_q(x))), rotation)
        k = _rotated(self._split(self.k_norm(self.to_k(x))), rotation)
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
        # Named as in the files: net.0.proj and net.2.
        self.net = nn.ModuleDict({"0": _Projected(width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net["2"](self.net["0"](x))
        return y


class _Projected(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


def _rms(x: Tensor) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], eps=EPS)


def _rotation(settings: ConnectorSettings, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin (heads, L, head_dim / 2); the frequency grid is float64, the angles float32."""
    exponents = torch.linspace(0, 1, settings.width // 2, dtype=torch.float64)
    frequencies = (math.pi / 2 * settings.theta**exponents).float()
    position = torch.arange(length, dtype=torch.float32) / settings.max_position
    angles = (2 * position - 1)[:, None] * frequencies
    angles = angles.reshape(length, settings.heads, -1).transpose(0, 1).to(like.device)
    return angles.cos(), angles.sin()


def _rotated(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = rotation
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
