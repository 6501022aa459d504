"""Samplers against single official steps, and the properties of every sampler."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers.goldens import Goldens
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from latent_ladder.errors import RequestError
from latent_ladder.sampling.denoise import standardise_noise
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.sampling.samplers import (
    SAMPLERS,
    Model,
    Prediction,
    SamplerOptions,
    phi,
    sampler_spec,
)
from latent_ladder.sampling.schedules import DISTILLED_STAGE_1, DISTILLED_STAGE_2, ltx

DETERMINISTIC = [n for n, spec in SAMPLERS.items() if not spec.stochastic]
SCHEDULES = [DISTILLED_STAGE_1, DISTILLED_STAGE_2, ltx(6), (1.0, 0.0), (0.4, 0.0), (0.001, 0.0)]


def noise_of(like: Tensor, seed: int = 5) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return lambda step, kind: torch.randn(like.shape, generator=generator, dtype=like.dtype)


def run(name: str, model: Model, x: Tensor, sigmas: Any, **options: Any) -> Tensor:
    spec = SAMPLERS[name]
    return spec.function(model, x, sigmas, noise=noise_of(x), options=SamplerOptions(**options))


def constant(x0: Tensor) -> Model:
    return lambda x, sigma, step: Prediction(x0, x0)


class Gaussian:
    """The exact x0 prediction when clips are normal: mean m, deviation c. Its flow is known:
    x(sigma) = (1 - sigma) m + r(sigma) z with r^2 = (1 - sigma)^2 c^2 + sigma^2."""

    def __init__(self, m: float = 0.7, c: float = 0.5) -> None:
        self.m, self.c = m, c
        self.calls: list[tuple[float, int]] = []

    def r(self, sigma: float) -> float:
        return math.hypot((1 - sigma) * self.c, sigma)

    def at(self, sigma: float, z: Tensor) -> Tensor:
        return (1 - sigma) * self.m + self.r(sigma) * z

    def __call__(self, x: Tensor, sigma: float, step: int) -> Prediction:
        self.calls.append((sigma, step))
        gain = (1 - sigma) * self.c**2 / self.r(sigma) ** 2
        d = self.m + gain * (x - (1 - sigma) * self.m)
        return Prediction(d, d)


@pytest.mark.parametrize("i", range(4))
def test_euler_step_is_the_official_one(golden: Goldens, i: int) -> None:
    case = golden(f"step.euler.{i}")
    sigmas = case.inputs["sigmas"][i : i + 2]
    model = constant(case.inputs["denoised"])
    case.check("next", run("euler", model, case.inputs["sample"], sigmas))


@pytest.mark.parametrize("eta", ["1.0", "0.5"])
@pytest.mark.parametrize("i", range(4))
def test_ancestral_step_is_the_official_one(golden: Goldens, i: int, eta: str) -> None:
    case = golden(f"step.euler_ancestral.eta{eta}.{i}")
    got = SAMPLERS["euler_ancestral"].function(
        constant(case.inputs["denoised"]),
        case.inputs["sample"],
        case.inputs["sigmas"][i : i + 2].tolist(),
        noise=lambda step, kind: case.inputs["noise"],
        options=SamplerOptions(eta=case.params["eta"], s_noise=case.params["s_noise"]),
    )
    case.check("next", got)


@pytest.mark.parametrize("i", [1, 2])
def test_cfg_pp_step_is_the_official_one(golden: Goldens, i: int) -> None:
    case = golden(f"step.cfgpp.{i}")
    got = SAMPLERS["euler_ancestral_cfg_pp"].function(
        lambda x, sigma, step: Prediction(case.inputs["denoised"], case.inputs["uncond"]),
        case.inputs["sample"],
        case.inputs["sigmas"][i : i + 2].tolist(),
        noise=lambda step, kind: case.inputs["noise"],
        options=SamplerOptions(eta=case.params["eta"]),
    )
    case.check("next", got)


@pytest.mark.parametrize("i", [0, 2])
def test_res_2s_noise_injection_is_the_official_one(golden: Goldens, i: int) -> None:
    """The golden is the injection alone: its input is a step whose deterministic end is known."""
    case = golden(f"step.res2s_sde.{i}")
    s, n = case.inputs["sigmas"][i : i + 2].tolist()
    start, end = case.inputs["sample"].double(), case.inputs["denoised"].double()
    # with one x0 for both evaluations the step ends at (n/s) x + (1 - n/s) x0
    x0 = (end - n / s * start) / (1 - n / s)

    def noise(step: int, kind: str) -> Tensor:
        assert kind in ("step", "substep")
        return case.inputs["noise"] if kind == "step" else torch.zeros_like(start)

    def model(x: Tensor, sigma: float, step: int) -> Prediction:
        return Prediction(x0, None)

    # the midpoint gets no noise when the noise is exactly its own deterministic part: bong off and
    # a model that ignores x make the second evaluation independent of it
    options = SamplerOptions(bong=False)
    got = SAMPLERS["res_2s"].function(model, start, [s, n], noise=noise, options=options)
    case.check("next", got)


def test_standardised_noise_is_the_official_one(golden: Goldens) -> None:
    case = golden("step.res2s_noise_normalise")
    case.check("noise", standardise_noise(case.inputs["raw"]))


@pytest.mark.parametrize("sigmas", SCHEDULES, ids=lambda s: f"{s[0]:g}x{len(s) - 1}")
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_exact_when_x0_is_known(name: str, sigmas: tuple[float, ...]) -> None:
    x0, x = torch.randn(2, 2, 40, generator=torch.Generator().manual_seed(3))
    got = run(name, constant(x0), x, sigmas)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, x0, rtol=1e-5, atol=2e-6)


@given(
    st.sampled_from(sorted(SAMPLERS)),
    st.lists(st.integers(1, 1000), min_size=1, max_size=12, unique=True),
    st.booleans(),
)
@settings(deadline=None)
def test_no_schedule_gives_nan(name: str, levels: list[int], to_zero: bool) -> None:
    sigmas = [k / 1000 for k in sorted(levels, reverse=True)] + ([0.0] if to_zero else [])
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    got = run(name, Gaussian(), x, sigmas)
    assert got.isfinite().all()
    assert got.abs().max() < 100


@pytest.mark.parametrize("name", SAMPLERS)
def test_sigmas_almost_alike_are_sampled(name: str) -> None:
    sigmas = [1.0, 1 - 1e-16, 0.5, math.nextafter(0.5, 0), 1e-4, math.nextafter(1e-4, 0), 0.0]
    x = torch.randn(1, 16, generator=torch.Generator().manual_seed(0))
    assert run(name, constant(x), x, sigmas).isfinite().all()


ORDERS = {
    "euler": 1,
    "euler_cfg_pp": 1,
    "gradient_estimation": 1,
    "dpmpp_2m": 2,
    "dpmpp_2m_rf": 2,
    "res_multistep": 2,
    "res_2s": 2,
    "heun": 2,
}


def flow_error(name: str, steps: int) -> float:
    """Error of sampling from sigma 0.95 to 0.1 on the Gaussian flow, in float64."""
    model = Gaussian()
    z = torch.tensor([[-1.5, -0.3, 0.4, 2.0]], dtype=torch.float64)
    sigmas = torch.linspace(0.95, 0.1, steps + 1, dtype=torch.float64)
    got = run(name, model, model.at(0.95, z), sigmas, eta=0.0)
    return float((got - model.at(0.1, z)).abs().max())


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name: str) -> None:
    slopes = [math.log2(flow_error(name, n) / flow_error(name, 2 * n)) for n in (40, 80)]
    assert slopes[-1] == pytest.approx(ORDERS[name], abs=0.25)


def test_second_order_pays() -> None:
    for name, order in ORDERS.items():
        if order == 2:
            assert flow_error(name, 20) < flow_error("euler", 20) / 4, name


@pytest.mark.parametrize("name", ["euler_ancestral", "res_2s", "euler_ancestral_cfg_pp"])
def test_eta_zero_is_deterministic(name: str) -> None:
    def no_noise(step: int, kind: str) -> Tensor:
        raise AssertionError("noise was drawn")

    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    options = SamplerOptions(eta=0.0)
    got = SAMPLERS[name].function(Gaussian(), x, ltx(8), noise=no_noise, options=options)
    if name == "res_2s":
        plain = SAMPLERS[name].function(
            Gaussian(), x, ltx(8), noise=no_noise, options=SamplerOptions(eta=0.0, bong=False)
        )
    else:
        plain = run("euler", Gaussian(), x, ltx(8))
    torch.testing.assert_close(got, plain)


def test_ancestral_noise_keeps_the_variance_of_the_flow() -> None:
    """On Gaussian data ancestral sampling must end in the data's own mean and deviation."""
    model = Gaussian()
    x = torch.randn(1, 40_000, generator=torch.Generator().manual_seed(2))
    for name, steps, lost in (("euler_ancestral", 160, 0.03), ("res_2s", 20, 0.05)):
        got = run(name, model, x, torch.linspace(1, 0, steps + 1))
        assert float(got.mean()) == pytest.approx(model.m, abs=0.01), name
        assert model.c * (1 - lost) < float(got.std()) < model.c * 1.005, name


