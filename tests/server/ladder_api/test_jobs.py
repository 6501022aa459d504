"""Jobs of the studio: created, ordered, paused, stopped, tried again, kept over a restart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.comfyui_server import number_graph
from helpers.studio_server import PROMPT, StudioServer, write_worker

WAITS = {"prompt": f"{PROMPT} and waits", "seed": 7}

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StudioServer]:
    """A server whose worker only reports events."""
    with StudioServer(tmp_path, write_worker(tmp_path)) as running:
        yield running


@pytest.fixture
def idle(tmp_path: Path) -> Iterator[StudioServer]:
    """A server that runs nothing."""
    with StudioServer(tmp_path) as running:
        yield running


def go(server: StudioServer) -> None:
    """Let the waiting job of the scripted worker go on."""
    (server.config.folders.temp / "go").touch()


def test_a_job_runs_and_its_seed_is_picked_when_it_is_queued(server: StudioServer) -> None:
    job = server.make_job(kind="drafts", count=3)
    assert job["seed"] >= 0 and job["request"]["seed"] == job["seed"]
    assert [clip["seed"] for clip in job["clips"]] == [job["seed"] + n for n in range(3)]
    done = server.wait_for(job["id"], "done")
    assert [clip["state"] for clip in done["clips"]] == ["done"] * 3
    assert {"code": "odd", "message": "something is odd"} in done["warnings"]
    assert done["started"] <= done["ended"]
    assert done["progress"] is None


def test_one_draft_is_stopped_and_the_others_go_on(server: StudioServer) -> None:
    job = server.make_job(kind="drafts", count=3, request=WAITS)
    server.wait_for(job["id"], "running")
    server.job(server.post(f"/ladder/jobs/{job['id']}/clips/1/cancel"))
    server.job(server.post(f"/ladder/jobs/{job['id']}/clips/3/cancel"))
    go(server)
    done = server.wait_for(job["id"], "done")
    assert [clip["state"] for clip in done["clips"]] == ["killed", "done", "killed"]
    assert done["clips"][0]["error"] == "stopped by the user"
    again = server.job(server.post(f"/ladder/jobs/{job['id']}/retry"))
    assert again["id"] == job["id"]
    whole = server.wait_for(job["id"], "done")
    assert [clip["state"] for clip in whole["clips"]] == ["done"] * 3


def test_a_draft_that_does_not_exist_cannot_be_stopped(server: StudioServer) -> None:
    job = server.make_job(kind="drafts", count=2, request=WAITS)
    assert server.post(f"/ladder/jobs/{job['id']}/clips/5/cancel").status == 404


def test_a_running_job_is_paused_and_goes_on_later(server: StudioServer) -> None:
    job = server.make_job(kind="make", request=WAITS)
    server.wait_for(job["id"], "running")
    server.job(server.post(f"/ladder/jobs/{job['id']}/pause"))
    paused = server.wait_for(job["id"], "paused")
    assert paused["worker"] is None
    other = server.make_job(kind="make")
    server.wait_for(other["id"], "done")
    go(server)
    assert server.find_job(job["id"])["state"] == "paused"
    server.job(server.post(f"/ladder/jobs/{job['id']}/resume"))
    server.wait_for(job["id"], "done")


def test_a_running_job_is_cancelled(server: StudioServer) -> None:
    job = server.make_job(kind="make", request=WAITS)
    server.wait_for(job["id"], "running")
    server.job(server.post(f"/ladder/jobs/{job['id']}/cancel"))
    ended = server.wait_for(job["id"], "cancelled")
    assert ended["clips"][0]["state"] == "killed"
    assert server.post(f"/ladder/jobs/{job['id']}/cancel").status == 409


def test_a_failure_has_words_and_a_hint(server: StudioServer) -> None:
    job = server.make_job(kind="make", request={"prompt": f"{PROMPT} fails"})
    failed = server.wait_for(job["id"], "failed")
    assert failed["error"]["message"] == "the model files vanished"
    assert failed["error"]["hint"] == "put them back"


def test_a_preview_is_sent_while_the_job_runs(server: StudioServer) -> None:
    job = server.make_job(kind="drafts", count=2, request=WAITS)
    server.wait_for(job["id"], "running")
    answer = server.get(f"/ladder/jobs/{job['id']}/preview?clip=1")
    while answer.status == 404:
        answer = server.get(f"/ladder/jobs/{job['id']}/preview?clip=1")
    assert answer.body == b"png of 1"
    go(server)
    server.wait_for(job["id"], "done")
    assert server.get(f"/ladder/jobs/{job['id']}/preview?clip=1").status == 404


def test_order_pause_of_the_queue_and_cancel_of_waiting_jobs(idle: StudioServer) -> None:
    ids = [idle.make_job(kind="make")["id"] for _ in range(4)]
    assert idle.post(f"/ladder/jobs/{ids[3]}/move", {"before": ids[1]}).status == 200
    assert idle.post(f"/ladder/jobs/{ids[0]}/move", {"before": None}).status == 200
    order = [ids[3], ids[1], ids[2], ids[0]]
    assert [job["id"] for job in idle.get("/ladder/jobs").json["jobs"]] == order
    assert [job["position"] for job in idle.get("/ladder/jobs").json["jobs"]] == [0, 1, 2, 3]
    assert idle.post(f"/ladder/jobs/{ids[0]}/move", {"before": "nothing"}).status == 409
    assert idle.post(f"/ladder/jobs/{ids[1]}/cancel").json["job"]["state"] == "cancelled"
    assert idle.get("/ladder/jobs?state=cancelled").json["jobs"][0]["id"] == ids[1]
    assert idle.post("/ladder/queue/pause").json["paused"] is True
    assert idle.get("/ladder/state").json["queue"]["paused"] is True
    assert idle.post("/ladder/queue/resume").json["paused"] is False
    assert idle.request("DELETE", f"/ladder/jobs/{ids[0]}").status == 409
    assert idle.request("DELETE", f"/ladder/jobs/{ids[1]}").json == {"done": True}
    assert idle.get(f"/ladder/jobs/{ids[1]}").status == 404


def test_a_paused_queue_starts_nothing(server: StudioServer) -> None:
    server.post("/ladder/queue/pause")
    job = server.make_job(kind="make")
    other = server.make_job(kind="make")
    assert {server.find_job(each["id"])["state"] for each in (job, other)} == {"queued"}
    server.post("/ladder/queue/resume")
    server.wait_for(other["id"], "done")


def test_the_same_key_gives_the_same_job(idle: StudioServer) -> None:
    body = json.dumps({"kind": "make", "request": {"prompt": PROMPT}}).encode()
    headers = {"Idempotency-Key": "click-1"}
    first = idle.request("POST", "/ladder/jobs", body, headers)
    second = idle.request("POST", "/ladder/jobs", body, headers)
    assert (first.status, second.status) == (201, 200)
    assert first.json["job"]["id"] == second.json["job"]["id"]
    assert len(idle.get("/ladder/jobs").json["jobs"]) == 1


def test_jobs_survive_a_restart(tmp_path: Path) -> None:
    with StudioServer(tmp_path) as server:
        first = server.make_job(kind="make", request={**WAITS, "prompt": PROMPT})
        second = server.make_job(kind="drafts", count=2)
        server.post(f"/ladder/jobs/{first['id']}/pause")
    with StudioServer(tmp_path) as server:
        jobs = server.get("/ladder/jobs").json["jobs"]
        assert [(job["id"], job["state"]) for job in jobs] == [
            (first["id"], "paused"),
            (second["id"], "queued"),
        ]
        assert jobs[1]["clips"] == second["clips"]


def test_comfyui_sees_graphs_only_and_they_share_the_queue(idle: StudioServer) -> None:
    request = idle.make_job(kind="make")
    prompt = idle.post("/prompt", {"prompt": number_graph()}).json["prompt_id"]
    assert idle.get("/prompt").json == {"exec_info": {"queue_remaining": 1}}
    assert [item[1] for item in idle.get("/queue").json["queue_pending"]] == [prompt]
    assert [job["id"] for job in idle.get("/api/jobs").json["jobs"]] == [prompt]
    assert idle.get(f"/api/jobs/{request['id']}").status == 404
    both = idle.get("/ladder/jobs").json["jobs"]
    assert [(job["kind"], job["id"]) for job in both] == [
        ("make", request["id"]),
        ("graph", prompt),
    ]
    idle.post("/queue", {"clear": True})
    assert [job["id"] for job in idle.get("/ladder/jobs").json["jobs"]] == [request["id"]]
    idle.post(f"/ladder/jobs/{request['id']}/cancel")
    assert idle.get("/history").json == {}
    idle.post("/history", {"clear": True})
    assert idle.get(f"/ladder/jobs/{request['id']}").status == 200


def test_a_graph_is_a_job_with_changed_values(server: StudioServer) -> None:
    body = {"kind": "graph", "graph": number_graph(), "inputs": {"1.value": 9}}
    job = server.job(server.post("/ladder/jobs", body))
    assert server.wait_for(job["id"], "done")["kind"] == "graph"
    history = server.get(f"/history/{job['id']}").json[job["id"]]
    assert history["prompt"][2]["1"]["inputs"]["value"] == 9


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"kind": "make", "request": {"prompt": PROMPT, "widths": 640}}, "did you mean width"),
        ({"kind": "make", "request": {"prompt": PROMPT}, "cout": 2}, "cout is not a known field"),
        ({"kind": "make", "request": {"prompt": PROMPT}, "count": 65}, "count=65"),
        ({"kind": "make", "request": {"prompt": " "}}, "is empty"),
        ({"kind": "make", "request": {}}, "there is no prompt"),
        ({"kind": "bake", "request": {}}, "is no kind of job"),
        ({"kind": "make", "request": {"prompt": PROMPT, "frames": 100}}, "is not 8k+1"),
        ({"kind": "make", "request": {"prompt": PROMPT, "preset": "nope"}}, "does not exist"),
        ({"kind": "refine", "run": "00000000", "drafts": [1]}, "there are no runs yet"),
        ({"kind": "sweep", "axes": ["x"], "request": {"prompt": PROMPT}}, "is not path=values"),
        ({"kind": "upscale"}, "needs an upload or a run"),
        ({"kind": "upscale", "upload": "0123456789abcdef"}, "there is no upload"),
        ({"kind": "download", "entries": ["x/y"]}, "is not in the catalogue"),
        ({"kind": "graph", "graph": {"1": {"class_type": "Nope", "inputs": {}}}},
         "has no output"),
        ({"kind": "graph", "graph": number_graph(), "inputs": {"1.x": 1}}, "is no value"),
        ({"kind": "make", "request": {"prompt": PROMPT, "images": [{"file": "/etc/passwd"}]}},
         "is not a file of this server"),
        ({"kind": "make", "request": {"prompt": PROMPT, "audio_in": "upload:../../x"}},
         "there is no upload"),
    ],
)  # fmt: skip
def test_wrong_jobs_are_refused_in_words(
    idle: StudioServer, body: dict[str, object], words: str
) -> None:
    answer = idle.post("/ladder/jobs", body)
    assert answer.status in (404, 422), answer.body
    assert words in answer.body.decode(), answer.body
    assert idle.get("/ladder/jobs").json["jobs"] == []


def test_other_sites_and_odd_bodies_are_refused(idle: StudioServer) -> None:
    body = {"kind": "make", "request": {"prompt": PROMPT}}
    assert idle.get("/ladder/state", Host="evil.example").status == 403
    data = json.dumps(body).encode()
    odd = idle.request("POST", "/ladder/jobs", data, {"Sec-Fetch-Site": "cross-site"})
    assert odd.status == 403
    assert idle.post("/ladder/jobs", b"{").status == 422
    assert idle.post("/ladder/jobs", b"[]").status == 422
    assert idle.get("/ladder/jobs?limit=0").status == 422
    assert idle.get("/ladder/jobs?sort=x").status == 422
    assert idle.get("/ladder/nothing").json["error"]["code"] == "not_found"
