"""Samplers: one update rule per function, all with one signature, in the letters of the field.

A sampler goes through the descending ``sigmas`` from noise to picture. It gets one packed float32
tensor ``x`` ``(B, n)`` and a model that returns ``denoised``, the guided prediction of x0; it knows
no latent layout, no mask, no transformer. The path is that of a rectified flow,
``x = (1 - sigma) x0 + sigma noise``, so that ``d = (x - denoised) / sigma`` is its velocity.

In the bodies ``s, n`` are this sigma and the next, ``D`` is ``denoised``, ``D_u`` the
unconditioned prediction, ``a = 1 - sigma``.  ``SAMPLERS`` is the table of them all; importing
this module does not import torch.

Sources: k-diffusion; ComfyUI's ``k_diffusion/sampling.py`` for the numbers of same-named
samplers; LTX-2 ``diffusion_steps.py`` and ``samplers.py`` for ``res_2s`` and
``gradient_estimation``.
"""

# ruff: noqa: ARG001 - one signature for all: a deterministic sampler ignores the noise

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, Protocol

from latent_ladder.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

Sigmas = Sequence[float]
Model = Callable[["Tensor", float, int], "Prediction"]
"""(x, sigma, step) -> Prediction; several calls of one step share its number."""
Noise = Callable[[int, str], "Tensor"]
"""(step, "step" | "substep") -> standard normal noise like x; called once each, in order."""
OnStep = Callable[[int, "Tensor", "Tensor"], None]
"""(step, x after it, the denoised it used); may raise to stop."""


class Prediction(NamedTuple):
    """The model's predictions for x at one sigma, packed like x."""

    denoised: Tensor
    uncond: Tensor | None = None


def identity(x: Tensor) -> Tensor:
    """The identity, for runs without masks."""
    return x


@dataclass(frozen=True)
class SamplerOptions:
    """Options of a sampler; those that it does not have are ignored.

    ``eta`` is the share of fresh noise per step (``None``: the sampler's own default), ``s_noise``
    scales that noise, ``gamma`` the extrapolation of ``gradient_estimation``, ``bong`` the anchor
    refinement of ``res_2s``. ``keep`` is set by the loop, not by users: it restores masked parts
    after noise was added to x.
    """

    eta: float | None = None
    s_noise: float = 1.0
    gamma: float = 2.0
    bong: bool = True
    keep: Callable[[Tensor], Tensor] = identity

    def eta_or(self, default: float) -> float:
        """``eta``, or the sampler's own ``default``."""
        return default if self.eta is None else self.eta


PLAIN = SamplerOptions()


class Sampler(Protocol):
    """The shared signature: x of the first sigma in, x of the last sigma out."""

    def __call__(
        self,
        model: Model,
        x: Tensor,
        sigmas: Sigmas,
        *,
        noise: Noise,
        options: SamplerOptions = ...,
        on_step: OnStep | None = ...,
    ) -> Tensor: ...


def ignore(step: int, x: Tensor, denoised: Tensor) -> None:
    """The callback of a run without one."""


def _pairs(sigmas: Sigmas) -> Iterator[tuple[int, float, float]]:
    values = [float(s) for s in sigmas]
    return ((i, s, n) for i, (s, n) in enumerate(pairwise(values)))


