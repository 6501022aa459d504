"""Backward traversal of a graph: from an input to its source node or to its value.

Nodes that only compute values (primitives, arithmetic, switches, image sizes) are evaluated on the
way. Visited nodes are recorded, so the importer can report nodes that it never used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from latent_ladder.comfyui.constant_folding import FOLDABLE_NODES
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import WorkflowError

RUN_HINT = "run the graph as it is: ladder workflow run"
"""The hint for a graph that no request can express."""


OutputSlot = tuple[Node, int]
"""A node and the index of one of its outputs."""


class Loss(NamedTuple):
    """A setting of a node that a request cannot express."""

    node: str
    what: str
    message: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.what}): {self.message}"


class GraphWalker:
    """One traversal of a graph, with the visited nodes and the losses."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.losses: list[Loss] = []
        self.visited: set[str] = set()

    def report_loss(self, node: Node, message: str) -> None:
        """Record a setting that a request cannot express, once."""
        title = node.title if node.title not in ("", node.class_type) else ""
        label = f'{node.class_type} "{title}"' if title else node.class_type
        loss = Loss(node.id, label, message)
        if loss not in self.losses:
            self.losses.append(loss)

    def node(self, name: str) -> Node:
        """Return a node by id and mark it as visited."""
        self.visited.add(name)
        return self.graph.nodes[name]

    def source(self, node: Node, name: str) -> OutputSlot | None:
        """Return the node and output slot linked to an input, through switches, or ``None``.

        Raises :class:`WorkflowError` for a switch whose setting is unknown.
        """
        value = node.inputs.get(name)
        return self._resolve(value) if isinstance(value, Link) else None

    def required_source(self, node: Node, name: str) -> OutputSlot:
        """Return what :meth:`source` returns. Raises :class:`WorkflowError` for no link."""
        source = self.source(node, name)
        if source is None:
            raise node.error(f"{name} is not connected", "connect it and save the workflow")
        return source

    def _resolve(self, link: Link) -> OutputSlot | None:
        for _ in range(len(self.graph.nodes) + 1):
            node = self.node(link.node)
            if node.class_type != "ComfySwitchNode":
                return node, link.slot
            selected, other = ("on_true", "on_false")[:: 1 if self.value(node, "switch") else -1]
            following = node.inputs.get(selected, node.inputs.get(other))
            if not isinstance(following, Link):
                return None
            link = following
        raise self.graph.nodes[link.node].error("its switches form a cycle", RUN_HINT)

    # -- values -------------------------------------------------------------------------------

    def value(self, node: Node, name: str, default: Value = None) -> Any:
        """Return the value of an input: its literal, that of its link, or the type's default.

        Raises :class:`WorkflowError` for a value that is only known when the graph runs.
        """
        value = node.inputs.get(name, _default_value(node, name, default))
        return self._link_value(value) if isinstance(value, Link) else value

    def number(self, node: Node, name: str) -> float:
        """Return the value of an input that must be a number."""
        return float(self._numeric(node, name))

    def integer(self, node: Node, name: str) -> int:
        """Return the value of an input as an integer; exact for seeds of 64 bits."""
        return int(self._numeric(node, name))

    def _numeric(self, node: Node, name: str) -> int | float:
        value = self.value(node, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise node.error(f"{name}={value!r} is not a number", "set it again and save")
        return value

    def text(self, node: Node, name: str) -> str:
        """Return the value of an input that must be text."""
        value = self.value(node, name)
        if not isinstance(value, str):
            raise node.error(f"{name}={value!r} is not text", "set it again and save")
        return value

    def _link_value(self, link: Link) -> Any:
        source = self._resolve(link)
        if source is None:
            return None
        node, slot = source
        evaluate = VALUE_NODES.get(node.class_type)
        if evaluate is None:
            raise node.error("has an output that is only known when the graph runs", RUN_HINT)
        return evaluate(self, node, slot)


def _default_value(node: Node, name: str, default: Value) -> Value:
    if default is not None:
        return default
    definition = NODE_TYPES.get(node.class_type)
    values = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    for item in definition.visible_inputs(values) if definition is not None else ():
        if item.name == name:
            return item.default
    return None


# -- nodes that compute values --------------------------------------------------------------------


def _folded_value(walker: GraphWalker, node: Node, slot: int) -> Any:
    definition = NODE_TYPES[node.class_type]
    names = {
        **dict.fromkeys(node.inputs),
        **{i.name: None for i in definition.inputs if i.is_widget},
    }
    try:
        return FOLDABLE_NODES[node.class_type]({name: walker.value(node, name) for name in names})[
            slot
        ]
    except (WorkflowError, ValueError, TypeError, OverflowError, IndexError) as error:
        raise node.error(f"has no value: {error}", RUN_HINT) from error


def _enhanced_prompt(walker: GraphWalker, node: Node, _: int) -> Any:
    walker.report_loss(
        node, "rewrites the prompt with a language model; the prompt is used as written"
    )
    # its model and LoRA are not needed either
    walker.visited.update(walker.graph.dependency_order([node.id]))
    return walker.text(node, "prompt")


def _image_size(walker: GraphWalker, node: Node, slot: int) -> int:
    size = image_size(walker, node, "image")
    if size is None or slot > 1:
        raise node.error("needs an image size that is only known when the graph runs", RUN_HINT)
    return size[slot]


VALUE_NODES: Mapping[str, Callable[[GraphWalker, Node, int], Any]] = {
    **{name: _folded_value for name in FOLDABLE_NODES if name != "ComfySwitchNode"},
    "TextGenerateLTX2Prompt": _enhanced_prompt,
    "GetImageSize": _image_size,
}
"""Functions that evaluate an output of a node from its inputs, by node type."""


def image_size(walker: GraphWalker, node: Node, name: str) -> tuple[int, int] | None:
    """Return (width, height) of the images at an input, if it does not depend on a file."""
    linked = walker.source(node, name)
    if linked is None:
        return None
    source, _ = linked
    if source.class_type in ("EmptyImage", "ImageScale"):
        return walker.integer(source, "width"), walker.integer(source, "height")
    if source.class_type == "ResizeImageMaskNode" and (
        walker.text(source, "resize_type") == "scale dimensions"
    ):
        return (
            walker.integer(source, "resize_type.width"),
            walker.integer(source, "resize_type.height"),
        )
    return None


def unsupported_node(node: Node, why: str) -> WorkflowError:
    """Return the error for a node that no request can express, with a hint to run the graph."""
    return node.error(f"{why}, which no request can express", RUN_HINT)
