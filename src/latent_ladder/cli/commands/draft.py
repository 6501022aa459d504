"""``ladder draft`` and ``refine``: many cheap drafts, then only the good ones to the end."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands.flags import (
    Folders,
    InputFlags,
    Json,
    Measure,
    MemoryFlags,
    Overwrite,
    Quiet,
    RequestFlags,
    StoreFolder,
    Watch,
    flags,
    open_store,
    prepare,
)
from latent_ladder.cli.commands.run_progress import resume_command, watched
from latent_ladder.cli.console import show_note, table
from latent_ladder.errors import RequestError

if TYPE_CHECKING:
    from latent_ladder.drafts.draft_run import DraftsResult
    from latent_ladder.drafts.selection import Chosen
    from latent_ladder.pipeline.run import Prepared, Result
    from latent_ladder.storage.artifact_store import Store
    from latent_ladder.storage.run_records import DraftRecord

Seeds = Annotated[
    str,
    typer.Option(
        "--seeds", help="How many, from --seed onwards (8), a list (3,17,99) or a range (10-17)."
    ),
]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", help="A file with one prompt a line, # for comments.")
]
Kind = Annotated[
    str,
    typer.Option("--preview", help="How drafts are looked at: rgb, tae (tiny decoder) or full."),
]
Folder = Annotated[
    Path | None, typer.Option("--output", "-o", help="Folder of the sheet (else drafts-RUN).")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Make more than 64 drafts.")]
Names = Annotated[
    list[str], typer.Argument(metavar="RUN:DRAFT...", help="Such as last:3, or a run's id.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="A field of a later stage: refine.denoise=0.4 (repeatable)."),
]
Audio = Annotated[str | None, typer.Option("--audio", help="refine or keep (stage 1's).")]
ClipOrFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="The clip, or a folder for several.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(flags(draft))
    app.command()(flags(refine))


def draft(
    asked: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    seeds: Seeds = "8",
    prompts: PromptFile = None,
    output: Folder = None,
    preview: Kind = "rgb",
    yes: Yes = False,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make drafts (stage 1 only) with several seeds, and one sheet to choose from."""
    from latent_ladder.drafts.draft_run import check_folder, plan_drafts, run_drafts
    from latent_ladder.drafts.seeds import all_drafts, parse_seeds, read_prompts

    texts = None if prompts is None else read_prompts(prompts)
    if texts is not None:
        if asked.prompt is not None:
            raise RequestError("a prompt and --prompts exclude each other", "use one of them")
        asked = replace(asked, prompt=texts[0])
    parse_seeds(seeds, 0)  # before files are looked for
    prepared = prepare(asked, memory, store, inputs)
    request = prepared.request
    wanted = all_drafts(texts or (request.prompt,), parse_seeds(seeds, request.seed), yes)
    session = plan_drafts(prepared, wanted, preview)
    if output is not None:
        check_folder(output, overwrite)
    command = resume_command(request.seed)
    watch = watched(
        prepared,
        memory.device,
        command,
        overwrite=overwrite,
        quiet=quiet or as_json,
        kept="drafts",
    )
    with watch as options:
        result = run_drafts(session, options, output)
    _print_drafts(result, as_json)


def refine(
    names: Names,
    memory: MemoryFlags,
    sets: Sets = None,
    audio: Audio = None,
    output: ClipOrFolder = None,
    folders: Folders = None,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    measure: Measure = True,
    as_json: Json = False,
    preview: Watch = False,
) -> None:
    """Go on with chosen drafts (or clips) from their stage 1 to finished clips."""
    from latent_ladder.drafts.selection import choose, output_names
    from latent_ladder.media.video_writer import check_video_path
    from latent_ladder.pipeline.run import execute

    opened = open_store(store)
    chosen = [choose(opened, name) for name in dict.fromkeys(names)]
    paths = output_names(chosen, output)
    ready = [_prepare(one, opened, memory, sets or (), audio, folders) for one in chosen]
    for path in paths:
        if path == output or path.parent.is_dir():  # a folder for several is made when needed
            check_video_path(path, overwrite)
    results: list[Result] = []
    for prepared, path in zip(ready, paths, strict=True):
        if path != output:
            path.parent.mkdir(parents=True, exist_ok=True)
        command = shlex.join(["ladder", *sys.argv[1:]])
        watch = watched(
            prepared, memory.device, command, overwrite=overwrite, quiet=quiet or as_json
        )
        strip = path.with_suffix(".preview.png") if preview else None
        with watch as options:
            options = replace(options, preview=strip, measure=measure)
            results.append(execute(prepared, path, options))
        if not as_json:
            print(path)
    if as_json:
        print(json.dumps([r.to_dict() for r in results], ensure_ascii=False, indent=2))


def _prepare(
    chosen: Chosen,
    store: Store,
    memory: MemoryFlags,
    sets: Sequence[str],
    audio: str | None,
    folders: list[Path] | None,
) -> Prepared:
    """Plan one clip with the folders that its run searched, unless others are named."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.drafts.selection import from_stage_1, searched_folders, with_changes
    from latent_ladder.pipeline.run import prepare as prepare_request

    library = scan(model_folders(folders or searched_folders(chosen)))
    request = with_changes(chosen, sets, audio)
    ready = prepare_request(request, library, store, memory.options(), memory.device)
    return from_stage_1(chosen, ready)


def _print_drafts(result: DraftsResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=2))
        return
    columns = ("draft", "seed", "state", "motion", "detail", "sound", "flags", "prompt")
    table("", columns, [_row(draft) for draft in result.record.drafts])
    print(result.folder)
    show_note(f"go on with the good ones: ladder refine {result.record.id}:1")


def _row(draft: DraftRecord) -> tuple[str, ...]:
    numbers: dict[str, Any] = dict(draft.metrics)
    state = "reused" if draft.reused else f"{draft.seconds:.1f} s"
    sound = (numbers.get("sound") or {}).get("level_db")
    prompt = draft.prompt if len(draft.prompt) <= 40 else f"{draft.prompt[:39]}…"
    return (
        str(draft.number),
        str(draft.seed),
        "failed" if draft.status == "failed" else state,
        _number(numbers.get("motion")),
        _number(numbers.get("detail")),
        "-" if sound is None else f"{sound:.1f} dB",
        " ".join(numbers.get("flags", ())) or "-",
        prompt,
    )


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
