"""Memory at the real sizes of LTX-2.3 22B: plans hold, stage by stage and between stages.

The model has fewer blocks here, each of true size, so that a job takes seconds. The slow job with
all 48 is ``make bench-memory``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pretended import guard
from pretended.allocator import peak_expandable
from pretended.real_job import JobResult, RealJob, simulate
from pretended.standins import GIB

REASON = guard.reason_against()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

SAMPLED = frozenset({"prompt", "sound", "decode"})
TENTH = 0.9


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
