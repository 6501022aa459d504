"""Requests of keyframes-first clips (DFR, experimental): what their stages do, and their rules.

The base stage generates a keyframe at the end of each segment beside the clip
(``base.keyframes = "segments"``). A refine stage with ``keyframes = "refine"`` denoises both after
a spatial upsampler; each further one with ``keyframes = "round"`` follows a temporal upsampler.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from latent_ladder.latents.keyframe_segments import (
    MAX_ROUNDS,
    KeyframeCanvas,
    SegmentTile,
    keyframe_canvas,
    segment_tiles,
)
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.slot_frames import slot_frames
from latent_ladder.request.problems import Found
from latent_ladder.request.stages import BaseStage, RefineStage, Stage, UpsampleStage, UpscaleStage


class StagesOfRequest(Protocol):
    """The fields of a request that say whether it is keyframes-first."""

    @property
    def stages(self) -> tuple[Stage, ...]: ...
    @property
    def noise_order(self) -> str: ...
    @property
    def windows(self) -> object: ...
    @property
    def images(self) -> Sequence[object]: ...
    @property
    def video(self) -> object: ...
    @property
    def audio_in(self) -> object: ...


def is_keyframes_first(stages: Sequence[Stage]) -> bool:
    """True where the base stage generates a keyframe for each segment."""
    return isinstance(stages[0], BaseStage) and stages[0].keyframes == "segments"


def keyframe_use(stage: Stage) -> str:
    """The use of generated keyframes in a stage: ``none``, ``refine`` or ``round``."""
    return stage.keyframes if isinstance(stage, RefineStage) else "none"


def round_number(stages: Sequence[Stage], position: int) -> int:
    """Number of temporal rounds up to and including stage ``position``."""
    return sum(keyframe_use(stage) == "round" for stage in stages[: position + 1])


def generated_frames(stage: Stage, resolution: Resolution) -> tuple[int, ...]:
    """Frames of the keyframes that a base or refine stage generates beside the whole clip."""
    if isinstance(stage, BaseStage) and stage.keyframes == "even":
        return slot_frames(stage.generated_keyframes, resolution.frames)
    if isinstance(stage, BaseStage) or keyframe_use(stage) == "refine":
        return keyframe_canvas(resolution.frames).keyframes
    return ()


def canvas_of(stages: Sequence[Stage], position: int, resolution: Resolution) -> KeyframeCanvas:
    """The canvas of the base stage for a ``resolution`` at stage ``position``."""
    return keyframe_canvas(((resolution.frames - 1) >> round_number(stages, position)) + 1)


def tiles_of_round(
    stages: Sequence[Stage], position: int, resolution: Resolution
) -> tuple[SegmentTile, ...]:
    """The tiles of the temporal round at ``position``; none for another stage."""
    if keyframe_use(stages[position]) != "round":
        return ()
    canvas = canvas_of(stages, position, resolution)
    return segment_tiles(canvas, round_number(stages, position))


def keyframe_tokens(
    stages: Sequence[Stage], position: int, resolution: Resolution
) -> tuple[int, ...]:
    """Video tokens of each forward of a stage that generates keyframes; empty for another."""
    per_frame = resolution.latent_height * resolution.latent_width
    tiles = tiles_of_round(stages, position, resolution)
    if tiles:
        return tuple(
            per_frame * (t.latent_stop - t.first_latent + len(t.given) + len(t.generated))
            for t in tiles
        )
    slots = len(generated_frames(stages[position], resolution))
    if not slots:
        return ()
    reference = resolution.video_tokens // 4 if keyframe_use(stages[position]) == "refine" else 0
    return (resolution.video_tokens + slots * per_frame + reference,)


def keyframes_first_problems(request: StagesOfRequest) -> list[Found]:
    """Problems of the stages and fields of a keyframes-first request."""
    stages = [s for s in request.stages if not isinstance(s, UpscaleStage)]
    if not is_keyframes_first(stages):
        wrong = [s for s in stages if keyframe_use(s) != "none"]
        text = "a refine stage uses keyframes, and the base stage generates none for segments"
        return [(text, 'set base.keyframes="segments"')] if wrong else []
    found: list[Found] = []
    if not _is_ordered(stages):
        text = "the stages of a keyframes-first clip are base, a spatial upsampler x2, a refine "
        text += f'stage with keyframes="refine", then up to {MAX_ROUNDS} times a temporal upsampler'
        found.append(
            (f'{text} and a refine stage with keyframes="round"', "start from --preset ltx-2.5-dfr")
        )
    if request.noise_order != "ltx":
        found.append(
            (
                f"keyframes-first clips need noise_order=ltx, not {request.noise_order}",
                "set noise_order=ltx",
            )
        )
    if request.windows not in ("auto", "off"):
        found.append(("keyframes-first clips have no windows in time", "set windows=off"))
    given = [
        n
        for n, value in (
            ("images", request.images),
            ("video", request.video),
            ("audio_in", request.audio_in),
        )
        if value
    ]
    found += [
        (f"keyframes-first clips take no {name} yet", f"remove {name}, or use another preset")
        for name in given
    ]
    return found


def _is_ordered(stages: Sequence[Stage]) -> bool:
    base, *rest = stages
    if isinstance(base, BaseStage) and base.generated_keyframes:
        return False
    uses = [keyframe_use(s) for s in rest[1::2]]
    axes = [s.axis if isinstance(s, UpsampleStage) and s.factor == 2 else "" for s in rest[::2]]
    rounds = len(uses) - 1
    return (
        len(rest) % 2 == 0
        and 0 <= rounds <= MAX_ROUNDS
        and uses == ["refine", *["round"] * rounds]
        and axes == ["spatial", *["temporal"] * rounds]
    )
