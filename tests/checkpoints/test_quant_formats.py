"""All conventions for quantised weights are read, and other tensors are not taken for them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from safetensors.torch import save_file
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, TensorInfo, open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.checkpoints.quant_formats import StoredTensor, describe_precision, stored_tensors
from latent_ladder.errors import CorruptCheckpoint, UnsupportedQuantization

Kinds = Mapping[str, tuple[tuple[int, ...], str]]
LAYER = "model.diffusion_model.transformer_blocks.0.attn1.to_q"


def header(kinds: Kinds, metadata: Mapping[str, str] | None = None, **more: Any) -> CheckpointFile:
    """A file without data: shapes and stored types."""
    tensors = {name: TensorInfo(*kind) for name, kind in kinds.items()}
    return CheckpointFile(Path("model.safetensors"), 0, metadata or {}, tensors, **more)


def marker(**values: Any) -> Tensor:
    return torch.tensor(list(json.dumps(values).encode()), dtype=torch.uint8)


def one_layer(
    folder: Path, parts: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Any:
    """The tensors of a file with one layer."""
    save_file(
        {f"{LAYER}.{p}": t.clone() for p, t in parts.items()}, folder / "x.safetensors", metadata
    )
    return stored_tensors(open_checkpoint(folder / "x.safetensors"))


E4M3, E5M2, U8, I8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.uint8, torch.int8
E8M0, F32, BF16 = torch.float8_e8m0fnu, torch.float32, torch.bfloat16


def zeros(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.zeros(shape, dtype=U8 if dtype.itemsize == 1 else dtype).view(dtype)


SCALE, ROWS, CHANNELS = zeros(), zeros(32, 1), zeros(32)
SQUARE = zeros(32, 32, dtype=E4M3)
PACKED = {
    "weight": zeros(32, 16, dtype=U8),
    "weight_scale": zeros(128, 4, dtype=E4M3),
    "weight_scale_2": SCALE,
}
ONE, TWO = "weight_scale", "weight_scale weight_scale_2"
WHOLE = (32, 32)


@pytest.mark.parametrize(
    ("parts", "format", "kept"),
    [
        ({"weight": SQUARE, "weight_scale": SCALE}, "fp8_e4m3", ONE),
        ({"weight": SQUARE, "scale_weight": SCALE, "scale_input": SCALE}, "fp8_e4m3", ONE),
        ({"weight": SQUARE, "weight_scale": ROWS, "input_scale": SCALE}, "fp8_e4m3", ONE),
        ({"weight": zeros(32, 32, dtype=E5M2), "weight_scale": SCALE}, "fp8_e5m2", ONE),
        ({"weight": SQUARE}, "fp8_e4m3", ""),
        ({"weight": SQUARE, "bias": zeros(32, dtype=E4M3)}, "fp8_e4m3", ""),
        (PACKED | {"input_scale": SCALE}, "nvfp4", TWO),
        (PACKED | {"weight_scale": zeros(128, 4, dtype=U8)}, "nvfp4", TWO),
        (PACKED | {"pre_quant_scale": CHANNELS}, "nvfp4", f"{TWO} pre_quant_scale"),
        ({"weight": SQUARE, "weight_scale": zeros(128, 4, dtype=E8M0)}, "mxfp8", ONE),
        ({"weight": SQUARE, "weight_scale": zeros(128, 4, dtype=U8)}, "mxfp8", ONE),
        ({"weight": zeros(32, 32, dtype=I8), "weight_scale": SCALE}, "int8", ONE),
        ({"weight": zeros(32, 32, dtype=BF16), "bias": zeros(32)}, "bf16", ""),
    ],
)
def test_without_a_marker_the_stored_types_determine_the_format(
    tmp_path: Path, parts: Mapping[str, Tensor], format: str, kept: str
) -> None:
    tensors = one_layer(tmp_path, parts)
    found = tensors.check(f"{LAYER}.weight")
    assert (found.format, found.shape) == (format, WHOLE)
    assert set(found.parts) == {"weight", *kept.split()}
    assert set(tensors) == {f"{LAYER}.{p}" for p in ("weight", "bias") if p in parts}
    needed = [t for p, t in parts.items() if p in ("weight", *kept.split(), "scale_weight")]
    assert found.nbytes == sum(t.numel() * t.element_size() for t in needed)


@pytest.mark.parametrize(
    ("format", "parts", "name"),
    [
        ("float8_e4m3fn", {"weight": SQUARE, "weight_scale": SCALE}, "fp8_e4m3"),
        ("nvfp4", PACKED, "nvfp4"),
        ("mxfp8", {"weight": SQUARE, "weight_scale": zeros(128, 4, dtype=U8)}, "mxfp8"),
        ("int8_tensorwise", {"weight": zeros(32, 32, dtype=I8), "weight_scale": SCALE}, "int8"),
    ],
)
@pytest.mark.parametrize("style", ["tensor", "header", "nested"])
def test_markers(
    tmp_path: Path, format: str, parts: Mapping[str, Tensor], name: str, style: str
) -> None:
    options = {"convrot": True, "convrot_groupsize": 16}
    if style == "header":
        layers = {LAYER: {"format": format, **options}, "other.layer": {"format": "nvfp4"}}
        text = json.dumps({"format_version": "1.0", "layers": layers})
        tensors = one_layer(tmp_path, parts, {"_quantization_metadata": text})
    else:
        says = {"params": options} if style == "nested" else options
        tensors = one_layer(tmp_path, {**parts, "comfy_quant": marker(format=format, **says)})
    found = tensors[f"{LAYER}.weight"]
    assert (found.format, found.shape, found.options) == (name, WHOLE, options)
    assert list(tensors) == [f"{LAYER}.weight"]


FOREIGN: Mapping[str, dict[str, Tensor]] = {
    "convrot_w4a4": {"weight_scale": SCALE},
    "asym_w4a8_int8": {"weight_s_rel": SCALE, "weight_s_channel": SCALE, "weight_codebook": SCALE},
    "awq_w4a16": {"weight_scale": SCALE, "weight_zeros": SCALE},
    "svdquant_w4a4": {"weight_scale": SCALE, "proj_down": SCALE, "proj_up": SCALE},
}


@pytest.mark.parametrize("format", FOREIGN)
def test_known_formats_without_a_decoder_are_refused_when_used(tmp_path: Path, format: str) -> None:
    parts = {"weight": zeros(32, 16, dtype=I8), **FOREIGN[format]}
    tensors = one_layer(tmp_path, {**parts, "comfy_quant": marker(format=format)})
    assert list(tensors) == [f"{LAYER}.weight"]
    assert tensors[f"{LAYER}.weight"].shape == WHOLE
    with pytest.raises(UnsupportedQuantization) as raised:
        tensors.check(f"{LAYER}.weight")
    for word in (LAYER, format, "nvfp4", "q4_k"):
        assert word in raised.value.message


def test_a_float_with_a_scale_is_not_a_plain_float(tmp_path: Path) -> None:
    """Ignoring the scale would silently give wrong numbers."""
    tensors = one_layer(tmp_path, {"weight": zeros(32, 32, dtype=BF16), "weight_scale": SCALE})
    with pytest.raises(UnsupportedQuantization, match="bf16 with weight_scale"):
        tensors.check(f"{LAYER}.weight")


@pytest.mark.parametrize("kind", ["IQ4_XS", "IQ2_XXS", "MXFP4", "GGML_99", "F8_E4M3FNUZ"])
def test_unknown_stored_types_are_refused_when_used(kind: str) -> None:
    tensors = stored_tensors(header({"w.weight": ((256, 256), kind)}))
    assert tensors["w.weight"].shape == (256, 256)
    with pytest.raises(UnsupportedQuantization, match=f"w.weight is stored as {kind.lower()}"):
        tensors.check("w.weight")


def test_tensors_that_are_not_weights_keep_their_type() -> None:
    tensors = stored_tensors(header({"spiece_model": ((99,), "U8"), "steps": ((), "I64")}))
    assert tensors.check("spiece_model") == StoredTensor(
        "u8", (99,), {"weight": "spiece_model"}, {}, 99
    )
    assert tensors.check("steps").format == "i64"


def test_a_scale_without_its_weight_is_a_separate_tensor() -> None:
    """A strict load reports it then."""
    tensors = stored_tensors(header({"a.weight_scale": ((), "F32"), "b.weight": ((2,), "F32")}))
    assert list(tensors) == ["a.weight_scale", "b.weight"]


def test_the_marker_of_a_whole_file_is_not_a_tensor() -> None:
    kinds = {"x.scaled_fp8": ((2,), "F8_E4M3"), "scaled_fp8": ((0,), "F32"), "x.a": ((2,), "F32")}
    assert list(stored_tensors(header(kinds))) == ["x.a"]


@pytest.mark.parametrize(
    ("says", "words"),
    [(b"{", "not JSON"), (b"[1]", "has no format"), (b'{"format": 4}', "has no format")],
)
def test_a_damaged_marker(tmp_path: Path, says: bytes, words: str) -> None:
    text = torch.tensor(list(says), dtype=U8)
    tensors = one_layer(tmp_path, {"weight": SQUARE, "comfy_quant": text})
    with pytest.raises(CorruptCheckpoint, match=words):
        tensors[f"{LAYER}.weight"]


def test_a_marker_must_match_the_stored_type(tmp_path: Path) -> None:
    tensors = one_layer(tmp_path, {**PACKED, "comfy_quant": marker(format="int8_tensorwise")})
    with pytest.raises(CorruptCheckpoint, match="marked as int8_tensorwise and stored as U8"):
        tensors[f"{LAYER}.weight"]
    dequantised = one_layer(tmp_path, {"weight": SCALE, "comfy_quant": marker(format="nvfp4")})
    assert dequantised[f"{LAYER}.weight"].format == "f32"


def test_a_damaged_header() -> None:
    with pytest.raises(CorruptCheckpoint, match="_quantization_metadata"):
        stored_tensors(header({}, {"_quantization_metadata": "{"}))


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "formats"),
    [
        ("comfy-quant-mixed.safetensors", {"fp8_e4m3": 1, "nvfp4": 2, "mxfp8": 1, "int8": 1}),
        ("legacy-scaled-fp8-attn.safetensors", {"fp8_e4m3": 4}),
        ("tiny-ltx-2.3-fp8.safetensors", {"fp8_e4m3": 34}),
        ("tiny-ltx-2.3-Q8_0.gguf", {"q8_0": 50}),
    ],
)
def test_golden_files(golden: Goldens, name: str, formats: dict[str, int]) -> None:
    part = components(open_checkpoint(golden.path(f"quantized/{name}")))["transformer"]
    found = Counter(part.stored_tensor(key).format for key in part.names)
    assert {f: n for f, n in found.items() if f not in ("bf16", "f32", "f16")} == formats
    part.check_readable()
    assert not any(key.endswith(("_scale", "_scale_2", "comfy_quant")) for key in part.names)


def test_shapes_of_packed_weights_are_those_after_decoding(golden: Goldens) -> None:
    def shapes(name: str) -> dict[str, tuple[int, ...]]:
        file = open_checkpoint(golden.path(f"quantized/tiny-ltx-2.3-{name}"))
        return components(file)["transformer"].shapes()

    plain = shapes("fp8.safetensors")
    assert shapes("nvfp4.safetensors") == plain
    assert shapes("Q8_0.gguf") == plain


def test_precision_counts_weights() -> None:
    """A third of the weights, in bf16, needs most of the bytes if the others have four bits."""
    file = header(
        {
            "a.weight": ((64, 32), "U8"),
            "a.weight_scale": ((128, 4), "F8_E4M3"),
            "a.weight_scale_2": ((), "F32"),
            "b.weight": ((64, 32), "BF16"),
            "tokens": ((10_000,), "U8"),
        }
    )
    tensors = stored_tensors(file)
    assert tensors.nbytes("b.weight") > 1.5 * tensors.nbytes("a.weight")
    assert describe_precision(tensors, tensors) == "nvfp4"
    thirds = {n: ((8, 8), kind) for n, kind in (("a", "F16"), ("b", "F32"), ("c", "BF16"))}
    assert describe_precision(stored_tensors(header(thirds)), thirds) == "mixed"


@pytest.mark.parametrize(
    ("number", "label"),
    [(15, "q4_k_m"), (14, "q4_k_s"), (17, "q4_k"), (None, "q4_k"), ("x", "q4_k")],
)
def test_a_gguf_mix_has_its_name(number: Any, label: str) -> None:
    kinds = {"a.weight": ((256, 512), "Q4_K"), "b.weight": ((256, 256), "Q6_K")}
    kv = {} if number is None else {"general.file_type": number}
    file = header(kinds, container="gguf", kv=kv)
    assert describe_precision(stored_tensors(file), kinds) == label


def test_the_type_of_the_embeddings_does_not_name_a_mix() -> None:
    """llama.cpp stores them as Q8_0; in a small model they are most of the weights."""
    kinds = {
        "a.weight": ((256, 256), "Q4_K"),
        "b.weight": ((256, 256), "Q6_K"),
        "token_embd.weight": ((4096, 256), "Q8_0"),
    }
    for number, label in ((15, "q4_k_m"), (None, "q4_k")):
        kv = {} if number is None else {"general.file_type": number}
        file = header(kinds, container="gguf", kv=kv)
        assert describe_precision(stored_tensors(file), kinds) == label
    alone = {"token_embd.weight": kinds["token_embd.weight"]}
    assert describe_precision(stored_tensors(header(alone, container="gguf")), alone) == "q8_0"
