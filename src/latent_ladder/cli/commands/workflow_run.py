"""``ladder workflow run``: a ComfyUI graph, node by node, on this package's engine."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands.flags import (
    Folders,
    Json,
    MemoryFlags,
    Quiet,
    StoreFolder,
    flags,
    open_store,
)
from latent_ladder.cli.commands.run_progress import interrupts
from latent_ladder.cli.commands.workflow_progress import NodeLines
from latent_ladder.cli.console import show_note, show_warning
from latent_ladder.errors import Cancelled, WorkflowError

if TYPE_CHECKING:
    from latent_ladder.checkpoints.selection import Library
    from latent_ladder.comfyui.graph import Graph
    from latent_ladder.comfyui.runtime.events import UiOutput

Source = Annotated[
    str, typer.Argument(help="A .json file, a clip or picture that carries a graph, or - (stdin).")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="NODE.input=value; NODE is an id or a title (repeatable)."),
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map", help="old=new: a file at hand for one that the graph names; old= lists them."
    ),
]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Where results go, as ComfyUI's output folder.")
]
InputFolder = Annotated[
    Path | None, typer.Option("--input", help="Where the graph's pictures, sounds, videos lie.")
]
Skip = Annotated[
    bool, typer.Option("--skip-unsupported", help="Run the outputs that need no unknown node.")
]


def register(workflow: typer.Typer) -> None:
    """Add ``run`` to the app of ``ladder workflow``."""
    workflow.command("run")(flags(run))


def run(
    graph: Source,
    memory: MemoryFlags,
    sets: Sets = None,
    maps: Maps = None,
    output: OutputFolder = Path("output"),
    input_folder: InputFolder = None,
    folders: Folders = None,
    store: StoreFolder = None,
    skip_unsupported: Skip = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a ComfyUI graph without ComfyUI; paths of the results go to stdout."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.comfyui.analysis.overrides import apply_overrides
    from latent_ladder.comfyui.formats.read import read_workflow

    found = read_workflow(graph)
    chosen = apply_overrides(found.graph, sets or ())
    at_hand = _Hand(
        scan(model_folders(folders or ())), input_folder or _input_beside(graph), output
    )
    names = _names(maps or (), chosen, at_hand)
    wanted = _wanted(chosen, at_hand, names, skip_unsupported)
    job = _Job(chosen, found.ui, at_hand, names, wanted)
    shown, lines = _carried_out(job, memory, store, quiet)
    paths = _paths(shown, at_hand)
    if as_json:
        report = {"outputs": dict(shown), "files": [str(p) for p in paths], **lines.report()}
        print(json.dumps(report, ensure_ascii=False, indent=2))
        return
    for path in paths:
        print(path)
    for text in (t for each in shown.values() for t in each.get("text", ())):
        show_note(str(text))


@dataclass(frozen=True)
class _Hand:
    """What is at hand: model files, and the folders of inputs and results."""

    library: Library
    input: Path
    output: Path


def _input_beside(graph: str) -> Path:
    """``./input`` where it is there, else the folder of the graph's own file."""
    usual = Path("input")
    if usual.is_dir() or graph == "-":
        return usual
    return Path(graph).absolute().parent


def _names(maps: Sequence[str], graph: Graph, at_hand: _Hand) -> dict[str, str]:
    """``--map old=new`` as a table. Raises :class:`WorkflowError` listing what there is."""
    names = {}
    for text in maps:
        old, equals, new = text.partition("=")
        if not old or not equals:
            raise WorkflowError(f"--map {text} is not old=new", "name a file of the graph and one")
        if not new:
            known = sorted(_candidates(old, graph, at_hand))
            raise WorkflowError(
                f"--map {old}= names no file; at hand: {', '.join(known) or 'none'}",
                f"--map {old}={known[0]}" if known else "name a folder of models with --models",
            )
        names[old] = new
    return names


def _candidates(old: str, graph: Graph, at_hand: _Hand) -> set[str]:
    """Files of the folders that nodes name ``old`` from."""
    from latent_ladder.comfyui.node_defs import NODE_TYPES

    asked = {
        folder
        for node in graph.nodes.values()
        if node.class_type in NODE_TYPES
        for one in NODE_TYPES[node.class_type].inputs
        for folder in one.folder.split(",")
        if folder and str(node.inputs.get(one.name)).replace("\\", "/").endswith(old)
    }
    models = {
        found.path.name
        for parts in at_hand.library.files.values()
        for found in parts.values()
        if found.category in asked
    }
    if "input" not in asked or not at_hand.input.is_dir():
        return models
    return models | {path.name for path in at_hand.input.iterdir() if path.is_file()}


