"""What is wrong with a graph before it runs, under the names that ComfyUI gives such mistakes.

Only nodes that an output needs are looked at. Stricter than ComfyUI where it would fail later or do
something else in silence: texts for yes or no, numbers that are none, values for sockets, names of
files outside their folders. More lenient in one thing: a widget that is missing has its default.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from latent_ladder.comfyui.constant_folding import output_nodes, required_nodes, suggest_workaround
from latent_ladder.comfyui.graph import Graph, Link, Node, Value
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.comfyui.node_defs.schema import ANY, Input, NodeType
from latent_ladder.errors import WorkflowError
from latent_ladder.request.problems import did_you_mean
from latent_ladder.sampling.names import SAMPLER_FACTS

NO_OUTPUTS: Final = "prompt_no_outputs"
UNKNOWN_TYPE: Final = "missing_node_type"


class AvailableFiles(Protocol):
    """The files that a graph may name."""

    def names(self, folder: str) -> Sequence[str]:
        """Names in a model folder (``"a,b"``: in either), or in ``"input"``."""
        ...


@dataclass(frozen=True)
class Problem:
    """One mistake; ``type`` is ComfyUI's name for its kind, ``input`` may be empty."""

    node: str
    type: str
    message: str
    details: str = ""
    input: str = ""
    got: Any = None


@dataclass(frozen=True)
class _InputCheck:
    """An input of a node, as it is looked at."""

    graph: Graph
    node: Node
    input: Input
    value: Link | Value
    files: AvailableFiles | None
    names: Mapping[str, str]

    def problem(self, kind: str, message: str, details: str = "") -> Problem:
        """A problem with this input."""
        got = list(self.value) if isinstance(self.value, Link) else self.value
        text = f"{self.input.name}: {message}"
        return Problem(self.node.id, kind, text, details, self.input.name, got)


def find_problems(
    graph: Graph,
    files: AvailableFiles | None = None,
    names: Mapping[str, str] | None = None,
    wanted: Iterable[str] | None = None,
) -> list[Problem]:
    """Everything wrong with what the ``wanted`` nodes need, by default all outputs.

    ``files`` are those that exist, ``None`` not to ask; ``names`` replaces names that the graph
    holds. Raises :class:`WorkflowError` for a cycle and for links to nothing.
    """
    chosen = output_nodes(graph) if wanted is None else tuple(wanted)
    if not chosen:
        return [
            Problem("", NO_OUTPUTS, "nothing in it saves or shows a result", "add a SaveVideo node")
        ]
    found: list[Problem] = []
    for key in required_nodes(graph, chosen):
        found.extend(_check_node(graph, graph.nodes[key], files, names or {}))
    return found


def problems_error(graph: Graph, found: Sequence[Problem]) -> WorkflowError:
    """All problems as one error; it carries the first node."""
    first = found[0]
    lines = [_problem_line(graph, problem) for problem in found[:20]]
    if len(found) > 20:
        lines.append(f"and {len(found) - 20} more")
    node = graph.nodes.get(first.node)
    return WorkflowError(
        lines[0] if len(lines) == 1 else "\n  ".join(["the workflow cannot run:", *lines]),
        _hint(graph, found),
        node_id=first.node or None,
        class_type=node.class_type if node else None,
    )


def _hint(graph: Graph, found: Sequence[Problem]) -> str | None:
    """What to do about a single problem, or about the first node that cannot run."""
    unknown = next((problem for problem in found if problem.type == UNKNOWN_TYPE), None)
    if unknown is not None:
        return suggest_workaround(graph, unknown.node)
    return found[0].details or None if len(found) == 1 else None


def _problem_line(graph: Graph, problem: Problem) -> str:
    node = graph.nodes.get(problem.node)
    return node.error(problem.message).message if node else problem.message


