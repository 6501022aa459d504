"""Progress of a ComfyUI graph on stderr: a line for each node that took time, and its log."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from latent_ladder.cli.console import (
    LINE_INTERVAL_S,
    escape_line,
    escape_text,
    show_note,
    show_warning,
)
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

MIN_SHOWN_S = 0.1
"""Nodes that take less time get no line, in seconds."""

logger = logging.getLogger(__name__)


class NodeProgressLines(AbstractContextManager["NodeProgressLines"]):
    """Shows a graph's events on stderr, logs them, and counts them for ``--json``."""

    def __init__(self, graph: Graph, quiet: bool = False) -> None:
        self._graph, self._quiet = graph, quiet
        self._status: Status | None = None
        self._warnings: list[dict[str, str]] = []
        self._ran: list[str] = []
        self._cached: tuple[str, ...] = ()
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._quiet:
            from rich.status import Status

            from latent_ladder.cli.console import stderr_console

            self._status = Status("starting", console=stderr_console())
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

    def to_dict(self) -> dict[str, Any]:
        """The nodes that ran, those whose results were stored, and the warnings."""
        return {"ran": self._ran, "cached": list(self._cached), "warnings": self._warnings}

    def on_event(self, event: GraphEvent) -> None:
        """Show and log one event."""
        if isinstance(event, NodeWarned):
            self._show_warning(event)
        elif isinstance(event, NodesCached):
            self._cached = event.nodes
            count = len(event.nodes)
            logger.info("nodes with stored results: %s", ", ".join(event.nodes) or "none")
            self._print(f"stored results are used for {count} node{'s' * (count != 1)}")
        elif isinstance(event, NodeStarted):
            self._ran.append(event.node)
            logger.info("node %s started", self._describe(event.node))
            self._set_status(self._describe(event.node))
            self._next_line = time.monotonic() + LINE_INTERVAL_S
        elif isinstance(event, NodeProgress):
            logger.debug("node %s: %d of %d", event.node, event.value, event.total)
            text = f"{self._describe(event.node)}: {event.value} of {event.total}"
            self._set_status(text)
            if self._status is None and time.monotonic() >= self._next_line:
                self._next_line = time.monotonic() + LINE_INTERVAL_S
                self._print(text)
        elif isinstance(event, NodeDone):
            logger.info("node %s done in %.2f s", self._describe(event.node), event.seconds)
            if event.seconds >= MIN_SHOWN_S:
                self._print(f"{self._describe(event.node)}: {event.seconds:.1f} s")

    def _show_warning(self, event: NodeWarned) -> None:
        warning = {"node": event.node, "code": event.code, "message": event.message}
        if warning in self._warnings:
            return
        self._warnings.append(warning)
        text = f"node {self._describe(event.node)}: {event.message}"
        logger.warning("%s: %s", event.code, text)
        if self._status is not None:
            self._print(f"warning: {text}")
        elif not self._quiet:
            show_warning(text)

    def _describe(self, key: str) -> str:
        node = self._graph.nodes[key]
        title = f' "{node.title}"' if node.title and node.title != node.class_type else ""
        return f"{key} {node.class_type}{title}"

    def _print(self, text: str) -> None:
        if self._status is not None:  # through its console, so that the status line stays below
            self._status.console.print(escape_text(text))
        elif not self._quiet:
            show_note(text)

    def _set_status(self, text: str) -> None:
        if self._status is not None:
            self._status.update(escape_line(text))
