"""The stage tables of a request: the fields of each kind of stage, and the rules between them.

Plain validated values; nothing here knows a file, a device or a tensor. A stage table is
``kind = "base" | "upsample" | "refine" | "upscale"`` and the fields of that kind. Field names are
those that a user writes in TOML, in JSON and after ``--set``. Rules between fields are checked on
the raw tables, so that they are reported together with wrong values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    StrictBool,
    StrictStr,
    ValidationError,
    ValidationInfo,
)

from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import MAX_PX_OF_ROPE, PIXELS_PER_LATENT, Resolution
from latent_ladder.latents.tiling import Span, TilePlan, even_spans
from latent_ladder.request.fields import FileName, Int, Real, StageSeed, Table, Tokens, is_int
from latent_ladder.request.problems import Found, Problem, did_you_mean
from latent_ladder.request.validation_errors import value_problems
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import DEFAULT_TOKENS, SCHEDULES, manual_sigmas, sigmas_for

MAX_STEPS = 10_000


def _sampler(value: Any) -> Any:
    if not isinstance(value, str) or value not in SAMPLER_FACTS:
        raise Problem("is not a sampler", did_you_mean(str(value), SAMPLER_FACTS))
    return value


def _schedule(value: Any) -> Any:
    if not isinstance(value, str) or value not in SCHEDULES:
        raise Problem("is not a schedule", did_you_mean(str(value), SCHEDULES))
    return value


def _sigmas(value: Any) -> tuple[float, ...]:
    """Sigmas from text, or from a list of numbers."""
    if not isinstance(value, str):
        if not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise Problem("is not a list of sigmas", "such as [0.85, 0.725, 0.4219, 0.0]")
        numbers = list(value)
        if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
            raise Problem("contains something that is not a number", "use numbers that fall to 0")
        value = ", ".join(repr(float(n)) for n in numbers)
    try:
        return tuple(s + 0.0 for s in manual_sigmas(value))
    except RequestError as error:
        raise Problem(error.message, error.hint, whole=True) from error


def _refine_tile(value: Any) -> int:
    low, high = 2 * PIXELS_PER_LATENT, MAX_PX_OF_ROPE
    if not is_int(value) or not low <= value <= high or value % PIXELS_PER_LATENT:
        raise Problem(f"is not a multiple of 32 from {low} to {high}", "use 1536")
    return int(value)


def _refine_overlap(value: Any, info: ValidationInfo) -> int:
    if value is None:  # 256 of 1536
        sixth: int = info.data.get("px", MAX_PX_OF_ROPE) // 6
        return max(sixth // PIXELS_PER_LATENT, 1) * PIXELS_PER_LATENT
    if not is_int(value) or value < 0 or value % PIXELS_PER_LATENT:
        raise Problem("is not a multiple of 32 from 0 up", "use 256")
    most = info.data.get("px", MAX_PX_OF_ROPE) // 2 // PIXELS_PER_LATENT * PIXELS_PER_LATENT
    if value > most:
        raise Problem("is more than half of a tile", f"use {most}, or larger tiles")
    return int(value)


def _tiles(value: Any) -> Any:
    if isinstance(value, Mapping):
        try:
            return Tiles.model_validate(dict(value))
        except ValidationError as error:
            (text, hint), *_ = value_problems(error, Tiles, {}, ())
            raise Problem(f"tiles.{text}", hint, whole=True) from error
    if not isinstance(value, Tiles) and value not in ("auto", "off"):
        hint = 'use "auto", "off" or {px = 1536, overlap_px = 256}'
        raise Problem('is neither "auto", "off" nor a table of tiles', hint)
    return value


SamplerName = Annotated[StrictStr, BeforeValidator(_sampler)]
ScheduleName = Annotated[StrictStr, BeforeValidator(_schedule)]
Sigmas = Annotated[tuple[float, ...], BeforeValidator(_sigmas)]


# ---------------------------------------------------------------------------------------------
# parts of stages


class StreamGuidance(Table):
    """Guidance of one stream, with the names of LTX-2's multimodal guider; the defaults are off."""

    cfg: Real = Field(default=1.0, ge=0, le=100)
    """Scale of text guidance (classifier-free guidance); 1 switches it off."""
    stg: Real = Field(default=0.0, ge=0, le=100)
    """Scale of guidance by perturbed self-attention (STG); 0 switches it off."""
    modality: Real = Field(default=1.0, ge=0, le=100)
    """Scale of guidance by the other stream, sound for the picture; 1 switches it off."""
    rescale: Real = Field(default=0.0, ge=0, le=1)
    """Share by which the guided prediction is brought to the deviation of the unguided one."""
    stg_blocks: tuple[Annotated[Int, Field(ge=0)], ...] = ()
    """Numbers of the blocks that STG perturbs; 28 is usual for LTX-2.3."""
    skip_step: Int = Field(default=0, ge=0, le=100)
    """Steps after each evaluated one that reuse its prediction."""
    sigma_low: Real = Field(default=0.0, ge=0, le=1)
    """Lowest sigma at which guidance applies."""
    sigma_high: Real = Field(default=1.0, ge=0, le=1)
    """Highest sigma at which guidance applies."""


