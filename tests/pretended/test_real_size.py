"""Memory at the real sizes of LTX-2.3 22B: plans hold, stage by stage and between stages.

The model has fewer blocks here, each of true size, so that a job takes seconds. The slow job with
all 48 is ``make bench-memory``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pretended import guard
from pretended.allocator import peak_expandable
from pretended.real_job import ALL_KINDS, JobResult, RealJob, simulate
from pretended.standins import GIB

REASON = guard.reason_against()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SAMPLED = frozenset({"prompt", "sound", "decode"})
TENTH = 0.9
RESULTS_BYTES = 64 * 2**20
"""Bytes of the results of earlier stages, which a part that runs alone does not have."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real-size")


def one(job: RealJob, card_gib: float, folder: Path) -> JobResult:
    (result,) = simulate(job, [card_gib], folder)
    return result


def check(result: JobResult) -> None:
    """Each stage is within its plan and its plan within the budget; none is planned too large."""
    for stage in result.stages:
        assert stage.peak <= stage.planned <= result.budget, stage.name
        assert stage.before <= stage.planned, f"what {stage.name} finds on the card"
        assert stage.ratio >= TENTH, stage.name


@pytest.mark.parametrize(("precision", "card_gib"), [("bf16", 6.0)])
def test_streamed_blocks_stay_within_the_plan(
    folder: Path, precision: str, card_gib: float
) -> None:
    job = RealJob(precision, layers=6, size=(1280, 720), skip=SAMPLED, blocks="all")
    result = one(job, card_gib, folder)
    base, refine = (result.of(name).plan for name in ("base", "refine"))
    assert base is not None
    assert refine is not None
    assert 0 < (refine.offload_plan.resident or 0) <= (base.offload_plan.resident or 0) < 6
    check(result)
    for stage in result.stages:
        assert stage.plan is not None
        assert stage.flops == pytest.approx(stage.plan.cost.flops, rel=0.02), stage.name
    assert peak_expandable(result.log.trace).needed <= result.budget + GIB * 0.6


@pytest.mark.parametrize("card_gib", [6.0, 12.0])
def test_a_few_blocks_have_the_peak_of_all(folder: Path, card_gib: float) -> None:
    """Simulated jobs compute three blocks of a forward: the same bytes as all of them."""
    job = RealJob("fp8", layers=6, size=(768, 512), skip=SAMPLED)
    few, every = (one(replace(job, blocks=which), card_gib, folder) for which in ("some", "all"))
    assert [(s.name, s.before, s.peak) for s in few.stages] == [
        (s.name, s.before, s.peak) for s in every.stages
    ]


@pytest.mark.long
@pytest.mark.parametrize(
    ("job", "card_gib"),
    [
        (RealJob("fp8", blocks="all"), 12.0),
        (RealJob("q4_k_m", size=(1280, 720), lora=True, image=True, blocks="all"), 16.0),
    ],
    ids=["fp8, 1080p, 12 GB", "q4_k_m, 720p, LoRA and image, 16 GB"],
)
def test_a_whole_job_of_all_blocks_is_its_parts(
    folder: Path, job: RealJob, card_gib: float
) -> None:
    """All 48 blocks compute in one run: each stage as in the parts of ``make bench-memory``."""
    whole = one(job, card_gib, folder)
    check(whole)
    parts = []
    for kinds in ({"prompt"}, {"images", "base", "upsample", "refine"}, {"sound"}, {"decode"}):
        part = replace(job, blocks="some", skip=ALL_KINDS - kinds)
        parts += one(part, card_gib, folder).stages
    assert [s.name for s in parts] == [s.name for s in whole.stages]
    for alone, together in zip(parts, whole.stages, strict=True):
        assert alone.peak == pytest.approx(together.peak, abs=RESULTS_BYTES), alone.name
        assert alone.before == pytest.approx(together.before, abs=RESULTS_BYTES), alone.name
