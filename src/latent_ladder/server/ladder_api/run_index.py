"""Index of the run records in SQLite: lists of thousands of runs without reading their files.

It is made from the records and can be made again at any time. A record that changed is read again
when the index is used the next time.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.server.ladder_api.run_documents import build_document, is_shown, kind_of
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.run_records import RunRecord
from latent_ladder.storage.temporary_files import PART_PREFIX

VERSION = 3
"""Raised when documents change: an index of another version is made again."""
SETTLED_NS = 2_000_000_000
"""Age of the folder's last change from which its time is sure to differ after the next one."""
_OLD_TABLES = """
DROP TABLE IF EXISTS runs; DROP TABLE IF EXISTS keys; DROP TABLE IF EXISTS documents;
"""
_TABLES = """
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, shown INTEGER NOT NULL, running INTEGER NOT NULL,
    kind TEXT NOT NULL, created TEXT NOT NULL, words TEXT NOT NULL, preset TEXT NOT NULL,
    seeds TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (run TEXT PRIMARY KEY, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS keys (run TEXT NOT NULL, key TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS keys_by_run ON keys (run);
CREATE INDEX IF NOT EXISTS keys_by_key ON keys (key);
"""


@dataclass(frozen=True)
class RunFilter:
    """The runs that are wanted; ``starred`` are ids, if only those with a star are."""

    text: str = ""
    preset: str = ""
    seed: int | None = None
    kind: str = ""
    since: str = ""
    until: str = ""
    starred: Sequence[str] | None = None

    def clauses(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Conditions of SQL with their values."""
        for word in self.text.lower().split():
            yield "(instr(words, ?) > 0 OR id = ?)", (word, word)
        if self.preset:
            yield "preset = ?", (self.preset,)
        if self.seed is not None:
            yield "instr(seeds, ?) > 0", (f" {self.seed} ",)
        if self.kind:
            yield "kind = ?", (self.kind,)
        if self.since:
            yield "created >= ?", (self.since,)
        if self.until:
            yield "created < ?", (self.until,)
        if self.starred is not None:
            yield f"id IN ({','.join('?' * len(self.starred))})", tuple(self.starred)


class RunIndex:
    """The index of one store. Any thread may use it."""

    def __init__(self, store: Store, path: Path) -> None:
        self._store, self._path = store, path
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None
        self._states: dict[str, str] = {}
        self._seen_ns: int | None = None

    def page(
        self, wanted: RunFilter, limit: int, before: str | None
    ) -> tuple[list[dict[str, Any]], int]:
        """The newest documents that match, from the one before ``before`` on; and their number."""
        conditions = [*wanted.clauses(), ("shown = 1", ())]
        where = " AND ".join(text for text, _ in conditions)
        values = [value for _, each in conditions for value in each]
        with self._lock:
            database = self._refreshed()
            query = f"SELECT count(*) FROM runs WHERE {where}"
            (total,) = database.execute(query, values).fetchone()
            query = (
                "SELECT document FROM runs JOIN documents ON run = id "
                f"WHERE {where} AND id < ? ORDER BY id DESC LIMIT ?"
            )
            rows = database.execute(query, [*values, before or "~", limit]).fetchall()
        return [json.loads(text) for (text,) in rows], int(total)

    def find(self, run_id: str) -> dict[str, Any] | None:
        """The document of one run, shown in lists or not."""
        with self._lock:
            row = (
                self._refreshed()
                .execute("SELECT document FROM documents WHERE run = ?", (run_id,))
                .fetchone()
            )
        return None if row is None else json.loads(row[0])

    def keys_only_of(self, run_id: str) -> list[str]:
        """The artefacts that no other run refers to."""
        query = (
            "SELECT DISTINCT key FROM keys AS own WHERE run = ? AND NOT EXISTS "
            "(SELECT 1 FROM keys WHERE key = own.key AND run <> own.run)"
        )
        with self._lock:
            return [key for (key,) in self._refreshed().execute(query, (run_id,))]

    def runs_that_share(self, run_id: str) -> list[str]:
        """Other runs that refer to artefacts of this one, the newest first."""
        query = (
            "SELECT DISTINCT other.run FROM keys AS own JOIN keys AS other ON other.key = own.key "
            "WHERE own.run = ? AND other.run <> own.run ORDER BY other.run DESC"
        )
        with self._lock:
            return [run for (run,) in self._refreshed().execute(query, (run_id,))]

    def drafts_of(self, run_id: str, key: str) -> str | None:
        """The newest earlier session of drafts that made the artefact ``key``."""
        query = (
            "SELECT runs.id FROM keys JOIN runs ON runs.id = keys.run WHERE key = ? "
            "AND runs.kind = 'drafts' AND runs.id < ? ORDER BY runs.id DESC LIMIT 1"
        )
        with self._lock:
            row = self._refreshed().execute(query, (key, run_id)).fetchone()
        return None if row is None else str(row[0])

    def has_running(self) -> bool:
        """True while a run of some process is under way."""
        with self._lock:
            query = "SELECT 1 FROM runs WHERE running = 1"
            return self._refreshed().execute(query).fetchone() is not None

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._database is not None:
                self._database.close()
            self._database = None

    # --- keeping it up to date ----------------------------------------------------------------

    def _refreshed(self) -> sqlite3.Connection:
        """The database, with the records as they are now."""
        database = self._database
        if database is None:
            database = self._database = self._open()
            rows = database.execute("SELECT id, state FROM runs").fetchall()
            self._states = {str(run): str(state) for run, state in rows}
        running = database.execute("SELECT id FROM runs WHERE running = 1").fetchall()
        changed_ns = _changed_ns(self._store.runs.folder)
        if not running and changed_ns is not None and changed_ns == self._seen_ns:
            return database
        # records are replaced as files, which changes the time of their folder
        is_settled = changed_ns is not None and time.time_ns() - changed_ns > SETTLED_NS
        self._seen_ns = changed_ns if is_settled else None
        for (run,) in running:  # one that was killed has the same record as before
            self._states[run] = ""
        found = dict(_states_of(self._store.runs.folder))
        changed = [run for run, state in found.items() if self._states.get(run) != state]
        gone = [run for run in self._states if run not in found]
        if changed or gone:
            with database:
                for run in (*changed, *gone):
                    database.execute("DELETE FROM keys WHERE run = ?", (run,))
                    database.execute("DELETE FROM documents WHERE run = ?", (run,))
                    database.execute("DELETE FROM runs WHERE id = ?", (run,))
                for run in changed:
                    self._add(database, run, found[run])
            for run in gone:
                del self._states[run]
            self._states |= {run: found[run] for run in changed}
        return database

    def _add(self, database: sqlite3.Connection, run: str, state: str) -> None:
        record = self._store.runs.read(run)
        if not isinstance(record, RunRecord):
            return  # damaged, or removed just now
        document = build_document(record)
        texts = [document["prompt"], document["title"], *(d.prompt for d in record.drafts)]
        words = " ".join(texts).lower()
        seeds = {document["seed"], *(clip["seed"] for clip in document["clips"])}
        row = (
            run,
            state,
            int(is_shown(record)),
            int(record.status == "running"),
            kind_of(record),
            record.created,
            words,
            document["preset"] or "",
            f" {' '.join(map(str, sorted(s for s in seeds if isinstance(s, int))))} ",
        )
        database.execute(f"INSERT INTO runs VALUES ({','.join('?' * len(row))})", row)
        database.execute("INSERT INTO documents VALUES (?, ?)", (run, json.dumps(document)))
        keys = [(run, key) for key in record.keys]
        database.executemany("INSERT INTO keys VALUES (?, ?)", keys)

    def _open(self) -> sqlite3.Connection:
        """The database; one that is damaged, of another version or not writable is replaced."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            return _connect(str(self._path))
        except (OSError, sqlite3.OperationalError):
            return _connect(":memory:")  # a full disk or one that cannot be written
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                with suppress(OSError):
                    self._path.with_name(self._path.name + suffix).unlink()
            return _connect(str(self._path))


def _connect(path: str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")  # it can be made again
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != VERSION:
            database.executescript(_OLD_TABLES)
            database.execute(f"PRAGMA user_version = {VERSION}")
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database


def _changed_ns(folder: Path) -> int | None:
    """The time of the last change of a folder; ``None`` if there is none."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None


def _states_of(folder: Path) -> Iterator[tuple[str, str]]:
    """Id, and time and size of the file, of every record."""
    try:
        entries = os.scandir(folder)
    except OSError:
        return
    with entries:
        for entry in entries:
            if entry.name.endswith(".json") and not entry.name.startswith(PART_PREFIX):
                with suppress(OSError):
                    status = entry.stat()
                    yield entry.name[:-5], f"{status.st_mtime_ns}-{status.st_size}"


def stage_rows(record: RunRecord) -> Iterator[Mapping[str, Any]]:
    """The stages of a record as plain data."""
    for stage in record.stages:
        yield {
            "name": stage.stage,
            "key": stage.key,
            "seconds": round(stage.seconds, 3),
            "peak_bytes": stage.peak_memory_bytes,
            "reused": stage.reused,
            "memory": stage.memory,
        }
