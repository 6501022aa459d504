"""Stored weight formats: decoded numbers against the reference decoders, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers.goldens import Goldens
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.quant_formats import stored_tensors
from latent_ladder.errors import CorruptCheckpoint, UnsupportedQuantization
from latent_ladder.models.weights import dequantize
from latent_ladder.models.weights.dequantize_ggml import GGML_BLOCKS
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor, read_float, read_stored

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def open_all(path: Path, role: str = "transformer") -> Component:
    """Open all tensors of a file as one component, with the names in the file."""
    file = open_checkpoint(path)
    return Component(role, file, {name: name for name in stored_tensors(file)})


def save_and_open(folder: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Component:
    path = folder / "weights.safetensors"
    save_file(tensors, path, metadata or None)
    return open_all(path)


# --- against the reference ------------------------------------------------------------------------

GOLDEN_FILES = {
    "quant.fp8": "tiny-ltx-2.3-fp8.safetensors",
    "quant.nvfp4": "tiny-ltx-2.3-nvfp4.safetensors",
    "quant.comfy_quant": "comfy-quant-mixed.safetensors",
    "quant.legacy_scaled_fp8": "legacy-scaled-fp8-attn.safetensors",
    "quant.gguf_q8_0": "tiny-ltx-2.3-Q8_0.gguf",
    "quant.gguf_k": "k-quants.gguf",
}
IQ4_NL = "transformer_blocks.0.audio_ff.net.2.weight"
"""Tensor of k-quants.gguf with an unsupported type."""


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_dequantises_as_the_reference(golden: Goldens, name: str) -> None:
    case = golden(name)
    source = open_all(golden.path(f"quantized/{GOLDEN_FILES[name]}"))
    bare = {
        key.removeprefix("model.diffusion_model.").replace(".", "_"): key for key in source.names
    }
    for output, want in case.outputs.items():
        module = case.params.get("module", output).replace(".", "_")
        key = bare.get(output) or bare[f"{module}_weight"]
        if key == IQ4_NL:
            continue
        got = read_float(source, key, torch.float32)
        torch.testing.assert_close(got[: len(want)], want.float(), rtol=case.rtol, atol=case.atol)


def test_unsupported_format_is_reported(golden: Goldens) -> None:
    source = open_all(golden.path("quantized/k-quants.gguf"))
    with pytest.raises(UnsupportedQuantization, match=r"audio_ff\.net\.2\.weight.*iq4_nl"):
        read_stored(source, IQ4_NL)


def test_tensors_are_memory_mapped_until_moved(golden: Goldens) -> None:
    source = open_all(golden.path("quantized/tiny-ltx-2.3-nvfp4.safetensors"))
    key = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    stored = read_stored(source, key)
    again = read_stored(source, key)
    assert isinstance(stored, QuantizedTensor)
    assert isinstance(again, QuantizedTensor)
    assert stored.format == "nvfp4"
    assert stored.parts["weight"].data_ptr() == again.parts["weight"].data_ptr()
    assert stored.to("cpu") is stored
    copy = stored.clone()
    assert copy.parts["weight"].data_ptr() != stored.parts["weight"].data_ptr()
    assert torch.equal(copy.dequantize(torch.float32), stored.dequantize(torch.float32))
    assert stored.nbytes == source.stored_tensor(key).nbytes


# --- GGML blocks against gguf-py ------------------------------------------------------------------


def ggml(format: str, rows: int, columns: int, seed: int) -> tuple[QuantizedTensor, torch.Tensor]:
    """Random blocks with finite scales, and gguf-py's dequantised tensor."""
    block, random = GGML_BLOCKS[format], np.random.default_rng(seed)
    count = rows * columns // block.weights
    blocks = random.integers(0, 256, (count, block.bytes), dtype=np.uint8)
    for at in block.float16_offsets:
        half = random.normal(0, 0.01, (count, 1)).astype(np.float16)
        blocks[:, at : at + 2] = half.view(np.uint8)
    data = blocks.reshape(rows, -1)
    want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[format.upper()])
    parts = {"weight": torch.from_numpy(data)}
    return QuantizedTensor(format, (rows, columns), parts), torch.from_numpy(want)


