"""Opening model files: lazily, and with clear errors for damaged ones."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.shards import entry_points
from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    UnknownLayout,
    UnsupportedQuantization,
)


def test_header_has_shapes_dtypes_and_config(golden: Goldens) -> None:
    file = open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors"))
    table = file.tensors["model.diffusion_model.scale_shift_table"]
    assert table == ((2, 64), "F32")
    assert file.config["transformer"]["num_layers"] == 2
    assert file.metadata["model_version"] == "2.3.0"
    assert file.size == file.path.stat().st_size - file.header_bytes


@pytest.mark.slow
def test_reads_one_tensor_as_stored(tmp_path: Path) -> None:
    want = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    save_file({"a": want, "b": torch.zeros(4)}, tmp_path / "x.safetensors")
    got = open_checkpoint(tmp_path / "x.safetensors").read("a")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want)


def test_id_follows_the_content_not_the_path(tmp_path: Path) -> None:
    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        save_file({"w": torch.full((300, 300), value)}, tmp_path / f"{name}.safetensors")
    ids = {n: open_checkpoint(tmp_path / f"{n}.safetensors").id for n in "abc"}
    assert ids["a"] == ids["b"]
    assert ids["a"] != ids["c"]


def test_a_46_gb_file_opens_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    size = 46_000_000_000
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + size)
    assert open_checkpoint(path).tensors["w"].nbytes == size


def test_missing_file() -> None:
    with pytest.raises(CheckpointNotFound, match="no such file"):
        open_checkpoint("/nowhere/model.safetensors")


def test_error_of_a_truncated_file_has_the_missing_bytes(tmp_path: Path, golden: Goldens) -> None:
    path = tmp_path / "cut.safetensors"
    shutil.copy(golden.path("loras/tiny-distilled-lora.safetensors"), path)
    with path.open("r+b") as f:
        f.truncate(path.stat().st_size - 1000)
    with pytest.raises(CorruptCheckpoint, match="1,000 bytes are missing"):
        open_checkpoint(path)


Entry = dict[str, object]


def write(path: Path, header: object, data: bytes = b"") -> Path:
    """A safetensors file with this header, which may be invalid."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(begin: int, end: int, shape: object = None, dtype: object = "U8") -> Entry:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


