"""Networks of the pixel diffusion decoder; modules are named as in the checkpoints.

A block is attention to a window and a gated feed-forward. It works on frames that stream through
it (:mod:`frame_stream`), in bands of rows, so that its memory does not depend on the clip and
hardly on the size of a frame. Source: LTX-2 ``NADiffusionDecoder``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.models.diffusion_decoder_config import (
    BAND_VALUES,
    BAND_VALUES_ELSEWHERE,
    DiffusionDecoderConfig,
    Size,
    band_rows,
    window_range,
)
from latent_ladder.models.video_vae.window_attention import (
    Box,
    apply_rope,
    window_attention,
)

EPS = 1e-6
MODULATIONS = 7
"""Scale, shift and gate of attention, the same of the feed-forward, gate of the context. The gates
are not used: they are part of the weights."""


class Modulation(NamedTuple):
    """Scale and shift (C,) of the inputs of attention and feed-forward."""

    scale: Tensor
    shift: Tensor
    ff_scale: Tensor
    ff_shift: Tensor


class FrameWindow(NamedTuple):
    """Frames (H, W, C) that the windows of some queries reach, and where both are in the clip.

    ``first`` is the position of the first frame, ``start`` and ``stop`` those of the queries.
    """

    frames: Sequence[Tensor]
    first: int
    start: int
    stop: int


class NaBlock(nn.Module):
    """Block of a deterministic stage."""

    def __init__(self, config: DiffusionDecoderConfig, stage: int) -> None:
        super().__init__()
        width = config.channels[stage]
        self.kernel = config.kernels[stage]
        self.norm1 = nn.RMSNorm(width, eps=EPS)
        self.attn = _Attention(width, config.head_dim)
        self.norm2 = nn.RMSNorm(width, eps=EPS)
        self.mlp = _Mlp(width, config.inner[stage])

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Residual stream of new frames (n, H, W, C) before the block."""
        del context
        return x

    def forward(
        self, window: FrameWindow, grid: Size, modulation: Modulation | None, device: torch.device
    ) -> Tensor:
        """Residual stream (n, H, W, C) of the queries after the block.

        ``grid`` is the size of the whole clip. The frames may be on another device, to which the
        result returns; ``device`` computes.
        """
        _, height, _ = grid
        like = window.frames[0]
        out = like.new_empty((window.stop - window.start, *like.shape))
        for top, bottom in self._bands(window, height):
            out[:, top:bottom] = self._band(window, grid, (top, bottom), modulation, device)
        return out

    def _bands(self, window: FrameWindow, height: int) -> list[tuple[int, int]]:
        frame = window.frames[0]
        device = self.norm1.weight.device.type
        budget = BAND_VALUES.get(device, BAND_VALUES_ELSEWHERE)
        rows = band_rows(budget, len(window.frames) * frame[0].numel(), self.kernel[1])
        return [(top, min(top + rows, height)) for top in range(0, height, rows)]

    def _band(
        self,
        window: FrameWindow,
        grid: Size,
        band: tuple[int, int],
        modulation: Modulation | None,
        device: torch.device,
    ) -> Tensor:
        """Result of the rows ``band`` of the queries."""
        top, bottom = band
        above, below = window_range(top, bottom, grid[1], self.kernel[1])
        x = torch.stack([frame[above:below].to(device) for frame in window.frames])
        keys = Box((window.first, above, 0), (len(x), below - above, grid[2]))
        queries = Box((window.start, top, 0), (window.stop - window.start, bottom - top, grid[2]))
        at = tuple(
            slice(a - b, a - b + n)
            for a, b, n in zip(queries.first, keys.first, queries.size, strict=True)
        )
        scale, shift, ff_scale, ff_shift = modulation or (None,) * 4
        y = _modulate(self.norm1(x), scale, shift)
        x = x[at] + cast(Tensor, self.attn(y, at, self.kernel, grid, (queries, keys)))
        del y
        change: Tensor = self.mlp(_modulate(self.norm2(x), ff_scale, ff_shift))
        return x + change


