"""Reader of ComfyUI's API format.

The format is ``{"12": {"class_type": ..., "inputs": {...}, "_meta": {"title": ...}}}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latent_ladder.comfyui.formats.pack_nodes import replace_pack_nodes
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.errors import WorkflowError

MAX_NODES = 20_000
"""Upper limit of nodes in a graph; nested subgraphs could multiply without it."""


def is_api(document: object) -> bool:
    """Return whether a JSON document looks like the API format: an object of nodes by id."""
    return (
        isinstance(document, dict)
        and bool(document)
        and any(isinstance(node, dict) and "class_type" in node for node in document.values())
    )


def read_api(document: Mapping[str, Any]) -> Graph:
    """Return the graph of an API document.

    Raises :class:`WorkflowError` with the node id for an invalid node, a link to a missing node or
    output, and a cycle.
    """
    if len(document) > MAX_NODES:
        raise too_many_nodes(len(document))
    graph = replace_pack_nodes(
        Graph({str(key): _parse_node(str(key), node) for key, node in document.items()})
    )
    check_links(graph)
    return graph


def too_many_nodes(count: int) -> WorkflowError:
    """Return the error for a graph with more than :data:`MAX_NODES` nodes."""
    return WorkflowError(f"the workflow has {count} nodes, at most {MAX_NODES} are allowed")


def check_links(graph: Graph) -> None:
    """Raise :class:`WorkflowError` for a link to a missing node or output, or for a cycle."""
    for node in graph.nodes.values():
        for name, link in node.links:
            source = graph.nodes.get(link.node)
            if source is None:
                text = f"{name} is linked to node {link.node}, which does not exist"
                raise node.error(text, "connect it again and save the workflow")
            definition = node_type(source.class_type, source.pack)
            if not 0 <= link.slot < (len(definition.outputs) or link.slot + 1):
                text = f"{name} is linked to output {link.slot} of node {link.node}"
                count = len(definition.outputs)
                raise node.error(
                    f"{text}, but {source.class_type} has {count} output{'s' * (count != 1)}",
                    "connect it again and save the workflow",
                )
    graph.dependency_order(graph.nodes)


def _parse_node(key: str, value: Any) -> Node:
    if not isinstance(value, dict):
        raise WorkflowError(f"node {key} is {_json_type(value)}, expected an object", node_id=key)
    class_type, inputs = value.get("class_type"), value.get("inputs", {})
    if not isinstance(class_type, str) or not class_type:
        raise WorkflowError(
            f"node {key} has no class_type", "export the workflow again in API format", node_id=key
        )
    definition = node_type(class_type)
    meta = value.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    node = Node(
        key,
        class_type,
        title if isinstance(title, str) else definition.display,
        {},
        definition.pack,
    )
    if not isinstance(inputs, dict):
        raise node.error(f"inputs is {_json_type(inputs)}, expected an object")
    return Node(
        key, class_type, node.title, {k: _parse_input(v) for k, v in inputs.items()}, node.pack
    )


def _parse_input(value: Any) -> Link | Value:
    """Return an input: a list of node id and slot is a link; a list that is a value is wrapped."""
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
