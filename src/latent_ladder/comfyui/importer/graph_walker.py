"""Walking a graph backwards: from an input to the node that feeds it, or to the value it has.

Nodes that only compute values (primitives, arithmetic, switches, the size of a picture) are worked
out on the way. What is met is remembered, so that a reader can say what it never looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from latent_ladder.comfyui.constant_folding import FOLDABLE_NODES
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.errors import WorkflowError

RUN_HINT = "run the graph as it is: ladder workflow run"
"""What to do with a graph that is no request."""


class Loss(NamedTuple):
    """Something a graph says that a request cannot, by the node that says it."""

    node: str
    what: str
    message: str

    def __str__(self) -> str:
        return f"node {self.node} ({self.what}): {self.message}"


class GraphWalker:
    """One walk through a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.losses: list[Loss] = []
        self.visited: set[str] = set()

    def report_loss(self, node: Node, message: str) -> None:
        """Note what cannot be carried; said once."""
        named = node.title if node.title not in ("", node.class_type) else ""
        shown = f'{node.class_type} "{named}"' if named else node.class_type
        lost = Loss(node.id, shown, message)
        if lost not in self.losses:
            self.losses.append(lost)

    def node(self, name: str) -> Node:
        """The node ``name``, remembered as met."""
        self.visited.add(name)
        return self.graph.nodes[name]

    def source(self, node: Node, name: str) -> tuple[Node, int] | None:
        """The node and output slot behind an input, switches looked through; ``None`` if unlinked.

        Raises :class:`WorkflowError` for a switch whose setting nobody can tell.
        """
        value = node.inputs.get(name)
        return self._resolve(value) if isinstance(value, Link) else None

    def required_source(self, node: Node, name: str) -> tuple[Node, int]:
        """As :meth:`source`. Raises :class:`WorkflowError` if there is nothing."""
        found = self.source(node, name)
        if found is None:
            raise node.error(f"{name} is not connected", "connect it and save the workflow")
        return found

    def _resolve(self, link: Link) -> tuple[Node, int] | None:
        for _ in range(len(self.graph.nodes) + 1):
            node = self.node(link.node)
            if node.class_type != "ComfySwitchNode":
                return node, link.slot
            taken, other = ("on_true", "on_false")[:: 1 if self.value(node, "switch") else -1]
            following = node.inputs.get(taken, node.inputs.get(other))
            if not isinstance(following, Link):
                return None
            link = following
        raise self.graph.nodes[link.node].error("its switches lead in a circle", RUN_HINT)

    # -- values -------------------------------------------------------------------------------

    def value(self, node: Node, name: str, default: Value = None) -> Any:
        """The value of an input: its own, the one a link brings, else the node type's default.

        Raises :class:`WorkflowError` where only a run can tell.
        """
        given = node.inputs.get(name, _default_value(node, name, default))
        return self._of_link(given) if isinstance(given, Link) else given

    def number(self, node: Node, name: str) -> float:
        """A value that must be a number."""
        return float(self._numeric(node, name))

    def integer(self, node: Node, name: str) -> int:
        """A value that must be a whole number; a seed keeps all of its digits."""
        return int(self._numeric(node, name))

    def _numeric(self, node: Node, name: str) -> int | float:
        found = self.value(node, name)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise node.error(f"{name}={found!r} is not a number", "set it again and save")
        return found

    def text(self, node: Node, name: str) -> str:
        """A value that must be text."""
        found = self.value(node, name)
        if not isinstance(found, str):
            raise node.error(f"{name}={found!r} is not text", "set it again and save")
        return found

    def _of_link(self, link: Link) -> Any:
        source = self._resolve(link)
        if source is None:
            return None
        node, slot = source
        known = VALUE_NODES.get(node.class_type)
        if known is None:
            raise node.error("gives a value that only a run can tell", RUN_HINT)
        return known(self, node, slot)


def _default_value(node: Node, name: str, default: Value) -> Value:
    if default is not None:
        return default
    row = NODE_TYPES.get(node.class_type)
    values = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    for one in row.visible_inputs(values) if row is not None else ():
        if one.name == name:
            return one.default
    return None


# -- nodes that compute values --------------------------------------------------------------------


def _folded_value(walker: GraphWalker, node: Node, slot: int) -> Any:
    kind = NODE_TYPES[node.class_type]
    names = {**dict.fromkeys(node.inputs), **{i.name: None for i in kind.inputs if i.is_widget}}
    try:
        return FOLDABLE_NODES[node.class_type]({name: walker.value(node, name) for name in names})[
            slot
        ]
    except (WorkflowError, ValueError, TypeError, OverflowError, IndexError) as error:
        raise node.error(f"has no value: {error}", RUN_HINT) from error


def _enhanced_prompt(walker: GraphWalker, node: Node, _: int) -> Any:
    walker.report_loss(
        node, "rewrites the prompt with a language model; the prompt is taken as it is"
    )
    walker.visited.update(
        walker.graph.dependency_order([node.id])
    )  # its model and its LoRA are of no use then
    return walker.text(node, "prompt")


def _image_size(walker: GraphWalker, node: Node, slot: int) -> int:
    size = image_size(walker, node, "image")
    if size is None or slot > 1:
        raise node.error("asks for the size of a picture that only a run can tell", RUN_HINT)
    return size[slot]


VALUE_NODES: Mapping[str, Callable[[GraphWalker, Node, int], Any]] = {
    **{name: _folded_value for name in FOLDABLE_NODES if name != "ComfySwitchNode"},
    "TextGenerateLTX2Prompt": _enhanced_prompt,
    "GetImageSize": _image_size,
}
"""Nodes whose outputs follow from their inputs alone."""


def image_size(walker: GraphWalker, node: Node, name: str) -> tuple[int, int] | None:
    """(width, height) of the pictures at an input, where the graph alone decides it."""
    source = walker.source(node, name)
    if source is None:
        return None
    behind, _ = source
    if behind.class_type in ("EmptyImage", "ImageScale"):
        return walker.integer(behind, "width"), walker.integer(behind, "height")
    if behind.class_type == "ResizeImageMaskNode" and (
        walker.text(behind, "resize_type") == "scale dimensions"
    ):
        return (
            walker.integer(behind, "resize_type.width"),
            walker.integer(behind, "resize_type.height"),
        )
    return None


def unsupported_node(node: Node, why: str) -> WorkflowError:
    """The error for a node that no request can say; names the node and what to do instead."""
    return node.error(f"{why}, so the graph is no request", RUN_HINT)
