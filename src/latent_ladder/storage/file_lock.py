"""Lock files: let one process (or thread) at a time do something.

The operating system manages the lock (``flock``, or a locked byte range on Windows), so it ends
with its process and a killed process leaves nothing to clean up. The file contains the owner's
process id, which a waiting process shows to the user.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from latent_ladder.errors import StoreError
from latent_ladder.storage.atomic_write import NO_ROOM_ERRNOS, convert_write_errors

NOTIFY_AFTER_S = 0.5
POLL_S = 0.05

# Windows locks are mandatory: lock a byte far after the process id so that others can read the id.
_WINDOWS_BYTE = 1 << 30


def _nothing() -> None:
    pass


@contextmanager
def lock_file(
    path: Path,
    *,
    on_wait: Callable[[int], None] | None = None,
    timeout: float | None = None,
    poll: Callable[[], None] = _nothing,
) -> Iterator[None]:
    """Lock the file ``path`` during the block, after waiting until no other process locks it.

    After half a second of waiting ``on_wait(pid)`` is called once with the owner's process id (0 if
    unknown). ``poll`` is called about 20 times a second while waiting and may raise, e.g.
    ``Cancelled``. Raises :class:`StoreError` after ``timeout`` seconds of waiting. Not re-entrant.
    """
    with convert_write_errors(StoreError, "a lock", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    notified = False
    while (descriptor := _try_lock(path)) is None:
        waited = time.monotonic() - started
        if timeout is not None and waited >= timeout:
            raise StoreError(
                f"{path.stem} is still in use by process {owner_pid(path)} after {waited:.1f} s",
                hint="wait until that process has finished, or stop it",
            )
        if on_wait is not None and not notified and waited >= NOTIFY_AFTER_S:
            notified = True
            on_wait(owner_pid(path))
        poll()
        time.sleep(POLL_S)
    try:
        yield
    finally:
        _release(path, descriptor)


def owner_pid(path: Path) -> int:
    """The process id in the lock file, 0 if there is none."""
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _try_lock(path: Path) -> int | None:
    """An open, locked descriptor of ``path``, or ``None`` if the file is locked already."""
    with convert_write_errors(StoreError, "a lock", path.parent):
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except PermissionError:
            # Windows refuses to open a file that is being deleted.
            if sys.platform == "win32" and path.parent.is_dir():
                return None
            raise
    try:
        locked = _lock(descriptor) and _is_same_file(path, descriptor)
        if locked:
            _write_owner(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    if not locked:
        os.close(descriptor)
    return descriptor if locked else None


def _write_owner(descriptor: int) -> None:
    """Write this process's id into the lock file, if the disk has room: it is for people only.

    Without that exception, a full disk could not be cleared by ``ladder runs prune``.
    """
    os.ftruncate(descriptor, 0)
    try:
        os.write(descriptor, str(os.getpid()).encode("ascii"))
    except OSError as error:
        if error.errno not in NO_ROOM_ERRNOS:
            raise


def _is_same_file(path: Path, descriptor: int) -> bool:
    """True if ``path`` still is the locked file: its previous owner may just have deleted it."""
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
        # Deleted while still locked: a process that has opened the old file sees in
        # _is_same_file that it was deleted, and tries again.
        path.unlink(missing_ok=True)
        os.close(descriptor)