class StageGuidance(Table):
    """Guidance of a stage, for video and for audio."""

    video: StreamGuidance = Field(default_factory=StreamGuidance)
    """Guidance of the picture."""
    audio: StreamGuidance = Field(default_factory=StreamGuidance)
    """Guidance of the sound."""


class Lora(Table):
    """One LoRA: a file by ``name``, or by its ``role`` in the model family."""

    name: FileName | None = None
    """File of the LoRA: a path, or a name in ``loras/``. Either this or ``role``."""
    role: Literal["distilled"] | None = None
    """``distilled``: the distilled LoRA of the model family that is found."""
    strength: Real = Field(default=1.0, ge=-100, le=100)
    """Factor of the LoRA."""


class SamplerOptions(Table):
    """Options of samplers; ``None`` uses the sampler's own default."""

    eta: Real | None = Field(default=None, ge=0, le=100)
    """Share of noise that a step adds again."""
    s_noise: Real | None = Field(default=None, ge=0, le=100)
    """Factor of that noise."""
    gamma: Real | None = Field(default=None, ge=0, le=100)
    """Extrapolation of ``gradient_estimation``."""
    bong: StrictBool | None = None
    """Anchor refinement of ``res_2s``."""


class Schedule(Table):
    """A named schedule and its parameters; ``None`` uses the schedule's own default.

    Fixed lists such as ``distilled`` take no ``steps``, the others need them. A parameter that the
    schedule does not have is an error.
    """

    name: ScheduleName = "ltx"
    """One of the schedules below."""
    steps: Int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Number of steps."""
    tokens: Tokens | None = None
    """Tokens that set the shift of ``ltx``: ``actual`` for those of the stage, or 4096."""
    max_shift: Real | None = Field(default=None, ge=0, le=100)
    """Shift of ``ltx`` at 4096 tokens."""
    base_shift: Real | None = Field(default=None, ge=0, le=100)
    """Shift of ``ltx`` at 1024 tokens."""
    stretch: StrictBool | None = None
    """Stretching of ``ltx`` to end at ``terminal``."""
    terminal: Real | None = Field(default=None, ge=0, le=0.99)
    """Last sigma before 0 of ``ltx``."""
    shift: Real | None = Field(default=None, ge=-100, le=100)
    """Shift of the sigma table, for the schedules of ComfyUI."""
    alpha: Real | None = Field(default=None, gt=0, le=100)
    """First parameter of the distribution of ``beta``."""
    beta: Real | None = Field(default=None, gt=0, le=100)
    """Second parameter of the distribution of ``beta``."""
    rho: Real | None = Field(default=None, gt=0, le=100)
    """Exponent of ``karras``."""
    threshold: Real | None = Field(default=None, gt=0, lt=1)
    """End of the linear part of ``linear_quadratic``."""

    def sigmas(self, tokens: int, denoise: float = 1.0) -> tuple[float, ...]:
        """The sigmas for a stage of ``tokens`` video tokens. Raises RequestError."""
        parameters = self.model_dump(exclude={"name", "steps"}, exclude_none=True)
        if self.tokens == "actual":
            parameters["tokens"] = tokens
        return sigmas_for(self.name, self.steps, denoise, parameters)


class Tiles(Table):
    """Tiles of a refine stage."""

    px: Annotated[int, BeforeValidator(_refine_tile)] = 1536
    """Longest side of a tile in pixels: a multiple of 32 from 64 to 2048."""
    overlap_px: Annotated[int, BeforeValidator(_refine_overlap)] = Field(
        default=None, validate_default=True
    )
    """Overlap of neighbours in pixels: a multiple of 32, at most half a tile; a sixth if unset."""

    def plan(self, resolution: Resolution) -> TilePlan | None:
        """Equal tiles over a canvas, each with all frames; ``None`` where one tile covers it."""
        size, overlap = self.px // PIXELS_PER_LATENT, self.overlap_px // PIXELS_PER_LATENT
        rows = even_spans(resolution.latent_height, size, overlap)
        cols = even_spans(resolution.latent_width, size, overlap)
        plan = TilePlan((Span(0, resolution.latent_frames),), rows, cols)
        return plan if plan.count > 1 else None


class SamplingStage(Table):
    """Fields of base and refine stages: sampler, sigmas or a schedule, noise, guidance, LoRAs."""

    kind: Literal["base", "refine"]
    """Kind of the stage."""
    sampler: SamplerName = "euler"
    """One of the samplers below."""
    options: SamplerOptions = Field(default_factory=SamplerOptions)
    """Options of the sampler."""
    schedule: Schedule | None = None
    """Named schedule; either this or ``sigmas``."""
    sigmas: Sigmas | None = None
    """Noise levels, from at most 1 down to 0, as a list or as text."""
    seed: StageSeed = "same"
    """Seed of the stage: ``same`` as the request, or 0 to 2**64-1."""
    guidance: StageGuidance = Field(default_factory=StageGuidance)
    """Guidance of picture and sound."""
    loras: tuple[Lora, ...] = ()
    """LoRAs of the stage."""
    batch_passes: Literal["auto", 1, 2, 3, 4] = "auto"
    """Guidance passes in one batch; ``auto``: as many as fit. Changes speed and memory only."""

    def sigmas_for(self, tokens: int = DEFAULT_TOKENS) -> tuple[float, ...]:
        """The sigmas of the stage for a number of video tokens, descending."""
        if self.sigmas is not None:
            return self.sigmas
        return self.schedule.sigmas(tokens, self.share) if self.schedule is not None else ()

    @property
    def share(self) -> float:
        """The part of the schedule that the stage runs, ComfyUI's ``denoise``."""
        return 1.0

    @property
    def steps(self) -> int:
        """Number of steps of the stage."""
        return len(self.sigmas_for()) - 1

    @property
    def needs_negative(self) -> bool:
        """True where the negative prompt has an effect on this stage."""
        guided = self.guidance.video.cfg != 1 or self.guidance.audio.cfg != 1
        return guided or SAMPLER_FACTS[self.sampler].needs_uncond


