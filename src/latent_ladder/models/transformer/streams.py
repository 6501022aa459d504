"""One modality's way through the transformer: what a stage fixes, a step gives, a block changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.noise_levels import (
    Affine,
    Levels,
    Part,
    Run,
    add_gated,
    affine,
    clip_runs,
)
from latent_ladder.models.transformer.norms import rms_normed
from latent_ladder.models.transformer.pass_batching import Sublayer
from latent_ladder.models.transformer.rope import Rope
from latent_ladder.models.transformer.rope_tables import RopeShape, rope_table

MAX_RUNS = 64
"""Masks that change level more often along the tokens are sorted by level first."""


@dataclass(frozen=True)
class StreamStage:
    """What stays the same for a stream over all steps of a stage.

    ``contexts`` (contexts, L, D) is the text; ``bias`` (1 or B, 1, N, N) is added to
    self-attention scores; ``marked`` (1 or B, N, 1) is 1 for tokens that get the keyframe
    embedding; ``order`` (N,) is the internal order of the tokens, ``None`` the given one.
    """

    rope: Rope
    cross_rope: Rope
    levels: Levels
    contexts: Tensor
    bias: Tensor | None = None
    marked: Tensor | None = None
    order: Tensor | None = None


@dataclass(frozen=True)
class StreamInput:
    """One stream of a forward: ``tokens`` (B, N, C) at ``sigma`` (1,) or (B,).

    A disabled stream is not updated and still serves the other one. A frozen stream (given
    sound) has levels of zero and ``sigma`` zero.
    """

    stage: StreamStage
    tokens: Tensor
    sigma: Tensor
    enabled: bool = True

    def timesteps(self) -> Tensor:
        """Sigma of every noise level, (1 or B, U)."""
        return self.stage.levels.values * self.sigma[:, None]


def stream_stage(
    config: TransformerConfig,
    positions: Tensor,
    contexts: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    marked: Tensor | None = None,
) -> StreamStage:
    """What a stage fixes, for video (three position axes) or audio (one).

    ``positions`` (1 or B, axes, N, 2) bounds, ``contexts`` (contexts, L, D), ``mask`` (1 or B, N)
    or (1 or B, N, 1) noise levels in [0, 1] (``None``: all one), ``bias`` and ``marked`` as in
    :class:`StreamStage`.
    """
    stream = config.video if positions.shape[1] == 3 else config.audio
    tokens = positions.shape[2]
    order = None
    if mask is None:
        levels = Levels.uniform(tokens, positions.device)
    else:
        levels = Levels.of(mask)
        if len(levels.runs) > MAX_RUNS:
            index = torch.empty(tokens, dtype=torch.long)
            for start, stop, level in levels.runs:
                index[start:stop] = level
            order = index.argsort(stable=True).to(positions.device)
            levels = Levels.of(mask.reshape(len(mask), -1)[:, order])
            positions = positions[:, :, order]
            bias = None if bias is None else bias[:, :, order][:, :, :, order]
            marked = None if marked is None else marked[:, order]
    return StreamStage(
        rope=rope_table(positions, _rope_shape(config, stream, stream.dim)),
        cross_rope=rope_table(
            positions[:, :1], _rope_shape(config, config.audio, config.cross_dim)
        ),
        levels=levels,
        contexts=contexts,
        bias=bias,
        marked=marked,
        order=order,
    )


def _rope_shape(config: TransformerConfig, stream: StreamConfig, dim: int) -> RopeShape:
    max_pos = stream.max_pos
    return RopeShape(dim, stream.heads, max_pos, config.theta, config.float64_frequencies)


def attention_bias(mask: Tensor) -> Tensor:
    """A self-attention mask (B, N, N) in [0, 1] as an additive bias (B, 1, N, N): log(mask)."""
    # The least bfloat16 rather than -inf: a token that may see nothing must not become NaN.
    return mask.float().log().clamp_min(torch.finfo(torch.bfloat16).min)[:, None]


@dataclass
class StreamState:
    """The state of one stream inside a forward; ``inputs[j]`` is the batch item of row j."""

    x: Tensor
    stage: StreamStage
    inputs: tuple[int, ...]
    enabled: bool
    ada: Tensor
    embedded: Tensor
    cross: Tensor | None
    gate: Tensor | None
    prompt: Tensor | None
    context: Tensor

    def fork(self, sublayer: Sublayer) -> None:
        """Give every row of the sublayer its own residual."""
        if sublayer.source is not None:
            self.x = self.x[list(sublayer.source)]
            self.inputs = tuple(self.inputs[j] for j in sublayer.source)

    def rows_at_once(self, budget: int) -> int:
        """How many rows to compute together within ``budget`` tokens."""
        return len(self.x) if torch.is_grad_enabled() else max(1, budget // self.x.shape[1])

    def row_groups(self, budget: int) -> list[slice]:
        """All rows, as many together as fit ``budget`` tokens."""
        size = self.rows_at_once(budget)
        count = len(self.x)
        return [slice(j, min(j + size, count)) for j in range(0, count, size)]

    def parts(self, rows: slice, budget: int) -> Iterator[Part]:
        """Chunks of tokens of some rows, ``budget`` tokens in all."""
        count = rows.stop - rows.start
        tokens = self.x.shape[1]
        size = tokens if torch.is_grad_enabled() else max(1, budget // count)
        for start in range(0, tokens, size):
            yield Part(rows, slice(start, min(start + size, tokens)))

    def pick(self, per_item: Tensor, rows: slice) -> Tensor:
        """The entries (1 or B, ...) of the batch items behind ``rows``."""
        return pick(per_item, self.inputs[rows])

    def normed(self, part: Part, by: Affine, eps: float) -> Tensor:
        """RMS-normed and modulated residual, a new tensor."""
        x = rms_normed(self.x[part.rows, part.tokens], eps)
        scale, shift = (None if t is None else self.pick(t, part.rows) for t in by)
        return affine(x, Affine(scale, shift), list(clip_runs(self.stage.levels.runs, part.tokens)))

    def add(self, part: Part, delta: Tensor, gate: Tensor | None, whole: bool = False) -> None:
        """Add the gated ``delta`` to the residual; a ``whole`` gate is the same for all tokens."""
        if gate is not None:
            gate = self.pick(gate, part.rows)
        tokens = part.tokens.stop - part.tokens.start
        runs = [Run(0, tokens, 0)] if whole else clip_runs(self.stage.levels.runs, part.tokens)
        self.x = add_gated(self.x, part, delta, gate, list(runs))

    def rope(self, table: Rope, part: Part) -> Rope:
        """The rotation of a chunk."""
        return Rope(self.pick(table.tokens(part.tokens).turns, part.rows))

    def bias(self, part: Part) -> Tensor | None:
        """The self-attention bias of a chunk's queries."""
        if self.stage.bias is None:
            return None
        return self.pick(self.stage.bias, part.rows)[:, :, part.tokens].to(self.x.dtype)


def pick(per_item: Tensor, items: Sequence[int]) -> Tensor:
    if len(per_item) == 1:
        return per_item
    first = items[0]
    if list(items) == list(range(first, first + len(items))):
        return per_item[first : first + len(items)]
    return per_item[list(items)]
