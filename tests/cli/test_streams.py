"""stdout and stderr on full devices, closed pipes and in ASCII: words, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="needs /dev/full")]

LADDER = [sys.executable, "-m", "latent_ladder"]


@pytest.mark.parametrize("words", [["presets", "list"], ["presets", "list", "--json"], ["--help"]])
def test_a_stdout_without_room_is_said(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*LADDER, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_stderr_and_a_log_without_room_do_not_stop_a_command() -> None:
    with Path("/dev/full").open("w") as full:
        command = [*LADDER, "--debug", "--log", "/dev/full", "doctor"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, text=True)
    assert done.returncode == 0
    assert "pocket" in done.stdout
    command = [*LADDER, "--log", "/dev/full", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stderr.count("cannot be written any more: No space left on device") == 1
    assert "Traceback" not in done.stderr


def test_a_reader_that_stops_is_no_error() -> None:
    with subprocess.Popen(
        [*LADDER, "presets", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as done:
        assert done.stdout is not None
        assert done.stderr is not None
        done.stdout.close()
        assert done.stderr.read() == ""
    assert done.returncode == 141


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=["encoding", "locale"],
)
def test_ascii_gives_words(environment: dict[str, str], tmp_path: Path) -> None:
    for words, code in ((["doctor"], 0), (["plan", "a réd ball"], None), (["show", "ü.mp4"], 5)):
        done = subprocess.run(
            [*LADDER, *words], capture_output=True, cwd=tmp_path, env=os.environ | environment
        )
        assert b"Traceback" not in done.stderr, done.stderr.decode("ascii")
        assert done.stdout.isascii()
        assert done.stderr.isascii()
        assert code in (None, done.returncode)


def test_a_name_that_is_not_utf8_is_refused_or_used() -> None:
    done = subprocess.run([*LADDER, "show", b"\xff\xfe.mp4"], capture_output=True)
    assert done.returncode == 5
    assert rb"\xff\xfe.mp4 does not exist" in done.stderr
    done = subprocess.run([*LADDER, "plan", b"\xff"], capture_output=True)
    assert done.returncode == 2
    assert b"is not text" in done.stderr