def test_cfg_pp_is_euler_iff_the_negative_prompt_changes_nothing() -> None:
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    plain = run("euler", Gaussian(), x, ltx(8))
    torch.testing.assert_close(run("euler_cfg_pp", Gaussian(), x, ltx(8)), plain)

    def guided_model(x: Tensor, sigma: float, step: int) -> Prediction:
        p = Gaussian()(x, sigma, step)
        return Prediction(p.denoised, p.denoised + 0.1)

    assert not torch.allclose(run("euler_cfg_pp", guided_model, x, ltx(8)), plain, atol=1e-2)


def test_cfg_pp_without_the_uncond_pass_is_an_error() -> None:
    x = torch.zeros(1, 4)
    with pytest.raises(ValueError, match="force_uncond"):
        run("euler_cfg_pp", lambda x, sigma, step: Prediction(x), x, [1.0, 0.0])


def test_cfg_pp_at_sigma_one_replaces_all_noise() -> None:
    x0, noise = torch.full((1, 4), 2.0), torch.full((1, 4), 3.0)
    got = SAMPLERS["euler_ancestral_cfg_pp"].function(
        constant(x0), torch.ones(1, 4), [1.0, 0.6], noise=lambda step, kind: noise
    )
    torch.testing.assert_close(got, 0.4 * x0 + 0.6 * noise)


