"""Atomic file writes, and error messages for a full or read-only disk.

Everything that this package leaves on disk (artefacts, run records, videos) is written under a
temporary name (:mod:`latent_ladder.storage.temporary_files`) in the target's own folder and renamed
at the end. A final name therefore never points to a half-written file, not even after a crash, a
full disk or ``kill -9``. This module knows nothing about the content of the files.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latent_ladder.errors import LadderError
from latent_ladder.storage.temporary_files import part_path
from latent_ladder.storage.user_folders import expand_home, user_folder

_NO_ROOM_HINTS = {
    errno.ENOSPC: "free some space there, or choose a folder on another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose another file system",
    errno.EDQUOT: "free some space in your quota, or choose a folder on another disk",
}
NO_ROOM_ERRNOS = frozenset(_NO_ROOM_HINTS)
"""Error numbers that mean "no space left": full disk, file size limit, quota."""


def commit(part: Path, path: Path) -> None:
    """Flush the temporary file ``part`` to the disk and rename it to ``path`` atomically."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def write_atomically(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``; a reader sees the old file or the new one, never a mixture.

    Raises ``OSError``, after the temporary file was removed.
    """
    part = part_path(path)
    try:
        part.write_bytes(data)
        commit(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """The folder for data that can be computed again: ``$LADDER_CACHE``, else the user's cache."""
    named = os.environ.get("LADDER_CACHE")
    if named:
        return expand_home(named)
    return user_folder("cache")


def free_bytes(folder: Path) -> int:
    """Free bytes for this user on the disk of ``folder``, which need not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def readable_size(n_bytes: int) -> str:
    """A size in bytes with a binary unit: ``1536`` -> ``"1.5 KiB"``."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n_bytes >= 1 << power:
            return f"{n_bytes / (1 << power):.1f} {unit}"
    return f"{n_bytes} bytes"


def explain_write_error(
    cause: OSError, raised: type[LadderError], what: str, folder: Path, needed: int
) -> LadderError:
    """The error of class ``raised`` for ``cause``, which occurred while ``what`` was written.

    ``what`` names the file or object in the message, ``needed`` is its size in bytes (0: unknown).
    """
    if cause.errno in NO_ROOM_ERRNOS:
        amount = f"needs {readable_size(needed)}" if needed else "does not fit"
        return raised(
            f"{what} {amount}, {readable_size(free_bytes(folder))} are free in {folder} "
            f"({os.strerror(cause.errno)})",
            hint=_NO_ROOM_HINTS[cause.errno],
        )
    reason = os.strerror(cause.errno) if cause.errno else str(cause)
    is_long = cause.errno == errno.ENAMETOOLONG
    return raised(
        f"{what} cannot be written to {folder}: {reason}",
        hint="use a shorter name" if is_long else "choose a folder with write permission",
    )


@contextmanager
def convert_write_errors(
    raised: type[LadderError], what: str, folder: Path, needed: int = 0
) -> Iterator[None]:
    """Convert an ``OSError`` of the block into a ``raised`` whose hint says what to do.

    ``what``, ``folder`` and ``needed``: see :func:`explain_write_error`.
    """
    try:
        yield
    except OSError as cause:
        raise explain_write_error(cause, raised, what, folder, needed) from cause


def _sync_folder(folder: Path) -> None:
    """Flush the entries of ``folder``, so that a rename survives a power cut (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a folder; the rename itself has succeeded.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
