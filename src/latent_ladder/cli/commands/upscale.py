"""``ladder upscale`` and ``ladder sound``: a video enlarged through latents, and sound alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.commands.flags import (
    Device,
    Folders,
    Json,
    Measure,
    Output,
    Overwrite,
    Quiet,
    StoreFolder,
    number,
    open_store,
    windows_field,
)
from latent_ladder.cli.commands.make import free_name
from latent_ladder.cli.commands.run_progress import print_result, resume_command, watched
from latent_ladder.errors import RequestError

if TYPE_CHECKING:
    from latent_ladder.media.video_input import Footage
    from latent_ladder.pipeline.run import Prepared

UNSAID = "a video, sharp and rich in detail"
"""The prompt where nobody describes the video."""
LOW_DENOISE = 0.3
FACTORS = (1.5, 2.0)
SOUND_SIDE = 64

Clip = Annotated[Path, typer.Argument(help="Any video.")]
By = Annotated[float, typer.Option("--by", help="2 or 1.5, as the latent upsamplers go.")]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", help="What the video shows; helps the refine stage.")
]
LowDenoise = Annotated[
    float, typer.Option("--denoise", help="How much the refine stage makes anew, 0 to 1.")
]
WindowsOption = Annotated[
    str | None,
    typer.Option(
        "--windows",
        help="Windows of time: FRAMES or FRAMES:OVERLAP, off, auto (where longer than 20 s).",
    ),
]
Preset = Annotated[str | None, typer.Option("--preset", "-p", help="Whose refine stage is used.")]
Seed = Annotated[str | None, typer.Option("--seed", help="Whole number; -1 draws one.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any field (repeatable).")]
Words = Annotated[str, typer.Argument(metavar="PROMPT", help="What is heard.")]
Seconds = Annotated[float, typer.Option("--duration", help="Seconds.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(upscale)
    app.command()(sound)


def upscale(
    clip: Clip,
    by: By = 2.0,
    prompt: PromptOption = None,
    denoise: LowDenoise = LOW_DENOISE,
    windows: WindowsOption = None,
    preset: Preset = None,
    seed: Seed = None,
    sets: Sets = None,
    output: Output = None,
    folders: Folders = None,
    store: StoreFolder = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    measure: Measure = True,
    as_json: Json = False,
) -> None:
    """Enlarge a video: encoded, upsampled in latent space, refined a little; its sound is kept."""
    from latent_ladder.media.video_input import check_video

    found = check_video(clip)
    asked = [f"refine.denoise={denoise}", *(sets or ())]
    changes = upscale_fields(clip, found, by) | {"prompt": prompt or UNSAID}
    changes |= {} if windows is None else {"windows": windows_field(windows)}
    prepared = _prepare(preset, changes, asked, seed, folders, store, device)
    path = output or clip.with_name(f"{clip.stem}-x{by:g}.mp4")
    _carry_out(prepared, path, device, overwrite, quiet, as_json, measure)


def sound(
    prompt: Words,
    duration: Seconds = 5.0,
    preset: Preset = None,
    seed: Seed = None,
    sets: Sets = None,
    output: Output = None,
    folders: Folders = None,
    store: StoreFolder = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make sound alone, a .wav; the picture that the model needs beside it is 64x64 and dropped."""
    path = output or free_name(prompt, ".wav")
    if path.suffix.lower() != ".wav":
        raise RequestError(f"{path.name} is not a .wav, and sound alone is one", "use -o x.wav")
    side = {"width": SOUND_SIDE, "height": SOUND_SIDE}
    changes = {"prompt": prompt, "duration_s": duration, "audio": "keep", **side}
    prepared = _prepare(preset, changes, sets or (), seed, folders, store, device, only_base=True)
    _carry_out(prepared, path, device, overwrite, quiet, as_json)


def upscale_fields(clip: Path, found: Footage, by: float) -> dict[str, Any]:
    """The fields of a request that enlarges a video. Raises :class:`RequestError`."""
    from latent_ladder.latents import shapes

    if by not in FACTORS:
        raise RequestError(f"by={by:g} has no latent upsampler", "use --by 2 or --by 1.5")
    fps = found.fps if 1 <= found.fps <= shapes.MAX_FPS else Fraction(24)
    width, height = (2 * round(side * by / 2) for side in found.size)
    return {
        "width": width,
        "height": height,
        "frames": shapes.frames_for(Fraction(found.frames), Fraction(1)),
        "fps": shapes.format_fps(fps),
        "upsample_by": by,
        "video": {"file": str(clip), "mode": "v2v", "denoise": 0.0},
        **({"audio_in": str(clip)} if found.has_sound else {"audio": "none"}),
    }


def _prepare(
    preset: str | None,
    changes: Mapping[str, Any],
    sets: Sequence[str],
    seed: str | None,
    folders: list[Path] | None,
    store: Path | None,
    device: str,
    *,
    only_base: bool = False,
) -> Prepared:
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.pipeline import run as pipeline
    from latent_ladder.request.model import Request, override
    from latent_ladder.request.overrides import apply_sets
    from latent_ladder.request.presets import read_preset

    library = scan(model_folders(folders or ()))
    start = read_preset(preset or pipeline.default_preset(library)).fields
    given = dict(changes) | ({} if seed is None else {"seed": number(seed)})
    by = given.pop("upsample_by", 2.0)
    given["stages"] = _stages(start["stages"], by, only_base)
    table = apply_sets(override(start, given), tuple(sets))
    request = Request.from_dict(table).pick_seed()
    return pipeline.prepare(request, library, open_store(store), None, device)


def _stages(
    stages: Sequence[Mapping[str, Any]], by: float, only_base: bool
) -> list[Mapping[str, Any]]:
    """A preset's base stage alone, or with one upsampler and its last refine stage."""
    if only_base:
        return [stages[0]]
    refine = [stage for stage in stages if stage["kind"] == "refine"]
    if not refine:
        raise RequestError("the preset has no refine stage", "choose another --preset")
    return [stages[0], {"kind": "upsample", "factor": by}, refine[-1]]


def _carry_out(
    prepared: Prepared,
    path: Path,
    device: str,
    overwrite: bool,
    quiet: bool,
    as_json: bool,
    measure: bool = True,
) -> None:
    from latent_ladder.pipeline.run import execute

    command = resume_command(prepared.request.seed)
    watch = watched(prepared, device, command, overwrite=overwrite, quiet=quiet or as_json)
    with watch as options:
        result = execute(prepared, path, replace(options, measure=measure))
    print_result(result, as_json)
