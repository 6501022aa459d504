"""One process at a time: a lock on a file, gone with the process that holds it.

The operating system owns the lock (``flock``, or a byte range on Windows), so a killed process
leaves nothing to clean up. The file holds the owner's process id, for the message of the one that
waits.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from latent_ladder.errors import StoreError
from latent_ladder.storage.atomic_write import writing

SAY_AFTER_S = 0.5
POLL_S = 0.05

# Windows locks are mandatory: lock a byte far behind the process id so that others can read it.
_WINDOWS_BYTE = 1 << 30


def _nothing() -> None:
    pass


@contextmanager
def hold(
    path: Path,
    *,
    on_wait: Callable[[int], None] | None = None,
    timeout: float | None = None,
    poll: Callable[[], None] = _nothing,
) -> Iterator[None]:
    """Hold the lock file ``path`` during the block; wait for whoever has it.

    After half a second of waiting ``on_wait(pid of the holder, 0 if unknown)`` is called once.
    ``poll`` is called about 20 times a second while waiting and may raise, e.g. ``Cancelled``.
    Raises :class:`StoreError` when ``timeout`` seconds have passed. Not re-entrant.
    """
    with writing(StoreError, "a lock", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    said = False
    while (descriptor := _try_lock(path)) is None:
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise StoreError(
                f"{path.stem} is still in use by process {holder(path)} after {waited:.1f} s",
                hint="wait for it to finish, or stop it",
            )
        if on_wait is not None and not said and waited >= SAY_AFTER_S:
            said = True
            on_wait(holder(path))
        poll()
        time.sleep(POLL_S)
    try:
        yield
    finally:
        _release(path, descriptor)


def holder(path: Path) -> int:
    """The process id that the lock file names, 0 if there is none."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _try_lock(path: Path) -> int | None:
    """An open, locked descriptor of ``path``, or ``None`` if another one has the lock."""
    with writing(StoreError, "a lock", path.parent):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            # Windows refuses to open a file that is being deleted.
            if sys.platform == "win32" and path.parent.is_dir():
                return None
            raise
    try:
        locked = _lock(descriptor) and _still_named(path, descriptor)
        if locked:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode("ascii"))
    except BaseException:
        os.close(descriptor)
        raise
    if not locked:
        os.close(descriptor)
    return descriptor if locked else None


def _still_named(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still is the file we locked: its last holder may just have deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _WINDOWS_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def _release(_: Path, descriptor: int) -> None:
        os.lseek(descriptor, _WINDOWS_BYTE, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
        os.close(descriptor)

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _release(path: Path, descriptor: int) -> None:
        # Deleted while still locked: a waiter that got this descriptor's file sees it unnamed.
        path.unlink(missing_ok=True)
        os.close(descriptor)
