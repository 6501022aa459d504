"""Unfinished runs of a request that leaves its seed open: the same command takes them up again.

A run that picked its seed and was then interrupted has stored stages that only that seed can use.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_ladder.request.model import Request
from latent_ladder.storage.run_records import RunLog, RunRecord

UNFINISHED = ("interrupted", "cancelled", "failed")
"""Statuses of a run that ended early."""

SEARCHED_RUNS = 500
"""Records that are read, from the newest on; more would delay the start."""


def find_unfinished(runs: RunLog, request: Request, kind: str = "clip") -> RunRecord | None:
    """The newest unfinished run whose request equals ``request`` but for the seed.

    A run that another one finished later, with the same seed, does not count, and neither does one
    that is still running. ``kind`` is that of the record.
    """
    wanted, finished = _without_seed(request.to_dict()), set()
    for record in runs.newest(SEARCHED_RUNS):
        if record.kind != kind or _without_seed(record.request) != wanted:
            continue
        seed = record.request.get("seed")
        if record.status == "done":
            finished.add(seed)
        elif record.status in UNFINISHED and seed not in finished:
            return record
    return None


def _without_seed(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if name != "seed"}
