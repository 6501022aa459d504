"""Builder of graphs: adds nodes one after another and assigns them to groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from latent_ladder.comfyui.graph import Graph, Link, ModelFile, Node, Value
from latent_ladder.comfyui.node_defs import node_type


@dataclass(frozen=True)
class NodeRef:
    """A reference to an added node; ``ref[slot]`` is a link to one of its outputs."""

    node: str

    def __getitem__(self, slot: int) -> Link:
        return Link(self.node, slot)


@dataclass(frozen=True)
class AnnotatedGraph:
    """A graph with what only the interface shows: groups, notes, and random seeds.

    ``groups`` are the group titles in order, ``group_of`` the group title of each node. ``notes``
    are pairs of group title and text. ``randomized`` are the nodes whose seed ComfyUI randomizes
    before every run.
    """

    graph: Graph
    groups: tuple[str, ...] = ()
    group_of: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[tuple[str, str], ...] = ()
    randomized: frozenset[str] = frozenset()


class GraphBuilder:
    """Builder of an :class:`AnnotatedGraph`; node ids count from 1."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._group = ""
        self._groups: dict[str, None] = {}
        self._group_of: dict[str, str] = {}
        self._notes: list[tuple[str, str]] = []
        self._randomized: set[str] = set()

    def start_group(self, title: str) -> None:
        """Assign the nodes that are added from now on to the group ``title``."""
        self._group = title
        self._groups[title] = None

    def add_node(self, class_type: str, title: str = "", **inputs: Link | Value) -> NodeRef:
        """Add a node with these inputs."""
        return self.add_node_with(class_type, inputs, title)

    def reuse_node(self, class_type: str, **inputs: Link | Value) -> NodeRef:
        """Return an existing node with the same type and inputs, or add one."""
        for node in self._nodes.values():
            if node.class_type == class_type and node.inputs == inputs:
                return NodeRef(node.id)
        return self.add_node_with(class_type, inputs)

    def add_node_with(
        self, class_type: str, inputs: Mapping[str, Link | Value], title: str = ""
    ) -> NodeRef:
        """Add a node with these inputs, whose names may contain dots."""
        definition = node_type(class_type)
        title = title or definition.display
        name = str(len(self._nodes) + 1)
        self._nodes[name] = Node(name, class_type, title, dict(inputs), definition.pack)
        self._group_of[name] = self._group
        return NodeRef(name)

    def add_note(self, text: str) -> None:
        """Add a note to the current group."""
        self._notes.append((self._group, text))

    def randomize_seed(self, ref: NodeRef) -> None:
        """Let ComfyUI randomize the seed of a node before every run."""
        self._randomized.add(ref.node)

    def build(self, models: tuple[ModelFile, ...] = ()) -> AnnotatedGraph:
        """Return the graph with its groups and notes; ``models`` are its model files."""
        used = tuple(g for g in self._groups if g in self._group_of.values())
        return AnnotatedGraph(
            Graph(dict(self._nodes), models),
            used,
            dict(self._group_of),
            tuple(self._notes),
            frozenset(self._randomized),
        )