def euler(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """First order, deterministic: one straight step along the velocity (k-diffusion, LTX-2)."""
    for i, s, n in _pairs(sigmas):
        D = model(x, s, i).denoised
        d = (x - D) / s
        x = x + d * (n - s)
        (on_step or ignore)(i, x, D)
    return x


def euler_ancestral(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler below the next sigma, then fresh noise up to it, keeping the variance of the flow.

    ``eta`` 1 by default; 0 is ``euler``. Source: ``sample_euler_ancestral_RF`` of ComfyUI and
    LTX-2's ``EulerAncestralDiffusionStep``, which agree.
    """
    eta = options.eta_or(1.0)
    for i, s, n in _pairs(sigmas):
        D = model(x, s, i).denoised
        down = n * (1 + (n / s - 1) * eta)
        x = D if n == 0 else (down / s) * x + (1 - down / s) * D
        if n > 0 and eta > 0:
            a = (1 - n) / (1 - down)
            up = math.sqrt(max(0.0, n**2 - (down * a) ** 2))
            x = options.keep(a * x + up * options.s_noise * noise(i, "step"))
        (on_step or ignore)(i, x, D)
    return x


def _uncond_of(p: Prediction) -> Tensor:
    if p.uncond is None:
        raise ValueError(
            "a CFG++ sampler needs the unconditioned prediction: pass force_uncond=True"
        )
    return p.uncond


def euler_cfg_pp(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """CFG++: the guided x0, renoised along the unconditioned direction (arXiv 2406.08070).

    Equal to ``euler`` if and only if ``uncond`` equals ``denoised``; needs the negative prompt
    even at cfg = 1. Source of the numbers: ComfyUI, eta 0 unless asked otherwise.
    """
    o = replace(options, eta=options.eta_or(0.0))
    return euler_ancestral_cfg_pp(model, x, sigmas, noise=noise, options=o, on_step=on_step)


def euler_ancestral_cfg_pp(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """``euler_cfg_pp`` with a part of the noise replaced by fresh noise, ``eta`` 1 by default.

    The ancestral split happens in the variance-exploding variable k = sigma / (1 - sigma). At
    sigma = 1, where k is infinite, eta 1 replaces all of the noise. Source: ComfyUI, LTX-2's
    ``EulerCfgPpDiffusionStep``.
    """
    eta = options.eta_or(1.0)
    for i, s, n in _pairs(sigmas):
        p = model(x, s, i)
        D, D_u = p.denoised, _uncond_of(p)
        eps = (x - (1 - s) * D_u) / s
        # (1 - n) k' = n, so up and down are written as shares of n
        ratio = n * (1 - s) / (s * (1 - n))  # k' / k, 0 at sigma = 1
        up = min(1.0, eta * math.sqrt(max(0.0, 1 - ratio**2)))
        down = math.sqrt(1 - up**2)
        x = (1 - n) * D + n * down * eps
        if n > 0 and up > 0:
            x = options.keep(x + n * up * options.s_noise * noise(i, "step"))
        (on_step or ignore)(i, x, D)
    return x


def dpmpp_2m(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++(2M) in t = -log(sigma), deterministic (arXiv 2211.01095).

    As in k-diffusion and ComfyUI it measures time as if alpha were 1; ``dpmpp_2m_rf`` is the
    version for a rectified flow. First and last steps are Euler.
    """
    D_prev, h_prev = x, 0.0  # 0: no step before
    for i, s, n in _pairs(sigmas):
        D = D2 = model(x, s, i).denoised
        h = math.log(s / n) if n > 0 else math.inf
        if h_prev > 0 and n > 0:
            D2 = D + h / (2 * h_prev) * (D - D_prev)
        x = (n / s) * x - math.expm1(-h) * D2
        D_prev, h_prev = D, h
        (on_step or ignore)(i, x, D)
    return x


def dpmpp_2m_rf(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """DPM-Solver++(2M) for a rectified flow: lambda = log((1 - sigma) / sigma), alpha = 1 - sigma.

    Deterministic. The first step, the last one and the one after sigma = 1 are Euler, because
    lambda is infinite there. Source: arXiv 2211.01095, equation of the 2M data prediction.
    """
    D_prev, h_prev = x, 0.0  # 0: no step before
    for i, s, n in _pairs(sigmas):
        D = D2 = model(x, s, i).denoised
        h = _log_snr(n) - _log_snr(s)
        if h_prev > 0 and math.isfinite(h):
            D2 = D + h / (2 * h_prev) * (D - D_prev)
        x = (n / s) * x - (1 - n) * math.expm1(-h) * D2
        D_prev, h_prev = D, h
        (on_step or ignore)(i, x, D)
    return x


def _log_snr(sigma: float) -> float:
    if sigma <= 0:
        return math.inf
    return math.log((1 - sigma) / sigma) if sigma < 1 else -math.inf


def res_multistep(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second-order exponential multistep in t = -log(sigma), deterministic (arXiv 2308.02157).

    First and last steps are Euler. Source of the numbers: ComfyUI ``res_multistep``, eta 0.
    """
    D_prev, h_prev = x, 0.0  # 0: no step before
    for i, s, n in _pairs(sigmas):
        D = model(x, s, i).denoised
        h = math.log(s / n) if n > 0 else math.inf
        if h_prev == 0 or n == 0:
            x = (n / s) * x + (1 - n / s) * D
        else:
            c2 = -h_prev / h
            b2 = phi(2, -h) / c2
            b1 = phi(1, -h) - b2
            x = math.exp(-h) * x + h * (b1 * D + b2 * D_prev)
        D_prev, h_prev = D, h
        (on_step or ignore)(i, x, D)
    return x


def phi(j: int, z: float) -> float:
    """phi_j(z) = (e^z - sum_{k<j} z^k/k!) / z^j, the weights of exponential integrators."""
    if abs(z) < 0.05:  # the quotient cancels: sum the series instead
        return sum(z**k / math.factorial(k + j) for k in range(8))
    return (math.exp(z) - sum(z**k / math.factorial(k) for k in range(j))) / z**j


def gradient_estimation(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """Euler with the velocity extrapolated by ``gamma``, 2 by default (arXiv 2306.04848).

    gamma 1 is ``euler``. The first step is Euler, the last returns ``denoised``.
    """
    d_prev = None
    for i, s, n in _pairs(sigmas):
        D = model(x, s, i).denoised
        d = (x - D) / s
        v = d if d_prev is None else options.gamma * (d - d_prev) + d_prev
        x = D if n == 0 else x + v * (n - s)
        d_prev = d
        (on_step or ignore)(i, x, D)
    return x


def heun(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """Heun's second-order method, deterministic, two evaluations per step but the last.

    Source: arXiv 2206.00364 algorithm 1, k-diffusion with ``s_churn`` 0.
    """
    for i, s, n in _pairs(sigmas):
        D = model(x, s, i).denoised
        d = (x - D) / s
        x_n = x + d * (n - s)
        if n > 0:
            d_n = (x_n - model(x_n, n, i).denoised) / n
            x_n = x + (d + d_n) / 2 * (n - s)
        x = x_n
        (on_step or ignore)(i, x, D)
    return x


def lcm(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """Consistency sampling: jump to x0, renoise wholly to the next sigma (arXiv 2303.01469)."""
    for i, s, n in _pairs(sigmas):
        x = D = model(x, s, i).denoised
        if n > 0:
            x = options.keep((1 - n) * D + n * options.s_noise * noise(i, "step"))
        (on_step or ignore)(i, x, D)
    return x


RES_2S_LAST = 0.0011
"""``res_2s`` goes to this sigma instead of 0, then takes its denoised prediction (LTX-2)."""


def res_2s(
    model: Model,
    x: Tensor,
    sigmas: Sigmas,
    *,
    noise: Noise,
    options: SamplerOptions = PLAIN,
    on_step: OnStep | None = None,
) -> Tensor:
    """Second-order exponential single step with a midpoint, and noise at both (``eta`` 0.5).

    Two evaluations per step and one more at the end. ``bong`` moves the start of a short step to
    where its noised midpoint would have come from. Its noise costs some contrast (4 % of the
    deviation on Gaussian data, however many steps); eta 0 is deterministic and does not. The state
    is float64 where the device has it. Source: RES, arXiv 2308.02157, and LTX-2
    ``res2s_audio_video_denoising_loop``.
    """
    eta = options.eta_or(0.5)
    dtype = x.dtype
    if x.device.type != "mps":
        x = x.double()
    values = [float(s) for s in sigmas]
    to_zero = values[-1] == 0 and len(values) > 1 and values[-2] > RES_2S_LAST
    walked = [*values[:-1], RES_2S_LAST] if to_zero else values

    def evaluate(y: Tensor, sigma: float, step: int) -> Tensor:
        return model(y.to(dtype), sigma, step).denoised.to(y.dtype)

    def renoise(y: Tensor, start: Tensor, s: float, n: float, draw: tuple[int, str]) -> Tensor:
        up, down, a = _sde_split(n, eta)
        if up == 0:
            return y
        eps = (start - y) / (s - n)
        fresh = noise(*draw).to(y) * options.s_noise
        return options.keep(a * (start - s * eps + down * eps) + up * fresh)

    D = x
    for i, s, n in _pairs(walked):
        D = evaluate(x, s, i)
        if n == 0:  # a schedule that already ends below RES_2S_LAST
            x = D
        else:
            h = math.log(s / n)
            mid, a21 = math.sqrt(s * n), 0.5 * phi(1, -h / 2)
            b2 = 2 * phi(2, -h)
            b1 = phi(1, -h) - b2
            x_mid = renoise(x + h * a21 * (D - x), x, s, mid, (i, "substep"))
            if options.bong and h < 0.5 and s > 0.03:
                # x_mid = x + h a21 (D - x) solved for x; LTX-2 iterates to the same fixed point
                x = (x_mid - h * a21 * D) / (1 - h * a21)
            D_mid = evaluate(x_mid, mid, i)
            x = renoise(x + h * (b1 * (D - x) + b2 * (D_mid - x)), x, s, n, (i, "step"))
        if to_zero and i == len(walked) - 2:
            x = D = evaluate(x, n, i)
        (on_step or ignore)(i, x.to(dtype), D.to(dtype))
    return x.to(dtype)


def _sde_split(n: float, eta: float) -> tuple[float, float, float]:
    """(up, down, a): sigma n as fresh noise ``up``, old noise at ``down`` scaled by ``a``."""
    up = min(n * eta, n * 0.9999)
    residual = math.sqrt(n**2 - up**2)
    a = (1 - n) + residual
    return up, residual / a, a


class SamplerSpec(NamedTuple):
    """One row of ``SAMPLERS``.

    ``evals_per_step`` times the steps plus ``extra_evals`` is the number of model calls; each of
    them runs as many passes as the guidance needs.
    """

    function: Sampler
    summary: str
    evals_per_step: int = 1
    extra_evals: int = 0
    needs_uncond: bool = False
    stochastic: bool = False
    standardised: bool = False
    """needs its noise with mean 0 and deviation 1 exactly, see ``denoise.noise_source``"""

    def evals(self, steps: int) -> int:
        """Number of model calls of ``steps`` steps that end at sigma 0."""
        return self.evals_per_step * steps + self.extra_evals


SAMPLERS: dict[str, SamplerSpec] = {
    "euler": SamplerSpec(euler, "the default: straight steps, what distilled models expect"),
    "euler_ancestral": SamplerSpec(
        euler_ancestral, "euler with fresh noise each step: livelier, less steady", stochastic=True
    ),
    "euler_cfg_pp": SamplerSpec(
        euler_cfg_pp, "CFG++: the negative prompt counts even at cfg 1", needs_uncond=True
    ),
    "euler_ancestral_cfg_pp": SamplerSpec(
        euler_ancestral_cfg_pp, "CFG++ with fresh noise", needs_uncond=True, stochastic=True
    ),
    "dpmpp_2m": SamplerSpec(dpmpp_2m, "second order, stronger prompt adherence, as in ComfyUI"),
    "dpmpp_2m_rf": SamplerSpec(dpmpp_2m_rf, "dpmpp_2m with the time scale of a rectified flow"),
    "res_2s": SamplerSpec(
        res_2s,
        "two evaluations per step with noise, for high quality in few steps",
        evals_per_step=2,
        extra_evals=1,
        stochastic=True,
        standardised=True,
    ),
    "res_multistep": SamplerSpec(res_multistep, "second order from the last two predictions"),
    "gradient_estimation": SamplerSpec(
        gradient_estimation, "euler with extrapolated velocity, saves some steps"
    ),
    "heun": SamplerSpec(heun, "second order, two evaluations per step", 2, -1),
    "lcm": SamplerSpec(lcm, "consistency sampling, for few-step models", stochastic=True),
}


def sampler_spec(name: str) -> SamplerSpec:
    """The row of ``name``; ``RequestError`` naming the known ones if there is none."""
    if name not in SAMPLERS:
        raise RequestError(
            f"sampler={name!r} is unknown, expected one of {', '.join(SAMPLERS)}",
            "use euler, the default",
        )
    return SAMPLERS[name]
