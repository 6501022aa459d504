"""Presets of the user's own: saved, found by name, shared as a file, never in place of built-in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.own_presets import remove_preset, save_preset
from latent_ladder.request.presets import (
    find_preset,
    own_folder,
    own_preset_names,
    preset_names,
    read_preset,
    shadowed_presets,
)


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def saved(name: str = "night", **fields: object) -> Request:
    request = Request.from_preset("balanced", prompt="a cat", seed=7, **fields)
    save_preset(name, request, summary="for nights", based_on="balanced")
    return request


def test_a_saved_preset_makes_the_same_request() -> None:
    request = saved(duration_s=2.0, width=640, height=384)
    again = Request.from_preset("night", prompt="a cat", seed=7)
    assert again == request.model_copy(update={"preset": "night"})
    assert own_preset_names() == ("night",)
    assert read_preset("night").summary == "for nights"
    assert read_preset("night").based_on == "balanced"


def test_what_belongs_to_one_clip_is_not_saved() -> None:
    saved()
    assert not {"prompt", "seed", "images"} & set(read_preset("night").fields)


def test_a_preset_is_shared_as_a_file(tmp_path: Path) -> None:
    saved()
    shared = tmp_path / "shared.toml"
    shared.write_bytes((own_folder() / "night.toml").read_bytes())
    assert read_preset(str(shared)).fields["stages"] == read_preset("night").fields["stages"]
    assert read_preset(str(shared)).name == "shared"


def test_a_built_in_name_means_the_built_in_preset() -> None:
    with pytest.raises(RequestError, match="built-in"):
        saved("hq")
    own_folder().mkdir(parents=True)
    (own_folder() / "hq.toml").write_text("stages = []\n")
    assert read_preset("hq").file is None
    assert shadowed_presets() == (own_folder() / "hq.toml",)
    assert "hq" not in own_preset_names()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x.toml", "ü", "a" * 65, "a b"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(RequestError, match="preset name"):
        saved(name)


def test_an_existing_preset_is_kept_and_can_be_removed() -> None:
    saved()
    with pytest.raises(RequestError) as caught:
        saved()
    assert caught.value.hint == "--overwrite replaces it"
    assert not remove_preset("night").exists()
    with pytest.raises(RequestError, match="no preset night"):
        remove_preset("night")


def test_wrong_files_are_errors_and_unknown_names_get_the_nearest(tmp_path: Path) -> None:
    saved()
    with pytest.raises(RequestError) as caught:
        read_preset("nights")
    assert "night" in str(caught.value.hint)
    (tmp_path / "bad.toml").write_text("width = 3\n")
    os.mkfifo(tmp_path / "pipe.toml")
    for name, said in {"bad": "no stages", "pipe": "pipe", "none": "does not exist"}.items():
        with pytest.raises(RequestError, match=said):
            read_preset(str(tmp_path / f"{name}.toml"))
    (own_folder() / "night.toml").write_text("=")
    assert find_preset("night") is None


def test_only_the_pockets_preset_describes_a_world() -> None:
    assert [name for name in preset_names() if read_preset(name).world] == ["pocket"]
    assert "world" not in read_preset("pocket").fields


def test_a_prompt_of_millions_of_characters_is_refused() -> None:
    with pytest.raises(RequestError, match="9,000,000 characters long"):
        Request.from_preset("pocket", prompt="a" * 9_000_000)
