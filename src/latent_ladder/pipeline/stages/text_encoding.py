"""Prompt stage: a text becomes the context that the transformer reads."""

from __future__ import annotations

from latent_ladder.checkpoints.text_loras import TextLoras
from latent_ladder.memory.planner import StageMemory
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult


def encode_text(job: StageJob, _: StageMemory) -> StageResult:
    """Context of the stage's text: ``video`` (1, L, Dv) and ``audio`` (1, L, Da).

    All missing texts of the run with the same LoRAs are encoded together with the first one.
    """
    stage, contexts, models = job.stage, job.contexts, job.plan.models
    if contexts.get(stage.key) is None:
        alike = (s for s in job.plan.stages if s.kind == "prompt" and s.loras == stage.loras)
        missing = {stage.key: stage.text}
        missing |= {s.key: s.text for s in alike if s.key in contexts and contexts[s.key] is None}
        found = job.runner.encode_texts(
            list(missing.values()),
            models.text_encoder,
            models.text_projection,
            models.connectors,
            TextLoras.select(stage.loras, stage.loras),
            as_comfyui=job.plan.request.model_convention != "ltx",
        )
        contexts.update(zip(missing, found, strict=True))
    context = contexts[stage.key]
    if context is None:
        raise TypeError("a text was encoded to nothing")
    return {"video": context.video, "audio": context.audio}, {"text": stage.text}
