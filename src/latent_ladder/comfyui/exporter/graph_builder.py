"""A graph as it is written: nodes are added one after the other, each in a group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from latent_ladder.comfyui.graph import Graph, Link, ModelFile, Node, Value
from latent_ladder.comfyui.node_defs import node_type


@dataclass(frozen=True)
class NodeRef:
    """A node that was added; ``ref[slot]`` is the link to one of its outputs."""

    node: str

    def __getitem__(self, slot: int) -> Link:
        return Link(self.node, slot)


@dataclass(frozen=True)
class AnnotatedGraph:
    """A graph and what only its readers see: groups by node, notes beside groups, drawn seeds.

    ``groups`` are titles in the order in which the groups stand, ``group_of`` the title for each
    node. ``notes`` are texts by the group they stand beside. ``randomized`` are the nodes whose
    seed ComfyUI shall draw anew for every run.
    """

    graph: Graph
    groups: tuple[str, ...] = ()
    group_of: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    randomized: frozenset[str] = frozenset()


class GraphBuilder:
    """Collects nodes; ids count from 1 in the order of adding."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._group = ""
        self._groups: dict[str, None] = {}
        self._group_of: dict[str, str] = {}
        self._notes: list[tuple[str, str]] = []
        self._randomized: set[str] = set()

    def start_group(self, title: str) -> None:
        """Nodes added from here on stand in the group ``title``."""
        self._group = title
        self._groups[title] = None

    def add_node(self, class_type: str, title: str = "", **inputs: Link | Value) -> NodeRef:
        """A node with these inputs."""
        return self.add_node_from(class_type, inputs, title)

    def reuse_node(self, class_type: str, **inputs: Link | Value) -> NodeRef:
        """As :meth:`add`, or the node that is there already with the same inputs."""
        for node in self._nodes.values():
            if node.class_type == class_type and node.inputs == inputs:
                return NodeRef(node.id)
        return self.add_node_from(class_type, inputs)

    def add_node_from(
        self, class_type: str, inputs: Mapping[str, Link | Value], title: str = ""
    ) -> NodeRef:
        """A node with these inputs, whose names may have dots."""
        kind = node_type(class_type)
        title = title or kind.display
        name = str(len(self._nodes) + 1)
        self._nodes[name] = Node(name, class_type, title, dict(inputs), kind.pack)
        self._group_of[name] = self._group
        return NodeRef(name)

    def add_note(self, text: str) -> None:
        """A text beside the present group."""
        self._notes.append((self._group, text))

    def randomize_seed(self, ref: NodeRef) -> None:
        """Let ComfyUI draw this node's seed."""
        self._randomized.add(ref.node)

    def annotated_graph(self, models: tuple[ModelFile, ...] = ()) -> AnnotatedGraph:
        """What was collected."""
        used = tuple(g for g in self._groups if g in self._group_of.values())
        return AnnotatedGraph(
            Graph(dict(self._nodes), models),
            used,
            dict(self._group_of),
            tuple(self._notes),
            frozenset(self._randomized),
        )
