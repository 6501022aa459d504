"""`ladder config` and `ladder presets`, completion of own presets, and `--notify`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from latent_ladder.cli import notify
from latent_ladder.cli.app import build_app
from latent_ladder.cli.completion import complete_own_preset, complete_preset
from latent_ladder.errors import Cancelled, RequestError
from latent_ladder.jobs.file_names import choose_file_name
from latent_ladder.storage.user_config import config_file


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("LADDER_PRESET", "LADDER_OUTPUT", "LADDER_STORE", "LADDER_MODELS"):
        monkeypatch.delenv(name, raising=False)


def run(*words: str) -> Result:
    return CliRunner().invoke(build_app(), [*words])


def write_config(text: str) -> None:
    config_file().parent.mkdir(parents=True, exist_ok=True)
    config_file().write_text(text)


def test_config_shows_the_file_and_where_each_value_is_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_config('preset = "hq"\noutput = "clips"\n')
    monkeypatch.setenv("LADDER_PRESET", "balanced")
    found = json.loads(run("config", "--json").stdout)
    assert found["file"] == str(config_file()) and found["exists"]
    assert found["settings"]["preset"] == {"value": "balanced", "source": "LADDER_PRESET"}
    assert found["settings"]["output"]["source"] == str(config_file())
    assert found["settings"]["store"]["source"] == "default"
    assert "LADDER_PRESET" in run("config").stdout


def test_an_unknown_key_is_an_error_of_every_command_that_reads_the_file() -> None:
    write_config('presett = "hq"\n')
    for words in (["config"], ["plan", "a ball"], ["runs", "list"]):
        error = run(*words).exception
        assert isinstance(error, RequestError)
        assert error.hint == "did you mean preset?"


def test_flag_before_environment_before_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def preset(*words: str) -> str:
        done = run("plan", "a ball", "--json", *words)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return str(json.loads(done.stdout)["request"]["preset"])

    assert preset() == "pocket"
    assert run("presets", "save", "mine", "--preset", "pocket").exit_code == 0
    write_config('preset = "mine"\n')
    assert preset() == "mine"
    monkeypatch.setenv("LADDER_PRESET", "pocket")
    assert preset() == "pocket"
    assert preset("--preset", "mine") == "mine"
    monkeypatch.setenv("LADDER_PRESET", "none")
    error = run("plan", "a ball").exception
    assert isinstance(error, RequestError) and error.message.startswith("LADDER_PRESET: preset")


def test_the_folder_of_clips() -> None:
    write_config('output = "clips"\n')
    assert choose_file_name("A Red ball!") == config_file().parent / "clips" / "a-red-ball.mp4"


def test_presets_are_saved_listed_shown_completed_and_removed(tmp_path: Path) -> None:
    saved = run("presets", "save", "mine", "--preset", "pocket", "--duration", "0.7",
                "--set", "refine.denoise=0.5", "--summary", "soft")  # fmt: skip
    assert saved.exit_code == 0, saved.exception
    path = Path(saved.stdout.strip().splitlines()[-1])
    listed = {p["name"]: p for p in json.loads(run("presets", "list", "--json").stdout)}
    assert listed["mine"] == {"name": "mine", "summary": "soft", "file": str(path)}
    assert listed["hq"]["file"] is None
    shown = run("presets", "show", "mine").stdout
    assert "denoise = 0.5" in shown and 'based_on = "pocket"' in shown
    (tmp_path / "shared.toml").write_text(shown)
    plan = json.loads(run("plan", "a ball", "--preset", "shared.toml", "--json").stdout)
    assert plan["request"]["stages"][-1]["denoise"] == 0.5
    assert complete_own_preset("m") == [("mine", "soft")]
    assert ("mine", "soft") in complete_preset("")
    assert (
        json.loads(run("presets", "show", "pocket", "--json").stdout)["world"]["most_objects"] == 1
    )
    assert run("presets", "remove", "mine").stdout.strip() == str(path)
    assert complete_own_preset("") == []


def test_a_preset_based_on_another_model_refuses_the_pocket_too() -> None:
    assert run("presets", "save", "mine", "--preset", "balanced").exit_code == 0
    error = run("plan", "a ball", "--preset", "mine").exception
    assert error is not None and "preset mine is made for the weights of LTX-2" in str(error)


def test_a_notification_tells_the_end_or_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(notify, "send", said.append)
    with notify.notify_at_end(True, "ball.mp4"):
        pass
    with pytest.raises(RequestError), notify.notify_at_end(True, "ball.mp4"):
        raise RequestError("no")
    with pytest.raises(Cancelled), notify.notify_at_end(True, "ball.mp4"):
        raise Cancelled("stopped")
    with notify.notify_at_end(False, "ball.mp4"):
        pass
    assert said == ["ball.mp4 finished in 0.0 s", "ball.mp4 failed: no"]


def test_texts_of_notifications_are_no_code() -> None:
    command = notify.desktop_command("darwin", 'a" & do shell script "x\\')
    assert command[2] == (
        'display notification "a\\" & do shell script \\"x\\\\" with title "latent-ladder"'
    )
    assert notify.desktop_command("linux", "--x")[-2:] == ("latent-ladder", "--x")
    assert notify.desktop_command("win32", "x") == ()
