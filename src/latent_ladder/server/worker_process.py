"""The child process that runs jobs, as the server sees it: start, run, interrupt, replace.

It is a process and not a thread, so that running out of memory or a crash in native code ends a job
and not the server, and so that ending it frees all memory of the models. This module knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_ladder.server.client_messages import Failure
from latent_ladder.server.job_store import GRAPH, Job
from latent_ladder.server.worker_protocol import LENGTHS, JobEvent, pack_frame, unpack_event

GRACE_S = 5.0
"""Time for the current step after the worker was asked to end."""
WORKER_DIED = "WorkerDied"
"""Kind of the failure of a job whose worker ended."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobOutcome:
    """End of a job: done, with the ``result`` of a request, stopped by a client, or failed."""

    stopped: bool = False
    failure: Failure | None = None
    result: Mapping[str, Any] = field(default_factory=dict)


class WorkerProcess:
    """One child process that runs one job at a time. For one event loop."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, Any]) -> None:
        """``settings`` is the first frame for the child."""
        self._command = tuple(command)
        self._settings = settings
        self._child: Process | None = None
        self._is_busy = False

    async def start(self) -> None:
        """Start the child if it is not running; it loads while the server continues."""
        await self._ensure_child()

    async def run(
        self, job: Job, journal: Path, on_event: Callable[[JobEvent], None]
    ) -> JobOutcome:
        """Run a job to its end; an error or the death of the child is its outcome.

        ``journal`` is the path of the job's :class:`OutputJournal`.
        """
        child = await self._ensure_child()
        self._is_busy = True
        self._send({"do": "run", "id": job.id, "kind": job.kind, **_job_fields(job, journal)})
        try:
            return await _read_until_end(child, job, on_event)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await child.wait()
            reason = _describe_exit(code)
            logger.warning("the worker ended while job %s ran: %s", job.id, reason)
            text = f"the process that ran the job ended: {reason}"
            return JobOutcome(failure=Failure(text, WORKER_DIED))
        finally:
            self._is_busy = False

    def interrupt(self, job_id: str) -> None:
        """Ask the child to stop a job after its current step."""
        self._send({"do": "stop", "id": job_id})

    def stop_part(self, job_id: str, number: int) -> None:
        """Ask the child to stop one draft of a job; the others go on."""
        self._send({"do": "stop_part", "id": job_id, "part": number})

    def kill(self) -> None:
        """Kill the child, which ends its job."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()

    async def close(self, grace_s: float = GRACE_S) -> None:
        """End the child after its current step; kill it after ``grace_s`` seconds."""
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        if child.stdin is not None:
            with suppress(ConnectionError):
                child.stdin.write(pack_frame({"do": "end"}))
            child.stdin.close()
        try:
            # an idle child has no step to finish, and may still be loading torch
            await asyncio.wait_for(child.wait(), grace_s if self._is_busy else 0)
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _ensure_child(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=2**20
            )
            logger.info("worker started, process %d", self._child.pid)
            self._send(self._settings)
        return self._child

    def _send(self, body: Mapping[str, Any]) -> None:
        child = self._child
        if child is not None and child.stdin is not None and child.returncode is None:
            with suppress(ConnectionError):
                child.stdin.write(pack_frame(body))


async def _read_until_end(
    child: Process, job: Job, on_event: Callable[[JobEvent], None]
) -> JobOutcome:
    """Pass on a job's events and log lines until it ends.

    Raises ``IncompleteReadError`` if the child ends first.
    """
    if child.stdout is None:
        raise ConnectionError("the worker has no stdout")
    while True:
        sizes = LENGTHS.unpack(await child.stdout.readexactly(LENGTHS.size))
        text, raw = [await child.stdout.readexactly(size) for size in sizes]
        body = json.loads(text)
        if "event" in body:
            on_event(unpack_event(body, raw))
        elif "log" in body:
            logging.getLogger(body["log"]).log(body["level"], "%s", body["message"])
        elif body["id"] == job.id:
            return _parse_outcome(body)


def _parse_outcome(body: Mapping[str, Any]) -> JobOutcome:
    if body["end"] == "failed":
        failure = {**body["failure"], "traceback": tuple(body["failure"]["traceback"])}
        return JobOutcome(failure=Failure(**failure))
    return JobOutcome(stopped=body["end"] == "stopped", result=body.get("result") or {})


def _job_fields(job: Job, journal: Path) -> dict[str, Any]:
    """The fields of a job that its kind needs."""
    if job.kind != GRAPH:
        return {"body": job.checked["body"]}
    return {
        "prompt": job.prompt,
        "outputs": list(job.outputs),
        "workflow": job.workflow,
        "journal": str(journal),
    }


def _describe_exit(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}, likely out of memory" if name == "SIGKILL" else name
