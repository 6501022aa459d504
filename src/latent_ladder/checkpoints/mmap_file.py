"""A file on disk, mapped into memory when first needed, and the words for files that cannot be.

The mapping is private and copy-on-write: reading costs no copy, and a caller who writes into a
tensor never changes the file.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    UnknownLayout,
)

# Without it Linux wants the whole file's size in free memory for a private writable mapping. The
# value is that of every Linux but a few old processor families; Python names it from 3.13 on.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0

_REFUSALS = {
    errno.ENOENT: ("no such file", "check the path, or `ladder models list`"),
    errno.ENOTDIR: ("no such file", "check the path, or `ladder models list`"),
    errno.EACCES: ("permission denied", "give your user the right to read it"),
    errno.EPERM: ("permission denied", "give your user the right to read it"),
    errno.ELOOP: ("a link that leads back to itself", "replace the link by the file"),
    errno.ENAMETOOLONG: ("the path is too long", "shorten it"),
}


@dataclass(frozen=True)
class MappedFile:
    """One regular file as it was when it was opened."""

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def at(cls, path: Path) -> MappedFile:
        """The file at ``path``. Raises a :class:`CheckpointError` that says what is in the way."""
        found = status(path)
        if not stat.S_ISREG(found.st_mode):
            raise UnknownLayout(f"{path}: not a regular file", "give the path of a model file")
        return cls(path, found.st_size, found.st_mtime_ns)

    def check_unchanged(self) -> None:
        """Raise :class:`CorruptCheckpoint` when size or modification time moved since opening."""
        try:
            now = self.path.stat()
        except OSError as error:
            raise CorruptCheckpoint(
                f"{self.path.name}: gone or unreadable since it was opened ({error.strerror})",
                "keep model files in place while they are in use",
            ) from error
        if (now.st_size, now.st_mtime_ns) != (self.size, self.modified_ns):
            raise CorruptCheckpoint(
                f"{self.path.name}: changed while it was in use (it had {self.size:,} bytes, now "
                f"{now.st_size:,})",
                "wait until its download or copy has ended, then start again",
            )

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or all where there are fewer."""
        try:
            with self.path.open("rb") as opened:
                return opened.read(min(count, self.size))
        except OSError as error:
            raise refused(self.path, error) from error

    def read_into(self, target: memoryview, at: int) -> None:
        """Fill ``target`` with the bytes from ``at`` on, by plain reads.

        Raises :class:`CorruptCheckpoint` when the file ends before that or cannot be read.
        """
        try:
            with self.path.open("rb", buffering=0) as opened:
                opened.seek(at)
                while target:
                    count = opened.readinto(target)
                    if not count:
                        raise damaged(self.path, "it became shorter while it was read")
                    target = target[count:]
        except OSError as error:
            raise refused(self.path, error) from error

    @property
    def writable(self) -> bool:
        """Whether the mapping can be written to (in memory only)."""
        return not memoryview(self.buffer).readonly

    @cached_property
    def buffer(self) -> mmap.mmap:
        """All bytes, mapped. Kept until the last tensor read from it is gone."""
        try:
            with self.path.open("rb") as opened:
                mapping = _map(opened.fileno(), self.size)
        except OSError as error:
            raise refused(self.path, error) from error
        except ValueError as error:  # mmap's word for "longer than the file"
            raise damaged(self.path, "it became shorter while it was read") from error
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
        # Limits on private memory count a writable mapping as if every page were written.
        if error.errno != errno.ENOMEM and sys.platform != "win32":
            raise
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)


def status(path: Path) -> os.stat_result:
    """``path.stat()``, or the :class:`CheckpointError` for it."""
    try:
        return path.stat()
    except OSError as error:
        raise refused(path, error) from error
    except ValueError as error:  # a NUL in the path
        raise CheckpointNotFound(f"{path!r}: not a path", "check the path") from error


def refused(path: Path, error: OSError) -> CheckpointError:
    """What the system's refusal to read ``path`` means."""
    known = _REFUSALS.get(error.errno or 0)
    if known is not None:
        return CheckpointNotFound(f"{path}: {known[0]}", known[1])
    return CorruptCheckpoint(
        f"{path}: cannot be read: {error.strerror or error}", "check the disk it lies on"
    )


def damaged(path: Path, what: str) -> CorruptCheckpoint:
    """The error for a file whose bytes contradict themselves."""
    return CorruptCheckpoint(f"{path.name}: damaged, {what}", "download the file again")


def cut_off(path: Path, missing: int) -> CorruptCheckpoint:
    """The error for a file that is ``missing`` bytes at its end."""
    return CorruptCheckpoint(
        f"{path.name}: truncated, {missing:,} bytes are missing at the end",
        "download it again; the download probably stopped early",
    )


def shortened(value: object) -> str:
    """A value from a damaged header as text that fits a message and a terminal."""
    text = str(value)[:101] if isinstance(value, str) else ascii(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 100 else f"{text[:100]}..."
