"""Options of a run that do not change the clip: device, memory, progress, cancelling."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from latent_ladder.errors import Cancelled
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.pipeline.events import OnEvent, ignore


@dataclass
class Cancel:
    """A flag that stops a run after its current step."""

    requested: bool = False

    def request(self) -> None:
        """Ask the run to stop."""
        self.requested = True

    def check(self) -> None:
        """Raise :class:`Cancelled` if a stop was requested."""
        if self.requested:
            raise Cancelled("stopped by the user", "run the same command to go on")


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
