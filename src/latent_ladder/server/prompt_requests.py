"""``POST /prompt``: a body becomes a job, or a refusal in ComfyUI's shape. No torch.

As in ComfyUI, outputs whose inputs are sound run even where others are not; what is wrong with
those is in ``node_errors`` either way.
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
from latent_ladder.server.file_listing import Glance, Listing
from latent_ladder.server.job_store import Job, is_number

MAX_ID = 200
_SECRETS = frozenset({"api_key_comfy_org", "auth_token_comfy_org"})
"""Keys for paid services that some clients send along; nothing here uses or keeps them."""


class Refused(Exception):
    """A prompt that cannot run; ``body`` is the answer, with status 400."""

    def __init__(self, error: Mapping[str, Any], node_errors: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.body = {"error": error, "node_errors": node_errors}


@dataclass(frozen=True)
class Asked:
    """A checked prompt. ``number`` is the place in the queue that the client asked for, if any."""

    id: str
    prompt: Mapping[str, Any]
    extra: Mapping[str, Any]
    wanted: tuple[str, ...]
    node_errors: Mapping[str, Any]
    number: float | None
    front: bool

    def job(self, next_number: Callable[[], int]) -> Job:
        """The job, with its place in the queue."""
        number = self.number
        if number is None:
            number = -next_number() if self.front else next_number()
        extra = {**self.extra, "create_time": int(time.time() * 1000)}
        return Job(number, self.id, self.prompt, extra, self.wanted)


def read_prompt(body: Mapping[str, Any], listing: Listing) -> Asked:
    """What a client asks for. Raises :class:`Refused`."""
    prompt = body.get("prompt")
    if not isinstance(prompt, dict):
        raise _refused("no_prompt", "the body has no prompt", 'send {"prompt": {id: node, ...}}')
    if not prompt:
        raise _no_output()
    graph = _graph(prompt)
    wanted = _wanted(graph, body.get("partial_execution_targets"))
    try:
        found = find_problems(graph, Glance(listing), listing.replaced, wanted)
        wanted, node_errors = _sound(graph, wanted, found)
    except WorkflowError as error:
        raise _unreadable(error) from error
    return Asked(
        id=_id(body.get("prompt_id")),
        prompt=prompt,
        extra=_extra(body),
        wanted=wanted,
        node_errors=node_errors,
        number=_number(body.get("number")),
        front=bool(body.get("front")),
    )


def _graph(prompt: Mapping[str, Any]) -> Graph:
    try:
        return read_api(prompt)
    except WorkflowError as error:
        raise _unreadable(error) from error


def _unreadable(error: WorkflowError) -> Refused:
    """A prompt that is no graph: nodes that are none, links to nothing, cycles."""
    node = error.node_id or ""
    kind = UNKNOWN_TYPE if node and not error.class_type else "invalid_prompt"
    told = _error(kind, error.message, error.hint or "", {"node_id": node})
    about = {"errors": [told], "dependent_outputs": [], "class_type": error.class_type or ""}
    return Refused(told, {node: about} if node else {})


def _wanted(graph: Graph, targets: object) -> tuple[str, ...]:
    """The outputs to run: all, or those of ``targets``."""
    if targets is not None and not isinstance(targets, list):
        raise _refused("invalid_prompt", "partial_execution_targets is no list", "send node ids")
    chosen = None if targets is None else {str(one) for one in targets}
    wanted = tuple(
        node.id
        for node in graph.nodes.values()
        if node_type(node.class_type).is_output and (chosen is None or node.id in chosen)
    )
    if not wanted:
        raise _no_output()
    return wanted


def _no_output() -> Refused:
    return _refused(NO_OUTPUTS, "the prompt has no output", "add a node that saves or previews")


def _refused(kind: str, message: str, details: str) -> Refused:
    return Refused(_error(kind, message, details), {})


def _error(
    kind: str, message: str, details: str, extra: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": dict(extra or {})}


def _id(given: object) -> str:
    if given is None:
        return str(uuid4())
    text = str(given)
    if not text or len(text) > MAX_ID or not isinstance(given, str | int):
        raise _refused(
            "invalid_prompt", "prompt_id is no short text", "use a UUID, or leave it out"
        )
    return text


def _number(given: object) -> float | None:
    if given is None:
        return None
    if not is_number(given):
        raise _refused("invalid_prompt", "number is no number", "leave it out")
    return given  # type: ignore[return-value]


def _extra(body: Mapping[str, Any]) -> dict[str, Any]:
    given = body.get("extra_data", {})
    if not isinstance(given, Mapping):
        raise _refused("invalid_prompt", "extra_data is no object", "leave it out")
    client = body.get("client_id")
    kept = {name: value for name, value in given.items() if name not in _SECRETS}
    return kept if client is None else {**kept, "client_id": str(client)[:MAX_ID]}


def _sound(
    graph: Graph, wanted: Sequence[str], found: Sequence[Problem]
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The outputs that need no node with a problem, and ``node_errors`` of the others.

    Raises :class:`Refused` if none is left.
    """
    by_node: dict[str, list[Problem]] = {}
    for problem in found:
        by_node.setdefault(problem.node, []).append(problem)
    if not by_node:
        return tuple(wanted), {}
    taken = prune_branches(graph)
    ill = {output: set(taken.dependency_order([output])) & set(by_node) for output in wanted}
    errors = {
        node: {
            "errors": [_told(problem) for problem in by_node[node]],
            "dependent_outputs": [output for output in wanted if node in ill[output]],
            "class_type": graph.nodes[node].class_type,
        }
        for node in by_node
    }
    missing = next((p for p in found if p.type == UNKNOWN_TYPE), None)
    sound = tuple(output for output in wanted if not ill[output])
    if missing is not None:
        raise Refused(_missing(graph, missing), errors)
    if not sound:
        raise Refused(_nothing_left(graph, found), errors)
    return sound, errors


def _told(problem: Problem) -> dict[str, Any]:
    about = {"input_name": problem.input, "received_value": problem.got}
    return _error(problem.type, problem.message, problem.details, about)


def _missing(graph: Graph, problem: Problem) -> dict[str, Any]:
    """A type that does not run here ends the whole prompt, as in ComfyUI."""
    node = graph.nodes[problem.node]
    about = {"node_id": node.id, "class_type": node.class_type, "node_title": node.title}
    return _error(UNKNOWN_TYPE, node.error(problem.message).message, problem.details, about)


def _nothing_left(graph: Graph, found: Sequence[Problem]) -> dict[str, Any]:
    error = problems_error(graph, found)
    return _error("prompt_outputs_failed_validation", error.message, error.hint or "")