class DiffusionBlock(NaBlock):
    """Block of the diffusion part: it also reads the context, and is modulated by the time."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__(config, len(config.channels) - 1)
        width = config.channels[-1]
        self.context_proj = nn.Linear(width, width)
        self.scale_shift_table = nn.Parameter(torch.empty(MODULATIONS, width))

    def prepare(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Residual stream of new frames (n, H, W, C) with their context added, on this device."""
        if context is None:
            raise ValueError("a diffusion block needs a context")
        device = self.scale_shift_table.device
        return x.to(device) + cast(Tensor, self.context_proj(context.to(device)))

    def modulation(self, chunks: Tensor) -> Modulation:
        """Modulation of this block from the shared ``chunks`` (7, C)."""
        rows = (chunks + self.scale_shift_table).unbind(0)
        return Modulation(rows[0], rows[1], rows[3], rows[4])


def _modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


class _Attention(nn.Module):
    """Attention of positions to the window around them."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(head_dim, eps=EPS)
        self.k_norm = nn.RMSNorm(head_dim, eps=EPS)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, at: tuple[slice, ...], kernel: Size, grid: Size, boxes: tuple[Box, Box]
    ) -> Tensor:
        """Outputs for the part ``at`` of ``x`` (T, H, W, C), the keys are all of it."""
        width = x.shape[-1]
        weight, bias = self.qkv.weight, self.qkv.bias
        q = self._heads(F.linear(x[at], weight[:width], bias[:width]))
        k, v = F.linear(x, weight[width:], bias[width:]).split(width, -1)
        q = apply_rope(self.q_norm(q), boxes[0].first)
        k = apply_rope(self.k_norm(self._heads(k)), boxes[1].first)
        y = window_attention(q, k, self._heads(v), kernel, grid, boxes, self.head_dim**-0.5)
        out: Tensor = self.proj(y.flatten(3))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_gate = nn.Linear(width, inner, bias=False)
        self.w_up = nn.Linear(width, inner, bias=False)
        self.w_down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.w_down(F.silu(self.w_gate(x)).mul_(self.w_up(x)))
        return y


class Upsampling(nn.Module):
    """Linear layer whose channels become positions in time, rows and columns."""

    def __init__(self, config: DiffusionDecoderConfig, stage: int) -> None:
        super().__init__()
        self.stride = config.strides[stage]
        gain = math.prod(self.stride)
        self.proj = nn.Linear(config.channels[stage], config.channels[stage + 1] * gain)

    def forward(self, x: Tensor) -> Tensor:
        """(n, H, W, C) to (n * t, H * h, W * w, C'); the clip's first frame is not dropped here."""
        n, height, width, _ = x.shape
        t, h, w = self.stride
        y = cast(Tensor, self.proj(x)).view(n, height, width, -1, t, h, w)
        return y.permute(0, 4, 1, 5, 2, 6, 3).reshape(n * t, height * h, width * w, -1)


class TimeEmbedding(nn.Module):
    """Embedding of the time t of the diffusion: 256 frequencies, two layers."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.frequency_dim, self.scale = config.frequency_dim, config.time_scale
        # Named as in the checkpoints: mlp.0 and mlp.2.
        self.mlp = nn.ModuleDict(
            {
                "0": nn.Linear(config.frequency_dim, config.time_dim),
                "2": nn.Linear(config.time_dim, config.time_dim),
            }
        )

    def forward(self, t: float) -> Tensor:
        """Embedding (time_dim,) of ``t`` in 0..1."""
        weight = cast(Tensor, self.mlp["0"].weight)
        half = self.frequency_dim // 2
        exponents = torch.arange(half, dtype=torch.float32, device=weight.device) / half
        angles = t * self.scale * torch.exp(-math.log(10_000.0) * exponents)
        waves = torch.cat((angles.cos(), angles.sin())).to(weight.dtype)
        return cast(Tensor, self.mlp["2"](F.silu(self.mlp["0"](waves))))


class SharedAdaLn(nn.Module):
    """Modulation that all diffusion blocks share."""

    def __init__(self, config: DiffusionDecoderConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.time_dim, MODULATIONS * config.channels[-1])

    def forward(self, embedding: Tensor) -> Tensor:
        """Chunks (7, C) for a time embedding (time_dim,)."""
        return cast(Tensor, self.proj(F.silu(embedding))).view(MODULATIONS, -1)
