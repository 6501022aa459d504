"""What model files were found to hold the last time, so that most headers are not read again.

A folder with five 22B transformers has 35,000 tensors in its headers, and a run needs 10,000 of
them. An entry counts only for exactly the files it was made from (size, times of modification and
of change, inode) and for the code that judged them. Whatever is wrong with the index itself, it is
left aside: it only saves time.
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
class Facts:
    """What is asked of a component that is not used, in short.

    ``bits`` are those that one weight of a transformer takes, ``family`` is ``None`` where the
    part does not tell.
    """

    container: str
    precision: str
    nbytes: int
    family: str | None
    bits: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What a file was found to be: ``parts`` by role, or why it is none of ours."""

    parts: Mapping[str, Facts] = field(default_factory=dict)
    ignored: str | None = None


@dataclass
class Index:
    """Path -> verdict. ``get`` answers ``None`` for a file that changed or is new."""

    path: Path
    entries: dict[str, Any] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)
    changed: bool = False

    @classmethod
    def read(cls) -> Index:
        """The user's index; empty where there is none, or none that can be trusted."""
        path = cache_folder() / "models" / "index"
        with suppress(OSError, ValueError):
            kept = path.read_bytes()
            if kept[:_DIGEST] == _digest(kept[_DIGEST:]):
                body = json.loads(kept[_DIGEST:])
                if body["code"] == _code():
                    return cls(path, body["files"])
        return cls(path)

    def get(self, path: Path, stamp: str | None) -> Verdict | None:
        """The verdict on a file, of exactly this ``stamp``."""
        entry = self.entries.get(str(path))
        self.asked.add(str(path))
        if stamp is None or entry is None or entry["stamp"] != stamp:
            return None
        parts = {role: Facts(**facts) for role, facts in entry["parts"].items()}
        return Verdict(parts, entry["ignored"])

    def put(self, path: Path, stamp: str | None, verdict: Verdict) -> None:
        """Remember a verdict; of what cannot be named for certain nothing is kept."""
        if stamp is None:
            return
        parts = {role: asdict(facts) for role, facts in verdict.parts.items()}
        entry = {"stamp": stamp, "parts": parts, "ignored": verdict.ignored}
        self.changed |= self.entries.get(str(path)) != entry
        self.entries[str(path)] = entry

    def save(self) -> None:
        """Write it if anything is new; no error where it cannot be kept."""
        if not self.changed:
            return
        others = (p for p in self.entries if p not in self.asked and Path(p).exists())
        paths = [*(p for p in self.entries if p in self.asked), *others][:MAX_ENTRIES]
        body = json.dumps({"code": _code(), "files": {p: self.entries[p] for p in paths}})
        data = body.encode()
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, _digest(data) + data)


def stamp(path: Path) -> str | None:
    """Names the state of all files of a checkpoint; ``None`` where one cannot be looked at.

    The time of change is the system's own: a file written in place whose modification time was
    put back still differs in it.
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


def _code() -> str:
    """Names the code that judges files: a new version of it judges anew."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    states = (f"{f.name} {s.st_size} {s.st_mtime_ns}" for f in files for s in (f.stat(),))
    return hashlib.blake2b("\n".join(states).encode(), digest_size=8).hexdigest()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()
