"""``ladder make``, ``plan`` and ``show``: make a clip, plan one, print a clip's request."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import CLIP_RULES, MAKE_RULES
from latent_ladder.cli.commands.flags import InputFlags, MemoryFlags, RequestFlags, prepare
from latent_ladder.cli.commands.make_many import ManyOptions, make_many
from latent_ladder.cli.commands.options import (
    Compare,
    Count,
    Json,
    ManyPrompts,
    Measure,
    Notify,
    Open,
    Output,
    Overwrite,
    PreviewStrip,
    Quiet,
    StoreFolder,
)
from latent_ladder.cli.commands.run_progress import print_result, resume_command, track_run
from latent_ladder.cli.console import (
    print_json,
    print_lines,
    print_table,
    print_text,
    print_toml,
    show_error,
    show_loading,
    show_note,
    show_warning,
)
from latent_ladder.cli.notify import notify_at_end
from latent_ladder.cli.open_file import open_file
from latent_ladder.cli.run_log import log_plan
from latent_ladder.errors import RequestError, StoreError
from latent_ladder.jobs.file_names import choose_file_name, prompt_stem

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared

MOST_USED = (
    "output", "preset", "size", "duration", "frames", "fps", "seed", "negative", "images",
    "overwrite",
)  # fmt: skip
"""Options that ``make`` and ``plan`` list first in their help."""


def register(app: typer.Typer) -> None:
    """Add ``make``, ``plan`` and ``show``."""
    app.command(cls=GroupedCommand)(expand_flags(make, MOST_USED, MAKE_RULES))
    app.command(cls=GroupedCommand)(expand_flags(plan, MOST_USED, CLIP_RULES))
    app.command(cls=GroupedCommand)(show)


def make(
    request_flags: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    output: Output = None,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    measure: Measure = True,
    as_json: Json = False,
    preview: PreviewStrip = False,
    open_result: Open = False,
    count: Count = 1,
    prompts: ManyPrompts = None,
    compare: Compare = False,
    notify: Notify = False,
) -> None:
    """Make a clip with sound from a prompt.

    ladder make "a red ball rolls to the right" -o ball.mp4
    """
    began = time.monotonic()
    is_quiet = quiet or as_json
    if count < 1:
        raise RequestError(f"count={count} is not a number of clips", "use --count 4")
    if count > 1 or prompts is not None:
        if preview:
            raise RequestError("--preview is for one clip", "leave out --preview")
        many = ManyOptions(count, output, store, overwrite, quiet, as_json, measure, compare)
        with notify_at_end(notify, "clips"):
            _make_many(request_flags, inputs, memory, many, prompts, open_result)
        return
    show_loading("reading the headers of the model files", is_quiet)
    prepared = prepare(request_flags, memory, store, inputs)
    if prepared.request.auto_duration is not None:
        prepared = _with_predicted_length(prepared, is_quiet)
    path = output or choose_file_name(
        prepared.request.prompt, ".mov" if prepared.request.output.codec == "prores" else ".mp4"
    )
    from latent_ladder.pipeline.run import execute

    if compare:
        from latent_ladder.drafts.comparison import add_comparison, check_comparison

        check_comparison(prepared, path, overwrite)
    run = track_run(
        prepared,
        resume_command(prepared.request.seed),
        overwrite=overwrite,
        quiet=is_quiet,
    )
    with notify_at_end(notify, path.name), run as options:
        strip = path.with_suffix(".preview.png") if preview else None
        result = execute(prepared, path, replace(options, measure=measure, preview=strip))
        if compare:
            result = add_comparison(result, prepared, options)
    print_result(result, time.monotonic() - began, as_json=as_json, quiet=quiet)
    if open_result:
        open_file(path)


def _with_predicted_length(prepared: Prepared, quiet: bool) -> Prepared:
    """The run with the length that the model predicts from the prompt."""
    from latent_ladder.pipeline.predicted_length import predict_length

    if not quiet:
        show_note("encoding the prompt, from which the model predicts the length")
    return predict_length(prepared)


def plan(
    request_flags: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Show what `make` would do, without running anything.

    The plan lists stages, sizes, model files, memory and what is already stored.
    """
    prepared = prepare(request_flags, memory, store, inputs)
    log_plan(prepared)
    report = prepared.report()
    if as_json:
        print_json(report)
        return
    _print_plan(prepared, report)
    try:
        prepared.store.check_writable(create=False)
    except StoreError as error:
        show_error(error)


