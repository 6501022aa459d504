"""Noise levels of tokens, and scale, shift and gate applied to tokens by their noise level.

The tokens of a stream have few distinct noise levels (two for image-to-video: the conditioning
frame and the others). The reference stores modulation per token; here it is stored per level and
applied to runs of consecutive tokens with the same level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class LevelRun(NamedTuple):
    """Run of tokens ``start`` to ``stop`` with the noise level of index ``level``."""

    start: int
    stop: int
    level: int


@dataclass(frozen=True)
class NoiseLevels:
    """Noise levels of a stream's tokens; a token's sigma is its level times the step's sigma.

    ``values`` (1 or B, U) float32: the distinct levels, per batch item if they differ.
    ``runs``: consecutive tokens of one level, in order, covering all tokens.
    """

    values: Tensor
    runs: tuple[LevelRun, ...]

    @classmethod
    def uniform(cls, tokens: int, device: torch.device | str = "cpu") -> NoiseLevels:
        """All ``tokens`` at level 1 (the full sigma)."""
        return cls(torch.ones(1, 1, device=device), (LevelRun(0, tokens, 0),))

    @classmethod
    def from_mask(cls, mask: Tensor) -> NoiseLevels:
        """Find the levels of a denoise mask (B, N) or (B, N, 1) with values in [0, 1]."""
        mask = mask.detach().float().reshape(mask.shape[0], -1)
        values, index = torch.unique(mask, dim=1, return_inverse=True)
        steps = (torch.nonzero(index[1:] != index[:-1]).flatten() + 1).tolist()
        starts, stops = [0, *steps], [*steps, len(index)]
        return cls(values, tuple(map(LevelRun, starts, stops, index[starts].tolist())))

    @property
    def tokens(self) -> int:
        """Number of tokens N."""
        return self.runs[-1].stop


def clip_runs(runs: Sequence[LevelRun], chunk: slice) -> Iterator[LevelRun]:
    """Clip ``runs`` to the token range ``chunk``; positions count from the start of ``chunk``."""
    for start, stop, level in runs:
        first, last = max(start, chunk.start), min(stop, chunk.stop)
        if first < last:
            yield LevelRun(first - chunk.start, last - chunk.start, level)


class Affine(NamedTuple):
    """Scale and shift per noise level, (1 or rows, U, D) each; both ``None`` for no change."""

    scale: Tensor | None
    shift: Tensor | None


def apply_affine(x: Tensor, modulation: Affine, runs: Sequence[LevelRun]) -> Tensor:
    """Compute ``x * scale + shift`` for ``x`` (rows, N, D); in place without autograd."""
    scale, shift = modulation
    if scale is None or shift is None:
        return x
    if torch.is_grad_enabled():
        return _concat(
            torch.addcmul(shift[:, u, None], x[:, a:b], scale[:, u, None]) for a, b, u in runs
        )
    for a, b, u in runs:
        chunk = x[:, a:b]
        torch.addcmul(shift[:, u, None], chunk, scale[:, u, None], out=chunk)
    return x


class TokenChunk(NamedTuple):
    """Range of rows and of tokens in a residual stream (rows, N, D)."""

    rows: slice
    tokens: slice


def add_gated(
    x: Tensor, chunk: TokenChunk, delta: Tensor, gate: Tensor | None, runs: Sequence[LevelRun]
) -> Tensor:
    """Compute ``x[chunk] += gate * delta``; ``gate`` (1 or rows, U, D) per level, ``None`` for 1.

    In place without autograd, otherwise a new tensor. ``runs`` count from the start of ``chunk``.
    """
    if not torch.is_grad_enabled():
        _add_gated(x[chunk.rows, chunk.tokens], delta, gate, runs)
        return x
    if delta.shape == x.shape:
        if gate is None:
            return x + delta
        return _concat(
            torch.addcmul(x[:, a:b], delta[:, a:b], gate[:, u, None]) for a, b, u in runs
        )
    x = x.clone()
    _add_gated(x[chunk.rows, chunk.tokens], delta, gate, runs)
    return x


def _add_gated(x: Tensor, delta: Tensor, gate: Tensor | None, runs: Sequence[LevelRun]) -> None:
    if gate is None:
        x.add_(delta)
        return
    for a, b, u in runs:
        x[:, a:b].addcmul_(delta[:, a:b], gate[:, u, None])


def _concat(parts: Iterator[Tensor]) -> Tensor:
    tensors = list(parts)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, 1)
