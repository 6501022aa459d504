"""The command ``ladder``: flags in, a path or JSON on stdout, everything else on stderr.

A thin face: subcommands live in ``cli.commands``, decisions are made by the modules
they call. Nothing heavy is imported at module level, so that ``ladder --help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.models import CommandInfo

from latent_ladder._version import __version__
from latent_ladder.cli.console import show_error
from latent_ladder.errors import LadderError, RequestError

MODULES = {
    "make": ("make", "plan", "show"),
    "draft": ("draft", "refine"),
    "sweep": ("sweep",),
    "upscale": ("upscale", "sound"),
    "workflow": ("workflow",),
    "advise": ("advise",),
    "measure": ("measure",),
    "runs": ("runs",),
    "presets": ("presets",),
    "models": ("models",),
    "serve": ("serve",),
    "doctor": ("doctor",),
    "bench": ("bench",),
}
"""Module of :mod:`latent_ladder.cli.commands` -> its commands, in the order --help lists them."""


def application(only: str | None = None) -> typer.Typer:
    """The command ``ladder`` with all that follow it, or with ``only`` that one.

    Building the parameters of a command that is not run takes a sixth of the start-up.
    """
    app = typer.Typer(
        name="ladder",
        help="Multi-stage video generation with LTX-2.3: low in latent space, upsampled, refined.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_options)
    for module, commands in MODULES.items():
        if only is None or only in commands:
            import_module(f"latent_ladder.cli.commands.{module}").register(app)
    if only is not None:
        app.registered_commands = [c for c in app.registered_commands if _name(c) == only]
    return app


def __getattr__(name: str) -> Any:
    """``app``: the command with everything, built when it is asked for."""
    if name == "app":
        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _name(command: CommandInfo) -> str | None:
    return command.name or getattr(command.callback, "__name__", None)


def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        print(f"latent-ladder {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: runs the command, turns errors into words and exit codes."""
    # pydantic looks through every installed package for plugins, a tenth of the start-up.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    first = sys.argv[1] if len(sys.argv) > 1 else None
    known = any(first in commands for commands in MODULES.values())
    try:
        application(first if known else None)()
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


if __name__ == "__main__":
    main()
