"""Events of a run: plain values for a caller that shows its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunStarted:
    """The record ``run`` of this run was opened in the store."""

    run: str


@dataclass(frozen=True)
class StageStarted:
    """Stage ``position`` (from 1) of ``of`` begins; ``steps`` is 0 if it has none to count."""

    stage: str
    position: int
    of: int
    steps: int


@dataclass(frozen=True)
class StepDone:
    """``done`` of ``steps`` units of the stage: sampling steps, or frames while decoding.

    ``sigma`` is the noise level reached, ``None`` outside of sampling.
    """

    stage: str
    done: int
    steps: int
    sigma: float | None = None


@dataclass(frozen=True)
class StageDone:
    """A stage is finished: its artefact was made, or found in the store (``reused``)."""

    stage: str
    key: str
    reused: bool
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Warned:
    """A warning for the user; ``code`` is stable for programs."""

    code: str
    message: str


@dataclass(frozen=True)
class Waiting:
    """This process waits for another one (``pid``, 0 if unknown) that runs the same request."""

    pid: int


@dataclass(frozen=True)
class Preview:
    """The file ``path`` now shows the estimate of a stage after ``step``.

    Where the file cannot be read, as on another machine, ``picture`` has its bytes (PNG).
    """

    stage: str
    step: int
    path: str
    picture: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class DraftStarted:
    """Draft ``number`` (from 1) of ``of`` begins."""

    number: int
    of: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class DraftDone:
    """Draft ``number`` was made or reused, or it ended with ``error``; ``stopped`` by the user."""

    number: int
    error: str | None = None
    stopped: bool = False


@dataclass(frozen=True)
class PointStarted:
    """Point ``number`` (from 1) of a sweep of ``of`` begins; ``settings`` in a line."""

    number: int
    of: int
    settings: str


@dataclass(frozen=True)
class PointDone:
    """A point was measured, now or earlier (``reused``), or it failed with ``error``."""

    number: int
    of: int
    reused: bool
    error: str | None = None


Event = (
    RunStarted
    | StageStarted
    | StepDone
    | StageDone
    | Warned
    | Waiting
    | Preview
    | DraftStarted
    | DraftDone
    | PointStarted
    | PointDone
)
OnEvent = Callable[[Event], None]


def ignore(_: Event) -> None:
    """Ignore all events."""
