"""Resident process that checks and plans jobs, so that the event loop never waits for it.

It reads headers of model files and stays warm; it does not import torch.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import wait
from typing import ParamSpec, TypeVar

from latent_ladder.errors import LadderError

P = ParamSpec("P")
T = TypeVar("T")


def _end_with_parent() -> None:
    """End this process when the server ends, however that happens."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def start_process() -> Executor:
    """One process that imports what it needs at its first call."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)


class Planner:
    """Calls functions of :mod:`latent_ladder.jobs` in another process, one after the other."""

    def __init__(self, start: Callable[[], Executor] = start_process) -> None:
        self._start = start
        self._executor: Executor | None = None

    async def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of ``work``. Raises what it raises; a process that died is replaced once."""
        loop = asyncio.get_running_loop()
        for attempt in (1, 2):
            if self._executor is None:
                self._executor = self._start()
            try:
                return await loop.run_in_executor(self._executor, _run, work, args, kwargs)
            except BrokenProcessPool as error:
                self.close()
                if attempt == 2:
                    raise LadderError(
                        "the process that plans requests ended twice", "see the server's log"
                    ) from error
        raise AssertionError("the loop returns or raises")

    def close(self) -> None:
        """End the process."""
        executor, self._executor = self._executor, None
        if executor is not None:
            with suppress(OSError):
                executor.shutdown(wait=False, cancel_futures=True)


def _run(work: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, object]) -> T:
    return work(*args, **kwargs)
