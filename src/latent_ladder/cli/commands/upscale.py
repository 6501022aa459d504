"""``ladder upscale`` and ``sound``: enlarge a video through latents, or make sound alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flag_rules import SOUND_RULES, UPSCALE_RULES
from latent_ladder.cli.commands.flag_values import parse_number, parse_windows
from latent_ladder.cli.commands.flags import (
    MemoryFlags,
    open_store,
    request_of_fields,
)
from latent_ladder.cli.commands.options import (
    Folders,
    Json,
    Measure,
    Notify,
    Open,
    Overwrite,
    PresetName,
    Quiet,
    Seed,
    Sets,
    StoreFolder,
    Windows,
    output_option,
    stage_option,
)
from latent_ladder.cli.commands.run_progress import print_result, resume_command, track_run
from latent_ladder.cli.console import show_loading
from latent_ladder.cli.notify import notify_at_end
from latent_ladder.cli.open_file import open_file
from latent_ladder.errors import RequestError
from latent_ladder.jobs.file_names import choose_file_name
from latent_ladder.jobs.upscaling import DEFAULT_PROMPT, LOW_DENOISE, choose_stages, upscale_fields

if TYPE_CHECKING:
    from latent_ladder.pipeline.run import Prepared

SOUND_SIDE = 64
"""Width and height of the picture that the model makes together with sound, in pixels."""

MOST_USED_UPSCALE = (
    "output", "by", "prompt", "denoise", "windows", "preset", "seed", "overwrite", "folders",
    "device",
)  # fmt: skip
MOST_USED_SOUND = ("output", "duration", "seed", "preset", "overwrite", "folders", "device")
"""Options that ``upscale`` and ``sound`` list first in their help."""

Clip = Annotated[
    Path, typer.Argument(metavar="CLIP", help="Video or image to enlarge, of any source.")
]
By = Annotated[
    float,
    stage_option("--by", metavar="FACTOR", help="Factor for width and height: 2 or 1.5."),
]
VideoPrompt = Annotated[
    str | None,
    stage_option(
        "--prompt",
        metavar="TEXT",
        help="What the video shows, so that the refine stage adds the right detail. "
        "Default: a general text.",
    ),
]
LowDenoise = Annotated[
    float,
    stage_option(
        "--denoise",
        metavar="AMOUNT",
        help="How much the refine stage changes, from 0 (nothing) to 1 (everything).",
    ),
]
EnlargedFile = Annotated[
    Path | None,
    output_option(
        "--output",
        "-o",
        metavar="FILE",
        help="File to write: .mp4 .mov .mkv .webm .gif .webp, or numbered pictures such as "
        "folder/%05d.png. Default: CLIP-x2.mp4 next to the clip, CLIP-x2.png for an image.",
    ),
]
SoundFile = Annotated[
    Path | None,
    output_option(
        "--output",
        "-o",
        metavar="FILE",
        help="The .wav file to write. Default: a new name made from the prompt.",
    ),
]
SoundPrompt = Annotated[str, typer.Argument(metavar="PROMPT", help="What is heard, in words.")]
Duration = Annotated[
    float, stage_option("--duration", metavar="SECONDS", help="Length in seconds.")
]


def register(app: typer.Typer) -> None:
    """Add ``upscale`` and ``sound``."""
    app.command(cls=GroupedCommand)(expand_flags(upscale, MOST_USED_UPSCALE, UPSCALE_RULES))
    app.command(cls=GroupedCommand)(expand_flags(sound, MOST_USED_SOUND, SOUND_RULES))


@dataclass(frozen=True)
class StageChoice:
    """Options of ``upscale`` and ``sound`` for the preset and the fields of its stages."""

    preset: PresetName = None
    seed: Seed = None
    sets: Sets = None
    folders: Folders = None
    store: StoreFolder = None


@dataclass(frozen=True)
class OutputChoice:
    """Options of ``upscale`` and ``sound`` for the result."""

    overwrite: Overwrite = False
    quiet: Quiet = False
    as_json: Json = False
    open_result: Open = False
    notify: Notify = False

    def announce(self) -> None:
        """Say that the command has begun."""
        show_loading("reading the headers of the model files", self.quiet or self.as_json)


def upscale(
    clip: Clip,
    stage_flags: StageChoice,
    memory: MemoryFlags,
    output_flags: OutputChoice,
    by: By = 2.0,
    prompt: VideoPrompt = None,
    denoise: LowDenoise = LOW_DENOISE,
    windows: Windows = None,
    output: EnlargedFile = None,
    measure: Measure = True,
) -> None:
    """Enlarge a video or an image with the model.

    The picture is encoded, upsampled in latent space and refined a little;
    the sound of a video is kept.
    """
    began = time.monotonic()
    output_flags.announce()
    from latent_ladder.media.video_input import check_video

    video = check_video(clip)
    sets = [f"refine.denoise={denoise}", *(stage_flags.sets or ())]
    changes = upscale_fields(clip, video, by) | {"prompt": prompt or DEFAULT_PROMPT}
    changes |= {} if windows is None else {"windows": parse_windows(windows)}
    prepared = _prepare(stage_flags, memory, changes, sets)
    path = output or _enlarged_name(clip, by)
    _run(prepared, path, output_flags, began, measure)


def sound(
    prompt: SoundPrompt,
    stage_flags: StageChoice,
    memory: MemoryFlags,
    output_flags: OutputChoice,
    duration: Duration = 5.0,
    output: SoundFile = None,
) -> None:
    """Make a sound file from a prompt, without a picture.

    The model also makes a tiny picture, which is not written.
    """
    began = time.monotonic()
    output_flags.announce()
    path = output or choose_file_name(prompt, ".wav")
    if path.suffix.lower() != ".wav":
        raise RequestError(
            f"output {path.name} ends in {path.suffix or 'nothing'!r}, expected .wav",
            f"use -o {path.stem}.wav",
        )
    side = {"width": SOUND_SIDE, "height": SOUND_SIDE}
    changes = {"prompt": prompt, "duration_s": duration, "audio": "keep", **side}
    prepared = _prepare(stage_flags, memory, changes, stage_flags.sets or (), only_base=True)
    _run(prepared, path, output_flags, began)


def _enlarged_name(clip: Path, by: float) -> Path:
    """The default output: beside the input; of a sequence a sequence in a folder beside its."""
    from latent_ladder.media.video_input import is_image

    if "%" in clip.name:
        return clip.parent.with_name(f"{clip.parent.name}-x{by:g}") / clip.name
    suffix = ".png" if is_image(clip) else ".mp4"
    return clip.with_name(f"{clip.stem}-x{by:g}{suffix}")


def _prepare(
    flags: StageChoice,
    memory: MemoryFlags,
    changes: Mapping[str, Any],
    sets: Sequence[str],
    *,
    only_base: bool = False,
) -> Prepared:
    """The plan of a preset with some fields changed and with other stages."""
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.pipeline import run as pipeline
    from latent_ladder.pipeline.preset_choice import preset_fields
    from latent_ladder.request.model import override

    library = scan(model_folders(flags.folders or ()))
    start = preset_fields(flags.preset, library)
    fields = dict(changes) | ({} if flags.seed is None else {"seed": parse_number(flags.seed)})
    factor = fields.pop("upsample_by", 2.0)
    fields["stages"] = choose_stages(start["stages"], factor, only_base)
    request = request_of_fields(override(start, fields), sets)
    options = memory.to_options()
    return pipeline.prepare(request, library, open_store(flags.store), options, memory.device)


def _run(
    prepared: Prepared, path: Path, flags: OutputChoice, began: float, measure: bool = True
) -> None:
    """Make the clip at ``path``, for a command that began at ``began`` (``time.monotonic``)."""
    from latent_ladder.pipeline.run import execute

    run = track_run(
        prepared,
        resume_command(prepared.request.seed),
        overwrite=flags.overwrite,
        quiet=flags.quiet or flags.as_json,
    )
    with notify_at_end(flags.notify, path.name), run as options:
        result = execute(prepared, path, replace(options, measure=measure))
    seconds = time.monotonic() - began
    print_result(result, seconds, as_json=flags.as_json, quiet=flags.quiet)
    if flags.open_result:
        open_file(path)