StageTiles = Annotated[Literal["auto", "off"] | Tiles, BeforeValidator(_tiles)]


# ---------------------------------------------------------------------------------------------
# stages


class BaseStage(SamplingStage):
    """The first sampling run, from pure noise, at the smallest size."""

    kind: Literal["base"] = "base"


class RefineStage(SamplingStage):
    """Another sampling run, from a re-noised latent.

    It starts at the first of ``sigmas``, or where ``denoise`` says (as in ComfyUI: it runs the last
    ``steps`` of a schedule of ``steps / denoise`` steps). ``tiles`` "auto"
    denoises in overlapping tiles where a side is longer than the model's positions cover.
    """

    kind: Literal["refine"] = "refine"
    denoise: Real | None = Field(default=None, gt=0, le=1)
    """Share of the schedule that the stage runs, ComfyUI's ``denoise``; 0.35 to 0.55 is usual."""
    tiles: StageTiles = "auto"
    """Tiles: ``auto`` where a side is longer than 2048 px, ``off``, or their size."""

    @property
    def share(self) -> float:
        """The part of the schedule that the stage runs."""
        return 1.0 if self.denoise is None else self.denoise

    def tiles_for(self, resolution: Resolution) -> Tiles | None:
        """The tiles of this stage on a canvas; ``None`` where it is denoised in whole frames."""
        if self.tiles == "off":
            return None
        if self.tiles == "auto":
            return Tiles() if max(resolution.width, resolution.height) > MAX_PX_OF_ROPE else None
        return self.tiles if self.tiles.plan(resolution) is not None else None


