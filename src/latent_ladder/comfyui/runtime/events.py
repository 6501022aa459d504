"""What happens while a graph runs, for the faces that show it: values, no behaviour, no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

UiOutput = Mapping[str, list[Any]]
"""What an output node shows, as ComfyUI's history has it:
``{"images": [{"filename", "subfolder", "type"}], "animated": [True]}``."""


@dataclass(frozen=True)
class NodesCached:
    """These nodes' results are there already; ``ui`` are those of output nodes among them."""

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
    """The picture as it is estimated so far, encoded; ``format`` is ``"JPEG"`` or ``"PNG"``."""

    node: str
    format: str
    picture: bytes


@dataclass(frozen=True)
class NodeDone:
    """A node has finished; ``ui`` is empty but for output nodes."""

    node: str
    ui: UiOutput = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class NodeWarned:
    """Something to tell about a node that did not stop it."""

    node: str
    code: str
    message: str


GraphEvent = NodesCached | NodeStarted | NodeProgress | NodePreview | NodeDone | NodeWarned
OnGraphEvent = Callable[[GraphEvent], None]


def ignore_event(_: GraphEvent) -> None:
    """Tell nobody."""
