"""ComfyUI's API format: ``{"12": {"class_type": ..., "inputs": {...}, "_meta": {"title"}}}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.errors import WorkflowError

MAX_NODES = 20_000
"""More than any graph that a person made; subgraphs in subgraphs multiply quickly."""


def is_api(document: object) -> bool:
    """Whether a JSON document looks like the API format: nodes by id, each with a class."""
    return (
        isinstance(document, dict)
        and bool(document)
        and any(isinstance(one, dict) and "class_type" in one for one in document.values())
    )


def read_api(document: Mapping[str, Any]) -> Graph:
    """The graph of an API document.

    Raises :class:`WorkflowError`, with the node's id, for what is no node, for links to nodes or
    outputs that are not there, and for cycles.
    """
    if len(document) > MAX_NODES:
        raise too_many_nodes(len(document))
    graph = Graph({str(key): _parse_node(str(key), one) for key, one in document.items()})
    check_links(graph)
    return graph


def too_many_nodes(count: int) -> WorkflowError:
    """The error for a graph beyond :data:`MAX_NODES`."""
    return WorkflowError(f"the workflow has {count} nodes, at most {MAX_NODES} are read")


def check_links(graph: Graph) -> None:
    """Raise :class:`WorkflowError` for a link to a missing node or output, or a cycle."""
    for node in graph.nodes.values():
        for name, link in node.links:
            source = graph.nodes.get(link.node)
            if source is None:
                text = f"{name} is linked to node {link.node}, which is not there"
                raise node.error(text, "connect it again and save the workflow")
            kind = node_type(source.class_type, source.pack)
            if not 0 <= link.slot < (len(kind.outputs) or link.slot + 1):
                text = f"{name} is linked to output {link.slot} of node {link.node}"
                count = len(kind.outputs)
                raise node.error(
                    f"{text}, but {source.class_type} has {count} output{'s' * (count != 1)}",
                    "connect it again and save the workflow",
                )
    graph.dependency_order(graph.nodes)


def _parse_node(key: str, written: Any) -> Node:
    if not isinstance(written, dict):
        raise WorkflowError(f"node {key} is {_json_type(written)}, expected an object", node_id=key)
    class_type, inputs = written.get("class_type"), written.get("inputs", {})
    if not isinstance(class_type, str) or not class_type:
        raise WorkflowError(
            f"node {key} has no class_type", "export the workflow again in API format", node_id=key
        )
    kind = node_type(class_type)
    meta = written.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    node = Node(key, class_type, title if isinstance(title, str) else kind.display, {}, kind.pack)
    if not isinstance(inputs, dict):
        raise node.error(f"inputs is {_json_type(inputs)}, expected an object")
    return Node(
        key, class_type, node.title, {k: _parse_input(v) for k, v in inputs.items()}, node.pack
    )


def _parse_input(value: Any) -> Link | Value:
    """A link is a list of an id and a slot; lists that are values are wrapped."""
    match value:
        case [str() | int() as source, int() as slot] if not _has_bool(source, slot):
            return Link(str(source), slot)
        case {"__value__": wrapped, **rest} if not rest:
            return _literal(wrapped)
    return _literal(value)


def _has_bool(*values: object) -> bool:
    return any(isinstance(value, bool) for value in values)


def _literal(value: Any) -> Value:
    return value if isinstance(value, str | int | float | bool | list | dict) else None


def _json_type(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(value), "a number")
