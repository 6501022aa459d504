"""The one loop that runs jobs: next in the queue, through the worker, into the history.

A job stays in the queue until its entry is in the history, so a server that is stopped or killed
begins it again when it comes back.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator

from latent_ladder.server.client_messages import Message, Picture, Telling, executing, status
from latent_ladder.server.job_store import Job, Kept
from latent_ladder.server.websockets import Sockets
from latent_ladder.server.worker_process import DEATH, Ended, Worker

PATIENCE_S = 5.0
"""How long a step may go on after an interrupt before a second one ends the worker."""


class Jobs:
    """Queue, worker and listeners. For one event loop."""

    def __init__(
        self, kept: Kept, worker: Worker, sockets: Sockets, say: Callable[[str], None]
    ) -> None:
        self.kept = kept
        self._worker, self._sockets, self._say = worker, sockets, say
        self._now: Telling | None = None
        self._more = asyncio.Event()
        self._free = False
        self._closing = False
        self._asked_at: float | None = None

    @property
    def running(self) -> Job | None:
        """The job under way."""
        return None if self._now is None else self._now.job

    def add(self, job: Job) -> bool:
        """Queue a job; ``False`` if one with its id is there already."""
        if not self.kept.add(job):
            return False
        self._say(f"{job.id} queued")
        self._tell_status()
        self._more.set()
        return True

    def drop(self, ids: Iterable[str] | None) -> None:
        """Take jobs that have not begun out of the queue; ``None``: all."""
        running = self.running
        self.kept.drop(ids, None if running is None else running.id)
        self._tell_status()

    def interrupt(self, job_id: str | None = None) -> bool:
        """Stop the job under way after its step; with an id, only if it is that one.

        Who asks again after :data:`PATIENCE_S` means at once: the worker is ended.
        """
        running = self.running
        if running is None or job_id not in (None, running.id):
            return False
        now = time.monotonic()
        if self._asked_at is not None and now > self._asked_at + PATIENCE_S:
            self._say(f"ending the worker that does not stop {running.id}")
            self._worker.kill()
        else:
            self._say(f"interrupting {running.id}")
            self._asked_at = self._asked_at or now
            self._worker.interrupt(running.id)
        return True

    def free(self) -> None:
        """Give back the memory that models hold, once the job under way is done."""
        self._free = True
        self._more.set()

    def greeting(self, sid: str) -> Iterator[Message]:
        """What a client that connects is told: the queue, and where its job is."""
        yield status(self.kept.count(), sid)
        now = self._now
        if now is not None and now.job.client == sid and now.node is not None:
            yield executing(now.job.id, now.node)

    async def work(self) -> None:
        """Run jobs, forever."""
        await self._worker.start()
        while not self._closing:
            if self._free:
                self._free = False
                await self._worker.close()
                await self._worker.start()
            job = self.kept.first()
            if job is None:
                self._more.clear()
                await self._more.wait()
            else:
                await self._run(job)

    async def close(self) -> None:
        """Stop the job under way after its step and leave it in the queue; end the worker."""
        self._closing = True
        await self._worker.close()

    async def _run(self, job: Job) -> None:
        began = time.monotonic()
        telling = self._now = Telling(job)
        self._send(job, telling.begin())
        ended = await self._worker.run(job, lambda event: self._send(job, telling.on(event)))
        if self._closing and _cut_short(ended):
            return
        if self._asked_at is not None and _cut_short(ended):
            ended = Ended(stopped=True)
        last = list(_last_words(telling, ended))
        self.kept.finish(job.id, telling.entry(), telling.summary())
        self._now = self._asked_at = None
        self._send(job, [*last, executing(job.id, None)])
        self._tell_status()
        self._say(f"{job.id} {_outcome(ended)} after {time.monotonic() - began:.1f} s")

    def _send(self, job: Job, messages: Iterable[Message | Picture]) -> None:
        for message in messages:
            self._sockets.send(message, job.client)

    def _tell_status(self) -> None:
        self._sockets.send(status(self.kept.count()), None)


def _last_words(telling: Telling, ended: Ended) -> Iterator[Message]:
    if ended.failure is not None:
        return telling.fail(ended.failure)
    return telling.interrupt() if ended.stopped else telling.succeed()


def _cut_short(ended: Ended) -> bool:
    """Whether a job ended because the server does."""
    return ended.stopped or (ended.failure is not None and ended.failure.kind == DEATH)


def _outcome(ended: Ended) -> str:
    if ended.failure is None:
        return "stopped" if ended.stopped else "finished"
    first = ended.failure.message.partition("\n")[0]
    return f"failed: {first[:300]};"
