"""Reader of ComfyUI's UI format, versions 0.4 and 1.0.

It resolves what exists in the interface only: subgraphs, promoted widgets, reroutes, primitives,
get and set nodes, muted and bypassed nodes. An input whose link leads nowhere keeps the value of
its widget, as in ComfyUI.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from latent_ladder.comfyui.constant_folding import fold_constants
from latent_ladder.comfyui.formats.api import MAX_NODES, check_links, too_many_nodes
from latent_ladder.comfyui.formats.pack_nodes import replace_pack_nodes
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
"""Upper limit of nested subgraphs."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_SET, _GET = frozenset({"SetNode", "easy setNode"}), frozenset({"GetNode", "easy getNode"})
_REROUTES = frozenset({"Reroute", "Reroute (rgthree)", "ReroutePrimitive|pysssss"}) | _SET


class LiteralValue(NamedTuple):
    """A literal value at the end of a link, in place of a node's output."""

    value: Value


class OutputRef(NamedTuple):
    """An output of a node in a level, passed while following a link."""

    level: GraphLevel
    origin: LinkOrigin


def is_ui(document: object) -> bool:
    """Return whether a JSON document looks like the UI format."""
    return isinstance(document, dict) and isinstance(document.get("nodes"), list)


def read_ui(document: dict[str, Any]) -> Graph:
    """Return the graph of a UI document.

    Raises :class:`WorkflowError` with the node for a broken link, a cycle, a missing or recursive
    subgraph, and a promoted widget that does not exist.
    """
    reader = _Reader(document)
    reader.collect(read_level(document, "", "the workflow"))
    graph = replace_pack_nodes(Graph(reader.nodes, tuple(dict.fromkeys(reader.models))))
    check_links(graph)
    shown = {key: v for key, v in reader.linked_widgets.items() if _still_has(graph, *key)}
    stale = _find_stale_widgets(graph, shown)
    return Graph(graph.nodes, graph.models, (*reader.findings, *graph.findings, *stale))


def _still_has(graph: Graph, node: str, name: str) -> bool:
    return node in graph.nodes and name in graph.nodes[node].inputs


def _find_stale_widgets(
    graph: Graph, widgets: dict[tuple[str, str], Value]
) -> Iterator[LintFinding]:
    """Find widgets that show a value that their link overrides."""
    known = fold_constants(graph)
    for (node, name), shown in widgets.items():
        link = graph.nodes[node].inputs[name]
        value = known.get(link) if isinstance(link, Link) else link
        if value is not None and value != shown and shown is not None:
            text = f"{name} shows {_shorten(shown)}, but its link gives {_shorten(value)}"
            yield LintFinding("stale_value", text, node)


def _shorten(value: Value) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"


