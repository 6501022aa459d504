"""Journal of the files that a job has written, so that a job that is run again writes none twice.

A process that is killed in mid-job leaves finished files behind. The name of each file is in the
journal before the file gets it, with the identity of its content on the disk; another run of the
same job finds the file there and does not make it again. A file of somebody else under that name
is never taken for the job's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from latent_ladder.errors import StoreError
from latent_ladder.storage.atomic_write import convert_write_errors

_Identity = tuple[int, int, int]
"""Inode, modification time in nanoseconds and size: a rename or a hard link keeps them."""


class OutputJournal:
    """Files of one job by node and position. Without a path it is empty and records nothing."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._files: dict[tuple[str, int], tuple[Path, _Identity]] = {}
        for line in _read_lines(path):
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                identity = (int(entry["inode"]), int(entry["mtime"]), int(entry["size"]))
                place = (str(entry["node"]), int(entry["index"]))
                self._files[place] = (Path(entry["path"]), identity)

    def find(self, node: str, index: int, root: Path) -> Path | None:
        """The file that an earlier run of the job wrote below ``root``, if it is still there."""
        path, identity = self._files.get((node, index), (None, None))
        if path is None or not path.is_relative_to(root):
            return None
        try:
            return path if _identify(path) == identity else None
        except OSError:
            return None

    def recorder(self, node: str, index: int, part: Path) -> Callable[[Path], None]:
        """A function that records the name that the finished file ``part`` is about to get."""

        def record(path: Path) -> None:
            if self._path is None:
                return
            inode, mtime, size = _identify(part)
            entry: dict[str, Any] = {"node": node, "index": index, "path": str(path)}
            entry |= {"inode": inode, "mtime": mtime, "size": size}
            line = json.dumps(entry).encode() + b"\n"
            with convert_write_errors(StoreError, "the journal of the job", self._path.parent):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())

        return record


def _read_lines(path: Path | None) -> list[bytes]:
    """The lines of a journal; the last one may be cut off."""
    if path is None:
        return []
    try:
        return path.read_bytes().splitlines()
    except OSError:
        return []


def _identify(path: Path) -> _Identity:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
