"""``ladder presets``: named settings to start a request from."""

from __future__ import annotations

from typing import Annotated

import typer

from latent_ladder.cli import completion
from latent_ladder.cli.command_table import CommandGroup, GroupedCommand
from latent_ladder.cli.commands.options import Json
from latent_ladder.cli.console import print_json, print_lines, print_table, print_toml

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", autocompletion=completion.complete_preset, help="Name of the preset."
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``presets list`` and ``presets show``."""
    presets = typer.Typer(help="List and show presets.", no_args_is_help=True, cls=CommandGroup)
    presets.command("list", cls=GroupedCommand)(list_presets)
    presets.command("show", cls=GroupedCommand)(show_preset)
    app.add_typer(presets, name="presets")


def list_presets(as_json: Json = False) -> None:
    """List the presets and what each is for."""
    from latent_ladder.request.presets import preset_names, read_preset

    presets = [read_preset(name) for name in preset_names()]
    if as_json:
        print_json([{"name": p.name, "summary": p.summary} for p in presets])
        return
    print_table("", ("preset", "use"), [(p.name, p.summary) for p in presets])


def show_preset(name: Name, as_json: Json = False) -> None:
    """Print one preset: a request without a prompt, as TOML."""
    import tomli_w

    from latent_ladder.request.presets import read_preset

    preset = read_preset(name)
    if as_json:
        print_json(preset._asdict())
        return
    print_lines(f"# {preset.summary}\n# source: {preset.source}")
    print_toml(tomli_w.dumps(preset.fields))
