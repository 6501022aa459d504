"""``ladder studio`` with the pocket: drafts, the server killed, a refined clip."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers.comfyui_server import ComfyUiServer
from helpers.studio_server import PROMPT
from helpers.waiting import wait_until_dead

from latent_ladder.media.video_reader import probe

pytestmark = pytest.mark.slow
REQUEST = {"prompt": PROMPT, "width": 64, "height": 64, "frames": 9}
SECONDS = 240


class StudioProcess(ComfyUiServer):
    """``ladder studio`` in a process of its own."""

    def __init__(self, folder: Path, *flags: str) -> None:
        super().__init__(folder, "--no-open", *flags, command=("studio",))

    def make(self, **body: Any) -> str:
        """Queue a job; its id."""
        status, answer = self.post("/ladder/jobs", body)
        assert status == 201, answer
        return str(answer["job"]["id"])

    def wait(self, job_id: str, *states: str) -> dict[str, Any]:
        """The job when it is in one of the states."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            job: dict[str, Any] = self.get_json(f"/ladder/jobs/{job_id}")["job"]
            if job["state"] in states:
                return job
            time.sleep(0.1)
        raise AssertionError(job)


def test_drafts_are_refined_and_a_killed_server_goes_on(tmp_path: Path) -> None:
    with StudioProcess(tmp_path) as server:
        drafts = server.make(kind="drafts", request=REQUEST, count=2)
        done = server.wait(drafts, "done", "failed")
        assert done["state"] == "done", done["error"]
        run = server.get_json(f"/ladder/runs/{done['run']}")
        assert [clip["state"] for clip in run["clips"]] == ["done", "done"]
        status, clip = server.get(run["clips"][1]["url"])
        assert status == 200 and clip[4:8] == b"ftyp"
        server.post("/ladder/queue/pause")
        refined = server.make(kind="refine", run=done["run"], drafts=[2])
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert len(children) >= 2  # the worker, and the process that plans
        assert server.stop(signal.SIGKILL) != 0
    for child in children:
        wait_until_dead(child)
    with StudioProcess(tmp_path) as server:
        jobs = server.get_json("/ladder/jobs")["jobs"]
        assert [(job["id"], job["state"]) for job in jobs] == [
            (refined, "queued"),
            (drafts, "done"),
        ]
        server.post("/ladder/queue/resume")
        done = server.wait(refined, "done", "failed")
        assert done["state"] == "done", done["error"]
        run = server.get_json(f"/ladder/runs/{done['run']}")
        stages = {stage["name"]: stage["reused"] for stage in run["stages"]}
        assert stages["base"] is True
        assert run["parent"] is not None
        path = tmp_path / "clip.mp4"
        path.write_bytes(server.get(done["outputs"][0]["url"])[1])
        info = probe(path)
        assert (info.width, info.height, info.frames) == (64, 64, 9)
        assert server.stop() == 0
