"""``ladder make``, ``plan`` and ``show``: a prompt becomes a clip, or a plan of one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from latent_ladder.cli.commands.flags import (
    InputFlags,
    Json,
    Measure,
    MemoryFlags,
    Output,
    Overwrite,
    Quiet,
    RequestFlags,
    StoreFolder,
    Watch,
    flags,
    prepare,
)
from latent_ladder.cli.commands.run_progress import print_result, resume_command, watched
from latent_ladder.cli.console import show_warning, table

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(flags(make))
    app.command()(flags(plan))
    app.command()(show)


def make(
    asked: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    output: Output = None,
    store: StoreFolder = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    measure: Measure = True,
    as_json: Json = False,
    preview: Watch = False,
) -> None:
    """Make a clip with sound from a prompt, through every stage."""
    prepared = prepare(asked, memory, store, inputs)
    path = output or free_name(
        prepared.request.prompt, ".mov" if prepared.request.output.codec == "prores" else ".mp4"
    )
    from latent_ladder.pipeline.run import execute

    command = resume_command(prepared.request.seed)
    watch = watched(prepared, memory.device, command, overwrite=overwrite, quiet=quiet or as_json)
    with watch as options:
        strip = path.with_suffix(".preview.png") if preview else None
        result = execute(prepared, path, replace(options, measure=measure, preview=strip))
    print_result(result, as_json)


def plan(
    asked: RequestFlags,
    inputs: InputFlags,
    memory: MemoryFlags,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Say what `make` would do, from which files, at which sizes; run nothing."""
    prepared = prepare(asked, memory, store, inputs)
    report = prepared.report()
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    _print_plan(prepared, report)


def show(clip: Path, as_json: Json = False) -> None:
    """Show the request that is embedded in a clip."""
    from latent_ladder.media.video_reader import probe
    from latent_ladder.request.files import request_of_clip

    request = request_of_clip(clip)
    if as_json:
        print(json.dumps(request.to_dict(), indent=2, ensure_ascii=False))
        return
    if is_silent_about_itself(clip):
        print(f"# {clip.name}")
        print(request.to_toml().rstrip())
        return
    info = probe(clip)
    sound = f", sound {info.audio_duration_s:.3f} s" if info.audio_duration_s else ", no sound"
    print(
        f"# {clip.name}: {info.width}x{info.height}, {info.frames} frames, "
        f"{info.duration_s:.3f} s{sound}"
    )
    print(request.to_toml().rstrip())


def is_silent_about_itself(clip: Path) -> bool:
    """Whether a clip is no video file that tells its size and length: frames, sound, WebP."""
    return clip.is_dir() or "%" in clip.name or clip.suffix.lower() in (".wav", ".webp", ".png")


def free_name(prompt: str, suffix: str = ".mp4") -> Path:
    """A file name from the prompt that does not exist yet."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    stem = "-".join(words[:6]) or "clip"
    names = (Path(f"{stem}{'' if n == 1 else f'-{n}'}{suffix}") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _print_plan(prepared: Prepared, report: dict[str, Any]) -> None:
    print(prepared.headline())
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
    columns = ("stage", "canvas", "latents", "tokens", "sigmas", "work", "memory", "state")
    table("", columns, rows)
    files = [(m["role"], m["precision"], m["file"]) for m in report["models"]]
    table("", ("role", "precision", "file"), files)
    print(f"advice: {report['advice']['sentence']}")
    for warning in report["warnings"]:
        show_warning(warning["message"])
