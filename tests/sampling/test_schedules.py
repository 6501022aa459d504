"""Schedules against the official lists, ComfyUI's published numbers, and lists that users type."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from helpers.goldens import Goldens
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.errors import RequestError
from latent_ladder.latents import tokens as latents
from latent_ladder.sampling import guiders, schedules
from latent_ladder.sampling.schedules import (
    DISTILLED_STAGE_1,
    DISTILLED_STAGE_2,
    SCHEDULES,
    denoise_of,
    manual_sigmas,
    sigmas_for,
    start_of,
    start_sigma,
)

GENERIC = [name for name, spec in SCHEDULES.items() if spec.function]


@pytest.mark.parametrize(
    "case",
    [
        "steps1",
        "steps4",
        "steps8",
        "steps15_tokens8160",
        "steps30",
        "steps20_tokens120",
        "steps40_tokens32640",
    ],
)
def test_ltx_schedule_is_the_official_one(golden: Goldens, case: str) -> None:
    want = golden(f"scheduler.{case}")
    want.check("sigmas", torch.tensor(schedules.ltx(want.params["steps"], want.params["tokens"])))


def test_fixed_lists_are_the_official_ones(golden: Goldens) -> None:
    want = golden("scheduler.constants")
    want.check("stage1_distilled", torch.tensor(sigmas_for("distilled")))
    want.check("stage2_distilled", torch.tensor(sigmas_for("distilled_stage_2", 3)))


PUBLISHED = {
    ("ltx", 8, None): "1 .965712 .921875 .863856 .783445 .664579 .471003 .1 0",
    ("ltx", 15, 8160): """1.0 .993491 .986015 .97734 .967151 .955015 .940314 .92214 .899096 .868923
        .827707 .768028 .673897 .503378 .1 0""",
    ("ltx", 20, None): """1 .9915 .9821 .9718 .9605 .9478 .9337 .9178 .8998 .8792 .8554 .8276 .7948
        .7553 .7071 .6467 .569 .4652 .3194 .1 0""",
    ("ltx", 30, None): """1.0 .994957 .989603 .983908 .97784 .971358 .964421 .956978 .948972
        .940336 .930994 .920854 .90981 .897735 .884479 .869858 .853651 .835584 .815319 .792427
        .766363 .736418 .701656 .660813 .612141 .553148 .480164 .387541 .26612 .1 0""",
}


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_lists(key: tuple[str, int, int | None]) -> None:
    name, steps, tokens = key
    want = [float(w) for w in PUBLISHED[key].split()]
    assert sigmas_for(name, steps, parameters={"tokens": tokens}) == pytest.approx(want, abs=6e-5)


@pytest.mark.parametrize(
    ("denoise", "want"),
    [
        (0.5, [0.9145, 0.8425, 0.6815, 0]),
        (0.4, [0.8892, 0.8106, 0.6407, 0]),
        (0.25, [0.781, 0.6815, 0.4932, 0]),
    ],
)
def test_denoise_truncates_as_comfyui_does(denoise: float, want: list[float]) -> None:
    assert sigmas_for("simple", 3, denoise) == pytest.approx(want, abs=5e-5)


TABLE = [math.exp(2.37) / (math.exp(2.37) + 10000 / k - 1) for k in range(1, 10001)]


def table_sigma(t: float) -> float:
    return math.exp(2.37) / (math.exp(2.37) + 1 / t - 1)


def by_definition(name: str, steps: int) -> list[float]:
    """ComfyUI's definitions, read off the table with numpy; sigma_min is its first entry."""
    low, line = TABLE[0], np.linspace
    schedules: dict[str, Callable[[], Iterable[float]]] = {
        "simple": lambda: [TABLE[-(1 + int(x * 10000 / steps))] for x in range(steps)],
        "normal": lambda: [table_sigma(t) for t in line(1, low, steps)],
        "sgm_uniform": lambda: [table_sigma(t) for t in line(1, low, steps + 1)[:-1]],
        "ddim_uniform": lambda: TABLE[1 :: 10000 // steps][::-1],
        "karras": lambda: (1 + line(0, 1, steps) * (low ** (1 / 7) - 1)) ** 7,
        "exponential": lambda: np.exp(line(0, np.log(low), steps)),
        "kl_optimal": lambda: np.tan(line(np.arctan(1), np.arctan(low), steps)),
        "linear_quadratic": lambda: 1 - mochi(steps),
    }
    return [float(s) for s in schedules[name]()] + [0.0]


def mochi(steps: int, threshold: float = 0.025) -> Any:
    """The quadratic through (L, threshold) and (steps, 1) that leaves L with the line's slope."""
    half = steps // 2
    slope = threshold / half
    rows = [[half**2, half, 1], [steps**2, steps, 1], [2 * half, 1, 0]]
    curve = np.linalg.solve(np.array(rows, float), [threshold, 1, slope])
    i = np.arange(steps)
    return np.where(i < half, i * slope, np.polyval(curve, i))


@pytest.mark.parametrize("steps", [2, 5, 8, 20, 33])
@pytest.mark.parametrize("name", [n for n in GENERIC if n not in ("ltx", "beta")])
def test_generic_schedules(name: str, steps: int) -> None:
    assert sigmas_for(name, steps) == pytest.approx(by_definition(name, steps), abs=1e-9)


def test_beta_is_scipys() -> None:
    special = pytest.importorskip("scipy.special")
    for steps in (1, 4, 17, 300):
        q = special.betaincinv(0.6, 0.6, 1 - np.linspace(0, 1, steps, endpoint=False))
        picked = dict.fromkeys(np.rint(q * 9999).astype(int).tolist())
        assert sigmas_for("beta", steps) == pytest.approx([*(TABLE[k] for k in picked), 0.0])
    for a, b in ((0.6, 0.6), (2.0, 0.5), (1.0, 3.0)):
        x = np.linspace(0.001, 0.999, 50)
        got = [schedules.incomplete_beta(v, a, b) for v in x.tolist()]
        np.testing.assert_allclose(got, special.betainc(a, b, x), rtol=1e-12)


@pytest.mark.parametrize("tokens", [1, 38_760, 130_560, 1_000_000])
def test_ltx_schedule_has_no_token_limit(tokens: int) -> None:
    """Long clips at 1080p and above: float32 alone would give several sigmas of 1, or NaN."""
    sigmas = sigmas_for("ltx", 30, parameters={"tokens": tokens})
    assert sigmas[0] == 1
    assert sigmas[-2] == pytest.approx(0.1)
    assert all(a > b for a, b in pairwise(sigmas))


@settings(deadline=None)
@given(st.sampled_from(GENERIC), st.integers(2, 60), st.floats(0.1, 1.0))
def test_every_schedule_falls_to_zero(name: str, steps: int, denoise: float) -> None:
    sigmas = sigmas_for(name, steps, denoise)
    assert all(a > b for a, b in pairwise(sigmas))
    assert sigmas[-1] == 0
    assert sigmas[0] <= 1
    if name not in ("beta", "ddim_uniform"):
        assert len(sigmas) == steps + 1
    if denoise == 1 and name != "ddim_uniform":
        assert sigmas[0] == pytest.approx(1)


@given(st.floats(0.05, 1.0), st.integers(3, 40))
def test_more_denoise_starts_higher(denoise: float, steps: int) -> None:
    less = start_sigma(sigmas_for("simple", steps, denoise * 0.9))
    assert less <= start_sigma(sigmas_for("simple", steps, denoise))


@given(st.floats(0.01, 1.0))
def test_denoise_of_inverts_start_of(denoise: float) -> None:
    assert denoise_of(start_of(denoise)) == pytest.approx(denoise)


def test_denoise_of_the_first_sigma_of_a_list() -> None:
    assert denoise_of(0.85) == pytest.approx(0.346, abs=1e-3)
    real = start_sigma(sigmas_for("simple", 20, 0.4))
    assert real == pytest.approx(start_of(0.4), abs=1e-9)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0.909375, 0.725, 0.421875, 0", DISTILLED_STAGE_2),
        ("1, 0.5 0.25 0", (1, 0.5, 0.25, 0)),
        ("1,1e-3,0", (1, 1e-3, 0)),
        ("[1., .5,0.0]", (1, 0.5, 0)),
        (" 0.85\n0.7250\t0.4219 0.0 ", (0.85, 0.725, 0.4219, 0)),
        (", ".join(str(s) for s in DISTILLED_STAGE_1), DISTILLED_STAGE_1),
    ],
)
def test_manual_sigmas(text: str, want: tuple[float, ...]) -> None:
    assert manual_sigmas(text) == want


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("", "empty", "for example"),
        ("[ ]", "empty", "for example"),
        ("1, 0.5", "do not end in 0", "write '1, 0.5, 0'"),
        ("1", "do not end in 0", "write '1, 0'"),
        ("0", "no step", "for example"),
        ("0.5, 0.7, 0", "do not fall", "write '0.7, 0.5, 0'"),
        ("1, 1, 0", "do not fall", "write '1, 0'"),
        ("909, 725, 0", "above 1", "write '0.909, 0.725, 0'"),
        ("1.5, 0", "above 1", "for example"),
        ("1, -0.5, 0", "below 0", "for example"),
        ("1, nan, 0", "'nan'", "for example"),
        ("1, inf, 0", "'inf'", "for example"),
        ("1, 1_0, 0", "'1_0'", "for example"),
        ("1, 0.5.2, 0", "'0.5.2'", "for example"),
        ("1,,0", "''", "for example"),
        ("one, 0", "'one'", "for example"),
        ("1; 0", "'1;'", "for example"),
    ],
)
def test_wrong_manual_sigmas(text: str, message: str, hint: str) -> None:
    with pytest.raises(RequestError, match=message) as e:
        manual_sigmas(text)
    assert hint in (e.value.hint or "")


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=30, unique=True))
def test_manual_sigmas_round_trip(values: list[float]) -> None:
    want = (*sorted(values, reverse=True), 0.0)
    assert manual_sigmas(", ".join(repr(v) for v in want)) == want


