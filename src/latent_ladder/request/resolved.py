"""A request in plain numbers: sizes, sigmas, windows, tiles and seeds, computed once.

:func:`resolve_request` is the one place that turns the fields of a request into the geometry of its
stages. The planner, the cost model, diagnostics and the pipeline read the frozen values it returns.
Nothing here knows a file, a device or a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, Protocol

from latent_ladder.errors import RequestError
from latent_ladder.latents import shapes
from latent_ladder.latents.keyframe_segments import keyframe_canvas
from latent_ladder.latents.shapes import Crop, Factor, Resolution
from latent_ladder.latents.tiling import TilePlan
from latent_ladder.request.inputs import Video
from latent_ladder.request.keyframes_first import is_keyframes_first
from latent_ladder.request.problems import Found, report
from latent_ladder.request.stage_rules import stage_kinds, stage_names
from latent_ladder.request.stages import (
    RefineStage,
    SamplingStage,
    Stage,
    UpsampleStage,
    UpscaleStage,
)
from latent_ladder.request.windows import Window, Windows, choose_windows, whole_window


class RequestFields(Protocol):
    """The fields of a request that decide its geometry."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def frames(self) -> int: ...
    @property
    def fps(self) -> Fraction: ...
    @property
    def seed(self) -> int: ...
    @property
    def audio(self) -> str: ...
    @property
    def video(self) -> Video | None: ...
    @property
    def windows(self) -> Literal["auto", "off"] | Windows: ...
    @property
    def stages(self) -> tuple[Stage, ...]: ...


@dataclass(frozen=True)
class ResolvedStage:
    """One stage of a request in plain numbers.

    ``resolution`` is that of its output. ``sigmas`` descend; they are empty where nothing is
    sampled. ``windows`` are those in time in which the stage works, one after the other; a stage
    that works on the whole clip has one. ``tiles`` are those in which it is denoised, ``None`` for
    whole frames. ``seed`` is ``None`` where the request asks for a random one.
    """

    name: str
    kind: str
    resolution: Resolution
    sigmas: tuple[float, ...]
    windows: tuple[Window, ...]
    tiles: TilePlan | None
    seed: int | None

    def tile_tokens(self, window: Window) -> tuple[int, ...]:
        """Video tokens of each tile in a window; those of the whole window without tiles."""
        part = window.resolution(self.resolution)
        if self.tiles is None:
            return (part.video_tokens,)
        frames, rows, cols = part.latent_frames, self.tiles.rows, self.tiles.cols
        return tuple(frames * len(row) * len(col) for row in rows for col in cols)


@dataclass(frozen=True)
class ResolvedRequest:
    """The geometry of a clip and of each of its stages.

    ``crop`` is the part of the decoded canvas that becomes the clip, ``final_size`` the (width,
    height) of the file, ``windows`` those in time in which the clip is made (``None``: in one
    piece), ``duration_s`` its length in seconds. A clip of 20 ms or less has
    no audio latent and so no sound.
    """

    stages: tuple[ResolvedStage, ...]
    crop: Crop
    final_size: tuple[int, int]
    windows: Windows | None
    duration_s: Fraction
    has_sound: bool

    @property
    def canvas(self) -> Resolution:
        """The resolution that is decoded."""
        return self.stages[-1].resolution


def upsample_factors(stages: Sequence[Stage]) -> tuple[Factor, ...]:
    """The factor of each upsample stage, in order."""
    return tuple(
        Factor(time=int(stage.factor))
        if stage.axis == "temporal"
        else Factor(space=Fraction(stage.factor))
        for stage in stages
        if isinstance(stage, UpsampleStage)
    )


