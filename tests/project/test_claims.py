"""The verdicts of the claims page, on numbers whose answer is known."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import claims_page as claims  # noqa: E402

RNG = np.random.default_rng(0)


def arm(
    kept: float = 0.6,
    added: float = 1.0,
    detail: float = 2.0,
    flicker: float = 1.0,
    seconds: float = 5.0,
    drift: float = 1.0,
) -> dict[str, Any]:
    """The numbers of one clip; a little of chance on each."""
    chance = 1 + 0.01 * RNG.standard_normal()
    against = {
        "motion_kept": kept * chance,
        "detail_added_db": added * chance,
        "structure_similarity": 0.95,
        "color_drift": 1.0,
    }
    return {
        "detail": detail * chance,
        "flicker": flicker * chance,
        "warping_error": 2.0,
        "color_drift": drift * chance,
        "seconds": seconds * chance,
        "cpu_s": seconds * chance,
        "stage_2_cpu_s": seconds * chance,
        "stage_2_seconds": seconds * chance,
        "against": against,
        "against stage 1": against,
    }


def as_the_guide_says() -> dict[str, Any]:
    """A world in which every claim is true."""
    arms = {
        "denoise 0.1": arm(kept=0.70, added=0.1),
        "denoise 0.2": arm(kept=0.69, added=0.5),
        "denoise 0.35": arm(kept=0.68, added=1.5, detail=2.0),
        "denoise 0.48": arm(kept=0.68, added=2.5, detail=3.0),
        "denoise 0.55": arm(kept=0.67, added=3.0),
        "denoise 0.7": arm(kept=0.45, added=4.0),
        "denoise 0.83": arm(kept=0.30, added=5.0),
        "other seed": arm(kept=0.50),
        "twice the steps": arm(detail=2.2),
        "single pass": arm(detail=1.5, seconds=9.0, drift=3.0, flicker=2.0),
        "pixel upscale": arm(kept=0.5, added=0.5, seconds=9.0),
    }
    arms["pixel upscale"]["against stage 1"]["structure_similarity"] = 0.9
    return {"arms": arms}


def body(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pair = {"denoise 0.48": {"peak_bytes": 1e8}, "single pass": {"peak_bytes": 2e8}}
    return {
        "is_pocket": True, "preset": "pocket", "size": [512, 512], "stage_1": [256, 256],
        "frames": 17, "fps": 24.0, "steps": [16, 5], "device": "cpu", "made": "2026-11-27",
        "start_sigmas": {claims.denoise(d): d for d in claims.DENOISE}, "alone": [pair] * 3,
        "rows": {f"prompt {i}": row for i, row in enumerate(rows)},
    }  # fmt: skip


def verdicts(page: str) -> list[str]:
    table = page[page.index("| the guide says") :].split("\n\n")[0].splitlines()[2:]
    return [line.split(" | ")[1].strip("* ") for line in table]


def test_a_world_as_the_guide_says() -> None:
    page = claims.page(body([as_the_guide_says() for _ in range(24)]))
    assert set(verdicts(page)) == {"holds"}
    assert "a trial" not in page
    assert "$" not in page


def test_a_world_where_nothing_depends_on_anything() -> None:
    rows = []
    for _ in range(24):
        row = as_the_guide_says()
        row["arms"] = {name: arm(added=RNG.normal(0, 3)) for name in row["arms"]}
        rows.append(row)
    page = claims.page(body(rows))
    found = verdicts(page)
    assert found[0] == "holds"  # motion is kept at every denoise,
    assert found[2] == "does not hold"  # also at those that should override it
    assert found[1] == "undecided on the pocket"
    assert found[5] == "does not hold"  # another seed is no worse


def test_few_prompts_are_called_a_trial() -> None:
    assert "a trial, not a result" in claims.page(body([as_the_guide_says()] * 3))


@pytest.mark.parametrize(
    ("low", "high", "line", "verdict"),
    [(1, 2, 0, "holds"), (-2, -1, 0, "does not hold"), (-1, 1, 0, "undecided")],
)
def test_a_verdict_is_an_interval_and_a_line(low: int, high: int, line: int, verdict: str) -> None:
    found = claims.Mean((low + high) / 2, low, high, 24)
    assert claims.above(found, line) == verdict
    opposite = {"holds": "does not hold", "does not hold": "holds"}
    assert claims.below(found, line) == opposite.get(verdict, verdict)


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        found = claims.mean_of(rng.normal(3.0, 1.0, 24).tolist())
        hits += found.low <= 3.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99


def test_a_claim_of_several_parts() -> None:
    assert claims.all_of(["holds", "holds"]) == "holds"
    assert claims.all_of(["holds", "undecided"]) == "undecided"
    assert claims.all_of(["holds", "undecided", "does not hold"]) == "does not hold"


def test_there_are_enough_prompts() -> None:
    for name in ("claims_pocket.txt", "claims_world.txt"):
        lines = (BENCHMARKS / name).read_text("utf-8").splitlines()
        assert len({line for line in lines if line and not line.startswith("#")}) >= 24
