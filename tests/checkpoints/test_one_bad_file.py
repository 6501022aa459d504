"""One damaged file never disables a folder, and a file with two names is found by both."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.model_folders import copy

from latent_ladder.checkpoints import checkpoint_file
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.mmap_file import MappedFile
from latent_ladder.checkpoints.scan import Library, scan
from latent_ladder.checkpoints.selection import find_by_name
from latent_ladder.checkpoints.tensor_info import Header
from latent_ladder.errors import CheckpointError, CorruptCheckpoint
from latent_ladder.storage.file_hashes import cache_file

LORA = "loras/tiny-distilled-lora.safetensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy(tmp_path / "m/loras", "good.safetensors", LORA)
    return tmp_path / "m"


def names(library: Library) -> list[str]:
    return [found.name for found in library.of("lora")]


def write_gguf(path: Path, shape: tuple[int, ...]) -> None:
    """A GGUF file with one Q8_0 tensor that is said to have ``shape``, innermost first."""
    writer = gguf.GGUFWriter(path, "gemma3")
    data = gguf.quantize(np.zeros((32, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("x.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    old = struct.pack("<I2Q", 2, 32, 32)
    new = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    path.write_bytes(path.read_bytes().replace(old, new, 1))


def safetensors(path: Path, header: object) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


@pytest.mark.parametrize("shape", [(0, 0), (0, 32), (32, 0)])
def test_empty_tensors_of_gguf(folder: Path, shape: tuple[int, int]) -> None:
    write_gguf(folder / "bad.gguf", shape)
    library = scan([folder])
    assert names(library) == ["loras/good.safetensors"]
    with pytest.raises(CorruptCheckpoint, match="cannot be Q8_0"):
        open_checkpoint(folder / "bad.gguf")


TRANSFORMER = "transformer_blocks.0.attn1.to_q.weight"


@pytest.mark.parametrize(
    "tensors",
    [
        {TRANSFORMER: []},
        {TRANSFORMER: [0, 0], "patchify_proj.weight": []},
        {"audio_patchify_proj.weight": [], "transformer_blocks.0.prompt_scale_shift_table": [],
         TRANSFORMER: [1]},
        {"encoder.conv_in.conv.weight": [], "decoder.conv_in.conv.weight": []},
        {"layers.0.pre_feedforward_layernorm.weight": [], "norm.weight": []},
        {"post_upsample_res_blocks.0.conv2.weight": [], "initial_conv.weight": [],
         "final_conv.weight": []},
        {"a.lora_A.weight": [], "a.lora_B.weight": [0]},
        {"video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.weight": [],
         "video_embeddings_connector.learnable_registers": []},
        {"video_aggregate_embed.weight": []},
    ],
)  # fmt: skip
def test_shapes_that_no_model_has(folder: Path, tensors: dict[str, list[int]]) -> None:
    from latent_ladder.checkpoints.selection import select_available

    sizes = {name: 4 if not shape else 4 * int(np.prod(shape)) for name, shape in tensors.items()}
    header, at = {}, 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps(header).encode()
    (folder / "bad.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    copy(folder / "checkpoints", "m.safetensors", "checkpoints/tiny-ltx-2.3.safetensors")
    library = scan([folder])
    assert "loras/good.safetensors" in names(library)
    choice = select_available(library)
    assert choice.transformer is not None
    assert choice.transformer.name == "checkpoints/m.safetensors"


def test_a_surprise_in_the_reader_is_a_damaged_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kind of fault: an exception that no check foresaw, in one file."""
    read = checkpoint_file._read_header

    def surprised(file: MappedFile) -> Header:
        if file.path.name == "bad.safetensors":
            raise ZeroDivisionError("integer modulo by zero")
        return read(file)

    monkeypatch.setattr(checkpoint_file, "_read_header", surprised)
    copy(folder / "loras", "bad.safetensors", LORA)
    library = scan([folder])
    assert names(library) == ["loras/good.safetensors"]
    ((path, reason),) = library.unreadable
    assert (path.name, "ZeroDivisionError" in reason) == ("bad.safetensors", True)
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(path)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_two_names_of_one_file_are_both_usable(folder: Path, link: object) -> None:
    assert callable(link)
    link(folder / "loras/good.safetensors", folder / "loras/other.safetensors")
    for library in (scan([folder]), scan([folder])):  # the second from the cache
        assert names(library) == ["loras/good.safetensors"]
        found = [find_by_name(library, f"{n}.safetensors", "lora") for n in ("good", "other")]
        assert [each.path.name for each in found] == ["good.safetensors", "other.safetensors"]
        assert found[0].component.id == found[1].component.id


def test_a_name_with_a_folder_is_that_file(folder: Path, tmp_path: Path) -> None:
    """A file of the same name in an earlier folder is not taken for it."""
    copy(folder / "loras/sub", "good.safetensors", LORA)
    found = find_by_name(scan([folder]), "sub/good.safetensors", "lora")
    assert found.name == "loras/sub/good.safetensors"


def test_hashes_are_cached_where_the_cache_is(tmp_path: Path) -> None:
    assert cache_file() == tmp_path / "cache/hashes.json"
