"""Overrides of input values from the command line: ``--set NODE.input=value``."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace

from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import Input
from latent_ladder.errors import WorkflowError, did_you_mean

MAX_QUOTE = 40
"""Characters of a text in the description of a node."""


def apply_overrides(graph: Graph, sets: Iterable[str]) -> Graph:
    """Return the graph with input values set, each by ``NODE.input=value``; a link is replaced.

    NODE is an id, or a title or type that only one node has. Raises :class:`WorkflowError` for an
    unknown node or input, or a value of the wrong type.
    """
    nodes = dict(graph.nodes)
    for text in sets:
        target, equals, value = text.partition("=")
        if not equals or "." not in target:
            raise WorkflowError(
                f"--set {text} is not NODE.input=value",
                "write, for example, --set Seed.noise_seed=7, or an id instead of a title",
            )
        node, name = _find_target(nodes, target.strip())
        inputs = {**node.inputs, name: _parse_value(node, name, value)}
        nodes[node.id] = replace(node, inputs=inputs)
    return replace(graph, nodes=nodes)


def _find_target(nodes: Mapping[str, Node], target: str) -> tuple[Node, str]:
    """Return the node and input of a target such as ``12.steps``; a title may contain dots."""
    cuts = [i for i, char in enumerate(target) if char == "."]
    for cut in cuts:
        node = _find_node(nodes, target[:cut])
        if node is not None:
            return node, _check_input_name(nodes, node, target[cut + 1 :])
    named = target[: cuts[0]]
    known = {*nodes, *(n.title for n in nodes.values()), *(n.class_type for n in nodes.values())}
    raise WorkflowError(f"--set {target}: the workflow has no node {named}", _suggest(named, known))


def _find_node(nodes: Mapping[str, Node], name: str) -> Node | None:
    if name in nodes:
        return nodes[name]
    for found in (
        [n for n in nodes.values() if n.title == name],
        [n for n in nodes.values() if n.class_type == name],
    ):
        if len(found) > 1:
            choices = ", ".join(describe_choice(nodes, node) for node in found)
            raise WorkflowError(
                f"--set {name}: {len(found)} nodes have this name", f"use an id: {choices}"
            )
        if found:
            return found[0]
    return None


def describe_choice(nodes: Mapping[str, Node], node: Node) -> str:
    """Return a node's id with its use: its own title, the prompt it is, the text it has."""
    title = node.title if node.title not in ("", node.class_type) else ""
    role = _prompt_role(nodes, node.id)
    text = next((v for k, v in node.inputs.items() if k == "text" and isinstance(v, str)), "")
    quoted = f'"{text[: MAX_QUOTE - 1]}…"' if len(text) > MAX_QUOTE else f'"{text}"' if text else ""
    notes = " ".join(part for part in (title, role and f"[{role} prompt]", quoted) if part)
    return f"{node.id} ({notes})" if notes else node.id


def _prompt_role(nodes: Mapping[str, Node], node: str) -> str:
    """Return "positive" or "negative" for a node whose output goes into such an input."""
    waiting, seen = [node], set[str]()
    while waiting:
        source = waiting.pop(0)
        seen.add(source)
        for other in nodes.values():
            for name, link in other.links:
                if link.node != source:
                    continue
                if name in ("positive", "negative"):
                    return name
                if name.startswith("conditioning") and other.id not in seen:
                    waiting.append(other.id)
    return ""


def _check_input_name(nodes: Mapping[str, Node], node: Node, name: str) -> str:
    known = [item.name for item in _visible_inputs(node)]
    if known and name not in known and name not in node.inputs:
        having = [n for n in nodes.values() if n.class_type in NODE_TYPES and name in n.inputs]
        others = ", ".join(f"{n.id} {n.title or n.class_type}" for n in having)
        hint = f"nodes with {name}: {others}" if having else _suggest(name, known)
        raise node.error(f"--set: it has no input {name}", hint)
    return name


def _visible_inputs(node: Node) -> list[Input]:
    definition = NODE_TYPES.get(node.class_type)
    literals = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    return [] if definition is None else list(definition.visible_inputs(literals))


def _parse_value(node: Node, name: str, text: str) -> Value:
    item = next((one for one in _visible_inputs(node) if one.name == name), None)
    if item is None:
        return _parse_untyped(text)
    if not item.is_widget:
        raise node.error(
            f"--set: {name} takes {item.type} from a link, not a value",
            "set a value of the node that it is linked to",
        )
    try:
        return _parse_typed(item, text)
    except ValueError:
        kind = item.type.split(",")[0].lower()
        raise node.error(f"--set: {name}={text} is not of type {kind}") from None


def _parse_typed(item: Input, text: str) -> Value:
    """Return a text as a value of the input's type. Raises ``ValueError``."""
    if "BOOLEAN" in item.types:
        answers = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if text.strip().lower() not in answers:
            raise ValueError(text)
        return answers[text.strip().lower()]
    if "FLOAT" in item.types:
        return float(text)
    return int(text) if "INT" in item.types else text


def _parse_untyped(text: str) -> Value:
    try:
        found: Value = json.loads(text)
    except ValueError:
        return text
    return found


def _suggest(name: str, known: Iterable[str]) -> str | None:
    names = sorted(known)
    return did_you_mean(name, names) if names else None
