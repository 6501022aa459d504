"""Upsample stage: larger latents, in space or in time, by the latent upsampler."""

from __future__ import annotations

import torch
from torch import Tensor

from latent_ladder.memory.planner import StageMemory
from latent_ladder.models.latent_upsampler.upsample import apply_adain, load_upsampler, upsample
from latent_ladder.models.vae_loading import read_latent_statistics
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult
from latent_ladder.pipeline.temporal_windows import upsample_windows
from latent_ladder.request.keyframes_first import is_keyframes_first
from latent_ladder.request.stages import UpsampleStage


@torch.inference_mode()
def upsample_latents(job: StageJob, _: StageMemory) -> StageResult:
    """``video`` latents (1, C, F, H, W) enlarged; ``audio`` latents are passed on unchanged."""
    requested, request = job.requested, job.plan.request
    if job.stage.upsampler is None or not isinstance(requested, UpsampleStage):
        raise TypeError(f"{job.stage.name} is not a planned upsample stage")
    runtime, (before,) = job.runner.runtime, job.inputs
    upsampler = load_upsampler(job.stage.upsampler, device=runtime.device, dtype=runtime.dtype)
    numbers, latents = read_latent_statistics(job.plan.models.video_vae), before["video"]
    low, high = (request.resolved.stages[i].windows for i in (job.position - 1, job.position))

    def enlarge(part: Tensor) -> Tensor:
        return upsample(part.to(runtime.device), upsampler, numbers)

    up = upsample_windows(latents, list(zip(low, high, strict=True)), enlarge)
    if requested.adain:
        up = apply_adain(up, latents.to(up), requested.adain)
    found = {**before, "video": up.float()}
    if is_keyframes_first(request.stages) and requested.axis == "spatial":
        found["keyframes"] = enlarge(before["keyframes"]).cpu().float()
    return found, {}
