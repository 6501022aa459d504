"""A server of the studio in a thread of the test; its answers are checked against their models."""

from __future__ import annotations

import json
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from helpers.in_process_server import Answer, InProcessServer, make_config
from latent_ladder.server.ladder_api.answers import Error
from latent_ladder.server.ladder_api.planner import Planner
from latent_ladder.server.ladder_api.route_spec import FILE, SOCKET, Route
from latent_ladder.server.ladder_api.route_table import ROUTES
from latent_ladder.server.ladder_api.studio_context import STUDIO, Studio

PROMPT = "a red ball rolls to the right"
_PATTERNS = [
    (route, re.compile(re.sub(r"\{(\w+)\}", r"[^/]+", route.plain_path))) for route in ROUTES
]


def find_route(method: str, path: str) -> Route | None:
    """The route of a request."""
    plain = path.partition("?")[0]
    return next(
        (r for r, pattern in _PATTERNS if r.method == method and pattern.fullmatch(plain)), None
    )


def check_answer(method: str, path: str, status: int, body: Any) -> None:
    """Fail unless an answer in JSON has the form that the documents promise."""
    route = find_route(method, path)
    assert route is not None, (method, path)
    if status >= 400:
        model: Any = Error
    else:
        assert status == route.status or status in route.also, (method, path, status)
        model = route.also.get(status, route.answer)
    if model not in (FILE, SOCKET):
        TypeAdapter(model).validate_python(body)


class StudioServer(InProcessServer):
    """The studio; plans are made in a thread, jobs run in the ``worker`` if one is named."""

    def __init__(self, folder: Path, worker: Path | None = None, **changes: Any) -> None:
        if worker is not None:
            changes["worker"] = (sys.executable, str(worker))
        config = make_config(folder, device="cpu", opens_studio=True, **changes)
        super().__init__(config, runs_jobs=worker is not None)
        self.studio: Studio

    def prepare(self, app: web.Application) -> None:
        """Make plans in a thread, which starts at once."""
        self.studio = app[STUDIO]
        self.studio.planner = Planner(lambda: ThreadPoolExecutor(1))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; an answer of the API is checked against its model."""
        answer = super().request(method, path, body, headers)
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        # the checks of token and origin answer in a form of their own
        if is_json and answer.status not in (401, 403) and find_route(method, path) is not None:
            check_answer(method, path, answer.status, answer.json)
        return answer

    def job(self, answer: Answer) -> dict[str, Any]:
        """The job of an answer, which has to be a good one."""
        assert answer.status in (200, 201), answer.body
        found: dict[str, Any] = answer.json["job"]
        return found

    def make_job(self, **body: Any) -> dict[str, Any]:
        """A new job."""
        return self.job(self.post("/ladder/jobs", {"request": {"prompt": PROMPT}, **body}))

    def find_job(self, job_id: str) -> dict[str, Any]:
        """A job as it is now."""
        return self.job(self.get(f"/ladder/jobs/{job_id}"))

    def wait_for(self, job_id: str, *states: str, seconds: float = 60) -> dict[str, Any]:
        """The job when it is in one of the states."""
        end = time.monotonic() + seconds
        while (job := self.find_job(job_id))["state"] not in states:
            assert time.monotonic() < end, json.dumps(job)[-2000:]
            time.sleep(0.02)
        return job


SCRIPTED_WORKER = '''
"""A worker that reports events as the real one does, and computes nothing."""
import time
from pathlib import Path
from latent_ladder.errors import RequestError
from latent_ladder.pipeline import events
from latent_ladder.server.worker_main import main

def build(settings):
    def run(job, on_event, cancel):
        if job.get("kind", "graph") == "graph":
            return None
        body = job["body"]
        cancel.stopped_parts |= set(body.get("killed", ()))
        fields = body["request"]
        if "fails" in fields["prompt"]:
            raise RequestError("the model files vanished", "put them back")
        gate = Path(settings["folders"]["temp"]) / "go"
        seeds = body.get("seeds") or [fields["seed"]]
        for number, seed in enumerate(seeds, 1):
            on_event(events.DraftStarted(number, len(seeds), fields["prompt"], seed))
            on_event(events.StageStarted("base", number, len(seeds), 4))
            error = None
            try:
                with cancel.in_part(number):
                    for step in range(1, 5):
                        on_event(events.StepDone("base", step, 4))
                        on_event(events.Preview("base", step, "", b"png of %d" % number))
                        while "waits" in fields["prompt"] and not gate.exists():
                            cancel.check()
                            time.sleep(0.005)
                        cancel.check()
            except Exception as found:
                if type(found).__name__ != "PartStopped":
                    raise
                error = found.message
            on_event(events.DraftDone(number, error, error is not None))
        on_event(events.Warned("odd", "something is odd"))
        return {"runs": [], "outputs": [], "clips": {}}
    return run

main(build)
'''


def write_worker(folder: Path) -> Path:
    """The scripted worker as a file; its jobs that "wait" go on when ``temp/go`` exists."""
    path = folder / "scripted_worker.py"
    path.write_text(SCRIPTED_WORKER)
    return path
