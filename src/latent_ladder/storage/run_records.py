"""Run records: one small JSON file per run, replaced atomically after every stage.

A record contains the request, the artefact that each stage made or reused, and how the run ended.
This module knows nothing about the artefacts themselves; ``storage.artifact_store`` prunes them by
the keys in the records.
"""

from __future__ import annotations

import builtins
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from latent_ladder.errors import StoreError
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.temporary_files import PART_PREFIX

STATUSES = ("running", "done", "cancelled", "failed", "interrupted")
"""``interrupted`` is never written: it is a ``running`` record whose process no longer exists."""

KEY_PATTERN = re.compile(r"b2-[0-9a-f]{32}")
"""Pattern of an artefact key, to match or to search for in any text."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_EPOCH_S = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
_TICKS_PER_S = 32


@dataclass(frozen=True)
class StageRecord:
    """One finished stage of a run.

    ``seconds`` is its duration, ``peak_memory_bytes`` the measured peak of models and work, as a
    memory plan predicts it. ``memory`` describes the offload plan, empty where none was needed.
    """

    stage: str
    key: str
    reused: bool
    seconds: float
    peak_memory_bytes: int | None = None
    memory: str = ""


DRAFT_STATUSES = ("planned", "done", "failed")


@dataclass(frozen=True)
class DraftRecord:
    """One draft of a run, or one point of a sweep.

    ``prompt`` and ``seed`` are its own; a point of a sweep has ``sets`` instead, its fields as
    ``--set`` takes them. ``keys`` are all artefacts that it needs, the base stage's last.
    ``metrics`` is plain JSON data.
    """

    number: int
    prompt: str
    seed: int
    keys: tuple[str, ...] = ()
    status: str = "planned"
    reused: bool = False
    seconds: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunRecord:
    """One run. ``created`` is ISO 8601 in UTC, ``request`` plain JSON data.

    ``kind`` is "clip", "draft" (``drafts`` share the request, each with its own prompt and seed) or
    "sweep" (``drafts`` share the request, each with its own ``sets``). ``folders`` are the model
    folders that were searched. ``metrics`` is the result of ``ladder measure`` for the clip, if the
    run measured it.

    ``planned`` are the artefact keys that the run will need, known before it starts. They protect
    artefacts that the run is about to reuse from a prune in another process.
    """

    id: str
    created: str
    command: str
    request: Mapping[str, Any]
    status: str = "running"
    planned: tuple[str, ...] = ()
    stages: tuple[StageRecord, ...] = ()
    output: str | None = None
    warnings: tuple[str, ...] = ()
    error: str | None = None
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)
    kind: str = "clip"
    drafts: tuple[DraftRecord, ...] = ()
    folders: tuple[str, ...] = ()
    metrics: Mapping[str, Any] | None = None

    @property
    def keys(self) -> frozenset[str]:
        """All artefact keys in this record."""
        drafted = {key for draft in self.drafts for key in draft.keys}
        return frozenset(self.planned) | {stage.key for stage in self.stages} | drafted

    @property
    def created_at(self) -> datetime:
        """``created`` as a ``datetime``."""
        return datetime.fromisoformat(self.created)

    def with_draft(self, draft: DraftRecord) -> RunRecord:
        """A copy of this record with the draft of the same number replaced by ``draft``."""
        drafts = (draft if d.number == draft.number else d for d in self.drafts)
        return replace(self, drafts=tuple(drafts))

    def with_stage(self, stage: StageRecord) -> RunRecord:
        """A copy of this record with one more stage."""
        return replace(self, stages=(*self.stages, stage))


@dataclass(frozen=True)
class DamagedRun:
    """A run record that cannot be read. ``keys`` are the artefact keys found in its bytes."""

    path: Path
    reason: str
    keys: frozenset[str]


@dataclass(frozen=True)
class RunLog:
    """The run records in one folder, which is created when the first record is saved."""

    folder: Path

    def start(self, command: str, request: Mapping[str, Any]) -> RunRecord:
        """Save and return the record of a new run of this process."""
        while self._newest_id(run_id := _new_id(now := time.time())) >= run_id:
            pass  # ends with this tick of 1/32 s at the latest
        created = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
        return self.save(RunRecord(run_id, created, command, request))

    def save(self, record: RunRecord) -> RunRecord:
        """Write ``record`` to its file atomically and return it.

        Raises ``ValueError`` for an unknown status, :class:`StoreError` if it cannot be written.
        """
        if record.status not in STATUSES[:-1]:
            raise ValueError(f"status {record.status!r} is not one of {STATUSES[:-1]}")
        text = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False, indent=1)
        # a name that is not UTF-8 becomes a valid escape of JSON: \udcff
        data = text.encode("utf-8", "backslashreplace")
        with convert_write_errors(
            StoreError, f"the record of run {record.id}", self.folder, len(data)
        ):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(record.id), data)
        return record

    def list(self) -> tuple[list[RunRecord], list[DamagedRun]]:
        """All records, the newest first, and the files that could not be read."""
        records, damaged = [], []
        for path in self._newest_paths():
            found = _read(path)
            if isinstance(found, RunRecord):
                records.append(found)
            elif found is not None:
                damaged.append(found)
        return records, damaged

    def read(self, run_id: str) -> RunRecord | DamagedRun | None:
        """The record with exactly this id; ``None`` if there is none."""
        is_id = run_id.isascii() and run_id.isalnum()
        return _read(self._path(run_id)) if is_id else None

    def newest(self, limit: int) -> Iterator[RunRecord]:
        """The records that can be read, the newest first, of the newest ``limit`` files."""
        found = map(_read, self._newest_paths()[:limit])
        return (record for record in found if isinstance(record, RunRecord))

    def interrupted_outputs(self, newest: int = 50) -> Iterator[str]:
        """The outputs of runs whose process was killed, among the ``newest`` records."""
        for record in self.newest(newest):
            if record.status == "interrupted" and record.output:
                yield record.output

    def _newest_paths(self) -> builtins.list[Path]:
        """All records; a file that another process is writing, or left when killed, is none."""
        paths = self.folder.glob("*.json")
        return sorted((p for p in paths if not p.name.startswith(PART_PREFIX)), reverse=True)

    def find(self, name: str) -> RunRecord:
        """The run whose id starts with ``name``; ``"last"`` is the newest one.

        Raises :class:`StoreError` when no run, several runs or a damaged one match.
        """
        records, damaged = self.list()
        if name == "last" and records:
            return records[0]
        found = [record for record in records if record.id.startswith(name.lower())]
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(record.id for record in found[:5])
            raise StoreError(
                f"run {name!r} is not unique: {some}", hint="type more characters of the id"
            )
        for bad in damaged:
            if bad.path.stem.startswith(name.lower()):
                raise StoreError(f"run {bad.path.stem} is damaged: {bad.reason}")
        newest = f"the newest run is {records[0].id}" if records else "there are no runs yet"
        raise StoreError(f"there is no run {name!r} in {self.folder}", hint=newest)

    def remove(self, run_id: str) -> None:
        """Delete one record; its artefacts stay until the next prune."""
        with convert_write_errors(StoreError, f"the record of run {run_id}", self.folder):
            self._path(run_id).unlink(missing_ok=True)

    def _newest_id(self, run_id: str) -> str:
        """The last id of the same tick as ``run_id``, "" if there is none."""
        return max((path.stem for path in self.folder.glob(f"{run_id[:-1]}?.json")), default="")

    def _path(self, run_id: str) -> Path:
        return self.folder / f"{run_id}.json"


def _new_id(now_s: float) -> str:
    """Eight characters that are easy to type and sort by time: 1/32 s since 2026, one random."""
    ticks = int((now_s - _EPOCH_S) * _TICKS_PER_S)
    time_part = "".join(_ALPHABET[(ticks >> 5 * place) & 31] for place in range(6, -1, -1))
    return time_part + secrets.choice(_ALPHABET)


def _read(path: Path) -> RunRecord | DamagedRun | None:
    """The record in ``path``; ``None`` if another process has just removed it."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return DamagedRun(path, str(error), frozenset())
    try:
        record = _parse(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        keys = frozenset(KEY_PATTERN.findall(data.decode("utf-8", "replace")))
        return DamagedRun(path, f"not a run record ({error})", keys)
    gone = record.status == "running" and not _is_process_alive(record)
    return replace(record, status="interrupted") if gone else record


def _parse(data: dict[str, Any]) -> RunRecord:
    """The record in parsed JSON; fields of later versions are ignored.

    Raises ``ValueError``, ``TypeError``, ``KeyError`` or ``AttributeError`` for damaged data.
    """
    known = {f.name for f in fields(RunRecord)}
    stage_fields = {f.name for f in fields(StageRecord)}
    values = {name: value for name, value in data.items() if name in known}
    stages = [{n: v for n, v in stage.items() if n in stage_fields} for stage in data["stages"]]
    values["stages"] = tuple(StageRecord(**stage) for stage in stages)
    values["planned"] = tuple(values["planned"])
    values["folders"] = tuple(values.get("folders", ()))
    values["drafts"] = tuple(_parse_draft(draft) for draft in values.get("drafts", ()))
    values["warnings"] = tuple(values["warnings"])
    record = RunRecord(**values)
    record.created_at  # noqa: B018  raises ValueError for a malformed time
    if record.status not in STATUSES or not isinstance(record.pid, int):
        raise ValueError(f"status {record.status!r}, pid {record.pid!r}")
    return record


def _parse_draft(data: Mapping[str, Any]) -> DraftRecord:
    known = {f.name for f in fields(DraftRecord)}
    values = {name: value for name, value in data.items() if name in known}
    tuples = {"keys": tuple(values["keys"]), "sets": tuple(values.get("sets", ()))}
    draft = DraftRecord(**{**values, **tuples})
    if draft.status not in DRAFT_STATUSES or not isinstance(draft.number, int):
        raise ValueError(f"draft {draft.number!r}, status {draft.status!r}")
    return draft


def _is_process_alive(record: RunRecord) -> bool:
    """True if the run's process still exists, or is on another machine and cannot be checked."""
    import psutil

    if record.host != platform.node():
        return True
    try:
        started = psutil.Process(record.pid).create_time()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
    # A process that started after the run is another one that got the same process id.
    return bool(started <= record.created_at.timestamp() + 1.0)
