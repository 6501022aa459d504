"""Events of a running graph: plain values for the command line and the server. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

UiOutput = Mapping[str, list[Any]]
"""Files that an output node shows, in the form of ComfyUI's history:
``{"images": [{"filename", "subfolder", "type"}], "animated": [True]}``."""


@dataclass(frozen=True)
class NodesCached:
    """These nodes do not run, as their results exist; ``ui`` is for the output nodes of them."""

    nodes: tuple[str, ...]
    ui: Mapping[str, UiOutput] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeStarted:
    """A node begins."""

    node: str


@dataclass(frozen=True)
class NodeProgress:
    """``value`` of ``total`` steps of a node are done."""

    node: str
    value: int
    total: int


@dataclass(frozen=True)
class NodePreview:
    """Encoded preview of the current estimate; ``format`` is ``"JPEG"`` or ``"PNG"``."""

    node: str
    format: str
    picture: bytes


@dataclass(frozen=True)
class NodeDone:
    """A node has finished; ``ui`` is empty except for output nodes."""

    node: str
    ui: UiOutput = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class NodeWarned:
    """A warning about a node."""

    node: str
    code: str
    message: str


GraphEvent = NodesCached | NodeStarted | NodeProgress | NodePreview | NodeDone | NodeWarned
OnGraphEvent = Callable[[GraphEvent], None]


def ignore_event(_: GraphEvent) -> None:
    """Ignore all events."""
