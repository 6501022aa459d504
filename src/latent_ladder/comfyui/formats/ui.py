"""ComfyUI's UI format, 0.4 and 1.0, as a graph of the nodes that run.

What exists in the interface only is followed and left out: subgraphs, promoted widgets, reroutes,
primitives, get and set nodes, muted and bypassed nodes. An input whose link leads nowhere keeps the
value of its widget, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from latent_ladder.comfyui.constant_folding import fold_constants
from latent_ladder.comfyui.formats.api import MAX_NODES, check_links, too_many_nodes
from latent_ladder.comfyui.formats.ui_subgraphs import (
    INPUT_NODE,
    GraphLevel,
    LinkOrigin,
    RawJson,
    definition_inputs,
    node_title,
    promoted_values,
    read_level,
)
from latent_ladder.comfyui.formats.ui_widgets import (
    conflicting_values,
    input_sockets,
    widget_name,
    widget_values,
)
from latent_ladder.comfyui.graph import Graph, Link, LintFinding, ModelFile, Node, Value
from latent_ladder.comfyui.node_defs import FRONTEND_ONLY, node_type
from latent_ladder.errors import WorkflowError

MUTED, BYPASSED = 2, 4
MAX_DEPTH = 32
"""Subgraphs in subgraphs; more is a mistake."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SET, _GET = frozenset({"SetNode", "easy setNode"}), frozenset({"GetNode", "easy getNode"})
_REROUTES = frozenset({"Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss"}) | _SET


class LiteralValue(NamedTuple):
    """A value that a link leads to instead of a node's output."""

    value: Value


class OutputRef(NamedTuple):
    """A place on the way along a link: an output of a node of a level."""

    level: GraphLevel
    end: LinkOrigin


def is_ui(document: object) -> bool:
    """Whether a JSON document looks like the UI format."""
    return isinstance(document, dict) and isinstance(document.get("nodes"), list)


def read_ui(document: dict[str, Any]) -> Graph:
    """The graph of a UI document.

    Raises :class:`WorkflowError`, naming the node, for links that lead to nothing, cycles, missing
    or recursive subgraphs, and promoted widgets that do not exist.
    """
    reader = _Reader(document)
    reader.expand(read_level(document, "", "the workflow"))
    graph = Graph(reader.nodes, tuple(dict.fromkeys(reader.models)))
    check_links(graph)
    return Graph(
        graph.nodes, graph.models, (*reader.findings, *_find_stale_widgets(graph, reader.stale))
    )


def _find_stale_widgets(graph: Graph, shown: dict[tuple[str, str], Value]) -> Iterator[LintFinding]:
    """Widgets that show another value than the one that counts."""
    known = fold_constants(graph)
    for (node, name), value in shown.items():
        link = graph.nodes[node].inputs[name]
        given = known.get(link) if isinstance(link, Link) else link
        if given is not None and given != value and value is not None:
            text = f"{name} shows {_shorten(value)}, but its link gives {_shorten(given)}"
            yield LintFinding("stale_value", text, node)


def _shorten(value: Value) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


