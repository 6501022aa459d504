"""Single nodes of ComfyUI run without a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from latent_ladder.comfyui.graph import Graph, Node
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.nodes import NODES
from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeResult
from latent_ladder.comfyui.runtime.engine import Engine


def run_node(work: Engine, class_type: str, **inputs: Any) -> tuple[Sequence[Any], list[str]]:
    """Run one node; return its outputs and warning codes. Missing inputs have their defaults."""
    given = {name.replace("__", "."): value for name, value in inputs.items()}
    literals = {k: v for k, v in given.items() if isinstance(v, str | int | float | bool)}
    rows = NODE_TYPES[class_type].visible_inputs(literals)
    values = {r.name: r.default for r in rows if r.is_widget and r.default is not None} | given
    warnings: list[str] = []

    def compute_always(_: str, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return compute()

    context = NodeContext(
        node=Node("1", class_type, "", {}),
        input_names=frozenset(values),
        fetch=values.__getitem__,
        engine=work,
        graph=Graph({}),
        load_or_compute=compute_always,
        progress=lambda done, of: None,
        warn=lambda code, message: warnings.append(code),
        check_cancelled=lambda: None,
        channels=8,
        metadata={"prompt": '{"1": {}}'},
    )
    found = NODES[class_type].run(context)
    return (found.values if isinstance(found, NodeResult) else found), warnings


def first_output(work: Engine, class_type: str, **inputs: Any) -> Any:
    """Return the first output of a node."""
    return run_node(work, class_type, **inputs)[0][0]
