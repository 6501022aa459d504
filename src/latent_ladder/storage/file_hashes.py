"""Hashes of big files, remembered: a file of 46 GB is read once, not at every look.

A remembered hash counts while the file's size and time of change are what they were.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["sha256", "git-sha1"]

_KINDS: dict[int, Kind] = {64: "sha256", 40: "git-sha1"}


@dataclass(frozen=True)
class FileHash:
    """What a hub announces of a file's bytes: SHA-256 of big files, git's blob hash of others."""

    kind: Kind
    hex: str

    @classmethod
    def of_etag(cls, etag: str | None) -> FileHash | None:
        """The hash that an ETag of the hub is; ``None`` for another server's."""
        if etag is None or not re.fullmatch(r"[0-9a-f]+", etag) or len(etag) not in _KINDS:
            return None
        return cls(_KINDS[len(etag)], etag)

    def start(self, nbytes: int) -> Any:
        """A ``hashlib`` object to feed with the bytes of a file of this size."""
        return _start(self.kind, nbytes)

    def __str__(self) -> str:
        return f"{self.kind} {self.hex}"


def hash_of_file(path: Path, kind: Kind) -> str:
    """The hash of a file, from memory or by reading it."""
    known = _read().get(_key(path, kind))
    if known is not None:
        return known
    digest = _start(kind, path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    remember(path, FileHash(kind, digest.hexdigest()))
    return str(digest.hexdigest())


def remember(path: Path, known: FileHash) -> None:
    """Keep the hash of a file as it now is. A cache that cannot be written is no failure."""
    from latent_ladder.storage.atomic_write import write_whole

    target = cache_file()
    body = {**_read(), _key(path, known.kind): known.hex}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, json.dumps(body, indent=1).encode())
    except OSError:
        return


def _start(kind: Kind, nbytes: int) -> Any:
    if kind == "sha256":
        return hashlib.sha256()
    # Git hashes a blob with this header before its bytes.
    return hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)


def _key(path: Path, kind: Kind) -> str:
    status = path.stat()
    return f"{kind} {status.st_size} {status.st_mtime_ns} {path.resolve()}"


def cache_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("latent-ladder", appauthor=False)) / "hashes.json"


def _read() -> dict[str, str]:
    try:
        body = json.loads(cache_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
