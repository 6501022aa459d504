"""Constant folding: values that are known before a graph runs, and the branches they rule out.

Nodes that only compute numbers, texts and switches are evaluated without loading anything.
:func:`fold_constants` returns their outputs; :func:`required_nodes` returns the nodes that must
run, without the branches that no switch selects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from latent_ladder.comfyui.expressions import evaluate
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES, node_type
from latent_ladder.comfyui.node_defs.primitives import ASPECT_RATIOS
from latent_ladder.comfyui.node_defs.schema import NodeType
from latent_ladder.errors import WorkflowError

Values = Mapping[str, Any]
NodeOutputs = tuple[Any, ...]

_MAX_SWITCHES = 40


def _value(values: Values) -> NodeOutputs:
    return (values["value"],)


def parse_integer(given: str | float) -> int:
    """An INT written as a number or as text: exact for 64 bits, a fraction is cut off.

    Raises ``ValueError`` for text that is not a number.
    """
    try:
        return int(given)
    except ValueError:
        return int(float(given))


def _to_int(values: Values) -> NodeOutputs:
    return (int(values["value"]),)


def _to_float(values: Values) -> NodeOutputs:
    return (float(values["value"]),)


def _string(values: Values) -> NodeOutputs:
    lines = str(values["string"])
    return (" ".join(lines.split("\n")) if values.get("strip_newlines") else lines,)


def _expression(values: Values) -> NodeOutputs:
    prefix = "values."
    names = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    result = evaluate(str(values["expression"]), names | {"values": list(names.values())})
    return (float(result), int(result), bool(result))


def _simple_math(values: Values) -> NodeOutputs:
    names = {name: values.get(name, 0) for name in "abc"}
    result = evaluate(str(values["value"]), names)
    return (round(result), float(result))


def _switch(values: Values) -> NodeOutputs:
    """Return the selected branch, or the other one if only that is connected."""
    selected = "on_true" if values["switch"] else "on_false"
    other = "on_false" if values["switch"] else "on_true"
    return (values[selected] if selected in values else values[other],)


def _resolution(values: Values) -> NodeOutputs:
    """Sides of a shape with so many megapixels of 1024 x 1024, rounded to a multiple."""
    width, height = ASPECT_RATIOS[values["aspect_ratio"]]
    scale = math.sqrt(float(values["megapixels"]) * 1024 * 1024 / (width * height))
    step = int(values["multiple"])
    return tuple(round(side * scale / step) * step for side in (width, height))


FOLDABLE_NODES: Mapping[str, Callable[[Values], NodeOutputs]] = {
    "PrimitiveInt": _to_int,
    "PrimitiveFloat": _to_float,
    "PrimitiveBoolean": _value,
    "PrimitiveString": _value,
    "PrimitiveStringMultiline": _value,
    "INTConstant": _to_int,
    "FloatConstant": _to_float,
    "Seed (rgthree)": lambda values: (int(values["seed"]),),
    "StringConstant": _string,
    "StringConstantMultiline": _string,
    "ComfyMathExpression": _expression,
    "SimpleMath+": _simple_math,
    "ResolutionSelector": _resolution,
    "ComfySwitchNode": _switch,
    # the pack rounds half to even; 23.976 becomes 24
    "LTXFloatToInt": lambda values: (round(float(values["a"])),),
}
"""Functions from the input values of a node to its outputs, by node type.

