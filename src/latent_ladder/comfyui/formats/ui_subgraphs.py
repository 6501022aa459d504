"""The levels of a UI document: the graph itself and one level per subgraph instance.

A level has the nodes and links of the file as they are; ``ui.py`` resolves the links.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from latent_ladder.comfyui.formats.ui_widgets import SEED_CONTROLS, input_sockets, widget_name
from latent_ladder.comfyui.graph import Value
from latent_ladder.comfyui.node_defs import NODE_TYPES, node_type
from latent_ladder.errors import WorkflowError

INPUT_NODE, OUTPUT_NODE = "-10", "-20"
"""Node ids that links use for the inputs and outputs of a subgraph."""
_DISPLAY_PREFIXES = ("$$", "preview")
"""Prefixes of widgets that only display something and have no value."""
RawJson = Mapping[str, Any]
"""A part of the document; its structure is not validated."""


class LinkOrigin(NamedTuple):
    """The origin of a link: output ``slot`` of the node with id ``node`` in the same level."""

    node: str
    slot: int


@dataclass(eq=False)
class GraphLevel:
    """The nodes and links of one graph or subgraph instance.

    ``prefix`` is prepended to the ids of its nodes. ``outputs`` are the origins of the links to the
    outputs of a subgraph, by slot; ``use_everywhere`` are links of the pack *Use Everywhere*, by
    target node and slot. For a subgraph, ``parent`` and ``instance`` are the level and the node
    that contain it, ``definition`` is its definition and ``promoted`` are the values that the
    instance has for its inputs, by name.
    """

    prefix: str
    nodes: dict[str, RawJson]
    links: dict[int, LinkOrigin]
    outputs: dict[int, LinkOrigin] = field(default_factory=dict)
    use_everywhere: dict[tuple[str, int], LinkOrigin] = field(default_factory=dict)
    parent: GraphLevel | None = None
    instance: RawJson = field(default_factory=dict)
    definition: RawJson = field(default_factory=dict)
    promoted: dict[str, Value] = field(default_factory=dict)

    def error(self, node: RawJson, message: str, hint: str | None = None) -> WorkflowError:
        """Return an error that names a node of this level."""
        key, class_type = self.prefix + str(node.get("id")), str(node.get("type"))
        title = node_title(node)
        named = f' "{title}"' if title not in ("", class_type) else ""
        return WorkflowError(
            f"node {key} ({class_type}{named}): {message}", hint, node_id=key, class_type=class_type
        )


def node_title(node: RawJson) -> str:
    """Return the title of a node as the interface shows it."""
    title = node.get("title")
    return title if isinstance(title, str) else node_type(str(node.get("type"))).display


def read_level(document: RawJson, prefix: str, where: str) -> GraphLevel:
    """Return the nodes and links of a graph or a subgraph definition.

    ``where`` names it in errors. Raises :class:`WorkflowError` for an invalid node or link.
    """
    nodes = {str(node["id"]): node for node in _iterate_nodes(document, where)}
    level = GraphLevel(prefix, nodes, {})
    for key, end, target, slot in _iterate_links(document, where):
        level.links[key] = end
        if target == OUTPUT_NODE:
            level.outputs[slot] = end
    level.use_everywhere.update(_use_everywhere_links(document))
    return level


def _iterate_nodes(document: RawJson, where: str) -> Iterator[RawJson]:
    listed = document.get("nodes")
    if not isinstance(listed, list):
        raise WorkflowError(f"{where} has no list of nodes", "save the workflow again in ComfyUI")
    for index, node in enumerate(listed):
        if not isinstance(node, dict) or not isinstance(node.get("id"), str | int):
            raise WorkflowError(f"{where}: entry {index} of nodes is not a node with an id")
        if not isinstance(node.get("type"), str):
            raise WorkflowError(f"{where}: node {node['id']} has no type", node_id=str(node["id"]))
        yield node


def _iterate_links(document: RawJson, where: str) -> Iterator[tuple[int, LinkOrigin, str, int]]:
    """Return id, origin, target node and target slot of each link, in either notation."""
    listed = document.get("links", [])
    for index, link in enumerate(listed if isinstance(listed, list) else []):
        match link:
            case [int() as key, origin, int() as slot, target, int() as into, *_]:
                yield key, LinkOrigin(str(origin), slot), str(target), into
            case {
                "id": int() as key,
                "origin_id": origin,
                "origin_slot": int() as slot,
                "target_id": target,
                "target_slot": int() as into,
            }:
                yield key, LinkOrigin(str(origin), slot), str(target), into
            case None:  # a removed link
                continue
            case _:
                raise WorkflowError(f"{where}: entry {index} of links is not a link")


def _use_everywhere_links(document: RawJson) -> Iterator[tuple[tuple[str, int], LinkOrigin]]:
    """Return the links that the pack *Use Everywhere* creates at run time and saves in the file."""
    extra = document.get("extra")
    listed = extra.get("ue_links") if isinstance(extra, dict) else None
    for link in listed if isinstance(listed, list) else []:
        match link:
            case {
                "downstream": target,
                "downstream_slot": int() as into,
                "upstream": origin,
                "upstream_slot": int() as slot,
            }:
                yield (str(target), into), LinkOrigin(str(origin), slot)


def definition_inputs(level: GraphLevel) -> list[str]:
    """Return the names of a subgraph's inputs, in order."""
    return [str(one.get("name")) for one in _named_entries(level.definition, "inputs")]


