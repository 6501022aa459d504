"""``ladder presets``: named settings to start a request from, built-in ones and your own."""

from __future__ import annotations

from typing import Annotated

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import CommandGroup, GroupedCommand
from latent_ladder.cli.commands.flag_groups import expand_flags
from latent_ladder.cli.commands.flags import RequestFlags
from latent_ladder.cli.commands.options import (
    Duration,
    Folders,
    Fps,
    Frames,
    Json,
    Negative,
    PresetName,
    Sets,
    Size,
    SourceRequest,
    other_option,
)
from latent_ladder.cli.console import (
    print_json,
    print_lines,
    print_table,
    print_toml,
    show_note,
    show_warning,
)

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=completion.complete_preset,
        help="Name of the preset, or the path of a .toml file.",
    ),
]
NewName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="New name: letters, digits, '-', '_' and '.'."),
]
OwnName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        autocompletion=completion.complete_own_preset,
        help="Name of a preset of your own.",
    ),
]
Summary = Annotated[
    str, other_option("--summary", metavar="TEXT", help="What it is for, in one sentence.")
]
ReplacePreset = Annotated[bool, other_option("--overwrite", help="Replace a preset of this name.")]

MOST_USED_SAVE = ("source", "preset", "size", "duration", "frames", "fps", "negative", "sets")
"""Options that ``presets save`` lists first in its help."""


def register(app: typer.Typer) -> None:
    """Add ``presets list``, ``show``, ``save`` and ``remove``."""
    presets = typer.Typer(
        help="List, show and save presets.", no_args_is_help=True, cls=CommandGroup
    )
    presets.command("list", cls=GroupedCommand)(list_presets)
    presets.command("show", cls=GroupedCommand)(show_preset)
    presets.command("save", cls=GroupedCommand)(expand_flags(save, MOST_USED_SAVE))
    presets.command("remove", cls=GroupedCommand)(remove)
    app.add_typer(presets, name="presets")


def list_presets(as_json: Json = False) -> None:
    """List the presets and what each is for; your own come last.

    Your own are files in presets/ of the config folder.
    """
    from latent_ladder.request.presets import (
        own_preset_names,
        preset_names,
        read_preset,
        shadowed_presets,
    )

    presets = [read_preset(name) for name in (*preset_names(), *own_preset_names())]
    if as_json:
        rows = [
            {"name": p.name, "summary": p.summary, "file": None if p.file is None else str(p.file)}
            for p in presets
        ]
        print_json(rows)
    else:
        cells = [(p.name, "built-in" if p.file is None else "yours", p.summary) for p in presets]
        print_table("", ("preset", "from", "use"), cells)
    for path in shadowed_presets():
        show_warning(f"{path} is not used: {path.stem} is a built-in preset; rename the file")


def show_preset(name: Name, as_json: Json = False) -> None:
    """Print one preset: a request without a prompt, as TOML.

    To share one: ladder presets show NAME > NAME.toml
    """
    import tomli_w

    from latent_ladder.request.presets import read_preset

    preset = read_preset(name)
    if as_json:
        body = preset._asdict() | {"file": None if preset.file is None else str(preset.file)}
        world = None if preset.world is None else preset.world._asdict()
        body["world"] = None if world is None else {**world, "seconds": str(world["seconds"])}
        print_json(body)
        return
    fields = {key: value for key, value in preset.fields.items() if key != "preset"}
    about = {"summary": preset.summary, "source": preset.source, "based_on": preset.based_on}
    print_toml(tomli_w.dumps({key: text for key, text in about.items() if text} | fields))


def save(
    name: NewName,
    source: SourceRequest = None,
    preset: PresetName = None,
    size: Size = None,
    frames: Frames = None,
    duration: Duration = None,
    fps: Fps = None,
    negative: Negative = None,
    sets: Sets = None,
    summary: Summary = "",
    folders: Folders = None,
    overwrite: ReplacePreset = False,
) -> None:
    """Save settings as a preset of your own.

    ladder presets save night --from clip.mp4

    They come from a clip, a request, a preset or a preset's file that
    somebody shared, with changes. Prompt, seed and input files are left out.
    """
    from latent_ladder.checkpoints.selection import model_folders, scan
    from latent_ladder.request.own_presets import check_name, save_preset
    from latent_ladder.request.presets import find_preset

    check_name(name)  # fails early, before model files are searched
    flags = RequestFlags(
        prompt="a clip", preset=preset, source=source, size=size, frames=frames,
        duration=duration, fps=fps, negative=negative, sets=sets, folders=folders,
    )  # fmt: skip
    request = flags.build_request(scan(model_folders(folders or ())))
    known = find_preset(request.preset)
    path = save_preset(
        name,
        request,
        summary=summary,
        based_on="" if known is None else known.based_on,
        overwrite=overwrite,
    )
    show_note(f"use it with --preset {name}; share the file, which works as --preset FILE too")
    print_lines(path)


def remove(name: OwnName) -> None:
    """Delete a preset of your own."""
    from latent_ladder.request.own_presets import remove_preset

    print_lines(remove_preset(name))