def test_gamma_one_is_euler() -> None:
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    got = run("gradient_estimation", Gaussian(), x, ltx(8), gamma=1.0)
    torch.testing.assert_close(got, run("euler", Gaussian(), x, ltx(8)))


def test_dpmpp_2m_starts_like_euler() -> None:
    x = torch.randn(1, 8, generator=torch.Generator().manual_seed(1))
    euler = run("euler", Gaussian(), x, [0.9, 0.5])
    for name in ("dpmpp_2m", "dpmpp_2m_rf", "res_multistep", "gradient_estimation"):
        torch.testing.assert_close(run(name, Gaussian(), x, [0.9, 0.5]), euler)


def three_steps(name: str) -> tuple[list[float], list[float]]:
    """x after each step for x = 2 and the predictions 1, -1, 0.5 at sigmas 0.8, 0.5, 0.2, 0.05."""
    answers, xs = [1.0, -1.0, 0.5], []

    def model(x: Tensor, sigma: float, step: int) -> Prediction:
        return Prediction(torch.tensor([[answers[step]]], dtype=x.dtype))

    SAMPLERS[name].function(
        model,
        torch.tensor([[2.0]], dtype=torch.float64),
        SIGMAS,
        noise=lambda step, kind: torch.tensor([[0.25]]),
        on_step=lambda i, x, denoised: xs.append(float(x)),
    )
    return xs, answers


SIGMAS = [0.8, 0.5, 0.2, 0.05]


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_rf"])
def test_dpmpp_2m_formula(name: str) -> None:
    """Written as in the paper, with r = h_prev / h, in its time and with its alpha."""
    alpha = (lambda s: 1.0) if name == "dpmpp_2m" else (lambda s: 1 - s)
    t = [math.log(alpha(s) / s) for s in SIGMAS]
    xs, d = three_steps(name)
    x = [2.0, *xs]
    for i in range(3):
        h, s, n = t[i + 1] - t[i], SIGMAS[i], SIGMAS[i + 1]
        mixed = d[i]
        if i > 0:
            r = (t[i] - t[i - 1]) / h
            mixed = (1 + 1 / (2 * r)) * d[i] - 1 / (2 * r) * d[i - 1]
        want = n / s * x[i] - alpha(n) * (math.exp(-h) - 1) * mixed
        assert x[i + 1] == pytest.approx(want)


