"""Facts for clients: versions, and the metadata of model files that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latent_ladder.comfyui.node_defs import NODE_TYPES
from latent_ladder.comfyui.versions import ModelConvention
from latent_ladder.server.object_info import node_info
from latent_ladder.server.system_info import read_file_metadata, system_stats


@pytest.mark.parametrize(
    ("convention", "version"),
    [("comfyui", "0.33.0"), ("comfyui-0.32", "0.32.0"), ("ltx", "0.33.0")],
)
def test_the_version_is_that_of_the_convention(convention: ModelConvention, version: str) -> None:
    assert system_stats("cpu", convention)["system"]["comfyui_version"] == version


def test_metadata_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path, {"rank": "4"})
    assert read_file_metadata(path) == {"rank": "4"}


@pytest.mark.parametrize("data", [b"", b"\x08" + bytes(7) + b'{"a": {}', bytes(64), b"\xff" * 64])
def test_a_damaged_file_has_no_metadata(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    assert read_file_metadata(path) is None


def test_a_failing_disk_or_a_surprise_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(1)}, path, {"rank": "4"})
    for error in (OSError(5, "Input/output error"), ZeroDivisionError()):

        def fail(file: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("latent_ladder.server.system_info.read_safetensors_header", fail)
        assert read_file_metadata(path) is None


def test_the_editor_shows_the_codec_once() -> None:
    info = node_info(NODE_TYPES["SaveVideo"], lambda _: ())["input"]
    assert all("codec" not in group for group in info.values())
    options = info["required"]["format"][1]["options"]
    assert all("codec" in option["inputs"]["optional"] for option in options)
