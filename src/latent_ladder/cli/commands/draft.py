"""``ladder draft`` and ``refine``: several cheap drafts, then finished clips from the good ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import DRAFT_RULES, MEMORY_RULES
from latent_ladder.cli.commands.flags import (
    InputFlags,
    MemoryFlags,
    RequestFlags,
    open_store,
    prepare,
)
from latent_ladder.cli.commands.options import (
    Compare,
    Folders,
    Json,
    Measure,
    Notify,
    Open,
    Overwrite,
    PreviewStrip,
    Quiet,
    Sets,
    StoreFolder,
    memory_option,
    other_option,
    output_option,
    sound_option,
    stage_option,
)
from latent_ladder.cli.commands.run_progress import (
    current_command,
    print_result,
    resume_command,
    track_run,
)
from latent_ladder.cli.console import print_json, print_lines, print_table, show_loading, show_note
from latent_ladder.cli.notify import notify_at_end
from latent_ladder.cli.open_file import open_file
from latent_ladder.cli.result_line import folder_lines

if TYPE_CHECKING:
    from latent_ladder.drafts.draft_run import DraftsResult
    from latent_ladder.drafts.selection import Chosen
    from latent_ladder.pipeline.run import Prepared, Result
    from latent_ladder.storage.artifact_store import Store
    from latent_ladder.storage.run_records import DraftRecord

MOST_USED_DRAFT = (
    "seeds", "prompts", "output", "preset", "size", "duration", "seed", "negative", "images",
    "overwrite",
)  # fmt: skip
MOST_USED_REFINE = (
    "output", "sets", "audio", "overwrite", "folders", "device", "vram", "offload", "quiet",
    "as_json",
)  # fmt: skip
"""Options that ``draft`` and ``refine`` list first in their help."""

PROMPT_CHARACTERS = 40
"""Length of a prompt in the table of drafts."""

Seeds = Annotated[
    str,
    stage_option(
        "--seeds",
        metavar="SEEDS",
        help="How many drafts (8, counting up from --seed), a list (3,17,99) or a range (10-17).",
    ),
]
PromptFile = Annotated[
    Path | None,
    stage_option(
        "--prompts",
        metavar="FILE",
        help="Prompts to draft, instead of PROMPT: a text file with one per line (# starts a "
        "comment), or a .csv or .jsonl file with a column prompt.",
    ),
]
DraftPreview = Annotated[
    str,
    output_option(
        "--preview",
        metavar="MODE",
        autocompletion=completion.offer(completion.DRAFT_PREVIEWS),
        help="Decoder for the pictures of drafts: rgb (fastest, coarse), tae (a tiny decoder) or "
        "full (the model's, slowest).",
    ),
]
SheetFolder = Annotated[
    Path | None,
    output_option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="Folder for the page and the contact sheet. Default: drafts-RUN (RUN: id of the run).",
    ),
]
TogetherDrafts = Annotated[
    str,
    memory_option(
        "--together",
        metavar="COUNT",
        help="Drafts in each forward of the transformer: 1, a number, or auto (while one chunk "
        "of tokens holds them). More save time where drafts are small or weights are streamed; "
        "the result differs by rounding.",
    ),
]
Yes = Annotated[
    bool, other_option("--yes", "-y", help="Make more than 64 drafts without an error.")
]
DraftNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN:DRAFT",
        autocompletion=completion.complete_run,
        help="Drafts to refine: last:3 is draft 3 of the newest run of drafts; a run's id also "
        "works.",
    ),
]
KeptAudio = Annotated[
    str | None,
    sound_option(
        "--audio",
        metavar="MODE",
        autocompletion=completion.offer(completion.AUDIO_MODES[:2]),
        help="Sound of the clip: refine (improved in every refine stage) or keep (as in the "
        "draft). Default: as in the draft's request.",
    ),
]
ClipOrFolder = Annotated[
    Path | None,
    output_option(
        "--output",
        "-o",
        metavar="PATH",
        help="File for one clip, or folder for several. Default: the working folder.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``draft`` and ``refine``."""
    app.command(cls=GroupedCommand)(expand_flags(draft, MOST_USED_DRAFT, DRAFT_RULES))
    app.command(cls=GroupedCommand)(expand_flags(refine, MOST_USED_REFINE, MEMORY_RULES))


