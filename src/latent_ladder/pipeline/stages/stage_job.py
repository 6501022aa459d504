"""Input of a stage function: the planned stage, its input artefacts and the loaded models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from latent_ladder.memory.planner import StageMemory
from latent_ladder.models.text_encoder.conditioning import Conditioning
from latent_ladder.pipeline.model_runner import ModelRunner, Warn
from latent_ladder.pipeline.partial_results import PartialResult
from latent_ladder.pipeline.plan import PlannedStage, RunPlan
from latent_ladder.pipeline.temporal_windows import OnEstimate, OnStep
from latent_ladder.request.stages import Stage

Tensors = dict[str, Tensor]
StageResult = tuple[Tensors, dict[str, Any]]
"""The tensors of an artefact, and plain facts about them for its meta data."""


def _ignore_step(_done: int, _of: int, _sigma: float) -> None:
    return


def _ignore_warning(_code: str, _message: str) -> None:
    return


@dataclass(frozen=True)
class StageJob:
    """One stage to make.

    ``inputs`` are the tensors of ``stage.inputs``, in that order. ``contexts`` maps the keys of
    the run's prompt stages to their encoded texts, ``None`` where missing: the first prompt stage
    fills in all with the same LoRAs, so that the text encoder loads once. ``partial_result`` stores
    finished temporal windows.
    """

    stage: PlannedStage
    plan: RunPlan
    runner: ModelRunner
    inputs: tuple[Tensors, ...] = ()
    contexts: dict[str, Conditioning | None] = field(default_factory=dict)
    on_step: OnStep = _ignore_step
    on_estimate: OnEstimate | None = None
    partial_result: PartialResult | None = None
    warn: Warn = _ignore_warning

    @property
    def position(self) -> int:
        """Index of the stage in the request."""
        if self.stage.position is None:
            raise TypeError(f"{self.stage.name} is not a stage of the request")
        return self.stage.position

    @property
    def requested(self) -> Stage:
        """The stage as the request has it."""
        return self.plan.request.stages[self.position]


StageFunction = Callable[[StageJob, StageMemory], StageResult]
"""Makes the artefact of a job within a memory plan. May raise an out-of-memory error."""
