"""Options of a sampling stage: sampler, schedule, sigmas, guidance, LoRAs.

Plain validated values; nothing here knows a file, a device or a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictStr

from latent_ladder.errors import RequestError
from latent_ladder.request.fields import FileName, Int, Real, Table, Tokens
from latent_ladder.request.problems import Problem, did_you_mean
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