class UpsampleStage(Table):
    """A latent upsampler: ``factor`` times width and height, or (``temporal``) the frame rate."""

    kind: Literal["upsample"] = "upsample"
    """Kind of the stage."""
    factor: Real = 2.0
    """2 or 1.5 in space, 2 in time."""
    axis: Literal["spatial", "temporal"] = "spatial"
    """``spatial`` multiplies width and height, ``temporal`` the frame rate."""
    adain: Real = Field(default=0.0, ge=0, le=1)
    """Share by which mean and deviation of every channel are brought back to those before."""
    file: FileName | None = None
    """File of the latent upsampler, instead of the one that is found."""

    @property
    def exact_factor(self) -> Fraction:
        """The factor as a fraction."""
        return Fraction(self.factor)


MAX_UPSCALED = 16_384
MAX_CROPPED = 0.05
"""Share of a side that may be cropped to reach another aspect ratio."""

Target = Annotated[Int, Field(ge=32, le=MAX_UPSCALED, multiple_of=2)]


class UpscaleStage(Table):
    """Upscaling of decoded frames, as the last stage before the file.

    ``name`` is ``lanczos``, ``rtx`` or a model file of ``upscale_models/``. The file's size is
    ``factor`` times the clip's (2 by default), or ``width`` x ``height``; the output of a model
    with another factor is resized to it.
    """

    kind: Literal["upscale"] = "upscale"
    """Kind of the stage."""
    name: FileName
    """``lanczos``, ``rtx``, or a model file: a path, or a name in ``upscale_models/``."""
    factor: Real | None = Field(default=None, gt=1, le=8)
    """Factor of width and height (2 if no size is set either)."""
    width: Target | None = None
    """Width of the file in pixels, together with ``height``."""
    height: Target | None = None
    """Height of the file in pixels, together with ``width``."""

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """(width, height) of the file, both even, for a clip of ``size``."""
        if self.width is not None and self.height is not None:
            return self.width, self.height
        width, height = (2 * round(n * (self.factor or 2.0) / 2) for n in size)
        return width, height

    def problems(self, size: tuple[int, int]) -> list[Found]:
        """Problems of the target for a clip of ``size``."""
        (w, h), (width, height) = size, self.target(size)
        label = f"upscale to {width}x{height} from {w}x{h}"
        if max(width, height) > MAX_UPSCALED:
            most = MAX_UPSCALED / max(size)
            return [(f"{label}: a side is above {MAX_UPSCALED}", f"use a factor up to {most:.2f}")]
        if width < w or height < h:
            return [
                (f"{label} would shrink it", "remove the upscale stage, or use a larger factor")
            ]
        if abs(width * h / (height * w) - 1) > MAX_CROPPED:
            fits = f"{width}x{2 * round(width * h / w / 2)}"
            return [
                (f"{label} would distort or crop the picture", f"use {fits}, or another --size")
            ]
        return []


UPSAMPLERS: Mapping[str, tuple[float, ...]] = {"spatial": (1.5, 2.0), "temporal": (2.0,)}
"""Factors of the family's latent upsamplers, by axis."""
Stage = Annotated[
    BaseStage | RefineStage | UpsampleStage | UpscaleStage, Field(discriminator="kind")
]
STAGE_TABLES: dict[str, type[Table]] = {
    "base": BaseStage,
    "refine": RefineStage,
    "upsample": UpsampleStage,
    "upscale": UpscaleStage,
}


# ---------------------------------------------------------------------------------------------
# rules between fields, on the raw tables


def stage_kinds(stages: Iterable[Any]) -> list[Any]:
    """The kind of each stage, raw table or validated."""
    return [s.get("kind") if isinstance(s, Mapping) else getattr(s, "kind", None) for s in stages]


def stage_names(kinds: Sequence[Any]) -> list[str]:
    """The names of stages as a user writes them: ``refine``, ``refine[1]`` where a kind repeats."""
    names = []
    for i, kind in enumerate(kinds):
        if not isinstance(kind, str) or kind not in STAGE_TABLES:
            names.append(f"stages[{i}]")
        elif kinds.count(kind) == 1:
            names.append(kind)
        else:
            names.append(f"{kind}[{kinds[:i].count(kind)}]")
    return names


def stages_problems(stages: Sequence[Any]) -> list[Found]:
    """Problems of the order of stages, and of fields that exclude each other."""
    kinds = stage_kinds(stages)
    problems = _order_problems(kinds)
    for name, stage in zip(stage_names(kinds), stages, strict=True):
        if isinstance(stage, Mapping):
            problems += _stage_problems(name, stage)
    return problems


