"""Events become messages in ComfyUI's format, and frames between server and worker."""

from __future__ import annotations

import json
import struct

import pytest

from latent_ladder.comfyui.runtime.events import (
    GraphEvent,
    NodeDone,
    NodePreview,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarned,
)
from latent_ladder.server.client_messages import JobMessages, PreviewImage
from latent_ladder.server.job_store import Job
from latent_ladder.server.worker_protocol import LENGTHS, pack_event_frame, unpack_event

JOB = Job(0, "j", {"1": {"class_type": "X", "inputs": {}}}, {"client_id": "c"}, ("1",))
EVENTS: list[GraphEvent] = [
    NodesCached(("1", "2"), {"2": {"images": [{"filename": "x"}]}}),
    NodeStarted("3"),
    NodeProgress("3", 2, 8),
    NodePreview("3", "JPEG", b"\xff\xd8picture"),
    NodeWarned("3", "size", "704, not 720"),
    NodeDone("3", {"images": [{"filename": "y", "subfolder": "", "type": "output"}]}, 0.5),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_is_the_same_after_its_frame(event: GraphEvent) -> None:
    frame = pack_event_frame(event)
    text_length, raw_length = LENGTHS.unpack(frame[: LENGTHS.size])
    text, raw = frame[LENGTHS.size :][:text_length], frame[LENGTHS.size + text_length :]
    assert len(raw) == raw_length
    assert unpack_event(json.loads(text), raw) == event


def test_the_messages_of_a_job_are_comfyuis() -> None:
    messages = JobMessages(JOB)
    sent = [
        *messages.report_start(),
        *(message for event in EVENTS for message in messages.report_event(event)),
        *messages.report_success(),
    ]
    kinds = ["picture" if isinstance(m, PreviewImage) else m.type for m in sent]
    assert kinds == [
        "execution_start", "execution_cached", "executed", "executing", "progress_state",
        "progress", "progress_state", "picture", "ladder_warning", "progress_state", "executed",
        "execution_success",
    ]  # fmt: skip
    entry = messages.build_history_entry()
    assert entry["outputs"]["3"]["images"][0]["filename"] == "y"
    assert entry["status"]["status_str"] == "success"
    assert entry["status"]["completed"] is True
    assert [kind for kind, _ in entry["status"]["messages"]] == [
        "execution_start", "execution_cached", "ladder_warning", "execution_success",
    ]  # fmt: skip
    assert messages.build_summary()["preview_output"]["filename"] == "y"


def test_previews_are_packed_for_both_kinds_of_clients() -> None:
    image = PreviewImage("PNG", b"data", {"node_id": "3"})
    assert image.to_bytes(False) == struct.pack(">II", 1, 2) + b"data"
    packed = image.to_bytes(True)
    event, length = struct.unpack(">II", packed[:8])
    assert event == 4
    assert json.loads(packed[8 : 8 + length]) == {"node_id": "3", "image_type": "image/png"}
    assert packed[8 + length :] == b"data"
