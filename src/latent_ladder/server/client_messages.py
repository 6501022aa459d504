"""Messages to clients while a job runs, and the job's history entry, in ComfyUI's format.

Events of the executor become messages here. This module knows no sockets.
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
"""Event numbers of binary messages."""
IMAGE_TYPES = {"JPEG": 1, "PNG": 2}
OWN_EXTRA = "latent_ladder"
"""Key in a job's extra data for what other interfaces of this server remember."""
WARNING = "ladder_warning"
"""Message type of warnings, which ComfyUI does not have."""


@dataclass(frozen=True)
class Message:
    """A JSON message; with ``everyone`` it goes to all clients if the job has no client."""

    type: str
    data: Mapping[str, Any]
    everyone: bool = False

    def to_json(self) -> str:
        """The message as it is sent."""
        return json.dumps({"type": self.type, "data": self.data})


@dataclass(frozen=True)
class PreviewImage:
    """A preview picture, sent as a binary message. ``image`` is an encoded JPEG or PNG."""

    format: str
    image: bytes
    metadata: Mapping[str, Any]

    def to_bytes(self, with_metadata: bool) -> bytes:
        """Event 4 for clients that support metadata, else event 1; integers are big-endian."""
        if not with_metadata:
            return struct.pack(">II", PREVIEW, IMAGE_TYPES[self.format]) + self.image
        text = json.dumps({**self.metadata, "image_type": f"image/{self.format.lower()}"}).encode()
        return struct.pack(">II", PREVIEW_WITH_METADATA, len(text)) + text + self.image


@dataclass(frozen=True)
class Failure:
    """Reason why a job failed: an exception in the worker, or the end of the worker itself."""

    message: str
    kind: str
    traceback: tuple[str, ...] = ()
    node: str = ""


@dataclass(frozen=True)
class Progress:
    """Finished nodes of a job, and steps of its current node."""

    done: int
    total: int
    node: str | None = None
    node_type: str = ""
    step: int = 0
    steps: int = 1

    @property
    def fraction(self) -> float:
        """Finished part, 0 to 1; every node counts the same."""
        current = 0.0 if self.done >= self.total else min(self.step / max(self.steps, 1), 1.0)
        return min((self.done + current) / self.total, 1.0)


