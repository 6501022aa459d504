"""Memory-mapped model files, and errors for files that cannot be read.

The mapping is made at the first access, private and copy-on-write: reading copies nothing, and
writing into a tensor never changes the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    LadderError,
    UnknownLayout,
)

# MAP_NORESERVE: without it Linux requires free memory of the file's size for a private writable
# mapping. The value is the same on all but a few old processors; Python has it from 3.13 on.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0

_READ_ERRORS = {
    errno.ENOENT: ("no such file", "check the path, or `ladder models list`"),
    errno.ENOTDIR: ("no such file", "check the path, or `ladder models list`"),
    errno.EACCES: ("permission denied", "give your user permission to read it"),
    errno.EPERM: ("permission denied", "give your user permission to read it"),
    errno.ELOOP: ("a link that points to itself", "replace the link by the file"),
    errno.ENAMETOOLONG: ("the path is too long", "shorten it"),
}


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Turn any exception that parsing a file raises by surprise into :class:`CorruptCheckpoint`.

    Files come from strangers: one that no check foresaw must not end the scan of a folder. Errors
    of this package and of the system pass unchanged, as does a lack of memory.
    """
    try:
        yield
    except (LadderError, OSError, MemoryError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise damaged_error(path, f"reading it fails ({kind}: {shorten(error)})") from error


@dataclass(frozen=True)
class MappedFile:
    """A regular file with its size and modification time when it was opened."""

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def from_path(cls, path: Path) -> MappedFile:
        """The file at ``path``. Raises a :class:`CheckpointError` if it cannot be read."""
        found = stat_file(path)
        if not stat.S_ISREG(found.st_mode):
            raise UnknownLayout(f"{path}: not a regular file", "give the path of a model file")
        return cls(path, found.st_size, found.st_mtime_ns)

    def check_unchanged(self) -> None:
        """Raise :class:`CorruptCheckpoint` if size or modification time changed since opening."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise CorruptCheckpoint(
                f"{self.path.name}: deleted or unreadable since it was opened ({error.strerror})",
                "do not move or delete model files while they are in use",
            ) from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified_ns):
            raise CorruptCheckpoint(
                f"{self.path.name}: changed while it was in use (it had {self.size:,} bytes, now "
                f"{now.st_size:,})",
                "wait until its download or copy has finished, then start again",
            )

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all if there are fewer."""
        try:
            with self.path.open("rb") as opened:
                return opened.read(min(count, self.size))
        except OSError as error:
            raise read_error(self.path, error) from error

    def read_into(self, target: memoryview, at: int) -> None:
        """Fill ``target`` with the bytes from position ``at`` on, without the memory mapping.

        Raises :class:`CorruptCheckpoint` if the file ends too early or cannot be read.
        """
        try:
            with self.path.open("rb", buffering=0) as opened:
                opened.seek(at)
                while target:
                    count = opened.readinto(target)
                    if not count:
                        raise damaged_error(self.path, "it became shorter while it was read")
                    target = target[count:]
        except OSError as error:
            raise read_error(self.path, error) from error

    @property
    def writable(self) -> bool:
        """True if the mapping can be written to, which changes the memory only."""
        return not memoryview(self.buffer).readonly

    @cached_property
    def buffer(self) -> mmap.mmap:
        """The memory mapping of the whole file. It lives as long as a tensor refers to it."""
        try:
            with self.path.open("rb") as opened:
                mapping = _map(opened.fileno(), self.size)
        except OSError as error:
            raise read_error(self.path, error) from error
        except ValueError as error:  # mmap raises it for a length beyond the end of the file
            raise damaged_error(self.path, "it became shorter while it was read") from error
        self.check_unchanged()
        return mapping


def _map(descriptor: int, size: int) -> mmap.mmap:
    try:
        if sys.platform == "win32":
            return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)
        return mmap.mmap(
            descriptor,
            size,
            flags=mmap.MAP_PRIVATE | _NO_RESERVE,
            prot=mmap.PROT_READ | mmap.PROT_WRITE,
        )
    except OSError as error:
        # Memory limits count every page of a writable mapping; a read-only one is not counted.
        if error.errno != errno.ENOMEM and sys.platform != "win32":
            raise
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)


def stat_file(path: Path) -> os.stat_result:
    """``path.stat()``. Raises a :class:`CheckpointError` if that fails."""
    try:
        return path.stat()
    except OSError as error:
        raise read_error(path, error) from error
    except ValueError as error:  # a NUL in the path
        raise CheckpointNotFound(f"{path!r}: not a valid path", "check the path") from error


def read_error(path: Path, error: OSError) -> CheckpointError:
    """The error for an ``OSError`` of the system while ``path`` is read."""
    known = _READ_ERRORS.get(error.errno or 0)
    if known is not None:
        return CheckpointNotFound(f"{path}: {known[0]}", known[1])
    return CorruptCheckpoint(
        f"{path}: cannot be read: {error.strerror or error}", "check the disk it is on"
    )


def damaged_error(path: Path, what: str) -> CorruptCheckpoint:
    """The error for a file with inconsistent content; ``what`` completes the message."""
    return CorruptCheckpoint(f"{path.name}: damaged, {what}", "download the file again")


def truncated_error(path: Path, missing: int) -> CorruptCheckpoint:
    """The error for a file without its last ``missing`` bytes."""
    return CorruptCheckpoint(
        f"{path.name}: truncated, {missing:,} bytes are missing at the end",
        "download it again; the download probably stopped early",
    )


def shorten(value: object) -> str:
    """A value from a damaged header as printable text of at most 100 characters, for messages."""
    text = str(value)[:101] if isinstance(value, str) else ascii(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 100 else f"{text[:100]}..."
