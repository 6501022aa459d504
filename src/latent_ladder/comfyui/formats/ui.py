"""ComfyUI's UI format, 0.4 and 1.0, as a graph of the nodes that run.

What exists in the interface only is followed and left out: subgraphs, promoted widgets, reroutes,
primitives, get and set nodes, muted and bypassed nodes. An input whose link leads nowhere keeps the
value of its widget, as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from latent_ladder.comfyui.constant_folding import constants
from latent_ladder.comfyui.formats.api import MOST_NODES, check_links, too_many
from latent_ladder.comfyui.formats.ui_subgraphs import (
    INPUTS,
    End,
    Level,
    Written,
    definition_inputs,
    promoted_values,
    read_level,
    title_of,
)
from latent_ladder.comfyui.formats.ui_widgets import (
    other_values,
    sockets,
    widget_name,
    widget_values,
)
from latent_ladder.comfyui.graph import Graph, Link, ModelFile, Node, Trap, Value
from latent_ladder.comfyui.node_defs import FRONTEND_ONLY, node_type
from latent_ladder.errors import WorkflowError

MUTED, BYPASSED = 2, 4
DEEPEST = 32
"""Subgraphs in subgraphs; more is a mistake."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SET, _GET = frozenset({"SetNode", "easy setNode"}), frozenset({"GetNode", "easy getNode"})
_REROUTES = frozenset({"Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss"}) | _SET


class Literal(NamedTuple):
    """A value that a link leads to instead of a node's output."""

    value: Value


class At(NamedTuple):
    """A place on the way along a link: an output of a node of a level."""

    level: Level
    end: End


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
    return Graph(graph.nodes, graph.models, (*reader.traps, *_stale(graph, reader.stale)))


def _stale(graph: Graph, shown: dict[tuple[str, str], Value]) -> Iterator[Trap]:
    """Widgets that show another value than the one that counts."""
    known = constants(graph)
    for (node, name), value in shown.items():
        link = graph.nodes[node].inputs[name]
        given = known.get(link) if isinstance(link, Link) else link
        if given is not None and given != value and value is not None:
            text = f"{name} shows {_short(value)}, but its link gives {_short(given)}"
            yield Trap("stale_value", text, node)


def _short(value: Value) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


