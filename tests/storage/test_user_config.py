"""config.toml, environment and their order; refusal of files that are no text."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latent_ladder.errors import RequestError
from latent_ladder.storage.user_config import KEYS, read_config, read_setting


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text('preset = "balanced"\nmodels = "m"\nstore = "s"\noutput = "~/clips"\n')
    return path


def test_values_of_the_file_and_their_source(config: Path) -> None:
    assert read_setting("preset", {}, config).value == "balanced"
    assert read_setting("models", {}, config).value == (str(config.parent / "m"),)
    assert read_setting("store", {}, config).value == str(config.parent / "s")
    assert read_setting("output", {}, config).value == str(Path("~/clips").expanduser())
    assert read_setting("store", {}, config).source == str(config)


def test_the_environment_comes_before_the_file(config: Path) -> None:
    found = read_setting("preset", {"LADDER_PRESET": "hq"}, config)
    assert (found.value, found.source) == ("hq", "LADDER_PRESET")
    several = read_setting("models", {"LADDER_MODELS": f"a{os.pathsep}b"}, config)
    assert several.value == ("a", "b")


def test_without_a_file_nothing_is_set(tmp_path: Path) -> None:
    for key in KEYS:
        assert read_setting(key.name, {}, tmp_path / "none.toml").value is None


def test_every_example_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("\n".join(key.example for key in KEYS))
    assert set(read_config(path)) == {key.name for key in KEYS}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('presets = "hq"', "did you mean preset?"),
        ("store = 3", "expected a folder"),
        ("models = [1]", "expected a list of folders"),
        ('preset = ["a"]', "expected a name"),
        ("preset", "cannot be read"),
    ],
)
def test_wrong_files_are_errors(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(RequestError) as caught:
        read_config(path)
    assert said in f"{caught.value.message} {caught.value.hint}"