def _check_node(
    graph: Graph, node: Node, files: AvailableFiles | None, names: Mapping[str, str]
) -> Iterator[Problem]:
    kind = node_type(node.class_type, node.pack)
    if kind.unsupported_reason:
        yield Problem(
            node.id, UNKNOWN_TYPE, f"cannot run here: {kind.unsupported_reason}", kind.pack
        )
        return
    literals = {k: v for k, v in node.inputs.items() if not isinstance(v, Link)}
    shown = {one.name: one for one in kind.visible_inputs(literals)}
    for one in shown.values():
        if one.name in node.inputs:
            case = _InputCheck(graph, node, one, node.inputs[one.name], files, names)
            yield from _check_input(case)
        elif one.required and (one.default is None or not one.is_widget):
            text = f"{one.name} is missing"
            hint = (
                f"connect {_describe_input(one)}"
                if not one.is_widget
                else f"choose {_describe_input(one)}"
            )
            yield Problem(node.id, "required_input_missing", text, hint, one.name)
    yield from _check_autogrow_inputs(graph, node, kind, shown)
    yield from _check_sampler(node, kind)


def _check_autogrow_inputs(
    graph: Graph, node: Node, kind: NodeType, shown: Mapping[str, Input]
) -> Iterator[Problem]:
    """Inputs that a node grew; they are all of the type of the first."""
    first = next((one for one in kind.inputs if one.name.startswith(kind.autogrow_prefix)), None)
    for name, value in node.inputs.items() if kind.autogrow_prefix and first else ():
        if name.startswith(kind.autogrow_prefix) and name not in shown and first is not None:
            grown = Input(name, first.type, socket=True, required=False)
            yield from _check_input(_InputCheck(graph, node, grown, value, None, {}))


def _check_input(case: _InputCheck) -> Iterator[Problem]:
    one, value = case.input, case.value
    if isinstance(value, Link):
        yield from _check_link(case, value)
    elif one.is_widget:
        yield from _WIDGET_CHECKS[_widget_kind(one)](case)
    elif isinstance(value, list) and len(value) != 2:
        yield case.problem("bad_linked_input", "a link is a node's id and a slot", "connect it")
    elif value is not None and not (one.types & {"FLOAT", "INT", "BOOLEAN", "STRING", ANY}):
        yield case.problem(
            "invalid_input_type", f"it takes {_describe_input(one)} from another node", "connect it"
        )


def _check_link(case: _InputCheck, link: Link) -> Iterator[Problem]:
    source = case.graph.nodes[link.node]
    results = node_type(source.class_type, source.pack).outputs
    if link.slot >= len(results):
        return  # of a type without a row, which is a problem of its own
    given = results[link.slot].type
    if given == ANY or ANY in case.input.types or case.input.types & set(given.split(",")):
        return
    yield case.problem(
        "return_type_mismatch",
        f"it takes {case.input.type}, but output {link.slot} of node {source.id} "
        f"({source.class_type}) is {given}",
        f"connect {_describe_input(case.input)}",
    )


def _check_number(case: _InputCheck) -> Iterator[Problem]:
    one, whole, given = case.input, "FLOAT" not in case.input.types, case.value
    value: float = math.nan
    with suppress(TypeError, ValueError, OverflowError):
        # a seed has more digits than a float keeps
        value = int(given) if whole else float(given)  # type: ignore[arg-type]
    if (isinstance(value, float) and not math.isfinite(value)) or isinstance(given, bool):
        expected = "a whole number" if whole else "a number"
        yield case.problem("invalid_input_type", f"{_shorten(case.value)} is not {expected}")
    elif one.low is not None and value < one.low:
        text = f"{_format_number(value)} is less than {_format_number(one.low)}"
        yield case.problem("value_smaller_than_min", text, f"at least {_format_number(one.low)}")
    elif one.high is not None and value > one.high:
        text = f"{_format_number(value)} is more than {_format_number(one.high)}"
        yield case.problem("value_bigger_than_max", text, f"at most {_format_number(one.high)}")


def _check_boolean(case: _InputCheck) -> Iterator[Problem]:
    if not isinstance(case.value, bool | int):
        text = f"{_shorten(case.value)} is neither true nor false"
        yield case.problem("invalid_input_type", text)


def _check_string(case: _InputCheck) -> Iterator[Problem]:
    if isinstance(case.value, list | dict) or case.value is None:
        yield case.problem("invalid_input_type", f"{_shorten(case.value)} is no text")
    elif case.input.name == "filename_prefix" and (wrong := unsafe_path_reason(str(case.value))):
        yield case.problem(
            "value_not_in_list", f"{_shorten(case.value)} {wrong}", "name a place below the outputs"
        )


