"""Schedules: the descending sigmas of a sampler, from 1 (noise) to 0 (picture).

Every schedule is a function of the number of steps that returns a tuple of ``steps + 1`` floats
(``ddim_uniform`` may give one more) ending in 0; ``SCHEDULES`` is the table of them,
``sigmas_for`` computes one by name, ``manual_sigmas`` reads a list that a user typed. Nothing here
needs torch, a model or a latent: a schedule may only use the number of video tokens.

The generic schedules are ComfyUI's on the sigma table of LTX models: 10000 sigmas
e^mu / (e^mu + 1/t - 1), mu = 2.37, t = 1/10000 ... 1 (its ``ModelSamplingFlux``).

>>> [round(s, 4) for s in sigmas_for("simple", 3, denoise=0.4)]
[0.8892, 0.8106, 0.6407, 0.0]
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from ctypes import c_float
from dataclasses import dataclass, field
from itertools import pairwise
from types import MappingProxyType

from latent_ladder.errors import RequestError

Sigmas = tuple[float, ...]

SHIFT = 2.37
"""mu of the sigma table of LTX models in ComfyUI."""
TABLE = 10_000
"""Entries of that table."""
DEFAULT_TOKENS = 4096
"""Default number of video tokens of the LTX schedule."""

DISTILLED_STAGE_1: Sigmas = (
    1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0,
)  # fmt: skip
DISTILLED_STAGE_2: Sigmas = (0.909375, 0.725, 0.421875, 0.0)


def shift_time(t: float, mu: float) -> float:
    """sigma(t) = e^mu / (e^mu + 1/t - 1), the time shift of SD3 and Flux; 0 at t = 0."""
    return math.exp(mu) / (math.exp(mu) + 1 / t - 1) if t > 0 else 0.0


def unshift_time(sigma: float, mu: float) -> float:
    """The t whose ``shift_time`` value is ``sigma``."""
    return 1 / (1 + math.exp(mu) * (1 / sigma - 1)) if sigma > 0 else 0.0


def linspace(first: float, last: float, count: int) -> list[float]:
    """``count`` evenly spaced numbers, both ends included (only ``first`` for a count of 1)."""
    return [first + (last - first) * i / max(count - 1, 1) for i in range(count)]


def ltx(
    steps: int,
    tokens: int | None = None,
    max_shift: float = 2.05,
    base_shift: float = 0.95,
    stretch: bool = True,
    terminal: float = 0.1,
) -> Sigmas:
    """The schedule of LTX models: shifted by the number of video tokens, stretched to a terminal.

    mu runs linearly through ``base_shift`` at 1024 tokens and ``max_shift`` at 4096, unclamped.
    ``tokens`` ``None`` means 4096: what LTX-2 does, except in its high-quality pipeline, which
    like ComfyUI with a latent connected counts F*H*W. ``stretch`` makes the last sigma before 0
    equal ``terminal``. Source: LTX-2 ``LTX2Scheduler``, ComfyUI ``LTXVScheduler``.
    """
    n = DEFAULT_TOKENS if tokens is None else tokens
    slope = (max_shift - base_shift) / (4096 - 1024)
    e_mu = math.exp(base_shift + slope * (n - 1024))
    # Single precision and a reciprocal, to round as both sources do: at 32640 tokens z is 5e-6,
    # of which it keeps two digits, and the stretch turns that into differences of 3e-4.
    rounded: Callable[[float], float] = _single
    e = _single(e_mu)
    q = [_single(_single(1 / _single(1 - i * (1 / steps))) - 1) for i in range(steps)]
    s = [_single(_single(_divide(1, _single(e + x))) * e) for x in q]
    if stretch:
        z = [_single(1 - x) for x in s]
        if not all(b > a for a, b in pairwise(z)):  # with more tokens singles round sigmas to 1
            rounded, z = float, [_divide(x, e_mu + x) for x in q]
        scale = rounded(_divide(z[-1], rounded(1 - terminal)))
        # of one step the only sigma is the last too: 0/0, whose limit is the terminal
        s = [rounded(1 - rounded(x / scale)) if scale > 0 else _single(terminal) for x in z]
    return (*s, 0.0)


def _single(x: float) -> float:
    """The nearest number of single precision; beyond its range infinity."""
    return c_float(x).value


def _divide(x: float, y: float) -> float:
    """``x / y`` with IEEE's results for a zero; the caller checks that the sigmas fall."""
    return x / y if y else math.copysign(math.inf, x) if x else math.nan


