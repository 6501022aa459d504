"""Layout of a graph as a UI document (format 0.4) that reads from left to right.

Groups are placed in columns by their dependencies, and the nodes of a group in columns by their
depth. Sizes of nodes are those of the interface: a title bar, and a line for each socket and each
widget. The format is documented at docs.comfy.org/specs/workflow_json_0.4.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latent_ladder.comfyui.constant_folding import definition_of
from latent_ladder.comfyui.exporter.graph_builder import AnnotatedGraph
from latent_ladder.comfyui.graph import Graph, Link, ModelFile, Node, Value
from latent_ladder.comfyui.node_defs.schema import Input, NodeType

VERSION = 0.4
NAMESPACE = uuid.UUID("8a5c2f0e-6f0b-4a3c-9f0d-3c1f2b7d5e61")
"""Namespace of workflow ids, which are derived from the content: equal exports have equal ids."""

TITLE, SOCKET, WIDGET, PADDING = 30, 20, 24, 12
TEXT_LINE, TEXT_LEAST, LETTERS = 18, 80, 52
"""Height of a line in a text box, minimum height of a text box, characters per line."""
WIDTH, WIDE = 290, 400
COLUMN_GAP, ROW_GAP, GROUP_GAP, GROUP_PADDING, GROUP_TITLE = 60, 24, 80, 24, 48

COLOURS = ("#3f789e", "#88A", "#8A8", "#b58b2a", "#b06634", "#A88", "#8AA", "#a1309b")
"""Colours of the groups, in order."""
PROMPT_COLOURS: Mapping[str, tuple[str, str]] = {
    "Prompt": ("#232", "#353"),
    "Negative prompt": ("#322", "#533"),
}
EXTRA_WIDGET_VALUES: Mapping[str, Value] = {
    "control_after_generate": "fixed", "fixed": "fixed", "upload": "image",
}  # fmt: skip
"""Values of extra widgets in ``widgets_values``, by name; the default is null."""
OPTIONAL_SHAPE = 7
"""The ``shape`` of an optional input socket."""


@dataclass(frozen=True)
class Box:
    """A rectangle: its upper left corner and size, in pixels of the interface."""

    x: float
    y: float
    width: float
    height: float

    def translate(self, x: float, y: float) -> Box:
        """Return the rectangle moved by (x, y)."""
        return Box(self.x + x, self.y + y, self.width, self.height)


def layout_graph(
    annotated: AnnotatedGraph, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the UI document of a graph with entries added to its ``extra``."""
    graph = annotated.graph
    numbers = _node_numbers(graph)
    boxes, groups, notes = _place_nodes(annotated)
    order = {node: i for i, node in enumerate(graph.dependency_order(graph.nodes))}
    links, nodes = _nodes_and_links(graph, numbers)
    for node in graph.nodes.values():
        entry = nodes[node.id]
        box = boxes[node.id]
        entry |= {
            "pos": [box.x, box.y],
            "size": [box.width, box.height],
            "order": order[node.id],
            "properties": _node_properties(node, graph.models),
            "widgets_values": _widgets_values(node, node.id in annotated.randomized),
        }
        if node.title in PROMPT_COLOURS:
            entry["color"], entry["bgcolor"] = PROMPT_COLOURS[node.title]
    last = max(numbers.values(), default=0)
    note_entries = [
        _note_entry(last + i, text, box, len(order) + i - 1)
        for i, (text, box) in enumerate(notes, 1)
    ]
    document = {
        "revision": 0,
        "last_node_id": last + len(note_entries),
        "last_link_id": len(links),
        "nodes": [*nodes.values(), *note_entries],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {"ds": {"scale": 0.6, "offset": [40, 80]}, **(extra or {})},
        "version": VERSION,
    }
    return {"id": str(uuid.uuid5(NAMESPACE, repr(document))), **document}


def _node_numbers(graph: Graph) -> dict[str, int]:
    """Return numeric ids for the nodes: their own if all are numeric, else counted from 1."""
    if all(name.isdecimal() for name in graph.nodes):
        return {name: int(name) for name in graph.nodes}
    return {name: i for i, name in enumerate(graph.nodes, 1)}


# -- nodes and links ------------------------------------------------------------------------------


def _nodes_and_links(
    graph: Graph, numbers: Mapping[str, int]
) -> tuple[list[list[Any]], dict[str, dict[str, Any]]]:
    """Return the table of links, and the node entries whose sockets refer to them."""
    links: list[list[Any]] = []
    nodes = {node.id: _node_entry(node, numbers[node.id]) for node in graph.nodes.values()}
    for node in graph.nodes.values():
        slots = {entry["name"]: i for i, entry in enumerate(nodes[node.id]["inputs"])}
        for name, link in node.links:
            number = len(links) + 1
            outputs = nodes[link.node]["outputs"]
            kind = outputs[link.slot]["type"]
            slot = slots[name]
            links.append([number, numbers[link.node], link.slot, numbers[node.id], slot, kind])
            nodes[node.id]["inputs"][slot]["link"] = number
            outputs[link.slot]["links"] = [*(outputs[link.slot]["links"] or ()), number]
    return links, nodes


