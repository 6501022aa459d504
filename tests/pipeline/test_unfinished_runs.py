"""A run that picked its seed and stopped is taken up by the same request, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import GOLDEN

from latent_ladder.checkpoints.selection import Library, scan
from latent_ladder.errors import Cancelled
from latent_ladder.media.video_reader import read_metadata
from latent_ladder.pipeline.events import Event, StageDone
from latent_ladder.pipeline.run import Cancel, RunOptions, execute, prepare
from latent_ladder.pipeline.unfinished_runs import find_unfinished
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.run_records import RunLog, RunRecord


def asked(**fields: object) -> Request:
    small = {"prompt": "a ball", "width": 64, "height": 64, "frames": 9, "seed": -1}
    models = {"checkpoint": "tiny-ltx-2.3.safetensors"}
    return Request.from_preset("pocket", **{**small, "models": models, **fields})


def record(log: RunLog, seed: int, status: str, kind: str = "clip") -> RunRecord:
    request = asked(seed=seed).to_dict()
    return log.save(replace(log.start("ladder make", request), status=status, kind=kind))


@pytest.fixture
def log(tmp_path: Path) -> RunLog:
    return RunLog(tmp_path / "runs")


@pytest.mark.parametrize("status", ["cancelled", "failed"])
def test_the_newest_unfinished_run_of_the_request_is_found(log: RunLog, status: str) -> None:
    record(log, 1, status)
    newest = record(log, 2, status)
    found = find_unfinished(log, asked())
    assert found is not None
    assert found.id == newest.id


def test_a_killed_run_counts_and_a_running_one_does_not(log: RunLog) -> None:
    running = record(log, 1, "running")
    assert find_unfinished(log, asked()) is None
    log.save(replace(running, pid=2**22 + 1))
    found = find_unfinished(log, asked())
    assert found is not None
    assert found.status == "interrupted"


def test_a_seed_that_was_finished_later_is_not_taken(log: RunLog) -> None:
    record(log, 1, "cancelled")
    record(log, 1, "done")
    assert find_unfinished(log, asked()) is None
    record(log, 2, "done")  # another seed finishes nothing
    stopped = record(log, 3, "cancelled")
    record(log, 4, "done")
    found = find_unfinished(log, asked())
    assert found is not None
    assert found.id == stopped.id


def test_another_request_or_kind_is_not_taken(log: RunLog) -> None:
    record(log, 1, "cancelled", "draft")
    assert find_unfinished(log, asked()) is None
    assert find_unfinished(log, asked(), "draft") is not None
    assert find_unfinished(log, asked(prompt="a star"), "draft") is None


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


@pytest.mark.slow
def test_it_goes_on_with_the_same_bits(library: Library, tmp_path: Path) -> None:
    store, cancel = Store(tmp_path / "store"), Cancel()

    def stop_after_stage_1(event: Event) -> None:
        if isinstance(event, StageDone) and event.stage == "base":
            cancel.request()

    first = prepare(asked(), library, store, device="cpu")
    assert first.random_seed
    with pytest.raises(Cancelled):
        options = RunOptions(device="cpu", on_event=stop_after_stage_1, cancel=cancel)
        execute(first, tmp_path / "a.mp4", options)
    second = prepare(asked(), library, store, device="cpu")
    assert second.unfinished is not None
    assert second.request.seed == first.request.seed
    resumed = execute(second, tmp_path / "a.mp4", RunOptions(device="cpu"))
    assert {s.stage for s in resumed.stages if s.reused} >= {"prompt", "base"}
    whole = prepare(
        asked(seed=first.request.seed), library, Store(tmp_path / "other"), device="cpu"
    )
    execute(whole, tmp_path / "b.mp4", RunOptions(device="cpu"))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert f'"seed": {first.request.seed}' in read_metadata(tmp_path / "a.mp4")["latent_ladder"]
    assert prepare(asked(), library, store, device="cpu").random_seed