PICKLED = pickle.dumps({"w": [1.0]})


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", CorruptCheckpoint, "0 bytes"),
        (b"1234", CorruptCheckpoint, "4 bytes"),
        (bytes(4096), CorruptCheckpoint, "512 zero bytes"),
        (b"<!DOCTYPE html><html>not found</html>", UnknownLayout, "web page"),
        (b"\xef\xbb\xbf\n <HTML><body>log in</body>", UnknownLayout, "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 46149345234\n",
         CorruptCheckpoint, "git-lfs pointer to a file of 46,149,345,234 bytes"),
        (b'{"weights": [1, 2, 3]}', UnknownLayout, "JSON"),
        (b'[\n {"a": 1}]', UnknownLayout, "JSON"),
        (PICKLED, UnknownLayout, "pickle.* never read"),
        (pickle.dumps({"w": [1.0]}, protocol=2), UnknownLayout, "pickle.* never read"),
        (pickle.dumps({"w": [1.0]}, protocol=0), UnknownLayout, "pickle.* never read"),
        (b"\x1f\x8b\x08\x00" + bytes(20), UnknownLayout, "compressed archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), UnknownLayout, "HDF5"),
        (b"tjgg\x01\x00\x00\x00" + bytes(20), UnknownLayout, "before GGUF"),
        (b"\x89PNG\r\n\x1a\n" + bytes(20), UnknownLayout, "an image"),
        (random.Random(0).randbytes(400), UnknownLayout, "not a safetensors file"),
        (struct.pack("<Q", 4000) + b"{}", CorruptCheckpoint, "states 4000 bytes"),
        (struct.pack("<Q", 2 << 30) + b"{" + bytes(99), CorruptCheckpoint,
         "states 2,147,483,648 bytes"),
        (struct.pack("<Q", 1 << 60) + b"{" + bytes(99), CorruptCheckpoint, "states"),
        (struct.pack("<Q", 4) + b"nope", CorruptCheckpoint, "not JSON"),
        (struct.pack("<Q", 4) + b'{"\xff"', CorruptCheckpoint, "not JSON"),
        (struct.pack("<Q", 90000) + b"[" * 90000, CorruptCheckpoint, "not JSON"),
        (struct.pack("<Q", 4) + b"[{}]", CorruptCheckpoint, "not a JSON object"),
        (struct.pack("<Q", 11) + b'{"w": null}', CorruptCheckpoint, "tensor w is malformed"),
    ],
)  # fmt: skip
def test_files_that_are_not_models_are_refused(
    tmp_path: Path, content: bytes, error: type[CheckpointError], words: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        open_checkpoint(path)
    assert raised.value.hint


@pytest.mark.parametrize("suffix", ["ckpt", "pt", "pth", "bin", "safetensors"])
def test_a_torch_archive_is_refused_by_content_and_never_unpickled(
    tmp_path: Path, suffix: str
) -> None:
    class CodeOnUnpickling:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (f"open({str(tmp_path / 'code_ran')!r}, 'w')",)

    path = tmp_path / f"model.{suffix}"
    torch.save({"w": torch.zeros(3), "code": CodeOnUnpickling()}, path)
    with pytest.raises(UnknownLayout, match="never read") as raised:
        open_checkpoint(path)
    assert "safetensors" in (raised.value.hint or "")
    assert not (tmp_path / "code_ran").exists()


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"w": tensor(0, 8, [3], "F32")}, 8, "has 8 bytes, expected 12"),
        ({"w": tensor(0, 4), "v": tensor(2, 6)}, 6, "v overlaps the one before it .2 bytes"),
        ({"w": tensor(0, 4), "v": tensor(0, 4)}, 4, "v overlaps"),
        ({"w": tensor(0, 4), "v": tensor(6, 8)}, 8, "v follows a gap .2 bytes"),
        ({"w": tensor(4, 8)}, 8, "w follows a gap"),
        ({"w": tensor(0, 4)}, 9, "5 bytes follow the last tensor"),
        ({"w": tensor(0, 4)}, 3, "truncated, 1 bytes are missing"),
        ({"w": tensor(1 << 40, (1 << 40) + 4)}, 4, "truncated"),
        ({"w": tensor(0, 4, [-1, -4])}, 4, "negative"),
        ({"w": tensor(-4, 0)}, 4, "negative"),
        ({"w": tensor(4, 0, [4])}, 4, "has -4 bytes"),
        ({"w": tensor(0, 4, [2.0, 2])}, 4, "malformed"),
        ({"w": tensor(0, 1, [True])}, 1, "malformed"),
        ({"w": tensor(0, 4, "4")}, 4, "malformed"),
        ({"w": tensor(0, 4, [1 << 70])}, 4, "malformed"),
        ({"w": tensor(0, 4, [1 << 62] * 60)}, 4, "has 4 bytes"),
        ({"w": tensor(0, 4, [1] * 65)}, 4, "malformed"),
        ({"w": tensor(0, 2, [3], "F4")}, 2, "cannot be F4"),
        ({"w": tensor(0, 4, dtype=["F32"])}, 4, "malformed"),
        ({"w": tensor(0, 4, dtype="Q4_0")}, 4, "dtype Q4_0, expected one of BOOL"),
        ({"w": tensor(0, 4, dtype="F7")}, 4, "dtype F7, expected one of BOOL"),
        ({"w": {"dtype": "U8", "shape": [1]}}, 1, "malformed"),
        ({"w": {"dtype": "U8", "shape": [1], "data_offsets": [0]}}, 1, "malformed"),
        ({"__metadata__": {"n": 1}}, 0, "not an object of strings"),
        ({"__metadata__": [1]}, 0, "not an object of strings"),
        ({"__metadata__": {"config": "{"}}, 0, "`config` in its header is not JSON"),
        ({"__metadata__": {"config": "[" * 90000}}, 0, "`config` in its header is not JSON"),
        (b'{"w": 1, "v": 2, "w": 3}', 0, "contains w twice"),
        (b'{"w": {"dtype": "U8", "dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', 1,
         "contains dtype twice"),
    ],
)  # fmt: skip
def test_an_inconsistent_header_is_refused_with_the_reason(
    tmp_path: Path, header: dict[str, Any] | bytes, data: int, words: str
) -> None:
    path = write(tmp_path / "x.safetensors", header, bytes(data))
    with pytest.raises((CorruptCheckpoint, UnknownLayout), match=words) as raised:
        open_checkpoint(path)
    assert raised.value.hint
    assert len(raised.value.message) < 500


