"""Jobs in the form of the Comfy API v2, and the stream of their events."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from latent_ladder.server.app_context import Context
from latent_ladder.server.client_messages import (
    OWN_EXTRA,
    JobMessages,
    Message,
    PreviewImage,
    Progress,
)
from latent_ladder.server.comfy_v2_assets import describe_output
from latent_ladder.server.job_routes import find_job

STATES = {
    "pending": "queued",
    "in_progress": "running",
    "completed": "succeeded",
    "failed": "failed",
    "cancelled": "canceled",
}
"""The states of this API by those of ``/jobs``."""
STATUSES = (*STATES.values(), "canceling", "expired")
FINAL_STATUSES = frozenset({"succeeded", "failed", "canceled", "expired"})
FINAL_MESSAGES = frozenset({"execution_success", "execution_error", "execution_interrupted"})
RETENTION = timedelta(days=30)
"""Time that clients may rely on; the history keeps a number of jobs, however old."""
HEARTBEAT_S = 15.0
THROTTLE_S = 0.5
MAX_QUEUED_MESSAGES = 1000
_OUTPUT_TYPES = {"images": "image", "gifs": "video", "video": "video", "audio": "audio",
                 "latents": "latent"}  # fmt: skip
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".gif", ".webp")


def describe_job(context: Context, job_id: str, base: str) -> dict[str, Any] | None:
    """One job; ``None`` for an unknown id. ``base`` is the server's address for the links."""
    summary = find_job(context.jobs, job_id)
    if summary is None:
        return None
    return describe_summary(context, summary, base)


def describe_summary(context: Context, summary: Mapping[str, Any], base: str) -> dict[str, Any]:
    """The job of a summary of ``/jobs``."""
    job_id = str(summary["id"])
    created = _time(summary["create_time"])
    current = context.jobs.progress_of(job_id)
    outputs = current.outputs if current is not None else _outputs_of(context, summary)
    status = STATES[summary["status"]]
    if status == "running" and context.jobs.is_stopping(job_id):
        status = "canceling"
    started, ended = summary.get("execution_start_time"), summary.get("execution_end_time")
    own = summary.get(OWN_EXTRA) or {}
    start = started or (current.start_ms if current is not None else None)
    return {
        "id": job_id,
        "status": status,
        "created_at": created.isoformat(),
        "create_time": created.isoformat(),
        "started_at": None if not start else _time(start).isoformat(),
        "completed_at": None if not ended else _time(ended).isoformat(),
        "update_time": _time(ended or start or summary["create_time"]).isoformat(),
        "expires_at": (created + RETENTION).isoformat(),
        "queue_position": _queue_position(context, job_id) if status == "queued" else None,
        "progress": _describe_progress(current, status, summary),
        "outputs": list(describe_outputs(context, job_id, outputs, base)),
        "outputs_reused": False,
        "error": _describe_error(summary.get("execution_error")),
        "metadata": dict(own.get("metadata") or {}),
        "priority": own.get("priority"),
        "urls": {
            "self": f"{base}/api/v2/jobs/{job_id}",
            "events": f"{base}/api/v2/jobs/{job_id}/events",
            "cancel": f"{base}/api/v2/jobs/{job_id}/cancel",
        },
    }


def describe_outputs(
    context: Context, job_id: str, outputs: Mapping[str, Any], base: str
) -> Iterator[dict[str, Any]]:
    """The result files of a job."""
    for node, shown in outputs.items():
        for kind, items in shown.items():
            for item in items:
                if isinstance(item, Mapping) and "filename" in item:
                    yield {
                        "node_id": node,
                        "name": item["filename"],
                        "type": _output_type(kind, item["filename"]),
                        **describe_output(context, item, job_id, base),
                    }


async def stream_events(context: Context, job_id: str, base: str) -> AsyncIterator[bytes]:
    """Server-sent events of a job until it ends: status, progress, previews, outputs."""
    queue: asyncio.Queue[Message | PreviewImage] = asyncio.Queue(MAX_QUEUED_MESSAGES)

    def collect(message: Message | PreviewImage) -> None:
        if not queue.full():  # a slow client misses steps, and gets the end from the job itself
            queue.put_nowait(message)

    events = _JobEvents(context, job_id, base)
    with context.jobs.watch(job_id, collect):
        for frame in events.state():
            yield frame
        while not events.ended:
            try:
                message = await asyncio.wait_for(queue.get(), HEARTBEAT_S)
            except TimeoutError:
                yield b": keepalive\n\n"
                message = None
            for frame in events.translate(message):
                yield frame