def stage_resolutions(request: RequestFields) -> tuple[Resolution, ...]:
    """The resolution of each stage's output."""
    size, factors = (request.width, request.height), upsample_factors(request.stages)
    frames = request.frames
    if is_keyframes_first(request.stages):  # whole segments; the rest is cut before decoding
        in_time = shapes.time_product(factors)
        frames = (keyframe_canvas((frames - 1) // in_time + 1).frames - 1) * in_time + 1
    found = shapes.resolutions(size, frames, request.fps, factors)
    if is_keyframes_first(request.stages):  # the sound is that of the base stage's canvas
        sound = shapes.audio_latents(found[0].frames, found[0].fps)
        found = tuple(replace(resolution, audio_latents=sound) for resolution in found)
    upsampled, out = 0, []
    for stage in request.stages:
        upsampled += isinstance(stage, UpsampleStage)
        out.append(found[upsampled])
    return tuple(out)


def resolve_request(request: RequestFields, resolutions: tuple[Resolution, ...]) -> ResolvedRequest:
    """Compute everything once, given :func:`stage_resolutions`.

    Raises RequestError, which lists each schedule that is impossible at the size of its stage.
    """
    factors = upsample_factors(request.stages)
    windows = _clip_windows(request, shapes.time_product(factors))
    names = stage_names(stage_kinds(request.stages))
    problems: list[Found] = []
    stages = []
    for i, (stage, resolution) in enumerate(zip(request.stages, resolutions, strict=True)):
        sigmas: tuple[float, ...] = ()
        try:
            sigmas = _stage_sigmas(request, i, resolution)
        except RequestError as error:
            problems.append((f"{names[i]}: {error.message}", error.hint))
        stages.append(
            ResolvedStage(
                names[i],
                stage.kind,
                resolution,
                sigmas,
                _stage_windows(request, windows, resolution),
                _stage_tiles(stage, resolution),
                _stage_seed(request, stage),
            )
        )
    if problems:
        raise report(problems)
    last, size = resolutions[-1], (request.width, request.height)
    upscale = request.stages[-1]
    return ResolvedRequest(
        tuple(stages),
        shapes.centre_crop((last.width, last.height), size),
        upscale.target(size) if isinstance(upscale, UpscaleStage) else size,
        windows,
        shapes.duration(request.frames, request.fps),
        request.audio != "none" and last.audio_latents > 0,
    )


def _stage_sigmas(request: RequestFields, index: int, resolution: Resolution) -> tuple[float, ...]:
    stage = request.stages[index]
    if not isinstance(stage, SamplingStage):
        return ()
    sigmas = stage.sigmas_for(resolution.video_tokens)
    return _sigmas_from_video(request.video, sigmas) if index == 0 else sigmas


def _sigmas_from_video(video: Video | None, sigmas: tuple[float, ...]) -> tuple[float, ...]:
    """The base stage's sigmas from the noise level of an input video on; none at level 0."""
    if video is None or video.denoise is None or video.mode != "v2v":
        return sigmas
    start = video.denoise
    if start == 0:
        return ()
    below = tuple(sigma for sigma in sigmas if sigma < start)
    return sigmas if start >= sigmas[0] else (start, *below)


def _clip_windows(request: RequestFields, time_factor: int) -> Windows | None:
    if request.windows == "off" or is_keyframes_first(request.stages):
        return None
    if request.windows == "auto":
        return choose_windows(request.frames, request.fps, time_factor)
    return request.windows if request.windows.frames < request.frames else None


def _stage_windows(
    request: RequestFields, windows: Windows | None, resolution: Resolution
) -> tuple[Window, ...]:
    if windows is None:
        return (whole_window(resolution),)
    return windows.plan(resolution, int(request.fps / resolution.fps))


def _stage_tiles(stage: Stage, resolution: Resolution) -> TilePlan | None:
    tiles = stage.tiles_for(resolution) if isinstance(stage, RefineStage) else None
    return None if tiles is None else tiles.plan(resolution)


def _stage_seed(request: RequestFields, stage: Stage) -> int | None:
    own = stage.seed if isinstance(stage, SamplingStage) else "same"
    seed = request.seed if own == "same" else own
    return None if seed == -1 else seed