def test_control_characters_of_a_name_are_not_printed(tmp_path: Path) -> None:
    header = {"\x1b[2Jw" + "x" * 5000: tensor(0, 4, [3])}
    with pytest.raises(CorruptCheckpoint) as raised:
        open_checkpoint(write(tmp_path / "x.safetensors", header, bytes(4)))
    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 300


def every_dtype() -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(0)
    names = (
        "uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 "
        "complex64 float8_e4m3fn float8_e5m2 float8_e8m0fnu float8_e4m3fnuz float8_e5m2fnuz"
    )
    return {
        name: torch.randint(0, 120, (3, 8), generator=gen, dtype=torch.uint8).view(
            getattr(torch, name)
        )
        for name in names.split()
    } | {
        "bool": torch.tensor([[True, False]]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }


def test_every_dtype_is_read_as_by_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(every_dtype(), path)
    file = open_checkpoint(path)
    with safe_open(path, "pt") as reference:
        assert set(reference.keys()) == set(file.tensors)
        for name in reference.keys():  # noqa: SIM118
            want = reference.get_tensor(name)
            for got in (file.read(name), file.load(name)):
                assert (got.dtype, got.shape) == (want.dtype, want.shape)
                assert raw(got) == raw(want) == file.read_bytes(name)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def test_four_bit_pairs_are_read_with_the_dtype_of_torch(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"w": tensor(0, 4, [2, 4], "F4")}, b"\x12\x34\x56\x78")
    file = open_checkpoint(path)
    assert file.tensors["w"].shape == (2, 4)
    assert file.read("w").shape == (2, 2)
    assert file.read("w").dtype == torch.float4_e2m1fn_x2


def test_a_dtype_that_torch_lacks_is_an_error_when_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {"w": tensor(0, 3, [4], "F6_E2M3")}, bytes(3))
    file = open_checkpoint(path)
    with pytest.raises(UnsupportedQuantization, match="w is stored as F6_E2M3") as raised:
        file.read("w")
    assert "BF16" in raised.value.message


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = b'{"b": {"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    header += b'"w": {"dtype":"F32","shape":[2],"data_offsets":[1,9]}}'
    path = write(tmp_path / "x.safetensors", header, b"\x07" + struct.pack("<2f", 1.5, -2))
    file = open_checkpoint(path)
    assert file.read("w").tolist() == file.load("w").tolist() == [1.5, -2]


def test_reads_are_memory_mapped_and_writing_to_a_tensor_does_not_change_the_file(
    tmp_path: Path,
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    before = path.read_bytes()
    file = open_checkpoint(path)
    first, second = file.read("w"), file.read("w")
    assert first.data_ptr() == second.data_ptr()
    first.zero_()
    assert path.read_bytes() == before
    assert file.load("w").eq(1).all()


def test_loading_fills_the_given_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"v": torch.zeros(4), "w": torch.arange(4.0)}, path)
    out = torch.empty(16, dtype=torch.uint8)
    got = open_checkpoint(path).load("w", out)
    assert got.data_ptr() == out.data_ptr()
    assert got.tolist() == [0, 1, 2, 3]


