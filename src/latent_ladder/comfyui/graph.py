"""A workflow as a graph of nodes, with the content of ComfyUI's API format.

The readers of both file formats build it: subgraphs are expanded, reroutes, primitives, muted and
bypassed nodes are resolved, and each value has the name of its input. This module knows no node
types, file formats or models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.errors import WorkflowError

Value = str | int | float | bool | None | list[Any] | dict[str, Any]
"""A literal input value in JSON types."""


class Link(NamedTuple):
    """A link from output ``slot`` (from 0) of the node with id ``node``."""

    node: str
    slot: int


class LintFinding(NamedTuple):
    """A warning about a workflow that does not stop it from running.

    ``node`` is a node id, or empty if the warning is about the whole graph.
    """

    code: str
    message: str
    node: str = ""


class ModelFile(NamedTuple):
    """A model file with its download URL, from ``properties.models`` of the UI format."""

    name: str
    url: str
    directory: str


@dataclass(frozen=True)
class Node:
    """An executable node.

    ``id`` is unique in the graph; a node of a subgraph has the id ``"instance:inner"``. ``pack`` is
    the node pack it comes from (``properties.cnr_id``), empty if unknown.
    """

    id: str
    class_type: str
    title: str
    inputs: Mapping[str, Link | Value]
    pack: str = ""

    @property
    def links(self) -> Iterator[tuple[str, Link]]:
        """Linked inputs as pairs of name and link."""
        return ((k, v) for k, v in self.inputs.items() if isinstance(v, Link))

    def error(self, message: str, hint: str | None = None) -> WorkflowError:
        """Return an error that names this node: ``node 12 (KSampler "stage 1"): message``."""
        text = f"{self.label}: {message}"
        return WorkflowError(text, hint, node_id=self.id, class_type=self.class_type)

    @property
    def label(self) -> str:
        """Name of the node in messages: ``node 12 (KSampler "stage 1")``."""
        title = f' "{self.title}"' if self.title and self.title != self.class_type else ""
        return f"node {self.id} ({self.class_type}{title})"


@dataclass(frozen=True)
class Graph:
    """Nodes by id in the order of the file; ``findings`` are warnings of the reader."""

    nodes: Mapping[str, Node]
    models: tuple[ModelFile, ...] = ()
    findings: tuple[LintFinding, ...] = field(default=(), compare=False)

    def dependency_order(self, wanted: Iterable[str]) -> tuple[str, ...]:
        """Return ``wanted`` and all nodes they depend on, dependencies first.

        Independent nodes keep the order of the file. Raises :class:`WorkflowError` for a cycle or a
        link to a missing node.
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
                        f"{name} is part of a cycle", "remove one of its links"
                    )
                if link.node not in self.nodes:
                    text = f"{name} is linked to node {link.node}, which does not exist"
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
        """Return the graph in ComfyUI's API format.

        A list that is a value, not a link, is wrapped as ``{"__value__": [...]}``.
        """
        return {
            node.id: {
                "class_type": node.class_type,
                "inputs": {name: _to_api_value(value) for name, value in node.inputs.items()},
                "_meta": {"title": node.title},
            }
            for node in self.nodes.values()
        }


def _to_api_value(value: Link | Value) -> Any:
    if isinstance(value, Link):
        return [value.node, value.slot]
    return {"__value__": value} if isinstance(value, list) else value
