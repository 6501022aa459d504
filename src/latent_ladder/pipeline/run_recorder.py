"""Record of a run under way, saved at every change and closed with how the run ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from latent_ladder.errors import Cancelled, StoreError
from latent_ladder.storage.run_records import DraftRecord, RunLog, RunRecord, StageRecord


class RunRecorder:
    """Keeps the record of one run up to date on disk.

    ``save_every_s`` limits how often a running record is written: those of many drafts are long.
    A record that cannot be saved any more (a full disk) does not end the run: ``on_failure`` gets
    the message, once.
    """

    def __init__(
        self, log: RunLog, command: str, request: Mapping[str, Any], save_every_s: float = 0.0
    ) -> None:
        self._log, self._save_every_s, self._saved = log, save_every_s, 0.0
        self._failed = False
        self.on_failure: Callable[[str], None] = _ignore
        self._record = log.start(command, request)

    @property
    def record(self) -> RunRecord:
        """The record as it is now."""
        return self._record

    def update(self, **fields: Any) -> None:
        """Replace fields of the record."""
        self._set(replace(self._record, **fields))

    def add_stage(self, stage: StageRecord) -> None:
        """Add a finished stage."""
        self._set(self._record.with_stage(stage))

    def set_draft(self, draft: DraftRecord) -> None:
        """Replace the draft of that number."""
        self._set(self._record.with_draft(draft))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Close the record as done, cancelled or failed at the end of the ``with`` block."""
        try:
            yield
        except (Cancelled, KeyboardInterrupt):
            self.update(status="cancelled")
            raise
        except BaseException as error:
            self.update(status="failed", error=str(error))
            raise
        self.update(status="done")

    def _set(self, record: RunRecord) -> None:
        self._record, now = record, time.monotonic()
        if record.status != "running" or now - self._saved >= self._save_every_s:
            self._saved = now
            try:
                self._log.save(record)
            except StoreError as error:
                self._report(error)

    def _report(self, error: StoreError) -> None:
        if not self._failed:
            self._failed = True
            self.on_failure(f"{error.message}; the run goes on, but `ladder runs` may not show it")


def _ignore(_: str) -> None:
    pass