def _check_combo(case: _InputCheck) -> Iterator[Problem]:
    if case.input.folder:
        yield from _check_file(case)
        return
    value, options = case.value, case.input.options
    if isinstance(value, list | dict) or value is None:
        yield case.problem("invalid_input_type", f"{_shorten(value)} is no choice")
    elif options and str(value) not in options:
        text = f"{_shorten(value)} is not one of the choices"
        yield case.problem("value_not_in_list", text, did_you_mean(str(value), options))


def _check_file(case: _InputCheck) -> Iterator[Problem]:
    value, folder = case.value, case.input.folder
    if not isinstance(value, str) or not value:
        yield case.problem("value_not_in_list", "no file is chosen", f"choose a file of {folder}")
        return
    name, place = split_folder_tag(value) if folder == "input" else (value, "")
    if wrong := unsafe_path_reason(name):
        yield case.problem(
            "value_not_in_list", f"{_shorten(value)} {wrong}", f"name a file of the folder {folder}"
        )
    elif case.files is not None and place in ("", "input"):
        name = map_file_name(name, case.names)
        known = case.files.names(folder)
        last = name.rpartition("/")[2]
        if not any(one == name or one.rpartition("/")[2] == last for one in known):
            hint = did_you_mean(last, known) if known else f"the folder {folder} is empty"
            yield case.problem("value_not_in_list", f"{name} is not in {folder}", hint)


_WIDGET_CHECKS: Mapping[str, Callable[[_InputCheck], Iterator[Problem]]] = {
    "INT": _check_number,
    "FLOAT": _check_number,
    "BOOLEAN": _check_boolean,
    "STRING": _check_string,
    "COMBO": _check_combo,
}


def _widget_kind(one: Input) -> str:
    return next(kind for kind in _WIDGET_CHECKS if kind in one.types)


_RES4LYF_SAMPLERS = re.compile(r"(?:.*/)?(res_2s|euler)$")
"""The rules of RES4LYF that are here too."""
SAMPLER_ALIASES: Final = frozenset({"ddim"})
"""ComfyUI's names for samplers that are another one here."""


def _check_sampler(node: Node, kind: NodeType) -> Iterator[Problem]:
    """What ComfyUI would run and cannot be run here."""
    name = node.inputs.get("sampler_name")
    if not isinstance(name, str):
        return
    here = (
        _RES4LYF_SAMPLERS.match(name) is not None
        if kind.class_type == "ClownSampler_Beta"
        else name in SAMPLER_FACTS or name in SAMPLER_ALIASES
    )
    listed = next((one.options for one in kind.inputs if one.name == "sampler_name"), ())
    if not here and (name in listed or not listed):
        text = f"sampler_name: the sampler {name} is not available here"
        known = did_you_mean(name.rpartition("/")[2], SAMPLER_FACTS)
        yield Problem(node.id, "value_not_in_list", text, known, "sampler_name", name)


def map_file_name(name: str, names: Mapping[str, str]) -> str:
    """The name to look for instead of one in a graph; ``\\`` of Windows becomes ``/``."""
    plain = name.replace("\\", "/")
    last = plain.rpartition("/")[2]
    return names.get(name) or names.get(plain) or names.get(last) or plain


def unsafe_path_reason(name: str) -> str:
    """Why a name may lead out of its folder, as the end of a sentence; empty if it cannot."""
    plain = name.replace("\\", "/")
    if "\0" in plain:
        return "contains a zero byte"
    if plain.startswith(("/", "~")) or re.match(r"[A-Za-z]:", plain):
        return "is an absolute path"
    return "leads out of its folder" if ".." in plain.split("/") else ""


def split_folder_tag(name: str) -> tuple[str, str]:
    """``"a.png [output]"`` -> ``("a.png", "output")``: uploads may name another of the folders."""
    for place in ("input", "output", "temp"):
        if name.endswith(f" [{place}]"):
            return name.removesuffix(f" [{place}]"), place
    return name, ""


def _describe_input(one: Input) -> str:
    kind = one.type.split(",")[0]
    if one.folder:
        return f"a file of {one.folder}"
    return "anything" if kind == ANY else kind if kind.isupper() else f"a {kind}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:56]}...{text[-1]}"


def _format_number(value: float) -> str:
    text = str(int(value)) if value == int(value) else str(value)
    return text if len(text) <= 24 else f"{text[:20]}..."
