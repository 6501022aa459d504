"""Text of ``--help``: usage, description, and options or commands in titled panels.

The panels are those of ``rich_help_panel``. typer's own formatter draws the same, but imports
rich's Markdown parser and tracebacks, which takes longer than the rest of ``ladder --help``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.panel import Panel

Row = tuple[str, str]
"""An option or a command, and its help text."""

ARGUMENTS, OPTIONS, COMMANDS = "Arguments", "Options", "Commands"
NAME_STYLE, TITLE_STYLE, BORDER_STYLE, EXAMPLE_STYLE = "bold cyan", "bold", "dim", "green"
_SHORT_OPTION = "-x, "


def print_help(command: Any, context: Any) -> None:
    """Print the help of a command or group on stdout, in colours on a terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    console.print(Text(context.get_usage(), TITLE_STYLE))
    for paragraph in (command.help or "").split("\n\n"):
        text = " ".join(paragraph.split())
        console.print()
        console.print(Text(text, EXAMPLE_STYLE if text.startswith("ladder ") else ""))
    console.print()
    names = getattr(command, "commands", None) or ("",)
    command_width = max(map(len, names))
    for title, rows in _panels(command, context).items():
        console.print(_draw_panel(title, rows, command_width))


def _panels(command: Any, context: Any) -> Mapping[str, list[Row]]:
    """Panel titles in the order of the parameters, each with its rows."""
    panels: dict[str, list[Row]] = {}
    for title, row in (*_parameter_rows(command, context), *_command_rows(command)):
        panels.setdefault(title, []).append(row)
    return panels


def _parameter_rows(command: Any, context: Any) -> Iterator[tuple[str, Row]]:
    for param in command.get_params(context):
        record = param.get_help_record(context)
        if record is None:  # a hidden parameter
            continue
        name, text = record
        is_argument = param.param_type_name == "argument"
        if is_argument:
            name = param.metavar or param.name.upper()
        elif name.startswith("--"):
            name = " " * len(_SHORT_OPTION) + name
        title = getattr(param, "rich_help_panel", None) or (ARGUMENTS if is_argument else OPTIONS)
        yield title, (name, text)


def _command_rows(group: Any) -> Iterator[tuple[str, Row]]:
    for name, command in getattr(group, "commands", {}).items():
        summary, _, _ = (command.help or "").partition("\n\n")
        title = getattr(command, "rich_help_panel", None) or COMMANDS
        yield title, (name, " ".join(summary.split()))


def _draw_panel(title: str, rows: Iterable[Row], min_width: int) -> Panel:
    """A panel with two columns, the first one at least ``min_width`` characters wide."""
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, style=NAME_STYLE, min_width=min_width)
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return Panel(
        table,
        title=Text(title, TITLE_STYLE),
        title_align="left",
        border_style=BORDER_STYLE,
    )