def _node_entry(node: Node, number: int) -> dict[str, Any]:
    definition = definition_of(node)
    entry: dict[str, Any] = {
        "id": number,
        "type": node.class_type,
        "pos": [0, 0],
        "size": [WIDTH, TITLE],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [_socket_entry(item) for item in _sockets(definition, node)],
        "outputs": [{"name": o.name, "type": o.type, "links": None} for o in definition.outputs],
    }
    if node.title and node.title != definition.display:
        entry["title"] = node.title
    return entry


def _sockets(definition: NodeType, node: Node) -> list[Input]:
    """Return the inputs as sockets: those without a widget first, then those with one."""
    visible = _exported_inputs(definition, node)
    names = {item.name for item in visible}
    autogrow = [
        Input(name, "*", socket=True, required=False)
        for name, value in node.inputs.items()
        if name not in names and isinstance(value, Link)
    ]
    sockets = [
        item for item in visible if not item.is_widget and _is_visible(item, definition, node)
    ]
    return [*sockets, *autogrow, *(item for item in visible if item.is_widget)]


def _is_visible(item: Input, definition: NodeType, node: Node) -> bool:
    """Return whether a socket is shown: an optional autogrow input is shown only if linked."""
    grows = bool(definition.autogrow_prefix) and item.name.startswith(definition.autogrow_prefix)
    return not grows or item.required or item.name in node.inputs


def _socket_entry(item: Input) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": item.name, "type": item.type, "link": None}
    if not item.required:
        entry["shape"] = OPTIONAL_SHAPE
    if item.is_widget:
        entry["widget"] = {"name": item.name}
    return entry


def _visible_inputs(definition: NodeType, node: Node) -> list[Input]:
    values = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    return list(definition.visible_inputs(values))


def _exported_inputs(definition: NodeType, node: Node) -> list[Input]:
    """Inputs of an exported node, without its last optional widgets where they have defaults."""
    items = _visible_inputs(definition, node)
    while items and items[-1].is_widget and not items[-1].required:
        last = items[-1]
        if node.inputs.get(last.name, last.default) != last.default:
            break
        items.pop()
    return items


def _widgets_values(node: Node, randomized: bool) -> list[Value]:
    """Return the values of all widgets in order, extra widgets included.

    Optional widgets at the end that have their default are left out: ComfyUI adds them, and their
    type and choices differ between its versions (``bit_depth`` of ``CreateVideo``).
    """
    values: list[Value] = []
    for item in _exported_inputs(definition_of(node), node):
        if not item.is_widget:
            continue
        value = node.inputs.get(item.name, item.default)
        values.append(item.default if isinstance(value, Link) else value)
        for extra in item.extra_widgets:
            randomize = randomized and extra == "control_after_generate"
            values.append("randomize" if randomize else EXTRA_WIDGET_VALUES.get(extra))
    return values


def _node_properties(node: Node, models: Sequence[ModelFile]) -> dict[str, Any]:
    names = {v for v in node.inputs.values() if isinstance(v, str)}
    files = [m._asdict() for m in models if m.name in names]
    properties: dict[str, Any] = {"Node name for S&R": node.class_type}
    if node.pack:
        properties["cnr_id"] = node.pack
    return properties | ({"models": files} if files else {})


def _note_entry(number: int, text: str, box: Box, order: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "MarkdownNote",
        "pos": [box.x, box.y],
        "size": [box.width, box.height],
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Not expressed by this graph",
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }


# -- positions ------------------------------------------------------------------------------------