def draft(
    request_flags: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    seeds: Seeds = "8",
    prompts: PromptFile = None,
    output: SheetFolder = None,
    preview: DraftPreview = "rgb",
    together: TogetherDrafts = "1",
    yes: Yes = False,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
    open_result: Open = False,
    notify: Notify = False,
) -> None:
    """Make several cheap drafts and a page to compare them.

    A draft is the first, small stage of a clip. `ladder refine last:3`
    finishes draft 3.
    """
    began = time.monotonic()
    show_loading("reading the headers of the model files", quiet or as_json)
    open_store(store).check_writable()
    from latent_ladder.drafts.seeds import all_drafts, parse_seeds, read_prompts
    from latent_ladder.drafts.shared_forwards import parse_together

    count = parse_together(together)
    texts = None if prompts is None else read_prompts(prompts)
    if texts is not None:
        request_flags = replace(request_flags, prompt=texts[0])
    parse_seeds(seeds, 0)  # fails early, before model files are searched
    prepared = prepare(request_flags, memory, store, inputs, "draft")
    request = prepared.request
    drafts = all_drafts(texts or (request.prompt,), parse_seeds(seeds, request.seed), yes)
    show_loading("loading PyTorch", quiet or as_json)
    from latent_ladder.drafts.draft_run import check_folder, plan_drafts, run_drafts

    session = plan_drafts(prepared, drafts, preview)
    if output is not None:
        check_folder(output, overwrite)
    run = track_run(
        prepared,
        resume_command(request.seed),
        overwrite=overwrite,
        quiet=quiet or as_json,
        parts="drafts",
    )
    with notify_at_end(notify, "drafts"), run as options:
        result = run_drafts(session, options, output, count)
    if quiet and not as_json:
        print_lines(result.folder)
    else:
        _print_drafts(result, time.monotonic() - began, as_json)
    if open_result:
        open_file(result.page)


def refine(
    names: DraftNames,
    memory: MemoryFlags,
    sets: Sets = None,
    audio: KeptAudio = None,
    output: ClipOrFolder = None,
    folders: Folders = None,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    measure: Measure = True,
    as_json: Json = False,
    preview: PreviewStrip = False,
    open_result: Open = False,
    compare: Compare = False,
    notify: Notify = False,
) -> None:
    """Turn chosen drafts into finished clips.

    The result has the same bits as `ladder make` with the draft's prompt
    and seed.
    """
    show_loading("reading the headers of the model files", quiet or as_json)
    open_store(store).check_writable()
    from latent_ladder.drafts.comparison import add_comparison, check_comparison
    from latent_ladder.drafts.selection import choose, output_names
    from latent_ladder.media.video_writer import check_video_path
    from latent_ladder.pipeline.run import execute

    opened = open_store(store)
    chosen = [choose(opened, name) for name in dict.fromkeys(names)]
    paths = output_names(chosen, output)
    plans = [_prepare(one, opened, memory, sets or (), audio, folders) for one in chosen]
    for prepared, path in zip(plans, paths, strict=True):
        if path == output or path.parent.is_dir():  # a folder for several clips is made later
            check_video_path(path, overwrite)
        if compare:
            check_comparison(prepared, path, overwrite)
    results: list[Result] = []
    for prepared, path in zip(plans, paths, strict=True):
        began = time.monotonic()
        if path != output:
            path.parent.mkdir(parents=True, exist_ok=True)
        run = track_run(
            prepared,
            current_command(),
            overwrite=overwrite,
            quiet=quiet or as_json,
        )
        strip = path.with_suffix(".preview.png") if preview else None
        with notify_at_end(notify, path.name), run as options:
            options = replace(options, preview=strip, measure=measure)
            result = execute(prepared, path, options)
            results.append(add_comparison(result, prepared, options) if compare else result)
        if not as_json:
            seconds = time.monotonic() - began
            print_result(results[-1], seconds, as_json=False, quiet=quiet)
    if open_result:
        for path in paths:
            open_file(path)
    if as_json:
        print_json([r.to_dict() for r in results])


def _prepare(
    chosen: Chosen,
    store: Store,
    memory: MemoryFlags,
    sets: Sequence[str],
    audio: str | None,
    folders: list[Path] | None,
) -> Prepared:
    """Plan one clip with the model folders of its draft's run, or with ``folders``."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.drafts.selection import from_stage_1, searched_folders, with_changes
    from latent_ladder.pipeline.run import prepare as prepare_request

    library = scan(model_folders(folders or searched_folders(chosen)))
    request = with_changes(chosen, sets, audio)
    prepared = prepare_request(request, library, store, memory.to_options(), memory.device)
    return from_stage_1(chosen, prepared)


def _print_drafts(result: DraftsResult, seconds: float, as_json: bool) -> None:
    if as_json:
        print_json(result.to_dict())
        return
    columns = ("draft", "seed", "state", "motion", "detail", "sound", "flags", "prompt")
    print_table("", columns, [_draft_row(draft) for draft in result.record.drafts])
    count = len(result.record.drafts)
    facts = [f"{count} draft{'s' * (count != 1)}", f"seed {result.record.drafts[0].seed}"]
    show_note(f"to finish a draft, such as number 1: ladder refine {result.record.id}:1")
    print_lines(folder_lines(result.page, facts, seconds, [result.video, result.sheet]))


def _draft_row(draft: DraftRecord) -> tuple[str, ...]:
    metrics: dict[str, Any] = dict(draft.metrics)
    state = "reused" if draft.reused else f"{draft.seconds:.1f} s"
    level_db = (metrics.get("sound") or {}).get("level_db")
    prompt = draft.prompt
    if len(prompt) > PROMPT_CHARACTERS:
        prompt = f"{prompt[: PROMPT_CHARACTERS - 1]}…"
    return (
        str(draft.number),
        str(draft.seed),
        "failed" if draft.status == "failed" else state,
        _format_number(metrics.get("motion")),
        _format_number(metrics.get("detail")),
        "-" if level_db is None else f"{level_db:.1f} dB",
        " ".join(metrics.get("flags", ())) or "-",
        prompt,
    )


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
