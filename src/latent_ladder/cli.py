"""The command ``ladder``: flags in, a path or JSON on stdout, everything else on stderr.

A thin face: subcommands live in :mod:`latent_ladder.commands`, decisions are made by the modules
they call. Nothing heavy is imported at module level, so that ``ladder --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from latent_ladder import __version__
from latent_ladder.commands import (
    advise,
    bench,
    doctor,
    draft,
    make,
    measure,
    models,
    presets,
    runs,
    serve,
    upscale,
    workflow,
)
from latent_ladder.console import show_error
from latent_ladder.errors import LadderError, RequestError

app = typer.Typer(
    name="ladder",
    help="Multi-stage video generation with LTX-2.3: low in latent space, upsampled, refined.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# The order in which --help lists them.
for command in (
    make, draft, upscale, workflow, advise, measure, runs, presets, models, serve, doctor, bench,
):  # fmt: skip
    command.register(app)


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


if __name__ == "__main__":
    main()