class _Reader:
    """Walks the levels of a document; what it finds is in its attributes."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.nodes: dict[str, Node] = {}
        self.models: list[ModelFile] = []
        self.traps: list[Trap] = []
        self.stale: dict[tuple[str, str], Value] = {}
        self._definitions = _definitions(document)
        self._levels: dict[str, Level] = {}

    def expand(self, level: Level) -> None:
        """Collect a level's nodes, and those of the subgraphs in it."""
        for node in level.nodes.values():
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in FRONTEND_ONLY:
                continue
            below = self._below(level, node)
            if below is not None:
                self.expand(below)
                continue
            if len(self.nodes) >= MOST_NODES:
                raise too_many(len(self.nodes) + 1)
            self._collect(level, node)

    def _below(self, level: Level, node: Written) -> Level | None:
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
            if len(self._levels) >= MOST_NODES:
                raise too_many(len(self._levels) + 1)
            self._levels[key] = self._show(level, node, definition, f"{key}:")
        return self._levels[key]

    def _show(self, level: Level, node: Written, definition: Written, prefix: str) -> Level:
        shown, depth = level, 0
        while shown.above is not None:
            shown, depth = shown.above, depth + 1
        outer: Level | None = level
        while outer is not None:
            if outer.definition.get("id") == node["type"]:
                raise level.error(node, f"subgraph {_name(definition)!r} contains itself")
            outer = outer.above
        if depth >= DEEPEST:
            raise level.error(node, f"subgraphs are nested more than {DEEPEST} deep")
        below = read_level(definition, prefix, f"subgraph {_name(definition)!r}")
        below.above, below.instance, below.definition = level, node, definition
        below.promoted = promoted_values(below)
        return below

    def _collect(self, level: Level, node: Written) -> None:
        key, properties = level.prefix + str(node["id"]), node.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        pack = properties.get("cnr_id") or properties.get("aux_id") or ""
        kind = node_type(node["type"], str(pack))
        inputs: dict[str, Link | Value] = dict(widget_values(kind, node))
        for slot, socket in enumerate(sockets(node)):
            name = str(socket.get("name"))
            found = self._source(level, node, slot, socket)
            if found is None:
                continue
            if name in inputs and isinstance(found, Link):
                self.stale[key, name] = _literal(inputs[name])
            inputs[name] = found.value if isinstance(found, Literal) else found
        self.nodes[key] = Node(key, node["type"], title_of(node), inputs, kind.pack)
        for name, (named, placed) in other_values(kind, node).items():
            if not isinstance(inputs.get(name), Link):
                text = f"{name} is {_short(named)} by name and {_short(placed)} by position"
                self.traps.append(Trap("two_values", f"{text} in the file; the name counts", key))
        self.models.extend(_models(properties))

    def _source(
        self, level: Level, node: Written, slot: int, socket: Written
    ) -> Link | Literal | None:
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
                    node, f"input {name} has link {key}, which is not in the file", _AGAIN
                )
        return self._follow(At(level, end), node)

    def _follow(self, at: At | None, asking: Written) -> Link | Literal | None:
        """Go along a link until it ends; values of subgraph instances stand in for missing ends."""
        seen: set[tuple[str, End]] = set()
        kept: Literal | None = None
        first = at
        while at is not None:
            place = (at.level.prefix, at.end)
            if place in seen:
                assert first is not None
                raise first.level.error(asking, "its link goes round in a circle of reroutes")
            seen.add(place)
            if at.end.node == INPUTS:
                at, kept = self._from_outside(at, kept)
                continue
            step = self._step(at)
            if not isinstance(step, At):
                return step if step is not None else kept
            at = step
        return kept

    def _from_outside(self, at: At, kept: Literal | None) -> tuple[At | None, Literal | None]:
        """From an input of a subgraph to what its instance is linked to, or the value it shows."""
        level = at.level
        names = definition_inputs(level)
        if level.above is None or not 0 <= at.end.slot < len(names):
            raise level.error(
                level.instance or {"id": "", "type": ""},
                f"a link comes from input {at.end.slot} of the subgraph, which is not there",
                _AGAIN,
            )
        name = names[at.end.slot]
        if name in level.promoted:
            kept = Literal(level.promoted[name])
        listed = sockets(level.instance)
        socket = next((one for one in listed if one.get("name") == name), None)
        key = socket.get("link") if socket is not None else None
        if key is None:
            return None, kept
        end = level.above.links.get(key) if isinstance(key, int) else None
        if end is None:
            text = f"input {name} has link {key}, which is not in the file"
            raise level.above.error(level.instance, text, _AGAIN)
        return At(level.above, end), kept

    def _step(self, at: At) -> At | Link | Literal | None:
        """One step from an output: where it leads on to, or where it ends."""
        level, (key, slot) = at
        node = level.nodes.get(key)
        if node is None:
            raise WorkflowError(
                f"a link comes from node {level.prefix}{key}, which is not there",
                _AGAIN,
                node_id=level.prefix + key,
            )
        kind, mode = node["type"], node.get("mode")
        if mode == MUTED:
            return None
        if mode == BYPASSED:
            return self._through(level, node, _bypass(node, slot))
        if kind in _REROUTES:
            return self._through(level, node, 0)
        if kind in _GET:
            return self._from_setter(level, node)
        if kind == "PrimitiveNode":
            return _primitive(node)
        below = self._below(level, node)
        if below is not None:
            end = below.results.get(slot)
            return At(below, end) if end is not None else None
        return None if kind in FRONTEND_ONLY else Link(level.prefix + key, slot)

    def _through(self, level: Level, node: Written, place: int | None) -> At | None:
        """On through an input of a node that passes it along; nothing if it is not linked."""
        listed = sockets(node)
        key = listed[place].get("link") if place is not None and place < len(listed) else None
        if key is None:
            return None
        end = level.links.get(key) if isinstance(key, int) else None
        if end is None:
            raise level.error(node, f"its input has link {key}, which is not in the file", _AGAIN)
        return At(level, end)

    def _from_setter(self, level: Level, node: Written) -> At | None:
        """From a get node to the set node of its name, here or in a graph around."""
        name = _first_value(node)
        place: Level | None = level
        while place is not None:
            for other in place.nodes.values():
                if other["type"] in _SET and _first_value(other) == name:
                    return None if other.get("mode") == MUTED else self._through(place, other, 0)
            place = place.above
        raise level.error(node, f"no Set node sets {name!r}", "set it, or remove this node")


_AGAIN = "connect it again in ComfyUI and save the workflow"


def _definitions(document: Written) -> dict[str, Written]:
    """Subgraphs by id; definitions may hold definitions of their own."""
    found: dict[str, Written] = {}
    todo: list[Any] = [document]
    while todo:
        holder = todo.pop().get("definitions")
        listed = holder.get("subgraphs") if isinstance(holder, dict) else None
        for one in listed if isinstance(listed, list) else []:
            if isinstance(one, dict) and isinstance(one.get("id"), str) and one["id"] not in found:
                found[one["id"]] = one
                todo.append(one)
    return found


def _name(definition: Written) -> str:
    return str(definition.get("name") or definition.get("id"))


def _literal(value: Link | Value) -> Value:
    return None if isinstance(value, Link) else value


def _primitive(node: Written) -> Literal | None:
    listed = node.get("widgets_values")
    return Literal(listed[0]) if isinstance(listed, list) and listed else None


def _first_value(node: Written) -> str:
    found = _primitive(node)
    return str(found.value) if found else ""


def _types(socket: Any) -> frozenset[str]:
    kind = socket.get("type") if isinstance(socket, dict) else None
    return frozenset(str(kind).upper().split(",")) if kind is not None else frozenset()


def _bypass(node: Written, slot: int) -> int | None:
    """The input that a bypassed node passes on: the one of the same place if its type fits, or else
    the first that does."""
    listed, results = sockets(node), node.get("outputs")
    wanted = _types(results[slot]) if isinstance(results, list) and slot < len(results) else set()
    if "*" in wanted:
        return slot if slot < len(listed) else 0
    fits = [i for i, one in enumerate(listed) if _types(one) & wanted or "*" in _types(one)]
    return slot if slot in fits else next(iter(fits), None)


def _models(properties: Written) -> Iterator[ModelFile]:
    listed = properties.get("models")
    for one in listed if isinstance(listed, list) else []:
        if isinstance(one, dict) and isinstance(one.get("name"), str):
            yield ModelFile(one["name"], str(one.get("url", "")), str(one.get("directory", "")))
