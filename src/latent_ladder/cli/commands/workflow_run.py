"""``ladder workflow run``: run a ComfyUI graph node by node, without ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import MEMORY_RULES
from latent_ladder.cli.commands.flags import MemoryFlags, open_store
from latent_ladder.cli.commands.options import (
    Folders,
    Json,
    Quiet,
    StoreFolder,
    input_option,
    model_option,
    output_option,
    stage_option,
)
from latent_ladder.cli.commands.run_progress import cancel_on_interrupt, current_command
from latent_ladder.cli.commands.workflow_progress import NodeProgressLines
from latent_ladder.cli.console import print_json, print_lines, show_loading, show_note, show_warning
from latent_ladder.errors import Cancelled, WorkflowError

if TYPE_CHECKING:
    from latent_ladder.checkpoints.selection import Library
    from latent_ladder.comfyui.graph import Graph
    from latent_ladder.comfyui.runtime.events import UiOutput
    from latent_ladder.comfyui.versions import ModelConvention

MOST_USED = (
    "output", "input_folder", "sets", "maps", "skip_unsupported", "folders", "vram", "offload",
    "device", "quiet",
)  # fmt: skip
"""Options that ``workflow run`` lists first in its help."""

WorkflowSource = Annotated[
    str,
    typer.Argument(
        metavar="WORKFLOW",
        help="Workflow as .json, a clip or picture that contains one, or - to read stdin.",
    ),
]
NodeSettings = Annotated[
    list[str] | None,
    stage_option(
        "--set",
        metavar="NODE.input=VALUE",
        help="Change an input of a node; NODE is its id, title or type. Repeatable.",
    ),
]
FileMap = Annotated[
    list[str] | None,
    model_option(
        "--map",
        metavar="OLD=NEW",
        help="Use the file NEW where the workflow names OLD. Repeatable. OLD= lists the files "
        "that can be used.",
    ),
]
OutputFolder = Annotated[
    Path, output_option("--output", "-o", metavar="FOLDER", help="Folder for the results.")
]
InputFolder = Annotated[
    Path | None,
    input_option(
        "--input",
        metavar="FOLDER",
        help="Folder with the workflow's pictures, sounds and videos. Default: ./input, else the "
        "folder of the workflow.",
    ),
]
SkipUnsupported = Annotated[
    bool,
    stage_option(
        "--skip-unsupported", help="Leave out outputs that need a node which cannot run here."
    ),
]


ComfyUiVersion = Annotated[
    str | None,
    stage_option(
        "--comfyui-version",
        metavar="VERSION",
        help="Version of ComfyUI to compute like: current (default), a number such as 0.32, or "
        "official for Lightricks' code.",
    ),
]


def register(workflow: typer.Typer) -> None:
    """Add ``run`` to the app of ``ladder workflow``."""
    workflow.command("run", cls=GroupedCommand)(expand_flags(run, MOST_USED, MEMORY_RULES))


def run(
    graph: WorkflowSource,
    memory: MemoryFlags,
    sets: NodeSettings = None,
    maps: FileMap = None,
    output: OutputFolder = Path("output"),
    input_folder: InputFolder = None,
    folders: Folders = None,
    store: StoreFolder = None,
    skip_unsupported: SkipUnsupported = False,
    version: ComfyUiVersion = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run a ComfyUI workflow without ComfyUI.

    The paths of the results are printed.
    """
    show_loading(f"reading {graph} and the headers of the model files", quiet or as_json)
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.comfyui.analysis.overrides import apply_overrides
    from latent_ladder.comfyui.analysis.required_files import (
        default_input_folder,
        find_usable_files,
        parse_file_name_map,
    )
    from latent_ladder.comfyui.formats.pack_nodes import CODE as PACK_NODE
    from latent_ladder.comfyui.formats.read import read_workflow
    from latent_ladder.comfyui.versions import parse_comfyui_version

    convention = parse_comfyui_version(version or "current")
    workflow = read_workflow(graph)
    changed = apply_overrides(workflow.graph, sets or ())
    files = _Files(
        scan(model_folders(folders or ())), input_folder or default_input_folder(graph), output
    )
    names = parse_file_name_map(
        maps or (), lambda old: find_usable_files(old, changed, files.library, [files.input])
    )
    outputs = _check_graph(changed, files, names, skip_unsupported)
    notes = [
        f"node {found.node}: {found.message}"
        for found in changed.findings
        if found.code == PACK_NODE
    ]
    for note in () if quiet or as_json else notes:
        show_note(note)
    job = _Job(changed, workflow.ui, files, names, outputs, convention)
    results, progress = _execute(job, memory, store, quiet or as_json)
    paths = _result_paths(results, files)
    if as_json:
        report = {"outputs": dict(results), "files": [str(p) for p in paths], **progress.to_dict()}
        report["notes"] = notes
        print_json(report)
        return
    for path in paths:
        print_lines(path)
    for text in (t for result in results.values() for t in result.get("text", ())):
        show_note(str(text))


