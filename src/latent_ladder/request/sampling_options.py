"""Options of a sampling stage: sampler, schedule, sigmas, guidance, LoRAs.

Plain validated values; nothing here knows a file, a device or a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr

from latent_ladder.errors import RequestError, did_you_mean
from latent_ladder.request.fields import FileName, Int, Real, Table, Tokens
from latent_ladder.request.problems import Problem
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.schedules import SCHEDULES, manual_sigmas, sigmas_for

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


SamplerName = Annotated[StrictStr, BeforeValidator(_sampler)]
ScheduleName = Annotated[StrictStr, BeforeValidator(_schedule)]
Sigmas = Annotated[tuple[float, ...], BeforeValidator(_sigmas)]


class NagOptions(Table):
    """Normalized attention guidance (NAG): text attention is pushed away from the negative prompt.

    It works without CFG, and so with distilled models.
    """

    scale: Real = Field(default=11.0, ge=1, le=100)
    """Strength of the guidance; 1 is none, 5 to 11 is usual."""
    tau: Real = Field(default=2.5, gt=0, le=100)
    """Largest growth of the guided attention over that of the prompt alone; lower it where colours
    burn out."""
    alpha: Real = Field(default=0.25, ge=0, le=1)
    """Share of the guided attention in the result: 0 is none, 1 is all of it."""


class StreamGuidance(Table):
    """Guidance of one stream, with the names of LTX-2's multimodal guider; the defaults are off."""

    cfg: Real = Field(default=1.0, ge=0, le=100)
    """Scale of text guidance (CFG): higher follows the prompt more closely; 1 switches it off. 3 to
    4.5 suits dev checkpoints, 1 distilled ones; more makes motion stiff."""
    stg: Real = Field(default=0.0, ge=0, le=100)
    """Scale of guidance away from a prediction with perturbed self-attention (STG); 0 switches it
    off, 1 is usual for dev checkpoints."""
    modality: Real = Field(default=1.0, ge=0, le=100)
    """Scale of guidance by the other stream, sound for the picture and picture for the sound, for
    better agreement of both; 1 switches it off, 3 is usual for dev checkpoints."""
    rescale: Real = Field(default=0.0, ge=0, le=1)
    """Share by which guided predictions are brought back to the contrast without guidance; 0
    switches it off. Raise it where strong guidance gives harsh pictures."""
    stg_blocks: tuple[Annotated[Int, Field(ge=0)], ...] = ()
    """Numbers of the transformer blocks that STG perturbs, counted from 0; required with ``stg``,
    and 28 is usual for LTX-2.3."""
    skip_step: Int = Field(default=0, ge=0, le=100)
    """Number of steps after each evaluated one that reuse its prediction; 0 evaluates every step,
    more is faster and less exact."""
    sigma_low: Real = Field(default=0.0, ge=0, le=1)
    """Lowest noise level at which guidance applies; raise it to leave the last steps without
    guidance."""
    sigma_high: Real = Field(default=1.0, ge=0, le=1)
    """Highest noise level at which guidance applies; lower it to leave the first steps without
    guidance."""
    nag: NagOptions | None = None
    """Guidance away from the negative prompt inside the attention to the prompt, which needs no
    second pass; unset, there is none. It applies at every noise level."""

    @property
    def has_nag(self) -> bool:
        """True where NAG changes the prediction."""
        return self.nag is not None and self.nag.scale > 1 and self.nag.alpha > 0

    def terms(self) -> dict[str, Any]:
        """The terms that combine passes, without NAG, which acts inside of a pass."""
        return self.model_dump(exclude={"nag"})


class StageGuidance(Table):
    """Guidance of a stage, for video and for audio."""

    video: StreamGuidance = Field(default_factory=StreamGuidance)
    """Guidance of the picture; off by default."""
    audio: StreamGuidance = Field(default_factory=StreamGuidance)
    """Guidance of the sound; off by default."""


