"""Exception tree of latent-ladder, with the exit code of the command line for each class.

::

    LadderError                exit 1   base class: an error that the user can fix
    ├── RequestError           exit 2   impossible or unknown values; all problems in one report
    ├── CheckpointError        exit 3   a model file
    │   ├── CheckpointNotFound          a file or component that is needed does not exist
    │   ├── UnknownLayout               readable, but the tensors are not of a known model
    │   ├── CorruptCheckpoint           truncated or damaged
    │   └── UnsupportedQuantization     a weight format without a decoder
    ├── MemoryBudgetError      exit 4   the plan needs more memory than the budget
    ├── MediaError             exit 5   reading or writing images, audio, video
    ├── WorkflowError          exit 6   a ComfyUI graph
    ├── StoreError             exit 8   artefacts on disk
    └── Cancelled              exit 130 the user stopped the run

A message is one sentence: the subject, what was found, what was expected. ``hint`` names one thing
to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import ClassVar, Self

LONGEST_WORD = 300
"""Longest word of a message, in characters: names and numbers of others can have any length."""


def shorten_words(text: str) -> str:
    """``text`` without the middles of words that are longer than :data:`LONGEST_WORD`."""
    return _LONG_WORD.sub(lambda found: f"{found[0][:150]}...{found[0][-100:]}", text)


_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


class LadderError(Exception):
    """Base class of every error that the user can fix.

    ``message`` is one sentence, ``hint`` one thing to do about it, or ``None``. ``code`` is a
    stable name for programs (``--json`` output and the HTTP API).
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        message = shorten_words(message)
        super().__init__(message)
        self.message = message
        self.hint = hint

    def in_context(self, context: str) -> Self:
        """A new error of this class and hint with ``context`` in front of its message."""
        return type(self)(f"{context}: {self.message}", self.hint)

    @property
    def code(self) -> str:
        """The class name in snake_case, e.g. ``request_error``."""
        name = type(self).__name__
        return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


class RequestError(LadderError):
    """A request has impossible or unknown values; ``problems`` lists each as (message, hint)."""

    exit_code = 2

    def __init__(
        self,
        message: str,
        hint: str | None = None,
        problems: tuple[tuple[str, str | None], ...] = (),
    ) -> None:
        super().__init__(message, hint)
        self.problems = problems or ((message, hint),)

    def in_context(self, context: str) -> Self:
        """As for every error; each of the problems gets the context too."""
        problems = tuple((f"{context}: {message}", hint) for message, hint in self.problems)
        return type(self)(f"{context}: {self.message}", self.hint, problems)


class CheckpointError(LadderError):
    """A model file cannot be used."""

    exit_code = 3


class CheckpointNotFound(CheckpointError):
    """A model file, or a component that the run needs, was not found."""


class UnknownLayout(CheckpointError):
    """The file can be read, but its tensors are not those of a known model."""


class CorruptCheckpoint(CheckpointError):
    """The file is truncated or damaged."""


class UnsupportedQuantization(CheckpointError):
    """A weight is stored in a format that this version cannot decode."""


class MemoryBudgetError(LadderError):
    """The plan needs more memory than the budget allows."""

    exit_code = 4


class MediaError(LadderError):
    """An image, audio or video file cannot be read or written."""

    exit_code = 5


class WorkflowError(LadderError):
    """A ComfyUI graph cannot be run; ``node_id`` and ``class_type`` name the node at fault."""

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
    """The user stopped the run; finished artefacts stay in the store."""

    exit_code = 130


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint: the nearest of the ``known`` names, else the list of all of them."""
    from difflib import get_close_matches  # imported here: only needed for a wrong name

    names = sorted(known)
    near = get_close_matches(name.lower(), names, n=2, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(near) + "?"
    return f"known: {', '.join(names)}"
