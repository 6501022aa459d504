"""The last line of a command, ``--open``, and what is shown at 80 columns."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.command_line import SMALL, TINY, environment

from latent_ladder.cli import open_file as opening
from latent_ladder.cli.app import build_app
from latent_ladder.cli.console import RunProgress
from latent_ladder.cli.result_line import clip_lines, format_time
from latent_ladder.errors import StoreError
from latent_ladder.pipeline.events import StageDone, StageStarted, StepDone
from latent_ladder.pipeline.run import Result
from latent_ladder.request.model import RANDOM_SEEDS, Request
from latent_ladder.storage.run_records import RunLog


def call(*words: str) -> int | None:
    """Run a command in this process; its exit code, ``None`` for 0."""
    code: int | None = build_app()(list(words), prog_name="ladder", standalone_mode=False)
    return code


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LADDER_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def result(output: str, *pictures: str) -> Result:
    request = Request.from_preset("pocket", prompt="a star", seed=48213)
    paths = tuple(Path(p) for p in pictures)
    return Result(Path(output), "run", request, 25, 1.0417, None, (), (), None, paths)


def test_the_line_names_file_size_length_seed_and_time() -> None:
    assert clip_lines(result("star.mp4"), 11.2) == [
        "star.mp4 · 512x512 · 1.0 s · seed 48213 · 11 s"
    ]
    assert clip_lines(result("star.mp4", "star.poster.png"), 1.0)[0] == "also star.poster.png"
    assert "512x512" not in clip_lines(result("star.wav"), 1.0)[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.84, "0.8 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3700, "1 h 1 min")],
)
def test_times_are_written_for_people(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


def test_open_says_why_it_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert opening._why_not("linux", {}) == "there is no display"
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = opening._why_not("linux", {"DISPLAY": ":0"})
    assert missing == "xdg-open is not installed"
    assert opening._why_not("darwin", {}) is None


@pytest.mark.skipif(sys.platform != "linux", reason="the opener of Linux desktops")
def test_open_starts_the_program_of_the_desktop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opener, opened = tmp_path / "xdg-open", tmp_path / "opened"
    opener.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.part && mv {opened}.part {opened}\n')
    opener.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("DISPLAY", ":0")
    opening.open_file(Path("frames/%05d.png"))
    for _ in range(500):
        if opened.exists():
            break
        subprocess.run(["sleep", "0.01"], check=True)
    assert opened.read_text() == str(Path("frames").absolute())


def test_a_pipe_gets_a_line_for_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress() as progress:
        progress.on_event(StageStarted("base", 2, 5, 8))
        progress.on_event(StepDone("base", 1, 8, 0.9))
        progress.on_event(StageDone("base", "key", False, 1.25, 2**20))
        progress.on_event(StageDone("prompt", "key", True, 0.0, 0))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["2/5 base", "base: 1.2 s, peak memory 1 MiB", "prompt: stored before, reused"]


def test_a_quiet_run_shows_none(capsys: pytest.CaptureFixture[str]) -> None:
    with RunProgress(quiet=True) as progress:
        progress.on_event(StageStarted("base", 2, 5, 8))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "words",
    [["doctor"], ["plan", "a ball"], ["runs", "list"], ["presets", "list"], ["models", "list"],
     ["runs", "show", "last"]],
)  # fmt: skip
def test_tables_fit_80_columns_with_names_in_one_piece(
    store: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    log = RunLog(store / "runs")
    log.start("ladder make 'a ball'", {"prompt": "a ball " * 20})
    call(*words)
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80 or len(line.split()) == 1, line


def test_doctor_begins_with_what_runs_and_what_to_get(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call("doctor")
    first, _, to_get, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("Runs now: pocket")
    assert to_get.startswith("To get for LTX-2.3 with preset distilled: ")
    call("doctor", "--json")
    body = json.loads(capsys.readouterr().out)
    assert body["runs_now"] == ["pocket"]
    total = sum(file["bytes"] for file in body["to_get"]) / 1e9
    assert f"{total:.3g} GB in all" in to_get


def test_a_store_that_cannot_be_written_is_said_before_anything_is_made(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = str(tmp_path / "file" / "store")
    for words in (["make", "a ball"], ["draft", "a ball"], ["sound", "a ball"]):
        with pytest.raises(StoreError, match="cannot be written") as caught:
            call(*words, "--store", folder)
        assert "--store" in str(caught.value.hint)
        assert "LADDER_STORE" in str(caught.value.hint)
    assert call("doctor", "--store", folder) == StoreError.exit_code
    assert "Nothing runs now: the store" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_plan_does_not_promise_a_seed(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("plan", "a ball")
    assert "a random seed" in capsys.readouterr().out
    call("plan", "a ball", "--seed", "7")
    assert "seed 7" in capsys.readouterr().out


def test_an_unfinished_run_is_taken_up(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def seed(*words: str) -> int:
        call("plan", "a ball", "--json", *words)
        return int(json.loads(capsys.readouterr().out)["request"]["seed"])

    first = seed()
    assert 0 <= first < RANDOM_SEEDS
    call("plan", "a ball", "--json", "--seed", "99")
    request = json.loads(capsys.readouterr().out)["request"]
    log = RunLog(store / "runs")
    record = log.start("ladder make", request)
    assert seed() != 99  # it is still running
    log.save(replace(record, status="cancelled"))
    assert seed() == 99
    assert seed("--seed", "5") == 5
    assert seed("--seed", "-1") != 99
    assert seed("--size", "256x256") != 99
    call("plan", "a ball")
    assert f"run {record.id} did not finish" in capsys.readouterr().out


@pytest.mark.slow
def test_a_file_without_a_seed_leaves_it_open(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Request.from_preset("pocket", prompt="a ball").to_toml()
    (tmp_path / "a.toml").write_text(table.replace("seed = 10\n", ""))
    (tmp_path / "b.toml").write_text(table)
    call("plan", "--from", "a.toml")
    assert "a random seed" in capsys.readouterr().out
    call("plan", "--from", "b.toml")
    assert "seed 10" in capsys.readouterr().out


@pytest.mark.slow
def test_make_in_a_new_folder_ends_with_the_line_and_quiet_with_the_path(tmp_path: Path) -> None:
    def make(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "latent_ladder", "make", "a red ball", *TINY, *SMALL]
        return subprocess.run(
            [*command, *words], cwd=tmp_path, env={**environment(tmp_path), "DISPLAY": ""},
            capture_output=True, text=True, check=True,
        )  # fmt: skip

    done = make("-o", "new/a.mp4", "--poster", "--sheet", "--open")
    *also, line = done.stdout.splitlines()
    assert also == ["also new/a.poster.png", "also new/a.sheet.png"]
    name, size, length, seed, _ = line.split(" · ")
    assert (name, size, length) == ("new/a.mp4", "64x64", "0.4 s")
    assert f"{seed}," in done.stderr  # said at the start too
    assert "1/" in done.stderr
    assert "--open: there is no display" in done.stderr
    again = make("-o", "b.mp4", "-q")
    assert again.stdout == "b.mp4\n"
    assert again.stderr == ""
    assert (tmp_path / "new" / "a.mp4").read_bytes() != (tmp_path / "b.mp4").read_bytes()
