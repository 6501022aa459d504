"""Options of a run that do not change the clip: device, memory, progress, cancelling."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from latent_ladder.errors import Cancelled, LadderError
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.pipeline.events import OnEvent, ignore


class PartStopped(LadderError):
    """The user stopped one part of a run, such as one draft; the other parts go on."""


@dataclass
class Cancel:
    """A flag that stops a run after its current step.

    ``part`` is the number of the draft under way (0: none), ``stopped_parts`` are those to stop.
    """

    requested: bool = False
    part: int = 0
    stopped_parts: set[int] = field(default_factory=set)

    def request(self) -> None:
        """Ask the run to stop."""
        self.requested = True

    def stop_part(self, number: int) -> None:
        """Ask one part to stop, now or when its turn comes."""
        self.stopped_parts.add(number)

    def check(self) -> None:
        """Raise :class:`Cancelled` or :class:`PartStopped` if a stop was requested."""
        if self.requested:
            raise Cancelled("stopped by the user", "run the same command to go on")
        if self.part in self.stopped_parts:
            raise PartStopped("stopped by the user", "make it again with its prompt and seed")

    @contextmanager
    def in_part(self, number: int) -> Iterator[None]:
        """Mark a part as under way. Raises :class:`PartStopped` if it was stopped before."""
        self.part = number
        try:
            self.check()
            yield
        finally:
            self.part = 0


@dataclass(frozen=True)
class RunOptions:
    """Options of a run, in addition to its request.

    ``command`` is stored in the run's record. ``lock_timeout_s`` is how long to wait for another
    process that makes the same clip (``None``: without limit). ``preview`` is a PNG file that is
    updated with an estimate of the clip while it is sampled. With ``measure`` (the default) the
    clip's metrics are computed while it is written, and stored in the record.
    """

    device: str = "auto"
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    overwrite: bool = False
    command: str = ""
    on_event: OnEvent = ignore
    cancel: Cancel = field(default_factory=Cancel)
    lock_timeout_s: float | None = None
    measure: bool = True
    preview: Path | None = None