def _wanted(graph: Graph, at_hand: _Hand, names: Mapping[str, str], skip: bool) -> tuple[str, ...]:
    """The outputs to run, checked: nothing is loaded where anything is wrong."""
    from latent_ladder.comfyui.analysis.validate import find_problems, problems_error
    from latent_ladder.comfyui.constant_folding import output_nodes
    from latent_ladder.comfyui.executor import unsupported, without_unsupported

    wanted = output_nodes(graph)
    if skip:
        kept = without_unsupported(graph)
        for problem in unsupported(graph, wanted):
            show_warning(f"{problem.error().message}; what needs it is left out")
        if wanted and not kept:
            raise WorkflowError("every output needs a node that cannot run here")
        wanted = kept
    # first, because it knows the way round
    for problem in unsupported(graph, wanted):
        raise problem.error()
    found = find_problems(graph, None, names, wanted)
    if found:
        raise problems_error(graph, found)
    _check_files(graph, at_hand, names, wanted)
    return wanted


def _check_files(
    graph: Graph, at_hand: _Hand, names: Mapping[str, str], wanted: Sequence[str]
) -> None:
    """Raise :class:`WorkflowError` naming every file that is not there or not what it should be."""
    from latent_ladder.comfyui.analysis.required_files import MISSING, find_required_files
    from latent_ladder.comfyui.constant_folding import required_nodes

    order = required_nodes(graph, wanted)
    files = find_required_files(graph, order, at_hand.library, [at_hand.input], names)
    # --map may name any path
    lacking = [file for file in files if not (file.usable or Path(file.used).is_file())]
    if not lacking:
        return
    lines = []
    for file in lacking:
        why = f"is not in {file.folder}" if file.state == MISSING else file.note
        source = f" (published: {file.url})" if file.url else ""
        lines.append(f"{file.name} {why}, wanted by node {', '.join(file.nodes)}{source}")
    first = lacking[0]
    raise WorkflowError(
        lines[0] if len(lines) == 1 else "\n  ".join(["files are missing:", *lines]),
        f"--map {first.name}= lists what is at hand; --models and --input name more folders",
        node_id=first.nodes[0],
    )


@dataclass(frozen=True)
class _Job:
    """A checked graph and what belongs to it; ``ui`` is the file's own document."""

    graph: Graph
    ui: Mapping[str, Any] | None
    at_hand: _Hand
    names: Mapping[str, str]
    wanted: Sequence[str]

    def tags(self) -> dict[str, str]:
        """What every file that is written carries."""
        found = {"prompt": json.dumps(self.graph.to_api(), ensure_ascii=False)}
        if self.ui is not None:
            found["workflow"] = json.dumps(self.ui, ensure_ascii=False)
        return found


def _carried_out(
    job: _Job, memory: MemoryFlags, store: Path | None, quiet: bool
) -> tuple[Mapping[str, UiOutput], NodeLines]:
    from latent_ladder.comfyui.executor import Engine, WorkFolders, execute
    from latent_ladder.pipeline.run import Cancel

    hand, options = job.at_hand, memory.options()
    folders = WorkFolders(hand.input, hand.output, hand.output / "temp")
    engine = Engine(hand.library, open_store(store), folders, job.names, options, memory.device)
    command, cancel = shlex.join(["ladder", *sys.argv[1:]]), Cancel()
    with NodeLines(job.graph, quiet) as lines, interrupts(cancel):
        try:
            shown = execute(
                job.graph,
                engine,
                wanted=job.wanted,
                on_event=lines.on_event,
                cancel=cancel,
                metadata=job.tags(),
                command=command,
            )
        except (Cancelled, KeyboardInterrupt) as error:
            show_note("stopped; what nodes have made is kept. The same command goes on")
            raise Cancelled("stopped by the user") from error
    return shown, lines


def _paths(shown: Mapping[str, UiOutput], at_hand: _Hand) -> list[Path]:
    roots = {"output": at_hand.output, "temp": at_hand.output / "temp"}
    entries: list[Any] = [e for each in shown.values() for group in each.values() for e in group]
    return [
        roots[entry["type"]] / entry["subfolder"] / entry["filename"]
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") in roots
    ]