class Lora(Table):
    """One LoRA: a file by ``name``, or by its ``role`` in the model family."""

    name: FileName | None = None
    """File of the LoRA, a path or a name in ``loras/``; set either this or ``role``."""
    role: Literal["distilled"] | None = None
    """``distilled`` uses the distilled LoRA of the model family, whatever the name of its file; set
    either this or ``name``."""
    strength: Real = Field(default=1.0, ge=-100, le=100)
    """Factor of the LoRA's changes to the weights: 1 as it was trained, 0 leaves it out."""


class SamplerOptions(Table):
    """Options of samplers; ``None`` uses the sampler's own default."""

    eta: Real | None = Field(default=None, ge=0, le=100)
    """Share of noise that a step replaces by fresh noise, for the ``euler_ancestral`` samplers
    (unset 1), ``res_2s`` (0.5) and ``euler_cfg_pp`` (0); 0 adds none and gives steadier clips."""
    s_noise: Real | None = Field(default=None, ge=0, le=100)
    """Factor of the fresh noise, for all samplers that add noise; unset 1."""
    gamma: Real | None = Field(default=None, ge=0, le=100)
    """Extrapolation of ``gradient_estimation``; unset 2, and 1 is plain ``euler``."""
    bong: StrictBool | None = None
    """Correction of the start of short steps in ``res_2s``; unset on, as in Lightricks'
    pipeline."""


class Schedule(Table):
    """A named schedule and its parameters; ``None`` uses the schedule's own default.

    Fixed lists such as ``distilled`` take no ``steps``, the others need them. A parameter that the
    schedule does not have is an error.
    """

    name: ScheduleName = "ltx"
    """One of the schedules below: a rule, which needs ``steps``, or a fixed list."""
    steps: Int | None = Field(default=None, ge=1, le=MAX_STEPS)
    """Number of steps of the stage: more takes longer and usually adds detail; left out for fixed
    lists."""
    tokens: Tokens | None = None
    """Number of video tokens that sets the shift of ``ltx``: ``actual`` for those of the stage, as
    ComfyUI counts them; unset 4096, as in most of Lightricks' pipelines."""
    max_shift: Real | None = Field(default=None, ge=0, le=100)
    """Shift of ``ltx`` at 4096 tokens; unset 2.05. Larger spends more steps at high noise, where
    motion and layout form."""
    base_shift: Real | None = Field(default=None, ge=0, le=100)
    """Shift of ``ltx`` at 1024 tokens; unset 0.95."""
    stretch: StrictBool | None = None
    """Stretches the sigmas of ``ltx`` so that the last one before 0 is ``terminal``; unset on."""
    terminal: Real | None = Field(default=None, ge=0, le=0.99)
    """Last sigma of ``ltx`` before 0; unset 0.1."""
    shift: Real | None = Field(default=None, ge=-100, le=100)
    """Shift of the sigma table for ComfyUI's schedules, such as ``simple`` and ``beta``; unset
    2.37. Larger spends more steps at high noise."""
    alpha: Real | None = Field(default=None, gt=0, le=100)
    """First parameter of the distribution of ``beta``; unset 0.6."""
    beta: Real | None = Field(default=None, gt=0, le=100)
    """Second parameter of the distribution of ``beta``; unset 0.6."""
    rho: Real | None = Field(default=None, gt=0, le=100)
    """Exponent of ``karras``; unset 7. Larger spends more steps at low noise."""
    threshold: Real | None = Field(default=None, gt=0, lt=1)
    """Fall of sigma over the linear half of ``linear_quadratic``; unset 0.025."""

    def sigmas(self, tokens: int, denoise: float = 1.0) -> tuple[float, ...]:
        """The sigmas for a stage of ``tokens`` video tokens. Raises RequestError."""
        parameters = self.model_dump(exclude={"name", "steps"}, exclude_none=True)
        if self.tokens == "actual":
            parameters["tokens"] = tokens
        return sigmas_for(self.name, self.steps, denoise, parameters)
