"""The table of simulated jobs: what is stored, what is reused, and that plans hold in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from latent_ladder.memory.model_sizes import LTX_2_3
from latent_ladder.memory.planner import GIB, Budget, MemoryPlan, plan_memory
from latent_ladder.request.model import Request

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
AXES = {"precision": "bf16", "size": "1080p", "frames": 121, "inputs": "text", "blocks": 48}


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark as a module."""
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    import memory_simulation

    yield memory_simulation
    memory_simulation.code_version.cache_clear()


def plan(card_gib: float) -> MemoryPlan:
    request = Request.from_preset("distilled", prompt="a", width=1920, height=1080)
    return plan_memory(request, LTX_2_3, Budget("cuda", int(card_gib * GIB), 64 * GIB))


def test_jobs_of_the_same_decisions_share_their_parts(simulation: Any) -> None:
    small, large, larger = (simulation.part_names(AXES, plan(n)) for n in (20, 60, 80))
    assert large == larger
    assert small["sampling"] != large["sampling"]
    assert [small[kind] for kind in ("prompt", "sound", "decode")] == [
        large[kind] for kind in ("prompt", "sound", "decode")
    ]


def test_parts_of_other_code_are_left_out(
    simulation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "found.json"
    monkeypatch.setattr(simulation, "RESULTS", file)
    ours = {"part": "sound", "code": simulation.code_version("sound")}
    parts = {"a": ours, "b": ours | {"code": "0" * 16}}
    file.write_text(json.dumps({"parts": parts, "rows": [{"card": 8}]}))
    found = simulation.read_results()
    assert list(found["parts"]) == ["a"]
    assert found["rows"] == [{"card": 8}]


def test_a_part_that_leaves_memory_in_use_is_an_error(simulation: Any) -> None:
    class Result:
        left = simulation.LEFT_OVER + 1
        stages = (type("Stage", (), {"name": "refine"}),)

    with pytest.raises(RuntimeError, match="stay on the card after refine"):
        simulation.part(Result())


def test_a_row_is_made_once_all_its_parts_are_there(simulation: Any) -> None:
    planned = plan(60)
    stage = {"peak": GIB, "before": 0, "flops": 1}
    kinds = {
        "prompt": ["prompt"], "sampling": ["base", "upsample", "refine"], "sound": ["sound"],
        "decode": ["decode"],
    }  # fmt: skip
    names = simulation.part_names(AXES, planned)
    parts = {
        names[kind]: {"needed": GIB, "stages": dict.fromkeys(stages, stage)}
        for kind, stages in kinds.items()
    }
    row = simulation.row(AXES, planned, parts)
    assert row["stages"]["refine"]["planned"] == planned.of("refine").peak_bytes
    assert row["stages"]["sound"]["planned"] == planned.of("sound").peak_bytes
    del parts[names["decode"]]
    assert simulation.row(AXES, planned, parts) is None


def test_stored_jobs_are_within_their_plans(simulation: Any) -> None:
    """No job of the page is above its plan or its budget, at any stage or between two."""
    import memory_simulation_page as page

    rows = json.loads((BENCHMARKS / "memory_simulation.json").read_text("utf-8"))["rows"]
    simulated = [row for row in rows if "stages" in row]
    assert len(simulated) > 50
    assert [row for row in simulated if not page.is_kept(row)] == []


def test_a_job_above_its_plan_is_seen(simulation: Any) -> None:
    import memory_simulation_page as page

    stage = {"simulated": 5, "planned": 6, "before": 1}
    row = {"budget": 7, "stages": {"base": stage}}
    assert page.is_kept(row)
    assert not page.is_kept({**row, "budget": 5})
    assert not page.is_kept({**row, "stages": {"base": stage | {"simulated": 7}}})
    assert not page.is_kept({**row, "stages": {"base": stage | {"before": 7}}})