def simple(steps: int, shift: float = SHIFT) -> Sigmas:
    """Every (10000/steps)-th sigma of the table from the top."""
    picked = (TABLE - int(i * TABLE / steps) for i in range(steps))
    return (*(_table(k, shift) for k in picked), 0.0)


def _table(k: int, shift: float) -> float:
    """The k-th sigma of the table, k = 1 ... 10000."""
    return shift_time(k / TABLE, shift)


def normal(steps: int, shift: float = SHIFT) -> Sigmas:
    """Even in the model's own time from the largest to the smallest sigma, shifted once more.

    For a flow the model's time is sigma itself, so the shift of the table is applied to it again.
    """
    return (*(shift_time(t, shift) for t in linspace(1.0, _table(1, shift), steps)), 0.0)


def sgm_uniform(steps: int, shift: float = SHIFT) -> Sigmas:
    """``normal`` over one step more, its last sigma left out."""
    return (*(shift_time(t, shift) for t in linspace(1.0, _table(1, shift), steps + 1)[:-1]), 0.0)


def ddim_uniform(steps: int, shift: float = SHIFT) -> Sigmas:
    """Every (10000 // steps)-th sigma of the table from the bottom: may start just below 1.

    When ``steps`` does not divide 10000 there can be more sigmas than requested.
    """
    return (*(_table(k, shift) for k in range(2, TABLE + 1, max(TABLE // steps, 1))[::-1]), 0.0)


def beta(steps: int, shift: float = SHIFT, alpha: float = 0.6, beta: float = 0.6) -> Sigmas:
    """Quantiles of a beta distribution on the table: dense at both ends (arXiv 2407.12173).

    Repeated entries are left out, so many steps may give fewer sigmas than requested.
    """
    picked = dict.fromkeys(_beta_entry(1 - i / steps, alpha, beta) for i in range(steps))
    return (*(_table(k, shift) for k in picked), 0.0)


def _beta_entry(p: float, a: float, b: float) -> int:
    """The table entry nearest to the p-quantile of the beta distribution over the table."""
    last = TABLE - 1
    below = bisect_left(range(last), p, key=lambda k: incomplete_beta((k + 0.5) / last, a, b))
    return below + 1


def linear_quadratic(steps: int, threshold: float = 0.025) -> Sigmas:
    """Half of the steps linear down to 1 - ``threshold``, then quadratic (Mochi 1)."""
    if steps == 1:
        return (1.0, 0.0)
    linear = steps // 2
    slope = threshold / linear
    curvature = (1 - slope * steps) / (steps - linear) ** 2
    bends = (curvature * max(i - linear, 0) ** 2 for i in range(steps))
    return (*(1 - slope * i - bend for i, bend in enumerate(bends)), 0.0)


def karras(steps: int, shift: float = SHIFT, rho: float = 7.0) -> Sigmas:
    """Even in sigma^(1/rho) (arXiv 2206.00364, equation 5); made for other models than flows."""
    high, low = 1.0, _table(1, shift) ** (1 / rho)
    return (*(r**rho for r in linspace(high, low, steps)), 0.0)


def exponential(steps: int, shift: float = SHIFT) -> Sigmas:
    """Even in log(sigma); made for other models than flows."""
    return (*(math.exp(v) for v in linspace(0.0, math.log(_table(1, shift)), steps)), 0.0)


def kl_optimal(steps: int, shift: float = SHIFT) -> Sigmas:
    """Even in arctan(sigma) (Align Your Steps, arXiv 2404.14507)."""
    angles = linspace(math.atan(1.0), math.atan(_table(1, shift)), steps)
    return (*(math.tan(a) for a in angles), 0.0)


def incomplete_beta(x: float, a: float, b: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, by its series in x.

    I_x(a, b) = x^a (1-x)^b / (a B(a, b)) * sum_k x^k (a+b)_k / (a+1)_k (DLMF 8.17.8), on the side
    of 1/2 where it converges fast, through I_x(a, b) = 1 - I_(1-x)(b, a).
    """
    if x > 0.5:
        return 1 - incomplete_beta(1 - x, b, a)
    term = total = 1.0
    k = 0
    while term > 1e-16 * total:
        term *= x * (a + b + k) / (a + 1 + k)
        total += term
        k += 1
    log_b = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return total * math.exp(a * math.log(x) + b * math.log1p(-x) - log_b) / a


@dataclass(frozen=True)
class ScheduleSpec:
    """One row of ``SCHEDULES``: a function of the steps, or a fixed list that was trained for."""

    summary: str
    function: Callable[..., Sigmas] | None = None
    parameters: Mapping[str, float | bool | int | None] = field(
        default_factory=lambda: MappingProxyType({})
    )
    fixed: Sigmas = ()


def _row(
    summary: str, function: Callable[..., Sigmas], **defaults: float | bool | int | None
) -> ScheduleSpec:
    return ScheduleSpec(summary, function, MappingProxyType(defaults))


SCHEDULES: dict[str, ScheduleSpec] = {
    "ltx": _row(
        "the schedule of LTX models: for stage 1 with a dev checkpoint",
        ltx,
        tokens=None,
        max_shift=2.05,
        base_shift=0.95,
        stretch=True,
        terminal=0.1,
    ),
    "distilled": ScheduleSpec("stage 1 of distilled models, 8 steps", fixed=DISTILLED_STAGE_1),
    "distilled_stage_2": ScheduleSpec("stage 2 of LTX-2, 3 steps", fixed=DISTILLED_STAGE_2),
    "comfyui_stage_2": ScheduleSpec(
        "stage 2 of the ComfyUI graphs, 3 steps", fixed=(0.85, 0.725, 0.4219, 0.0)
    ),
    "inpaint_stage_2": ScheduleSpec(
        "stage 2 of the ComfyUI inpainting graphs, 2 steps", fixed=(0.725, 0.4219, 0.0)
    ),
    "tdp_stage_2": ScheduleSpec(
        "stage 2 of LTX-2 on several GPUs, 2 steps", fixed=(0.625, 0.4, 0.0)
    ),
    "temporal_refine": ScheduleSpec(
        "after a temporal upsample, 4 steps", fixed=DISTILLED_STAGE_1[4:]
    ),
    "simple": _row("even steps in time, for stage 2 with denoise", simple, shift=SHIFT),
    "normal": _row("even steps in sigma, shifted", normal, shift=SHIFT),
    "sgm_uniform": _row("normal, one step shorter at the end", sgm_uniform, shift=SHIFT),
    "ddim_uniform": _row("even steps in time from the low end", ddim_uniform, shift=SHIFT),
    "beta": _row("dense at both ends", beta, shift=SHIFT, alpha=0.6, beta=0.6),
    "linear_quadratic": _row("linear, then quadratic", linear_quadratic, threshold=0.025),
    "karras": _row("even in sigma^(1/rho); not made for flows", karras, shift=SHIFT, rho=7.0),
    "exponential": _row("even in log(sigma); not made for flows", exponential, shift=SHIFT),
    "kl_optimal": _row("even in arctan(sigma)", kl_optimal, shift=SHIFT),
}


def schedule_spec(name: str) -> ScheduleSpec:
    """The row of ``name``; ``RequestError`` naming the known ones if there is none."""
    if name not in SCHEDULES:
        raise RequestError(
            f"schedule={name!r} is unknown, expected one of {', '.join(SCHEDULES)}",
            "use ltx, the default",
        )
    return SCHEDULES[name]


def sigmas_for(
    name: str,
    steps: int | None = None,
    denoise: float = 1.0,
    parameters: Mapping[str, float | bool | int | None] = MappingProxyType({}),
) -> Sigmas:
    """The sigmas of a schedule by name.

    ``denoise`` is ComfyUI's: the schedule is made for int(steps / denoise) steps and its last
    ``steps`` are used, so it is *not* the start sigma (see ``start_sigma``). ``parameters``
    override the row's. A fixed list takes neither; ``steps`` may be left out for one. Raises
    ``RequestError`` for anything that gives no usable list.
    """
    spec = schedule_spec(name)
    if spec.function is None:
        return _fixed_sigmas(name, spec, steps, denoise, parameters)
    if steps is None or steps < 1:
        raise RequestError(f"steps={steps}, expected 1 or more", "use 20 for a first try")
    unknown = [p for p in parameters if p not in spec.parameters]
    if unknown:
        known = ", ".join(spec.parameters)
        raise RequestError(
            f"schedule {name} has no parameter {unknown[0]!r}, expected one of {known}",
            "leave it out",
        )
    total = total_steps(steps, denoise)
    try:
        sigmas = spec.function(total, **{**spec.parameters, **parameters})
    except (ArithmeticError, ValueError) as e:
        raise _unusable(name, parameters) from e
    if total == 1 and sigmas[0] < 0.5:
        raise RequestError(
            f"steps=1 with the schedule {name} starts at sigma {sigmas[0]:g}, expected about 1",
            "use --steps 2 or more, or the schedule simple",
        )
    if not _falls(sigmas) or sigmas[0] > 1 or sigmas[-1] != 0:
        raise _unusable(name, parameters)
    return sigmas[-(steps + 1) :] if total > steps else sigmas


def _fixed_sigmas(
    name: str,
    spec: ScheduleSpec,
    steps: int | None,
    denoise: float,
    parameters: Mapping[str, float | bool | int | None],
) -> Sigmas:
    n = len(spec.fixed) - 1
    if steps not in (None, n) or denoise != 1.0 or parameters:
        raise RequestError(
            f"schedule {name} is a fixed list of {n} steps, got steps={steps}, "
            f"denoise={denoise:g}, parameters {dict(parameters)}",
            f"leave them out, or use the schedule simple with --steps {steps or n}",
        )
    return spec.fixed


def _unusable(name: str, parameters: Mapping[str, float | bool | int | None]) -> RequestError:
    used = ", ".join(f"{k}={v}" for k, v in parameters.items()) or "these steps"
    return RequestError(
        f"schedule {name} with {used} gives no list that falls from at most 1 to 0",
        "use its defaults: " + ", ".join(f"{k}={v}" for k, v in SCHEDULES[name].parameters.items()),
    )


def _falls(sigmas: Sigmas) -> bool:
    return all(math.isfinite(a) and a > b for a, b in pairwise(sigmas))


def total_steps(steps: int, denoise: float) -> int:
    """The length of the whole schedule of which ``denoise`` runs the last ``steps`` steps."""
    if not 0 < denoise <= 1:
        raise RequestError(
            f"denoise={denoise:g}, expected more than 0 and at most 1",
            "use 0.35 to 0.55 to refine an upsampled clip",
        )
    return steps if denoise > 0.9999 else int(steps / denoise)


def start_sigma(sigmas: Sigmas) -> float:
    """The share of noise a run starts with: the first sigma."""
    if not sigmas:
        raise RequestError("sigmas are empty, expected at least two numbers ending in 0")
    return float(sigmas[0])


def denoise_of(sigma: float, shift: float = SHIFT) -> float:
    """About the ``denoise`` with which the schedule ``simple`` starts at ``sigma``.

    >>> round(denoise_of(0.85), 2), round(denoise_of(0.909375), 2)
    (0.35, 0.48)
    """
    return unshift_time(sigma, shift)


def start_of(denoise: float, shift: float = SHIFT) -> float:
    """About the sigma at which ``simple`` starts for ``denoise``; inverse of ``denoise_of``.

    With few steps the real list starts up to a step away, because the list has whole steps.
    """
    return shift_time(denoise, shift)


_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def manual_sigmas(text: str) -> Sigmas:
    """Read a list such as ``"0.909375, 0.725, 0.421875, 0"``: numbers, comma or space between.

    The numbers must fall strictly, start at 1 or less and end in 0; brackets around the list are
    fine. Raises ``RequestError`` with the repaired list as hint where there is one.
    """
    body = text.strip()
    if body[:1] + body[-1:] in ("[]", "()"):
        body = body[1:-1].strip()
    if not body:
        raise RequestError("sigmas are empty, expected numbers that fall to 0", _EXAMPLE)
    words = re.split(r"\s*,\s*|\s+", body)
    wrong = [w for w in words if not _NUMBER.fullmatch(w)]
    if wrong:
        raise RequestError(f"sigmas hold {wrong[0]!r}, which is not a number", _EXAMPLE)
    sigmas = tuple(float(w) for w in words)
    problem, hint = _problem(sigmas)
    if problem:
        raise RequestError(f"sigmas={text!r} {problem}", hint)
    return sigmas


_EXAMPLE = "for example --sigmas '0.909375, 0.725, 0.421875, 0'"


def _problem(sigmas: Sigmas) -> tuple[str | None, str]:
    """The problem of a list of numbers, and the list to write instead."""

    def write(values: list[float]) -> str:
        return f"write '{', '.join(f'{v:g}' for v in values)}'"

    if max(sigmas) > 1:
        scaled = [s / 1000 for s in sigmas]
        is_time = max(scaled) <= 1 < max(sigmas) / 10
        return "go above 1, which is pure noise", write(scaled) if is_time else _EXAMPLE
    if min(sigmas) < 0:
        return "go below 0, which is the finished picture", _EXAMPLE
    if not _falls(sigmas):
        in_order = sorted(set(sigmas) | {0.0}, reverse=True)
        return "do not fall strictly", write(in_order) if len(in_order) > 1 else _EXAMPLE
    if sigmas[-1] != 0:
        return "do not end in 0, so the clip would stay noisy", write([*sigmas, 0.0])
    if len(sigmas) < 2:
        return "hold no step, expected at least two numbers", _EXAMPLE
    return None, ""
