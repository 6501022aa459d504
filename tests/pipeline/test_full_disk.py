"""A disk that is full while a run stores its results: the clip is finished all the same."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
from campaign.surroundings import file_size_limit
from helpers.tiny_clips import GOLDEN, frames, make, request_with

from latent_ladder.checkpoints.scan import scan
from latent_ladder.pipeline.events import Event, StageStarted
from latent_ladder.pipeline.run import WRITE_STAGE, RunOptions, execute, prepare
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.temporary_files import PART_PREFIX

pytestmark = pytest.mark.slow


def test_the_clip_is_finished_and_equal_when_nothing_can_be_stored(tmp_path: Path) -> None:
    library = scan([GOLDEN])
    make(request_with(), library, Store(tmp_path / "whole"), tmp_path / "whole.mp4")
    store, events = Store(tmp_path / "store"), list[Event]()
    with ExitStack() as limits:

        def on_event(event: Event) -> None:
            events.append(event)
            if isinstance(event, StageStarted):
                limits.close()
                if event.stage != WRITE_STAGE:
                    limits.enter_context(file_size_limit(100))

        prepared = prepare(request_with(), library, store)
        result = execute(prepared, tmp_path / "full.mp4", RunOptions(on_event=on_event))
    assert frames(result.output) == frames(tmp_path / "whole.mp4")
    codes = [warning.code for warning in result.warnings]
    assert codes.count("not_stored") == len(prepared.plan.stages)
    assert codes.count("not_recorded") == 1
    assert not list(store.entries())
    assert not list(tmp_path.rglob(f"{PART_PREFIX}*"))


def test_a_full_disk_can_be_cleared(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    result, _ = make(request_with(), scan([GOLDEN]), store, tmp_path / "a.mp4")
    assert result.stages
    with file_size_limit(0):
        pruned = store.prune(keep_last=0)
    assert pruned.runs == (result.run,)
    assert not list(store.entries())
