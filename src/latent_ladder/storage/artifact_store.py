"""The store: artefacts on disk, content-addressed, atomic, verified, pruned.

::

    artefacts/3f/b2-3f…e1.json                  the index entry: names the data and its hash
    artefacts/3f/b2-3f…e1.9ad04c77.safetensors  the tensors, and their meta in the header
    runs/<id>.json                              which run used which artefacts
    locks/                                      see storage/file_lock.py
    quarantine/                                 damaged artefacts, moved out of the way

An artefact exists when its index entry does. The entry is written after the data, and the data's
name carries its hash, so no crash can pair an entry with the wrong bytes; a short lock per key
keeps two writers apart.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.errors import StoreError
from latent_ladder.storage.atomic_write import PART, is_abandoned, write_whole, writing
from latent_ladder.storage.file_lock import hold
from latent_ladder.storage.run_records import KEY_PATTERN, DamagedRun, RunLog, RunRecord

if TYPE_CHECKING:
    import torch

ALGORITHM = "b2"
"""The first part of every key: blake2b of 16 bytes over canonical JSON."""

ENVIRONMENT = "LADDER_STORE"


def default_root() -> Path:
    """``$LADDER_STORE``, else ``latent-ladder`` in the user's data folder."""
    if chosen := os.environ.get(ENVIRONMENT):
        return Path(chosen).expanduser()
    import platformdirs

    return Path(platformdirs.user_data_dir("latent-ladder", appauthor=False))


