"""``--help`` and usage errors: panels, width, colours, plain messages."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from latent_ladder.cli.command_table import COMMANDS, GroupedCommand, load_command
from latent_ladder.cli.commands.flag_groups import MOST_USED, PANELS

GROUPED = ("make", "draft", "refine", "upscale", "sweep")
"""Commands with ten options in a panel of their own on top."""

ANSI = "\x1b["


def run_ladder(*words: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m latent_ladder``."""
    names = ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-m", "latent_ladder", *words],
        env={**inherited, "COLUMNS": "80", "TERM": "xterm-256color", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def run_on_terminal(*words: str, **variables: str) -> str:
    """Output of ``ladder`` on a pseudo terminal."""
    import pty

    output = bytearray()

    saved = dict(os.environ)
    for name in ("NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS"):
        os.environ.pop(name, None)
    os.environ.update({"COLUMNS": "80", "TERM": "xterm-256color", **variables})
    try:
        command = [sys.executable, "-m", "latent_ladder", *words]
        pid, descriptor = pty.fork()
        if pid == 0:
            os.execv(command[0], command)
    finally:
        os.environ.clear()
        os.environ.update(saved)
    try:
        while True:
            try:
                data = os.read(descriptor, 65536)
            except OSError:  # the terminal is closed at the end of the process
                break
            if not data:
                break
            output.extend(data)
    finally:
        os.close(descriptor)
        os.waitpid(pid, 0)
    return output.decode()


def panels_of(text: str) -> dict[str, list[str]]:
    """Panel titles of a help text, each with the options in it."""
    panels: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if title := re.match(r"╭─ (.+?) ─", line):
            current = panels.setdefault(title[1], [])
        elif option := re.match(r"│ (?:-\w, |    )(--[\w-]+)", line):
            current.append(option[1])
    return panels


@pytest.mark.slow
@pytest.mark.parametrize("command", GROUPED)
def test_the_ten_most_used_options_are_in_the_first_panel(command: str) -> None:
    panels = panels_of(run_ladder(command, "--help").stdout)
    titles = [title for title in panels if title != "Arguments"]
    assert titles[0] == MOST_USED
    assert len(panels[MOST_USED]) == 10
    assert panels[MOST_USED][0] in ("--output", "--seeds", "--set")
    assert titles == [panel for panel in PANELS if panel in titles]
    assert len(titles) > 3
    assert panels[titles[-1]][-1] == "--help"


def test_every_option_is_in_one_panel() -> None:
    options = [option for names in panels_of(run_ladder("make", "--help").stdout).values()
               for option in names]  # fmt: skip
    declared = [p.opts[0] for p in load_command("make").params if p.param_type_name == "option"]
    assert sorted(options) == sorted([*declared, "--help"])


def all_commands() -> list[tuple[str, GroupedCommand]]:
    """Every command and subcommand, with its full name."""
    found = []
    for row in COMMANDS:
        command = load_command(row.name)
        inner = getattr(command, "commands", None) or {"": command}
        found += [(f"{row.name} {name}".strip(), one) for name, one in inner.items()]
    return found


@pytest.mark.parametrize(("name", "command"), all_commands(), ids=lambda value: str(value)[:20])
def test_every_option_has_a_help_text(name: str, command: GroupedCommand) -> None:
    assert isinstance(command, GroupedCommand)
    assert command.help
    for each in command.params:
        param: Any = each
        assert param.help, f"{name}: {param.name}"
        assert param.help[0].isupper() or param.help.startswith("ui "), f"{name}: {param.help}"
        assert param.help.endswith((".", "/")), f"{name}: {param.help}"
        if param.param_type_name == "option" and not param.is_flag:
            assert param.metavar, f"{name}: {param.name} has no name for its value"


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("make",), ("serve",), ("workflow", "run"), ("runs",)])
def test_help_fits_into_80_columns(words: tuple[str, ...]) -> None:
    lines = run_ladder(*words, "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("─" in line for line in lines)


def test_help_has_colours_only_on_a_terminal() -> None:
    assert ANSI not in run_ladder("make", "--help").stdout
    assert "\x1b[1;36m" in run_on_terminal("make", "--help")
    assert "\x1b[1;36m" in run_on_terminal("--help")


@pytest.mark.slow
def test_no_color_is_obeyed() -> None:
    colours = re.compile(r"\x1b\[[\d;]*3[0-7]")
    assert colours.search(run_on_terminal("show", "nothing.mp4"))
    assert not colours.search(run_on_terminal("show", "nothing.mp4", NO_COLOR="1"))
    assert not colours.search(run_on_terminal("make", "--help", NO_COLOR="1"))


# --- usage errors ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("mak",), "no such command 'mak'. Did you mean 'make'?", "ladder --help"),
        (("make", "--sede", "4"), "no such option: --sede", "ladder make --help"),
        (("make", "--vram", "many"), "'--vram'", "ladder make --help"),
        (("make", "x", "--verbose"), "--verbose", "before the command: ladder --verbose make"),
        (("runs", "show"), "RUN", "ladder runs show --help"),
        (("models", "get"), "NAME", "ladder models get --help"),
    ],
)
def test_usage_errors_have_a_message_and_a_hint(
    words: tuple[str, ...], message: str, hint: str
) -> None:
    done = run_ladder(*words, code=2)
    assert done.stdout == ""
    error, help_line = done.stderr.splitlines()
    assert error.startswith("error: ")
    assert message in error
    assert help_line.startswith("hint: ")
    assert hint in help_line
    assert "Traceback" not in done.stderr


def test_a_usage_error_is_json_on_request() -> None:
    done = run_ladder("make", "--sede", "4", "--json", code=2)
    assert json.loads(done.stdout)["error"]["code"] == "request_error"


@pytest.mark.parametrize("words", [(), ("models",)])
def test_without_a_command_the_help_is_printed_once(words: tuple[str, ...]) -> None:
    done = run_ladder(*words, code=2)
    assert (done.stdout + done.stderr).count("Usage: ladder") == 1


def test_the_version() -> None:
    from latent_ladder import __version__

    assert run_ladder("--version").stdout == f"latent-ladder {__version__}\n"