def _place_nodes(
    annotated: AnnotatedGraph,
) -> tuple[dict[str, Box], list[dict[str, Any]], list[tuple[str, Box]]]:
    """Return the boxes of nodes, the group entries, and the notes with their boxes."""
    graph = annotated.graph
    titles = list(annotated.groups) or [""]
    members: dict[str, list[str]] = {title: [] for title in titles}
    for node in graph.nodes:
        members[annotated.group_of.get(node, titles[0])].append(node)
    texts = {title: [t for g, t in annotated.notes if g == title] for title in titles}
    boxes: dict[str, Box] = {}
    groups: list[dict[str, Any]] = []
    notes: list[tuple[str, Box]] = []
    x = 0.0
    for column in _group_columns(graph, titles, members):
        y, widest = 0.0, 0.0
        for title in column:
            inner, width, height = _place_group(graph, members[title])
            if texts[title]:
                text = "\n\n".join(f"- {text}" for text in texts[title])
                box = Box(0, height + ROW_GAP + TITLE, max(width, WIDE), _text_height(text) + 40)
                notes.append((text, box.translate(x + GROUP_PADDING, y + GROUP_TITLE + TITLE)))
                width, height = max(width, box.width), box.y + box.height
            left, top = x + GROUP_PADDING, y + GROUP_TITLE + TITLE
            boxes |= {name: box.translate(left, top) for name, box in inner.items()}
            outer = Box(
                x, y, width + 2 * GROUP_PADDING, height + GROUP_TITLE + TITLE + GROUP_PADDING
            )
            if title:
                groups.append(_group_entry(len(groups) + 1, title, outer, titles.index(title)))
            y += outer.height + GROUP_GAP
            widest = max(widest, outer.width)
        x += widest + GROUP_GAP
    return boxes, groups, notes


def _group_entry(number: int, title: str, box: Box, place: int) -> dict[str, Any]:
    return {
        "id": number,
        "title": title,
        "bounding": [box.x, box.y, box.width, box.height],
        "color": COLOURS[place % len(COLOURS)],
        "font_size": 24,
        "flags": {},
    }


def _group_columns(
    graph: Graph, titles: Sequence[str], members: Mapping[str, Iterable[str]]
) -> list[list[str]]:
    """Return the groups in columns: a group is to the right of all groups that it depends on."""
    home = {node: title for title, nodes in members.items() for node in nodes}
    depth: dict[str, int] = {}
    for title in titles:
        needs = {
            home[link.node]
            for name in members[title]
            for _, link in graph.nodes[name].links
            if home[link.node] in depth
        }
        depth[title] = 1 + max((depth[other] for other in needs), default=-1)
    return [[t for t in titles if depth[t] == d] for d in sorted(set(depth.values()))]


def _place_group(graph: Graph, names: Sequence[str]) -> tuple[dict[str, Box], float, float]:
    """Return the boxes of a group's nodes in columns by depth, and the size of them all."""
    depth = _depths(graph, names)
    boxes: dict[str, Box] = {}
    x = height = 0.0
    for column_depth in sorted(set(depth.values())):
        column = [name for name in names if depth[name] == column_depth]
        sizes = {name: node_size(graph.nodes[name]) for name in column}
        y = 0.0
        for name in column:
            boxes[name] = Box(x, y, *sizes[name])
            y += sizes[name][1] + TITLE + ROW_GAP
        height = max(height, y - TITLE - ROW_GAP)
        x += max(width for width, _ in sizes.values()) + COLUMN_GAP
    return boxes, max(x - COLUMN_GAP, 0.0), height


def _depths(graph: Graph, names: Sequence[str]) -> dict[str, int]:
    """Return the depth of each node in its group: the longest path to it.

    A node without inputs from the group is placed just before the first node that uses it.
    """
    inside, depth = set(names), dict.fromkeys(names, 0)
    ordered = [n for n in graph.dependency_order(names) if n in inside]
    for name in ordered:
        sources = [link.node for _, link in graph.nodes[name].links if link.node in inside]
        depth[name] = max((depth[s] + 1 for s in sources), default=0)
    users: dict[str, list[str]] = {name: [] for name in names}
    for name in ordered:
        for _, link in graph.nodes[name].links:
            if link.node in inside:
                users[link.node].append(name)
    for name in reversed(ordered):
        sources = [link.node for _, link in graph.nodes[name].links if link.node in inside]
        if not sources and users[name]:
            depth[name] = min(depth[user] for user in users[name]) - 1
    return depth


def node_size(node: Node) -> tuple[float, float]:
    """Return (width, height) of a node without its title bar."""
    definition = definition_of(node)
    visible = _visible_inputs(definition, node)
    sockets = sum(not item.is_widget and _is_visible(item, definition, node) for item in visible)
    lines = max(sockets, len(definition.outputs))
    height = float(PADDING + SOCKET * lines)
    width = WIDTH
    for item in visible:
        if not item.is_widget:
            continue
        if item.multiline:
            width = WIDE
            height += _text_height(str(node.inputs.get(item.name, item.default) or ""))
        else:
            height += WIDGET * (1 + len(item.extra_widgets))
        value = node.inputs.get(item.name, item.default)
        if isinstance(value, str) and len(value) > 18:
            width = WIDE
    if node.class_type in ("LoadImage", "SaveVideo", "LoadVideo"):
        height += 220  # the image preview
    return float(width), height


def _text_height(text: str) -> int:
    lines = sum(max(1, math.ceil(len(line) / LETTERS)) for line in text.split("\n"))
    return max(TEXT_LEAST, TEXT_LINE * lines + PADDING)