def canonical_json(value: Any) -> str:
    """One text per value: sorted keys, no spaces, tuples as lists, fractions and infinities tagged.

    Raises :class:`StoreError` for NaN, which no two computations agree on, and ``TypeError`` for a
    value that is not data.
    """
    plain = _plain(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def artefact_key(
    stage: str,
    version: int,
    fields: Mapping[str, Any],
    inputs: Sequence[str],
    checkpoints: Sequence[str],
) -> str:
    """The key of what ``stage`` makes of these fields, input artefacts and checkpoint ids.

    Example: ``b2-0f5c…`` (35 characters, fit for a file name). The order of ``inputs`` and
    ``checkpoints`` counts.
    """
    decided_by = {
        "stage": stage,
        "version": version,
        "fields": fields,
        "inputs": list(inputs),
        "checkpoints": list(checkpoints),
    }
    data = canonical_json(decided_by).encode()
    return f"{ALGORITHM}-{hashlib.blake2b(data, digest_size=16).hexdigest()}"


@dataclass(frozen=True)
class Artefact:
    """A verified artefact. ``meta`` is what was put, plus ``key`` and ``created``."""

    key: str
    path: Path
    meta: Mapping[str, Any]
    size: int

    def load(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors, by name. Raises :class:`StoreError` if the file has vanished since."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors: dict[str, torch.Tensor] = load_file(self.path, device=device)
        except (OSError, SafetensorError) as error:
            raise StoreError(
                f"artefact {self.key} cannot be read: {error}", hint="run the command again"
            ) from error
        return tensors


@dataclass(frozen=True)
class Damage:
    """A damaged artefact: why, and where its file was moved (``None`` if there was none)."""

    key: str
    reason: str
    moved_to: Path | None


@dataclass(frozen=True)
class Entry:
    """The index entry of one artefact."""

    key: str
    stage: str
    created: str
    file: str
    size: int
    blake2b: str


@dataclass(frozen=True)
class Pruned:
    """What a prune removed, or would remove, and the run files that it could not read."""

    runs: tuple[str, ...]
    artefacts: tuple[str, ...]
    freed_bytes: int
    damaged_runs: tuple[DamagedRun, ...]


def ignore(_: Damage) -> None:
    """Take no notice of damage: the artefact is simply not there."""


@dataclass(frozen=True)
class Store:
    """The artefacts and runs below ``root``, which is created when something is written."""

    root: Path

    @property
    def runs(self) -> RunLog:
        """The run records."""
        return RunLog(self.root / "runs")

    def lock(
        self,
        key: str,
        *,
        on_wait: Callable[[int], None] | None = None,
        timeout: float | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> AbstractContextManager[None]:
        """Let one process at a time work on ``key``; see ``storage.file_lock.hold``."""
        path = self.root / "locks" / f"{key}.lock"
        return hold(path, on_wait=on_wait, timeout=timeout, poll=poll)

    def put(
        self, key: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
    ) -> Artefact:
        """Store ``tensors`` and ``meta`` (JSON data; ``meta["stage"]`` names the stage).

        Replaces what ``key`` named before. Raises :class:`StoreError`, with the bytes needed and
        free, when there is no room; the store is as it was then.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        meta = {**meta, "key": key, "created": created}
        data = _serialise(tensors, meta)
        digest = hashlib.blake2b(data, digest_size=32).hexdigest()
        path = self._entry_path(key).with_name(f"{key}.{digest[:8]}.safetensors")
        entry = Entry(key, str(meta.get("stage", "")), created, path.name, len(data), digest)
        with writing(StoreError, f"artefact {key}", self.root, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._changing(key):
                replaced = self._files(key) - {path, self._entry_path(key)}
                write_whole(path, data)
                write_whole(self._entry_path(key), json.dumps(asdict(entry)).encode())
                _delete(replaced)
        return Artefact(key, path, json.loads(json.dumps(meta)), len(data))

    def get(self, key: str, on_damage: Callable[[Damage], None] = ignore) -> Artefact | None:
        """The verified artefact, or ``None`` if there is none.

        A truncated or altered one is moved to the quarantine folder and told to ``on_damage``; the
        caller recomputes it.
        """
        found = self._verified(key)
        if not isinstance(found, str):
            return found
        with self._changing(key):
            found = self._verified(key)  # another process may just have replaced it
            if not isinstance(found, str):
                return found
            damage = self._quarantine(key, found)
        on_damage(damage)
        return None

    def remove(self, key: str) -> None:
        """Remove an artefact, if there is one."""
        with self._changing(key):
            # The entry first: an artefact without one does not exist, whatever happens next.
            _delete(sorted(self._files(key), key=lambda path: path.suffix != ".json"))

    def entries(self) -> Iterator[Entry]:
        """The readable index entries, by key; damaged ones are left to :meth:`verify`."""
        for key in self._keys():
            entry = _read_entry(self._entry_path(key))
            if isinstance(entry, Entry):
                yield entry

    def size(self) -> int:
        """Bytes on disk of all artefacts."""
        return _bytes_on_disk(path for key in self._keys() for path in self._files(key))

    def verify(self, on_damage: Callable[[Damage], None] = ignore) -> tuple[int, list[Damage]]:
        """Check every artefact: the number of sound ones, and the damaged ones, now moved aside."""
        damages: list[Damage] = []
        sound = 0
        for key in self._keys():
            sound += self.get(key, damages.append) is not None
        for damage in damages:
            on_damage(damage)
        return sound, damages

    def prune(
        self,
        *,
        keep_days: float | None = None,
        keep_last: int | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove old runs, then the artefacts that no remaining run refers to.

        A run goes when it is older than ``keep_days`` and not among the ``keep_last`` newest; with
        neither given, all runs stay. A running run, the keys that appear in a damaged record and
        everything made since the oldest running run began are kept.
        """
        runs, damaged = self.runs.list()
        removed = [] if keep_days is keep_last is None else _old(runs, keep_days, keep_last)
        kept = [run for run in runs if run not in removed]
        used = frozenset[str]().union(*(run.keys for run in kept), *(bad.keys for bad in damaged))
        since = min((run.created for run in kept if run.status == "running"), default="~")
        unused = [key for key in self._keys() if key not in used and not self._newer(key, since)]
        leftovers = set(self._leftovers())
        freed = _bytes_on_disk(leftovers.union(*(self._files(key) for key in unused)))
        if not dry_run:
            for run in removed:
                self.runs.remove(run.id)
            for key in unused:
                self.remove(key)
            _delete(leftovers)
        ids = tuple(run.id for run in removed)
        return Pruned(ids, tuple(unused), freed, tuple(damaged))

    def _changing(self, key: str) -> AbstractContextManager[None]:
        """Held while the files of ``key`` change: a short lock, another one than :meth:`lock`."""
        return hold(self.root / "locks" / f"files-{key}.lock")

    def _entry_path(self, key: str) -> Path:
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"{key!r} is not an artefact key")
        return self.root / "artefacts" / key[3:5] / f"{key}.json"

    def _files(self, key: str) -> set[Path]:
        """The entry and every data file of ``key``."""
        return set(self._entry_path(key).parent.glob(f"{key}.*"))

    def _keys(self) -> list[str]:
        """Every key with a file, sorted."""
        names = (path.name for path in (self.root / "artefacts").glob("*/b2-*"))
        return sorted({found[0] for name in names if (found := KEY_PATTERN.match(name))})

    def _newer(self, key: str, created: str) -> bool:
        """Whether ``key`` was made since ``created``, or is being put right now."""
        entry = _read_entry(self._entry_path(key))
        if isinstance(entry, Entry):
            return entry.created >= created[:19]
        return not all(is_abandoned(path) for path in self._files(key))

    def _leftovers(self) -> Iterator[Path]:
        for folder in (self.root / "runs", *(self.root / "artefacts").glob("*")):
            yield from filter(is_abandoned, folder.glob(f"{PART}*"))
        yield from (self.root / "quarantine").glob("*")

    def _verified(self, key: str) -> Artefact | str | None:
        """The artefact, ``None`` if there is none, or in words what is wrong with it."""
        entry = _read_entry(self._entry_path(key))
        if not isinstance(entry, Entry):
            return entry
        path = self._entry_path(key).with_name(entry.file)
        try:
            size = path.stat().st_size
            if size != entry.size:
                return f"{path.name} has {size} bytes, expected {entry.size}"
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32))
                if digest.hexdigest() != entry.blake2b:
                    return f"{path.name} was altered: its hash is not the recorded one"
                file.seek(0)
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror}"
        return Artefact(key, path, json.loads(header["__metadata__"]["latent_ladder"]), size)

    def _quarantine(self, key: str, reason: str) -> Damage:
        """Move the files of ``key`` aside; what cannot be moved stays and is found again."""
        folder = self.root / "quarantine"
        moved = None
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            for path in sorted(self._files(key), key=lambda path: path.suffix != ".json"):
                path.replace(folder / path.name)
                moved = folder / path.name
        return Damage(key, reason, moved)


