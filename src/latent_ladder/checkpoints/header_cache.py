"""Cache of the content of model files, so that most headers are not read again.

The headers of a folder with five 22B transformers have 35,000 tensors, and a run needs 10,000 of
them. An entry is valid for unchanged files (size, modification and change time, inode) and the same
version of this package's code. A damaged cache is ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.shards import find_shards
from latent_ladder.errors import CheckpointError
from latent_ladder.storage.atomic_write import cache_folder, write_atomically

MAX_ENTRIES = 4096
_DIGEST = 16


@dataclass(frozen=True)
class ComponentSummary:
    """The properties of a component that are known without its header.

    ``bits`` is the size of one weight of a transformer, 0 for other components. ``family`` is
    ``None`` if the component does not determine it.
    """

    container: str
    precision: str
    nbytes: int
    family: str | None
    bits: float = 0.0


@dataclass(frozen=True)
class FileContent:
    """The components of a file by role, or the reason why it is ignored."""

    parts: Mapping[str, ComponentSummary] = field(default_factory=dict)
    ignored: str | None = None


@dataclass
class HeaderCache:
    """The cache: path -> content of a file. ``get`` returns ``None`` for a new or changed file."""

    path: Path
    entries: dict[str, Any] = field(default_factory=dict)
    requested: set[str] = field(default_factory=set)
    changed: bool = False

    @classmethod
    def read(cls) -> HeaderCache:
        """Read the user's cache; it is empty if the file is missing, damaged or outdated."""
        path = cache_folder() / "models" / "index"
        with suppress(OSError, ValueError):
            data = path.read_bytes()
            if data[:_DIGEST] == _digest(data[_DIGEST:]):
                body = json.loads(data[_DIGEST:])
                if body["code"] == _code_version():
                    return cls(path, body["files"])
        return cls(path)

    def get(self, path: Path, stamp: str | None) -> FileContent | None:
        """The content of a file if its fingerprint is ``stamp``, else ``None``."""
        entry = self.entries.get(str(path))
        self.requested.add(str(path))
        if stamp is None or entry is None or entry["stamp"] != stamp:
            return None
        parts = {role: ComponentSummary(**facts) for role, facts in entry["parts"].items()}
        return FileContent(parts, entry["ignored"])

    def put(self, path: Path, stamp: str | None, content: FileContent) -> None:
        """Add the content of a file. Nothing is added without a fingerprint."""
        if stamp is None:
            return
        parts = {role: asdict(facts) for role, facts in content.parts.items()}
        entry = {"stamp": stamp, "parts": parts, "ignored": content.ignored}
        self.changed |= self.entries.get(str(path)) != entry
        self.entries[str(path)] = entry

    def save(self) -> None:
        """Write the cache if it has changed. Errors are ignored."""
        if not self.changed:
            return
        others = (p for p in self.entries if p not in self.requested and Path(p).exists())
        paths = [*(p for p in self.entries if p in self.requested), *others][:MAX_ENTRIES]
        body = json.dumps({"code": _code_version(), "files": {p: self.entries[p] for p in paths}})
        data = body.encode()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, _digest(data) + data)


def fingerprint_files(path: Path) -> str | None:
    """A fingerprint of the state of all files of a checkpoint; ``None`` if one cannot be read.

    It includes the change time, which only the system sets: a file written in place with a restored
    modification time still differs in it.
    """
    try:
        shards = find_shards(path)
        found = [part.stat() for part in dict.fromkeys((shards.path, *shards.parts))]
    except (OSError, CheckpointError):
        return None
    return " ".join(
        f"{s.st_dev:x}.{s.st_ino:x}.{s.st_size:x}.{s.st_mtime_ns:x}.{s.st_ctime_ns:x}"
        for s in found
    )


def _code_version() -> str:
    """A hash of the state of this package's source files: other code makes the cache invalid."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    states = (f"{f.name} {s.st_size} {s.st_mtime_ns}" for f in files for s in (f.stat(),))
    return hashlib.blake2b("\n".join(states).encode(), digest_size=8).hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
