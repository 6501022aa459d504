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
from dataclasses import replace

from latent_ladder.comfyui.runtime.events import GraphEvent
from latent_ladder.errors import StoreError
from latent_ladder.server.client_messages import (
    JobMessages,
    Message,
    PreviewImage,
    executing_message,
    status_message,
)
from latent_ladder.server.job_store import GRAPH, REQUEST, Job, JobStore
from latent_ladder.server.request_progress import RequestProgress
from latent_ladder.server.websockets import WebSocketClients
from latent_ladder.server.worker_process import WORKER_DIED, JobOutcome, WorkerProcess
from latent_ladder.server.worker_protocol import JobEvent

INTERRUPT_GRACE_S = 5.0
"""Time for the current step after an interrupt; a later second interrupt kills the worker."""

RETRY_S = 10.0
"""Time between two tries to write what a full disk had no room for."""

Watcher = Callable[[Message | PreviewImage], None]
"""Gets the messages of one job, whoever queued it."""

Tracker = JobMessages | RequestProgress
"""State of the job that runs: of a graph, or of a request."""

Listener = Callable[[str, JobEvent | None], None]
"""Gets the id of a job of any kind that changed, and the event, if that is why."""

QUEUE_PAUSED = "queue_paused"

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
        self._current: Tracker | None = None
        self._wake = asyncio.Event()
        self._restart_worker = False
        self._closing = False
        self._interrupted_at: float | None = None
        self._deleted: set[str] = set()
        self._watchers: dict[str, set[Watcher]] = {}
        self._listeners: list[Listener] = []
        self._pausing: str | None = None

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
        is_graph = isinstance(current, JobMessages) and current.job.id == job_id
        return current if is_graph and isinstance(current, JobMessages) else None

    def tracker_of(self, job_id: str) -> Tracker | None:
        """The state of the running job of any kind, if it is this one."""
        current = self._current
        return current if current is not None and current.job.id == job_id else None

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` when a job of any kind changes; with "" when the queue does."""
        self._listeners.append(listener)

    @property
    def running_graph(self) -> Job | None:
        """The job that runs now, if it is a graph."""
        running = self.running
        return running if running is not None and running.kind == GRAPH else None

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
        self._changed(job.id)
        self._wake.set()
        return True

    # --- order, pause, parts ------------------------------------------------------------------

    @property
    def is_paused(self) -> bool:
        """True if no further job is started."""
        return self.store.setting(QUEUE_PAUSED) == "yes"

    def pause_queue(self, paused: bool) -> None:
        """Start no further job, or go on; the running one is not stopped."""
        self.store.set_setting(QUEUE_PAUSED, "yes" if paused else "no")
        self._wake.set()
        self._changed("")

    def pause(self, job_id: str) -> bool:
        """Pause a job: the running one stops after its step, and its stored stages are reused.

        ``False`` for a job that is not in the queue.
        """
        job = self.store.queued_job(job_id)
        if job is None:
            return False
        self.store.replace(replace(job, paused=True))
        if self.state_of(job_id) == "in_progress":
            self._pausing = job_id
            self._worker.interrupt(job_id)
        self._changed(job_id)
        return True

    def resume(self, job_id: str) -> bool:
        """Let a paused job run when its turn comes; ``False`` if it is not in the queue."""
        job = self.store.queued_job(job_id)
        if job is None:
            return False
        self.store.replace(replace(job, paused=False))
        self._wake.set()
        self._changed(job_id)
        return True

    def move(self, job_id: str, before: str | None) -> bool:
        """Put a waiting job before another one, or at the end; ``False`` if one is not waiting."""
        waiting = [j for j in self.store.queued_jobs() if self.state_of(j.id) == "pending"]
        job = next((j for j in waiting if j.id == job_id), None)
        others = [j for j in waiting if j.id != job_id]
        ids = [j.id for j in others]
        if job is None or (before is not None and before not in ids):
            return False
        place = len(ids) if before is None else ids.index(before)
        low = others[place - 1].number if place else None
        high = others[place].number if place < len(others) else None
        if low is not None and high is not None and low < high:
            self.store.replace(job.with_number((low + high) / 2))
        else:  # at an end, or between equal numbers
            order = [*others[:place], job, *others[place:]]
            first = min(j.number for j in order)
            for number, each in enumerate(order):
                self.store.replace(each.with_number(first + number))
        self._changed("")
        return True

    def stop_part(self, job_id: str, number: int) -> bool:
        """Stop one draft of a request; the others go on. ``False`` if the job is not queued."""
        job = self.store.queued_job(job_id)
        if job is None or not job.checked:
            return False
        killed = sorted({*job.checked["body"].get("killed", ()), number})
        body = {**job.checked["body"], "killed": killed}
        extra = {**job.extra, REQUEST: {**job.checked, "body": body}}
        self.store.replace(replace(job, extra=extra))
        if self.state_of(job_id) == "in_progress":
            self._worker.stop_part(job_id, number)
        self._changed(job_id)
        return True

    # --- removing and stopping ----------------------------------------------------------------

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
        job = self.store.queued_job(job_id)
        if job is None:
            return False
        messages = _tracker(job)
        final = list(messages.report_interrupt())
        self.store.finish(job.id, messages.build_history_entry(), messages.build_summary())
        self._forget_files(job.id)
        self._announce(f"{job.id} cancelled before it started")
        self._send(job, final)
        self._send_status()
        self._changed(job.id)
        return True

    def delete(self, job_id: str) -> None:
        """Remove a job from queue and history, and stop it if it runs."""
        if self.interrupt(job_id):
            self._deleted.add(job_id)
            self.store.remove_pending([job_id], None)
        else:
            self.remove([job_id])
            self.store.delete_history([job_id])
            self._changed(job_id)

    def interrupt(self, job_id: str | None = None) -> bool:
        """Stop the running graph after its current step; with an id, the job of any kind.

        A second call after :data:`INTERRUPT_GRACE_S` kills the worker.
        """
        running = self.running
        if running is None or job_id not in (None, running.id):
            return False
        if job_id is None and running.kind != GRAPH:
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
            job = None if self.is_paused else self.store.next_job()
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
        logger.info("job %s started: %s, %d nodes", job.id, job.kind, len(job.prompt))
        messages = self._current = _tracker(job)
        self._send(job, messages.report_start())
        self._changed(job.id)

        def on_event(event: JobEvent) -> None:
            self._send(job, _report_event(messages, event))
            self._changed(job.id, event)

        outcome = await self._worker.run(job, self.store.journal_path(job.id), on_event)
        if self._closing and _was_interrupted(outcome):
            return
        if self._pausing == job.id:
            self._pausing = None
            if self._interrupted_at is None and _was_interrupted(outcome):
                self._current = None
                self._announce(f"{job.id} paused")
                self._changed(job.id)
                return
        if isinstance(messages, RequestProgress):
            messages.report_result(outcome.result)
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
        self._changed(job.id)
        seconds = time.monotonic() - start
        self._announce(f"{job.id} {_describe(outcome)} after {seconds:.1f} s")

    def _changed(self, job_id: str, event: JobEvent | None = None) -> None:
        for listener in self._listeners:
            listener(job_id, event)

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
        ids = [*(job.id for job in self.store.queued_jobs()), *self.store.unsaved]
        wanted = {self.store.journal_path(job_id) for job_id in ids}
        for path in self.store.journal_folder.glob("*"):
            if path not in wanted:
                with suppress(OSError):
                    path.unlink()

    def _send_status(self) -> None:
        self._clients.send(status_message(self.store.count()), None)


def _tracker(job: Job) -> Tracker:
    return JobMessages(job) if job.kind == GRAPH else RequestProgress(job)


def _report_event(
    tracker: Tracker, event: JobEvent
) -> Iterator[Message | PreviewImage] | Iterator[Message]:
    if isinstance(tracker, RequestProgress):
        return tracker.report_event(event)
    if isinstance(event, GraphEvent):
        return tracker.report_event(event)
    return iter(())


def _final_messages(messages: Tracker, outcome: JobOutcome) -> Iterator[Message]:
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