def _order_problems(kinds: Sequence[Any]) -> list[Found]:
    found: list[Found] = []
    if not kinds or kinds[0] != "base" or kinds.count("base") > 1:
        order = " -> ".join(str(kind) for kind in kinds) or "none"
        text = f"the stages are {order}, expected exactly one base, and first"
        found.append((text, "start with one base; upsample and refine follow"))
    if "upscale" in kinds[:-1]:
        text = "an upscale stage works on decoded frames, and stages follow it"
        found.append((text, "put one upscale stage last; an upsample stage doubles latents"))
    return found


def _stage_problems(name: str, stage: Mapping[str, Any]) -> list[Found]:
    if stage.get("kind") == "upsample":
        return _factor_problems(name, stage.get("axis", "spatial"), stage.get("factor", 2.0))
    if stage.get("kind") == "upscale":
        return _target_problems(name, stage)
    if stage.get("kind") not in ("base", "refine"):
        return []
    found = _sigma_problems(name, stage)
    guidance = stage.get("guidance")
    for stream, values in guidance.items() if isinstance(guidance, Mapping) else ():
        if isinstance(values, Mapping):
            found += _guidance_problems(f"{name}.guidance.{stream}", values)
    loras = stage.get("loras")
    for i, lora in enumerate(loras if isinstance(loras, list | tuple) else ()):
        if isinstance(lora, Mapping) and (lora.get("name") is None) == (lora.get("role") is None):
            text = f"{name}.loras[{i}] needs exactly one of name and role"
            found.append((text, 'use {name = "file.safetensors"} or {role = "distilled"}'))
    return found


def _target_problems(name: str, stage: Mapping[str, Any]) -> list[Found]:
    present = {key for key in ("factor", "width", "height") if stage.get(key) is not None}
    if present in (set(), {"factor"}, {"width", "height"}):
        return []
    text = f"{name} has {' and '.join(sorted(present))}, expected a factor, or width and height"
    return [(text, f"keep {name}.factor, or set {name}.width and {name}.height")]


def _sigma_problems(name: str, stage: Mapping[str, Any]) -> list[Found]:
    present = [key for key in ("sigmas", "schedule") if stage.get(key) is not None]
    denoise = stage.get("denoise")
    if len(present) != 1:
        both = "both sigmas and a schedule" if present else "neither sigmas nor a schedule"
        hint = f"keep one of {name}.sigmas and {name}.schedule"
        return [(f"{name} has {both}, expected one of them", hint)]
    if present == ["sigmas"]:
        text = f"{name} has both sigmas and denoise, but sigmas already set the start"
        hint = f"remove {name}.denoise, or replace {name}.sigmas by {name}.schedule"
        return [(text, hint)] if denoise is not None else []
    try:
        schedule = Schedule.model_validate(stage["schedule"])
        share = denoise if isinstance(denoise, int | float) and 0 < denoise <= 1 else 1.0
        schedule.sigmas(DEFAULT_TOKENS, share)
    except ValidationError:
        return []  # reported with the other wrong values
    except RequestError as error:
        return [(f"{name}: {error.message}", error.hint)]
    return []


def _guidance_problems(path: str, values: Mapping[str, Any]) -> list[Found]:
    found: list[Found] = []
    if values.get("stg") and not values.get("stg_blocks"):
        text = f"{path}.stg={values['stg']} names no blocks to perturb"
        found.append((text, f"set {path}.stg_blocks=[28], the block used with LTX 2.3"))
    low, high = values.get("sigma_low", 0.0), values.get("sigma_high", 1.0)
    if isinstance(low, int | float) and isinstance(high, int | float) and low > high:
        found.append((f"{path}: sigma_low={low} is above sigma_high={high}", "swap the two"))
    return found


def _factor_problems(name: str, axis: Any, factor: Any) -> list[Found]:
    known = UPSAMPLERS.get(str(axis))
    if known is None or not isinstance(factor, int | float) or factor in known:
        return []
    nearest = min(known, key=lambda one: abs(one - factor))
    text = f"{name}.factor={factor} has no {axis} upsampler"
    return [(text, f"use {name}.factor={nearest:g}")]