@given(st.text(alphabet="0123456789.,eE+-[] n", max_size=20))
def test_manual_sigmas_parses_or_raises(text: str) -> None:
    try:
        sigmas = manual_sigmas(text)
    except RequestError as e:
        assert e.hint
    else:
        assert sigmas[-1] == 0
        assert all(1 >= a > b for a, b in pairwise(sigmas))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "nope", "steps": 4}, "unknown"),
        ({"name": "simple"}, "steps=None"),
        ({"name": "simple", "steps": 0}, "steps=0"),
        ({"name": "simple", "steps": 4, "denoise": 0.0}, "denoise=0"),
        ({"name": "simple", "steps": 4, "denoise": 1.5}, "denoise=1.5"),
        ({"name": "simple", "steps": 4, "denoise": float("nan")}, "denoise=nan"),
        ({"name": "ltx", "steps": 1}, "starts at sigma 0.1"),
        ({"name": "ltx", "steps": 4, "parameters": {"terminal": 1.0}}, "terminal=1.0"),
        ({"name": "ltx", "steps": 4, "parameters": {"shift": 1.0}}, "no parameter 'shift'"),
        ({"name": "ltx", "steps": 4, "parameters": {"max_shift": 1e6}}, "max_shift"),
        ({"name": "beta", "steps": 4, "parameters": {"alpha": 0.0}}, "alpha"),
        ({"name": "karras", "steps": 4, "parameters": {"rho": 0.0}}, "rho"),
        ({"name": "distilled", "steps": 4}, "fixed list of 8 steps"),
        ({"name": "distilled", "denoise": 0.5}, "fixed list"),
    ],
)
def test_impossible_schedules_are_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sigmas_for(**arguments)


@pytest.mark.parametrize("module", [latents, guiders, schedules])
def test_examples_in_the_docstrings(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_tables_import_without_torch() -> None:
    code = (
        "import sys; from latent_ladder.sampling import guiders, samplers, schedules; "
        "schedules.sigmas_for('ltx', 8); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
