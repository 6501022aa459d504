"""Temporal round of a keyframes-first clip: its tiles, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from latent_ladder.errors import LadderError
from latent_ladder.latents.keyframe_segments import SegmentTile
from latent_ladder.latents.tokens import tokens_to_video
from latent_ladder.memory.planner import StageMemory
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.pipeline.stage_noise import earlier_noise, tile_noise_shapes
from latent_ladder.pipeline.stages.denoising import (
    denoise,
    make_denoiser,
    plan_sampling,
    sort_inputs,
)
from latent_ladder.pipeline.stages.stage_job import StageJob, StageResult
from latent_ladder.pipeline.start_state import StartState
from latent_ladder.pipeline.temporal_rounds import (
    join_tiles,
    keyframes_after_round,
    tile_noises,
    tile_start,
)
from latent_ladder.request.keyframes_first import (
    canvas_of,
    keyframe_use,
    round_number,
    tiles_of_round,
)
from latent_ladder.request.stages import RefineStage
from latent_ladder.sampling.denoise import LatentState, draw_noise, sample


def refine(job: StageJob, memory: StageMemory) -> StageResult:
    """Latents of a refine stage: of a temporal round in tiles, of any other as a whole."""
    if keyframe_use(job.requested) == "round":
        return denoise_round(job, memory)
    return denoise(job, memory)


def denoise_round(job: StageJob, memory: StageMemory) -> StageResult:
    """Latents ``video`` and ``keyframes`` of a round; the ``audio`` of the stage before is kept.

    The keyframes are those of all segments of the round, in the order of time. Warns about LoRA
    weights that match nothing.
    """
    stage, requested, runner, request = job.stage, job.requested, job.runner, job.plan.request
    inputs = sort_inputs(job)
    if stage.resolution is None or not isinstance(requested, RefineStage) or not inputs.latents:
        raise TypeError(f"{stage.name} is not a planned temporal round")
    plan, resolution = memory.offload_plan, stage.resolution
    canvas = canvas_of(request.stages, job.position, resolution)
    number = round_number(request.stages, job.position)
    tiles = tiles_of_round(request.stages, job.position, resolution)
    video, given = inputs.latents["video"].cpu(), inputs.latents["keyframes"].cpu()
    if given.shape[2] != canvas.segments << (number - 1):
        raise LadderError(
            f"stored keyframes are {given.shape[2]}, {stage.name} needs those of all segments",
            "run `ladder runs verify`, then the same command again",
        )
    known = {2 * canvas.segment * (n + 1): given[:, :, n : n + 1] for n in range(given.shape[2])}
    shapes, earlier = tile_noise_shapes(job.plan, stage), earlier_noise(job.plan, job.position)
    seed = request.stage_seed(job.position)
    parts: list[tuple[SegmentTile, Tensor]] = []
    keyframes: list[tuple[SegmentTile, Tensor]] = []
    transformer = runner.transformer_for(job.plan.models.transformer, plan)
    with (
        temporary_loras(transformer, list(stage.loras), runner.merges_loras) as report,
        runner.resident_blocks(transformer, plan),
    ):
        for tile, own in zip(tiles, shapes, strict=True):
            start = _on_device(tile_start(video, known, tile, resolution), runner.device)
            before = (*earlier, *shapes[: tile.number])
            noise, _ = draw_noise(seed, own.video, None, "ltx", own.extra, before)
            if noise is None or start.slots is None:
                raise TypeError("a tile has video and keyframes")
            tokens, _ = sample(
                make_denoiser(job, transformer, requested, plan, inputs.contexts, start),
                start.video,
                None,
                tile_noises(seed, number, tile, noise),
                plan_sampling(job, requested),
                _report_to(job, tile, len(tiles)),
            )
            if tokens is None:
                raise TypeError("a tile has video")
            grid = (resolution.latent_height, resolution.latent_width)
            frames = tile.latent_stop - tile.first_latent
            parts.append((tile, tokens_to_video(tokens, frames, *grid).cpu()))
            made = tokens_to_video(tokens[:, start.slots], len(tile.generated), *grid)
            keyframes.append((tile, made.cpu()))
    for match in report.matches:
        if match.unmatched:
            job.warn("lora_misses", str(match))
    after = keyframes_after_round(known, keyframes)
    ordered = torch.cat([after[frame] for frame in sorted(after)], dim=2)
    found = {**inputs.latents, "video": join_tiles(parts), "keyframes": ordered}
    return found, {"loras": [str(match) for match in report.matches]}


def _on_device(start: StartState, device: torch.device) -> StartState:
    video = start.video
    moved = LatentState(*(t.to(device) for t in (video.tokens, video.clean, video.mask)))
    return replace(
        start,
        video=moved,
        positions=start.positions.to(device),
        audio_positions=start.audio_positions.to(device),
    )


def _report_to(
    job: StageJob, tile: SegmentTile, tiles: int
) -> Callable[[int, Tensor, Tensor], None]:
    """Progress over all tiles of the round, in steps of the stage."""

    def report(step: int, _: Tensor, __: Tensor) -> None:
        sigmas = job.stage.sigmas
        done = tile.number * (len(sigmas) - 1) + step + 1
        job.on_step(done // tiles, job.stage.steps, sigmas[step + 1])

    return report