class _Reader:
    """Walks the levels of a document; what it finds is in its attributes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.nodes: dict[str, Node] = {}
        self.models: list[ModelFile] = []
        self.findings: list[LintFinding] = []
        self.stale: dict[tuple[str, str], Value] = {}
        self._definitions = _subgraph_definitions(document)
        self._levels: dict[str, GraphLevel] = {}

    def expand(self, level: GraphLevel) -> None:
        """Collect a level's nodes, and those of the subgraphs in it."""
        for node in level.nodes.values():
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in FRONTEND_ONLY:
                continue
            below = self._below(level, node)
            if below is not None:
                self.expand(below)
                continue
            if len(self.nodes) >= MAX_NODES:
                raise too_many_nodes(len(self.nodes) + 1)
            self._collect(level, node)

    def _below(self, level: GraphLevel, node: RawJson) -> GraphLevel | None:
        """The level that a subgraph instance shows; ``None`` for any other node."""
        kind = node["type"]
        definition = self._definitions.get(kind)
        if definition is None:
            if _UUID.fullmatch(kind):
                raise level.error(
                    node,
                    f"its subgraph {kind} is not defined in the file",
                    "open the workflow in ComfyUI and save it again",
                )
            return None
        key = level.prefix + str(node["id"])
        if key not in self._levels:
            if len(self._levels) >= MAX_NODES:
                raise too_many_nodes(len(self._levels) + 1)
            self._levels[key] = self._show(level, node, definition, f"{key}:")
        return self._levels[key]

    def _show(
        self, level: GraphLevel, node: RawJson, definition: RawJson, prefix: str
    ) -> GraphLevel:
        shown, depth = level, 0
        while shown.above is not None:
            shown, depth = shown.above, depth + 1
        outer: GraphLevel | None = level
        while outer is not None:
            if outer.definition.get("id") == node["type"]:
                raise level.error(
                    node, f"subgraph {_definition_name(definition)!r} contains itself"
                )
            outer = outer.above
        if depth >= MAX_DEPTH:
            raise level.error(node, f"subgraphs are nested more than {MAX_DEPTH} deep")
        below = read_level(definition, prefix, f"subgraph {_definition_name(definition)!r}")
        below.above, below.instance, below.definition = level, node, definition
        below.promoted = promoted_values(below)
        return below

    def _collect(self, level: GraphLevel, node: RawJson) -> None:
        key, properties = level.prefix + str(node["id"]), node.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        pack = properties.get("cnr_id") or properties.get("aux_id") or ""
        kind = node_type(node["type"], str(pack))
        inputs: dict[str, Link | Value] = dict(widget_values(kind, node))
        for slot, socket in enumerate(input_sockets(node)):
            name = str(socket.get("name"))
            found = self._source(level, node, slot, socket)
            if found is None:
                continue
            if name in inputs and isinstance(found, Link):
                self.stale[key, name] = _literal_or_none(inputs[name])
            inputs[name] = found.value if isinstance(found, LiteralValue) else found
        self.nodes[key] = Node(key, node["type"], node_title(node), inputs, kind.pack)
        for name, (named, placed) in conflicting_values(kind, node).items():
            if not isinstance(inputs.get(name), Link):
                text = f"{name} is {_shorten(named)} by name and {_shorten(placed)} by position"
                self.findings.append(
                    LintFinding("two_values", f"{text} in the file; the name counts", key)
                )
        self.models.extend(_model_files(properties))

    def _source(
        self, level: GraphLevel, node: RawJson, slot: int, socket: RawJson
    ) -> Link | LiteralValue | None:
        """What an input is linked to in the end; ``None`` for nothing."""
        key = socket.get("link")
        if key is None:
            end = level.implied.get((str(node["id"]), slot))
            if end is None or widget_name(socket):
                return None
        else:
            end = level.links.get(key) if isinstance(key, int) else None
            if end is None:
                name = socket.get("name")
                raise level.error(
                    node, f"input {name} has link {key}, which is not in the file", _RECONNECT
                )
        return self._follow(OutputRef(level, end), node)

    def _follow(self, at: OutputRef | None, asking: RawJson) -> Link | LiteralValue | None:
        """Go along a link until it ends; values of subgraph instances stand in for missing ends."""
        seen: set[tuple[str, LinkOrigin]] = set()
        kept: LiteralValue | None = None
        first = at
        while at is not None:
            place = (at.level.prefix, at.end)
            if place in seen:
                assert first is not None
                raise first.level.error(asking, "its link goes round in a circle of reroutes")
            seen.add(place)
            if at.end.node == INPUT_NODE:
                at, kept = self._from_outside(at, kept)
                continue
            step = self._step(at)
            if not isinstance(step, OutputRef):
                return step if step is not None else kept
            at = step
        return kept

    def _from_outside(
        self, at: OutputRef, kept: LiteralValue | None
    ) -> tuple[OutputRef | None, LiteralValue | None]:
        """From an input of a subgraph to what its instance is linked to, or the value it shows."""
        level = at.level
        names = definition_inputs(level)
        if level.above is None or not 0 <= at.end.slot < len(names):
            raise level.error(
                level.instance or {"id": "", "type": ""},
                f"a link comes from input {at.end.slot} of the subgraph, which is not there",
                _RECONNECT,
            )
        name = names[at.end.slot]
        if name in level.promoted:
            kept = LiteralValue(level.promoted[name])
        listed = input_sockets(level.instance)
        socket = next((one for one in listed if one.get("name") == name), None)
        key = socket.get("link") if socket is not None else None
        if key is None:
            return None, kept
        end = level.above.links.get(key) if isinstance(key, int) else None
        if end is None:
            text = f"input {name} has link {key}, which is not in the file"
            raise level.above.error(level.instance, text, _RECONNECT)
        return OutputRef(level.above, end), kept

    def _step(self, at: OutputRef) -> OutputRef | Link | LiteralValue | None:
        """One step from an output: where it leads on to, or where it ends."""
        level, (key, slot) = at
        node = level.nodes.get(key)
        if node is None:
            raise WorkflowError(
                f"a link comes from node {level.prefix}{key}, which is not there",
                _RECONNECT,
                node_id=level.prefix + key,
            )
        kind, mode = node["type"], node.get("mode")
        if mode == MUTED:
            return None
        if mode == BYPASSED:
            return self._through(level, node, _bypassed_input(node, slot))
        if kind in _REROUTES:
            return self._through(level, node, 0)
        if kind in _GET:
            return self._from_setter(level, node)
        if kind == "PrimitiveNode":
            return _primitive_value(node)
        below = self._below(level, node)
        if below is not None:
            end = below.results.get(slot)
            return OutputRef(below, end) if end is not None else None
        return None if kind in FRONTEND_ONLY else Link(level.prefix + key, slot)

    def _through(self, level: GraphLevel, node: RawJson, place: int | None) -> OutputRef | None:
        """On through an input of a node that passes it along; nothing if it is not linked."""
        listed = input_sockets(node)
        key = listed[place].get("link") if place is not None and place < len(listed) else None
        if key is None:
            return None
        end = level.links.get(key) if isinstance(key, int) else None
        if end is None:
            raise level.error(
                node, f"its input has link {key}, which is not in the file", _RECONNECT
            )
        return OutputRef(level, end)

    def _from_setter(self, level: GraphLevel, node: RawJson) -> OutputRef | None:
        """From a get node to the set node of its name, here or in a graph around."""
        name = _variable_name(node)
        place: GraphLevel | None = level
        while place is not None:
            for other in place.nodes.values():
                if other["type"] in _SET and _variable_name(other) == name:
                    return None if other.get("mode") == MUTED else self._through(place, other, 0)
            place = place.above
        raise level.error(node, f"no Set node sets {name!r}", "set it, or remove this node")


