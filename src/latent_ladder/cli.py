"""The command ``ladder``: flags in, a path or JSON on stdout, everything else on stderr.

A thin face: every decision is made by the modules it calls. Nothing heavy is imported at module
level, so that ``ladder --help`` answers at once.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder import __version__
from latent_ladder.console import (
    RunProgress,
    gib,
    show_error,
    show_note,
    show_warning,
    table,
)
from latent_ladder.errors import Cancelled, LadderError, RequestError

if TYPE_CHECKING:
    from types import FrameType

    from latent_ladder.checkpoints.library import Library
    from latent_ladder.pipeline import Cancel, Prepared, Result
    from latent_ladder.request import Request
    from latent_ladder.stages.runs import RunRecord

app = typer.Typer(
    name="ladder",
    help="Multi-stage video generation with LTX-2.3: low in latent space, upsampled, refined.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
runs_app = typer.Typer(help="Look after the runs and artefacts in the store.", no_args_is_help=True)
presets_app = typer.Typer(help="Named starting points of a request.", no_args_is_help=True)
models_app = typer.Typer(help="The model files that were found.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")
app.add_typer(presets_app, name="presets")
app.add_typer(models_app, name="models")

Prompt = Annotated[str | None, typer.Argument(help="What is seen, how it moves and sounds.")]
Preset = Annotated[str | None, typer.Option("--preset", "-p", help="See `ladder presets list`.")]
Source = Annotated[
    Path | None,
    typer.Option("--from", help="Start from the request in a clip, a .toml or a .json file."),
]
Negative = Annotated[str | None, typer.Option("--negative", help="What should not be seen.")]
Seed = Annotated[str | None, typer.Option("--seed", help="Whole number; -1 draws one.")]
Size = Annotated[str | None, typer.Option("--size", help="Final size, such as 1280x720.")]
Frames = Annotated[str | None, typer.Option("--frames", help="8k+1, such as 121.")]
Duration = Annotated[str | None, typer.Option("--duration", help="Seconds, instead of --frames.")]
Fps = Annotated[str | None, typer.Option("--fps", help="24, 23.976, 30000/1001 ...")]
Audio = Annotated[str | None, typer.Option("--audio", help="refine, keep (stage 1's) or none.")]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any field: --set refine.denoise=0.4 (repeatable)."),
]
Folders = Annotated[
    list[Path] | None, typer.Option("--models", help="A ComfyUI models/ folder (repeatable).")
]
Checkpoint = Annotated[str | None, typer.Option("--checkpoint", help="Checkpoint file to use.")]
StoreFolder = Annotated[Path | None, typer.Option("--store", help="Where artefacts are kept.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="The clip, .mp4, .mov or .mkv.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no warnings.")]


@dataclass(frozen=True)
class Asked:
    """The flags that describe a request, before it is one."""

    prompt: str | None
    preset: str | None
    source: Path | None
    fields: dict[str, Any] = field(default_factory=dict)
    size: str | None = None
    sets: tuple[str, ...] = ()
    folders: tuple[Path, ...] = ()
    checkpoint: str | None = None
    store: Path | None = None


@app.command()
def make(
    prompt: Prompt = None,
    output: Output = None,
    preset: Preset = None,
    source: Source = None,
    negative: Negative = None,
    seed: Seed = None,
    size: Size = None,
    frames: Frames = None,
    duration: Duration = None,
    fps: Fps = None,
    audio: Audio = None,
    sets: Sets = None,
    folders: Folders = None,
    checkpoint: Checkpoint = None,
    store: StoreFolder = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make a clip with sound from a prompt, through every stage."""
    asked = _asked(locals())
    prepared = _prepare(asked)
    path = output or _free_name(prepared.request.prompt)
    command = _resume_command(prepared.request.seed)
    from latent_ladder.pipeline import Cancel, RunOptions, execute

    cancel = Cancel()
    with RunProgress(quiet or as_json) as progress, _interrupts(cancel):
        options = RunOptions(
            device=device,
            overwrite=overwrite,
            command=command,
            on_event=progress.on_event,
            cancel=cancel,
        )
        try:
            result = execute(prepared, path, options)
        except (Cancelled, KeyboardInterrupt) as error:
            show_note(f"stopped; finished stages are kept. To go on:\n  {command}")
            raise Cancelled("stopped by the user") from error
    _print_result(result, as_json)


