"""The runner of a worker: built again where that failed, stopped parts kept until their job."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Mapping
from typing import Any

import pytest

from latent_ladder.errors import CheckpointNotFound
from latent_ladder.pipeline import events
from latent_ladder.pipeline.run_options import Cancel
from latent_ladder.server.worker_main import OnJobEvent, RunJob, _build_runner, _Inbox
from latent_ladder.server.worker_protocol import (
    LENGTHS,
    pack_event_frame,
    pack_frame,
    unpack_event,
)


def test_model_folders_that_come_back_are_found() -> None:
    tries: list[int] = []

    def run(_: Mapping[str, Any], __: OnJobEvent, ___: Cancel) -> dict[str, Any]:
        return {"runs": ["r"]}

    def build(_: Mapping[str, Any]) -> RunJob:
        tries.append(1)
        if len(tries) < 3:
            raise CheckpointNotFound("the folder is gone", "mount it")
        return run

    runner = _build_runner(build, {})
    with pytest.raises(CheckpointNotFound):
        runner({}, print, Cancel())
    assert runner({}, print, Cancel()) == {"runs": ["r"]}
    assert runner({}, print, Cancel()) == {"runs": ["r"]}
    assert len(tries) == 3


def test_a_draft_that_is_stopped_before_its_job_begins_stays_stopped() -> None:
    stop: dict[str, Any] = {"do": "stop_part", "id": "a", "part": 2}
    frames = [stop, {"do": "run", "id": "a"}, {"do": "end"}]
    inbox = _Inbox(io.BytesIO(b"".join(pack_frame(frame) for frame in frames)))
    job = inbox.next_job()
    assert job is not None and job["id"] == "a"
    assert inbox.cancel.stopped_parts == {2}
    assert inbox.next_job() is None


@pytest.mark.parametrize(
    "event",
    [
        events.RunStarted("r"),
        events.StageStarted("base", 1, 2, 8),
        events.StepDone("base", 1, 8, 0.5),
        events.Preview("base", 1, "", b"png"),
        events.DraftStarted(1, 2, "a ball", 7),
        events.DraftDone(1, "stopped", True),
        events.PointDone(1, 2, False, "broke"),
        events.Warned("odd", "text"),
    ],
)
def test_events_of_requests_travel_whole(event: events.Event) -> None:
    frame = pack_event_frame(event)
    sizes = struct.unpack(">II", frame[: LENGTHS.size])
    text = frame[LENGTHS.size : LENGTHS.size + sizes[0]]
    assert unpack_event(json.loads(text), frame[LENGTHS.size + sizes[0] :]) == event