def _named_entries(definition: RawJson, key: str) -> list[RawJson]:
    listed = definition.get(key)
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []


def promoted_values(level: GraphLevel) -> dict[str, Value]:
    """Return the values that an instance has for its subgraph's inputs, by name.

    Raises :class:`WorkflowError` for a value or widget of an input that does not exist.
    """
    inputs = definition_inputs(level)
    proxies = _proxy_widgets(level)
    instance, known = level.instance, {*inputs, *(name for _, name in proxies)}
    shown = [name for one in input_sockets(instance) if (name := widget_name(one))]
    named = instance.get("widgets_values_named")
    named = named if isinstance(named, dict) else {}
    for name in (*shown, *named):
        if name not in known and name not in SEED_CONTROLS | {"control_after_generate"}:
            raise _parent(level).error(
                instance,
                f"it shows a widget {name!r} that its subgraph does not have",
                "open the workflow in ComfyUI, remove the widget from the subgraph and save",
            )
    if named:
        return {name: value for name, value in named.items() if name in inputs}
    listed = instance.get("widgets_values")
    values = listed if isinstance(listed, list) else []
    if proxies and len(values) == len(proxies):
        pairs = zip(proxies, values, strict=True)
        return {name: value for (inner, name), value in pairs if inner == "-1" and name in inputs}
    inside = _inner_widget_inputs(level)
    widgets = [name for name in inputs if name in inside]
    names = widgets if len(values) >= len(widgets) else shown
    return dict(zip(names, values, strict=False))


def _proxy_widgets(level: GraphLevel) -> list[tuple[str, str]]:
    """Return the inner widgets that an instance shows directly, as validated (node, name) pairs."""
    properties = level.instance.get("properties")
    listed = properties.get("proxyWidgets") if isinstance(properties, dict) else None
    pairs = [
        (str(one[0]), str(one[1]))
        for one in (listed if isinstance(listed, list) else [])
        if isinstance(one, list) and len(one) >= 2
    ]
    for inner, name in pairs:
        if not _has_widget(level, inner, name):
            raise _parent(level).error(
                level.instance,
                f"it shows the widget {name!r} of inner node {inner}, which does not exist",
                "open the workflow in ComfyUI, remove the widget from the subgraph and save",
            )
    return pairs


def _has_widget(level: GraphLevel, inner: str, name: str) -> bool:
    if inner == "-1":
        return name in definition_inputs(level)
    node = level.nodes.get(inner)
    definition = NODE_TYPES.get(str(node.get("type"))) if node else None
    if node is None or definition is None:
        return node is not None  # a nested subgraph, or an unknown type
    every = {one.name for one in definition.inputs} | {"control_after_generate", "upload"}
    return name in every or "." in name or name.startswith(_DISPLAY_PREFIXES)


def _inner_widget_inputs(level: GraphLevel) -> set[str]:
    """Return the inputs of a subgraph that are linked to a widget of an inner node."""
    names, found = definition_inputs(level), set()
    for node in level.nodes.values():
        for one in input_sockets(node):
            end = level.links.get(one["link"]) if isinstance(one.get("link"), int) else None
            if end and end.node == INPUT_NODE and widget_name(one) and 0 <= end.slot < len(names):
                found.add(names[end.slot])
    return found


def _parent(level: GraphLevel) -> GraphLevel:
    assert level.parent is not None, "only a subgraph has an instance"
    return level.parent