_RECONNECT = "connect it again in ComfyUI and save the workflow"


def _subgraph_definitions(document: RawJson) -> dict[str, RawJson]:
    """Subgraphs by id; definitions may hold definitions of their own."""
    found: dict[str, RawJson] = {}
    todo: list[Any] = [document]
    while todo:
        holder = todo.pop().get("definitions")
        listed = holder.get("subgraphs") if isinstance(holder, dict) else None
        for one in listed if isinstance(listed, list) else []:
            if isinstance(one, dict) and isinstance(one.get("id"), str) and one["id"] not in found:
                found[one["id"]] = one
                todo.append(one)
    return found


def _definition_name(definition: RawJson) -> str:
    return str(definition.get("name") or definition.get("id"))


def _literal_or_none(value: Link | Value) -> Value:
    return None if isinstance(value, Link) else value


def _primitive_value(node: RawJson) -> LiteralValue | None:
    listed = node.get("widgets_values")
    return LiteralValue(listed[0]) if isinstance(listed, list) and listed else None


def _variable_name(node: RawJson) -> str:
    found = _primitive_value(node)
    return str(found.value) if found else ""


def _socket_types(socket: Any) -> frozenset[str]:
    kind = socket.get("type") if isinstance(socket, dict) else None
    return frozenset(str(kind).upper().split(",")) if kind is not None else frozenset()


def _bypassed_input(node: RawJson, slot: int) -> int | None:
    """The input that a bypassed node passes on: the one of the same place if its type fits, or else
    the first that does."""
    listed, results = input_sockets(node), node.get("outputs")
    wanted = (
        _socket_types(results[slot]) if isinstance(results, list) and slot < len(results) else set()
    )
    if "*" in wanted:
        return slot if slot < len(listed) else 0
    fits = [
        i
        for i, one in enumerate(listed)
        if _socket_types(one) & wanted or "*" in _socket_types(one)
    ]
    return slot if slot in fits else next(iter(fits), None)


def _model_files(properties: RawJson) -> Iterator[ModelFile]:
    listed = properties.get("models")
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            yield ModelFile(one["name"], str(one.get("url", "")), str(one.get("directory", "")))
