"""The worker process: ``python -m latent_ladder.server.worker_main`` reads jobs and runs them.

It keeps one engine, so that models stay loaded from job to job. A thread reads frames while the
main thread runs a job: a stop request takes effect after the current step. When the server stops,
it says so, and the current step is finished; when the server has died, the worker ends at once.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from json import dumps, loads
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from latent_ladder.comfyui.runtime.events import (
    NodeDone,
    NodesCached,
    NodeStarted,
    NodeWarned,
)
from latent_ladder.errors import Cancelled, LadderError
from latent_ladder.pipeline.events import Preview
from latent_ladder.pipeline.run import Cancel
from latent_ladder.server.client_messages import Failure
from latent_ladder.server.job_store import GRAPH
from latent_ladder.server.worker_protocol import (
    LENGTHS,
    JobEvent,
    pack_event_frame,
    pack_frame,
    pack_log_frame,
)

_PR_SET_PDEATHSIG = 1
"""Linux: the signal that a process gets when its parent has ended."""

Body = Mapping[str, Any]
OnJobEvent = Callable[[JobEvent], None]
RunJob = Callable[[Body, OnJobEvent, Cancel], Mapping[str, Any] | None]
"""Runs the job of a frame; raises if it fails. The result of a request is plain data."""

logger = logging.getLogger("latent_ladder.server.worker_main")  # __name__ is "__main__" here


def main(build_runner: Callable[[Body], RunJob]) -> None:
    """Run jobs until stdin ends. ``build_runner`` gets the server's first frame (settings)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C
    _end_with_parent()
    source, writer = sys.stdin.buffer, FrameWriter(_take_stdout())
    settings = _read_frame(source)
    if settings is None:
        return
    _forward_log(writer, settings["log_level"])
    inbox = _Inbox(source)
    run_job = _build_runner(build_runner, settings)
    while (job := inbox.next_job()) is not None:
        writer.write(pack_frame(_run_to_end(run_job, job, inbox.cancel, writer)))


def _end_with_parent() -> None:
    """On Linux, let the system end this process with its parent, whatever code is running.

    Elsewhere, and if that fails, the end of stdin does it (:meth:`_Inbox._read_frames`).
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in the meantime
        os._exit(1)


def _build_runner(build_runner: Callable[[Body], RunJob], settings: Body) -> RunJob:
    """The runner; if building it fails, one that tries again for every job.

    Model folders that are gone at the start may be back later.
    """
    try:
        return build_runner(settings)
    except LadderError as error:
        logger.warning("%s", error.message)

    runner: RunJob | None = None

    def run_or_fail(job: Body, on_event: OnJobEvent, cancel: Cancel) -> Mapping[str, Any] | None:
        nonlocal runner
        runner = runner or build_runner(settings)
        return runner(job, on_event, cancel)

    return run_or_fail


def build_engine_runner(settings: Body) -> RunJob:
    """A runner of graphs on one engine, rebuilt when model files change, and of requests.

    A request loads its own models; those of the engine are unloaded first.
    """
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.checkpoints.selection import scan
    from latent_ladder.comfyui.executor import RunOrigin, execute
    from latent_ladder.comfyui.formats.api import read_api
    from latent_ladder.comfyui.runtime.engine import Engine, WorkFolders
    from latent_ladder.comfyui.runtime.output_journal import OutputJournal
    from latent_ladder.jobs.run_job import JobRun
    from latent_ladder.jobs.run_job import run_job as run_request
    from latent_ladder.jobs.workplace import Workplace
    from latent_ladder.server.file_listing import FileListing
    from latent_ladder.storage.artifact_store import Store

    place = Workplace.from_settings(settings)
    folders = model_folders([Path(path) for path in settings["models"]])
    listing = FileListing(folders, Path(settings["folders"]["input"]))

    def build_engine() -> Engine:
        return Engine(
            library=scan(folders),
            store=Store(Path(settings["store"])),
            folders=WorkFolders(**{n: Path(path) for n, path in settings["folders"].items()}),
            names=settings["file_names"],
            memory=place.memory,
            device=settings["device"],
            previews=settings["previews"],
            convention=settings["convention"],
        )

    engine, files = build_engine(), listing.state()

    def run_job(job: Body, on_event: OnJobEvent, cancel: Cancel) -> Mapping[str, Any] | None:
        nonlocal engine, files
        if job.get("kind", GRAPH) != GRAPH:
            engine.clear()
            previews = Path(settings["folders"]["temp"]) / "previews" / job["id"]
            cancel.stopped_parts |= set(job["body"].get("killed", ()))
            send = _with_picture(on_event)
            return run_request(JobRun(job["id"], job["body"], place, send, cancel, previews))
        if (now := listing.state()) != files:
            logger.info("model files changed; the engine is built again")
            engine.clear()
            engine, files = build_engine(), now
        metadata = {name: dumps(job[name]) for name in ("prompt", "workflow") if job[name]}
        execute(
            read_api(job["prompt"]),
            engine,
            wanted=job["outputs"],
            on_event=on_event,
            cancel=cancel,
            metadata=metadata if settings["metadata"] else {},
            origin=RunOrigin(journal=OutputJournal(Path(job["journal"]))),
        )
        return None

    return run_job


def _with_picture(on_event: OnJobEvent) -> OnJobEvent:
    """Report events; previews with the bytes of their picture, whose file is overwritten later."""

    def send(event: JobEvent) -> None:
        if isinstance(event, Preview):
            try:
                event = replace(event, picture=Path(event.path).read_bytes(), path="")
            except OSError:
                return
        on_event(event)

    return send


class FrameWriter:
    """Writes frames to the server; any thread may use it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()

    def write(self, frame: bytes) -> None:
        """Write one frame. Raises :class:`Cancelled` if the server has ended."""
        rest = memoryview(frame)
        with self._lock:
            try:
                while rest:
                    rest = rest[self._out.write(rest) :]
            except BrokenPipeError as error:
                raise Cancelled("the server has ended") from error


