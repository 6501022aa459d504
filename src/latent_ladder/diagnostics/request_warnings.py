"""Warnings about a valid request: results that will probably disappoint, and the reason.

Nothing here is an error. A rule is a function from a request to its warnings; adding one is adding
a row to ``RULES``, or to ``RANGE_RULES`` if it needs the range of the model's training. Values that
a preset sets itself are not warned about where the rule is a matter of taste (seeds, the sigmas of
a refine stage, an unused negative prompt).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from latent_ladder.diagnostics.training_range import TrainingRange, world_problems
from latent_ladder.latents import shapes
from latent_ladder.latents.shapes import PIXELS_PER_LATENT
from latent_ladder.latents.tiling import TilePlan
from latent_ladder.request.model import Request
from latent_ladder.request.presets import find_preset
from latent_ladder.request.stages import RefineStage
from latent_ladder.request.windows import SLACK_FRAMES
from latent_ladder.sampling.schedules import denoise_of, start_sigma

MAX_CFG = 4.5
DENOISE_REPLACES = 0.7
DENOISE_NOTHING = 0.2
DENOISE_BLURRY = 0.3
DENOISE_SHARP = 0.4
MAX_FPS = 50
PUBLISHED = TrainingRange()


@dataclass(frozen=True)
class Advice:
    """One warning: ``code`` for programs, ``message`` with the reason and the numbers.

    The level ``note`` announces a consequence, ``warning`` a result that will probably disappoint.
    """

    code: str
    message: str
    level: Literal["note", "warning"] = "warning"


class RefineStart(NamedTuple):
    """Start of a refine stage: its ``denoise`` and the ``sigma`` that this stands for."""

    denoise: float
    sigma: float

    def __str__(self) -> str:
        return f"denoise {self.denoise:.2f} = start sigma {self.sigma:.4g}"


def advise(request: Request, limits: TrainingRange = PUBLISHED) -> tuple[Advice, ...]:
    """All warnings about a request, in the order of ``RULES``.

    ``limits`` is the range that the model was trained on.
    """
    ranged = (advice for rule in RANGE_RULES for advice in rule(request, limits))
    return (*ranged, *(advice for rule in RULES for advice in rule(request)))


def refine_start(request: Request, index: int) -> RefineStart:
    """The start of refine stage ``index``: its ``denoise``, or the equivalent of its first sigma.

    The equivalent is that of the schedule ``simple`` on the sigma table of LTX models.
    """
    stage, sigma = request.stages[index], start_sigma(request.resolved.stages[index].sigmas)
    asked = stage.denoise if isinstance(stage, RefineStage) else None
    return RefineStart(denoise_of(sigma) if asked is None else asked, sigma)


# ---------------------------------------------------------------------------------------------
# rules


def _cfg(request: Request) -> Iterator[Advice]:
    for i, stage in request.sampling_stages():
        cfg = stage.guidance.video.cfg
        if cfg > MAX_CFG:
            yield Advice(
                "cfg_high",
                f"{request.resolved.stages[i].name}: video cfg {cfg:g} is above {MAX_CFG}: "
                "motion turns stiff and jittery; 3 to 4.5 is usual",
            )


def _denoise(request: Request) -> Iterator[Advice]:
    own = _preset_stages(request)
    for i, stage in request.sampling_stages():
        if not isinstance(stage, RefineStage):
            continue
        if i < len(own) and _has_preset_sigmas(stage, own[i]):
            continue  # the sigmas that the preset's model was trained for
        start = refine_start(request, i)
        lead = f"{request.resolved.stages[i].name}: {start} is"
        if start.denoise > DENOISE_REPLACES:
            text = f"{lead} above {DENOISE_REPLACES}: it replaces the motion of the stage before"
            yield Advice("denoise_high", f"{text}; 0.35 to 0.55 is usual")
        elif start.denoise < DENOISE_NOTHING:
            text = f"{lead} below {DENOISE_NOTHING}: the stage adds next to nothing"
            yield Advice("denoise_low", f"{text}; use at least {DENOISE_SHARP}")
        elif start.denoise < DENOISE_BLURRY:
            text = f"{lead} below {DENOISE_BLURRY}: the upsampled latents stay blurry"
            yield Advice("denoise_blurry", f"{text}; use at least {DENOISE_SHARP}")


def _base_start(request: Request) -> Iterator[Advice]:
    if request.video is not None and request.video.mode == "v2v":
        return  # it starts from the video
    sigma = start_sigma(request.resolved.stages[0].sigmas)
    if sigma < 0.99:
        text = f"base starts at sigma {sigma:.4g}, expected 1"
        yield Advice("base_start", f"{text}: it starts from a grey clip, not from noise")


def _seeds(request: Request) -> Iterator[Advice]:
    own = _preset_stages(request)
    for i, stage in request.sampling_stages():
        by_preset = i < len(own) and own[i].get("seed") == stage.seed
        if isinstance(stage, RefineStage) and stage.seed not in ("same", request.seed):
            if by_preset:
                continue
            yield Advice(
                "seed_differs",
                f"{request.resolved.stages[i].name}: seed {stage.seed} is not that of the base "
                f"({request.seed}): mismatched noise can add artefacts",
            )


def _duration(request: Request, limits: TrainingRange) -> Iterator[Advice]:
    resolved = request.resolved
    seconds = float(resolved.duration_s)
    windows = resolved.windows
    if windows is not None:
        (index, _), *_ = request.sampling_stages()
        length = float(shapes.duration(windows.frames, request.fps))
        yield Advice(
            "windows",
            f"{seconds:.2f} s are made in {len(resolved.stages[index].windows)} windows of "
            f"{length:.2f} s, one after the other, that share {windows.overlap_frames} frames: "
            + limits.why_short,
            "note",
        )
    elif seconds > limits.seconds + SLACK_FRAMES / request.fps:
        off = ", and windows are off" if request.windows == "off" else ""
        text = f"{limits.why_short}, and the clip lasts {seconds:.2f} s{off}"
        yield Advice("too_long", f"{text}: expect drift and repetition")
    asked = request.duration_s
    if asked is not None and abs(asked - seconds) > 1e-3:
        yield Advice(
            "duration_differs",
            f"asked for {asked:g} s, the clip lasts {seconds:.2f} s: "
            f"{request.frames} frames at {float(request.fps):g} fps is the nearest 8k+1",
            "note",
        )


def _fps(request: Request) -> Iterator[Advice]:
    if request.fps > MAX_FPS:
        text = f"{float(request.fps):g} fps is above {MAX_FPS}: the time base is squeezed"
        yield Advice("fps_high", f"{text}, motion jumps at every 8th frame")


def _size(request: Request, limits: TrainingRange) -> Iterator[Advice]:
    last = request.resolved.canvas
    edge = max(last.width, last.height)
    tiled = _last_tiles(request)
    if tiled is not None:
        cols, rows = len(tiled.cols), len(tiled.rows)
        width, height = (PIXELS_PER_LATENT * side for side in reversed(tiled.largest[1:]))
        yield Advice(
            "tiled",
            f"the canvas is {last.width}x{last.height}, refined in {cols}x{rows} overlapping tiles "
            f"of {width}x{height}: the model's positions cover {limits.edge_px} px",
            "note",
        )
    elif edge > limits.edge_px:
        text = f"the canvas is {last.width}x{last.height}, its long edge beyond {limits.edge_px} px"
        yield Advice("edge_long", f"{text} that the model's positions cover: expect repetition")
    if (last.width, last.height) != (request.width, request.height):
        yield Advice(
            "size_rounded",
            f"{request.width}x{request.height} is made as {last.width}x{last.height} and cropped "
            f"to the centre: every stage needs sides that are multiples of 32",
            "note",
        )


def _last_tiles(request: Request) -> TilePlan | None:
    """The tiles of the last sampling stage, ``None`` where it has none."""
    (*_, (index, _)) = request.sampling_stages()
    return request.resolved.stages[index].tiles


_FUNCTION_WORDS = """
a an the is are was were be being it its he she they his her their this that these those of in on
at by for from with without into onto over under through across toward towards around behind between
and or but while as then when before after to not no there who which
"""
FUNCTION_WORDS = frozenset(re.findall(r"\w+", _FUNCTION_WORDS))
"""Words that connect sentences; lists of tags have almost none."""


def _tag_list(request: Request) -> Iterator[Advice]:
    words = re.findall(r"[\w'-]+", request.prompt.lower())
    pieces = [piece for piece in re.split(r"[,;|\n]", request.prompt) if piece.strip()]
    if len(pieces) < 4:
        return
    share = sum(word in FUNCTION_WORDS for word in words) / len(words) if words else 0.0
    if share < 0.15 and len(words) / len(pieces) < 4:
        yield Advice(
            "tag_list",
            f"the prompt reads like a list of tags ({len(pieces)} pieces, {share:.0%} function "
            "words): the text encoder was trained on whole sentences",
        )


def _negative(request: Request) -> Iterator[Advice]:
    if not request.negative_prompt.strip() or request.needs_negative:
        return
    if _preset_fields(request).get("negative_prompt") != request.negative_prompt:
        yield Advice(
            "negative_unused",
            "the negative prompt has no effect: every cfg is 1 and no sampler is a CFG++ one",
        )


def _preset_fields(request: Request) -> dict[str, Any]:
    preset = find_preset(request.preset)
    return {} if preset is None else preset.fields


def _has_preset_sigmas(stage: RefineStage, own: Mapping[str, Any]) -> bool:
    """True where a refine stage has the sigmas of the preset's own stage."""
    fields = {
        "sigmas": list(stage.sigmas) if stage.sigmas else None,
        "schedule": stage.schedule.model_dump(exclude_none=True) if stage.schedule else None,
        "denoise": stage.denoise,
    }
    return all(own.get(name) == value for name, value in fields.items())


def _preset_stages(request: Request) -> list[dict[str, Any]]:
    stages: list[dict[str, Any]] = _preset_fields(request).get("stages", [])
    return stages


def _world(request: Request, limits: TrainingRange) -> Iterator[Advice]:
    if limits.world is not None:
        for code, text in world_problems(request, limits.world):
            yield Advice(code, text)


RANGE_RULES: tuple[Callable[[Request, TrainingRange], Iterator[Advice]], ...] = (
    _size,
    _duration,
    _world,
)
RULES: tuple[Callable[[Request], Iterator[Advice]], ...] = (
    _fps,
    _base_start,
    _cfg,
    _denoise,
    _seeds,
    _negative,
    _tag_list,
)
