"""``ladder config``: path of the config file and the values in effect, with their sources."""

from __future__ import annotations

import typer

from latent_ladder.cli.command_table import GroupedCommand
from latent_ladder.cli.commands.options import Json
from latent_ladder.cli.console import print_json, print_lines, print_table


def register(app: typer.Typer) -> None:
    """Add ``config``."""
    app.command("config", cls=GroupedCommand)(config)


def config(as_json: Json = False) -> None:
    """Show the config file and the values in effect.

    A flag comes before an environment variable, the variable before the
    file, the file before the default.
    """
    from latent_ladder.storage.user_config import KEYS, config_file, read_setting

    path = config_file()
    settings = [read_setting(key.name) for key in KEYS]
    if as_json:
        body = {
            "file": str(path),
            "exists": path.is_file(),
            "settings": {s.key.name: {"value": s.value, "source": s.source} for s in settings},
        }
        print_json(body)
        return
    print_lines(f"file: {path}" + ("" if path.is_file() else " (does not exist)"))
    rows = [
        (
            s.key.name,
            "-" if s.value is None else s.value if isinstance(s.value, str) else ", ".join(s.value),
            "config.toml" if s.source == str(path) else s.source,
            s.key.meaning,
        )
        for s in settings
    ]
    print_table("", ("key", "value", "from", "meaning"), rows, whole=("value",))
    print_lines("lines for the file:")
    for key in KEYS:
        print_lines(f"  {key.example}")