class _Reader:
    """Collector of the nodes, model files and findings of a document, level by level.

    ``linked_widgets`` are the widget values of linked inputs, by node id and input name.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        self.nodes: dict[str, Node] = {}
        self.models: list[ModelFile] = []
        self.findings: list[LintFinding] = []
        self.linked_widgets: dict[tuple[str, str], Value] = {}
        self._definitions = _subgraph_definitions(document)
        self._levels: dict[str, GraphLevel] = {}

    def collect(self, level: GraphLevel) -> None:
        """Collect the nodes of a level and of the subgraphs in it."""
        for node in level.nodes.values():
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in FRONTEND_ONLY:
                continue
            inner = self._subgraph_level(level, node)
            if inner is not None:
                self.collect(inner)
                continue
            if len(self.nodes) >= MAX_NODES:
                raise too_many_nodes(len(self.nodes) + 1)
            self._collect_node(level, node)

    def _subgraph_level(self, level: GraphLevel, node: RawJson) -> GraphLevel | None:
        """Return the level of a subgraph instance, or ``None`` for any other node."""
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
            self._levels[key] = self._open_subgraph(level, node, definition, f"{key}:")
        return self._levels[key]

    def _open_subgraph(
        self, level: GraphLevel, node: RawJson, definition: RawJson, prefix: str
    ) -> GraphLevel:
        name = _definition_name(definition)
        depth = -1
        outer: GraphLevel | None = level
        while outer is not None:
            if outer.definition.get("id") == node["type"]:
                raise level.error(node, f"subgraph {name!r} contains itself")
            depth, outer = depth + 1, outer.parent
        if depth >= MAX_DEPTH:
            raise level.error(node, f"subgraphs are nested more than {MAX_DEPTH} deep")
        inner = read_level(definition, prefix, f"subgraph {name!r}")
        inner.parent, inner.instance, inner.definition = level, node, definition
        inner.promoted = promoted_values(inner)
        return inner

    def _collect_node(self, level: GraphLevel, node: RawJson) -> None:
        key, properties = level.prefix + str(node["id"]), node.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        pack = properties.get("cnr_id") or properties.get("aux_id") or ""
        definition = node_type(node["type"], str(pack))
        inputs: dict[str, Link | Value] = dict(widget_values(definition, node))
        for slot, socket in enumerate(input_sockets(node)):
            name = str(socket.get("name"))
            source = self._resolve_input(level, node, slot, socket)
            if source is None:
                continue
            if name in inputs and isinstance(source, Link):
                self.linked_widgets[key, name] = _literal_or_none(inputs[name])
            inputs[name] = source.value if isinstance(source, LiteralValue) else source
        self.nodes[key] = Node(key, node["type"], node_title(node), inputs, definition.pack)
        for name, (by_name, by_position) in conflicting_values(definition, node).items():
            if not isinstance(inputs.get(name), Link):
                text = f"{name} is {_shorten(by_name)} by name and {_shorten(by_position)}"
                text = f"{text} by position in the file; the value by name is used"
                self.findings.append(LintFinding("two_values", text, key))
        self.models.extend(_model_files(properties))

    def _resolve_input(
        self, level: GraphLevel, node: RawJson, slot: int, socket: RawJson
    ) -> Link | LiteralValue | None:
        """Return the link or value of an input after all indirections, or ``None``."""
        key = socket.get("link")
        if key is None:
            origin = level.use_everywhere.get((str(node["id"]), slot))
            if origin is None or widget_name(socket):
                return None
        else:
            origin = level.links.get(key) if isinstance(key, int) else None
            if origin is None:
                name = socket.get("name")
                raise level.error(
                    node, f"input {name} has link {key}, which is not in the file", _RECONNECT
                )
        return self._follow_link(OutputRef(level, origin), node)

    def _follow_link(self, output: OutputRef | None, node: RawJson) -> Link | LiteralValue | None:
        """Follow a link to its end.

        If it ends nowhere, the value that a subgraph instance has for the input is returned.
        """
        visited: set[tuple[str, LinkOrigin]] = set()
        fallback: LiteralValue | None = None
        first = output
        while output is not None:
            key = (output.level.prefix, output.origin)
            if key in visited:
                assert first is not None
                raise first.level.error(node, "its link is a cycle of reroutes")
            visited.add(key)
            if output.origin.node == INPUT_NODE:
                output, fallback = self._leave_subgraph(output, fallback)
                continue
            following = self._next_output(output)
            if not isinstance(following, OutputRef):
                return following if following is not None else fallback
            output = following
        return fallback

    def _leave_subgraph(
        self, output: OutputRef, fallback: LiteralValue | None
    ) -> tuple[OutputRef | None, LiteralValue | None]:
        """Continue from an input of a subgraph to the link or the value of its instance."""
        level = output.level
        names = definition_inputs(level)
        if level.parent is None or not 0 <= output.origin.slot < len(names):
            raise level.error(
                level.instance or {"id": "", "type": ""},
                f"a link comes from subgraph input {output.origin.slot}, which does not exist",
                _RECONNECT,
            )
        name = names[output.origin.slot]
        if name in level.promoted:
            fallback = LiteralValue(level.promoted[name])
        instance_sockets = input_sockets(level.instance)
        socket = next((one for one in instance_sockets if one.get("name") == name), None)
        key = socket.get("link") if socket is not None else None
        if key is None:
            return None, fallback
        origin = level.parent.links.get(key) if isinstance(key, int) else None
        if origin is None:
            text = f"input {name} has link {key}, which is not in the file"
            raise level.parent.error(level.instance, text, _RECONNECT)
        return OutputRef(level.parent, origin), fallback

    def _next_output(self, output: OutputRef) -> OutputRef | Link | LiteralValue | None:
        """Return the next output along a link, or the end of the link."""
        level, (key, slot) = output
        node = level.nodes.get(key)
        if node is None:
            raise WorkflowError(
                f"a link comes from node {level.prefix}{key}, which does not exist",
                _RECONNECT,
                node_id=level.prefix + key,
            )
        kind, mode = node["type"], node.get("mode")
        if mode == MUTED:
            return None
        if mode == BYPASSED:
            return self._pass_through(level, node, _bypassed_input(node, slot))
        if kind in _REROUTES:
            return self._pass_through(level, node, 0)
        if kind in _GET:
            return self._find_set_node(level, node)
        if kind == "PrimitiveNode":
            return _primitive_value(node)
        inner = self._subgraph_level(level, node)
        if inner is not None:
            origin = inner.outputs.get(slot)
            return OutputRef(inner, origin) if origin is not None else None
        return None if kind in FRONTEND_ONLY else Link(level.prefix + key, slot)

    def _pass_through(
        self, level: GraphLevel, node: RawJson, index: int | None
    ) -> OutputRef | None:
        """Return the output linked to an input that a node passes through, or ``None``."""
        linked = input_sockets(node)
        key = linked[index].get("link") if index is not None and index < len(linked) else None
        if key is None:
            return None
        origin = level.links.get(key) if isinstance(key, int) else None
        if origin is None:
            raise level.error(
                node, f"its input has link {key}, which is not in the file", _RECONNECT
            )
        return OutputRef(level, origin)

    def _find_set_node(self, level: GraphLevel, node: RawJson) -> OutputRef | None:
        """Return the output linked to the set node of a get node, in this level or a parent."""
        name = _variable_name(node)
        scope: GraphLevel | None = level
        while scope is not None:
            for other in scope.nodes.values():
                if other["type"] in _SET and _variable_name(other) == name:
                    muted = other.get("mode") == MUTED
                    return None if muted else self._pass_through(scope, other, 0)
            scope = scope.parent
        raise level.error(
            node, f"no Set node has the name {name!r}", "add one, or remove this Get node"
        )


_RECONNECT = "connect it again in ComfyUI and save the workflow"


def _subgraph_definitions(document: RawJson) -> dict[str, RawJson]:
    """Return all subgraph definitions by id, including nested definitions."""
    definitions: dict[str, RawJson] = {}
    pending: list[Any] = [document]
    while pending:
        container = pending.pop().get("definitions")
        subgraphs = container.get("subgraphs") if isinstance(container, dict) else None
        for entry in subgraphs if isinstance(subgraphs, list) else []:
            key = entry.get("id") if isinstance(entry, dict) else None
            if isinstance(key, str) and key not in definitions:
                definitions[key] = entry
                pending.append(entry)
    return definitions


def _definition_name(definition: RawJson) -> str:
    return str(definition.get("name") or definition.get("id"))


def _literal_or_none(value: Link | Value) -> Value:
    return None if isinstance(value, Link) else value


def _primitive_value(node: RawJson) -> LiteralValue | None:
    values = node.get("widgets_values")
    return LiteralValue(values[0]) if isinstance(values, list) and values else None


def _variable_name(node: RawJson) -> str:
    name = _primitive_value(node)
    return str(name.value) if name else ""


def _socket_types(socket: Any) -> frozenset[str]:
    kind = socket.get("type") if isinstance(socket, dict) else None
    return frozenset(str(kind).upper().split(",")) if kind is not None else frozenset()


def _bypassed_input(node: RawJson, slot: int) -> int | None:
    """Return the input that a bypassed node passes through to an output.

    It is the input at the same position if its type fits, else the first input of a fitting type.
    """
    inputs, outputs = input_sockets(node), node.get("outputs")
    types: frozenset[str] = frozenset()
    if isinstance(outputs, list) and slot < len(outputs):
        types = _socket_types(outputs[slot])
    if "*" in types:
        return slot if slot < len(inputs) else 0
    fitting = [
        i
        for i, socket in enumerate(inputs)
        if _socket_types(socket) & types or "*" in _socket_types(socket)
    ]
    return slot if slot in fitting else next(iter(fitting), None)


def _model_files(properties: RawJson) -> Iterator[ModelFile]:
    models = properties.get("models")
    for entry in models if isinstance(models, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("name"), str):
            url, directory = str(entry.get("url", "")), str(entry.get("directory", ""))
            yield ModelFile(entry["name"], url, directory)
