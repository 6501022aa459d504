"""The worker's side: ``python -m latent_ladder.server.worker_main`` reads jobs and runs them.

It opens the engine once, so that models stay loaded from job to job. A thread listens while the
main thread works: an interrupt is honoured after the step under way, and when the server is gone
the worker ends itself, whatever it does.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from json import dumps, loads
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO

from latent_ladder.comfyui.runtime.events import OnGraphEvent
from latent_ladder.errors import Cancelled, LadderError
from latent_ladder.pipeline.run import Cancel
from latent_ladder.server.client_messages import Failure
from latent_ladder.server.worker_protocol import LENGTHS, pack, pack_event

ORPHAN_GRACE_S = 4.0
"""How long the step under way may go on when the server has ended."""

Body = Mapping[str, Any]
Runner = Callable[[Body, OnGraphEvent, Cancel], None]
"""Runs the job in a frame (``prompt``, ``wanted``, ``workflow``); raises what went wrong."""


def main(opener: Callable[[Body], Runner]) -> None:
    """Serve jobs until stdin ends. ``opener`` makes the runner from the server's first frame."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the server's to handle
    frames_in, frames_out = sys.stdin.buffer, _own_stdout()
    opening = _read(frames_in)
    if opening is None:
        return
    inbox = _Inbox(frames_in)
    run = _opened(opener, opening)
    while (job := inbox.next()) is not None:
        _send(frames_out, _outcome(run, job, inbox.cancel, frames_out))


def _opened(opener: Callable[[Body], Runner], opening: Body) -> Runner:
    """The runner; where it cannot be made, one that tells every job why."""
    try:
        return opener(opening)
    except LadderError as error:
        cause = error

    def refuse(_: Body, __: OnGraphEvent, ___: Cancel) -> None:
        raise cause

    return refuse


def engine_runner(opening: Body) -> Runner:
    """The real thing: graphs through the executor, on one engine."""
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.checkpoints.selection import scan
    from latent_ladder.comfyui.executor import execute
    from latent_ladder.comfyui.formats.api import read_api
    from latent_ladder.comfyui.runtime.engine import Engine, WorkFolders
    from latent_ladder.memory.hardware import MemoryOptions
    from latent_ladder.server.file_listing import Listing
    from latent_ladder.storage.artifact_store import Store

    memory = {**opening["memory"], "changes": frozenset(opening["memory"]["changes"])}
    folders = model_folders([Path(path) for path in opening["models"]])
    listing = Listing(folders, Path(opening["places"]["input"]))

    def opened() -> Engine:
        return Engine(
            library=scan(folders),
            store=Store(Path(opening["store"])),
            folders=WorkFolders(**{name: Path(path) for name, path in opening["places"].items()}),
            names=opening["names"],
            memory=MemoryOptions(**memory),
            device=opening["device"],
            previews=opening["previews"],
        )

    engine, seen = opened(), listing.state()

    def run(job: Body, on_event: OnGraphEvent, cancel: Cancel) -> None:
        nonlocal engine, seen
        if (now := listing.state()) != seen:  # a model file came, went or is another one
            engine.clear()
            engine, seen = opened(), now
        metadata = {name: dumps(job[name]) for name in ("prompt", "workflow") if job[name]}
        execute(
            read_api(job["prompt"]),
            engine,
            wanted=job["wanted"],
            on_event=on_event,
            cancel=cancel,
            metadata=metadata if opening["metadata"] else {},
        )

    return run


class _Inbox:
    """Frames from the server; the thread that reads them may stop the job under way."""

    def __init__(self, source: BinaryIO) -> None:
        self.cancel = Cancel()
        self._jobs: SimpleQueue[Body | None] = SimpleQueue()
        self._stopped: set[str] = set()
        self._current = ""
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def next(self) -> Body | None:
        """The next job, its ``cancel`` fresh; ``None`` when there will be none."""
        job = self._jobs.get()
        if job is not None:
            with self._lock:
                self._current, self.cancel = job["id"], Cancel(job["id"] in self._stopped)
                self._stopped.clear()
        return job

    def _listen(self, source: BinaryIO) -> None:
        while (frame := _read(source)) is not None:
            if frame["do"] == "run":
                self._jobs.put(frame)
                continue
            with self._lock:
                if frame["id"] == self._current:
                    self.cancel.request()
                else:
                    self._stopped.add(frame["id"])
        self._jobs.put(None)
        with self._lock:
            self.cancel.request()
        overdue = threading.Timer(ORPHAN_GRACE_S, os._exit, (1,))
        overdue.daemon = True
        overdue.start()


def _outcome(run: Runner, job: Body, cancel: Cancel, out: BinaryIO) -> dict[str, Any]:
    """How a job ended; whatever it raises is the job's failure and not the worker's."""
    try:
        run(job, lambda event: _write(out, pack_event(event)), cancel)
    except Cancelled:
        return {"id": job["id"], "end": "stopped"}
    except Exception as error:  # noqa: BLE001 - told to the client with its traceback
        return {"id": job["id"], "end": "failed", "failure": asdict(failure_of(error))}
    return {"id": job["id"], "end": "done"}


def failure_of(error: BaseException) -> Failure:
    """An exception as ComfyUI's ``execution_error`` tells it."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    message = str(error)
    if isinstance(error, LadderError) and error.hint:
        message = f"{message}\n{error.hint}"
    lines = traceback.format_exception(error)
    node = getattr(error, "node_id", None) or ""
    return Failure(message, f"{module}{kind.__name__}", tuple(lines), str(node))


def _own_stdout() -> BinaryIO:
    """A stream for frames only; what any library prints goes to stderr from here on."""
    own = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return own


def _read(source: BinaryIO) -> Body | None:
    """The next frame; ``None`` at the end."""
    head = source.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    sizes = LENGTHS.unpack(head)
    text = source.read(sum(sizes))
    return None if len(text) < sum(sizes) else loads(text[: sizes[0]])


def _send(out: BinaryIO, body: Body) -> None:
    _write(out, pack(body))


def _write(out: BinaryIO, frame: bytes) -> None:
    rest = memoryview(frame)
    try:
        while rest:
            rest = rest[out.write(rest) :]
    except BrokenPipeError as error:
        raise Cancelled("the server has ended") from error


if __name__ == "__main__":
    main(engine_runner)
