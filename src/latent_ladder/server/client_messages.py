"""What clients are told while a job runs, in ComfyUI's words: events in, messages out.

Also the job's entry in the history. Knows no sockets.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from latent_ladder.comfyui.runtime.events import (
    GraphEvent,
    NodeDone,
    NodePreview,
    NodesCached,
    NodeStarted,
    NodeWarned,
    UiOutput,
)
from latent_ladder.server.job_store import Job

PREVIEW, PREVIEW_WITH_METADATA = 1, 4
"""Numbers of binary messages."""
IMAGE_TYPES = {"JPEG": 1, "PNG": 2}
WARNING = "ladder_warning"
"""Our own message: ComfyUI has none for what went on but should be known."""


@dataclass(frozen=True)
class Message:
    """A JSON message; ``everyone`` goes to all clients where the job has none of its own."""

    type: str
    data: Mapping[str, Any]
    everyone: bool = False

    def text(self) -> str:
        """As it is sent."""
        return json.dumps({"type": self.type, "data": self.data})


@dataclass(frozen=True)
class Picture:
    """A preview as a binary message."""

    format: str
    picture: bytes
    metadata: Mapping[str, Any]

    def packed(self, with_metadata: bool) -> bytes:
        """Event 4 for clients that know it, else event 1; numbers are big-endian."""
        if not with_metadata:
            return struct.pack(">II", PREVIEW, IMAGE_TYPES[self.format]) + self.picture
        about = json.dumps({**self.metadata, "image_type": f"image/{self.format.lower()}"}).encode()
        return struct.pack(">II", PREVIEW_WITH_METADATA, len(about)) + about + self.picture


@dataclass(frozen=True)
class Failure:
    """Why a job failed: an exception of the worker, or the end of the worker itself."""

    message: str
    kind: str
    traceback: tuple[str, ...] = ()
    node: str = ""


def status(remaining: int, sid: str | None = None) -> Message:
    """How many jobs wait; with ``sid``, the greeting of a client."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
    return Message("status", data if sid is None else {**data, "sid": sid}, everyone=True)


def executing(job_id: str, node: str | None) -> Message:
    """The node under way; ``None`` when the job has ended."""
    shown = {} if node is None else {"display_node": node}
    return Message("executing", {"node": node, **shown, "prompt_id": job_id})