def _plain(value: Any, where: str) -> Any:
    """``value`` as JSON data; ``where`` names the place for errors."""
    if isinstance(value, Enum):
        return _plain(value.value, where)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isnan(value):
            raise StoreError(f"{where} is not a number (NaN), expected a finite value")
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Fraction):
        return {"fraction": [value.numerator, value.denominator]}
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"{where} has keys that are not text")
        return {name: _plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, expected plain data")


def _serialise(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> bytes:
    """A safetensors file in memory: artefacts are latents and embeddings, tens of megabytes."""
    import torch
    from safetensors.torch import save

    owned = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json.dumps(dict(meta), ensure_ascii=False, allow_nan=False)
    data: bytes = save(owned, {"latent_ladder": text})
    return data


def _read_entry(path: Path) -> Entry | str | None:
    """The entry, ``None`` if there is none, or in words why it cannot be used."""
    try:
        entry = Entry(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, TypeError):
        return f"{path.name} is not an index entry"
    return entry if path.stem == entry.key else f"{path.name} is the entry of {entry.key}"


def _old(runs: list[RunRecord], days: float | None, last: int | None) -> list[RunRecord]:
    """The runs (newest first) that neither rule keeps; one that is running is always kept."""
    limit = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    return [
        run
        for i, run in enumerate(runs)
        if run.status != "running"
        and not (last is not None and i < last)
        and not (limit is not None and run.created_at >= limit)
    ]


def _bytes_on_disk(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        # On Windows a file that is being read cannot be deleted; the next prune gets it.
        with suppress(OSError):
            path.unlink(missing_ok=True)
