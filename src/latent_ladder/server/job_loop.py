"""The loop that runs jobs: from the queue through the worker process into the history.

A job stays in the queue until its entry is in the history, so a server that was stopped or killed
runs it again after the next start. The journal of its files, next to the queue, then prevents that
they are written twice.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from latent_ladder.errors import StoreError
from latent_ladder.server.client_messages import (
    JobMessages,
    Message,
    PreviewImage,
    executing_message,
    status_message,
)
from latent_ladder.server.job_store import Job, JobStore
from latent_ladder.server.websockets import WebSocketClients
from latent_ladder.server.worker_process import WORKER_DIED, JobOutcome, WorkerProcess

INTERRUPT_GRACE_S = 5.0
"""Time for the current step after an interrupt; a later second interrupt kills the worker."""

RETRY_S = 10.0
"""Time between two tries to write what a full disk had no room for."""

Watcher = Callable[[Message | PreviewImage], None]
"""Gets the messages of one job, whoever queued it."""

logger = logging.getLogger(__name__)


class JobLoop:
    """Runs the jobs of a store one after the other. For one event loop."""

    def __init__(
        self,
        store: JobStore,
        worker: WorkerProcess,
        clients: WebSocketClients,
        notify: Callable[[str], None],
    ) -> None:
        self.store = store
        self._worker, self._clients, self._notify = worker, clients, notify
        self._current: JobMessages | None = None
        self._wake = asyncio.Event()
        self._restart_worker = False
        self._closing = False
        self._interrupted_at: float | None = None
        self._deleted: set[str] = set()
        self._watchers: dict[str, set[Watcher]] = {}

    def state_of(self, job_id: str) -> str:
        """``in_progress`` or ``pending``, for a job in the queue."""
        running = self.running
        return "in_progress" if running is not None and running.id == job_id else "pending"

    def is_stopping(self, job_id: str) -> bool:
        """True for the running job while it finishes the step at which it was interrupted."""
        return self._interrupted_at is not None and self.state_of(job_id) == "in_progress"

    def progress_of(self, job_id: str) -> JobMessages | None:
        """The messages of the running job so far, if it is this one."""
        current = self._current
        return current if current is not None and current.job.id == job_id else None

    @contextmanager
    def watch(self, job_id: str, watcher: Watcher) -> Iterator[None]:
        """Call ``watcher`` with every message of a job in this block."""
        watchers = self._watchers.setdefault(job_id, set())
        watchers.add(watcher)
        try:
            yield
        finally:
            watchers.discard(watcher)
            if not watchers:
                self._watchers.pop(job_id, None)

    @property
    def running(self) -> Job | None:
        """The job that runs now."""
        return None if self._current is None else self._current.job

    def add(self, job: Job) -> bool:
        """Queue a job; ``False`` if a job with its id is queued already."""
        if not self.store.add(job):
            return False
        self._announce(f"{job.id} queued")
        self._send_status()
        self._wake.set()
        return True

    def remove(self, ids: Iterable[str] | None) -> None:
        """Remove jobs that have not started from the queue (``None``: all)."""
        running = self.running
        self.store.remove_pending(ids, None if running is None else running.id)
        self._clean_journals()
        self._send_status()

    def cancel(self, job_id: str) -> bool:
        """Stop a job: the running one after its step, a waiting one at once, into the history.

        ``False`` for a job that is not in the queue.
        """
        if self.interrupt(job_id):
            return True
        job = self.store.pending_job(job_id)
        if job is None:
            return False
        messages = JobMessages(job)
        final = list(messages.report_interrupt())
        self.store.finish(job.id, messages.build_history_entry(), messages.build_summary())
        self._forget_files(job.id)
        self._announce(f"{job.id} cancelled before it started")
        self._send(job, final)
        self._send_status()
        return True

    def delete(self, job_id: str) -> None:
        """Remove a job from queue and history, and stop it if it runs."""
        if self.interrupt(job_id):
            self._deleted.add(job_id)
            self.store.remove_pending([job_id], None)
        else:
            self.remove([job_id])
            self.store.delete_history([job_id])

    def interrupt(self, job_id: str | None = None) -> bool:
        """Stop the running job after its current step; with an id, only if it is that job.

        A second call after :data:`INTERRUPT_GRACE_S` kills the worker.
        """
        running = self.running
        if running is None or job_id not in (None, running.id):
            return False
        now = time.monotonic()
        first = self._interrupted_at
        if first is not None and now > first + INTERRUPT_GRACE_S:
            self._announce(f"killing the worker, because {running.id} does not stop")
            self._worker.kill()
        else:
            self._announce(f"interrupting {running.id}")
            self._interrupted_at = first or now
            self._worker.interrupt(running.id)
        return True

    def free_memory(self) -> None:
        """Restart the worker after the running job, which frees the memory of models."""
        self._restart_worker = True
        self._wake.set()

    def initial_messages(self, sid: str) -> Iterator[Message]:
        """Messages for a client that connects: the queue, and the node that runs its job."""
        yield status_message(self.store.count(), sid)
        current = self._current
        if current is not None and current.job.client == sid and current.node is not None:
            yield executing_message(current.job.id, current.node)

    async def run(self) -> None:
        """Run jobs until :meth:`close`."""
        self._clean_journals()
        await self._worker.start()
        while not self._closing:
            if self._restart_worker:
                self._restart_worker = False
                await self._worker.close()
                await self._worker.start()
            job = self.store.next_job()
            if job is None:
                await self._wait_for_work()
            else:
                await self._run_job(job)

    async def _wait_for_work(self) -> None:
        """Wait until something happens; entries that only memory has are tried again meanwhile."""
        self._wake.clear()
        if not self.store.unsaved:
            await self._wake.wait()
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), RETRY_S)
        if self.store.save_unsaved():
            self._announce("the queue is written again")

    async def close(self) -> None:
        """Stop the running job after its current step, keep it in the queue, end the worker."""
        self._closing = True
        await self._worker.close()

    async def _run_job(self, job: Job) -> None:
        start = time.monotonic()
        logger.info("job %s started: %d nodes", job.id, len(job.prompt))
        messages = self._current = JobMessages(job)
        self._send(job, messages.report_start())
        outcome = await self._worker.run(
            job,
            self.store.journal_path(job.id),
            lambda event: self._send(job, messages.report_event(event)),
        )
        if self._closing and _was_interrupted(outcome):
            return
        if self._interrupted_at is not None and _was_interrupted(outcome):
            outcome = JobOutcome(stopped=True)
        final = list(_final_messages(messages, outcome))
        self.store.finish(job.id, messages.build_history_entry(), messages.build_summary())
        if job.id in self._deleted:
            self._deleted.discard(job.id)
            with suppress(StoreError):  # a full disk; the loop has to go on
                self.store.delete_history([job.id])
        if job.id in self.store.unsaved:
            self._announce(f"warning: the disk is full; the end of {job.id} is only in memory")
        self._current = self._interrupted_at = None
        self._forget_files(job.id)
        self._send(job, [*final, executing_message(job.id, None)])
        self._send_status()
        seconds = time.monotonic() - start
        self._announce(f"{job.id} {_describe(outcome)} after {seconds:.1f} s")

    def _announce(self, text: str) -> None:
        """Print and log a line about a job."""
        logger.info("%s", text)
        self._notify(text)

    def _send(self, job: Job, messages: Iterable[Message | PreviewImage]) -> None:
        for message in messages:
            self._clients.send(message, job.client)
            for watcher in tuple(self._watchers.get(job.id, ())):
                watcher(message)

    def _forget_files(self, job_id: str) -> None:
        """Delete the journal of a job that will not run again, once that is on the disk."""
        if job_id in self.store.unsaved:
            return
        with suppress(OSError):
            self.store.journal_path(job_id).unlink(missing_ok=True)

    def _clean_journals(self) -> None:
        """Delete the journals of jobs that are no longer in the queue."""
        ids = [*(job.id for job in self.store.pending_jobs()), *self.store.unsaved]
        wanted = {self.store.journal_path(job_id) for job_id in ids}
        for path in self.store.journal_folder.glob("*"):
            if path not in wanted:
                with suppress(OSError):
                    path.unlink()

    def _send_status(self) -> None:
        self._clients.send(status_message(self.store.count()), None)


def _final_messages(messages: JobMessages, outcome: JobOutcome) -> Iterator[Message]:
    if outcome.failure is not None:
        return messages.report_failure(outcome.failure)
    return messages.report_interrupt() if outcome.stopped else messages.report_success()


def _was_interrupted(outcome: JobOutcome) -> bool:
    """True for a job that did not end by itself: it was stopped, or its worker was ended."""
    died = outcome.failure is not None and outcome.failure.kind == WORKER_DIED
    return outcome.stopped or died


def _describe(outcome: JobOutcome) -> str:
    if outcome.failure is None:
        return "stopped" if outcome.stopped else "finished"
    first_line = outcome.failure.message.partition("\n")[0]
    return f"failed: {first_line[:300]};"