def status_message(remaining: int, sid: str | None = None) -> Message:
    """Number of unfinished jobs; with ``sid``, the first message to a client."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
    return Message("status", data if sid is None else {**data, "sid": sid}, everyone=True)


def executing_message(job_id: str, node: str | None) -> Message:
    """The node that runs now; ``None`` when the job has ended."""
    display = {} if node is None else {"display_node": node}
    return Message("executing", {"node": node, **display, "prompt_id": job_id})


class JobMessages:
    """Messages of one job. Each method yields messages to send and collects the history entry."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.node: str | None = None
        self.start_ms = 0
        self.preview: NodePreview | None = None
        self._sent_cached = False
        self._finished_nodes: list[str] = []
        self._states: dict[str, dict[str, Any]] = {}
        self._outputs: dict[str, UiOutput] = {}
        self._recorded: list[tuple[str, Mapping[str, Any]]] = []

    @property
    def outputs(self) -> Mapping[str, UiOutput]:
        """Results that the output nodes have shown so far."""
        return self._outputs

    def progress(self) -> Progress:
        """Progress of the job."""
        state = self._states.get(self.node or "", {})
        finished = sum(state["state"] == "finished" for state in self._states.values())
        return Progress(
            done=finished,
            total=max(len(self.job.prompt), finished, 1),
            node=self.node,
            node_type=self._class_type(self.node or ""),
            step=int(state.get("value", 0)),
            steps=int(state.get("max", 1)),
        )

    def report_start(self) -> Iterator[Message]:
        """Messages at the start of the job."""
        self.start_ms = now_ms()
        yield self._record("execution_start", {})

    def report_event(self, event: GraphEvent) -> Iterator[Message | PreviewImage]:
        """Messages for one event of the executor."""
        if isinstance(event, NodesCached):
            yield from self._report_cached(event)
            return
        if not self._sent_cached:
            yield from self._report_cached(NodesCached(()))
        if isinstance(event, NodeStarted):
            self.node = event.node
            self._states[event.node] = self._state(event.node, "running", 0, 1)
            yield executing_message(self.job.id, event.node)
            yield self._progress_state()
        elif isinstance(event, NodeDone):
            yield from self._report_node_done(event)
        elif isinstance(event, NodePreview):
            self.preview = event
            yield PreviewImage(event.format, event.picture, self._node_ids(event.node))
        elif isinstance(event, NodeWarned):
            warning = {"node": event.node, "code": event.code, "message": event.message}
            yield self._record(WARNING, warning)
        else:
            state = self._state(event.node, "running", event.value, event.total)
            self._states[event.node] = state
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

    def report_success(self) -> Iterator[Message]:
        """Messages at the end of a job whose outputs are all there."""
        if not self._sent_cached:
            yield from self._report_cached(NodesCached(()))
        yield self._record("execution_success", {})

    def report_failure(self, failure: Failure) -> Iterator[Message]:
        """Messages at the end of a job with an error."""
        node = failure.node or self.node or ""
        if node in self._states:
            self._states[node] = self._state(node, "error", 0, 1)
        inputs = self._inputs(node)
        details = {
            "node_id": node,
            "node_type": self._class_type(node),
            "executed": list(self._finished_nodes),
            "exception_message": failure.message,
            "exception_type": failure.kind,
            "traceback": list(failure.traceback),
            "current_inputs": {name: [value] for name, value in inputs.items()},
            "current_outputs": list(self._finished_nodes),
        }
        yield self._record("execution_error", details)

    def report_interrupt(self) -> Iterator[Message]:
        """Messages at the end of a job that a client stopped."""
        node = self.node or ""
        details = {
            "node_id": node,
            "node_type": self._class_type(node),
            "executed": list(self._finished_nodes),
        }
        yield self._record("execution_interrupted", details, everyone=True)

    def build_history_entry(self) -> dict[str, Any]:
        """Entry of the finished job for ``/history``."""
        succeeded = self._recorded[-1][0] == "execution_success"
        return {
            "prompt": self.job.item(),
            "outputs": self._outputs,
            "status": {
                "status_str": "success" if succeeded else "error",
                "completed": succeeded,
                "messages": [list(pair) for pair in self._recorded],
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

    def build_summary(self) -> dict[str, Any]:
        """Summary of the finished job for ``/api/jobs``."""
        last_type, details = self._recorded[-1]
        states = {"execution_success": "completed", "execution_interrupted": "cancelled"}
        files = [
            {**item, "nodeId": node, "mediaType": kind}
            for node, output in self._outputs.items()
            for kind, items in output.items()
            for item in items
            if isinstance(item, Mapping) and "filename" in item
        ]
        return {
            **summarize_job(self.job, states.get(last_type, "failed")),
            "execution_start_time": self.start_ms,
            "execution_end_time": details["timestamp"],
            "execution_error": details if last_type == "execution_error" else None,
            "outputs_count": len(files),
            "preview_output": files[-1] if files else None,
        }

    def _report_cached(self, event: NodesCached) -> Iterator[Message]:
        self._sent_cached = True
        yield self._record("execution_cached", {"nodes": list(event.nodes)})
        for node in event.nodes:
            self._states[node] = self._state(node, "finished", 1, 1)
            self._finished_nodes.append(node)
        for node, output in event.ui.items():
            yield from self._report_output(node, output)

    def _report_node_done(self, event: NodeDone) -> Iterator[Message]:
        total = self._states.get(event.node, {}).get("max", 1)
        self._states[event.node] = self._state(event.node, "finished", total, total)
        self._finished_nodes.append(event.node)
        yield self._progress_state()
        if event.ui:
            yield from self._report_output(event.node, event.ui)

    def _report_output(self, node: str, output: UiOutput) -> Iterator[Message]:
        self._outputs[node] = output
        data = {"node": node, "display_node": node, "output": output, "prompt_id": self.job.id}
        yield Message("executed", data)

    def _progress_state(self) -> Message:
        return Message("progress_state", {"prompt_id": self.job.id, "nodes": dict(self._states)})

    def _state(self, node: str, state: str, value: int, total: int) -> dict[str, Any]:
        return {"value": value, "max": total, "state": state, **self._node_ids(node)}

    def _node_ids(self, node: str) -> dict[str, Any]:
        return {
            "node_id": node,
            "prompt_id": self.job.id,
            "display_node_id": node,
            "parent_node_id": None,
            "real_node_id": node,
        }

    def _record(self, kind: str, data: Mapping[str, Any], everyone: bool = False) -> Message:
        """A message that also goes into the history entry."""
        stamped = {"prompt_id": self.job.id, **data, "timestamp": now_ms()}
        self._recorded.append((kind, stamped))
        return Message(kind, stamped, everyone)

    def _class_type(self, node: str) -> str:
        return str(self.job.prompt.get(node, {}).get("class_type", ""))

    def _inputs(self, node: str) -> Mapping[str, Any]:
        inputs: Mapping[str, Any] = self.job.prompt.get(node, {}).get("inputs", {})
        return inputs


def summarize_job(job: Job, state: str) -> dict[str, Any]:
    """The fields of ``/api/jobs`` that every job has, finished or not."""
    workflow = job.workflow
    ours = job.extra.get(OWN_EXTRA)
    return {
        **({OWN_EXTRA: ours} if isinstance(ours, Mapping) else {}),
        "id": job.id,
        "status": state,
        "priority": job.number,
        "create_time": job.created_ms,
        "workflow_id": workflow.get("id") if isinstance(workflow, Mapping) else None,
    }


def now_ms() -> int:
    """Milliseconds since 1970, as in all of ComfyUI's timestamps."""
    return int(time.time() * 1000)
