"""Validation of a graph before it runs; problems have ComfyUI's error type names.

Only nodes that an output depends on are validated. Validation is stricter than ComfyUI's where it
would fail later or silently do something else: text for a boolean, NaN, a literal for a socket, a
file name that leads out of its folder. It is more lenient in one case: a missing widget value has
its default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from latent_ladder.comfyui.constant_folding import output_nodes, required_nodes, suggest_workaround
from latent_ladder.comfyui.file_names import (
    map_file_name,
    split_folder_tag,
    unsafe_path_reason,
)
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.comfyui.node_defs.sampling import RES4LYF_SAMPLER, SAMPLER_ALIASES
from latent_ladder.comfyui.node_defs.schema import ANY, Input, NodeType
from latent_ladder.errors import WorkflowError, did_you_mean
from latent_ladder.sampling.names import SAMPLER_FACTS

NO_OUTPUTS: Final = "prompt_no_outputs"
UNKNOWN_TYPE: Final = "missing_node_type"


class AvailableFiles(Protocol):
    """Source of the file names that a graph may use."""

    def names(self, folder: str) -> Sequence[str]:
        """Return the names in a model folder (``"a,b"``: in either) or in ``"input"``."""
        ...


@dataclass(frozen=True)
class Problem:
    """One problem of a node.

    ``type`` is ComfyUI's error type, ``input`` an input name (may be empty), ``got`` its value.
    """

    node: str
    type: str
    message: str
    details: str = ""
    input: str = ""
    got: Any = None


@dataclass(frozen=True)
class _InputCheck:
    """An input of a node and all that is needed to validate it."""

    graph: Graph
    node: Node
    input: Input
    value: Link | Value
    files: AvailableFiles | None
    names: Mapping[str, str]

    def problem(self, kind: str, message: str, details: str = "") -> Problem:
        """Return a problem of this input."""
        got = list(self.value) if isinstance(self.value, Link) else self.value
        text = f"{self.input.name}: {message}"
        return Problem(self.node.id, kind, text, details, self.input.name, got)


def find_problems(
    graph: Graph,
    files: AvailableFiles | None = None,
    names: Mapping[str, str] | None = None,
    wanted: Iterable[str] | None = None,
) -> list[Problem]:
    """Return all problems of the nodes that ``wanted`` depend on, by default all output nodes.

    ``files`` are the files that exist; ``None`` skips that check. ``names`` maps file names in the
    graph to others. Raises :class:`WorkflowError` for a cycle or a link to a missing node.
    """
    outputs = output_nodes(graph) if wanted is None else tuple(wanted)
    if not outputs:
        return [
            Problem("", NO_OUTPUTS, "nothing in it saves or shows a result", "add a SaveVideo node")
        ]
    problems: list[Problem] = []
    for key in required_nodes(graph, outputs):
        problems.extend(_check_node(graph, graph.nodes[key], files, names or {}))
    return problems


def problems_error(graph: Graph, problems: Sequence[Problem]) -> WorkflowError:
    """Return one error that lists all problems and names the first node."""
    first = problems[0]
    lines = [_problem_line(graph, problem) for problem in problems[:20]]
    if len(problems) > 20:
        lines.append(f"and {len(problems) - 20} more")
    node = graph.nodes.get(first.node)
    return WorkflowError(
        lines[0] if len(lines) == 1 else "\n  ".join(["the workflow cannot run:", *lines]),
        _hint(graph, problems),
        node_id=first.node or None,
        class_type=node.class_type if node else None,
    )


def _hint(graph: Graph, problems: Sequence[Problem]) -> str | None:
    """Return a hint for the first unsupported node, or else for a single problem."""
    unknown = next((problem for problem in problems if problem.type == UNKNOWN_TYPE), None)
    if unknown is not None:
        return suggest_workaround(graph, unknown.node)
    return problems[0].details or None if len(problems) == 1 else None


def _problem_line(graph: Graph, problem: Problem) -> str:
    node = graph.nodes.get(problem.node)
    return node.error(problem.message).message if node else problem.message


def _check_node(
    graph: Graph, node: Node, files: AvailableFiles | None, names: Mapping[str, str]
) -> Iterator[Problem]:
    definition = node_type(node.class_type, node.pack)
    if definition.unsupported_reason:
        yield Problem(
            node.id,
            UNKNOWN_TYPE,
            f"cannot run here: {definition.unsupported_reason}",
            definition.pack,
        )
        return
    literals = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    visible = {item.name: item for item in definition.visible_inputs(literals)}
    for item in visible.values():
        if item.name in node.inputs:
            check = _InputCheck(graph, node, item, node.inputs[item.name], files, names)
            yield from _check_input(check)
        elif item.required and (item.default is None or not item.is_widget):
            text = f"{item.name} is missing"
            verb = "choose" if item.is_widget else "connect"
            hint = f"{verb} {_describe_input(item)}"
            yield Problem(node.id, "required_input_missing", text, hint, item.name)
    yield from _check_autogrow_inputs(graph, node, definition, visible)
    yield from _check_sampler(node, definition)


def _check_autogrow_inputs(
    graph: Graph, node: Node, definition: NodeType, visible: Mapping[str, Input]
) -> Iterator[Problem]:
    """Validate autogrow inputs; all of them have the type of the first."""
    prefix = definition.autogrow_prefix
    first = next((item for item in definition.inputs if item.name.startswith(prefix)), None)
    for name, value in node.inputs.items() if prefix and first else ():
        if name.startswith(prefix) and name not in visible and first is not None:
            item = Input(name, first.type, socket=True, required=False)
            yield from _check_input(_InputCheck(graph, node, item, value, None, {}))


def _check_input(check: _InputCheck) -> Iterator[Problem]:
    item, value = check.input, check.value
    if isinstance(value, Link):
        yield from _check_link(check, value)
    elif item.is_widget:
        yield from _WIDGET_CHECKS[_widget_kind(item)](check)
    elif isinstance(value, list) and len(value) != 2:
        yield check.problem(
            "bad_linked_input", "a link is a node id and an output slot", "connect it"
        )
    elif value is not None and not (item.types & {"FLOAT", "INT", "BOOLEAN", "STRING", ANY}):
        yield check.problem(
            "invalid_input_type", f"it takes {_describe_input(item)} from a link", "connect it"
        )


def _check_link(check: _InputCheck, link: Link) -> Iterator[Problem]:
    source = check.graph.nodes[link.node]
    outputs = node_type(source.class_type, source.pack).outputs
    if link.slot >= len(outputs):
        return  # an unknown type, which is reported as a problem of that node
    linked = outputs[link.slot].type
    if linked == ANY or ANY in check.input.types or check.input.types & set(linked.split(",")):
        return
    yield check.problem(
        "return_type_mismatch",
        f"it takes {check.input.type}, but output {link.slot} of node {source.id} "
        f"({source.class_type}) is {linked}",
        f"connect {_describe_input(check.input)}",
    )


def _check_number(check: _InputCheck) -> Iterator[Problem]:
    item, is_int, literal = check.input, "FLOAT" not in check.input.types, check.value
    value: float = math.nan
    with suppress(TypeError, ValueError, OverflowError):
        # a float cannot represent all digits of a 64-bit seed
        value = int(literal) if is_int else float(literal)  # type: ignore[arg-type]
    if (isinstance(value, float) and not math.isfinite(value)) or isinstance(literal, bool):
        expected = "an integer" if is_int else "a number"
        yield check.problem("invalid_input_type", f"{_shorten(check.value)} is not {expected}")
    elif item.low is not None and value < item.low:
        text = f"{_format_number(value)} is less than {_format_number(item.low)}"
        yield check.problem("value_smaller_than_min", text, f"at least {_format_number(item.low)}")
    elif item.high is not None and value > item.high:
        text = f"{_format_number(value)} is more than {_format_number(item.high)}"
        yield check.problem("value_bigger_than_max", text, f"at most {_format_number(item.high)}")


def _check_boolean(check: _InputCheck) -> Iterator[Problem]:
    if not isinstance(check.value, bool | int):
        text = f"{_shorten(check.value)} is neither true nor false"
        yield check.problem("invalid_input_type", text)


def _check_string(check: _InputCheck) -> Iterator[Problem]:
    if isinstance(check.value, list | dict) or check.value is None:
        yield check.problem("invalid_input_type", f"{_shorten(check.value)} is not text")
    elif check.input.name == "filename_prefix" and (wrong := unsafe_path_reason(str(check.value))):
        yield check.problem(
            "value_not_in_list",
            f"{_shorten(check.value)} {wrong}",
            "name a file below the output folder",
        )


def _check_combo(check: _InputCheck) -> Iterator[Problem]:
    if check.input.folder:
        yield from _check_file(check)
        return
    value, options = check.value, check.input.options
    if isinstance(value, list | dict) or value is None:
        yield check.problem("invalid_input_type", f"{_shorten(value)} is not a choice")
    elif options and str(value) not in options:
        text = f"{_shorten(value)} is not one of the choices"
        yield check.problem("value_not_in_list", text, did_you_mean(str(value), options))


def _check_file(check: _InputCheck) -> Iterator[Problem]:
    value, folder = check.value, check.input.folder
    if not isinstance(value, str) or not value:
        yield check.problem(
            "value_not_in_list", "no file is selected", f"choose a file of {folder}"
        )
        return
    name, tag = split_folder_tag(value) if folder == "input" else (value, "")
    if wrong := unsafe_path_reason(name):
        yield check.problem(
            "value_not_in_list", f"{_shorten(value)} {wrong}", f"name a file in the folder {folder}"
        )
    elif check.files is not None and tag in ("", "input"):
        name = map_file_name(name, check.names)
        known = check.files.names(folder)
        last = name.rpartition("/")[2]
        if not any(other == name or other.rpartition("/")[2] == last for other in known):
            hint = did_you_mean(last, known) if known else f"the folder {folder} is empty"
            yield check.problem("value_not_in_list", f"{name} is not in {folder}", hint)


_WIDGET_CHECKS: Mapping[str, Callable[[_InputCheck], Iterator[Problem]]] = {
    "INT": _check_number,
    "FLOAT": _check_number,
    "BOOLEAN": _check_boolean,
    "STRING": _check_string,
    "COMBO": _check_combo,
}


def _widget_kind(item: Input) -> str:
    return next(kind for kind in _WIDGET_CHECKS if kind in item.types)


def _check_sampler(node: Node, definition: NodeType) -> Iterator[Problem]:
    """Check for a sampler that ComfyUI has but that is not available here."""
    name = node.inputs.get("sampler_name")
    if not isinstance(name, str):
        return
    available = (
        RES4LYF_SAMPLER.match(name) is not None
        if definition.class_type == "ClownSampler_Beta"
        else name in SAMPLER_FACTS or name in SAMPLER_ALIASES
    )
    options = next((item.options for item in definition.inputs if item.name == "sampler_name"), ())
    if not available and (name in options or not options):
        text = f"sampler_name: the sampler {name} is not available here"
        hint = did_you_mean(name.rpartition("/")[2], SAMPLER_FACTS)
        yield Problem(node.id, "value_not_in_list", text, hint, "sampler_name", name)


def _describe_input(item: Input) -> str:
    kind = item.type.split(",")[0]
    if item.folder:
        return f"a file of {item.folder}"
    return "anything" if kind == ANY else kind if kind.isupper() else f"a {kind}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _format_number(value: float) -> str:
    text = str(int(value)) if value == int(value) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
