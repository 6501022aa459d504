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

from latent_ladder.errors import WorkflowError
from latent_ladder.server.kept import Job, is_number
from latent_ladder.server.listing import Listing
from latent_ladder.workflow.api import read_api
from latent_ladder.workflow.graph import Graph
from latent_ladder.workflow.plain import needed
from latent_ladder.workflow.types import node_type
from latent_ladder.workflow.validate import Problem, problems

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


def read_prompt(body: Mapping[str, Any], listing: Listing, names: Mapping[str, str]) -> Asked:
    """What a client asks for. Raises :class:`Refused`."""
    prompt = body.get("prompt")
    if not isinstance(prompt, dict):
        raise _refused("no_prompt", "the body has no prompt", 'send {"prompt": {id: node, ...}}')
    graph = _graph(prompt)
    wanted = _wanted(graph, body.get("partial_execution_targets"))
    found = problems(graph, listing)
    wanted, node_errors = _sound(graph, wanted, found)
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
        node = error.node_id or ""
        told = _error("invalid_prompt", error.message, error.hint or "", {"node_id": node})
        raise Refused(told, {}) from error


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
        raise _refused(
            "prompt_no_outputs", "the prompt has no output", "add a node that saves or previews"
        )
    return wanted


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
    ill = {output: set(needed(graph, [output])) & set(by_node) for output in wanted}
    errors = {
        node: {
            "errors": [_told(problem) for problem in by_node[node]],
            "dependent_outputs": [output for output in wanted if node in ill[output]],
            "class_type": graph.nodes[node].class_type,
        }
        for node in by_node
        if any(node in nodes for nodes in ill.values())
    }
    sound = tuple(output for output in wanted if not ill[output])
    if not sound:
        raise Refused(_why(by_node, errors), errors)
    return sound, errors


def _told(problem: Problem) -> dict[str, Any]:
    about = {"input_name": problem.input, "received_value": problem.got}
    return _error(problem.type, problem.message, problem.details, about)


def _why(by_node: Mapping[str, Sequence[Problem]], errors: Mapping[str, Any]) -> dict[str, Any]:
    return _error("prompt_outputs_failed_validation", "no output can run", "")
