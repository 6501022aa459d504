"""``ladder workflow``: ComfyUI workflows, read, checked, run, explained and written."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands import workflow_files, workflow_run
from latent_ladder.cli.commands.flags import Folders, Json

if TYPE_CHECKING:
    from latent_ladder.comfyui.analysis.check import OutputSummary, UnsupportedNode, WorkflowReport
    from latent_ladder.comfyui.analysis.required_files import RequiredFile
    from latent_ladder.comfyui.graph import Graph, LintFinding

Source = Annotated[
    str,
    typer.Argument(
        metavar="WORKFLOW", help="A .json file, a clip or picture that carries one, or - for stdin."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="NODE.input=value; NODE is an id or a title (repeatable)."),
]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", help="OLD=NEW: a file name in the workflow, and yours (repeatable)."),
]
Inputs = Annotated[
    Path | None,
    typer.Option("--input", help="Where its pictures, sounds and videos lie (else ./input)."),
]

CANNOT_RUN, FILES_MISSING = 6, 3
"""Exit codes of ``check``: those of the errors that a run would end with."""

_QUIET = frozenset({"stale_value"})
"""Traps that are counted, and listed with ``--all`` only."""


def register(app: typer.Typer) -> None:
    """Add ``workflow`` and what is below it."""
    workflow = typer.Typer(help="ComfyUI workflows, without ComfyUI.", no_args_is_help=True)
    workflow.command("check")(check)
    for command in (workflow_run, workflow_files):
        command.register(workflow)
    app.add_typer(workflow, name="workflow")


def check(
    source: Source,
    folders: Folders = None,
    maps: Maps = None,
    settings: Settings = None,
    inputs: Inputs = None,
    every: Annotated[bool, typer.Option("--all", help="List every trap and every node.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a workflow would make, which files it wants, and what would surprise you.

    Needs no weights. Ends with 0 if it can run, 3 if only files are missing, else with 6.
    """
    from dataclasses import replace

    from latent_ladder.checkpoints.scan import scan
    from latent_ladder.checkpoints.search_paths import model_folders
    from latent_ladder.comfyui.analysis.check import check_workflow as look
    from latent_ladder.comfyui.analysis.overrides import apply_overrides
    from latent_ladder.comfyui.analysis.required_files import (
        default_input_folder,
        parse_file_name_map,
    )
    from latent_ladder.comfyui.formats.read import read_workflow

    workflow = read_workflow(source)
    workflow = replace(workflow, graph=apply_overrides(workflow.graph, settings or ()))
    library = scan(model_folders(folders or ()))
    report = look(
        workflow,
        library,
        (inputs or default_input_folder(source),),
        parse_file_name_map(maps or ()),
    )
    if as_json:
        print(json.dumps(report.to_dict(), indent=2, ensure_ascii=False, default=str))
    else:
        print("\n".join(_lines(report, every)))
    if not report.ready:
        raise typer.Exit(FILES_MISSING if report.can_run else CANNOT_RUN)


# --- for a person ---------------------------------------------------------------------------------


def _lines(report: WorkflowReport, every: bool) -> Iterator[str]:
    yield _head(report)
    if every:
        yield from _section("nodes", [f"{n:>3} {kind}" for kind, n in sorted(report.types.items())])
    yield from _section("outputs", [line for one in report.outputs for line in _result(one)])
    yield from _section("files", _files(report.files))
    yield from _section(
        "cannot run here", [line for one in report.unsupported for line in _unsupported(one)]
    )
    wrong = [f"{_place(report.graph, p.node)}: {p.message}" for p in report.problems
             if p.type != "missing_node_type"]  # fmt: skip
    yield from _section("wrong", wrong)
    yield from _section("to know", _traps(report, every))
    yield ""
    yield _verdict(report)


def _head(report: WorkflowReport) -> str:
    packs = ", ".join(f"{pack} {n}" for pack, n in Counter(report.packs).most_common())
    idle = len(report.graph.nodes) - len(report.needed)
    unused = f", {idle} of them not needed as it is set" if idle else ""
    count = len(report.graph.nodes)
    return f"{report.source}: {count} node{'s' * (count != 1)}{unused} ({packs})"


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield ""
        yield title
        yield from (f"  {line}" for line in lines)


def _result(one: OutputSummary) -> Iterator[str]:
    yield f"{one.node} {one.title}{': ' + one.file if one.file else ''}"
    about = []
    if one.size:
        about.append(f"{one.size[0]}x{one.size[1]}")
    if one.frames and (one.fps or one.frames > 1):
        about.append(f"{one.frames} frames")
    if one.fps:
        about.append(f"{one.fps:g} fps")
    if one.duration_s:
        about.append(f"{one.duration_s:.2f} s")
    if one.sound_s is not None:
        about.append(f"sound {one.sound_s:.2f} s")
    if about:
        yield f"    {', '.join(about)}"
    for number, stage in enumerate(one.stages, 1):
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


def _files(files: Sequence[RequiredFile]) -> list[str]:
    lines = []
    for one in files:
        folder = one.folder.rpartition(",")[2]
        used = f" as {one.used}" if one.used.rpartition("/")[2] != _last(one.name) else ""
        lines.append(f"{one.state:<9} {folder}/{one.name}{used}")
        if one.note:
            lines.append(f"{'':<9}   {one.note}")
        if one.state == "missing" and one.url:
            lines.append(f"{'':<9}   {one.url}")
    return lines


def _last(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[2]


def _unsupported(one: UnsupportedNode) -> Iterator[str]:
    title = f' "{one.title}"' if one.title not in ("", one.class_type) else ""
    yield f"{one.node} {one.class_type}{title}: {one.why}"
    if one.hint:
        yield f"    {one.hint}"


def _traps(report: WorkflowReport, every: bool) -> list[str]:
    shown = [t for t in report.findings if every or t.code not in _QUIET]
    lines = [_trap(report.graph, trap) for trap in shown]
    hidden = len(report.findings) - len(shown)
    if hidden:
        what = "widget shows" if hidden == 1 else "widgets show"
        lines.append(f"{hidden} {what} another value than its link gives (--all lists them)")
    return lines


def _trap(graph: Graph, trap: LintFinding) -> str:
    return f"{_place(graph, trap.node)}: {trap.message}" if trap.node else trap.message


def _place(graph: Graph, key: str) -> str:
    node = graph.nodes.get(key)
    return f"{key} {node.title or node.class_type}" if node else "the workflow"


def _verdict(report: WorkflowReport) -> str:
    if report.ready:
        return "it can run"
    missing = [one for one in report.files if not one.usable]
    if report.can_run:
        count = f"{len(missing)} file{'s' if len(missing) != 1 else ''}"
        return f"it can run when {count} are here: put them into a model folder, or --map OLD=NEW"
    return "it cannot run as it is"
