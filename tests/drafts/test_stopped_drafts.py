"""One draft of a session is stopped by its number; each draft can have a clip of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from latent_ladder.checkpoints.selection import model_folders, scan
from latent_ladder.drafts.draft_run import plan_drafts, run_drafts
from latent_ladder.drafts.draft_run_files import clip_name
from latent_ladder.drafts.seeds import all_drafts
from latent_ladder.errors import LadderError
from latent_ladder.media.video_reader import probe
from latent_ladder.pipeline.events import DraftDone, Event, RunStarted, StepDone
from latent_ladder.pipeline.preparation import prepare
from latent_ladder.pipeline.run_options import Cancel, PartStopped, RunOptions
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Store


def test_a_part_is_stopped_before_and_during_its_turn() -> None:
    cancel = Cancel()
    cancel.stop_part(2)
    cancel.check()
    with cancel.in_part(1):
        cancel.check()
    with pytest.raises(PartStopped), cancel.in_part(2):
        pytest.fail("the part began")
    cancel.check()
    with cancel.in_part(3):
        cancel.stop_part(3)
        with pytest.raises(PartStopped):
            cancel.check()


@pytest.mark.slow
def test_the_other_drafts_go_on_and_have_clips(tmp_path: Path) -> None:
    request = Request.from_preset(
        "pocket", prompt="a red ball", seed=3, width=64, height=64, frames=9
    )
    library = scan(model_folders(()))
    prepared = prepare(request, library, Store(tmp_path / "store"), device="cpu", kind="draft")
    plan = plan_drafts(prepared, all_drafts(("a red ball",), (3, 4, 5), agreed=False), "full")
    cancel, events = Cancel(), list[Event]()

    def on_event(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.done == 2:
            cancel.stop_part(2)  # under way or not: only the second one stops

    folder = tmp_path / "drafts"
    options = RunOptions(device="cpu", on_event=on_event, cancel=cancel)
    result = run_drafts(plan, options, folder, clips=True)
    assert [draft.status for draft in result.record.drafts] == ["done", "failed", "done"]
    assert result.record.drafts[1].error == "stopped by the user"
    ends = [(e.number, e.stopped) for e in events if isinstance(e, DraftDone)]
    assert ends == [(1, False), (2, True), (3, False)]
    assert [e.run for e in events if isinstance(e, RunStarted)] == [result.record.id]
    assert probe(folder / clip_name(1)).frames == 9
    assert probe(folder / clip_name(3)).audio_duration_s
    assert not (folder / clip_name(2)).exists()
    for number in (1, 2, 3):
        cancel.stop_part(number)
    with pytest.raises(LadderError, match="all 3 drafts failed"):
        run_drafts(plan, options, tmp_path / "none", clips=True)
