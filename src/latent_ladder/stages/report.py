"""A plan in words and numbers, for ``ladder plan``: sizes, tokens, sigmas, work, files."""

from __future__ import annotations

from typing import Any

from latent_ladder.models.config import TransformerConfig
from latent_ladder.sampling.schedules import denoise_of
from latent_ladder.shapes import duration
from latent_ladder.stages.plan import PlannedStage, RunPlan
