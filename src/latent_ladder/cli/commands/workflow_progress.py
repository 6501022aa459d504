"""A graph under way, for a terminal: a line for every node that took time, a bar while it does."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from latent_ladder.cli.console import show_note, show_warning
from latent_ladder.comfyui.runtime.events import (
    GraphEvent,
    NodeDone,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarned,
)

if TYPE_CHECKING:
    from rich.status import Status

    from latent_ladder.comfyui.graph import Graph

WORTH_TELLING_S = 0.1
"""Nodes that are done sooner get no line."""


class NodeLines(AbstractContextManager["NodeLines"]):
    """Shows a graph's events on stderr and counts them for ``--json``."""

    def __init__(self, graph: Graph, quiet: bool = False) -> None:
        self._graph, self._quiet = graph, quiet
        self._status: Status | None = None
        self._warnings: list[dict[str, str]] = []
        self._run: list[str] = []
        self._cached: tuple[str, ...] = ()

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._quiet:
            from rich.status import Status

            from latent_ladder.cli.console import stderr

            self._status = Status("starting", console=stderr())
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()

    def report(self) -> dict[str, Any]:
        """What ran, what did not have to, and what was warned of."""
        return {"ran": self._run, "cached": list(self._cached), "warnings": self._warnings}

    def on_event(self, event: GraphEvent) -> None:
        """Show one event."""
        if isinstance(event, NodeWarned):
            self._warn(event)
        elif isinstance(event, NodesCached):
            self._cached = event.nodes
            self._say(f"{len(event.nodes)} nodes are known already")
        elif isinstance(event, NodeStarted):
            self._run.append(event.node)
            self._show(self._name(event.node))
        elif isinstance(event, NodeProgress):
            self._show(f"{self._name(event.node)}: {event.value} of {event.total}")
        elif isinstance(event, NodeDone) and event.seconds >= WORTH_TELLING_S:
            self._say(f"{self._name(event.node)}: {event.seconds:.1f} s")

    def _warn(self, event: NodeWarned) -> None:
        found = {"node": event.node, "code": event.code, "message": event.message}
        if found in self._warnings:
            return
        self._warnings.append(found)
        text = f"node {self._name(event.node)}: {event.message}"
        if self._status is not None:
            self._say(f"warning: {text}")
        elif not self._quiet:
            show_warning(text)

    def _name(self, node: str) -> str:
        found = self._graph.nodes[node]
        title = f' "{found.title}"' if found.title and found.title != found.class_type else ""
        return f"{node} {found.class_type}{title}"

    def _say(self, text: str) -> None:
        if self._status is not None:  # on its own console, so that the line below stays whole
            from rich.markup import escape

            self._status.console.print(escape(text))
        elif not self._quiet:
            show_note(text)

    def _show(self, text: str) -> None:
        if self._status is not None:
            from rich.markup import escape

            self._status.update(escape(text))