class _ForwardingHandler(logging.Handler):
    """Sends log records to the server, which writes them to its own log."""

    def __init__(self, writer: FrameWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        try:
            self._writer.write(pack_log_frame(record, self.format(record)))
        except Cancelled:
            return  # the server has ended; the job will end, too


def _forward_log(writer: FrameWriter, level: int) -> None:
    """Forward the log of this package from ``level`` on."""
    package = logging.getLogger("latent_ladder")
    package.addHandler(_ForwardingHandler(writer))
    package.setLevel(level)


class _Inbox:
    """Frames from the server. The thread that reads them can stop the running job."""

    def __init__(self, source: BinaryIO) -> None:
        self.cancel = Cancel()
        self._jobs: SimpleQueue[Body | None] = SimpleQueue()
        self._ending = False
        self._stopped: set[str] = set()
        self._stopped_parts: dict[str, set[int]] = {}
        self._current = ""
        self._lock = threading.Lock()
        threading.Thread(target=self._read_frames, args=(source,), daemon=True).start()

    def next_job(self) -> Body | None:
        """The next job, with a new ``cancel``; ``None`` when the server has ended."""
        job = self._jobs.get()
        if job is not None:
            with self._lock:
                parts = self._stopped_parts.pop(job["id"], set())
                stopped = self._ending or job["id"] in self._stopped
                self._current, self.cancel = job["id"], Cancel(stopped, stopped_parts=parts)
                self._stopped.clear()
                self._stopped_parts.clear()
        return job

    def _stop_part(self, job_id: str, number: int) -> None:
        """Stop one draft of the job that runs, or of one that has not begun."""
        if job_id == self._current:
            self.cancel.stop_part(number)
        else:
            self._stopped_parts.setdefault(job_id, set()).add(number)

    def _read_frames(self, source: BinaryIO) -> None:
        while (frame := _read_frame(source)) is not None and frame["do"] != "end":
            if frame["do"] == "run":
                self._jobs.put(frame)
                continue
            with self._lock:
                if frame["do"] == "stop_part":
                    self._stop_part(frame["id"], int(frame["part"]))
                elif frame["id"] == self._current:
                    self.cancel.request()
                else:
                    self._stopped.add(frame["id"])
        if frame is None:  # the server has died: its successor will run the job again
            os._exit(1)
        self._jobs.put(None)
        with self._lock:
            self._ending = True
            self.cancel.request()


def _run_to_end(run_job: RunJob, job: Body, cancel: Cancel, writer: FrameWriter) -> dict[str, Any]:
    """Run a job; the frame for its end. Any exception is a failure of the job."""

    def on_event(event: JobEvent) -> None:
        _log_event(event)
        writer.write(pack_event_frame(event))

    try:
        result = run_job(job, on_event, cancel)
    except Cancelled:
        return {"id": job["id"], "end": "stopped"}
    except Exception as error:
        logger.debug("job %s failed", job["id"], exc_info=True)
        return {"id": job["id"], "end": "failed", "failure": asdict(describe_failure(error))}
    return {"id": job["id"], "end": "done", "result": result}


def _log_event(event: JobEvent) -> None:
    match event:
        case NodesCached():
            logger.info("nodes with stored results: %s", ", ".join(event.nodes) or "none")
        case NodeStarted():
            logger.debug("node %s started", event.node)
        case NodeDone():
            logger.info("node %s done in %.2f s", event.node, event.seconds)
        case NodeWarned():
            logger.warning("node %s: %s: %s", event.node, event.code, event.message)
        case _:
            pass


def describe_failure(error: BaseException) -> Failure:
    """An exception in the form of ComfyUI's ``execution_error``."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    message = str(error)
    if isinstance(error, LadderError) and error.hint:
        message = f"{message}\n{error.hint}"
    lines = traceback.format_exception(error)
    node = getattr(error, "node_id", None) or ""
    return Failure(message, f"{module}{kind.__name__}", tuple(lines), str(node))


def _take_stdout() -> BinaryIO:
    """A stream for frames only; stdout of this process goes to stderr from now on."""
    frames = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return frames


def _read_frame(source: BinaryIO) -> Body | None:
    """The JSON of the next frame; ``None`` at the end of the stream."""
    prefix = source.read(LENGTHS.size)
    if len(prefix) < LENGTHS.size:
        return None
    sizes = LENGTHS.unpack(prefix)
    text = source.read(sum(sizes))
    return None if len(text) < sum(sizes) else loads(text[: sizes[0]])


if __name__ == "__main__":
    main(build_engine_runner)
