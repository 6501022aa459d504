"""Artefact store: content-addressed tensors on disk, written atomically, verified, pruned.

::

    artefacts/3f/b2-3f…e1.json                  the index entry: names the data and its hash
    artefacts/3f/b2-3f…e1.9ad04c77.safetensors  the tensors, and their meta in the header
    runs/<id>.json                              the records of runs, with the artefacts they used
    locks/                                      see storage/file_lock.py
    quarantine/                                 damaged artefacts, moved out of the way

An artefact exists if its index entry exists. The entry is written after the data, and the name of
the data file contains its hash, so a crash cannot pair an entry with the wrong bytes. A short lock
per key keeps two writers from changing the same files.
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
from latent_ladder.storage.atomic_write import (
    cache_folder,
    convert_write_errors,
    write_atomically,
)
from latent_ladder.storage.file_lock import lock_file
from latent_ladder.storage.run_records import KEY_PATTERN, DamagedRun, RunLog, RunRecord
from latent_ladder.storage.temporary_files import (
    abandoned_files,
    delete,
    is_abandoned,
    part_path,
    remove_abandoned,
)
from latent_ladder.storage.user_config import configured_path
from latent_ladder.storage.user_folders import user_folder

if TYPE_CHECKING:
    import torch

ALGORITHM = "b2"
"""Prefix of every key: blake2b with a digest of 16 bytes, over canonical JSON."""


def default_root() -> Path:
    """``$LADDER_STORE``, the key ``store`` of ``config.toml``, else a folder of the user's data."""
    return configured_path("store") or user_folder("data")