class _JobEvents:
    """Messages of ComfyUI's web socket as server-sent events."""

    def __init__(self, context: Context, job_id: str, base: str) -> None:
        self.ended = False
        self._context, self._job_id, self._base = context, job_id, base
        self._sent_outputs: set[str] = set()
        self._status = ""
        self._last_sent = {"progress": 0.0, "preview": 0.0}

    def state(self) -> Iterator[bytes]:
        """The state of the job now, if it has changed, and new outputs."""
        job = describe_job(self._context, self._job_id, self._base)
        status = "expired" if job is None else job["status"]
        self.ended = status in FINAL_STATUSES
        if job is not None:
            for output in job["outputs"]:
                if output["id"] not in self._sent_outputs:
                    self._sent_outputs.add(output["id"])
                    yield _event("output", output)
            if job["progress"] is not None and not self.ended:
                yield _event("progress", job["progress"])
        if status != self._status:
            self._status = status
            position = {} if job is None else {"queue_position": job["queue_position"]}
            yield _event("status", {"status": status, **position})

    def translate(self, message: Message | PreviewImage | None) -> Iterator[bytes]:
        """Events for one message; ``None`` looks whether the job has ended meanwhile."""
        if isinstance(message, PreviewImage):
            if self._is_due("preview"):
                yield _event("preview", _describe_preview(message))
        elif message is None or message.type in ("executed", "execution_start", *FINAL_MESSAGES):
            yield from self.state()
        elif message.type in ("progress", "progress_state") and self._is_due("progress"):
            current = self._context.jobs.progress_of(self._job_id)
            if current is not None:
                yield _event("progress", _progress_dict(current.progress()))

    def _is_due(self, kind: str) -> bool:
        now = time.monotonic()
        if now < self._last_sent[kind] + THROTTLE_S:
            return False
        self._last_sent[kind] = now
        return True


def _event(kind: str, data: Mapping[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _describe_preview(image: PreviewImage) -> dict[str, Any]:
    return {
        "node_id": str(image.metadata.get("node_id", "")),
        "content_type": f"image/{image.format.lower()}",
        "data_base64": base64.b64encode(image.image).decode(),
    }


def _outputs_of(context: Context, summary: Mapping[str, Any]) -> Mapping[str, Any]:
    entry = context.jobs.store.entry(str(summary["id"])) if summary.get("outputs_count") else None
    outputs: Mapping[str, Any] = {} if entry is None else entry["outputs"]
    return outputs


def _queue_position(context: Context, job_id: str) -> int:
    """Number of waiting jobs before this one."""
    waiting = [job.id for job in context.jobs.store.pending_jobs()]
    running = context.jobs.running
    if running is not None and running.id in waiting:
        waiting.remove(running.id)
    return waiting.index(job_id) if job_id in waiting else 0


def _describe_progress(
    current: JobMessages | None, status: str, summary: Mapping[str, Any]
) -> dict[str, Any] | None:
    if current is not None:
        return _progress_dict(current.progress())
    if status == "succeeded":
        done = max(int(summary.get("outputs_count") or 0), 1)
        return _progress_dict(Progress(done, done))
    return None


def _progress_dict(progress: Progress) -> dict[str, Any]:
    text = f"{progress.node_type} {progress.step}/{progress.steps}" if progress.node else None
    return {
        "value": progress.fraction,
        "nodes_done": progress.done,
        "nodes_total": progress.total,
        "current_node": progress.node,
        "current_node_class": progress.node_type or None,
        "step": progress.step,
        "steps": progress.steps,
        "message": text,
    }


def _describe_error(error: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not error:
        return None
    return {
        "code": "node_execution_error",
        "message": error.get("exception_message", ""),
        "node_id": error.get("node_id") or None,
        "class_type": error.get("node_type") or None,
        "traceback": "".join(error.get("traceback", ())) or None,
    }


def _output_type(kind: str, name: str) -> str:
    is_video = name.lower().endswith(_VIDEO_SUFFIXES)
    return "video" if is_video and kind == "images" else _OUTPUT_TYPES.get(kind, "file")


def _time(milliseconds: float) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
