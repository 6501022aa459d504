"""Guidance: the passes of the transformer that a step needs, and the combination of them.

Every term pushes the conditioned prediction c away from a worse one, on x0 predictions::

    pred = c + (cfg - 1) (c - uncond) + stg (c - perturbed) + (modality - 1) (c - isolated)
    pred = pred * (rescale * std(c) / std(pred) + 1 - rescale)

This module knows no transformer: the denoiser perturbs and isolates passes.
Source: LTX-2 ``MultiModalGuider``; CFG arXiv 2207.12598, rescale 2305.08891, STG 2411.18664.

>>> passes_needed(Guidance(cfg=3.0), Guidance(), sigma=0.5)
(<Pass.COND: 'cond'>, <Pass.UNCOND: 'uncond'>)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Pass(Enum):
    """One forward of the transformer at a step."""

    COND = "cond"
    """the prompt"""
    UNCOND = "uncond"
    """the negative prompt, for both streams"""
    PERTURBED = "perturbed"
    """the prompt, self-attention of ``stg_blocks`` replaced by its value projection"""
    ISOLATED = "isolated"
    """the prompt, no attention between video and audio"""


@dataclass(frozen=True)
class Guidance:
    """Strength of the guidance of one stream, video or audio. The defaults mean no guidance.

    The terms apply while ``sigma_low <= sigma <= sigma_high``; outside the prediction is the
    conditioned one. ``stg_range`` and ``modality_range`` (low, high] narrow that for their own
    term. ``cfg_star`` scales the unconditioned prediction to its projection on the conditioned one
    (CFG-Zero*, arXiv 2503.18886). ``skip_step`` k evaluates the stream only at every (k+1)-th step.
    """

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] = ()
    skip_step: int = 0
    sigma_high: float = math.inf
    sigma_low: float = 0.0
    stg_range: tuple[float, float] | None = None
    modality_range: tuple[float, float] | None = None
    cfg_star: bool = False


def weights(g: Guidance, sigma: float) -> dict[Pass, float]:
    """The weight of ``c - prediction`` for each pass used at ``sigma``, without zeros."""
    if not g.sigma_low <= sigma <= g.sigma_high:
        return {}
    terms = {Pass.UNCOND: g.cfg - 1.0, Pass.PERTURBED: g.stg, Pass.ISOLATED: g.modality - 1.0}
    ranges = {Pass.PERTURBED: g.stg_range, Pass.ISOLATED: g.modality_range}
    return {p: w for p, w in terms.items() if w != 0.0 and _within(ranges.get(p), sigma)}


def _within(bounds: tuple[float, float] | None, sigma: float) -> bool:
    return bounds is None or bounds[0] < sigma <= bounds[1]


def passes_needed(
    video: Guidance | None, audio: Guidance | None, sigma: float, force_uncond: bool = False
) -> tuple[Pass, ...]:
    """The passes of one step in the order of ``Pass``, ``COND`` first; ``None`` = stream absent.

    A pass runs once if either stream needs it. ``force_uncond`` is for CFG++ samplers, which use
    the negative prompt at every sigma and even at cfg = 1.
    """
    wanted = {Pass.COND, *([Pass.UNCOND] if force_uncond else [])}
    for g in (video, audio):
        if g is not None:
            wanted |= weights(g, sigma).keys()
    return tuple(p for p in Pass if p in wanted)


def combine(predictions: Mapping[Pass, Tensor], g: Guidance, sigma: float) -> Tensor:
    """The guided x0 prediction ``(B, N, C)`` of one stream, float32.

    ``predictions`` holds the x0 predictions of at least the passes that ``g`` weighs at ``sigma``.
    The rescale takes the standard deviation of each sample over all its tokens, conditioning
    tokens included.
    """
    c = predictions[Pass.COND].float()
    terms = weights(g, sigma)
    if not terms:
        return c
    pred = c
    for p, w in terms.items():
        other = predictions[p].float()
        if g.cfg_star and p is Pass.UNCOND:
            other = _project(c, other)
        pred = pred + w * (c - other)
    return _rescale(pred, c, g.rescale) if g.rescale else pred


def _project(c: Tensor, u: Tensor) -> Tensor:
    """``u`` scaled to be nearest to ``c``, sample by sample."""
    dims = tuple(range(1, c.ndim))
    share = (c * u).sum(dims, keepdim=True) / (u.square().sum(dims, keepdim=True) + 1e-8)
    return share * u


def _rescale(pred: Tensor, c: Tensor, r: float) -> Tensor:
    dims = tuple(range(1, pred.ndim))
    std_pred = pred.std(dims, correction=0, keepdim=True)
    std_c = c.std(dims, correction=0, keepdim=True)
    # a constant prediction has no contrast to restore
    ratio = (std_c / std_pred).where(std_pred > 0, 1.0)
    return pred * (r * ratio + (1.0 - r))


def skips(g: Guidance, step: int) -> bool:
    """True where the stream reuses its last prediction at ``step`` (0-based)."""
    return step % (g.skip_step + 1) != 0
