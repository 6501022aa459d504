"""Events of a running graph, for the command line and the server; no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

UiOutput = Mapping[str, list[Any]]
"""The results that ComfyUI's interface shows for an output node, as in its history:
``{"images": [{"filename", "subfolder", "type"}], "animated": [True]}``."""


@dataclass(frozen=True)
class NodesCached:
    """Nodes whose results are available without running; ``ui`` are results of output nodes."""

    nodes: tuple[str, ...]
    ui: Mapping[str, UiOutput] = field(default_factory=dict)


@dataclass(frozen=True)
class NodeStarted:
    """A node has started."""

    node: str


@dataclass(frozen=True)
class NodeProgress:
    """``value`` of ``total`` steps of a node are done."""

    node: str
    value: int
    total: int


@dataclass(frozen=True)
class NodePreview:
    """An encoded preview of the current estimate; ``format`` is ``"JPEG"`` or ``"PNG"``."""

    node: str
    format: str
    picture: bytes


@dataclass(frozen=True)
class NodeDone:
    """A node has finished; ``ui`` is empty unless it is an output node."""

    node: str
    ui: UiOutput = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class NodeWarned:
    """A warning about a node, which does not stop it."""

    node: str
    code: str
    message: str


GraphEvent = NodesCached | NodeStarted | NodeProgress | NodePreview | NodeDone | NodeWarned
OnGraphEvent = Callable[[GraphEvent], None]


def ignore_event(_: GraphEvent) -> None:
    """Ignore an event."""
