"""``ladder workflow import`` and ``export``: conversion between ComfyUI graphs and requests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flags import open_store
from latent_ladder.cli.commands.options import (
    Folders,
    Json,
    Overwrite,
    Sets,
    StoreFolder,
    model_option,
    output_option,
    stage_option,
)
from latent_ladder.cli.commands.workflow_run import (
    ComfyUiVersion,
    NodeSettings,
    WorkflowSource,
)
from latent_ladder.cli.console import print_json, print_lines, print_toml, show_note, show_warning
from latent_ladder.errors import MediaError, RequestError

if TYPE_CHECKING:
    from latent_ladder.comfyui.conversion import ImportedWorkflow
    from latent_ladder.request.model import Request

PRESET = "preset:"
EXAMPLE_PROMPT = "a red ball rolls to the right over a striped floor"
"""The prompt of an exported preset without ``--prompt``; the pocket model knows all its words."""

RequestSource = Annotated[
    str,
    typer.Argument(
        metavar="REQUEST",
        help="Request to convert: a .toml or .json file, a clip, a run's id, or preset:NAME.",
    ),
]
SavingNode = Annotated[
    str | None,
    stage_option(
        "--node",
        metavar="NODE",
        help="The node that saves the clip if there are several: its id, title or file prefix.",
    ),
]
WithoutFiles = Annotated[
    bool,
    model_option("--without-files", help="Leave out model file names; they are found by role."),
]
TextFile = Annotated[
    Path | None,
    output_option("--output", "-o", metavar="FILE", help="File to write. Default: stdout."),
]
Format = Annotated[
    str,
    output_option(
        "--format",
        metavar="NAME",
        autocompletion=completion.offer(("ui", "api")),
        help="ui (opens in ComfyUI) or api (for POST /prompt).",
    ),
]
PromptText = Annotated[
    str | None,
    stage_option("--prompt", metavar="TEXT", help="The prompt in place of the request's own."),
]


def register(workflow: typer.Typer) -> None:
    """Add ``import`` and ``export`` to the app of ``ladder workflow``."""
    workflow.command("import", cls=GroupedCommand)(expand_flags(import_graph))
    workflow.command("export", cls=GroupedCommand)(expand_flags(export_graph))


def import_graph(
    graph: WorkflowSource,
    output: TextFile = None,
    node: SavingNode = None,
    sets: NodeSettings = None,
    version: ComfyUiVersion = None,
    without_files: WithoutFiles = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a ComfyUI graph to a request (TOML), if a request can express it."""
    from latent_ladder.comfyui.analysis.overrides import apply_overrides
    from latent_ladder.comfyui.conversion import import_workflow
    from latent_ladder.comfyui.formats.read import read_workflow
    from latent_ladder.comfyui.versions import parse_comfyui_version

    convention = None if version is None else parse_comfyui_version(version)
    _check_free(output, overwrite)
    workflow = read_workflow(graph)
    workflow = replace(workflow, graph=apply_overrides(workflow.graph, sets or ()))
    imported = import_workflow(workflow, node, convention)
    request = _without_files(imported.request) if without_files else imported.request
    if not as_json:
        _report(imported)
    if output is not None:
        _write(output, request.to_toml())
    if as_json:
        print_json({**imported.to_dict(), "request": request.to_dict()}, indent=None)
    else:
        print_toml(request.to_toml()) if output is None else print_lines(output)


def export_graph(
    source: RequestSource,
    output: TextFile = None,
    form: Format = "ui",
    prompt: PromptText = None,
    sets: Sets = None,
    folders: Folders = None,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a request as a ComfyUI workflow, with a note on fields that no node can express."""
    from latent_ladder.comfyui.conversion import export_workflow, lossy_field_messages
    from latent_ladder.comfyui.exporter.file_names import file_names_for

    if form not in ("ui", "api"):
        raise RequestError(f"format={form} is unknown, expected ui or api", "use --format ui")
    _check_free(output, overwrite)
    request = _request(source, prompt, tuple(sets or ()), store)
    files = file_names_for(request, folders or ())
    document = export_workflow(request, files, "ui" if form == "ui" else "api")
    text = json.dumps(document, indent=1, ensure_ascii=False)
    for line in lossy_field_messages(request):
        show_warning(line)
    if output is None:
        print_lines(text)
    else:
        _write(output, text + "\n")
        print_lines(output)


def _report(imported: ImportedWorkflow) -> None:
    match = imported.preset_match
    if match.equal:
        show_note(f"equals the preset {match.preset}")
    else:
        show_note(f"closest preset: {match.preset}; differences:")
        for difference in match.differences:
            show_note(f"  {difference}")
    if imported.embedded:
        show_note("exported by ladder: fields that no node can express have their exported values")
    if imported.request.model_convention != "ltx":
        show_note("the model computes as in ComfyUI (model_convention), presets as official code")
    for loss in imported.losses:
        show_warning(str(loss))


def _request(source: str, prompt: str | None, sets: tuple[str, ...], store: Path | None) -> Request:
    """Return the request of a source, with the prompt and fields of ``--set`` replaced."""
    from latent_ladder.request.model import Request
    from latent_ladder.request.overrides import apply_sets

    fields = _fields(source, store)
    if prompt is not None:
        fields["prompt"] = prompt
    return Request.from_dict(apply_sets(fields, sets))


def _fields(source: str, store: Path | None) -> dict[str, object]:
    from latent_ladder.request.files import read_request
    from latent_ladder.request.presets import read_preset

    if source.startswith(PRESET):
        return {"prompt": EXAMPLE_PROMPT, **read_preset(source.removeprefix(PRESET)).fields}
    path = Path(source)
    if path.exists() or path.suffix:
        return read_request(path).to_dict()
    return dict(open_store(store).runs.find(source).request)


def _without_files(request: Request) -> Request:
    """Return the request without model file names; LoRAs without a role keep their names."""
    from latent_ladder.request.model import Request

    table = request.to_dict()
    table["models"] = {k: v for k, v in table["models"].items() if k in ("precision", "folders")}
    for stage in table["stages"]:
        if stage["kind"] == "upsample":
            stage.pop("file", None)
    return Request.from_dict(table)


def _check_free(output: Path | None, overwrite: bool) -> None:
    if output is not None and output.exists() and not overwrite:
        raise MediaError(f"{output} exists already", "add --overwrite, or choose another name")


def _write(output: Path, text: str) -> None:
    from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

    with convert_write_errors(MediaError, output.name, output.parent):
        write_atomically(output, text.encode("utf-8"))
