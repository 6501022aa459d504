"""The exception tree of latent-ladder, and the exit code each branch gives the command line.

::

    LadderError                exit 1   anything the user can act on
    ├── RequestError           exit 2   an impossible or unknown value; all problems in one report
    ├── CheckpointError        exit 3   a model file
    │   ├── CheckpointNotFound          none plays the role that is needed
    │   ├── UnknownLayout               readable, but not a file this tool knows
    │   ├── CorruptCheckpoint           truncated or damaged
    │   └── UnsupportedQuantization     a weight format without a decoder
    ├── MemoryBudgetError      exit 4   the plan does not fit
    ├── MediaError             exit 5   reading or writing pictures, sound, video
    ├── WorkflowError          exit 6   a ComfyUI graph
    ├── StoreError             exit 8   artefacts on disk
    └── Cancelled              exit 130 the user stopped the run

Messages are one sentence, *subject, got, expected*; ``hint`` names one thing to do.
"""

from __future__ import annotations

from typing import ClassVar


class LadderError(Exception):
    """Base of every error a user can act on.

    ``code`` is a stable name for programs (``--json`` and later HTTP faces), ``hint`` one thing
    to do about it, or ``None``.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """The class name in snake_case, e.g. ``request_error``."""
        name = type(self).__name__
        return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class RequestError(LadderError):
    """A request holds impossible or unknown values; ``problems`` lists each (message, hint)."""

    exit_code = 2

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        problems: tuple[tuple[str, str | None], ...] = (),
    ) -> None:
        super().__init__(message, hint)
        self.problems = problems or ((message, hint),)


class CheckpointError(LadderError):
    """A model file cannot be used."""

    exit_code = 3


class CheckpointNotFound(CheckpointError):
    """No file plays the role that is needed."""


class UnknownLayout(CheckpointError):
    """The file can be read but its tensors are not a layout this tool knows."""


class CorruptCheckpoint(CheckpointError):
    """The file is truncated or damaged."""


class UnsupportedQuantization(CheckpointError):
    """A weight is stored in a format without a decoder."""


class MemoryBudgetError(LadderError):
    """The plan does not fit the memory budget."""

    exit_code = 4


class MediaError(LadderError):
    """A picture, sound or video file cannot be read or written."""

    exit_code = 5


class WorkflowError(LadderError):
    """A ComfyUI graph cannot be run; carries the node it is about."""

    exit_code = 6

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        node_id: str | None = None,
        class_type: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.node_id = node_id
        self.class_type = class_type


class StoreError(LadderError):
    """An artefact on disk cannot be read or written."""

    exit_code = 8


class Cancelled(LadderError):
    """The user stopped the run; what was finished is kept."""

    exit_code = 130
