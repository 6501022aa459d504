"""ComfyUI graphs as forms: the values of their nodes that a person may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from latent_ladder.comfyui.analysis.check import WorkflowReport, check_workflow
from latent_ladder.comfyui.formats.read import workflow_from_document
from latent_ladder.comfyui.graph import Link, Node
from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.node_defs.schema import Input
from latent_ladder.errors import RequestError
from latent_ladder.jobs.workplace import Workplace

_TYPES = {"INT": "int", "FLOAT": "float", "STRING": "text", "BOOLEAN": "bool", "COMBO": "choice"}
_GROUPS = (("loaders", "Models"), ("sampling", "Sampling"), ("conditioning", "Prompt"))


def inspect_graph(graph: Mapping[str, Any], place: Workplace, inputs: Any) -> dict[str, Any]:
    """The form of a graph, in both of ComfyUI's formats. Raises :class:`WorkflowError`."""
    workflow = workflow_from_document(dict(graph))
    report = check_workflow(workflow, place.library(), inputs)
    return {
        "graph": workflow.graph.to_api(),
        "inputs": [row for key in report.required for row in _inputs(report, key)],
        "outputs": [
            {
                "node": each.node,
                "title": _title(report.graph.nodes[each.node]),
                "type": each.class_type,
                "size": list(each.size) if each.size else None,
                "frames": each.frames,
            }
            for each in report.outputs
        ],
        "unsupported": [
            {"node": each.node, "type": each.class_type, "why": each.why}
            for each in report.unsupported
        ],
        "files": [file.to_dict() for file in report.files],
        "problems": [dict(vars(problem)) for problem in report.problems],
        "warnings": [finding.message for finding in report.findings],
        "can_run": report.can_run,
    }


def _inputs(report: WorkflowReport, key: str) -> Iterator[dict[str, Any]]:
    node = report.graph.nodes[key]
    definition = NODE_TYPES.get(node.class_type)
    known = {} if definition is None else {each.name: each for each in definition.inputs}
    for name, value in node.inputs.items():
        if isinstance(value, Link) or not isinstance(value, str | int | float | bool):
            continue
        item = known.get(name)
        yield {
            "node": key,
            "title": _title(node),
            "name": name,
            "type": _type(item, value),
            "value": value,
            "min": None if item is None else item.low,
            "max": None if item is None else item.high,
            "choices": [] if item is None else list(item.options),
            "group": _group("" if definition is None else definition.category),
        }


def _title(node: Node) -> str:
    definition = NODE_TYPES.get(node.class_type)
    return node.title or (node.class_type if definition is None else definition.display)


def _type(item: Input | None, value: Any) -> str:
    if item is not None and item.folder:
        return "file"
    if item is not None and item.options:
        return "choice"
    if item is not None and item.type in _TYPES:
        return _TYPES[item.type]
    return {bool: "bool", int: "int", float: "float"}.get(type(value), "text")


def _group(category: str) -> str:
    first = category.lower()
    return next((title for part, title in _GROUPS if part in first), category.partition("/")[0])


def with_inputs(graph: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The graph in ComfyUI's API format with some values of nodes replaced: ``{"3.seed": 7}``.

    Raises :class:`RequestError` for a value that the graph does not have, and
    :class:`WorkflowError` for a document that is no graph.
    """
    api = workflow_from_document(dict(graph)).graph.to_api()
    for path, value in changes.items():
        node, dot, name = path.rpartition(".")
        found = api.get(node)
        if not dot or found is None or name not in found["inputs"]:
            raise RequestError(
                f"inputs.{path[:80]} is no value of the graph", "use NODE.NAME of /graphs/inspect"
            )
        if isinstance(found["inputs"][name], list):
            raise RequestError(
                f"inputs.{path[:80]} is linked to another node", "change the value of that node"
            )
        found["inputs"][name] = value
    return api
