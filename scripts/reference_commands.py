"""Pages of the command ``ladder``: one for each subcommand, from what typer knows of it.

Only what typer and click have had for years is read (``params``, ``opts``, ``help``, ``default``,
panels and the help record), because their classes move between releases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby
from typing import Any

from reference_text import code, table
from typer.main import get_command

from latent_ladder.cli.app import build_app

FOLDER = "reference/commands"


@cache
def root() -> Any:
    """The command ``ladder``."""
    return get_command(build_app())


@cache
def top_commands() -> dict[str, Any]:
    """The commands that follow ``ladder``, in the order of --help, each with its parameters."""
    group = root()
    context = group.make_context("ladder", [], resilient_parsing=True)
    return {name: group.resolve_command(context, [name])[1] for name in group.commands}


def commands() -> Iterator[tuple[str, Any]]:
    """Every command that can be typed: ``("workflow run", command)``."""
    for name, command in top_commands().items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {below}", one) for below, one in inner.items())


def pages() -> dict[str, str]:
    """Path below ``docs/`` -> page: an index, and a page for each word that follows ``ladder``."""
    out = {f"{FOLDER}/index.md": _index()}
    for name, command in top_commands().items():
        out[f"{FOLDER}/{name}.md"] = _page(name, command)
    return out


INDEX = """# Commands

`ladder COMMAND --help` prints the same as these pages. The result of a command, a path or with
`--json` a JSON document, goes to standard output; progress, warnings and errors go to standard
error. A flag marked *repeatable* may be given several times.
"""


def _index() -> str:
    parts = [INDEX]
    listed = root().commands
    for panel, names in groupby(listed, key=lambda name: _panel(listed[name])):
        parts += [f"## {panel}", ""] if panel else []
        parts.append(table(("command", "purpose"), [row for n in names for row in _rows(n)]))
    return "\n".join([*parts, "## Flags of `ladder` itself", "", _options(root())])


def _rows(name: str) -> Iterator[tuple[str, str]]:
    command = top_commands()[name]
    inner = getattr(command, "commands", None)
    if inner is None:
        yield f"[`ladder {name}`]({name}.md)", _summary(command)
        return
    for below, one in inner.items():
        full = f"{name} {below}"
        yield f"[`ladder {full}`]({name}.md{_anchor(full)})", _summary(one)


def _panel(one: Any) -> str:
    return str(getattr(one, "rich_help_panel", None) or "")


def _anchor(name: str) -> str:
    return f"#ladder-{name.replace(' ', '-')}" if " " in name else ""


def _page(name: str, command: Any) -> str:
    inner = getattr(command, "commands", None)
    if inner is None:
        return f"# ladder {name}\n\n{_body(name, command)}"
    parts = [f"# ladder {name}", "", _help(command), ""]
    for below, one in inner.items():
        parts += [f"## ladder {name} {below}", "", _body(f"{name} {below}", one)]
    return "\n".join(parts)


def _body(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    usage = " ".join(["ladder", name, "[OPTIONS]", *map(_argument, arguments)])
    first, _, rest = _help(command).partition("\n\n")
    parts = [first, "", "```", usage, "```", "", *([rest, ""] if rest else [])]
    if arguments:
        rows = [(code(_argument(p)), _meaning(p)) for p in arguments]
        parts.append(table(("argument", "meaning"), rows))
    return "\n".join([*parts, _options(command)])


def _options(command: Any) -> str:
    """A table of flags for each panel of --help."""
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    panels = dict.fromkeys(map(_panel, options))
    parts = [] if options else ["No flags but `--help`.\n"]
    for panel in panels:
        rows = [(_flag(command, p), _meaning(p)) for p in options if _panel(p) == panel]
        parts += [f"**{panel}**", ""] if panel and len(panels) > 1 else []
        parts.append(table(("flag", "meaning"), rows))
    return "\n".join(parts)


VALUES = {
    "str": "text",
    "text": "text",
    "path": "path",
    "int": "integer",
    "integer": "integer",
    "float": "number",
}
"""What typer and click call the type of a flag's value -> the word of these pages."""


def _flag(command: Any, option: Any) -> str:
    """``--output <path>``, ``-o``: the long form first, with what it takes."""
    names: list[str] = [*sorted(option.opts, key=len, reverse=True), *option.secondary_opts]
    first, *more = names
    value = "" if option.is_flag else f" {_value(command, option)}"
    return ", ".join(code(name) for name in (first + value, *more))


def _value(command: Any, option: Any) -> str:
    """The kind of value an option takes, from its line in --help."""
    if option.metavar:
        return str(option.metavar)
    context = command.make_context("ladder", [], resilient_parsing=True)
    written, _ = option.get_help_record(context)
    kind = written.replace("[", " ").split()[-1 if "range" not in written.lower() else -2]
    word = re.sub(r"[^a-z]", "", kind.lower())
    return f"<{VALUES.get(word, word)}>"


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    name = f"{name}..." if argument.nargs == -1 and not name.endswith("...") else name
    return str(name if argument.required else f"[{name}]")


def _meaning(parameter: Any) -> str:
    low, high = getattr(parameter, "min", None), getattr(parameter, "max", None)
    parts = [(parameter.help or "").strip()]
    if low is not None and high is not None:
        parts.append(f"From {low:g} to {high:g}.")
    elif low is not None or high is not None:
        parts.append(f"At least {low:g}." if high is None else f"At most {high:g}.")
    default = _default(parameter)
    if default and "default" not in parts[0].lower():
        parts.append(f"Default: {default}.")
    if parameter.envvar:
        parts.append(f"Also {code(parameter.envvar)} in the environment.")
    return " ".join(filter(None, parts))


def _default(parameter: Any) -> str:
    """The default as a user would type it; empty where nothing is the default."""
    value = parameter.default
    if callable(value) or value is None or value in ([], ()):
        return ""
    if parameter.secondary_opts:
        return code(parameter.opts[0] if value else parameter.secondary_opts[0])
    if value is False:
        return ""
    return code(f"{value:g}" if isinstance(value, float) else value)


def _help(command: Any) -> str:
    """The help text: paragraphs, and lines that call ``ladder`` as a block of code."""
    paragraphs = (command.help or "").strip().split("\n\n")
    return "\n\n".join(map(_paragraph, paragraphs))


def _paragraph(text: str) -> str:
    lines = [line.strip().strip("\b") for line in text.splitlines() if line.strip("\b \n")]
    if lines and all(line.startswith("ladder ") for line in lines):
        return "\n".join(["```", *lines, "```"])
    return " ".join(lines)


def _summary(command: Any) -> str:
    return _help(command).partition("\n\n")[0]
