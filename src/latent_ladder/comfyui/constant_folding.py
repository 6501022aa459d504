"""Nodes that only compute numbers and texts: their results, and what a graph decides with them.

Nothing here loads anything, so that a graph's sizes, frame rates and switches are known before it
runs: :func:`constants` works them out, :func:`needed` leaves out the branches no switch takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from latent_ladder.comfyui.expressions import evaluate
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES, node_type
from latent_ladder.comfyui.node_defs.schema import NodeType
from latent_ladder.errors import WorkflowError

Values = Mapping[str, Any]
Results = tuple[Any, ...]

_MOST_SWITCHES = 40


def _value(values: Values) -> Results:
    return (values["value"],)


def _whole(values: Values) -> Results:
    return (int(values["value"]),)


def _real(values: Values) -> Results:
    return (float(values["value"]),)


def _string(values: Values) -> Results:
    lines = str(values["string"])
    return (" ".join(lines.split("\n")) if values.get("strip_newlines") else lines,)


def _expression(values: Values) -> Results:
    prefix = "values."
    names = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    result = evaluate(str(values["expression"]), names | {"values": list(names.values())})
    return (float(result), int(result), bool(result))


def _simple_math(values: Values) -> Results:
    names = {name: values.get(name, 0.0) for name in "abc"}
    result = evaluate(str(values["value"]), names)
    return (round(result), float(result))


def _switch(values: Values) -> Results:
    """The branch taken; where only one is connected, that one."""
    taken = "on_true" if values["switch"] else "on_false"
    other = "on_false" if values["switch"] else "on_true"
    return (values[taken] if taken in values else values[other],)


PLAIN: Mapping[str, Callable[[Values], Results]] = {
    "PrimitiveInt": _whole,
    "PrimitiveFloat": _real,
    "PrimitiveBoolean": _value,
    "PrimitiveString": _value,
    "PrimitiveStringMultiline": _value,
    "INTConstant": _whole,
    "FloatConstant": _real,
    "StringConstant": _string,
    "StringConstantMultiline": _string,
    "ComfyMathExpression": _expression,
    "SimpleMath+": _simple_math,
    "ComfySwitchNode": _switch,
    # the pack rounds half to even; 23.976 becomes 24
    "LTXFloatToInt": lambda values: (round(float(values["a"])),),
}
"""Results of a node by its inputs' values. Raise :class:`WorkflowError` for failing arithmetic."""


def constants(graph: Graph) -> dict[Link, Value]:
    """Every output that is known before the graph runs.

    What cannot be worked out is left out; it fails when the graph runs, with the node named.
    """
    known: dict[Link, Value] = {}
    for node in in_order(graph):
        rule = PLAIN.get(node.class_type)
        values = _known_values(node, known) if rule else None
        if rule is None or values is None:
            continue
        try:
            results = rule(values)
        except (WorkflowError, KeyError, ValueError, TypeError, OverflowError):
            continue
        known.update((Link(node.id, slot), result) for slot, result in enumerate(results))
    return known


def value_of(node: Node, name: str, known: Mapping[Link, Value]) -> Value:
    """An input's value: the literal, what a link is known to give, or else the type's default.

    ``None`` for a link whose value is not known.
    """
    if name not in node.inputs:
        return _default(node, name)
    given = node.inputs[name]
    return known.get(given) if isinstance(given, Link) else given


def needed(graph: Graph, wanted: Iterable[str]) -> tuple[str, ...]:
    """``wanted`` and what they need, inputs first, without the branches that switches leave out.

    Raises :class:`WorkflowError` for a cycle or a link to a node that is not there.
    """
    return reduced(graph).before(wanted)


def reduced(graph: Graph) -> Graph:
    """The graph without the links that switches are known not to take."""
    known = constants(graph)
    return Graph({node.id: _without_branch(node, known) for node in graph.nodes.values()})


def outputs(graph: Graph) -> tuple[str, ...]:
    """The nodes that a graph runs for."""
    return tuple(n.id for n in graph.nodes.values() if row(n).is_output)


def way_round(graph: Graph, key: str) -> str:
    """The switch that leads past a node, if there is one; else which outputs can run without it."""
    wanted = outputs(graph)
    for name, source in islice(_switches(graph), _MOST_SWITCHES):
        turned = not source.inputs[name]
        node = replace(source, inputs={**source.inputs, name: turned})
        if key not in needed(Graph({**graph.nodes, source.id: node}), wanted):
            return f"--set {source.id}.{name}={str(turned).lower()} leads past it"
    hit = _downstream(graph, key)
    without = [one for one in wanted if one not in hit]
    if without:
        return f"--skip-unsupported runs what does not need it: {', '.join(without[:20])}"
    return "every output needs it"


