"""Opening model files: lazily, and with clear words when they are damaged."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latent_ladder.checkpoints.files import open_checkpoint
from latent_ladder.errors import CheckpointNotFound, CorruptCheckpoint, UnknownLayout


def test_header_gives_shapes_dtypes_and_config(golden):
    file = open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors"))
    table = file.tensors["model.diffusion_model.scale_shift_table"]
    assert table == ((2, 64), "F32")
    assert file.config["transformer"]["num_layers"] == 2
    assert file.metadata["model_version"] == "2.3.0"
    assert file.size == file.path.stat().st_size - file.header_bytes


def test_reads_one_tensor_as_stored(tmp_path):
    want = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    save_file({"a": want, "b": torch.zeros(4)}, tmp_path / "x.safetensors")
    got = open_checkpoint(tmp_path / "x.safetensors").read("a")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)


def test_id_follows_the_content_not_the_path(tmp_path):
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_file({"w": torch.full((300, 300), value)}, tmp_path / f"{name}.safetensors")
    ids = {n: open_checkpoint(tmp_path / f"{n}.safetensors").id for n in "abc"}
    assert ids["a"] == ids["b"]
    assert ids["a"] != ids["c"]


def test_a_46_gb_file_opens_by_its_header(tmp_path):
    path = tmp_path / "big.safetensors"
    size = 46_000_000_000
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + size)
    assert open_checkpoint(path).tensors["w"].nbytes == size


def test_missing_file():
    with pytest.raises(CheckpointNotFound, match="no such file"):
        open_checkpoint("/nowhere/model.safetensors")


def test_truncated_file_says_how_much_is_missing(tmp_path, golden):
    path = tmp_path / "cut.safetensors"
    shutil.copy(golden.path("loras/tiny-distilled-lora.safetensors"), path)
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size - 1000)
    with pytest.raises(CorruptCheckpoint, match="1,000 bytes are missing"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", CorruptCheckpoint, "0 bytes"),
        (b"<!DOCTYPE html><html>not found</html>", UnknownLayout, "not a safetensors file"),
        (b"GGUF\x03\x00\x00\x00" + b"\x00" * 16, UnknownLayout, "GGUF"),
        (struct.pack("<Q", 4000) + b"{}", CorruptCheckpoint, "needs 4000 bytes"),
        (struct.pack("<Q", 4) + b"nope", CorruptCheckpoint, "not JSON"),
        (struct.pack("<Q", 11) + b'{"w": null}', CorruptCheckpoint, "tensor w is malformed"),
    ],
)
def test_what_is_no_model_file(tmp_path: Path, content, error, words):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        open_checkpoint(path)
    assert raised.value.hint


def test_sizes_must_agree_with_shapes(tmp_path):
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    with pytest.raises(CorruptCheckpoint, match="occupies 8 bytes, not 12"):
        open_checkpoint(tmp_path / "x.safetensors")
