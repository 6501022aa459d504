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
from latent_ladder.cli.commands.options import (
    Json,
    Measure,
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
    show_warning,
)
from latent_ladder.cli.open_file import open_file
from latent_ladder.cli.run_log import log_plan
from latent_ladder.errors import StoreError

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared

MOST_USED = (
    "output", "preset", "size", "duration", "frames", "fps", "seed", "negative", "images",
    "overwrite",
)  # fmt: skip
"""Options that ``make`` and ``plan`` list first in their help."""

NAME_WORDS = 6
"""Words of the prompt in a file name."""


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
) -> None:
    """Make a clip with sound from a prompt.

    ladder make "a red ball rolls to the right" -o ball.mp4
    """
    began = time.monotonic()
    is_quiet = quiet or as_json
    show_loading("reading the headers of the model files", is_quiet)
    prepared = prepare(request_flags, memory, store, inputs)
    path = output or choose_file_name(
        prepared.request.prompt, ".mov" if prepared.request.output.codec == "prores" else ".mp4"
    )
    from latent_ladder.pipeline.run import execute

    run = track_run(
        prepared,
        resume_command(prepared.request.seed),
        overwrite=overwrite,
        quiet=is_quiet,
    )
    with run as options:
        strip = path.with_suffix(".preview.png") if preview else None
        result = execute(prepared, path, replace(options, measure=measure, preview=strip))
    print_result(result, time.monotonic() - began, as_json=as_json, quiet=quiet)
    if open_result:
        open_file(path)


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


def choose_file_name(prompt: str, suffix: str = ".mp4") -> Path:
    """A path in the working folder that does not exist yet, named after the prompt."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    stem = "-".join(words[:NAME_WORDS]) or "clip"
    names = (Path(f"{stem}{'' if n == 1 else f'-{n}'}{suffix}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _is_video_file(clip: Path) -> bool:
    """True if the size and length of a clip can be read from it: not pictures, sound or WebP."""
    is_sequence = clip.is_dir() or "%" in clip.name
    return not is_sequence and clip.suffix.lower() not in (".wav", ".webp", ".png")


def _print_plan(prepared: Prepared, report: dict[str, Any]) -> None:
    print_lines(prepared.headline(picked=False))
    if prepared.unfinished is not None:
        print_lines(f"run {prepared.unfinished.id} did not finish; `make` goes on with its seed")
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