def test_reading_a_missing_tensor_is_an_error(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(CorruptCheckpoint, match="tensor v is not in the file"):
        open_checkpoint(tmp_path / "x.safetensors").read("v")


CHANGES: dict[str, Callable[[Path], object]] = {
    "shorter": lambda p: os.truncate(p, 200),
    "newer": lambda p: os.utime(p, ns=(1, 1)),
    "deleted": lambda p: p.unlink(),
    "replaced": lambda p: (p.with_suffix(".new").write_bytes(b"x"),
                           p.with_suffix(".new").replace(p)),
}  # fmt: skip


@pytest.mark.parametrize("mapped_before", [True, False])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_in_use_is_noticed(
    tmp_path: Path, change: str, mapped_before: bool
) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    file = open_checkpoint(path)
    file.check_unchanged()
    if mapped_before:
        file.read("w")
    CHANGES[change](path)
    for use in (file.check_unchanged, lambda: file.read("w"), lambda: file.load("w"),
                lambda: file.read_bytes("w"), lambda: file.id):  # fmt: skip
        with pytest.raises(CorruptCheckpoint) as raised:
            use()
        assert raised.value.hint


def test_paths_that_are_not_files_are_refused(tmp_path: Path) -> None:
    loop, pipe, locked = tmp_path / "loop", tmp_path / "pipe", tmp_path / "locked"
    loop.symlink_to(loop)
    os.mkfifo(pipe)
    locked.mkdir()
    save_file({"w": torch.ones(2)}, locked / "x.safetensors")
    cases: list[tuple[Path | str, type[CheckpointError], str]] = [
        (loop, CheckpointNotFound, "points to itself"),
        (pipe, UnknownLayout, "not a regular file"),
        (tmp_path / ("x" * 300), CheckpointNotFound, "too long"),
        (locked / "x.safetensors" / "y", CheckpointNotFound, "no such file"),
        ("a\0b", CheckpointNotFound, "not a valid path"),
        (tmp_path, UnknownLayout, "folder without model files"),
    ]
    for path, error, words in cases:
        with pytest.raises(error, match=words) as raised:
            open_checkpoint(path)
        assert raised.value.hint


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs POSIX users")
@pytest.mark.parametrize("locked", ["file", "folder"])
def test_a_file_without_read_permission_is_an_error(tmp_path: Path, locked: str) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "x.safetensors"
    save_file({"w": torch.ones(2)}, path)
    (path if locked == "file" else folder).chmod(0)
    previous = os.geteuid()
    try:
        if previous == 0:  # root may read everything
            os.seteuid(65534)
        with pytest.raises(CheckpointNotFound, match="permission denied") as raised:
            open_checkpoint(path)
    finally:
        os.seteuid(previous)
        folder.chmod(0o700)
    assert raised.value.hint


def test_a_46_gb_file_is_read_under_a_memory_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    size = 46_000_000_000
    header = json.dumps({"w": tensor(0, size - 4), "v": tensor(size - 4, size)}).encode()
    with path.open("wb") as f:
        f.write(struct.pack("<Q", len(header)) + header)
        f.truncate(8 + len(header) + size)
    previous = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, previous[1]))
    try:
        file = open_checkpoint(path)
        assert file.read("v").tolist() == [0, 0, 0, 0]
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, previous)
    if sys.platform == "linux":
        assert not file.parts[0][0].writable


# --- checkpoints in several files ----------------------------------------------------------------


def shard(folder: Path, index: bool = True, stem: str = "model") -> dict[str, torch.Tensor]:
    """Write a model as three shards like Hugging Face; returns all its tensors."""
    folder.mkdir(exist_ok=True)
    whole = {f"layers.{i}.w": torch.full((4, 3), float(i)) for i in range(6)}
    weight_map: dict[str, str] = {}
    for k in range(3):
        name = f"{stem}-{k + 1:05}-of-00003.safetensors"
        part = {n: whole[n] for n in list(whole)[2 * k : 2 * k + 2]}
        save_file(part, folder / name, {"part": str(k)})
        weight_map |= dict.fromkeys(part, name)
    if index:
        text = json.dumps({"metadata": {"total_size": 288}, "weight_map": weight_map})
        (folder / f"{stem}.safetensors.index.json").write_text(text)
    return whole


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("opened_as", ["", "model.safetensors.index.json", 1, 2, 3])
def test_a_sharded_checkpoint_opens_as_one(
    tmp_path: Path, index: bool, opened_as: str | int
) -> None:
    whole = shard(tmp_path / "gemma", index)
    if isinstance(opened_as, int):
        opened_as = f"model-{opened_as:05}-of-00003.safetensors"
    if not index and opened_as.endswith("json"):
        pytest.skip("there is no index")
    file = open_checkpoint(tmp_path / "gemma" / opened_as)
    assert set(file.tensors) == set(whole)
    for name, want in whole.items():
        torch.testing.assert_close(file.read(name), want)
        torch.testing.assert_close(file.load(name), want)
    first = "model.safetensors.index.json" if index else "model-00001-of-00003.safetensors"
    assert file.path == tmp_path / "gemma" / first
    assert file.size == 6 * 48
    assert file.metadata["part"] == "0"


def test_the_id_of_a_sharded_checkpoint_follows_its_content(tmp_path: Path) -> None:
    for name in "abc":
        shard(tmp_path / name, index=name != "b")
    with (tmp_path / "c" / "model-00003-of-00003.safetensors").open("r+b") as f:
        f.seek(-1, os.SEEK_END)
        f.write(b"\x01")
    ids = [open_checkpoint(tmp_path / name).id for name in "abc"]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize("index", [True, False])
