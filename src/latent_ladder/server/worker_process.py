"""The child process that runs jobs: started, spoken to, interrupted, replaced when it dies.

A process and not a thread: running out of memory or a crash in native code ends a job and not the
server, and ending it gives back all the memory that models took. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import json
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from latent_ladder.comfyui.runtime.events import GraphEvent
from latent_ladder.server.client_messages import Failure
from latent_ladder.server.job_store import Job
from latent_ladder.server.worker_protocol import LENGTHS, event_of, pack

GRACE_S = 5.0
"""How long a worker that was told to end may take for the step under way."""
DEATH = "WorkerDied"


@dataclass(frozen=True)
class Ended:
    """How a job ended: done, stopped by someone, or failed."""

    stopped: bool = False
    failure: Failure | None = None


class Worker:
    """One child at a time, for one job at a time. For one event loop."""

    def __init__(self, command: Sequence[str], opening: Mapping[str, Any]) -> None:
        """``opening`` is the first frame it gets: where files lie and what may be used."""
        self._command = tuple(command)
        self._opening = opening
        self._child: Process | None = None
        self._busy = False

    async def start(self) -> None:
        """Start the child unless it lives; it gets ready while we go on."""
        await self._living()

    async def run(self, job: Job, on_event: Callable[[GraphEvent], None]) -> Ended:
        """Run a job to its end, whatever that is."""
        child = await self._living()
        self._busy = True
        self._tell(
            {
                "do": "run",
                "id": job.id,
                "prompt": job.prompt,
                "wanted": list(job.wanted),
                "workflow": job.workflow,
            }
        )
        try:
            return await _followed(child, job, on_event)
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await child.wait()
            text = f"the process that ran the job ended: {_reason(code)}"
            return Ended(failure=Failure(text, DEATH))
        finally:
            self._busy = False

    def interrupt(self, job_id: str) -> None:
        """Ask it to stop a job after the step under way."""
        self._tell({"do": "stop", "id": job_id})

    def kill(self) -> None:
        """End the child at once; the job under way ends with it."""
        if self._child is not None and self._child.returncode is None:
            self._child.kill()

    async def close(self, grace_s: float = GRACE_S) -> None:
        """End the child: after the step under way, or after ``grace_s`` all the same."""
        child, self._child = self._child, None
        if child is None or child.returncode is not None:
            return
        if child.stdin is not None:
            child.stdin.close()
        try:
            # one that does nothing has nothing to finish, and may still be loading torch
            await asyncio.wait_for(child.wait(), grace_s if self._busy else 0)
        except TimeoutError:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()

    async def _living(self) -> Process:
        if self._child is None or self._child.returncode is not None:
            self._child = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, limit=2**20
            )
            self._tell(self._opening)
        return self._child

    def _tell(self, body: Mapping[str, Any]) -> None:
        child = self._child
        if child is not None and child.stdin is not None and child.returncode is None:
            with suppress(ConnectionError):
                child.stdin.write(pack(body))


async def _followed(child: Process, job: Job, on_event: Callable[[GraphEvent], None]) -> Ended:
    """Hand on a job's events until it ends. Raises ``IncompleteReadError`` if the child does."""
    if child.stdout is None:
        raise ConnectionError("the worker has no stdout")
    while True:
        sizes = LENGTHS.unpack(await child.stdout.readexactly(LENGTHS.size))
        text, raw = [await child.stdout.readexactly(size) for size in sizes]
        body = json.loads(text)
        if "event" in body:
            on_event(event_of(body, raw))
        elif body["id"] == job.id:
            return _ended(body)


def _ended(body: Mapping[str, Any]) -> Ended:
    if body["end"] == "failed":
        failure = {**body["failure"], "traceback": tuple(body["failure"]["traceback"])}
        return Ended(failure=Failure(**failure))
    return Ended(stopped=body["end"] == "stopped")


def _reason(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"{name}, likely out of memory" if name == "SIGKILL" else name
