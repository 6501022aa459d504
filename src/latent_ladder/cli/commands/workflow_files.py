"""``ladder workflow import`` and ``export``: ComfyUI graphs to requests, and the reverse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latent_ladder.cli.commands.flags import Folders, Json, Overwrite, StoreFolder, open_store
from latent_ladder.cli.console import show_note, show_warning
from latent_ladder.errors import MediaError, RequestError, WorkflowError

if TYPE_CHECKING:
    from latent_ladder.comfyui.conversion import ImportedWorkflow
    from latent_ladder.request.model import Request

PRESET = "preset:"
UNSAID = "A red ball rolls slowly across a wooden table while a clock ticks."
"""The prompt of an exported preset where nobody says one."""

Graph = Annotated[
    str, typer.Argument(metavar="GRAPH", help="A workflow .json, a clip or PNG that has one, or -.")
]
Source = Annotated[
    str,
    typer.Argument(metavar="REQUEST", help="request.toml, a clip, a run's id, or preset:NAME."),
]
SavingNode = Annotated[
    str | None,
    typer.Option(
        "--node",
        help="The node that saves the clip, where several do: its id, title or file prefix.",
    ),
]
WithoutFiles = Annotated[
    bool, typer.Option("--without-files", help="Leave out model files: the library chooses.")
]
Toml = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write it (else stdout).")
]
Form = Annotated[str, typer.Option("--format", help="ui (opens in ComfyUI) or api (for /prompt).")]
PromptText = Annotated[
    str | None, typer.Option("--prompt", help="The prompt, where the request has none.")
]
GraphSets = Annotated[
    list[str] | None,
    typer.Option("--set", help="NODE.input=value; NODE is an id or a title (repeatable)."),
]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any field (repeatable).")]


def register(workflow: typer.Typer) -> None:
    """Add ``import`` and ``export`` to the app of ``ladder workflow``."""
    workflow.command("import")(import_graph)
    workflow.command("export")(export_graph)


def import_graph(
    graph: Graph,
    output: Toml = None,
    node: SavingNode = None,
    sets: GraphSets = None,
    without_files: WithoutFiles = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Turn a ComfyUI graph into a request, where it is one of the shapes requests have."""
    from latent_ladder.comfyui.analysis.overrides import apply_overrides
    from latent_ladder.comfyui.conversion import import_workflow
    from latent_ladder.comfyui.formats.read import read_workflow

    _check_free(output, overwrite)
    workflow = read_workflow(graph)
    workflow = replace(workflow, graph=apply_overrides(workflow.graph, sets or ()))
    found = import_workflow(workflow, node)
    request = _without_files(found.request) if without_files else found.request
    if not as_json:
        _report(found)
    if output is not None:
        _write(output, request.to_toml())
    if as_json:
        print(json.dumps({**found.to_dict(), "request": request.to_dict()}, ensure_ascii=False))
    else:
        print(output if output is not None else request.to_toml().rstrip())


def export_graph(
    source: Source,
    output: Toml = None,
    form: Form = "ui",
    prompt: PromptText = None,
    sets: Sets = None,
    folders: Folders = None,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a request as a ComfyUI graph, with what no node can say beside it."""
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
        print(text)
    else:
        _write(output, text + "\n")
        print(output)


def _report(found: ImportedWorkflow) -> None:
    near = found.preset_match
    if near.equal:
        show_note(f"equals the preset {near.preset}")
    else:
        show_note(f"nearest to the preset {near.preset}, but for:")
        for difference in near.differences:
            show_note(f"  {difference}")
    if found.embedded:
        show_note("the graph was exported by ladder: what its nodes cannot say is as it was")
    for loss in found.losses:
        show_warning(str(loss))


def _request(source: str, prompt: str | None, sets: tuple[str, ...], store: Path | None) -> Request:
    """The request that a source names, with a prompt and single fields replaced."""
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
        return {"prompt": UNSAID, **read_preset(source.removeprefix(PRESET)).fields}
    path = Path(source)
    if path.exists() or path.suffix:
        try:
            return read_request(path).to_dict()
        except RequestError as error:
            raise _already_a_graph(path) or error from error
    return dict(open_store(store).runs.find(source).request)


def _already_a_graph(path: Path) -> RequestError | None:
    """The error for a file that is no request but a workflow."""
    from latent_ladder.comfyui.formats.read import read_workflow

    try:
        read_workflow(path)
    except WorkflowError:
        return None
    text = f"{path.name} holds a ComfyUI workflow, not a request"
    return RequestError(text, f"make one first: ladder workflow import {path} -o request.toml")


def _without_files(request: Request) -> Request:
    """The request without the names of model files; LoRAs that no role names stay."""
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
