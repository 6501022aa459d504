"""Names of temporary files and folders, and removal of those that dead processes left behind.

The name of a temporary file says which process writes it::

    .part-<stem>-<machine><boot><namespace>-<pid>-<start>-<random><suffix>

so that any later process can tell whether the writer still exists: the same process id on the same
boot of the same machine, started at the same moment. Files of other machines (a shared disk) and of
earlier versions, whose names say less, count as abandoned when nobody has written to them for
:data:`ABANDONED_S`.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

PART_PREFIX = ".part-"
"""Prefix of the name of every temporary file."""

FOLDER_PREFIX = "ladder-"
"""Prefix of the name of every temporary folder in the system's folder for them."""

ABANDONED_S = 3600.0
"""A file whose writer cannot be checked is abandoned when it has not changed for this long."""

MAX_NAME_BYTES = 255
"""Longest name of a file on the usual file systems."""

_OWNER = re.compile(
    r"-(?P<machine>[0-9a-f]{4})(?P<boot>[0-9a-f]{4})(?P<namespace>[0-9a-f]{4})"
    r"-(?P<pid>\d{1,10})-(?P<start>[0-9a-f]{1,16})-[0-9a-f]{6}(?:\.[^.]*)?$"
)
_EARLIER = re.compile(rf"{re.escape(PART_PREFIX)}.*-[0-9a-f]{{1,8}}(?:\.[^.]*)?", re.DOTALL)


class _Place(NamedTuple):
    """Digests of this machine, its present boot, and this process's namespace of process ids."""

    machine: str
    boot: str
    namespace: str


def part_path(path: Path) -> Path:
    """A new temporary name of this process in the folder of ``path``, with the same suffix."""
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 32 else ""
    end = f"-{_owner_text()}-{secrets.token_hex(3)}{suffix}"
    room = MAX_NAME_BYTES - len(PART_PREFIX) - len(os.fsencode(end))
    stem = os.fsencode(path.stem)[:room].decode("utf-8", "ignore")
    return path.with_name(f"{PART_PREFIX}{stem}{end}")


def is_abandoned(path: Path) -> bool:
    """True for a temporary file or folder whose writer has ended; see the module's text."""
    match = _OWNER.search(path.name)
    alive = None if match is None else _is_writer_alive(match)
    if alive is not None:
        return not alive
    try:
        return path.lstat().st_mtime < time.time() - ABANDONED_S
    except OSError:
        return False


def abandoned_files(folder: Path) -> Iterator[Path]:
    """The temporary files and folders that dead processes left in ``folder``, whatever their name.

    A folder that does not exist or cannot be read has none.
    """
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.name.startswith(PART_PREFIX)]
    except OSError:
        return
    for name in names:
        is_ours = _OWNER.search(name) or _EARLIER.fullmatch(name)
        if is_ours and is_abandoned(folder / name):
            yield folder / name


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Delete the temporary files and folders that dead processes left in ``folders``.

    What cannot be deleted stays for the next time.
    """
    for folder in dict.fromkeys(folders):
        for path in abandoned_files(folder):
            delete(path)


def delete(path: Path) -> None:
    """Delete a file or a whole folder (a link, but not its target); it may be gone already."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's folder for temporary files that is deleted after the block.

    Those of processes that were killed are deleted first.
    """
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{FOLDER_PREFIX}*"):
        if _OWNER.search(old.name) and _is_own_folder(old) and is_abandoned(old):
            delete(old)
    folder = root / f"{FOLDER_PREFIX}tmp-{_owner_text()}-{secrets.token_hex(3)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        delete(folder)


def _is_own_folder(path: Path) -> bool:
    """True for a real folder of this user: everyone may write to the folder it is in."""
    try:
        status = path.lstat()
    except OSError:
        return False
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    return own and stat.S_ISDIR(status.st_mode)


def _owner_text() -> str:
    """The part of a temporary name that identifies this process."""
    return f"{''.join(_this_place())}-{os.getpid()}-{process_start(os.getpid()) or 0:x}"


def _is_writer_alive(match: re.Match[str]) -> bool | None:
    """True if the process in a temporary name exists; ``None`` if it cannot be checked here."""
    here = _this_place()
    if match["machine"] != here.machine:
        return None
    if match["boot"] != here.boot:
        return False
    if match["namespace"] != here.namespace:
        return None
    return process_start(int(match["pid"])) == int(match["start"], 16)


def process_start(pid: int) -> int | None:
    """A number that changes when a process id is used again; ``None`` for no such process."""
    try:
        # the 22nd field; the second one is a name in brackets, which may contain anything
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError, ValueError):
        pass
    import psutil

    try:
        return round(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0


@cache
def _this_place() -> _Place:
    machine = f"{platform.node()} {_read('/etc/machine-id')}"
    namespace = ""
    with suppress(OSError):
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return _Place(*map(_digest, (machine, _read("/proc/sys/kernel/random/boot_id"), namespace)))


def _read(path: str) -> str:
    try:
        return Path(path).read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=2).hexdigest()