@settings(max_examples=40, deadline=None)
@given(
    format=st.sampled_from(sorted(GGML_BLOCKS)),
    rows=st.integers(1, 9),
    blocks=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_ggml_equals_gguf_py_exactly(format: str, rows: int, blocks: int, seed: int) -> None:
    stored, want = ggml(format, rows, blocks * GGML_BLOCKS[format].weights, seed)
    assert torch.equal(stored.dequantize(torch.float32), want)
    assert torch.equal(stored.dequantize(torch.bfloat16), want.bfloat16())
    assert torch.equal(
        stored.dequantize_rows(torch.tensor([rows - 1, 0]), torch.float32), want[[rows - 1, 0]]
    )


@pytest.mark.parametrize("format", sorted(GGML_BLOCKS))
def test_ggml_in_many_chunks(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dequantize.CHUNK_WEIGHTS, "cpu", 1000)
    stored, want = ggml(format, 24, 512, 0)
    assert torch.equal(stored.dequantize(torch.float32), want)
    assert torch.equal(stored.dequantize(torch.float16), want.half())
    assert torch.equal(stored.dequantize(torch.float64), want.double())


def test_ggml_rows_that_are_not_the_blocks_rows() -> None:
    """`comfy.gguf.orig_shape`: blocks continue across the rows of the true shape."""
    stored, want = ggml("q4_0", 6, 64, 1)
    shaped = QuantizedTensor("q4_0", (8, 3, 16), stored.parts)
    assert torch.equal(shaped.dequantize(torch.float32), want.reshape(8, 3, 16))


# --- float formats against a plain reading of their definitions -----------------------------------


def swizzle(scale: torch.Tensor) -> torch.Tensor:
    """Plain (rows, columns) block scales in cuBLAS's order, by its formula for one index."""
    rows, columns = -(-scale.shape[0] // 128) * 128, -(-scale.shape[1] // 4) * 4
    r, c = torch.meshgrid(*map(torch.arange, scale.shape), indexing="ij")
    tile = (r // 128) * (columns // 4) + c // 4
    out = torch.zeros(rows * columns, dtype=torch.uint8)
    out[tile * 512 + (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4] = scale
    return out.view(rows, columns)


def nvfp4(rows: int, columns: int, seed: int) -> tuple[QuantizedTensor, torch.Tensor]:
    """Random nvfp4 matrix with padding, and its dequantised numbers in float64."""
    random = torch.Generator().manual_seed(seed)
    up = [-(-n // 16) * 16 for n in (rows, columns)]
    packed = torch.randint(0, 256, (up[0], up[1] // 2), generator=random, dtype=torch.uint8)
    scale = torch.randint(0, 127, (up[0], up[1] // 16), generator=random, dtype=torch.uint8)
    parts = {
        "weight": packed,
        "weight_scale": swizzle(scale).view(torch.float8_e4m3fn),
        "weight_scale_2": torch.rand((), generator=random) * 1e-3,
    }
    q = torch.stack((E2M1[(packed >> 4).long()], E2M1[(packed & 15).long()]), -1).flatten(1)
    by = scale.view(torch.float8_e4m3fn).double() * parts["weight_scale_2"].double()
    want = (q.double() * by.repeat_interleave(16, 1))[:rows, :columns]
    return QuantizedTensor("nvfp4", (up[0], up[1]), parts), want


def mxfp8(rows: int, columns: int, seed: int) -> tuple[QuantizedTensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    up = [-(-n // 32) * 32 for n in (rows, columns)]
    weight = torch.randn(*up, generator=random).to(torch.float8_e4m3fn)
    scale = torch.randint(100, 140, (up[0], up[1] // 32), generator=random, dtype=torch.uint8)
    by = 2.0 ** (scale.double() - 127)
    want = (weight.double() * by.repeat_interleave(32, 1))[:rows, :columns]
    parts = {"weight": weight, "weight_scale": swizzle(scale)}
    return QuantizedTensor("mxfp8", (up[0], up[1]), parts), want


@settings(max_examples=25, deadline=None)
@given(
    make=st.sampled_from([nvfp4, mxfp8]),
    rows=st.integers(1, 150),
    columns=st.integers(1, 150),
    seed=st.integers(0, 2**32 - 1),
)
def test_padded_blocks_of_any_shape(
    make: Callable[[int, int, int], tuple[QuantizedTensor, torch.Tensor]],
    rows: int,
    columns: int,
    seed: int,
) -> None:
    stored, want = make(rows, columns, seed)
    assert stored.matches_shape((rows, columns))
    assert not stored.matches_shape((rows + stored.shape[0], columns))
    dequantize.check_parts(stored.format, stored.parts, {}, stored.shape, "w")
    got = stored.crop((rows, columns)).dequantize(torch.float32)
    torch.testing.assert_close(got.double(), want, rtol=3e-7, atol=0)
    row_index = torch.tensor([0, rows - 1])
    one = stored.crop((rows, columns)).dequantize_rows(row_index, torch.float32)
    assert torch.equal(one, got[row_index])


@pytest.mark.parametrize("make", [nvfp4, mxfp8])
def test_blocks_in_many_chunks(
    make: Callable[[int, int, int], tuple[QuantizedTensor, torch.Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored, want = make(100, 72, 3)
    cropped = stored.crop((100, 72))
    whole = cropped.dequantize(torch.float32)
    monkeypatch.setitem(dequantize.CHUNK_WEIGHTS, "cpu", 1000)
    assert torch.equal(cropped.dequantize(torch.float32), whole)
    torch.testing.assert_close(cropped.dequantize(torch.bfloat16).double(), want, rtol=4e-3, atol=0)


@pytest.mark.parametrize("type_", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("scales", [None, (), (1,), (1, 1), (6,), (6, 1), (6, 4)])
def test_fp8_with_every_shape_of_scale(type_: torch.dtype, scales: tuple[int, ...] | None) -> None:
    weight = torch.randn(6, 32).to(type_)
    parts = {"weight": weight}
    want = weight.float()
    if scales is not None:
        parts["weight_scale"] = scale = torch.rand(scales) + 0.1
        spread = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(6, -1)
        want = want * spread.repeat_interleave(32 // spread.shape[1], 1)
    format = {v: k for k, v in dequantize.FP8_TYPES.items()}[type_]
    dequantize.check_parts(format, parts, {}, (6, 32), "w")
    stored = QuantizedTensor(format, (6, 32), parts)
    assert torch.equal(stored.dequantize(torch.float32), want)
    assert torch.equal(stored.dequantize(torch.bfloat16), want.bfloat16())


def test_fp8_keeps_every_code() -> None:
    for format, type_ in dequantize.FP8_TYPES.items():
        codes = torch.arange(256, dtype=torch.uint8).view(16, 16)
        got = QuantizedTensor(format, (16, 16), {"weight": codes}).dequantize(torch.float32)
        assert torch.equal(got.nan_to_num(7e4), codes.view(type_).float().nan_to_num(7e4))


@pytest.mark.parametrize("group", [4, 16, 64, 256])
def test_rotated_int8_is_restored(group: int) -> None:
    weight = torch.randn(8, 512, generator=torch.Generator().manual_seed(1))
    matrix = dequantize.hadamard_matrix(group, torch.device("cpu"))
    torch.testing.assert_close(matrix @ matrix, torch.eye(group))
    rotated = (weight.view(8, -1, group) @ matrix.T).view(8, 512)
    scale = rotated.abs().amax(1, keepdim=True) / 127
    parts = {"weight": (rotated / scale).round().to(torch.int8), "weight_scale": scale}
    options = {"convrot": True, "convrot_groupsize": group}
    got = QuantizedTensor("int8", (8, 512), parts, options).dequantize(torch.float32)
    assert (got - weight).norm() < 0.012 * weight.norm()


def test_int8_scales() -> None:
    weight = torch.randint(-128, 128, (6, 32), dtype=torch.int8)
    for scale in (torch.tensor(0.5), torch.rand(6, 1), torch.rand(6)):
        stored = QuantizedTensor("int8", (6, 32), {"weight": weight, "weight_scale": scale})
        want = weight.float() * (scale if scale.dim() == 0 else scale.view(-1, 1))
        assert torch.equal(stored.dequantize(torch.float32), want)


# --- rejected -------------------------------------------------------------------------------------


def test_nan_and_infinite_scales_are_found() -> None:
    q = torch.zeros(4, 32, dtype=torch.uint8)
    broken = [
        ("fp8_e4m3", {"weight": q, "weight_scale": torch.tensor(math.nan)}),
        ("fp8_e4m3", {"weight": q, "weight_scale": torch.tensor([1, 1, math.inf, 1])}),
        ("nvfp4", {"weight": q, "weight_scale": torch.full((128, 4), 0xFF, dtype=torch.uint8)}),
        ("nvfp4", {"weight": q, "weight_scale": q, "weight_scale_2": torch.tensor(math.inf)}),
        ("mxfp8", {"weight": q, "weight_scale": torch.full((128, 4), 0xFF, dtype=torch.uint8)}),
    ]
    for format, parts in broken:
        with pytest.raises(CorruptCheckpoint, match=r"block\.weight: .*NaN or infinite"):
            QuantizedTensor(format, (4, 32), parts).check_scales("block.weight")


@pytest.mark.parametrize("format", sorted(GGML_BLOCKS))
def test_nan_and_infinite_block_scales_are_found(format: str) -> None:
    stored, _ = ggml(format, 4, 512, 2)
    stored.check_scales("w")
    for at in GGML_BLOCKS[format].float16_offsets:
        for half in (math.inf, math.nan):
            blocks = stored.parts["weight"].clone().view(-1, GGML_BLOCKS[format].bytes)
            blocks[-1, at : at + 2] = torch.tensor([half]).half().view(torch.uint8)
            with pytest.raises(CorruptCheckpoint, match="NaN or infinite"):
                QuantizedTensor(format, (4, 512), {"weight": blocks}).check_scales("w")


F8 = torch.float8_e4m3fn
MISFITS = {
    "scales of another matrix": {
        "w.weight": torch.zeros(6, 32).to(F8),
        "w.weight_scale": torch.ones(5),
    },
    "groups that do not divide": {
        "w.weight": torch.zeros(6, 32).to(F8),
        "w.weight_scale": torch.ones(6, 5),
    },
    "plain block scales": {
        "w.weight": torch.zeros(16, 16, dtype=torch.uint8),
        "w.weight_scale": torch.ones(16, 2).to(F8),
        "w.weight_scale_2": torch.ones(()),
    },
    "no second scale": {
        "w.weight": torch.zeros(16, 16, dtype=torch.uint8),
        "w.weight_scale": torch.ones(128, 4).to(F8),
    },
}


@pytest.mark.parametrize("what", MISFITS)
def test_mismatched_parts_are_rejected(tmp_path: Path, what: str) -> None:
    source = save_and_open(tmp_path, MISFITS[what])
    with pytest.raises(CorruptCheckpoint, match=r"weights\.safetensors: w\.weight: damaged"):
        read_stored(source, "w.weight")


@pytest.mark.parametrize("group", [0, -4, 8, 256, "64", None])
def test_invalid_rotation_groups_are_rejected(group: str | int | None) -> None:
    parts = {"weight": torch.zeros(4, 32, dtype=torch.int8), "weight_scale": torch.ones(4, 1)}
    options = {"convrot": True, "convrot_groupsize": group}
    with pytest.raises(CorruptCheckpoint, match="rotated by groups of"):
        dequantize.check_parts("int8", parts, options, (4, 32), "w")


def test_integers_are_rejected_as_weights(tmp_path: Path) -> None:
    source = save_and_open(tmp_path, {"tokens": torch.arange(4)})
    with pytest.raises(UnsupportedQuantization, match=r"tokens: dtype torch\.int64"):
        read_float(source, "tokens", torch.float32)
