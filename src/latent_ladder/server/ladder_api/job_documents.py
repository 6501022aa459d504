"""Jobs of all kinds in the form of ``/ladder/jobs``: one document for graphs and requests."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from latent_ladder.server.client_messages import JobMessages
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.job_store import GRAPH, FinishedJob, Job
from latent_ladder.server.request_progress import RequestProgress

ENDED_SHOWN = 20
"""Ended jobs in the state that a page gets first."""
WORKER = "local"
"""Name of the worker process of this machine."""
_GRAPH_STATES = {"completed": "done", "failed": "failed", "cancelled": "cancelled"}

FindOutput = Callable[[str, str], dict[str, Any] | None]
"""Describes a file (path) of a run (id); ``None`` if it is gone."""


class JobDocuments:
    """Documents of the jobs of one server."""

    def __init__(self, jobs: JobLoop, describe_output: FindOutput) -> None:
        self._jobs, self._describe_output = jobs, describe_output

    # --- lists --------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The unfinished jobs, the last ended ones and the queue."""
        return {"jobs": [*self.queued(), *self.ended(ENDED_SHOWN)], "queue": self.queue()}

    def queue(self) -> dict[str, Any]:
        """The state of the queue."""
        running = self._jobs.running
        return {
            "paused": self._jobs.is_paused,
            "jobs": self._jobs.store.count(None),
            "running": None if running is None else running.id,
            "workers": [{"id": WORKER, "job": None if running is None else running.id}],
        }

    def queued(self) -> Iterator[dict[str, Any]]:
        """The unfinished jobs in the order in which they run."""
        for position, job in enumerate(self._jobs.store.queued_jobs()):
            yield self._queued(job, position)

    def ended(self, limit: int, before: str | None = None) -> list[dict[str, Any]]:
        """The newest ended jobs, or those that ended before the job ``before``."""
        return [self._ended(found) for found in self._jobs.store.finished_jobs(limit, before)]

    def find(self, job_id: str) -> dict[str, Any] | None:
        """The document of one job."""
        store = self._jobs.store
        if (job := store.queued_job(job_id)) is not None:
            return self._queued(job, store.position_of(job_id))
        found = self._jobs.store.find_finished(job_id)
        return None if found is None else self._ended(found)

    def find_ended(self, job_id: str) -> bool:
        """True for a job in the history."""
        return self._jobs.store.find_finished(job_id) is not None

    # --- progress -----------------------------------------------------------------------------

    def progress(self, job_id: str) -> dict[str, Any] | None:
        """The progress of the running job, with the clip it makes."""
        tracker = self._jobs.tracker_of(job_id)
        if tracker is None:
            return None
        if isinstance(tracker, JobMessages):
            return {"clip": None, **_graph_progress(tracker)}
        progress = tracker.progress
        return None if progress is None else {"clip": tracker.clip, **progress}

    def newest_preview(self, job_id: str) -> dict[str, Any] | None:
        """The newest preview of the running job; its address changes with every step."""
        tracker = self._jobs.tracker_of(job_id)
        if isinstance(tracker, JobMessages) and tracker.preview is not None:
            progress = _graph_progress(tracker)
            number, stage, step = 0, progress["stage"], progress["done"]
        elif isinstance(tracker, RequestProgress) and tracker.previews:
            made = tracker.previews
            number = tracker.current if tracker.current in made else max(made)
            stage, step, _ = made[number]
        else:
            return None
        place = f"/ladder/jobs/{job_id}/preview"
        query = urlencode({"clip": number, "stage": stage, "step": step})
        return {"clip": number or None, "stage": stage, "step": step, "url": f"{place}?{query}"}

    def preview(self, job_id: str, clip: int) -> bytes | None:
        """The newest preview picture of one clip (PNG), or of a graph (PNG or JPEG)."""
        tracker = self._jobs.tracker_of(job_id)
        if isinstance(tracker, JobMessages):
            return None if tracker.preview is None else tracker.preview.picture
        if not isinstance(tracker, RequestProgress) or clip not in tracker.previews:
            return None
        return tracker.previews[clip][2]

    # --- one document -------------------------------------------------------------------------

    def _queued(self, job: Job, position: int) -> dict[str, Any]:
        tracker = self._jobs.tracker_of(job.id)
        live = _live_fields(job, tracker)
        if job.paused and tracker is None:
            live["state"] = "paused"
        body = {**_fixed_fields(job), **live, "position": position}
        body["worker"] = None if tracker is None else WORKER
        return self._with_outputs(body)

    def _ended(self, found: FinishedJob) -> dict[str, Any]:
        if found.kind == GRAPH:
            return _ended_graph(found)
        job = Job(0, found.id, {}, found.entry["extra"], (), found.kind)
        body = {**_fixed_fields(job), **found.summary, "position": None, "worker": None}
        return self._with_outputs(body)

    def _with_outputs(self, body: dict[str, Any]) -> dict[str, Any]:
        """The document with its files described; those that are gone are left out."""
        runs = list(
            dict.fromkeys([body["run"], *(clip["run"] for clip in body["clips"])]) or [None]
        )
        described = (self._describe(path, runs) for path in body["outputs"])
        body["outputs"] = [found for found in described if found is not None]
        return body

    def _describe(self, path: Any, runs: Sequence[str | None]) -> dict[str, Any] | None:
        if isinstance(path, Mapping):
            return dict(path)
        found = (self._describe_output(run, path) for run in runs if run is not None)
        return next((each for each in found if each is not None), None)