def canonical_json(value: Any) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces, tuples as lists.

    Fractions and infinities become tagged objects. Raises :class:`StoreError` for NaN, which is
    not equal to itself, and ``TypeError`` for a value that is not plain data.
    """
    plain = _to_json_data(value, "value")
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def artefact_key(
    stage: str,
    version: int,
    fields: Mapping[str, Any],
    inputs: Sequence[str],
    checkpoints: Sequence[str],
) -> str:
    """The key of the artefact that ``stage`` makes from fields, input artefacts and checkpoints.

    ``inputs`` are artefact keys, ``checkpoints`` are checkpoint ids; their order matters.
    ``version`` is that of the stage's code. Example: ``b2-0f5c…`` (35 characters, valid in a file
    name).
    """
    parts = {
        "stage": stage,
        "version": version,
        "fields": fields,
        "inputs": list(inputs),
        "checkpoints": list(checkpoints),
    }
    data = canonical_json(parts).encode("utf-8", "surrogatepass")
    return f"{ALGORITHM}-{hashlib.blake2b(data, digest_size=16).hexdigest()}"


@dataclass(frozen=True)
class Artefact:
    """A verified artefact. ``meta`` is the stored metadata, with ``key`` and ``created`` added.

    ``path`` is the safetensors file, ``size`` its bytes.
    """

    key: str
    path: Path
    meta: Mapping[str, Any]
    size: int

    def load(self, device: str = "cpu") -> dict[str, torch.Tensor]:
        """The tensors by name. Raises :class:`StoreError` if the file was deleted meanwhile."""
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
class DamagedArtefact:
    """A damaged artefact: the reason, and the new path of its file (``None`` if there was none)."""

    key: str
    reason: str
    moved_to: Path | None


@dataclass(frozen=True)
class IndexEntry:
    """The index entry of one artefact, as its JSON file has it."""

    key: str
    stage: str
    created: str
    file: str
    size: int
    blake2b: str


@dataclass(frozen=True)
class PruneResult:
    """The result of a prune: what was removed (or would be), and records that cannot be read."""

    runs: tuple[str, ...]
    artefacts: tuple[str, ...]
    freed_bytes: int
    damaged_runs: tuple[DamagedRun, ...]


def ignore_damage(_: DamagedArtefact) -> None:
    """Do nothing: a damaged artefact counts as missing."""


@dataclass(frozen=True)
class Store:
    """The artefacts and run records in ``root``, which is created by the first write."""

    root: Path

    @property
    def runs(self) -> RunLog:
        """The run records."""
        return RunLog(self.root / "runs")

    def check_writable(self, *, create: bool = True) -> None:
        """Raise :class:`StoreError` if nothing can be stored here.

        Makes the folder, and removes it again without ``create``.
        """
        made = [] if create else [f for f in (self.root, *self.root.parents) if not f.exists()]
        probe = part_path(self.root / "probe")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.touch()
        except OSError as error:
            raise StoreError(
                f"the store {self.root} cannot be written: {error.strerror or error}",
                "choose another folder with --store FOLDER, the variable LADDER_STORE, or the "
                "key store of config.toml",
            ) from error
        finally:
            for path in (probe, *made):
                with suppress(OSError):  # not there, or in use by another process now
                    path.unlink() if path == probe else path.rmdir()

    def lock(
        self,
        key: str,
        *,
        on_wait: Callable[[int], None] | None = None,
        timeout: float | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> AbstractContextManager[None]:
        """A lock that lets one process at a time compute ``key``; arguments of ``lock_file``."""
        path = self.root / "locks" / f"{key}.lock"
        return lock_file(path, on_wait=on_wait, timeout=timeout, poll=poll)

    def put(
        self, key: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
    ) -> Artefact:
        """Store ``tensors`` and ``meta`` (JSON data; ``meta["stage"]`` names the stage).

        Replaces an older artefact of the same key. Raises :class:`StoreError`, with the bytes
        needed and free, when the disk is full; the store is unchanged then.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        meta = {**meta, "key": key, "created": created}
        data = _serialise(tensors, meta)
        digest = hashlib.blake2b(data, digest_size=32).hexdigest()
        path = self._entry_path(key).with_name(f"{key}.{digest[:8]}.safetensors")
        entry = IndexEntry(key, str(meta.get("stage", "")), created, path.name, len(data), digest)
        with convert_write_errors(StoreError, f"artefact {key}", self.root, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._files_lock(key):
                replaced = self._files(key) - {path, self._entry_path(key)}
                write_atomically(path, data)
                write_atomically(self._entry_path(key), json.dumps(asdict(entry)).encode())
                _delete_all(replaced)
        return Artefact(key, path, json.loads(json.dumps(meta)), len(data))

    def try_put(
        self, key: str, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]
    ) -> StoreError | None:
        """Store as :meth:`put` does; the error if that failed.

        For results that the caller still has in memory: a full disk does not end its work.
        """
        try:
            self.put(key, tensors, meta)
        except StoreError as error:
            return error
        return None

    def get(
        self, key: str, on_damage: Callable[[DamagedArtefact], None] = ignore_damage
    ) -> Artefact | None:
        """The verified artefact, or ``None`` if there is none.

        A truncated or altered one is moved to the quarantine folder and reported to ``on_damage``;
        the result is ``None`` then, and the caller recomputes the artefact.
        """
        found = self._read_verified(key)
        if not isinstance(found, str):
            return found
        with self._files_lock(key):
            found = self._read_verified(key)  # another process may have replaced it meanwhile
            if not isinstance(found, str):
                return found
            damage = self._quarantine(key, found)
        on_damage(damage)
        return None

    def remove(self, key: str) -> None:
        """Remove the artefact of ``key``, if there is one."""
        with self._files_lock(key):
            # The entry first: without it the artefact does not exist, even after a crash here.
            _delete_all(sorted(self._files(key), key=lambda path: path.suffix != ".json"))

    def bytes_of(self, key: str) -> int:
        """Bytes on disk of the artefact of ``key``, 0 if there is none."""
        return _bytes_on_disk(self._files(key))

    def meta_of(self, key: str) -> dict[str, Any]:
        """The stored metadata of an artefact, without checking its data; empty if there is none."""
        entry = _read_entry(self._entry_path(key))
        if not isinstance(entry, IndexEntry):
            return {}
        try:
            with self._entry_path(key).with_name(entry.file).open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            return dict(json.loads(header["__metadata__"]["latent_ladder"]))
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def entries(self) -> Iterator[IndexEntry]:
        """The readable index entries, by key; :meth:`verify` reports damaged ones."""
        for key in self._keys():
            entry = _read_entry(self._entry_path(key))
            if isinstance(entry, IndexEntry):
                yield entry

    def size(self) -> int:
        """Bytes on disk of the whole store: artefacts, records, locks, quarantine."""
        walked = os.walk(self.root)
        return _bytes_on_disk(Path(here) / name for here, _, names in walked for name in names)

    def verify(
        self, on_damage: Callable[[DamagedArtefact], None] = ignore_damage
    ) -> tuple[int, list[DamagedArtefact]]:
        """Check every artefact: the number of valid ones, and the damaged ones.

        Damaged artefacts are moved to the quarantine folder.
        """
        damages: list[DamagedArtefact] = []
        valid = 0
        for key in self._keys():
            valid += self.get(key, damages.append) is not None
        for damage in damages:
            on_damage(damage)
        return valid, damages

    def prune(
        self,
        *,
        keep_days: float | None = None,
        keep_last: int | None = None,
        dry_run: bool = False,
    ) -> PruneResult:
        """Remove old run records, then the artefacts that no remaining record refers to.

        A record is removed if it is older than ``keep_days`` and not one of the ``keep_last``
        newest; without both, all records stay. Always kept: a run in progress, keys that occur in
        a damaged record, and all artefacts made since the oldest run in progress began.
        ``dry_run`` removes nothing.
        """
        runs, damaged = self.runs.list()
        removed = (
            [] if keep_days is keep_last is None else _expired_runs(runs, keep_days, keep_last)
        )
        kept = [run for run in runs if run not in removed]
        used = frozenset[str]().union(*(run.keys for run in kept), *(bad.keys for bad in damaged))
        since = min((run.created for run in kept if run.status == "running"), default="~")
        unused = [
            key for key in self._keys() if key not in used and not self._created_since(key, since)
        ]
        leftovers = set(self._leftovers())
        freed = _bytes_on_disk(leftovers.union(*(self._files(key) for key in unused)))
        if not dry_run:
            for run in removed:
                self.runs.remove(run.id)
            for key in unused:
                self.remove(key)
            _delete_all(leftovers)
        ids = tuple(run.id for run in removed)
        return PruneResult(ids, tuple(unused), freed, tuple(damaged))

    def remove_temporary_files(self) -> None:
        """Delete the temporary files of processes that were killed.

        They are in the store, in the folders that the newest runs without an end wrote to, and in
        the cache folder. Those of living processes stay.
        """
        outputs = (Path(output) for output in self.runs.interrupted_outputs())
        around = (folder for path in outputs for folder in _folders_around(path))
        remove_abandoned([*self._folders(), cache_folder(), *around])

    def _files_lock(self, key: str) -> AbstractContextManager[None]:
        """A short lock while the files of ``key`` change; not the same as :meth:`lock`."""
        return lock_file(self.root / "locks" / f"files-{key}.lock")

    def _entry_path(self, key: str) -> Path:
        if not KEY_PATTERN.fullmatch(key):
            raise ValueError(f"{key!r} is not an artefact key")
        return self.root / "artefacts" / key[3:5] / f"{key}.json"

    def _files(self, key: str) -> set[Path]:
        """The index entry and all data files of ``key``."""
        return set(self._entry_path(key).parent.glob(f"{key}.*"))

    def _keys(self) -> list[str]:
        """Every key that has a file, sorted."""
        names = (path.name for path in (self.root / "artefacts").glob("*/b2-*"))
        return sorted({found[0] for name in names if (found := KEY_PATTERN.match(name))})

    def _created_since(self, key: str, created: str) -> bool:
        """True if ``key`` was stored at or after ``created``, or is being stored now."""
        entry = _read_entry(self._entry_path(key))
        if isinstance(entry, IndexEntry):
            return entry.created >= created[:19]
        return not all(is_abandoned(path) for path in self._files(key))

    def _leftovers(self) -> Iterator[Path]:
        """Abandoned temporary files, and the files in quarantine."""
        for folder in self._folders():
            yield from abandoned_files(folder)
        yield from (self.root / "quarantine").glob("*")

    def _folders(self) -> Iterator[Path]:
        """All folders in which temporary files of the store can be."""
        yield from (self.root, self.root / "runs", *(self.root / "artefacts").glob("*"))

    def _read_verified(self, key: str) -> Artefact | str | None:
        """The artefact, ``None`` if there is none, or a text that says what is wrong with it."""
        entry = _read_entry(self._entry_path(key))
        if not isinstance(entry, IndexEntry):
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

    def _quarantine(self, key: str, reason: str) -> DamagedArtefact:
        """Move the files of ``key`` to the quarantine folder.

        A file that cannot be moved stays where it is and is reported again next time.
        """
        folder = self.root / "quarantine"
        moved = None
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            for path in sorted(self._files(key), key=lambda path: path.suffix != ".json"):
                path.replace(folder / path.name)
                moved = folder / path.name
        return DamagedArtefact(key, reason, moved)


