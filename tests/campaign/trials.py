"""What a trial is, and how the trials of all kinds are run and counted."""

from __future__ import annotations

import random
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from latent_ladder.errors import LadderError

SLOWEST_S = 20.0
"""A single trial that takes longer is a fault: an input that stops the program is an attack."""
MESSAGE_CHARACTERS = 4000

Trial = Callable[[random.Random], str]
"""One trial; returns "ok" or "refused", raises for anything else."""


@dataclass(frozen=True)
class Kind:
    """A kind of trials: ``opened(folder)`` prepares them, ``few`` and ``many`` are their counts.

    A trial that takes longer than ``slowest_s`` is a fault.
    """

    name: str
    opened: Callable[[Path], AbstractContextManager[Trial]]
    few: int
    many: int
    slowest_s: float = SLOWEST_S


@dataclass
class Tally:
    """Counts of one kind, and its faults by seed."""

    kind: str
    tried: int = 0
    ok: int = 0
    refused: int = 0
    seconds: float = 0.0
    faults: dict[int, str] = field(default_factory=dict)


def refused(error: LadderError) -> str:
    """The outcome "refused", after a check that the message is one for people."""
    assert error.message.strip(), "an error without a message"
    assert len(error.message) < MESSAGE_CHARACTERS, f"a message of {len(error.message)} characters"
    assert "Traceback" not in error.message, error.message
    return "refused"


def run_kind(kind: Kind, count: int, seed: int, folder: Path) -> Tally:
    """Run ``count`` trials; those of equal ``seed`` are equal."""
    tally, began = Tally(kind.name), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    with kind.opened(folder) as trial:
        for number in range(count):
            tally.tried += 1
            outcome = _run_trial(
                trial, random.Random(f"{kind.name}-{seed}-{number}"), kind.slowest_s
            )
            if outcome == "ok":
                tally.ok += 1
            elif outcome == "refused":
                tally.refused += 1
            else:
                tally.faults[number] = outcome
    tally.seconds = time.monotonic() - began
    return tally


def _run_trial(trial: Trial, rng: random.Random, slowest_s: float) -> str:
    began = time.monotonic()
    try:
        outcome = trial(rng)
    except Exception as error:  # noqa: BLE001  any exception is what is looked for
        return "".join(traceback.format_exception(error))
    took = time.monotonic() - began
    return outcome if took < slowest_s else f"took {took:.1f} s"


def table(tallies: Mapping[str, Tally]) -> Iterator[str]:
    """The lines of the table of all counts."""
    yield f"{'kind':<12} {'tried':>7} {'read':>7} {'refused':>8} {'faults':>7} {'seconds':>8}"
    for tally in tallies.values():
        yield (
            f"{tally.kind:<12} {tally.tried:>7} {tally.ok:>7} {tally.refused:>8} "
            f"{len(tally.faults):>7} {tally.seconds:>8.1f}"
        )