def _fixed_fields(job: Job) -> dict[str, Any]:
    """Fields that do not change after a job was queued."""
    checked = job.checked
    return {
        "id": job.id,
        "kind": job.kind,
        "title": checked.get("title") or ("ComfyUI graph" if job.kind == GRAPH else ""),
        "created": _iso(job.created_ms),
        "prompt": checked.get("prompt", ""),
        "preset": checked.get("preset") or None,
        "seed": checked.get("seed"),
        "request": checked.get("request"),
    }


def _live_fields(job: Job, tracker: JobMessages | RequestProgress | None) -> dict[str, Any]:
    """Fields that change while a job waits and runs."""
    if job.kind == GRAPH:
        running = isinstance(tracker, JobMessages)
        fields = RequestProgress(job).to_dict()
        if isinstance(tracker, JobMessages):
            fields |= {"progress": _graph_progress(tracker), "started": _iso(tracker.start_ms)}
        return {**fields, "state": "running" if running else "queued"}
    live = tracker if isinstance(tracker, RequestProgress) else RequestProgress(job)
    return live.to_dict()


def _graph_progress(tracker: JobMessages) -> dict[str, Any]:
    progress = tracker.progress()
    node = tracker.job.prompt.get(progress.node or "", {})
    title = node.get("_meta", {}).get("title") if isinstance(node, Mapping) else None
    return {
        "stage": title or progress.node_type or "starting",
        "position": min(progress.done + 1, progress.total),
        "of": progress.total,
        "done": progress.step,
        "steps": progress.steps,
        "seconds_left": None,
    }


def _ended_graph(found: FinishedJob) -> dict[str, Any]:
    """A finished graph, from the entries that ComfyUI's interface reads."""
    number, job_id, prompt, extra, outputs = found.entry["prompt"]
    job = Job(number, job_id, prompt, extra, tuple(outputs))
    summary, failure = found.summary, found.summary.get("execution_error")
    fields = RequestProgress(job).to_dict()
    fields |= {
        "state": _GRAPH_STATES.get(str(summary.get("status")), "failed"),
        "started": _iso(summary.get("execution_start_time")),
        "ended": _iso(summary.get("execution_end_time")),
        "outputs": list(_graph_files(found.entry.get("outputs", {}))),
        "error": None if not failure else _graph_error(failure),
    }
    return {**_fixed_fields(job), **fields, "position": None, "worker": None}


def _graph_error(failure: Mapping[str, Any]) -> dict[str, Any]:
    message, _, hint = str(failure.get("exception_message", "")).partition("\n")
    where = failure.get("node_type") or ""
    text = f"{where}: {message}" if where else message
    return {"kind": failure.get("exception_type"), "message": text, "hint": hint or None}


def _graph_files(outputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The files that output nodes have saved."""
    for output in outputs.values():
        for items in output.values():
            for item in items if isinstance(items, list) else ():
                if isinstance(item, Mapping) and "filename" in item:
                    yield _graph_file(item)


def _graph_file(item: Mapping[str, Any]) -> dict[str, Any]:
    fields = {name: str(item.get(name, "")) for name in ("filename", "subfolder", "type")}
    name = fields["filename"]
    return {
        "name": name,
        "url": f"/view?{urlencode(fields, quote_via=quote)}",
        "mime": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "bytes": None,
        "playable": Path(name).suffix.lower() in (".mp4", ".webm", ".png", ".jpg", ".webp"),
        "proxy_url": None,
    }


def _iso(milliseconds: Any) -> str | None:
    """ISO 8601 in UTC of a time in milliseconds; ``None`` for 0."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC).isoformat(timespec="milliseconds")
