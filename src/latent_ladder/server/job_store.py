"""Persistent job queue and history, in one SQLite file.

SQLite's journal makes every change complete or absent, however the process ends. A full disk loses
no finished job: a file next to the database reserves room for the entries of some more jobs, and
entries for which there is no room even so stay in memory until there is. This module knows no HTTP
and no graphs: prompts and history entries are JSON text here.

Jobs of all kinds share one order. ComfyUI's interfaces read graphs only; ``queued_jobs``,
``finished_jobs`` and ``find`` read all kinds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latent_ladder.errors import StoreError
from latent_ladder.storage.atomic_write import free_bytes, readable_size

MAX_HISTORY = 10_000
"""History entries that are kept, as in ComfyUI; older ones are deleted."""

RESERVE_BYTES = 2**20
"""Room that is kept for history entries on a full disk."""

logger = logging.getLogger(__name__)

_TABLES = """
CREATE TABLE IF NOT EXISTS pending (
    turn INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
    number REAL NOT NULL, item TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    turn INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL,
    entry TEXT NOT NULL, summary TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS counter (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1), next INTEGER NOT NULL);
INSERT OR IGNORE INTO counter VALUES (1, 0);
CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS used_keys (key TEXT PRIMARY KEY, job TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS uploads (
    hash TEXT PRIMARY KEY, place TEXT NOT NULL, size INTEGER NOT NULL, modified INTEGER NOT NULL);
"""
_PENDING_ITEMS = "SELECT item, kind, paused FROM pending ORDER BY number, turn"
GRAPH = "graph"
"""Kind of a job that runs a ComfyUI graph; other kinds are requests (:mod:`latent_ladder.jobs`)."""
REQUEST = "request_job"
"""Key of a checked request in the extra data of its job."""
_ADDED_COLUMNS = (
    ("pending", "kind", "TEXT NOT NULL DEFAULT 'graph'"),
    ("pending", "paused", "INTEGER NOT NULL DEFAULT 0"),
    ("history", "kind", "TEXT NOT NULL DEFAULT 'graph'"),
)
"""Columns that databases of earlier versions do not have."""


@dataclass(frozen=True)
class Job:
    """A prompt in the queue. The smallest ``number`` is first; ``outputs`` are ids of nodes.

    A job of another ``kind`` than a graph has no prompt; its request is in ``extra``. A ``paused``
    job keeps its place, and later ones run before it.
    """

    number: float
    id: str
    prompt: Mapping[str, Any]
    extra: Mapping[str, Any]
    outputs: tuple[str, ...]
    kind: str = GRAPH
    paused: bool = False

    @property
    def client(self) -> str | None:
        """Id of the client that gets the job's messages."""
        client_id = self.extra.get("client_id")
        return client_id if isinstance(client_id, str) else None

    @property
    def checked(self) -> Mapping[str, Any]:
        """The summary of a checked request (``jobs.planning.check_job``), empty for a graph."""
        found: Mapping[str, Any] = self.extra.get(REQUEST, {})
        return found

    @property
    def workflow(self) -> Any:
        """The workflow of the client's editor, if the client sent it."""
        info = self.extra.get("extra_pnginfo")
        return info.get("workflow") if isinstance(info, Mapping) else None

    @property
    def created_ms(self) -> int:
        """Time when the job was queued, in milliseconds since 1970."""
        return int(self.extra.get("create_time", 0))

    def with_number(self, number: float) -> Job:
        """The same job at another place in the queue."""
        return replace(self, number=number)

    def item(self) -> list[Any]:
        """The job in the form of ComfyUI's ``/queue`` and ``/history``."""
        return [self.number, self.id, self.prompt, self.extra, list(self.outputs)]


@dataclass(frozen=True)
class StoredUpload:
    """An uploaded file whose content is known: its hash, and where it was when it had that."""

    hash: str
    place: str
    size: int
    modified_ns: int


@dataclass(frozen=True)
class FinishedJob:
    """A job of the history with its entry and its summary."""

    id: str
    kind: str
    entry: Mapping[str, Any]
    summary: Mapping[str, Any]


class JobStore:
    """Queue and history of one server, for one thread. Close it at the end.

    ``damaged_copy`` is the new path of a damaged file that was replaced, else empty. ``unsaved``
    are finished jobs, by id, whose entries and summaries the disk had no room for; they are in the
    history already, and not in the queue.
    """

    def __init__(self, path: Path, max_history: int = MAX_HISTORY) -> None:
        """Raises :class:`StoreError` if ``path`` cannot be opened or another server uses it."""
        self._max_history = max_history
        self.journal_folder = path.with_suffix(".journals")
        self.unsaved: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
        self._path, self._reserve = path, path.with_suffix(".reserve")
        self.damaged_copy = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = self._open(path)
            self._fill_reserve()
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreError(
                f"{path} cannot be opened: {error}",
                "another server may be using it: stop that one, or use another --port or --store",
            ) from error

    def _open(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.damaged_copy = str(path.with_suffix(f".damaged-{int(time.time())}"))
            path.replace(self.damaged_copy)
            for suffix in ("-wal", "-shm"):
                with suppress(OSError):
                    path.with_name(path.name + suffix).unlink()
            return _connect(path)

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction. Raises :class:`StoreError` if it cannot be written; nothing changed then.

        A full disk gives ``SQLITE_FULL``, a quota or a limit of the file's size an I/O error.
        """
        try:
            with self._database as database:
                yield database
        except sqlite3.OperationalError as error:
            free = readable_size(free_bytes(self._path.parent))
            raise StoreError(
                f"the queue cannot be written to {self._path.parent}: {error}; {free} are free",
                "free some space there; the server goes on",
            ) from error

    def _fill_reserve(self) -> None:
        """Make the reserve again; without room for it the store works as well, until it is full."""
        try:
            if not self._reserve.exists() or self._reserve.stat().st_size < RESERVE_BYTES:
                self._reserve.write_bytes(bytes(RESERVE_BYTES))
        except OSError:
            self._free_reserve()

    def _free_reserve(self) -> None:
        with suppress(OSError):
            self._reserve.unlink(missing_ok=True)

    # --- queue --------------------------------------------------------------------------------

    def journal_path(self, job_id: str) -> Path:
        """Path of the journal of the files that a job writes."""
        return self.journal_folder / f"{hashlib.sha256(job_id.encode()).hexdigest()[:32]}.jsonl"

    def next_number(self) -> int:
        """The number for the next prompt; it counts up from 0."""
        with self._writing() as database:
            update = "UPDATE counter SET next = next + 1 RETURNING next"
            (number,) = database.execute(update).fetchone()
        return int(number) - 1

    def add(self, job: Job) -> bool:
        """Queue a job; ``False`` if a job with its id is queued already."""
        text = json.dumps(job.item(), separators=(",", ":"))
        self.save_unsaved()
        with self._writing() as database:
            done = database.execute(
                "INSERT OR IGNORE INTO pending (id, number, item, kind, paused) "
                "VALUES (?, ?, ?, ?, ?)",
                (job.id, float(job.number), text, job.kind, int(job.paused)),
            )
        return done.rowcount == 1

    def replace(self, job: Job) -> None:
        """Write a queued job again: another place, paused or not."""
        text = json.dumps(job.item(), separators=(",", ":"))
        with self._writing() as database:
            database.execute(
                "UPDATE pending SET number = ?, item = ?, paused = ? WHERE id = ?",
                (float(job.number), text, int(job.paused), job.id),
            )

    def setting(self, name: str) -> str | None:
        """A stored setting of the queue."""
        query = "SELECT value FROM settings WHERE name = ?"
        row = self._database.execute(query, (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, name: str, value: str) -> None:
        """Store a setting of the queue."""
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (name, value))

    def next_job(self) -> Job | None:
        """The first job of any kind that is not paused. It stays queued until :meth:`finish`."""
        return next((job for job in self.queued_jobs() if not job.paused), None)

    def queued_jobs(self) -> Iterator[Job]:
        """The unfinished jobs of all kinds in the order of the queue."""
        rows = self._database.execute(_PENDING_ITEMS).fetchall()
        jobs = (_parse_job(*row) for row in rows)
        return (job for job in jobs if job.id not in self.unsaved)

    def pending_jobs(self) -> Iterator[Job]:
        """The unfinished graphs in the order of the queue."""
        return (job for job in self.queued_jobs() if job.kind == GRAPH)

    def count(self, kind: str | None = GRAPH) -> int:
        """Number of unfinished jobs of a kind (``None``: of all)."""
        query = "SELECT id FROM pending WHERE ? IS NULL OR kind = ?"
        rows = self._database.execute(query, (kind, kind)).fetchall()
        return sum(job_id not in self.unsaved for (job_id,) in rows)

    def position_of(self, job_id: str) -> int:
        """Number of jobs of all kinds before a queued one."""
        query = (
            "SELECT count(*) FROM pending AS other JOIN pending AS own ON own.id = ? "
            "WHERE other.number < own.number "
            "OR (other.number = own.number AND other.turn < own.turn)"
        )
        (count,) = self._database.execute(query, (job_id,)).fetchone()
        return int(count)

    def is_pending(self, job_id: str) -> bool:
        """True if a job is queued or running."""
        query = "SELECT 1 FROM pending WHERE id = ?"
        if job_id in self.unsaved:
            return False
        return self._database.execute(query, (job_id,)).fetchone() is not None

    def pending_job(self, job_id: str) -> Job | None:
        """A queued or running graph."""
        found = self.queued_job(job_id)
        return found if found is not None and found.kind == GRAPH else None

    def queued_job(self, job_id: str) -> Job | None:
        """A queued or running job of any kind."""
        if job_id in self.unsaved:
            return None
        query = "SELECT item, kind, paused FROM pending WHERE id = ?"
        row = self._database.execute(query, (job_id,)).fetchone()
        return None if row is None else _parse_job(*row)

    def remove_pending(self, ids: Iterable[str] | None, running: str | None) -> None:
        """Remove jobs from the queue (``None``: all graphs), except the ``running`` one."""
        with self._writing() as database:
            if ids is None:
                database.execute(
                    "DELETE FROM pending WHERE kind = 'graph' AND id IS NOT ?", (running,)
                )
            else:
                database.executemany(
                    "DELETE FROM pending WHERE id = ? AND id IS NOT ?",
                    [(job_id, running) for job_id in ids],
                )

    # --- history ------------------------------------------------------------------------------

    def finish(self, job_id: str, entry: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Move a job from the queue to the history, in one transaction.

        Never fails: on a full disk the reserve is used, then memory (``unsaved``).
        """
        self.unsaved[job_id] = (entry, summary)
        if not self.save_unsaved():
            self._free_reserve()
            self.save_unsaved()

    def save_unsaved(self) -> bool:
        """Write the entries that are only in memory; ``False`` if there is no room for all."""
        for job_id, (entry, summary) in list(self.unsaved.items()):
            try:
                self._write_finished(job_id, entry, summary)
            except StoreError as error:
                logger.warning("%s", error.message)
                return False
            del self.unsaved[job_id]
        return True

    def _write_finished(
        self, job_id: str, entry: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> None:
        texts = (json.dumps(entry, separators=(",", ":")), json.dumps(summary))
        with self._writing() as database:
            database.execute("DELETE FROM pending WHERE id = ?", (job_id,))
            database.execute("DELETE FROM history WHERE id = ?", (job_id,))
            database.execute(
                "INSERT INTO history (id, entry, summary, kind) VALUES (?, ?, ?, ?)",
                (job_id, *texts, _kind_of(entry)),
            )
            database.execute(
                "DELETE FROM history WHERE turn IN "
                "(SELECT turn FROM history ORDER BY turn DESC LIMIT -1 OFFSET ?)",
                (self._max_history,),
            )

    def history(self, max_items: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Entries by id, oldest first: ``max_items`` from ``offset``, the newest if negative."""
        query = "SELECT count(*) FROM history WHERE kind = 'graph'"
        (total,) = self._database.execute(query).fetchone()
        count = total if max_items is None else max(max_items, 0)
        start = offset if offset >= 0 else max(total - count, 0)
        rows = self._database.execute(
            "SELECT id, entry FROM history WHERE kind = 'graph' ORDER BY turn LIMIT ? OFFSET ?",
            (count, start),
        )
        found = {job_id: json.loads(text) for job_id, text in rows.fetchall()}
        unsaved = {i: dict(entry) for i, (entry, _) in self.unsaved.items()}
        return found | {i: entry for i, entry in unsaved.items() if _kind_of(entry) == GRAPH}

    def entry(self, job_id: str) -> dict[str, Any] | None:
        """The history entry of one graph."""
        found = self.find_finished(job_id)
        return None if found is None or found.kind != GRAPH else dict(found.entry)

    def summaries(self) -> list[dict[str, Any]]:
        """Summaries of finished jobs for ``/api/jobs``, oldest first."""
        query = "SELECT summary FROM history WHERE kind = 'graph' ORDER BY turn"
        return [
            *(json.loads(text) for (text,) in self._database.execute(query).fetchall()),
            *(dict(text) for entry, text in self.unsaved.values() if _kind_of(entry) == GRAPH),
        ]

    def finished_jobs(self, limit: int, before: str | None = None) -> list[FinishedJob]:
        """The newest ``limit`` finished jobs of all kinds, or those that ended before ``before``.

        The newest is first.
        """
        query = (
            "SELECT id, kind, entry, summary FROM history WHERE turn < coalesce("
            "(SELECT turn FROM history WHERE id = ?), 9e15) ORDER BY turn DESC LIMIT ?"
        )
        rows = self._database.execute(query, (before, limit)).fetchall()
        found = [FinishedJob(i, k, json.loads(e), json.loads(s)) for i, k, e, s in rows]
        if before is not None:
            return found
        unsaved = [FinishedJob(i, _kind_of(e), e, s) for i, (e, s) in self.unsaved.items()]
        return [*reversed(unsaved), *found]

    def find_finished(self, job_id: str) -> FinishedJob | None:
        """A finished job of any kind."""
        if job_id in self.unsaved:
            entry, summary = self.unsaved[job_id]
            return FinishedJob(job_id, _kind_of(entry), entry, summary)
        query = "SELECT kind, entry, summary FROM history WHERE id = ?"
        row = self._database.execute(query, (job_id,)).fetchone()
        if row is None:
            return None
        return FinishedJob(job_id, row[0], json.loads(row[1]), json.loads(row[2]))

    def summary(self, job_id: str) -> dict[str, Any] | None:
        """Summary of one finished graph."""
        found = self.find_finished(job_id)
        return None if found is None or found.kind != GRAPH else dict(found.summary)

    def delete_history(self, ids: Sequence[str] | None) -> None:
        """Delete history entries (``None``: those of all graphs)."""
        self.save_unsaved()
        with self._writing() as database:
            if ids is None:
                database.execute("DELETE FROM history WHERE kind = 'graph'")
            else:
                database.executemany("DELETE FROM history WHERE id = ?", [(i,) for i in ids])

    # --- keys and uploads of clients ------------------------------------------------------------

    def use_key(self, key: str, job_id: str) -> bool:
        """Remember a client's key for one submission; ``False`` if it was used before."""
        with self._writing() as database:
            done = database.execute("INSERT OR IGNORE INTO used_keys VALUES (?, ?)", (key, job_id))
            database.execute(
                "DELETE FROM used_keys WHERE rowid IN "
                "(SELECT rowid FROM used_keys ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
                (self._max_history,),
            )
        return done.rowcount == 1

    def job_of_key(self, key: str) -> str | None:
        """The job that was submitted with a client's key."""
        row = self._database.execute("SELECT job FROM used_keys WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def release_key(self, key: str) -> None:
        """Forget a key whose submission was refused."""
        with self._writing() as database:
            database.execute("DELETE FROM used_keys WHERE key = ?", (key,))

    def add_upload(self, upload: StoredUpload) -> None:
        """Remember the hash of an uploaded file."""
        row = (upload.hash, upload.place, upload.size, upload.modified_ns)
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO uploads VALUES (?, ?, ?, ?)", row)

    def find_upload(self, *, hash: str = "", place: str = "") -> StoredUpload | None:
        """The uploaded file with a hash, or at a place."""
        row = self._database.execute(
            "SELECT hash, place, size, modified FROM uploads WHERE hash = ? OR place = ?",
            (hash, place),
        ).fetchone()
        return None if row is None else StoredUpload(*row)

    def remove_upload(self, place: str) -> None:
        """Forget the file at a place."""
        with self._writing() as database:
            database.execute("DELETE FROM uploads WHERE place = ?", (place,))


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=0.5)
    try:
        # One process at a time: a second server on the same file fails when it opens it.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_TABLES)
        for table, column, form in _ADDED_COLUMNS:
            known = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            if column not in known:
                database.execute(f"ALTER TABLE {table} ADD COLUMN {column} {form}")
    except BaseException:
        database.close()
        raise
    return database


def _parse_job(text: str, kind: str, paused: int) -> Job:
    number, job_id, prompt, extra, outputs = json.loads(text)
    return Job(number, job_id, prompt, extra, tuple(outputs), kind, bool(paused))


def _kind_of(entry: Mapping[str, Any]) -> str:
    """The kind of the job of a history entry; those of graphs do not say it."""
    return str(entry.get("kind", GRAPH))


def is_queue_number(value: object) -> bool:
    """True if a client's ``number`` can order the queue: a finite number below 2**53."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**53 and math.isfinite(value)
