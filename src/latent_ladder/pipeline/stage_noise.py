"""Shapes of the noise that the sampling stages of a plan start from.

In LTX-2's order one generator goes from stage to stage, so the noise of a stage depends on what
was drawn before. That is computed from the plan: nothing is stored, and a run that is taken up
again, or refined from a draft, has the noise of a run in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from latent_ladder.latents.shapes import duration
from latent_ladder.pipeline.input_files import reference_resolution
from latent_ladder.pipeline.plan import PlannedStage, RunPlan
from latent_ladder.pipeline.start_state import (
    base_reference_positions,
    keyframe_positions,
    reference_positions,
)
from latent_ladder.pipeline.temporal_rounds import tile_resolution
from latent_ladder.pipeline.temporal_windows import times_in_window
from latent_ladder.request.keyframes_first import generated_frames, tiles_of_round
from latent_ladder.request.stages import SamplingStage
from latent_ladder.request.windows import Window
from latent_ladder.sampling.denoise import NoiseShapes


def earlier_noise(
    plan: RunPlan, position: int | None = None, window: int = 0
) -> tuple[NoiseShapes, ...]:
    """Noise that the generator of the request made before stage ``position``, in order.

    That of the same window of each earlier stage; ``None`` stands for the decoder, after all of
    them. A stage with a seed of its own has a generator of its own.
    """
    requested = plan.request.stages[:position]
    if position is not None and not _shares_seed(plan, position):
        return ()
    before = [k for k in range(len(requested)) if _shares_seed(plan, k)]
    stages = [stage for stage in plan.stages if stage.position in before]
    return tuple(
        shapes
        for stage in stages
        if stage.sigmas and window < len(stage.windows)
        for shapes in (
            tile_noise_shapes(plan, stage) or [noise_shapes(plan, stage, stage.windows[window])]
        )
    )


def tile_noise_shapes(plan: RunPlan, stage: PlannedStage) -> list[NoiseShapes]:
    """The shapes of the noise of each tile of a temporal round; none for another stage."""
    if stage.resolution is None or stage.position is None:
        raise TypeError(f"{stage.name} is not a planned sampling stage")
    resolution = stage.resolution
    found = []
    for tile in tiles_of_round(plan.request.stages, stage.position, resolution):
        channels = plan.models.transformer.shape("patchify_proj.weight")[1]
        video = tile_resolution(tile, resolution).video_latent_shape(channels)
        beside = len(tile.given) + len(tile.generated)
        extra = beside * resolution.latent_height * resolution.latent_width
        found.append(NoiseShapes(video, None, extra))
    return found


def noise_shapes(plan: RunPlan, stage: PlannedStage, window: Window) -> NoiseShapes:
    """The shapes of the noise of one window of a sampling stage."""
    if stage.resolution is None:
        raise TypeError(f"{stage.name} is not a planned sampling stage")
    part = window.resolution(stage.resolution)
    widths = [
        plan.models.transformer.shape(f"{stream}patchify_proj.weight")[1]
        for stream in ("", "audio_")
    ]
    video = part.video_latent_shape(widths[0])
    audio = (1, widths[1], part.audio_latents, 1) if plan.request.resolved.has_sound else None
    times = torch.cat([torch.zeros(0), *_guide_times(plan, stage)])
    return NoiseShapes(video, audio, int(times_in_window(times, window, stage.resolution).sum()))


def _shares_seed(plan: RunPlan, position: int) -> bool:
    stage = plan.request.stages[position]
    return isinstance(stage, SamplingStage) and stage.seed == "same"


def _guide_times(plan: RunPlan, stage: PlannedStage) -> Iterator[Tensor]:
    """Middles in seconds of the tokens behind the clip: images, slots, a reference video."""
    request, resolution = plan.request, stage.resolution
    if resolution is None or stage.position is None:
        return
    frames = [image.index(request.frames) for image in request.active_images]
    shown = [duration(frame, request.fps) for frame in frames if frame > 0]
    requested = request.stages[stage.position]
    shown += [duration(n, resolution.fps) for n in generated_frames(requested, resolution)]
    for time in shown:
        yield _middles(keyframe_positions(time, resolution))
    for key in stage.inputs:
        planned = plan.stage(key)
        if planned.kind == "base" and planned.resolution is not None and key != stage.inputs[0]:
            yield _middles(base_reference_positions(planned.resolution, resolution))
        if planned.kind == "video_in" and planned.files[0].role == "reference":
            options = planned.files[0].options
            part = reference_resolution(resolution, options)
            grid = (part.latent_frames, part.latent_height, part.latent_width)
            yield _middles(reference_positions(grid, resolution, int(options.get("smaller", 1))))


def _middles(positions: Tensor) -> Tensor:
    return positions[0, 0].mean(-1)
