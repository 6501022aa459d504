"""Files that are there whole or not at all, and what to tell the user when a disk refuses.

Everything that this package leaves on disk (artefacts, run records, videos) is written under a
temporary name in the target's own folder and renamed at the end, so a final name never shows a
half-written file: not after a crash, a full disk or ``kill -9``. This module knows nothing of what
the files hold.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latent_ladder.errors import LadderError

_NO_ROOM_HINTS = {
    errno.ENOSPC: "free some space there, or choose a folder on another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or choose another file system",
    errno.EDQUOT: "free some space in your quota, or choose a folder on another disk",
}
FULL = frozenset(_NO_ROOM_HINTS)
"""Error numbers that mean "no room": disk, file size limit, quota."""

PART = ".part-"
"""Every temporary file's name starts with this."""

ABANDONED_S = 3600.0
"""An unfinished file untouched for this long belongs to a process that died."""


def part_path(path: Path) -> Path:
    """A fresh temporary name beside ``path``, with its suffix."""
    return path.with_name(f"{PART}{path.stem}-{secrets.token_hex(4)}{path.suffix}")


def commit(part: Path, path: Path) -> None:
    """Flush ``part`` to the disk and give it its final name in one step."""
    with part.open("rb+") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` so that a reader sees the old file or the new one, never a part.

    Raises ``OSError``; the temporary file is gone then.
    """
    part = part_path(path)
    try:
        part.write_bytes(data)
        commit(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def is_abandoned(path: Path) -> bool:
    """Whether a file that is being written has been left alone so long that its writer is dead."""
    try:
        return path.stat().st_mtime < time.time() - ABANDONED_S
    except OSError:
        return False


def cache_folder() -> Path:
    """Where things lie that can be made again: ``LADDER_CACHE``, or the system's place."""
    named = os.environ.get("LADDER_CACHE")
    if named:
        return Path(named).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("latent-ladder", appauthor=False))


def free_bytes(folder: Path) -> int:
    """Free bytes for this user where ``folder`` is, or will be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def readable_size(n_bytes: int) -> str:
    """``1536`` -> ``"1.5 KiB"``."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if n_bytes >= 1 << power:
            return f"{n_bytes / (1 << power):.1f} {unit}"
    return f"{n_bytes} bytes"


def refusal(
    cause: OSError, raised: type[LadderError], what: str, folder: Path, needed: int
) -> LadderError:
    """What to tell the user about ``cause``, met while writing ``what`` (``needed`` bytes)."""
    if cause.errno in FULL:
        amount = f"needs {readable_size(needed)}" if needed else "does not fit"
        return raised(
            f"{what} {amount}, {readable_size(free_bytes(folder))} are free in {folder} "
            f"({os.strerror(cause.errno)})",
            hint=_NO_ROOM_HINTS[cause.errno],
        )
    reason = os.strerror(cause.errno) if cause.errno else str(cause)
    return raised(
        f"{what} cannot be written to {folder}: {reason}",
        hint="choose a folder that you may write to",
    )


@contextmanager
def writing(raised: type[LadderError], what: str, folder: Path, needed: int = 0) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a ``raised`` that says what to do."""
    try:
        yield
    except OSError as cause:
        raise refusal(cause, raised, what, folder, needed) from cause


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the system can."""
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
