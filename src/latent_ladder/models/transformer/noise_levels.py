"""Noise levels of a stream's tokens, and per-level scale, shift and gate applied to them.

A stream's tokens have few distinct noise levels (two for image-to-video: the kept frame and the
rest), so the modulation that the reference holds per token is held per level here and applied to
runs of tokens with the same level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Run(NamedTuple):
    """Tokens ``start`` to ``stop`` have noise level number ``level``."""

    start: int
    stop: int
    level: int


@dataclass(frozen=True)
class Levels:
    """The noise levels of a stream's tokens: a token's sigma is its level times the step's sigma.

    ``values`` (1 or B, U) float32: the distinct levels, per batch item where they differ.
    """

    values: Tensor
    runs: tuple[Run, ...]

    @classmethod
    def uniform(cls, tokens: int, device: torch.device | str = "cpu") -> Levels:
        """Every token at the full sigma."""
        return cls(torch.ones(1, 1, device=device), (Run(0, tokens, 0),))

    @classmethod
    def of(cls, mask: Tensor) -> Levels:
        """From a denoise mask (B, N) or (B, N, 1) with values in [0, 1]."""
        mask = mask.detach().float().reshape(mask.shape[0], -1)
        values, index = torch.unique(mask, dim=1, return_inverse=True)
        steps = (torch.nonzero(index[1:] != index[:-1]).flatten() + 1).tolist()
        starts, stops = [0, *steps], [*steps, len(index)]
        return cls(values, tuple(map(Run, starts, stops, index[starts].tolist())))

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return self.runs[-1].stop


def clip_runs(runs: Sequence[Run], part: slice) -> Iterator[Run]:
    """The runs inside ``part`` of the tokens, counted from its start."""
    for start, stop, level in runs:
        first, last = max(start, part.start), min(stop, part.stop)
        if first < last:
            yield Run(first - part.start, last - part.start, level)


class Affine(NamedTuple):
    """``x * scale + shift`` per level: both (1 or rows, U, D); ``None`` leaves ``x`` alone."""

    scale: Tensor | None
    shift: Tensor | None


def affine(normed: Tensor, by: Affine, runs: Sequence[Run]) -> Tensor:
    """Apply ``by`` to ``normed`` (rows, N, D), whose memory is reused outside of autograd."""
    scale, shift = by
    if scale is None or shift is None:
        return normed
    if torch.is_grad_enabled():
        return _joined(
            torch.addcmul(shift[:, u, None], normed[:, a:b], scale[:, u, None]) for a, b, u in runs
        )
    for a, b, u in runs:
        part = normed[:, a:b]
        torch.addcmul(shift[:, u, None], part, scale[:, u, None], out=part)
    return normed


class Part(NamedTuple):
    """A block of rows and tokens of a residual stream (rows, N, D)."""

    rows: slice
    tokens: slice


def add_gated(
    x: Tensor, part: Part, delta: Tensor, gate: Tensor | None, runs: Sequence[Run]
) -> Tensor:
    """``x[part] += gate * delta``; ``gate`` (1 or rows, U, D) per level, ``None`` is one.

    In place outside of autograd, else a new tensor. ``runs`` count from the start of ``part``.
    """
    if not torch.is_grad_enabled():
        _add_gated(x[part.rows, part.tokens], delta, gate, runs)
        return x
    if delta.shape == x.shape:
        if gate is None:
            return x + delta
        return _joined(
            torch.addcmul(x[:, a:b], delta[:, a:b], gate[:, u, None]) for a, b, u in runs
        )
    x = x.clone()
    _add_gated(x[part.rows, part.tokens], delta, gate, runs)
    return x


def _add_gated(x: Tensor, delta: Tensor, gate: Tensor | None, runs: Sequence[Run]) -> None:
    if gate is None:
        x.add_(delta)
        return
    for a, b, u in runs:
        x[:, a:b].addcmul_(delta[:, a:b], gate[:, u, None])


def _joined(parts: Iterator[Tensor]) -> Tensor:
    tensors = list(parts)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors, 1)
