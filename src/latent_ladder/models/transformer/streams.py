"""Streams (video, audio) of the transformer: per-stage constants, per-step inputs, block state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from latent_ladder.models.transformer.attention import NagScales
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.fused import norm_modulate
from latent_ladder.models.transformer.noise_levels import (
    Affine,
    LevelRun,
    NoiseLevels,
    TokenChunk,
    add_gated,
    apply_affine,
    clip_runs,
)
from latent_ladder.models.transformer.norms import rms_norm
from latent_ladder.models.transformer.pass_batching import SublayerRows
from latent_ladder.models.transformer.rope import RopeTable
from latent_ladder.models.transformer.rope_tables import RopeConfig, build_rope_table

MAX_RUNS = 64
"""Tokens of a mask with more runs of equal noise level are sorted by level."""


@dataclass(frozen=True)
class Nag:
    """Normalized attention guidance of a stream away from the text ``context`` (1, L, D)."""

    context: Tensor
    scales: NagScales


class NagState(NamedTuple):
    """NAG during a forward: the projected ``context`` (1, L, D) of the negative prompt.

    ``applies[k]``: rows that attend to text keys k are guided. Rows of the negative prompt itself
    are not.
    """

    context: Tensor
    nag: NagScales
    applies: tuple[bool, ...]


@dataclass(frozen=True)
class GuideBias:
    """Self-attention bias between a clip and its guide tokens, without storing N x N values.

    ``log_weight`` (N,) is the logarithm of each guide token's weight, 0 for tokens of the clip;
    ``guide`` (N,) is 1 for guide tokens. A clip token attends to a guide token, and a guide token
    to a clip token, with the guide token's weight.
    """

    log_weight: Tensor
    guide: Tensor

    @classmethod
    def of_weights(cls, weights: Tensor, guide: Tensor) -> GuideBias:
        """Build the bias from ``weights`` (N,) and ``guide`` (N,); weight 0 is no attention."""
        return cls(_log_weight(weights) * guide.float(), guide.float())

    def select(self, index: Tensor | slice) -> GuideBias:
        """Select tokens."""
        return GuideBias(self.log_weight[index], self.guide[index])

    def rows(self, tokens: slice) -> Tensor:
        """The bias (1, 1, tokens, N) of some queries."""
        weight, guide = self.log_weight, self.guide
        clip_queries = (1 - guide[tokens])[:, None] * weight[None]
        guide_queries = weight[tokens][:, None] * (1 - guide)[None]
        return (clip_queries + guide_queries)[None, None]


@dataclass(frozen=True)
class PreparedStream:
    """Constants of a stream over all steps of a stage; made by :func:`prepare_stream`.

    ``rope`` and ``cross_rope`` are the rotation tables of self- and audio-video attention.
    ``contexts`` (contexts, L, D) are the text contexts. ``bias`` (1 or B, 1, N, N) is added to
    self-attention scores. ``keyframe_mask`` (1 or B, N, 1) is 1 for tokens that get the keyframe
    embedding. ``order`` (N,) is the internal token order, ``None`` for the order of the input.
    ``nag`` guides text attention.
    """

    rope: RopeTable
    cross_rope: RopeTable
    levels: NoiseLevels
    contexts: Tensor
    bias: Tensor | GuideBias | None = None
    keyframe_mask: Tensor | None = None
    order: Tensor | None = None
    nag: Nag | None = None


@dataclass(frozen=True)
class StreamInput:
    """Input of one stream to a forward: ``tokens`` (B, N, C) at ``sigma`` (1,) or (B,).

    A stream that is not ``enabled`` is not updated, but the other stream attends to it. A frozen
    stream (existing audio) has noise levels of zero and ``sigma`` zero.
    """

    prepared: PreparedStream
    tokens: Tensor
    sigma: Tensor
    enabled: bool = True

    def timesteps(self) -> Tensor:
        """Sigma of each noise level, (1 or B, U)."""
        return self.prepared.levels.values * self.sigma[:, None]


def prepare_stream(
    config: TransformerConfig,
    positions: Tensor,
    contexts: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | GuideBias | None = None,
    keyframe_mask: Tensor | None = None,
    nag: Nag | None = None,
) -> PreparedStream:
    """Compute the constants of a video stream (three position axes) or audio stream (one axis).

    ``positions`` (1 or B, axes, N, 2): intervals, see :mod:`rope_tables`. ``contexts``
    (contexts, L, D): text contexts. ``mask`` (1 or B, N) or (1 or B, N, 1): noise levels in
    [0, 1], ``None`` for all 1. ``bias``, ``keyframe_mask``, ``nag``: as in
    :class:`PreparedStream`. Raises ``ValueError`` for a video without ``keyframe_mask`` if the
    transformer marks keyframes: the first latent frame is marked in every run.
    """
    is_video = positions.shape[1] == 3
    if is_video and config.keyframe_embedding and keyframe_mask is None:
        raise ValueError("this transformer marks keyframes, but there is no mask of them")
    stream = config.video if is_video else config.audio
    tokens = positions.shape[2]
    order = None
    if mask is None:
        levels = NoiseLevels.uniform(tokens, positions.device)
    else:
        levels = NoiseLevels.from_mask(mask)
        if len(levels.runs) > MAX_RUNS:
            index = torch.empty(tokens, dtype=torch.long)
            for start, stop, level in levels.runs:
                index[start:stop] = level
            order = index.argsort(stable=True).to(positions.device)
            levels = NoiseLevels.from_mask(mask.reshape(len(mask), -1)[:, order])
            positions = positions[:, :, order]
            bias = select_bias(bias, order)
            keyframe_mask = None if keyframe_mask is None else keyframe_mask[:, order]
    return PreparedStream(
        rope=build_rope_table(positions, _rope_config(config, stream, stream.dim)),
        cross_rope=build_rope_table(
            positions[:, :1], _rope_config(config, config.audio, config.cross_dim)
        ),
        levels=levels,
        contexts=contexts,
        bias=bias,
        keyframe_mask=keyframe_mask,
        order=order,
        nag=nag,
    )


def select_bias(bias: Tensor | GuideBias | None, index: Tensor) -> Tensor | GuideBias | None:
    """The self-attention bias of the tokens ``index`` (n,) among themselves."""
    if isinstance(bias, Tensor):
        return bias[:, :, index][:, :, :, index]
    return None if bias is None else bias.select(index)


def _rope_config(config: TransformerConfig, stream: StreamConfig, dim: int) -> RopeConfig:
    max_pos = stream.max_pos
    return RopeConfig(dim, stream.heads, max_pos, config.theta, config.float64_frequencies)


def attention_bias(mask: Tensor) -> Tensor:
    """Convert a self-attention mask (B, N, N) in [0, 1] to an additive bias log(mask).

    The bias is (B, 1, N, N).
    """
    return _log_weight(mask)[:, None]


def _log_weight(weights: Tensor) -> Tensor:
    # The smallest bfloat16 instead of -inf: a token that attends to nothing must not become NaN.
    return weights.float().log().clamp_min(torch.finfo(torch.bfloat16).min)


@dataclass
class StreamState:
    """State of one stream during a forward.

    ``x`` (rows, N, D): residual stream. ``items[j]``: batch item of row j. ``ada``, ``cross``,
    ``gate``, ``prompt``: outputs of the modulation networks (of the stream, of audio-video
    attention and its gate, of the prompt). ``embedded``: timestep embedding for the output layer.
    ``fused``: use the kernels of :mod:`.fused`.
    """

    x: Tensor
    prepared: PreparedStream
    items: tuple[int, ...]
    enabled: bool
    ada: Tensor
    embedded: Tensor
    cross: Tensor | None
    gate: Tensor | None
    prompt: Tensor | None
    context: Tensor
    fused: bool = False
    nag: NagState | None = None

    def split_rows(self, sublayer: SublayerRows) -> None:
        """Copy residuals so that each row of the sublayer has its own."""
        if sublayer.source is not None:
            self.x = pick_rows(self.x, sublayer.source)
            self.items = tuple(self.items[j] for j in sublayer.source)

    def rows_per_chunk(self, budget: int) -> int:
        """Number of rows computed together with at most ``budget`` tokens; all under autograd."""
        return len(self.x) if torch.is_grad_enabled() else max(1, budget // self.x.shape[1])

    def is_one_chunk(self, budget: int) -> bool:
        """True if all tokens of all rows are computed together."""
        return torch.is_grad_enabled() or len(self.x) * self.x.shape[1] <= budget

    def row_chunks(self, budget: int) -> list[slice]:
        """Split all rows into chunks of at most ``budget`` tokens."""
        size = self.rows_per_chunk(budget)
        count = len(self.x)
        return [slice(j, min(j + size, count)) for j in range(0, count, size)]

    def chunks(self, rows: slice, budget: int) -> Iterator[TokenChunk]:
        """Split the tokens of ``rows`` into chunks of at most ``budget`` tokens over all rows."""
        count = rows.stop - rows.start
        tokens = self.x.shape[1]
        size = tokens if torch.is_grad_enabled() else max(1, budget // count)
        for start in range(0, tokens, size):
            yield TokenChunk(rows, slice(start, min(start + size, tokens)))

    def select_items(self, per_item: Tensor, rows: slice) -> Tensor:
        """Select the entries of ``per_item`` (1 or B, ...) for the batch items of ``rows``."""
        return select_items(per_item, self.items[rows])

    def normalise(self, chunk: TokenChunk, modulation: Affine, eps: float) -> Tensor:
        """RMS-normalise and modulate a chunk of the residual; returns a new tensor."""
        x = self.x[chunk.rows, chunk.tokens]
        scale, shift = (None if t is None else self.select_items(t, chunk.rows) for t in modulation)
        runs = list(clip_runs(self.prepared.levels.runs, chunk.tokens))
        if self.fused and scale is not None and shift is not None and not torch.is_grad_enabled():
            out = torch.empty_like(x, memory_format=torch.contiguous_format)
            for a, b, u in runs:
                norm_modulate(x[:, a:b], scale[:, u], shift[:, u], eps, out[:, a:b])
            return out
        return apply_affine(rms_norm(x, eps), Affine(scale, shift), runs)

    def add(
        self, chunk: TokenChunk, delta: Tensor, gate: Tensor | None, shared_gate: bool = False
    ) -> None:
        """Add ``delta`` times ``gate`` to the residual.

        The gate has one entry per noise level; with ``shared_gate``, one for all tokens.
        """
        if gate is not None:
            gate = self.select_items(gate, chunk.rows)
        tokens = chunk.tokens.stop - chunk.tokens.start
        runs = (
            [LevelRun(0, tokens, 0)]
            if shared_gate
            else clip_runs(self.prepared.levels.runs, chunk.tokens)
        )
        self.x = add_gated(self.x, chunk, delta, gate, list(runs))

    def rope_chunk(self, table: RopeTable, chunk: TokenChunk) -> RopeTable:
        """Select the rotations of a chunk of tokens."""
        return RopeTable(self.select_items(table.select_tokens(chunk.tokens).rotation, chunk.rows))

    def bias_chunk(self, chunk: TokenChunk) -> Tensor | None:
        """Self-attention bias of a chunk's queries, ``None`` if there is none."""
        bias = self.prepared.bias
        if bias is None:
            return None
        if isinstance(bias, GuideBias):
            return bias.rows(chunk.tokens).to(self.x.dtype)
        return self.select_items(bias, chunk.rows)[:, :, chunk.tokens].to(self.x.dtype)


def select_items(per_item: Tensor, items: Sequence[int]) -> Tensor:
    """Select entries of ``per_item`` (1 or B, ...) by batch item, as a view where possible."""
    if len(per_item) == 1:
        return per_item
    first = items[0]
    if list(items) == list(range(first, first + len(items))):
        return per_item[first : first + len(items)]
    return pick_rows(per_item, items)


def pick_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    """Copy of the given rows. An index would be copied to the device, for which the host waits."""
    return torch.stack([x[row] for row in rows])