They raise :class:`WorkflowError` if the arithmetic fails.
"""


def fold_constants(graph: Graph) -> dict[Link, Value]:
    """Return the node outputs that are known before the graph runs.

    An output whose computation fails is left out; running the graph reports the error at its node.
    """
    known: dict[Link, Value] = {}
    for node in topological_order(graph):
        rule = FOLDABLE_NODES.get(node.class_type)
        values = _known_values(node, known) if rule else None
        if rule is None or values is None:
            continue
        try:
            results = rule(values)
        except (WorkflowError, KeyError, ValueError, TypeError, OverflowError):
            continue
        known.update((Link(node.id, slot), result) for slot, result in enumerate(results))
    return known


def input_value(node: Node, name: str, known: Mapping[Link, Value]) -> Value:
    """Return the value of an input: its literal, the known value of its link, or the default.

    Returns ``None`` for a link whose value is not known.
    """
    if name not in node.inputs:
        return _default(node, name)
    value = node.inputs[name]
    return known.get(value) if isinstance(value, Link) else value


def required_nodes(graph: Graph, wanted: Iterable[str]) -> tuple[str, ...]:
    """Return ``wanted`` and the nodes they depend on, dependencies first, without unused branches.

    Raises :class:`WorkflowError` for a cycle or a link to a missing node.
    """
    return prune_branches(graph).dependency_order(wanted)


def prune_branches(graph: Graph) -> Graph:
    """Return the graph without the links that no switch selects."""
    known = fold_constants(graph)
    return Graph({node.id: _drop_unused_inputs(node, known) for node in graph.nodes.values()})


def output_nodes(graph: Graph) -> tuple[str, ...]:
    """Return the ids of the nodes that save or show a result."""
    return tuple(n.id for n in graph.nodes.values() if definition_of(n).is_output)


def suggest_workaround(graph: Graph, key: str) -> str:
    """Return a hint how to run the graph without a node.

    The hint names a switch that bypasses the node, or else the outputs that do not need it.
    """
    outputs = output_nodes(graph)
    for name, source in islice(_switches(graph), _MAX_SWITCHES):
        toggled = not source.inputs[name]
        node = replace(source, inputs={**source.inputs, name: toggled})
        if key not in required_nodes(Graph({**graph.nodes, source.id: node}), outputs):
            return f"--set {source.id}.{name}={str(toggled).lower()} bypasses it"
    dependent = _dependent_nodes(graph, key)
    independent = [output for output in outputs if output not in dependent]
    if independent:
        listed = ", ".join(independent[:20])
        return f"--skip-unsupported runs the outputs that do not need it: {listed}"
    return "every output needs it"


def _switches(graph: Graph) -> Iterator[tuple[str, Node]]:
    """Return the boolean inputs that control switches, as pairs of input name and node.

    The input belongs to the switch itself or to the node that is linked to it.
    """
    for node in graph.nodes.values():
        if node.class_type == "ComfySwitchNode":
            link = node.inputs.get("switch")
            source = graph.nodes[link.node] if isinstance(link, Link) else node
            name = "value" if isinstance(link, Link) else "switch"
            if isinstance(source.inputs.get(name), bool):
                yield name, source


def _dependent_nodes(graph: Graph, key: str) -> set[str]:
    """Return a node and all nodes that depend on it with the current switch settings."""
    known, dependent = fold_constants(graph), {key}
    for node in topological_order(graph):
        if any(link.node in dependent for _, link in _drop_unused_inputs(node, known).links):
            dependent.add(node.id)
    return dependent


def definition_of(node: Node) -> NodeType:
    """Return the definition of a node's type.

    An unknown type gets a definition without inputs and outputs that states why it cannot run.
    """
    return node_type(node.class_type, node.pack)


def _default(node: Node, name: str) -> Value:
    definition = NODE_TYPES.get(node.class_type)
    inputs = definition.visible_inputs(_literals(node)) if definition else ()
    return next((item.default for item in inputs if item.name == name), None)


def _literals(node: Node) -> dict[str, Value]:
    return {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}


def _known_values(node: Node, known: Mapping[Link, Value]) -> dict[str, Any] | None:
    """Return the values of all inputs, or ``None`` if a required one is not known."""
    values: dict[str, Any] = {}
    definition = NODE_TYPES[node.class_type]
    for name, value in node.inputs.items():
        if not isinstance(value, Link):
            values[name] = value
        elif value in known:
            values[name] = known[value]
        elif name not in definition.lazy:
            return None
    missing = (i for i in definition.inputs if i.is_widget and i.name not in node.inputs)
    values |= {item.name: item.default for item in missing}
    if (
        node.class_type == "ComfySwitchNode"
        and _selected_branch(node, values.get("switch")) not in values
    ):
        return None
    return values


def _selected_branch(node: Node, switch: object) -> str:
    """Return the name of the input that a switch passes on."""
    first, second = ("on_true", "on_false") if switch else ("on_false", "on_true")
    return first if first in node.inputs or second not in node.inputs else second


def _drop_unused_inputs(node: Node, known: Mapping[Link, Value]) -> Node:
    """Return the node without the inputs that it will not read."""
    find_unused = _UNUSED_INPUTS.get(node.class_type)
    unused = find_unused(node, known) if find_unused else ()
    if not unused:
        return node
    inputs = {k: v for k, v in node.inputs.items() if k not in unused}
    return Node(node.id, node.class_type, node.title, inputs, node.pack)


def _unused_switch_branch(node: Node, known: Mapping[Link, Value]) -> tuple[str, ...]:
    """Return the input that a switch does not select, or nothing if its setting is not known."""
    switch = input_value(node, "switch", known)
    if switch is None:
        return ()
    return ("on_false",) if _selected_branch(node, switch) == "on_true" else ("on_true",)


def _bypassed_image(node: Node, known: Mapping[Link, Value]) -> tuple[str, ...]:
    return ("image",) if input_value(node, "bypass", known) is True else ()


def _inputs_except_prompt(node: Node, _: Mapping[Link, Value]) -> tuple[str, ...]:
    """Return all linked inputs but the prompt: it is passed on without a model or image."""
    return tuple(name for name, _ in node.links if name != "prompt")


_UNUSED_INPUTS: Mapping[str, Callable[[Node, Mapping[Link, Value]], tuple[str, ...]]] = {
    "ComfySwitchNode": _unused_switch_branch,
    "LTXVImgToVideoInplace": _bypassed_image,
    "LTXVImgToVideoConditionOnly": _bypassed_image,
    "TextGenerateLTX2Prompt": _inputs_except_prompt,
}


def topological_order(graph: Graph) -> Iterator[Node]:
    """Return all nodes, dependencies first; nodes of a cycle in the order of traversal."""
    visited: set[str] = set()
    for start in graph.nodes:
        path: dict[str, Iterator[str]] = {}
        if start not in visited:
            visited.add(start)
            path[start] = _sources(graph.nodes[start], graph)
        while path:
            node = next(reversed(path))
            source = next((s for s in path[node] if s not in visited), None)
            if source is None:
                del path[node]
                yield graph.nodes[node]
            else:
                visited.add(source)
                path[source] = _sources(graph.nodes[source], graph)


def _sources(node: Node, graph: Graph) -> Iterator[str]:
    return (link.node for _, link in node.links if link.node in graph.nodes)


def is_number(value: object) -> bool:
    """Return whether a value is a finite number below 2**65 in size; booleans do not count."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -(2**65) < value < 2**65  # no seed is larger; false for NaN
    )