@dataclass(frozen=True)
class _Files:
    """Model files, and the folders of inputs and results."""

    library: Library
    input: Path
    output: Path


def _check_graph(
    graph: Graph, files: _Files, names: Mapping[str, str], skip: bool
) -> tuple[str, ...]:
    """The outputs to run. Raises :class:`WorkflowError` for a problem, before anything loads."""
    from latent_ladder.comfyui.analysis.validate import find_problems, problems_error
    from latent_ladder.comfyui.constant_folding import output_nodes
    from latent_ladder.comfyui.executor import find_unsupported, without_unsupported

    outputs = output_nodes(graph)
    if skip:
        runnable = without_unsupported(graph)
        for problem in find_unsupported(graph, outputs):
            show_warning(f"{problem.error().message}; outputs that need it are left out")
        if outputs and not runnable:
            raise WorkflowError(
                "every output needs a node that cannot run here",
                "`ladder workflow check` lists these nodes",
            )
        outputs = runnable
    # before other problems, because its error has a hint for the node
    for problem in find_unsupported(graph, outputs):
        raise problem.error()
    found = find_problems(graph, None, names, outputs)
    if found:
        raise problems_error(graph, found)
    _check_files(graph, files, names, outputs)
    return outputs


def _check_files(
    graph: Graph, files: _Files, names: Mapping[str, str], outputs: Sequence[str]
) -> None:
    """Raise :class:`WorkflowError` for files that are missing or of another kind."""
    from latent_ladder.comfyui.analysis.required_files import MISSING, find_required_files
    from latent_ladder.comfyui.constant_folding import required_nodes

    order = required_nodes(graph, outputs)
    required = find_required_files(graph, order, files.library, [files.input], names)
    # --map may name any path
    missing = [file for file in required if not (file.usable or Path(file.used).is_file())]
    if not missing:
        return
    lines = []
    for file in missing:
        why = f"is not in {file.folder}" if file.state == MISSING else file.note
        source = f" (published: {file.url})" if file.url else ""
        lines.append(f"{file.name} {why}, needed by node {', '.join(file.nodes)}{source}")
    first = missing[0]
    raise WorkflowError(
        lines[0] if len(lines) == 1 else "\n  ".join(["files are missing:", *lines]),
        f"--map {first.name}= lists the files that can be used; --models and --input add folders",
        node_id=first.nodes[0],
    )


@dataclass(frozen=True)
class _Job:
    """A checked graph, its files, and the nodes to run. ``ui`` is the workflow in UI format."""

    graph: Graph
    ui: Mapping[str, Any] | None
    files: _Files
    names: Mapping[str, str]
    outputs: Sequence[str]
    convention: ModelConvention

    def metadata(self) -> dict[str, str]:
        """Tags of every file that is written: the graph, and the workflow if there is one."""
        tags = {"prompt": json.dumps(self.graph.to_api(), ensure_ascii=False)}
        if self.ui is not None:
            tags["workflow"] = json.dumps(self.ui, ensure_ascii=False)
        return tags


def _execute(
    job: _Job, memory: MemoryFlags, store: Path | None, quiet: bool
) -> tuple[Mapping[str, UiOutput], NodeProgressLines]:
    show_loading("loading PyTorch", quiet)
    from latent_ladder.comfyui.executor import Engine, RunOrigin, WorkFolders, execute
    from latent_ladder.pipeline.run import Cancel

    files, options = job.files, memory.to_options()
    opened = open_store(store)
    opened.check_writable()
    folders = WorkFolders(files.input, files.output, files.output / "temp")
    engine = Engine(
        files.library,
        opened,
        folders,
        job.names,
        options,
        memory.device,
        convention=job.convention,
    )
    cancel = Cancel()
    with NodeProgressLines(job.graph, quiet) as progress, cancel_on_interrupt(cancel):
        try:
            results = execute(
                job.graph,
                engine,
                wanted=job.outputs,
                on_event=progress.on_event,
                cancel=cancel,
                metadata=job.metadata(),
                origin=RunOrigin(current_command()),
            )
        except (Cancelled, KeyboardInterrupt) as error:
            show_note("stopped; results of finished nodes are stored. The same command resumes")
            raise Cancelled("stopped by the user") from error
    return results, progress


def _result_paths(results: Mapping[str, UiOutput], files: _Files) -> list[Path]:
    roots = {"output": files.output, "temp": files.output / "temp"}
    entries: list[Any] = [
        e for result in results.values() for group in result.values() for e in group
    ]
    return [
        roots[entry["type"]] / entry["subfolder"] / entry["filename"]
        for entry in entries
        if isinstance(entry, dict) and entry.get("type") in roots
    ]