def _switches(graph: Graph) -> Iterator[tuple[str, Node]]:
    """The inputs that decide switches: yes or no, in the switch or in the node it asks."""
    for node in graph.nodes.values():
        if node.class_type == "ComfySwitchNode":
            link = node.inputs.get("switch")
            source = graph.nodes[link.node] if isinstance(link, Link) else node
            name = "value" if isinstance(link, Link) else "switch"
            if isinstance(source.inputs.get(name), bool):
                yield name, source


def _downstream(graph: Graph, key: str) -> set[str]:
    """A node and all that need it, as the switches are set."""
    known, hit = constants(graph), {key}
    for node in in_order(graph):
        if any(link.node in hit for _, link in _without_branch(node, known).links):
            hit.add(node.id)
    return hit


def row(node: Node) -> NodeType:
    """A node's type; an unknown one has no inputs, no outputs, and says why it cannot run."""
    return node_type(node.class_type, node.pack)


def _default(node: Node, name: str) -> Value:
    kind = NODE_TYPES.get(node.class_type)
    inputs = kind.shown(_literals(node)) if kind else ()
    return next((one.default for one in inputs if one.name == name), None)


def _literals(node: Node) -> dict[str, Value]:
    return {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}


def _known_values(node: Node, known: Mapping[Link, Value]) -> dict[str, Any] | None:
    """All inputs' values; ``None`` if one that counts is not known."""
    values: dict[str, Any] = {}
    kind = NODE_TYPES[node.class_type]
    for name, given in node.inputs.items():
        if not isinstance(given, Link):
            values[name] = given
        elif given in known:
            values[name] = known[given]
        elif name not in kind.lazy:
            return None
    missing = (i for i in kind.inputs if i.is_widget and i.name not in node.inputs)
    values |= {one.name: one.default for one in missing}
    if node.class_type == "ComfySwitchNode" and _taken(node, values.get("switch")) not in values:
        return None
    return values


def _taken(node: Node, switch: object) -> str:
    """The branch of a switch that counts."""
    first, second = ("on_true", "on_false") if switch else ("on_false", "on_true")
    return first if first in node.inputs or second not in node.inputs else second


def _without_branch(node: Node, known: Mapping[Link, Value]) -> Node:
    """The node without the inputs that it will not ask for."""
    unused = _BRANCHES.get(node.class_type)
    dropped = unused(node, known) if unused else ()
    if not dropped:
        return node
    kept = {k: v for k, v in node.inputs.items() if k not in dropped}
    return Node(node.id, node.class_type, node.title, kept, node.pack)


def _unused_side(node: Node, known: Mapping[Link, Value]) -> tuple[str, ...]:
    """The side of a switch that it does not take, nothing where that is not known."""
    switch = value_of(node, "switch", known)
    if switch is None:
        return ()
    return ("on_false",) if _taken(node, switch) == "on_true" else ("on_true",)


def _unused_image(node: Node, known: Mapping[Link, Value]) -> tuple[str, ...]:
    return ("image",) if value_of(node, "bypass", known) is True else ()


def _all_but_prompt(node: Node, _: Mapping[Link, Value]) -> tuple[str, ...]:
    """A prompt that is passed on as it was written needs neither a model nor a picture."""
    return tuple(name for name, _ in node.links if name != "prompt")


_BRANCHES: Mapping[str, Callable[[Node, Mapping[Link, Value]], tuple[str, ...]]] = {
    "ComfySwitchNode": _unused_side,
    "LTXVImgToVideoInplace": _unused_image,
    "LTXVImgToVideoConditionOnly": _unused_image,
    "TextGenerateLTX2Prompt": _all_but_prompt,
}


def in_order(graph: Graph) -> Iterator[Node]:
    """Nodes, inputs first; those of a cycle come in the order they are met."""
    met: set[str] = set()
    for start in graph.nodes:
        path: dict[str, Iterator[str]] = {}
        if start not in met:
            met.add(start)
            path[start] = _sources(graph.nodes[start], graph)
        while path:
            node = next(reversed(path))
            source = next((s for s in path[node] if s not in met), None)
            if source is None:
                del path[node]
                yield graph.nodes[node]
            else:
                met.add(source)
                path[source] = _sources(graph.nodes[source], graph)


def _sources(node: Node, graph: Graph) -> Iterator[str]:
    return (link.node for _, link in node.links if link.node in graph.nodes)


def is_number(value: object) -> bool:
    """A number that something can be counted with: not yes or no, not endless, not absurd."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -(2**65) < value < 2**65  # no seed is larger; false for NaN
    )
