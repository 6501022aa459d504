"""GGUF files: read like gguf-py reads them; damaged ones are refused with the reason."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Ggml
from helpers.goldens import Goldens

from latent_ladder.checkpoints.checkpoint_file import (
    READABLE_BLOCK_TYPES,
    CheckpointFile,
    open_checkpoint,
)
from latent_ladder.checkpoints.gguf import GGML_TYPES
from latent_ladder.checkpoints.tensor_info import BLOCKS
from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptCheckpoint,
    UnknownLayout,
    UnsupportedQuantization,
)

Fill = Callable[[gguf.GGUFWriter], object]


def write(path: Path, fill: Fill, **options: object) -> Path:
    """A GGUF file as gguf-py writes it."""
    writer = gguf.GGUFWriter(path, "ltxv", **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(rows: int, width: int, kind: Ggml) -> np.ndarray:
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(kind.value)
    return rng.integers(0, 256, (rows, width // elements * size), dtype=np.uint8)


def every_value(writer: gguf.GGUFWriter) -> None:
    writer.add_uint8("n.u8", 200)
    writer.add_int8("n.i8", -7)
    writer.add_uint16("n.u16", 60000)
    writer.add_int16("n.i16", -300)
    writer.add_uint32("n.u32", 4_000_000_000)
    writer.add_int32("n.i32", -5)
    writer.add_float32("n.f32", 0.5)
    writer.add_uint64("n.u64", 1 << 63)
    writer.add_int64("n.i64", -(1 << 62))
    writer.add_float64("n.f64", 0.1)
    writer.add_bool("n.bool", True)
    writer.add_string("text", "höhe\n")
    writer.add_string("empty", "")
    writer.add_string("config", json.dumps({"transformer": {"num_layers": 48}}))
    writer.add_array("list.text", ["", "▁the", "end"])
    writer.add_array("list.i32", [1, -2, 3])
    writer.add_array("list.f32", [0.5, -1.5])
    writer.add_array("list.bool", [True, False])
    writer.add_array("list.nested", [[1, 2], [3]])


def every_tensor(writer: gguf.GGUFWriter) -> None:
    rng = np.random.default_rng(0)
    for kind in ("float32", "float16", "float64", "int8", "int16", "int32", "int64"):
        writer.add_tensor(f"plain.{kind}", (rng.random((3, 5)) * 100).astype(kind))
    writer.add_tensor("plain.vector", np.arange(7, dtype=np.float32))
    writer.add_tensor("plain.four", np.zeros((2, 3, 4, 5), np.float32))
    half = rng.integers(0, 256, (3, 10), dtype=np.uint8)
    writer.add_tensor("plain.bf16", half, raw_dtype=Ggml.BF16)
    for name in READABLE_BLOCK_TYPES:
        writer.add_tensor(name, blocks(3, 512, Ggml[name]), raw_dtype=Ggml[name])


@pytest.fixture(scope="module")
def all_types_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "rich.gguf"

    def fill(writer: gguf.GGUFWriter) -> None:
        every_value(writer)
        every_tensor(writer)

    return write(path, fill)


def check_equal(file: CheckpointFile, reference: gguf.GGUFReader) -> None:
    """Every tensor and value as gguf-py has it."""
    assert list(file.tensors) == [t.name for t in reference.tensors]
    for tensor in reference.tensors:
        info, got = file.tensors[tensor.name], file.read(tensor.name)
        assert info.dtype == tensor.tensor_type.name
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert info.nbytes == tensor.n_bytes
        assert file.read_bytes(tensor.name) == tensor.data.tobytes()
        assert bits(got) == bits(file.load(tensor.name)) == tensor.data.tobytes()
        if info.dtype in READABLE_BLOCK_TYPES:
            assert (got.dtype, got.shape) == (torch.uint8, tensor.data.shape)
        else:
            assert got.shape == info.shape
    fields = {k: f for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert list(file.kv) == list(fields)
    for key, field in fields.items():
        if key != "list.nested":  # gguf-py flattens it
            assert file.kv[key] == field.contents(), key


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def test_all_values_and_tensors_are_read_as_by_gguf_py(all_types_file: Path) -> None:
    file = open_checkpoint(all_types_file)
    check_equal(file, gguf.GGUFReader(all_types_file))
    assert file.container == "gguf"
    assert file.kv["list.nested"] == [[1, 2], [3]]
    assert file.config == {"transformer": {"num_layers": 48}}
    assert file.metadata["text"] == "höhe\n"
    assert "n.u8" not in file.metadata
    assert file.read("plain.bf16").dtype == torch.bfloat16
    assert file.header_bytes % 32 == 0


@pytest.mark.parametrize("name", ["k-quants", "tiny-ltx-2.3-Q8_0"])
def test_golden_files_are_read_as_by_gguf_py(golden: Goldens, name: str) -> None:
    path = golden.path(f"quantized/{name}.gguf")
    check_equal(open_checkpoint(path), gguf.GGUFReader(path))


def test_the_table_of_types_is_that_of_gguf_py() -> None:
    sizes = {kind.value: (kind.name, size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {number: (name, BLOCKS[name]) for number, name in GGML_TYPES.items()}
    assert ours == sizes


def test_version_2_and_another_alignment_are_read(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(256)
        every_tensor(writer)

    path = write(tmp_path / "x.gguf", fill)
    check_equal(open_checkpoint(path), gguf.GGUFReader(path))
    content = bytearray(path.read_bytes())
    content[4] = 2
    path.write_bytes(content)
    check_equal(open_checkpoint(path), gguf.GGUFReader(path))


def test_original_shapes_replace_stored_ones(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_array("comfy.gguf.orig_shape.conv", [8, 2, 4, 2, 2])
        writer.add_array("comfy.gguf.orig_shape.table", [1, 512])
        writer.add_tensor("conv", np.arange(256, dtype=np.float32).reshape(4, 64))
        writer.add_tensor("table", blocks(2, 256, Ggml.Q4_K), raw_dtype=Ggml.Q4_K)

    file = open_checkpoint(write(tmp_path / "x.gguf", fill))
    assert file.tensors["conv"].shape == file.read("conv").shape == (8, 2, 4, 2, 2)
    assert file.read("conv").flatten().tolist() == list(range(256))
    assert file.tensors["table"] == ((1, 512), "Q4_K")
    assert file.read("table").shape == (2, 144)


def test_unsupported_types_are_errors_only_when_read(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("plain", np.ones(4, np.float32))
        writer.add_tensor("small", blocks(2, 256, Ggml.IQ2_XS), raw_dtype=Ggml.IQ2_XS)
        writer.add_tensor("future", blocks(1, 256, Ggml.Q8_0), raw_dtype=Ggml.Q8_0)

    path = write(tmp_path / "x.gguf", fill)
    at = path.read_bytes().index(b"future") + 6
    patch(path, at + 4 + 16, struct.pack("<I", 77))
    file = open_checkpoint(path)
    assert file.read("plain").tolist() == [1, 1, 1, 1]
    assert file.tensors["small"] == ((2, 256), "IQ2_XS")
    assert file.tensors["future"] == ((1, 256), "GGML_77")
    for name, kind in (("small", "IQ2_XS"), ("future", "GGML_77")):
        with pytest.raises(UnsupportedQuantization, match=f"{name} is stored as {kind}.*Q4_K"):
            file.read(name)
    with pytest.raises(UnsupportedQuantization):
        file.read_bytes("future")


def test_arrays_are_parsed_on_access(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_token_list([b"\xe2\x96", "▁a", "b"])
        writer.add_token_scores([0.0, -1.0, -2.0])

    kv: Any = open_checkpoint(write(tmp_path / "x.gguf", fill)).kv
    assert "tokenizer.ggml.tokens" not in kv._parsed
    tokens = kv["tokenizer.ggml.tokens"]
    assert tokens[1:] == ["▁a", "b"]
    assert tokens[0].encode(errors="surrogateescape") == b"\xe2\x96"
    assert kv["tokenizer.ggml.tokens"] is tokens
    assert "tokenizer.ggml.scores" not in kv._parsed


def test_an_empty_tensor_and_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    entry = text("w") + struct.pack("<I2QIQ", 2, 0, 4, 0, 0)
    path.write_bytes(header(1, 0) + entry)
    file = open_checkpoint(path)
    assert file.read("w").shape == (4, 0)
    path.write_bytes(header(0, 0))
    assert open_checkpoint(path).tensors == {}


# --- split files
# ---------------------------------------------------------------------------------------


def split(folder: Path) -> dict[str, float]:
    """A split model, as gguf-py and llama-gguf-split write it."""

    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_string("config", '{"transformer": {"a": 1}}')
        for k in range(6):
            writer.add_tensor(f"w{k}", np.full((4, 8), float(k), np.float32))

    write(folder / "m.gguf", fill, split_max_tensors=2)
    return {f"w{k}": float(k) for k in range(6)}


@pytest.mark.parametrize("opened_as", ["", "m-00001-of-00003.gguf", "m-00002-of-00003.gguf"])
def test_a_split_file_is_one_checkpoint(tmp_path: Path, opened_as: str) -> None:
    whole = split(tmp_path)
    file = open_checkpoint(tmp_path / opened_as)
    assert {n: file.read(n).unique().tolist() for n in file.tensors} == {
        n: [v] for n, v in whole.items()
    }
    assert file.config == {"transformer": {"a": 1}}
    assert file.path.name == "m-00001-of-00003.gguf"


def test_parts_that_are_missing_or_misnamed(tmp_path: Path) -> None:
    split(tmp_path)
    (tmp_path / "m-00003-of-00003.gguf").rename(tmp_path / "third.gguf")
    with pytest.raises(CheckpointNotFound, match=r"m-00003-of-00003\.gguf"):
        open_checkpoint(tmp_path / "m-00001-of-00003.gguf")
    with pytest.raises(UnknownLayout, match="one of the 3 files of a split") as raised:
        open_checkpoint(tmp_path / "third.gguf")
    assert "llama-gguf-split" in (raised.value.hint or "")
    (tmp_path / "m-00002-of-00003.gguf").rename(tmp_path / "m-00003-of-00003.gguf")
    (tmp_path / "third.gguf").rename(tmp_path / "m-00002-of-00003.gguf")
    with pytest.raises(UnknownLayout, match=r"m-00002-of-00003\.gguf: one of"):
        open_checkpoint(tmp_path)


# --- wrong input ---------------------------------------------------------------------------------


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as opened:
        opened.seek(at)
        opened.write(data)


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def header(tensors: int, values: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


def value(kind: int, data: bytes, key: str | bytes = "k") -> bytes:
    return text(key) + struct.pack("<I", kind) + data


def array(kind: int, count: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + data


def entry(
    name: str | bytes = "w", dims: tuple[int, ...] = (8,), kind: int = 0, at: int = 0
) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, at)


HUGE = 1 << 60
PAD = bytes(4096)
WRONG = {
    "cut in the magic": (b"GGUF\x03", CorruptCheckpoint, "longer than the file of 5 bytes"),
    "version 1": (header(0, 0, 1), UnknownLayout, "version 1, expected 2 or 3"),
    "version 9": (header(0, 0, 9), UnknownLayout, "version 9"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), UnknownLayout, "big-endian"),
    "tensors": (header(HUGE, 0) + PAD, CorruptCheckpoint, "claims 1,152,921,504,606,846,976 t"),
    "values": (header(0, HUGE) + PAD, CorruptCheckpoint, "claims 1,152,921,504,606,846,976 v"),
    "key length": (header(0, 1) + struct.pack("<Q", HUGE) + PAD, CorruptCheckpoint, "longer than"),
    "key": (header(0, 1) + value(4, PAD, b"\xff\xfe"), CorruptCheckpoint, "not UTF-8"),
    "same key": (header(0, 2) + value(4, b"1234") * 2 + PAD, CorruptCheckpoint, "contains k twice"),
    "value type": (header(0, 1) + value(13, PAD), CorruptCheckpoint, "unknown type 13"),
    "string": (header(0, 1) + value(8, struct.pack("<Q", HUGE)), CorruptCheckpoint, "longer than"),
    "array": (header(0, 1) + value(9, array(4, HUGE, PAD)), CorruptCheckpoint, "longer than"),
    "array type": (header(0, 1) + value(9, array(99, 3, PAD)), CorruptCheckpoint, "type 99"),
    "strings": (header(0, 1) + value(9, array(8, HUGE, PAD)), CorruptCheckpoint, "longer than"),
    "one string": (
        header(0, 1) + value(9, array(8, 3, struct.pack("<Q", HUGE) + PAD)),
        CorruptCheckpoint,
        "longer than",
    ),
    "cut strings": (
        header(0, 1) + value(9, array(8, 2, text("abc"))),
        CorruptCheckpoint,
        "longer than",
    ),
    "nested": (header(0, 1) + value(9, array(9, 1) * 9 + PAD), CorruptCheckpoint, "deeper than"),
    "alignment": (
        header(0, 1) + value(4, struct.pack("<I", 0), "general.alignment"),
        CorruptCheckpoint,
        "alignment is 0",
    ),
    "alignment type": (
        header(0, 1) + value(8, text("32"), "general.alignment"),
        CorruptCheckpoint,
        "alignment is 32",
    ),
    "same name": (header(2, 0) + entry() * 2 + PAD, CorruptCheckpoint, "contains w twice"),
    "rank": (header(1, 0) + entry(dims=(1,) * 9) + PAD, CorruptCheckpoint, "9 dimensions"),
    "rank 2^32": (
        header(1, 0) + text("w") + struct.pack("<I", 2**32 - 1) + PAD,
        CorruptCheckpoint,
        "4294967295 dimensions",
    ),
    "dimensions": (header(1, 0) + entry(dims=(HUGE,) * 4) + PAD, CorruptCheckpoint, "be F32"),
    "row": (header(1, 0) + entry(dims=(33, 2), kind=8) + PAD, CorruptCheckpoint, "cannot be Q8_0"),
    "offset": (header(1, 0) + entry(at=1 << 40) + PAD, CorruptCheckpoint, "truncated, 1,0"),
    "grid": (header(1, 0) + entry(at=4) + PAD, CorruptCheckpoint, "not aligned to 32 bytes"),
    "overlap": (
        header(2, 0) + entry("a", (64,)) + entry("b", (8,), at=32) + PAD,
        CorruptCheckpoint,
        "b overlaps",
    ),
    "orig_shape": (
        header(1, 1) + value(9, array(5, 1, struct.pack("<i", 9)), "comfy.gguf.orig_shape.w")
        + entry() + PAD,
        CorruptCheckpoint,
        "cannot be .9.",
    ),
    "orig_shape type": (
        header(1, 1) + value(8, text("8"), "comfy.gguf.orig_shape.w") + entry() + PAD,
        CorruptCheckpoint,
        "cannot be 8",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_damaged_header_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    content, error, words = WRONG[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(error, match=words) as raised:
        open_checkpoint(path)
    assert raised.value.hint
    assert len(raised.value.message) < 500


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path, golden: Goldens) -> None:
    whole = golden.path("quantized/k-quants.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 900, 7), len(whole) - 40, len(whole) - 33]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(path)


def test_zeros_and_wrong_counts_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "hole.gguf"
    path.write_bytes(header(1 << 20, 1 << 20))
    with path.open("r+b") as opened:
        opened.truncate(46_000_000_000)
    with pytest.raises(CorruptCheckpoint, match="twice"):
        open_checkpoint(path)
    path.write_bytes(header(0, 1) + value(9, array(8, 5_000_000_000)))
    with path.open("r+b") as opened:
        opened.truncate(46_000_000_000)
    with pytest.raises(CorruptCheckpoint, match="longer than 100,000,000 bytes"):
        open_checkpoint(path)
