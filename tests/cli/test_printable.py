"""Control characters of others are shown as escapes: one function, on screen and in the log."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from latent_ladder.cli import console
from latent_ladder.cli.logging_setup import configure_logging
from latent_ladder.cli.printable import printable, printable_json, printable_line, shell_command
from latent_ladder.errors import RequestError

NASTY = "a\x1b[2J\x1b]0;pwned\x07\x9b31m\u202egnp\u2066\r\x7f\u2028b"
RAW = "\x1b\x07\x9b\u202e\u2066\r\x7f\u2028"


def has_raw(text: str) -> bool:
    return any(letter in text for letter in RAW)


def test_controls_are_shown_and_other_text_is_not_touched() -> None:
    assert printable(NASTY) == (
        r"a\x1b[2J\x1b]0;pwned\x07\x9b31m\u202egnp\u2066\r\x7f\u2028b"
    )  # fmt: skip
    assert printable("line\n\tnext é 猫 👩‍🚀 \\x1b") == "line\n\tnext é 猫 👩‍🚀 \\x1b"
    assert printable_line("two\nlines") == r"two\nlines"
    assert printable("\udcff.png") == r"\xff.png"


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_json_and_toml_keep_their_values(text: str) -> None:
    document = {"prompt": text}
    shown = printable_json(json.dumps(document, ensure_ascii=False))
    assert json.loads(shown) == document
    assert not has_raw(shown)
    shown = printable_json(tomli_w.dumps(document))
    assert tomllib.loads(shown) == document
    assert not has_raw(shown)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_command_with_controls_can_be_copied_into_a_shell() -> None:
    words = ["ladder", "a 'b' \\n", "\x1b[2J\u202e\x9b", "é\nf\x07"]
    line = shell_command(words)
    assert not has_raw(line)
    assert "\n" not in line
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    bash = ["bash", "-c", f'"$0" -c "$1" {line.removeprefix("ladder ")}', sys.executable, code]
    out = subprocess.run(bash, capture_output=True, text=True, env={"LC_ALL": "C.UTF-8"})
    assert json.loads(out.stdout) == words[1:], out.stderr


def test_everything_that_the_console_prints_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console.show_error(RequestError(NASTY, NASTY, ((NASTY, NASTY), ("x", NASTY))))
    console.show_warning(NASTY)
    console.show_note(NASTY)
    console.show_loading(NASTY)
    console.print_table(NASTY, ("name",), [(f"one\nrow{NASTY}",)])
    console.print_text(NASTY)
    console.print_lines(NASTY)
    console.print_json({NASTY: NASTY})
    try:
        raise ValueError(NASTY)
    except ValueError as error:
        console.show_traceback(ValueError, error, error.__traceback__)
    out, err = capsys.readouterr()
    assert not has_raw(out)
    assert not has_raw(err)
    assert r"one\nrow" in out
    assert err.count(r"\x1b[2J") >= 7


def test_a_line_of_the_log_stays_one_line(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    configure_logging(file=path)
    try:
        logging.getLogger("latent_ladder.x").warning("prompt %s", f"{NASTY}\nINFO forged")
    finally:
        configure_logging()
    text = path.read_text("utf-8")
    assert not has_raw(text)
    assert len(text.splitlines()) == 1


def test_only_the_console_prints() -> None:
    """``print`` of text that somebody else wrote has to go through :mod:`printable`."""
    folder = Path(console.__file__).parent
    found = [
        path.name
        for path in folder.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if line.lstrip().startswith("print(") and path.name != "console.py"
    ]
    assert not found