def test_res_multistep_formula() -> None:
    """ComfyUI's: c2 from -log(sigma), weights from phi_1 and phi_2 of -h."""
    t = [-math.log(s) for s in SIGMAS]
    xs, d = three_steps("res_multistep")
    for i in (1, 2):
        h = t[i + 1] - t[i]
        c2 = (t[i - 1] - t[i]) / h
        phi1 = (math.exp(-h) - 1) / -h
        phi2 = (phi1 - 1) / -h
        step = h * ((phi1 - phi2 / c2) * d[i] + phi2 / c2 * d[i - 1])
        assert xs[i] == pytest.approx(math.exp(-h) * xs[i - 1] + step)


def test_lcm_formula() -> None:
    xs, d = three_steps("lcm")
    assert xs == pytest.approx(
        [(1 - n) * x0 + n * 0.25 for x0, n in zip(d, SIGMAS[1:], strict=True)]
    )


def test_bong_closed_form_is_the_official_iteration() -> None:
    """LTX-2 repeats start = mid - h a21 (x0 - start) a hundred times; here it is solved."""
    h, a21, mid, x0 = 0.45, 0.5 * phi(1, -0.225), 0.8, 0.3
    start = 1.2
    for _ in range(100):
        start = mid - h * a21 * (x0 - start)
    assert (mid - h * a21 * x0) / (1 - h * a21) == pytest.approx(start, rel=1e-14)


@given(st.floats(-12, -1e-9), st.integers(1, 2))
def test_phi_is_smooth(z: float, j: int) -> None:
    # phi_j(z) = integral of e^((1-u) z) u^(j-1) / (j-1)! over u in 0..1
    u, w = np.polynomial.legendre.leggauss(40)
    u, w = (u + 1) / 2, w / 2
    want = float((w * np.exp((1 - u) * z) * u ** (j - 1)).sum())
    assert phi(j, z) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("sigmas", [DISTILLED_STAGE_2, (1.0, 0.0), ltx(5)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_number_and_steps_of_evaluations(name: str, sigmas: tuple[float, ...]) -> None:
    model, seen = Gaussian(), []
    SAMPLERS[name].function(
        model,
        torch.zeros(1, 4),
        sigmas,
        noise=noise_of(torch.zeros(1, 4)),
        on_step=lambda i, x, denoised: seen.append((i, x.dtype, denoised.shape)),
    )
    steps = len(sigmas) - 1
    assert len(model.calls) == SAMPLERS[name].evals(steps)
    assert [i for i, _, _ in seen] == list(range(steps))
    assert all(d == torch.float32 and s == (1, 4) for _, d, s in seen)
    sigmas_seen = [s for s, _ in model.calls]
    assert all(a > b for a, b in pairwise(sigmas_seen)) or name == "heun"
    assert {step for _, step in model.calls} == set(range(steps))


def test_noise_is_requested_in_order() -> None:
    asked: list[tuple[int, str]] = []

    def noise(step: int, kind: str) -> Tensor:
        asked.append((step, kind))
        return torch.zeros(1, 4)

    x = torch.zeros(1, 4)
    SAMPLERS["res_2s"].function(Gaussian(), x, ltx(2), noise=noise)
    assert asked == [(0, "substep"), (0, "step"), (1, "substep"), (1, "step")]
    asked.clear()
    SAMPLERS["euler_ancestral"].function(Gaussian(), x, ltx(3), noise=noise)
    assert asked == [(0, "step"), (1, "step")]


def test_the_table_without_functions_agrees() -> None:
    for name, spec in SAMPLERS.items():
        facts = SAMPLER_FACTS[name]
        assert [facts.evals(n) for n in (1, 8)] == [spec.evals(n) for n in (1, 8)], name
        assert facts.needs_uncond == spec.needs_uncond, name
        assert facts.stochastic == spec.stochastic, name
    assert set(SAMPLER_FACTS) == set(SAMPLERS)


def test_unknown_sampler() -> None:
    with pytest.raises(RequestError, match="euler_ancestral"):
        sampler_spec("ddpm9000")