def _to_json_data(value: Any, where: str) -> Any:
    """``value`` as JSON data; ``where`` is its path for error messages, e.g. ``value.fps``."""
    if isinstance(value, Enum):
        return _to_json_data(value.value, where)
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
        return {name: _to_json_data(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_data(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(f"{where} is a {type(value).__name__}, expected plain data")


def _serialise(tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> bytes:
    """A safetensors file in memory. Artefacts are latents and embeddings of tens of megabytes."""
    import torch
    from safetensors.torch import save

    owned = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    text = json.dumps(dict(meta), ensure_ascii=False, allow_nan=False)
    data: bytes = save(owned, {"latent_ladder": text})
    return data


def _read_entry(path: Path) -> IndexEntry | str | None:
    """The entry, ``None`` if there is none, or a text that says why it cannot be used."""
    try:
        entry = IndexEntry(**json.loads(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{path.name} cannot be read: {error.strerror}"
    except (ValueError, TypeError):
        return f"{path.name} is not an index entry"
    return entry if path.stem == entry.key else f"{path.name} is the entry of {entry.key}"


def _expired_runs(runs: list[RunRecord], days: float | None, last: int | None) -> list[RunRecord]:
    """The runs (newest first) that neither rule keeps. A run in progress is always kept."""
    limit = datetime.now(UTC) - timedelta(days=days) if days is not None else None
    return [
        run
        for i, run in enumerate(runs)
        if run.status != "running"
        and not (last is not None and i < last)
        and not (limit is not None and run.created_at >= limit)
    ]


def _folders_around(output: Path) -> Iterator[Path]:
    """The folders in which the run that writes to ``output`` has temporary files."""
    yield output.parent
    if "%" in output.name:  # the folder of an image sequence is replaced as a whole
        yield output.parent.absolute().parent
    if output.is_dir():  # drafts and sweeps
        yield from (output, output / "points")


def _bytes_on_disk(paths: Iterable[Path]) -> int:
    total = 0
    for path in paths:
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _delete_all(paths: Iterable[Path]) -> None:
    for path in paths:
        # On Windows a file that is being read cannot be deleted; the next prune deletes it.
        delete(path)
