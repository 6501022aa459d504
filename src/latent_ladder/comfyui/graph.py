"""A workflow as a graph of nodes: what ComfyUI's API format says, whichever file it came from.

Subgraphs are expanded, reroutes, primitives, muted and bypassed nodes are gone, every value stands
under its input's name. This module knows no node type, no file format and no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.errors import WorkflowError

Value = str | int | float | bool | None | list[Any] | dict[str, Any]
"""A literal input value, as JSON has it."""


class Link(NamedTuple):
    """An input that is the output ``slot`` (from 0) of the node ``node``."""

    node: str
    slot: int


class Trap(NamedTuple):
    """Something to know that stops nothing; ``node`` is empty where it is about the whole graph."""

    code: str
    message: str
    node: str = ""


class ModelFile(NamedTuple):
    """A file that a workflow names with its source: ``properties.models`` of the UI format."""

    name: str
    url: str
    directory: str


@dataclass(frozen=True)
class Node:
    """One node that runs.

    ``id`` is unique in the graph; nodes of a subgraph are ``"instance:inner"``. ``pack`` names the
    pack of nodes it comes from (``properties.cnr_id``), empty if unknown.
    """

    id: str
    class_type: str
    title: str
    inputs: Mapping[str, Link | Value]
    pack: str = ""

    @property
    def links(self) -> Iterator[tuple[str, Link]]:
        """The inputs that come from other nodes."""
        return ((k, v) for k, v in self.inputs.items() if isinstance(v, Link))

    def error(self, message: str, hint: str | None = None) -> WorkflowError:
        """An error that names this node: ``node 12 (KSampler "stage 1"): message``."""
        text = f"{self.label}: {message}"
        return WorkflowError(text, hint, node_id=self.id, class_type=self.class_type)

    @property
    def label(self) -> str:
        """Name of the node in messages: ``node 12 (KSampler "stage 1")``."""
        title = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        return f"node {self.id} ({self.class_type}{title})"


@dataclass(frozen=True)
class Graph:
    """Nodes by id, in the file's order; ``traps`` were found while reading it."""

    nodes: Mapping[str, Node]
    models: tuple[ModelFile, ...] = ()
    traps: tuple[Trap, ...] = field(default=(), compare=False)

    def before(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """``wanted`` and all nodes they need, inputs first; ties in the file's order.

        Raises :class:`WorkflowError` for a cycle or a link to a node that is not there.
        """
        done: dict[str, None] = {}
        for start in wanted:
            self._visit(start, done)
        return tuple(done)

    def _visit(self, start: str, done: dict[str, None]) -> None:
        path: dict[str, Iterator[tuple[str, Link]]] = {start: self._node(start).links}
        while path:
            node = next(reversed(path))
            for name, link in path[node]:
                if link.node in path:
                    raise self.nodes[node].error(
                        f"{name} is part of a cycle", "cut one of its links"
                    )
                if link.node not in self.nodes:
                    text = f"{name} is linked to node {link.node}, which is not there"
                    raise self.nodes[node].error(text, "connect it again and save the workflow")
                if link.node not in done:
                    path[link.node] = self.nodes[link.node].links
                    break
            else:
                del path[node]
                done[node] = None

    def _node(self, node: str) -> Node:
        if node not in self.nodes:
            raise WorkflowError(f"the workflow has no node {node}")
        return self.nodes[node]

    def to_api(self) -> dict[str, Any]:
        """ComfyUI's API format; lists that are values are wrapped as ``{"__value__": [...]}``."""
        return {
            node.id: {
                "class_type": node.class_type,
                "inputs": {name: _as_api(value) for name, value in node.inputs.items()},
                "_meta": {"title": node.title},
            }
            for node in self.nodes.values()
        }


def _as_api(value: Link | Value) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value
