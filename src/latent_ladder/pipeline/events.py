"""What a run tells while it goes on. Plain values; whoever shows them decides how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class StageStarted:
    """Stage ``position`` (from 1) of ``of`` begins; ``steps`` 0 where it has none to count."""

    stage: str
    position: int
    of: int
    steps: int


@dataclass(frozen=True)
class StepDone:
    """``done`` of ``steps`` units of the stage: sampling steps, or frames while decoding.

    ``sigma`` is the noise level reached, where there is one.
    """

    stage: str
    done: int
    steps: int
    sigma: float | None = None


@dataclass(frozen=True)
class StageDone:
    """A stage has its artefact: made now, or found in the store (``reused``)."""

    stage: str
    key: str
    reused: bool
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Warned:
    """Something the user should know; ``code`` is stable for programs."""

    code: str
    message: str


@dataclass(frozen=True)
class Waiting:
    """Another process (``pid``, 0 if unknown) is at the same work; this one waits for it."""

    pid: int


@dataclass(frozen=True)
class Preview:
    """A picture of what a stage estimates after ``step`` has just replaced the file ``path``."""

    stage: str
    step: int
    path: str


@dataclass(frozen=True)
class DraftStarted:
    """Draft ``number`` (from 1) of ``of`` begins."""

    number: int
    of: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class PointStarted:
    """Point ``number`` (from 1) of a sweep of ``of`` begins; ``settings`` in a line."""

    number: int
    of: int
    settings: str


@dataclass(frozen=True)
class PointDone:
    """A point is measured (``reused``: it was before), or failed with ``error``."""

    number: int
    of: int
    reused: bool
    error: str | None = None


Event = (
    StageStarted
    | StepDone
    | StageDone
    | Warned
    | Waiting
    | Preview
    | DraftStarted
    | PointStarted
    | PointDone
)
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Listen to nothing."""