def show(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="Clip that `ladder` made.")],
    as_json: Json = False,
) -> None:
    """Print the request that is stored in a clip.

    It is TOML; `ladder make --from CLIP` uses it.
    """
    from latent_ladder.media.video_reader import probe
    from latent_ladder.request.files import request_of_clip

    request = request_of_clip(clip)
    if as_json:
        print_json(request.to_dict())
        return
    if not _is_video_file(clip):
        print_lines(f"# {clip.name}")
        print_toml(request.to_toml())
        return
    info = probe(clip)
    sound = f", sound {info.audio_duration_s:.3f} s" if info.audio_duration_s else ", no sound"
    print_lines(
        f"# {clip.name}: {info.width}x{info.height}, {info.frames} frames, "
        f"{info.duration_s:.3f} s{sound}"
    )
    print_toml(request.to_toml())


def _make_many(
    request_flags: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    options: ManyOptions,
    prompts: Path | None,
    open_result: bool,
) -> None:
    """Make the clips of ``--count`` and ``--prompts``."""
    from latent_ladder.request.prompt_files import PromptRow, read_prompt_rows

    if prompts is None:
        rows: tuple[PromptRow, ...] = (PromptRow(1, request_flags.prompt or ""),)
        if request_flags.prompt is None:
            raise RequestError("there is no prompt", 'say what to show: ladder make "a red ball"')
        name = f"{prompt_stem(request_flags.prompt)}-clips"
    elif request_flags.prompt is not None:
        raise RequestError("PROMPT and --prompts cannot be combined", "use one of them")
    else:
        rows, name = read_prompt_rows(prompts), f"{prompts.stem}-clips"
    page, code = make_many(rows, request_flags, inputs, memory, options, name)
    if open_result:
        open_file(page)
    if code:
        raise typer.Exit(code)


def _is_video_file(clip: Path) -> bool:
    """True if the size and length of a clip can be read from it: not pictures, sound or WebP."""
    is_sequence = clip.is_dir() or "%" in clip.name
    return not is_sequence and clip.suffix.lower() not in (".wav", ".webp", ".png")


def _print_plan(prepared: Prepared, report: dict[str, Any]) -> None:
    print_text(prepared.headline(picked=False))
    if prepared.unfinished is not None:
        print_text(f"run {prepared.unfinished.id} did not finish; `make` goes on with its seed")
    rows = [
        (
            stage["stage"],
            stage["canvas"],
            stage["latents"],
            stage["tokens"],
            stage["sigmas"],
            stage["work"],
            stage["memory"],
            "stored" if stage["stored"] else "to make",
        )
        for stage in report["rows"]
    ]
    columns = ("stage", "canvas", "latents", "tokens", "sigmas", "work", "peak memory", "state")
    print_table("", columns, rows, below=("sigmas", "work", "latents", "tokens"))
    print_table("", ("role", "precision", "file"), _file_rows(report), whole=("file",))
    print_lines("")
    print_text(f"advice: {report['advice']['sentence']}")
    for warning in report["warnings"]:
        show_warning(warning["message"])


def _file_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """One row per model file, with all roles that it has."""
    roles: dict[tuple[str, str], list[str]] = {}
    for model in report["models"]:
        roles.setdefault((model["precision"], model["file"]), []).append(model["role"])
    return [
        (", ".join(r.replace("_", " ") for r in names), precision, file)
        for (precision, file), names in roles.items()
    ]
