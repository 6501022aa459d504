"""``POST /prompt``: a request body becomes a job, or an error in ComfyUI's format. No torch.

As in ComfyUI, outputs without problems run even if others have some; the problems are in
``node_errors`` in both cases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from latent_ladder.comfyui.analysis.validate import (
    NO_OUTPUTS,
    UNKNOWN_TYPE,
    Problem,
    find_problems,
    problems_error,
)
from latent_ladder.comfyui.constant_folding import prune_branches
from latent_ladder.comfyui.formats.api import read_api
from latent_ladder.comfyui.graph import Graph
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.errors import WorkflowError
from latent_ladder.server.file_listing import CachedListing, FileListing
from latent_ladder.server.job_store import Job, is_queue_number

MAX_ID = 200
_SECRETS = frozenset({"api_key_comfy_org", "auth_token_comfy_org"})
"""Keys for paid services that some clients send; they are not used and not stored."""


class PromptError(Exception):
    """A prompt that cannot run; ``body`` is the answer, with status 400."""

    def __init__(self, error: Mapping[str, Any], node_errors: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.body = {"error": error, "node_errors": node_errors}


@dataclass(frozen=True)
class PromptRequest:
    """A checked prompt. ``number`` is the place in the queue that the client wants, if any."""

    id: str
    prompt: Mapping[str, Any]
    extra: Mapping[str, Any]
    outputs: tuple[str, ...]
    node_errors: Mapping[str, Any]
    number: float | None
    front: bool

    def to_job(self, next_number: Callable[[], int]) -> Job:
        """The job, with its place in the queue."""
        number = self.number
        if number is None:
            number = -next_number() if self.front else next_number()
        extra = {**self.extra, "create_time": int(time.time() * 1000)}
        return Job(number, self.id, self.prompt, extra, self.outputs)


def read_prompt(body: Mapping[str, Any], listing: FileListing) -> PromptRequest:
    """Check the body of ``POST /prompt``. Raises :class:`PromptError`."""
    prompt = body.get("prompt")
    if not isinstance(prompt, dict):
        raise _prompt_error("no_prompt", "the body has no prompt", 'send {"prompt": {id: node}}')
    if not prompt:
        raise _no_output_error()
    graph = _read_graph(prompt)
    outputs = _select_outputs(graph, body.get("partial_execution_targets"))
    try:
        problems = find_problems(graph, CachedListing(listing), listing.replaced, outputs)
        outputs, node_errors = _drop_invalid_outputs(graph, outputs, problems)
    except WorkflowError as error:
        raise _graph_error(error) from error
    return PromptRequest(
        id=_read_id(body.get("prompt_id")),
        prompt=prompt,
        extra=_read_extra(body),
        outputs=outputs,
        node_errors=node_errors,
        number=_read_number(body.get("number")),
        front=bool(body.get("front")),
    )


def _read_graph(prompt: Mapping[str, Any]) -> Graph:
    try:
        return read_api(prompt)
    except WorkflowError as error:
        raise _graph_error(error) from error


def _graph_error(error: WorkflowError) -> PromptError:
    """The error for a prompt that is not a valid graph: bad nodes, broken links, cycles."""
    node = error.node_id or ""
    kind = UNKNOWN_TYPE if node and not error.class_type else "invalid_prompt"
    body = _error_dict(kind, error.message, error.hint or "", {"node_id": node})
    node_error = {"errors": [body], "dependent_outputs": [], "class_type": error.class_type or ""}
    return PromptError(body, {node: node_error} if node else {})


def _select_outputs(graph: Graph, targets: object) -> tuple[str, ...]:
    """The output nodes to run: all, or those in ``targets``."""
    if targets is not None and not isinstance(targets, list):
        raise _prompt_error(
            "invalid_prompt", "partial_execution_targets is not a list", "send a list of node ids"
        )
    chosen = None if targets is None else {str(target) for target in targets}
    outputs = tuple(
        node.id
        for node in graph.nodes.values()
        if node_type(node.class_type).is_output and (chosen is None or node.id in chosen)
    )
    if not outputs:
        raise _no_output_error()
    return outputs


def _no_output_error() -> PromptError:
    return _prompt_error(
        NO_OUTPUTS, "the prompt has no output", "add a node that saves or previews"
    )


def _prompt_error(kind: str, message: str, details: str) -> PromptError:
    return PromptError(_error_dict(kind, message, details), {})


def _error_dict(
    kind: str, message: str, details: str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": dict(extra or {})}


def _read_id(value: object) -> str:
    if value is None:
        return str(uuid4())
    text = str(value)
    if not text or len(text) > MAX_ID or not isinstance(value, str | int):
        raise _prompt_error(
            "invalid_prompt",
            f"prompt_id is not a text of 1 to {MAX_ID} characters",
            "use a UUID, or leave it out",
        )
    return text


def _read_number(value: object) -> float | None:
    if value is None:
        return None
    if not is_queue_number(value):
        raise _prompt_error("invalid_prompt", "number is not a finite number", "leave it out")
    return value  # type: ignore[return-value]


def _read_extra(body: Mapping[str, Any]) -> dict[str, Any]:
    value = body.get("extra_data", {})
    if not isinstance(value, Mapping):
        raise _prompt_error("invalid_prompt", "extra_data is not an object", "leave it out")
    client = body.get("client_id")
    extra = {name: item for name, item in value.items() if name not in _SECRETS}
    return extra if client is None else {**extra, "client_id": str(client)[:MAX_ID]}


def _drop_invalid_outputs(
    graph: Graph, outputs: Sequence[str], problems: Sequence[Problem]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The outputs that need no node with a problem, and ``node_errors`` for the others.

    Raises :class:`PromptError` if no output is left, or a node type is unknown.
    """
    by_node: dict[str, list[Problem]] = {}
    for problem in problems:
        by_node.setdefault(problem.node, []).append(problem)
    if not by_node:
        return tuple(outputs), {}
    pruned = prune_branches(graph)
    invalid = {output: set(pruned.dependency_order([output])) & set(by_node) for output in outputs}
    errors = {
        node: {
            "errors": [_problem_dict(problem) for problem in by_node[node]],
            "dependent_outputs": [output for output in outputs if node in invalid[output]],
            "class_type": graph.nodes[node].class_type,
        }
        for node in by_node
    }
    unknown = next((p for p in problems if p.type == UNKNOWN_TYPE), None)
    valid = tuple(output for output in outputs if not invalid[output])
    if unknown is not None:
        raise PromptError(_unknown_type_error(graph, unknown), errors)
    if not valid:
        raise PromptError(_all_invalid_error(graph, problems), errors)
    return valid, errors


def _problem_dict(problem: Problem) -> dict[str, Any]:
    extra = {"input_name": problem.input, "received_value": problem.got}
    return _error_dict(problem.type, problem.message, problem.details, extra)


def _unknown_type_error(graph: Graph, problem: Problem) -> dict[str, Any]:
    """The error for a node type that does not run here; it refuses the prompt, as in ComfyUI."""
    node = graph.nodes[problem.node]
    extra = {"node_id": node.id, "class_type": node.class_type, "node_title": node.title}
    message = node.error(problem.message).message
    return _error_dict(UNKNOWN_TYPE, message, problem.details, extra)


def _all_invalid_error(graph: Graph, problems: Sequence[Problem]) -> dict[str, Any]:
    error = problems_error(graph, problems)
    return _error_dict("prompt_outputs_failed_validation", error.message, error.hint or "")
