"""The stage tables of a request: the fields of each kind of stage.

Plain validated values; nothing here knows a file, a device or a tensor. A stage table is
``kind = "base" | "upsample" | "refine" | "upscale"`` and the fields of that kind. Field names are
those that a user writes in TOML, in JSON and after ``--set``. Rules between fields are in
:mod:`latent_ladder.request.stage_rules`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field

from latent_ladder.latents.shapes import MAX_PX_OF_ROPE, Resolution
from latent_ladder.request.fields import FileName, Int, Real, StageSeed, Table
from latent_ladder.request.problems import Found
from latent_ladder.request.refine_tiles import StageTiles, Tiles
from latent_ladder.request.sampling_options import (
    Lora,
    SamplerName,
    SamplerOptions,
    Schedule,
    Sigmas,
    StageGuidance,
)
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import DEFAULT_TOKENS


class SamplingStage(Table):
    """Fields of base and refine stages: sampler, sigmas or a schedule, noise, guidance, LoRAs."""

    kind: Literal["base", "refine"]
    """Kind of the stage."""
    sampler: SamplerName = "euler"
    """Rule of a step, one of the samplers below; ``euler`` is the usual choice, and the one that
    distilled models expect."""
    options: SamplerOptions = Field(default_factory=SamplerOptions)
    """Options of the sampler; unset ones are the sampler's own."""
    schedule: Schedule | None = None
    """Noise levels by the name of a schedule and its steps; set either this or ``sigmas``."""
    sigmas: Sigmas | None = None
    """Noise levels as numbers that fall to 0 from at most 1, such as [0.85, 0.725, 0.4219, 0.0], or
    as text; set either this or ``schedule``."""
    seed: StageSeed = "same"
    """Seed of the stage's noise: ``same`` uses that of the request, or a number from 0 to
    2**64-1."""
    guidance: StageGuidance = Field(default_factory=StageGuidance)
    """Guidance of picture and sound; off by default, as distilled models need it."""
    loras: tuple[Lora, ...] = ()
    """LoRAs that are applied to the transformer in this stage alone."""
    batch_passes: Literal["auto", 1, 2, 3, 4] = "auto"
    """Guidance passes that go through the transformer together; ``auto`` is as many as fit into
    memory. It changes speed and memory, not the clip."""

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
        streams = (self.guidance.video, self.guidance.audio)
        guided = any(one.cfg != 1 or one.has_nag for one in streams)
        return guided or SAMPLER_FACTS[self.sampler].needs_uncond


MAX_SLOTS = 64
"""Most generated keyframes of a stage."""


class BaseStage(SamplingStage):
    """The first sampling run, from pure noise, at the smallest size."""

    kind: Literal["base"] = "base"
    generated_keyframes: Int = Field(default=0, ge=0, le=MAX_SLOTS)
    """Number of evenly spaced keyframes that are generated beside the clip and dropped after the
    stage, LTX-2.5 only. They keep long clips consistent and cost one latent frame each."""
    keyframes: Literal["even", "segments"] = "even"
    """Places of the generated keyframes: ``even`` as many as ``generated_keyframes`` says,
    ``segments`` one for every 24 or 32 frames of a keyframes-first clip (experimental)."""


class RefineStage(SamplingStage):
    """Another sampling run, from a re-noised latent.

    It starts at the first of ``sigmas``, or where ``denoise`` says (as in ComfyUI: it runs the last
    ``steps`` of a schedule of ``steps / denoise`` steps). ``tiles`` "auto"
    denoises in overlapping tiles where a side is longer than the model's positions cover.
    """

    kind: Literal["refine"] = "refine"
    denoise: Real | None = Field(default=None, gt=0, le=1)
    """Share of the schedule that the stage runs, as in ComfyUI; unset, all of it. 0.35 to 0.55 is
    usual: less adds little detail, above 0.7 it replaces the motion."""
    keyframes: Literal["none", "refine", "round"] = "none"
    """Use of the keyframes of a keyframes-first clip (experimental): ``refine`` denoises them with
    the clip, ``round`` makes the clip of twice the frame rate between them, in tiles."""
    tiles: StageTiles = "auto"
    """Tiles in which the stage is denoised: ``auto`` uses them where a side is longer than 2048 px,
    ``off`` never, a table sets their size."""

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
    """Factor of width and height, 2 or 1.5, or of the frame rate, 2."""
    axis: Literal["spatial", "temporal"] = "spatial"
    """``spatial`` multiplies width and height, ``temporal`` the frame rate."""
    adain: Real = Field(default=0.0, ge=0, le=1)
    """Share by which mean and deviation of every channel are brought back to those before; 0
    switches it off. Raise it where colours or contrast shift."""
    file: FileName | None = None
    """File of the latent upsampler for this stage, instead of the one that is found."""

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
    """Method: ``lanczos``, ``rtx`` (NVIDIA), ``pocket-compact-x2`` or a model file, a path or a
    name in ``upscale_models/``."""
    factor: Real | None = Field(default=None, gt=1, le=8)
    """Factor of width and height, above 1; unset 2, unless ``width`` and ``height`` are set."""
    width: Target | None = None
    """Width of the file in pixels, an even number; set it together with ``height`` instead of
    ``factor``."""
    height: Target | None = None
    """Height of the file in pixels, an even number; set it together with ``width``."""

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


Stage = Annotated[
    BaseStage | RefineStage | UpsampleStage | UpscaleStage, Field(discriminator="kind")
]
STAGE_TABLES: dict[str, type[Table]] = {
    "base": BaseStage,
    "refine": RefineStage,
    "upsample": UpsampleStage,
    "upscale": UpscaleStage,
}