def test_a_missing_shard_is_named(tmp_path: Path, index: bool) -> None:
    shard(tmp_path, index)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match="1 of its 3 files missing: model-00002-of"):
        open_checkpoint(tmp_path)


def test_a_changed_shard_is_noticed(tmp_path: Path) -> None:
    shard(tmp_path)
    file = open_checkpoint(tmp_path)
    os.utime(tmp_path / "model-00003-of-00003.safetensors", ns=(1, 1))
    file.read("layers.0.w")
    with pytest.raises(CorruptCheckpoint, match="model-00003-of-00003"):
        file.read("layers.5.w")
    with pytest.raises(CorruptCheckpoint, match="model-00003-of-00003"):
        file.check_unchanged()


@pytest.mark.parametrize(
    ("index", "error", "words"),
    [
        (b"{", CorruptCheckpoint, "not an index"),
        (b"[]", CorruptCheckpoint, "not an index"),
        (b'{"weight_map": []}', CorruptCheckpoint, "does not list"),
        (b'{"weight_map": {"a": 1}}', CorruptCheckpoint, "does not list"),
        (b'{"weight_map": ' + b"[" * 90000, CorruptCheckpoint, "not an index"),
        (b'{"weight_map": {"a": "../secret.safetensors"}}', CorruptCheckpoint, "in another folder"),
        (b'{"weight_map": {"a": "/etc/passwd"}}', CorruptCheckpoint, "in another folder"),
        (b'{"weight_map": {"a": ".."}}', CorruptCheckpoint, "in another folder"),
        (b'{"weight_map": {"a": "x\\u0000y"}}', CheckpointNotFound, "missing"),
        (b'{"weight_map": {"a": "model-00001-of-00003.safetensors"}}', CorruptCheckpoint,
         "tensor a is not in model-00001-of-00003.safetensors"),
        (b'{"weight_map": {"a": "model.safetensors.index.json"}}', UnknownLayout, "JSON"),
    ],
)  # fmt: skip
def test_a_wrong_index_is_refused_with_the_reason(
    tmp_path: Path, index: bytes, error: type[CheckpointError], words: str
) -> None:
    shard(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_bytes(index)
    with pytest.raises(error, match=words) as raised:
        open_checkpoint(tmp_path)
    assert raised.value.hint


def test_a_tensor_in_two_shards_is_refused_unless_the_index_lists_one(tmp_path: Path) -> None:
    twice, name = torch.ones(2), "model-0000{}-of-00002.safetensors"
    for k in (1, 2):
        save_file({"w": twice * k, f"v{k}": twice}, tmp_path / name.format(k))
    with pytest.raises(CorruptCheckpoint, match="w is in two of its files"):
        open_checkpoint(tmp_path)
    weight_map = {"w": name.format(2), "v1": name.format(1), "v2": name.format(2)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_checkpoint(tmp_path).read("w").tolist() == [2, 2]


def test_a_folder_opens_its_only_model(tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert open_checkpoint(tmp_path).path == tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, tmp_path / "other.safetensors")
    with pytest.raises(UnknownLayout, match=r"2 models \(model.safetensors, other.safetensors\)"):
        open_checkpoint(tmp_path)
    shard(tmp_path, index=False)  # a split checkpoint has priority over single files
    assert len(open_checkpoint(tmp_path).tensors) == 6
    shard(tmp_path, index=False, stem="second")
    with pytest.raises(UnknownLayout, match="2 models"):
        open_checkpoint(tmp_path)


def test_entry_points_open_every_model_once(tmp_path: Path) -> None:
    shard(tmp_path / "indexed")
    shard(tmp_path / "bare", index=False)
    save_file({"w": torch.ones(2)}, tmp_path / "single.safetensors")
    (tmp_path / "bare" / "a-00002-of-00002.gguf").touch()
    found = [p.relative_to(tmp_path).as_posix() for p in entry_points(tmp_path.rglob("*.*"))]
    assert found == [
        "bare/a-00002-of-00002.gguf",
        "bare/model-00001-of-00003.safetensors",
        "indexed/model.safetensors.index.json",
        "single.safetensors",
    ]
