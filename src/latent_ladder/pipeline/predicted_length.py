"""Length of a clip predicted from its prompt, by the duration head of LTX-2.5.

The prompt is encoded as the run would do it and stored under the same key, so that the run finds it
there. Then the clip is prepared again, with a fixed length.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from latent_ladder.checkpoints.duration_heads import find_duration_head
from latent_ladder.latents.shapes import time_product
from latent_ladder.pipeline.events import Warned
from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.pipeline.preparation import Prepared, policy_of, prepare

if TYPE_CHECKING:
    from torch import Tensor


def predict_length(prepared: Prepared) -> Prepared:
    """The run with the length that the model predicts; encodes the prompt if it is not stored.

    Raises what :func:`prepare` raises, also for a request that the predicted length makes
    impossible, such as a picture at a later frame.
    """
    import torch

    from latent_ladder.models.duration_head import load_duration_head

    request, plan = prepared.request, prepared.plan
    auto = request.auto_duration
    if auto is None:
        return prepared
    head = load_duration_head(find_duration_head(plan.models, prepared.library), device="cpu")
    context = _context(prepared, next(s for s in plan.stages if s.kind == "prompt"))
    with torch.no_grad():
        streams = (context[name].float().cpu() for name in ("video", "audio"))
        seconds = float(head(*streams)[0])
    frames = auto.frames(seconds, request.fps, time_product(request.factors))
    fixed = request.with_length(frames)
    if prepared.random_seed:
        fixed = fixed.model_copy(update={"seed": -1})
    again = prepare(fixed, prepared.library, prepared.store, prepared.options, prepared.device)
    found = Warned("auto_duration", auto.describe(seconds, frames, request.fps))
    return replace(again, warnings=(found, *again.warnings))


def _context(prepared: Prepared, stage: PlannedStage) -> dict[str, Tensor]:
    """The encoded prompt: from the store, else encoded now and stored for the run."""
    from latent_ladder.models.device import choose_runtime
    from latent_ladder.pipeline.model_runner import ModelRunner
    from latent_ladder.pipeline.stages.stage_job import StageJob
    from latent_ladder.pipeline.stages.text_encoding import encode_text

    stored = prepared.store.get(stage.key, lambda _: None)
    if stored is not None:
        return stored.load()
    memory = prepared.memory
    runtime = choose_runtime(prepared.device)
    runner = ModelRunner(runtime, memory.budget, policy_of(prepared.request, prepared.options))
    tensors, facts = encode_text(StageJob(stage, prepared.plan, runner, ()), memory.of("prompt"))
    prepared.store.try_put(stage.key, tensors, {"stage": stage.kind, "name": stage.name, **facts})
    return tensors
