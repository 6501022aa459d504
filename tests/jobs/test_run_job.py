"""Jobs checked and run without a server, with the pocket model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from latent_ladder.errors import CheckpointNotFound, LadderError, RequestError
from latent_ladder.jobs.job_body import is_inside, parse_body, replace_uploads
from latent_ladder.jobs.planning import check_job, describe_plan
from latent_ladder.jobs.run_job import JobRun, run_job
from latent_ladder.jobs.workplace import Workplace
from latent_ladder.pipeline.events import DraftDone, Event
from latent_ladder.pipeline.run_options import Cancel
from latent_ladder.request.files import request_of_clip
from latent_ladder.storage.run_records import RunRecord

SMALL = {"prompt": "a red ball", "width": 64, "height": 64, "frames": 9}


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    """A store and a folder for clips."""
    return Workplace(tmp_path / "store", tmp_path / "clips", device="cpu")


def run(
    place: Workplace, body: Mapping[str, Any], cancel: Cancel | None = None
) -> tuple[dict[str, Any], list[Event]]:
    """Check and run a job; its result and its events."""
    checked = json.loads(json.dumps(check_job(body, place)["body"]))  # as the queue keeps it
    events: list[Event] = []
    previews = place.outputs.parent / "previews"
    job = JobRun("0123456789", checked, place, events.append, cancel or Cancel(), previews)
    return run_job(job), events


def record(place: Workplace, run_id: str) -> RunRecord:
    """The record of a run."""
    found = place.store.runs.read(run_id)
    assert isinstance(found, RunRecord)
    return found


def test_a_seed_is_picked_once(place: Workplace) -> None:
    checked = check_job({"kind": "make", "request": SMALL, "count": 2}, place)
    seed = checked["seed"]
    assert [clip["seed"] for clip in checked["clips"]] == [seed, seed + 1]
    again = check_job(checked["body"], place)
    assert again["body"] == checked["body"]


def test_sets_change_stages_and_are_checked(place: Workplace) -> None:
    body = {"kind": "make", "request": SMALL, "sets": ["refine.denoise=0.5"]}
    stages = check_job(body, place)["request"]["stages"]
    assert [s["denoise"] for s in stages if s["kind"] == "refine"] == [0.5]
    with pytest.raises(RequestError, match="denoise"):
        check_job({**body, "sets": ["refine.denoise=5"]}, place)


def test_a_plan_counts_what_is_stored_and_the_drafts(place: Workplace) -> None:
    plan = describe_plan({"kind": "drafts", "request": SMALL, "count": 5}, place)
    assert plan["stages"][-1]["kind"] == "base" and len(plan["clips"]) == 5
    with pytest.raises(RequestError, match="has no plan"):
        describe_plan({"kind": "download", "entries": [_entry()]}, place)


def test_a_gated_file_needs_the_acceptance_of_its_licence(place: Workplace) -> None:
    from latent_ladder.jobs.downloading import catalog

    gated = next(entry for entry, file in catalog().items() if file.gated)
    body = {"kind": "download", "entries": [gated]}
    with pytest.raises(RequestError, match="needs the acceptance"):
        check_job(body, place)
    assert check_job({**body, "accept_licences": True}, place)["title"]


def _entry() -> str:
    from latent_ladder.jobs.downloading import catalog

    return next(iter(catalog()))


def test_uploads_are_replaced_everywhere() -> None:
    body = {"a": [{"file": {"upload": "x"}}, "upload:y"], "b": "uploads", "c": {"upload": 3}}
    found = replace_uploads(body, lambda name: Path(f"/up/{name}"))
    assert found == {"a": [{"file": "/up/x"}, "/up/y"], "b": "uploads", "c": {"upload": 3}}


def test_links_do_not_lead_out(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link").symlink_to(tmp_path)
    assert is_inside(str(tmp_path / "in" / "x.png"), [tmp_path / "in"])
    assert not is_inside(str(tmp_path / "in" / "link" / "x.png"), [tmp_path / "in"])
    assert not is_inside(str(tmp_path / "in" / ".." / "x.png"), [tmp_path / "in"])


def test_all_problems_of_a_body_are_named() -> None:
    with pytest.raises(RequestError) as found:
        parse_body({"kind": "drafts", "request": {}, "count": 0, "previw": "rgb"})
    texts = " ".join(text for text, _ in found.value.problems)
    assert "count=0" in texts and "previw is not a known field" in texts


@pytest.mark.slow
def test_clips_are_made_refined_and_one_is_stopped(place: Workplace) -> None:
    cancel = Cancel()
    cancel.stop_part(1)
    body = {"kind": "make", "request": {**SMALL, "seed": 4}, "count": 2}
    result, events = run(place, body, cancel)
    ends = [(e.number, e.stopped) for e in events if isinstance(e, DraftDone)]
    assert ends == [(1, True), (2, False)]
    (clip,) = (Path(path) for path in result["outputs"])
    assert clip.parent == place.outputs and request_of_clip(clip).seed == 5
    made = result["clips"]["2"]
    assert record(place, made).command.startswith("ladder make --from ")
    refine = {"kind": "refine", "run": made, "sets": ["refine.denoise=0.6"]}
    refined, _ = run(place, refine)
    found = record(place, refined["runs"][0])
    assert found.command.startswith(f"ladder refine {made}")
    assert {s.stage: s.reused for s in found.stages}["base"] is True
    with pytest.raises(LadderError, match="stopped by the user"):
        cancel.stop_part(2)
        run(place, body, cancel)


@pytest.mark.slow
def test_model_files_that_vanish_are_said_when_the_job_runs(
    place: Workplace, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    named = Workplace(place.root, place.outputs, (folder,), "cpu")
    checked = check_job({"kind": "make", "request": SMALL}, named)["body"]
    folder.rmdir()
    job = JobRun("0123456789", checked, named, lambda _: None, Cancel(), tmp_path)
    with pytest.raises(CheckpointNotFound) as found:
        run_job(job)
    assert str(folder) in found.value.message and found.value.hint
