"""``ladder presets``: named starting points of a request."""

from __future__ import annotations

import json

import typer

from latent_ladder.cli.commands.flags import Json
from latent_ladder.cli.console import table


def register(app: typer.Typer) -> None:
    """Add ``presets list`` and ``presets show``."""
    presets = typer.Typer(help="Named starting points of a request.", no_args_is_help=True)
    presets.command("list")(presets_list)
    presets.command("show")(presets_show)
    app.add_typer(presets, name="presets")


def presets_list(as_json: Json = False) -> None:
    """List the presets."""
    from latent_ladder.request.presets import preset_names, read_preset

    presets = [read_preset(name) for name in preset_names()]
    if as_json:
        print(json.dumps([{"name": p.name, "summary": p.summary} for p in presets], indent=2))
        return
    table("", ("preset", "what it is for"), [(p.name, p.summary) for p in presets])


def presets_show(name: str, as_json: Json = False) -> None:
    """Show one preset in full: it is a request without a prompt."""
    import tomli_w

    from latent_ladder.request.presets import read_preset

    preset = read_preset(name)
    if as_json:
        print(json.dumps(preset._asdict(), indent=2, ensure_ascii=False))
        return
    print(f"# {preset.summary}\n# source: {preset.source}")
    print(tomli_w.dumps(preset.fields).rstrip())
