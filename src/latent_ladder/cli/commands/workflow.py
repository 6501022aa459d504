"""``ladder workflow``: check, run, import and export ComfyUI workflows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import CommandGroup, GroupedCommand
from latent_ladder.cli.commands import workflow_files, workflow_run
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.options import Folders, Json, other_option
from latent_ladder.cli.commands.workflow_run import (
    FileMap,
    InputFolder,
    NodeSettings,
    WorkflowSource,
)
from latent_ladder.cli.console import print_json, print_lines

if TYPE_CHECKING:
    from latent_ladder.comfyui.analysis.check import OutputSummary, UnsupportedNode, WorkflowReport
    from latent_ladder.comfyui.analysis.required_files import RequiredFile
    from latent_ladder.comfyui.graph import Graph, LintFinding

All = Annotated[bool, other_option("--all", help="List all warnings and node types.")]

CANNOT_RUN, FILES_MISSING = 6, 3
"""Exit codes of ``check``, equal to those of the errors that running would raise."""

_QUIET = frozenset({"stale_value"})
"""Codes of warnings that are only counted unless ``--all`` is given."""

_STATES = {"here": "found", "elsewhere": "misplaced"}
"""Printed words for states of files; the JSON report has the states themselves."""


def register(app: typer.Typer) -> None:
    """Add ``workflow`` and its subcommands."""
    workflow = typer.Typer(
        help="Check, run and convert ComfyUI workflows.", no_args_is_help=True, cls=CommandGroup
    )
    workflow.command("check", cls=GroupedCommand)(expand_flags(check))
    for command in (workflow_run, workflow_files):
        command.register(workflow)
    app.add_typer(workflow, name="workflow")


def check(
    source: WorkflowSource,
    folders: Folders = None,
    maps: FileMap = None,
    settings: NodeSettings = None,
    inputs: InputFolder = None,
    every: All = False,
    as_json: Json = False,
) -> None:
    """List outputs, files, problems and warnings of a workflow.

    Nothing is run and no weights are needed. Exit code: 0 if it can run,
    3 if only files are missing, else 6.
    """
    from dataclasses import replace

    from latent_ladder.checkpoints.scan import scan
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.comfyui.analysis.check import check_workflow
    from latent_ladder.comfyui.analysis.overrides import apply_overrides
    from latent_ladder.comfyui.analysis.required_files import (
        default_input_folder,
        find_usable_files,
        parse_file_name_map,
    )
    from latent_ladder.comfyui.formats.read import read_workflow

    workflow = read_workflow(source)
    workflow = replace(workflow, graph=apply_overrides(workflow.graph, settings or ()))
    library = scan(model_folders(folders or ()))
    searched = (inputs or default_input_folder(source),)
    names = parse_file_name_map(
        maps or (), lambda old: find_usable_files(old, workflow.graph, library, searched)
    )
    report = check_workflow(workflow, library, searched, names)
    if as_json:
        print_json(report.to_dict())
    else:
        print_lines("\n".join(_lines(report, every)))
    if not report.ready:
        raise typer.Exit(FILES_MISSING if report.can_run else CANNOT_RUN)


# --- text report ----------------------------------------------------------------------------------


def _lines(report: WorkflowReport, every: bool) -> Iterator[str]:
    yield _header(report)
    if every:
        yield from _section("nodes", [f"{n:>3} {kind}" for kind, n in sorted(report.types.items())])
    yield from _section(
        "outputs", [line for output in report.outputs for line in _output_lines(output)]
    )
    yield from _section("files", _file_lines(report.files))
    yield from _section(
        "unsupported nodes",
        [line for node in report.unsupported for line in _unsupported_lines(node)],
    )
    problems = [
        f"{_node_label(report.graph, problem.node)}: {problem.message}"
        for problem in report.problems
        if problem.type != "missing_node_type"
    ]
    yield from _section("problems", problems)
    yield from _section("warnings", _warning_lines(report, every))
    yield ""
    yield _verdict(report)


def _header(report: WorkflowReport) -> str:
    packs = ", ".join(f"{pack} {n}" for pack, n in Counter(report.packs).most_common())
    count = len(report.graph.nodes)
    unused = count - len(report.required)
    note = f", {unused} of them unused with these settings" if unused else ""
    return f"{report.source}: {count} node{'s' * (count != 1)}{note} ({packs})"


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        yield from (f"  {line}" for line in lines)


def _output_lines(output: OutputSummary) -> Iterator[str]:
    yield f"{output.node} {output.title}{': ' + output.file if output.file else ''}"
    facts = []
    if output.size:
        facts.append(f"{output.size[0]}x{output.size[1]}")
    if output.frames and (output.fps or output.frames > 1):
        facts.append(f"{output.frames} frames")
    if output.fps:
        facts.append(f"{output.fps:g} fps")
    if output.duration_s:
        facts.append(f"{output.duration_s:.2f} s")
    if output.sound_s is not None:
        facts.append(f"audio {output.sound_s:.2f} s")
    if facts:
        yield f"    {', '.join(facts)}"
    for number, stage in enumerate(output.stages, 1):
        yield f"    stage {number}: {_stage(stage)}"


def _stage(stage: Mapping[str, Any]) -> str:
    parts = [str(stage.get("sampler", "unknown sampler"))]
    if "steps" in stage:
        start = f" from sigma {stage['start_sigma']:g}" if "start_sigma" in stage else ""
        parts.append(f"{stage['steps']} steps{start}")
    if "cfg" in stage:
        parts.append(f"cfg {stage['cfg']:g}")
    elif "guider" in stage:
        parts.append(stage["guider"])
    if "seed" in stage:
        parts.append(f"seed {stage['seed']}")
    return f"{', '.join(parts)} (node {stage['node']})"


def _file_lines(files: Sequence[RequiredFile]) -> list[str]:
    lines = []
    for file in files:
        folder = file.folder.rpartition(",")[2]
        used = f" as {file.used}" if file.used.rpartition("/")[2] != _last(file.name) else ""
        lines.append(f"{_STATES.get(file.state, file.state):<9} {folder}/{file.name}{used}")
        if file.note:
            lines.append(f"{'':<9}   {file.note}")
        if file.state == "missing" and file.url:
            lines.append(f"{'':<9}   {file.url}")
    return lines


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _unsupported_lines(node: UnsupportedNode) -> Iterator[str]:
    title = f' "{node.title}"' if node.title not in ("", node.class_type) else ""
    yield f"{node.node} {node.class_type}{title}: {node.why}"
    if node.hint:
        yield f"    {node.hint}"


def _warning_lines(report: WorkflowReport, every: bool) -> list[str]:
    listed = [finding for finding in report.findings if every or finding.code not in _QUIET]
    lines = [_warning_line(report.graph, finding) for finding in listed]
    hidden = len(report.findings) - len(listed)
    if hidden:
        subject = "widget shows" if hidden == 1 else "widgets show"
        lines.append(f"{hidden} {subject} a value that its link overrides (--all lists them)")
    return lines


def _warning_line(graph: Graph, finding: LintFinding) -> str:
    label = f"{_node_label(graph, finding.node)}: " if finding.node else ""
    return f"{label}{finding.message}"


def _node_label(graph: Graph, key: str) -> str:
    node = graph.nodes.get(key)
    return f"{key} {node.title or node.class_type}" if node else "the workflow"


def _verdict(report: WorkflowReport) -> str:
    if report.ready:
        return "it can run"
    missing = sum(not file.usable for file in report.files)
    if report.can_run:
        count, them = ("1 file is", "it") if missing == 1 else (f"{missing} files are", "them")
        return f"it can run once {count} available: add {them} to a model folder, or --map OLD=NEW"
    return "it cannot run with these settings"
