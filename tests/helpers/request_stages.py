"""Stages of a request by their types."""

from __future__ import annotations

from latent_ladder.request.model import Request
from latent_ladder.request.stages import BaseStage, RefineStage, UpsampleStage


def stages_of(request: Request) -> tuple[BaseStage, UpsampleStage, RefineStage]:
    """The three stages of a request that samples, upsamples and refines."""
    base, upsample, refine = request.stages
    assert isinstance(base, BaseStage)
    assert isinstance(upsample, UpsampleStage)
    assert isinstance(refine, RefineStage)
    return base, upsample, refine
