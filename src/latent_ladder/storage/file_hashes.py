"""Cached hashes of large files: a file of 46 GB is read once and not at every check.

A cached hash is valid while the file's path, size and modification time are unchanged.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

HashKind = Literal["sha256", "git-sha1"]

_KINDS: dict[int, HashKind] = {64: "sha256", 40: "git-sha1"}


@dataclass(frozen=True)
class FileHash:
    """Hash of a file's bytes as a Hugging Face hub states it.

    SHA-256 for files in LFS, git's blob hash (SHA-1) for all others.
    """

    kind: HashKind
    hex: str

    @classmethod
    def from_etag(cls, etag: str | None) -> FileHash | None:
        """The hash in an ETag of the hub; ``None`` for an ETag that is not a hash."""
        if etag is None or not re.fullmatch(r"[0-9a-f]+", etag) or len(etag) not in _KINDS:
            return None
        return cls(_KINDS[len(etag)], etag)

    def new_digest(self, nbytes: int) -> Any:
        """A new ``hashlib`` object of this kind, for a file of ``nbytes`` bytes."""
        return _new_digest(self.kind, nbytes)

    def __str__(self) -> str:
        return f"{self.kind} {self.hex}"


def known_hash(path: Path, kind: HashKind) -> str | None:
    """The cached hash of a file, ``None`` without one; does not read the file."""
    try:
        return _read().get(_key(path, kind))
    except OSError:
        return None


def hash_file(path: Path, kind: HashKind) -> str:
    """The hash of a file in hexadecimal, from the cache, else by reading the file."""
    known = _read().get(_key(path, kind))
    if known is not None:
        return known
    digest = _new_digest(kind, path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(2**22):
            digest.update(chunk)
    store_hash(path, FileHash(kind, digest.hexdigest()))
    return str(digest.hexdigest())


def store_hash(path: Path, known: FileHash) -> None:
    """Add the hash of a file to the cache. A cache that cannot be written is ignored."""
    from latent_ladder.storage.atomic_write import write_atomically

    target = cache_file()
    body = {**_read(), _key(path, known.kind): known.hex}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, json.dumps(body, indent=1).encode())
    except OSError:
        return


def _new_digest(kind: HashKind, nbytes: int) -> Any:
    if kind == "sha256":
        return hashlib.sha256()
    # Git hashes a blob with this header before its bytes.
    return hashlib.sha1(b"blob %d\0" % nbytes, usedforsecurity=False)


def _key(path: Path, kind: HashKind) -> str:
    status = path.stat()
    return f"{kind} {status.st_size} {status.st_mtime_ns} {path.resolve()}"


def cache_file() -> Path:
    """The JSON file with the cached hashes, in ``LADDER_CACHE`` or the user's cache folder."""
    from latent_ladder.storage.atomic_write import cache_folder

    return cache_folder() / "hashes.json"


def _read() -> dict[str, str]:
    try:
        body = json.loads(cache_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