@app.command()
def plan(
    prompt: Prompt = None,
    preset: Preset = None,
    source: Source = None,
    negative: Negative = None,
    seed: Seed = None,
    size: Size = None,
    frames: Frames = None,
    duration: Duration = None,
    fps: Fps = None,
    audio: Audio = None,
    sets: Sets = None,
    folders: Folders = None,
    checkpoint: Checkpoint = None,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Say what `make` would do, from which files, at which sizes; run nothing."""
    prepared = _prepare(_asked(locals()))
    report = prepared.report()
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    _print_plan(prepared, report)


@app.command()
def show(clip: Path, as_json: Json = False) -> None:
    """Show the request that is embedded in a clip."""
    from latent_ladder.media.read import probe
    from latent_ladder.pipeline import request_of_clip

    request = request_of_clip(clip)
    if as_json:
        print(json.dumps(request.to_dict(), indent=2, ensure_ascii=False))
        return
    info = probe(clip)
    sound = f", sound {info.audio_duration_s:.3f} s" if info.audio_duration_s else ", no sound"
    print(
        f"# {clip.name}: {info.width}x{info.height}, {info.frames} frames, "
        f"{info.duration_s:.3f} s{sound}"
    )
    print(request.to_toml().rstrip())


@presets_app.command("list")
def presets_list(as_json: Json = False) -> None:
    """List the presets."""
    from latent_ladder.presets import preset_names, read_preset

    presets = [read_preset(name) for name in preset_names()]
    if as_json:
        print(json.dumps([{"name": p.name, "summary": p.summary} for p in presets], indent=2))
        return
    table("", ("preset", "what it is for"), [(p.name, p.summary) for p in presets])


@presets_app.command("show")
def presets_show(name: str, as_json: Json = False) -> None:
    """Show one preset in full: it is a request without a prompt."""
    import tomli_w

    from latent_ladder.presets import read_preset

    preset = read_preset(name)
    if as_json:
        print(json.dumps(preset._asdict(), indent=2, ensure_ascii=False))
        return
    print(f"# {preset.summary}\n# source: {preset.source}")
    print(tomli_w.dumps(preset.fields).rstrip())


@models_app.command("list")
def models_list(folders: Folders = None, as_json: Json = False) -> None:
    """List the model files found, by the role their content gives them."""
    from latent_ladder.checkpoints.library import model_folders, scan

    library = scan(model_folders(folders or ()))
    listed = [(role, f) for role, candidates in library.found.items() for f in candidates]
    if as_json:
        rows = [
            {
                "role": role,
                "name": found.name,
                "folder": str(found.folder),
                "bytes": found.path.stat().st_size,
                "embedded": found.embedded,
            }
            for role, found in listed
        ]
        unreadable = [{"path": str(p), "why": why} for p, why in library.unreadable]
        print(json.dumps({"models": rows, "unreadable": unreadable}, indent=2))
        return
    cells = [(role, f.name, gib(f.path.stat().st_size), str(f.folder)) for role, f in listed]
    table("", ("role", "file", "size", "folder"), cells)
    for path, why in library.unreadable:
        show_warning(f"{path}: {why}")


@runs_app.command("list")
def runs_list(store: StoreFolder = None, as_json: Json = False) -> None:
    """List the runs, newest first."""
    records, damaged = _store(store).runs.list()
    if as_json:
        print(json.dumps([asdict(r) for r in records], indent=2, ensure_ascii=False))
        return
    table(
        "",
        ("run", "when", "status", "stages", "output", "prompt"),
        [_run_row(record) for record in records],
    )
    for run in damaged:
        show_warning(f"{run.path}: {run.reason}")


@runs_app.command("show")
def runs_show(run: str, store: StoreFolder = None, as_json: Json = False) -> None:
    """Show one run (an id, its beginning, or `last`)."""
    record = _store(store).runs.show(run)
    if as_json:
        print(json.dumps(asdict(record), indent=2, ensure_ascii=False))
        return
    print(f"run     {record.id}\nmade    {record.created}\nstatus  {record.status}")
    print(f"output  {record.output or '-'}\ncommand {record.command}")
    rows = [
        (
            stage.stage,
            "reused" if stage.reused else f"{stage.seconds:.1f} s",
            gib(stage.peak_memory_bytes or 0),
            stage.key,
        )
        for stage in record.stages
    ]
    table("", ("stage", "time", "peak memory", "artefact"), rows)
    for warning in record.warnings:
        show_warning(warning)


@runs_app.command("verify")
def runs_verify(store: StoreFolder = None, as_json: Json = False) -> None:
    """Check every artefact against its hash; damaged ones are moved aside."""
    sound, damaged = _store(store).verify()
    if as_json:
        rows = [{"key": d.key, "reason": d.reason} for d in damaged]
        print(json.dumps({"sound": sound, "damaged": rows}, indent=2))
    else:
        print(f"{sound} artefacts are sound, {len(damaged)} were damaged and moved aside")
        for damage in damaged:
            show_warning(f"{damage.key}: {damage.reason}")
    if damaged:
        raise typer.Exit(8)


@runs_app.command("prune")
def runs_prune(
    keep_days: Annotated[float | None, typer.Option(help="Keep runs younger than this.")] = None,
    keep_last: Annotated[int | None, typer.Option(help="Keep this many of the newest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    store: StoreFolder = None,
    as_json: Json = False,
) -> None:
    """Remove old runs and every artefact that no remaining run refers to."""
    done = _store(store).prune(keep_days=keep_days, keep_last=keep_last, dry_run=dry_run)
    if as_json:
        body = {"runs": done.runs, "artefacts": done.artefacts, "freed_bytes": done.freed_bytes}
        print(json.dumps(body, indent=2))
        return
    verb = "would remove" if dry_run else "removed"
    print(f"{verb} {len(done.runs)} runs, {len(done.artefacts)} artefacts, {gib(done.freed_bytes)}")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"latent-ladder {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: runs the command, turns errors into words and exit codes."""
    try:
        app()
    except LadderError as error:
        _report(error)
        sys.exit(error.exit_code)


def _report(error: LadderError) -> None:
    if "--json" in sys.argv:
        body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
        if isinstance(error, RequestError):
            body["problems"] = [{"message": m, "hint": h} for m, h in error.problems]
        print(json.dumps({"error": body}, ensure_ascii=False))
    show_error(error)


def _asked(flags: dict[str, Any]) -> Asked:
    """Gather the flags that `make` and `plan` share."""
    named = {
        "seed": _number(flags["seed"]),
        "frames": _number(flags["frames"]),
        "duration_s": _number(flags["duration"]),
        "fps": flags["fps"],
        "audio": flags["audio"],
        "negative_prompt": flags["negative"],
    }
    return Asked(
        prompt=flags["prompt"],
        preset=flags["preset"],
        source=flags["source"],
        fields={name: value for name, value in named.items() if value is not None},
        size=flags["size"],
        sets=tuple(flags["sets"] or ()),
        folders=tuple(flags["folders"] or ()),
        checkpoint=flags["checkpoint"],
        store=flags["store"],
    )


def _number(text: str | None) -> int | float | str | None:
    """A number where the text is one; else the text, for the request to refuse with a hint."""
    if text is None:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _prepare(asked: Asked) -> Prepared:
    """Request, models and plan; refuses before anything heavy loads."""
    from latent_ladder.checkpoints.library import model_folders, scan
    from latent_ladder.pipeline import prepare

    library = scan(model_folders(asked.folders))
    request = _request(asked, library)
    return prepare(request, library, _store(asked.store))


def _request(asked: Asked, library: Library) -> Request:
    from latent_ladder.pipeline import default_preset, read_request
    from latent_ladder.presets import read_preset
    from latent_ladder.request import Request, override
    from latent_ladder.request_set import apply_sets

    if asked.source is not None and asked.preset is not None:
        raise RequestError("--from and --preset exclude each other", "use one of them")
    if asked.source is not None:
        fields = read_request(asked.source).to_dict()
    else:
        fields = read_preset(asked.preset or default_preset(library, asked.checkpoint)).fields
    given = dict(asked.fields)
    if asked.prompt is not None:
        given["prompt"] = asked.prompt
    if asked.size is not None:
        given |= _size(asked.size)
    if asked.checkpoint is not None:
        given["models"] = {**fields.get("models", {}), "checkpoint": asked.checkpoint}
    if "prompt" not in {**fields, **given}:
        raise RequestError("there is no prompt", 'say what to show: ladder make "a red ball rolls"')
    fields = apply_sets(override(fields, given), asked.sets)
    return Request.from_dict(fields).resolved()


def _size(text: str) -> dict[str, Any]:
    width, cross, height = text.lower().partition("x")
    if not cross:
        raise RequestError(f"size={text} is not WIDTHxHEIGHT", "use --size 1280x720")
    return {"width": _number(width), "height": _number(height)}


def _store(folder: Path | None) -> Any:
    from latent_ladder.stages.store import Store, default_root

    return Store(folder or default_root())


def _free_name(prompt: str) -> Path:
    """A file name from the prompt that does not exist yet."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in prompt.lower()).split()
    stem = "-".join(words[:6]) or "clip"
    names = (Path(f"{stem}{'' if n == 1 else f'-{n}'}.mp4") for n in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _resume_command(seed: int) -> str:
    """This command line with the seed it drew, so that it names the same clip again."""
    words, skip = ["ladder"], False
    for word in sys.argv[1:]:
        if skip or word.startswith("--seed="):
            skip = False
        elif word == "--seed":
            skip = True
        else:
            words.append(word)
    return shlex.join([*words, "--seed", str(seed)])


@contextmanager
def _interrupts(cancel: Cancel) -> Iterator[None]:
    """The first Ctrl-C lets the step finish, the second stops at once."""

    def stop(_: int, __: FrameType | None) -> None:
        if cancel.requested:
            raise KeyboardInterrupt
        cancel.request()
        show_note("stopping after this step; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_result(result: Result, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=2))
    else:
        print(result.output)


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
            "stored" if stage["stored"] else "to make",
        )
        for stage in report["rows"]
    ]
    columns = ("stage", "canvas", "latents", "tokens", "sigmas", "work", "state")
    table("", columns, rows)
    table("", ("role", "file"), [(m["role"], m["file"]) for m in report["models"]])
    for warning in report["warnings"]:
        show_warning(warning["message"])


def _run_row(record: RunRecord) -> tuple[str, ...]:
    prompt = str(record.request.get("prompt", ""))
    made = sum(not stage.reused for stage in record.stages)
    return (
        record.id,
        record.created[:19].replace("T", " "),
        record.status,
        f"{made} made, {len(record.stages) - made} reused",
        record.output or "-",
        prompt if len(prompt) <= 48 else prompt[:47] + "…",
    )


if __name__ == "__main__":
    main()
