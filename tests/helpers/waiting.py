"""Waiting for what another thread or process does, never for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

import psutil

PATIENCE_S = 120.0
"""Limit for what a slow machine does; nothing waits that long where the code is right."""


def wait_until(condition: Callable[[], bool], failure: str, pause_s: float = 0.02) -> None:
    """Wait until a condition holds; after :data:`PATIENCE_S` fail with the text ``failure``."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, failure
        time.sleep(pause_s)


def wait_until_dead(process: psutil.Process) -> None:
    """Wait until a process has ended, be it a zombie.

    An orphan stays a zombie where process 1 reaps none, as in many containers.
    """

    def is_dead() -> bool:
        with suppress(psutil.NoSuchProcess):
            return bool(process.status() == psutil.STATUS_ZOMBIE)
        return True

    wait_until(is_dead, f"process {process.pid} goes on")
