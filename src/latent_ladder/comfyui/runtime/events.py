"""Events of a running graph: plain values for the command line and the server. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Shown = Mapping[str, list[Any]]
"""Files that an output node shows, in the form of ComfyUI's history:
``{"images": [{"filename", "subfolder", "type"}], "animated": [True]}``."""


@dataclass(frozen=True)
class NodesCached:
    """These nodes do not run, as their results exist; ``shown`` is for output nodes of them."""

    nodes: tuple[str, ...]
    shown: Mapping[str, Shown] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeStarted:
    """A node begins."""

    node: str


@dataclass(frozen=True)
class NodeProgress:
    """``value`` of ``of`` steps of a node are done."""

    node: str
    value: int
    of: int


@dataclass(frozen=True)
class NodePreview:
    """Encoded preview of the current estimate; ``format`` is ``"JPEG"`` or ``"PNG"``."""

    node: str
    format: str
    picture: bytes


@dataclass(frozen=True)
class NodeDone:
    """A node has finished; ``shown`` is empty except for output nodes."""

    node: str
    shown: Shown = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class NodeWarned:
    """A warning about a node."""

    node: str
    code: str
    message: str


GraphEvent = NodesCached | NodeStarted | NodeProgress | NodePreview | NodeDone | NodeWarned
OnGraphEvent = Callable[[GraphEvent], None]


def ignore(_: GraphEvent) -> None:
    """Ignore all events."""