class Telling:
    """One job's story: each call gives the messages to send and remembers what history keeps."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.node: str | None = None
        self._began_ms = 0
        self._said_cached = False
        self._done: list[str] = []
        self._states: dict[str, dict[str, Any]] = {}
        self._outputs: dict[str, UiOutput] = {}
        self._kept: list[tuple[str, Mapping[str, Any]]] = []

    def begin(self) -> Iterator[Message]:
        """The job starts."""
        self._began_ms = now_ms()
        yield self._keep("execution_start", {})

    def on(self, event: GraphEvent) -> Iterator[Message | Picture]:
        """One event of the executor."""
        if isinstance(event, NodesCached):
            yield from self._cached(event)
            return
        if not self._said_cached:
            yield from self._cached(NodesCached(()))
        if isinstance(event, NodeStarted):
            self.node = event.node
            self._states[event.node] = self._state(event.node, "running", 0, 1)
            yield executing(self.job.id, event.node)
            yield self._progress_state()
        elif isinstance(event, NodeDone):
            yield from self._finished(event)
        elif isinstance(event, NodePreview):
            yield Picture(event.format, event.picture, self._names(event.node))
        elif isinstance(event, NodeWarned):
            about = {"node": event.node, "code": event.code, "message": event.message}
            yield self._keep(WARNING, about)
        else:
            self._states[event.node] = self._state(event.node, "running", event.value, event.total)
            yield Message(
                "progress",
                {
                    "value": event.value,
                    "max": event.total,
                    "prompt_id": self.job.id,
                    "node": event.node,
                },
            )
            yield self._progress_state()

    def succeed(self) -> Iterator[Message]:
        """All outputs are there."""
        if not self._said_cached:
            yield from self._cached(NodesCached(()))
        yield self._keep("execution_success", {})

    def fail(self, failure: Failure) -> Iterator[Message]:
        """An error ended the job."""
        node = failure.node or self.node or ""
        if node in self._states:
            self._states[node] = self._state(node, "error", 0, 1)
        inputs = self._inputs(node)
        about = {
            "node_id": node,
            "node_type": self._class_type(node),
            "executed": list(self._done),
            "exception_message": failure.message,
            "exception_type": failure.kind,
            "traceback": list(failure.traceback),
            "current_inputs": {name: [value] for name, value in inputs.items()},
            "current_outputs": list(self._done),
        }
        yield self._keep("execution_error", about)

    def interrupt(self) -> Iterator[Message]:
        """Someone stopped the job."""
        node = self.node or ""
        about = {"node_id": node, "node_type": self._class_type(node), "executed": list(self._done)}
        yield self._keep("execution_interrupted", about, everyone=True)

    def entry(self) -> dict[str, Any]:
        """What ``/history`` says of the finished job."""
        done = self._kept[-1][0] == "execution_success"
        return {
            "prompt": self.job.item(),
            "outputs": self._outputs,
            "status": {
                "status_str": "success" if done else "error",
                "completed": done,
                "messages": [list(pair) for pair in self._kept],
            },
            "meta": {
                node: {
                    "node_id": node,
                    "display_node": node,
                    "parent_node": None,
                    "real_node_id": node,
                }
                for node in self._outputs
            },
        }

    def summary(self) -> dict[str, Any]:
        """What ``/api/jobs`` says of the finished job."""
        ended, about = self._kept[-1]
        state = {"execution_success": "completed", "execution_interrupted": "cancelled"}
        files = [
            {**item, "nodeId": node, "mediaType": kind}
            for node, shown in self._outputs.items()
            for kind, items in shown.items()
            for item in items
            if isinstance(item, Mapping) and "filename" in item
        ]
        return {
            **summary_of(self.job, state.get(ended, "failed")),
            "execution_start_time": self._began_ms,
            "execution_end_time": about["timestamp"],
            "execution_error": about if ended == "execution_error" else None,
            "outputs_count": len(files),
            "preview_output": files[-1] if files else None,
        }

    def _cached(self, event: NodesCached) -> Iterator[Message]:
        self._said_cached = True
        yield self._keep("execution_cached", {"nodes": list(event.nodes)})
        for node in event.nodes:
            self._states[node] = self._state(node, "finished", 1, 1)
            self._done.append(node)
        for node, shown in event.ui.items():
            yield from self._executed(node, shown)

    def _finished(self, event: NodeDone) -> Iterator[Message]:
        most = self._states.get(event.node, {}).get("max", 1)
        self._states[event.node] = self._state(event.node, "finished", most, most)
        self._done.append(event.node)
        yield self._progress_state()
        if event.ui:
            yield from self._executed(event.node, event.ui)

    def _executed(self, node: str, shown: UiOutput) -> Iterator[Message]:
        self._outputs[node] = shown
        about = {"node": node, "display_node": node, "output": shown, "prompt_id": self.job.id}
        yield Message("executed", about)

    def _progress_state(self) -> Message:
        return Message("progress_state", {"prompt_id": self.job.id, "nodes": dict(self._states)})

    def _state(self, node: str, state: str, value: int, most: int) -> dict[str, Any]:
        return {"value": value, "max": most, "state": state, **self._names(node)}

    def _names(self, node: str) -> dict[str, Any]:
        return {
            "node_id": node,
            "prompt_id": self.job.id,
            "display_node_id": node,
            "parent_node_id": None,
            "real_node_id": node,
        }

    def _keep(self, kind: str, data: Mapping[str, Any], everyone: bool = False) -> Message:
        told = {"prompt_id": self.job.id, **data, "timestamp": now_ms()}
        self._kept.append((kind, told))
        return Message(kind, told, everyone)

    def _class_type(self, node: str) -> str:
        return str(self.job.prompt.get(node, {}).get("class_type", ""))

    def _inputs(self, node: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.job.prompt.get(node, {}).get("inputs", {})
        return found


def summary_of(job: Job, state: str) -> dict[str, Any]:
    """What ``/api/jobs`` says of any job."""
    workflow = job.workflow
    return {
        "id": job.id,
        "status": state,
        "priority": job.number,
        "create_time": job.created_ms,
        "workflow_id": workflow.get("id") if isinstance(workflow, Mapping) else None,
    }


def now_ms() -> int:
    """Milliseconds since 1970, as all of ComfyUI's timestamps are."""
    return int(time.time() * 1000)
