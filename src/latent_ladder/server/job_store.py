"""What survives a restart: the queue and the history, in one SQLite file.

SQLite's journal makes every change whole or absent, whatever kills the process. Knows nothing of
HTTP or of graphs; prompts and entries are JSON text here.
"""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.errors import StoreError

MAX_HISTORY = 10_000
"""Entries kept, as in ComfyUI; the oldest go."""

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
"""
_NEXT = "SELECT item FROM pending ORDER BY number, turn"


@dataclass(frozen=True)
class Job:
    """A prompt in the queue; ``number`` is its place (smallest first), ``wanted`` its outputs."""

    number: float
    id: str
    prompt: Mapping[str, Any]
    extra: Mapping[str, Any]
    wanted: tuple[str, ...]

    @property
    def client(self) -> str | None:
        """The client that is told how it goes."""
        given = self.extra.get("client_id")
        return given if isinstance(given, str) else None

    @property
    def workflow(self) -> Any:
        """The graph as the client's editor has it, if it sent it."""
        info = self.extra.get("extra_pnginfo")
        return info.get("workflow") if isinstance(info, Mapping) else None

    @property
    def created_ms(self) -> int:
        """When it was queued."""
        return int(self.extra.get("create_time", 0))

    def item(self) -> list[Any]:
        """As ComfyUI's ``/queue`` and ``/history`` show it."""
        return [self.number, self.id, self.prompt, self.extra, list(self.wanted)]


class Kept:
    """The queue and the history of one server. For one thread; close it at the end."""

    def __init__(self, path: Path, most: int = MAX_HISTORY) -> None:
        """Raises :class:`StoreError` where ``path`` cannot be opened or is a live server's."""
        self._most = most
        self.moved = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._base = self._opened(path)
        except (OSError, sqlite3.OperationalError) as error:
            raise StoreError(
                f"{path} cannot be opened: {error}",
                "another server may be using it: stop that one, or use another --port or --store",
            ) from error

    def _opened(self, path: Path) -> sqlite3.Connection:
        try:
            return _connect(path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError:
            self.moved = str(path.with_suffix(f".damaged-{int(time.time())}"))
            path.replace(self.moved)
            for side in ("-wal", "-shm"):
                with suppress(OSError):
                    path.with_name(path.name + side).unlink()
            return _connect(path)

    def close(self) -> None:
        """Release the file."""
        self._base.close()

    # --- the queue ----------------------------------------------------------------------------

    def next_number(self) -> int:
        """The number of the next prompt, counted up."""
        with self._base as base:
            (number,) = base.execute("UPDATE counter SET next = next + 1 RETURNING next").fetchone()
        return int(number) - 1

    def add(self, job: Job) -> bool:
        """Queue a job; ``False`` if its id waits already."""
        text = json.dumps(job.item(), separators=(",", ":"))
        with self._base as base:
            done = base.execute(
                "INSERT OR IGNORE INTO pending (id, number, item) VALUES (?, ?, ?)",
                (job.id, float(job.number), text),
            )
        return done.rowcount == 1

    def first(self) -> Job | None:
        """The job to do next, left where it is; the one under way is the first until finished."""
        row = self._base.execute(_NEXT + " LIMIT 1").fetchone()
        return None if row is None else _job(row[0])

    def pending(self) -> Iterator[Job]:
        """All jobs that are not finished, in their order."""
        return (_job(text) for (text,) in self._base.execute(_NEXT).fetchall())

    def count(self) -> int:
        """How many jobs are not finished."""
        (count,) = self._base.execute("SELECT count(*) FROM pending").fetchone()
        return int(count)

    def waits(self, job_id: str) -> bool:
        """Whether a job is in the queue, or under way."""
        found = self._base.execute("SELECT 1 FROM pending WHERE id = ?", (job_id,)).fetchone()
        return found is not None

    def drop(self, ids: Iterable[str] | None, but: str | None) -> None:
        """Take jobs out of the queue, all with ``None``; never ``but``, the one under way."""
        with self._base as base:
            if ids is None:
                base.execute("DELETE FROM pending WHERE id IS NOT ?", (but,))
            else:
                base.executemany(
                    "DELETE FROM pending WHERE id = ? AND id IS NOT ?", [(i, but) for i in ids]
                )

    # --- the history --------------------------------------------------------------------------

    def finish(self, job_id: str, entry: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
        """Move a job into the history, in one step."""
        texts = (json.dumps(entry, separators=(",", ":")), json.dumps(summary))
        with self._base as base:
            base.execute("DELETE FROM pending WHERE id = ?", (job_id,))
            base.execute("DELETE FROM history WHERE id = ?", (job_id,))
            base.execute(
                "INSERT INTO history (id, entry, summary) VALUES (?, ?, ?)", (job_id, *texts)
            )
            base.execute(
                "DELETE FROM history WHERE turn IN "
                "(SELECT turn FROM history ORDER BY turn DESC LIMIT -1 OFFSET ?)",
                (self._most,),
            )

    def history(self, most: int | None = None, offset: int = -1) -> dict[str, Any]:
        """Entries by id, oldest first.

        At most ``most`` from ``offset``; a negative offset means the newest.
        """
        (total,) = self._base.execute("SELECT count(*) FROM history").fetchone()
        count = total if most is None else max(most, 0)
        start = offset if offset >= 0 else max(total - count, 0)
        rows = self._base.execute(
            "SELECT id, entry FROM history ORDER BY turn LIMIT ? OFFSET ?", (count, start)
        )
        return {name: json.loads(text) for name, text in rows.fetchall()}

    def entry(self, job_id: str) -> dict[str, Any] | None:
        """One entry."""
        row = self._base.execute("SELECT entry FROM history WHERE id = ?", (job_id,)).fetchone()
        return None if row is None else json.loads(row[0])

    def summaries(self) -> list[dict[str, Any]]:
        """What ``/api/jobs`` says of finished jobs, oldest first."""
        rows = self._base.execute("SELECT summary FROM history ORDER BY turn")
        return [json.loads(text) for (text,) in rows.fetchall()]

    def forget(self, ids: Sequence[str] | None) -> None:
        """Remove entries, all with ``None``."""
        with self._base as base:
            if ids is None:
                base.execute("DELETE FROM history")
            else:
                base.executemany("DELETE FROM history WHERE id = ?", [(i,) for i in ids])


def _connect(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, timeout=0.5)
    try:
        # One owner at a time: a second server on the same file is refused when it opens it.
        base.execute("PRAGMA locking_mode = EXCLUSIVE")
        base.execute("PRAGMA journal_mode = WAL")
        base.execute("PRAGMA synchronous = NORMAL")
        base.executescript(_TABLES)
    except BaseException:
        base.close()
        raise
    return base


def _job(text: str) -> Job:
    number, job_id, prompt, extra, wanted = json.loads(text)
    return Job(number, job_id, prompt, extra, tuple(wanted))


def is_number(value: object) -> bool:
    """Whether a client's ``number`` can be a place in the queue."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < 2**53 and math.isfinite(value)
