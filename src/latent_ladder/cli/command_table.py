"""Table of all commands of ``ladder``; a command's module is imported when the command runs.

``ladder --help`` and shell completion need names and one sentence per command. Importing the
modules and building the parameters of commands that do not run would double their time.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from latent_ladder.cli.help_format import print_help


class CommandRow(NamedTuple):
    """One command: ``module`` of :mod:`latent_ladder.cli.commands` has its function.

    ``panel`` groups the commands in ``ladder --help``; ``summary`` is one sentence.
    """

    name: str
    module: str
    panel: str
    summary: str


_CLIPS = "Make clips"
_COMFYUI = "ComfyUI"
_MACHINE = "Models and machine"
_RECORDS = "Presets, runs, measurements"

COMMANDS: tuple[CommandRow, ...] = (
    CommandRow("make", "make", _CLIPS, "Make a clip with sound from a prompt."),
    CommandRow("plan", "make", _CLIPS, "Show what `make` would do, without running anything."),
    CommandRow("draft", "draft", _CLIPS, "Make several cheap drafts and a page to compare them."),
    CommandRow("refine", "draft", _CLIPS, "Turn chosen drafts into finished clips."),
    CommandRow("sweep", "sweep", _CLIPS, "Try several settings of a clip and write a report."),
    CommandRow("upscale", "upscale", _CLIPS, "Enlarge a video or an image with the model."),
    CommandRow("sound", "upscale", _CLIPS, "Make a sound file from a prompt, without a picture."),
    CommandRow("show", "make", _CLIPS, "Print the request that is stored in a clip."),
    CommandRow("studio", "studio", _CLIPS, "Open the web page on which you make clips."),
    CommandRow("workflow", "workflow", _COMFYUI, "Check, run and convert ComfyUI workflows."),
    CommandRow("serve", "serve", _COMFYUI, "Run an HTTP server for programs that use ComfyUI."),
    CommandRow("models", "models", _MACHINE, "List model files and download them."),
    CommandRow("doctor", "doctor", _MACHINE, "Check model files, presets and this machine."),
    CommandRow("advise", "advise", _MACHINE, "Recommend a preset for a clip on this machine."),
    CommandRow("bench", "bench", _MACHINE, "Measure this machine, so `plan` can estimate times."),
    CommandRow("presets", "presets", _RECORDS, "List, show and save presets."),
    CommandRow("config", "config", _RECORDS, "Show the config file and the values in effect."),
    CommandRow("runs", "runs", _RECORDS, "List, show, check and delete stored runs."),
    CommandRow("measure", "measure", _RECORDS, "Measure a clip, or compare a clip with its draft."),
)  # fmt: skip


class GroupedCommand(TyperCommand):
    """Command whose options are grouped in panels; ``--help`` is in the last one."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the command with ``--help`` at the end."""
        return hide_flag_types(super().get_params(ctx))

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        """The option ``--help``, in the panel of the command's last option."""
        option = super().get_help_option(ctx)
        options = [param for param in self.params if isinstance(param, TyperOption)]
        if option is not None and options:
            option.rich_help_panel = options[-1].rich_help_panel
        return option

    def format_help(self, ctx: Any, _: Any) -> None:
        """Print the help text."""
        print_help(self, ctx)


class CommandGroup(TyperGroup):
    """Group of commands, as ``ladder models``."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the group with ``--help`` at the end."""
        return hide_flag_types(super().get_params(ctx))

    def format_help(self, ctx: Any, _: Any) -> None:
        """Print the help text."""
        print_help(self, ctx)


class LazyCommandGroup(CommandGroup):
    """The command ``ladder``: lists :data:`COMMANDS` and imports only the one that runs."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for row in COMMANDS:
            self.add_command(TyperCommand(row.name, help=row.summary, rich_help_panel=row.panel))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The command that ``args`` name, imported. Raises a usage error for an unknown name."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command if name is None else load_command(name), rest


def hide_flag_types(params: list[Any]) -> list[Any]:
    """``params`` with an empty type column in the help for flags without a value."""
    for param in params:
        if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
            param.metavar = ""
    return params


def load_command(name: str) -> Any:
    """The command ``name`` (or group, for ``models`` and the like) with all its parameters."""
    module = next(row.module for row in COMMANDS if row.name == name)
    app = typer.Typer(rich_markup_mode="rich")
    import_module(f"latent_ladder.cli.commands.{module}").register(app)
    app.registered_commands = [
        command
        for command in app.registered_commands
        if name == (command.name or getattr(command.callback, "__name__", None))
    ]
    return typer.main.get_group(app).commands[name]
