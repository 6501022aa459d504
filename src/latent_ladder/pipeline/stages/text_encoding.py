"""Prompt stage: a text becomes the context that the transformer reads."""

from __future__ import annotations

from latent_ladder.memory.planner import StageMemory
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult


def encode_text(job: StageJob, _: StageMemory) -> StageResult:
    """Context of the stage's text: ``video`` (1, L, Dv) and ``audio`` (1, L, Da).

    All missing texts of the run are encoded together with the first one.
    """
    text, contexts, models = job.stage.text, job.contexts, job.plan.models
    if contexts.get(text) is None:
        missing = [t for t in {**contexts, text: None} if contexts.get(t) is None]
        found = job.runner.encode_texts(
            missing,
            models.text_encoder,
            models.text_projection,
            models.connectors,
            as_comfyui=job.plan.request.model_convention != "ltx",
        )
        contexts.update(zip(missing, found, strict=True))
    context = contexts[text]
    if context is None:
        raise TypeError("a text was encoded to nothing")
    return {"video": context.video, "audio": context.audio}, {"text": text}
