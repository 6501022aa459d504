"""Strict loading through the meta device, of float and quantised weights; conversion to fp8."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from helpers.transformer_inputs import inputs_of, linear
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.errors import CorruptCheckpoint, UnknownLayout, UnsupportedQuantization
from latent_ladder.models.transformer.model import LoadOptions, Transformer, load_transformer
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.loading import StoredWeight, WeightLocation, load_module
from latent_ladder.models.weights.quantize_fp8 import quantize_fp8, write_fp8_checkpoint
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor


class Net(nn.Module):
    """A layer, a parameter not made by ``torch.empty``, and a computed buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("angles", torch.arange(3.0), persistent=False)


TENSORS = {
    "layer.weight": torch.ones(3, 4, dtype=torch.bfloat16),
    "layer.bias": torch.zeros(3, dtype=torch.bfloat16),
    "scale": torch.full((3,), 2.0),
}


def load(tensors: Mapping[str, StoredWeight] | None = None, **kwargs: Any) -> Net:
    readers = {k: (lambda v=v: v) for k, v in (tensors or TENSORS).items()}
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32, "label": "net"} | kwargs
    return load_module(Net, readers, **options)


def test_assigns_converts_and_keeps_computed_buffers() -> None:
    net = load(dtype=torch.float16, keep_float32=lambda name: name == "scale")
    assert net.layer.weight.dtype == torch.float16
    assert net.scale.dtype == torch.float32
    torch.testing.assert_close(net.angles, torch.arange(3.0))
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert net.layer(torch.ones(1, 4, dtype=torch.float16)).tolist() == [[4.0, 4.0, 4.0]]


def test_missing_and_unexpected_names_are_rejected() -> None:
    with pytest.raises(UnknownLayout, match=r"1 missing \(scale\); 1 unexpected \(other\)"):
        load({k: v for k, v in TENSORS.items() if k != "scale"} | {"other": torch.ones(1)})


def test_wrong_shapes_are_rejected() -> None:
    with pytest.raises(UnknownLayout, match=r"scale has shape \[4\], the model needs \[3\]"):
        load(TENSORS | {"scale": torch.ones(4)})


def test_dimensions_of_size_one_may_be_missing() -> None:
    assert load(TENSORS | {"scale": torch.full((1, 3), 2.0)}).scale.tolist() == [2.0, 2.0, 2.0]


# --- quantised ------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """Our Linear, torch's Linear and a table, all with quantised weights."""

    def __init__(self) -> None:
        super().__init__()
        self.ours = Linear(40, 8)
        self.foreign = nn.Linear(40, 8)
        self.table = nn.Parameter(torch.empty(8, 40))


def q8_0(rows: int, columns: int) -> QuantizedTensor:
    blocks = torch.randint(0, 256, (rows * columns // 32, 34), dtype=torch.uint8)
    blocks[:, :2] = torch.rand(len(blocks), 1).half().view(torch.uint8)
    return QuantizedTensor("q8_0", (rows, columns), {"weight": blocks.view(rows, -1)})


def load_mixed(**changes: StoredWeight) -> tuple[dict[str, StoredWeight], Mixed]:
    weight = quantize_fp8(torch.randn(8, 40))
    tensors: dict[str, StoredWeight] = {
        "ours.weight": weight,
        "ours.bias": torch.randn(8),
        "foreign.weight": weight,
        "foreign.bias": torch.randn(8),
        "table": weight,
        **changes,
    }
    read = {k: (lambda v=v: v) for k, v in tensors.items()}
    return tensors, load_module(Mixed, read, device="cpu", dtype=torch.float32, label="mixed")


def test_our_linear_stays_quantised_and_other_layers_are_dequantised() -> None:
    tensors, net = load_mixed()
    stored = tensors["table"]
    assert isinstance(stored, QuantizedTensor)
    want = stored.dequantize(torch.float32)
    assert net.ours.weight is None
    assert net.ours.quantized_weight.format == "fp8_e4m3"
    assert torch.equal(net.foreign.weight, want)
    assert torch.equal(net.table, want)
    x = torch.randn(2, 40)
    assert torch.equal(net.ours(x), nn.functional.linear(x, want, net.ours.bias))
    assert (
        net.ours.quantized_weight.parts["weight"].data_ptr()
        != tensors["table"].parts["weight"].data_ptr()
    )


def test_padding_is_removed() -> None:
    scale = torch.ones(128, 4).to(torch.float8_e4m3fn)
    packed = torch.randint(0, 256, (16, 24), dtype=torch.uint8)
    parts = {"weight": packed, "weight_scale": scale, "weight_scale_2": torch.ones(())}
    _, net = load_mixed(**{"ours.weight": QuantizedTensor("nvfp4", (16, 48), parts)})
    assert (net.ours.in_features, net.ours.out_features) == (40, 8)
    assert net.ours(torch.zeros(1, 40)).shape == (1, 8)
    with pytest.raises(
        UnknownLayout, match=r"ours\.weight has shape \[8, 64\] \(q8_0\), the model"
    ):
        load_mixed(**{"ours.weight": q8_0(8, 64)})


def test_invalid_scales_are_found_while_loading() -> None:
    broken = quantize_fp8(torch.randn(8, 40))
    broken.parts["weight_scale"].fill_(float("nan"))
    with pytest.raises(CorruptCheckpoint, match=r"mixed: ours\.weight: damaged, a scale"):
        load_mixed(**{"ours.weight": broken})


# --- whole transformers ---------------------------------------------------------------------------

FILES = {
    "fp8": "tiny-ltx-2.3-fp8.safetensors",
    "nvfp4": "tiny-ltx-2.3-nvfp4.safetensors",
    "gguf_q8_0": "tiny-ltx-2.3-Q8_0.gguf",
}


def transformer_of(golden: Goldens, name: str, **options: Any) -> Transformer:
    path = golden.path(f"quantized/{FILES[name]}")
    return load_transformer(components(open_checkpoint(path))["transformer"], **options)


def run(model: Transformer, case: GoldenCase) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        both: tuple[torch.Tensor, torch.Tensor] = model(*inputs_of(model.config, case))
        return both


@pytest.mark.parametrize("name", FILES)
def test_reference_forward_on_quantised_weights(golden: Goldens, name: str) -> None:
    case, model = golden(f"quant.{name}_forward"), transformer_of(golden, name)
    assert any(m.quantized_weight is not None for m in model.modules() if isinstance(m, Linear))
    for output, got in zip(("video_velocity", "audio_velocity"), run(model, case), strict=True):
        case.check(output, got)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["pinned", "file"])
@pytest.mark.parametrize("as_stored", [False, True])
def test_weight_location_does_not_change_results(
    golden: Goldens, name: str, place: WeightLocation, as_stored: bool
) -> None:
    case = golden(f"quant.{name}_forward")
    want = run(transformer_of(golden, name), case)
    model = transformer_of(golden, name, load=LoadOptions(as_stored=as_stored, blocks=place))
    for got, expected in zip(run(model, case), want, strict=True):
        assert torch.equal(got, expected)


def test_mapped_blocks_stay_in_the_file(golden: Goldens) -> None:
    path = golden.path(f"quantized/{FILES['fp8']}")
    component = components(open_checkpoint(path))["transformer"]
    key = "transformer_blocks.0.attn1.to_q.weight"
    model = load_transformer(component, load=LoadOptions(as_stored=True, blocks="file"))
    layer = linear(model, "transformer_blocks.0.attn1.to_q")
    assert layer.quantized_weight is not None
    assert layer.quantized_weight.parts["weight"].data_ptr() == component.read(key).data_ptr()
    assert linear(model, "transformer_blocks.1.attn1.to_q").weight.dtype == torch.bfloat16


# --- to fp8 ---------------------------------------------------------------------------------------


def tiny(golden: Goldens) -> dict[str, Component]:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return components(open_checkpoint(path))


@given(st.integers(0, 2**32 - 1), st.floats(-30, 30), st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_scaled_fp8_is_within_its_rounding(
    seed: int, exponent: float, rows: int, columns: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    weight = (torch.randn(rows, columns, generator=random).double() * 2**exponent).float()
    stored = quantize_fp8(weight)
    got = stored.dequantize(torch.float32)
    step = weight.abs().max() / 448 * 2**-9  # half a step of the smallest numbers
    assert ((got - weight).abs() <= weight.abs() * 2**-4 + step * 1.001).all()
    assert got.abs().max() == pytest.approx(weight.abs().max().item(), rel=1e-6)


def test_zeros_stay_zeros() -> None:
    assert not quantize_fp8(torch.zeros(3, 5)).dequantize(torch.float32).any()


def test_fp8_while_loading_converts_only_large_matrices(golden: Goldens) -> None:
    component = tiny(golden)["transformer"]
    model = load_transformer(component, load=LoadOptions(precision="fp8"))
    formats = {n: m.quantized_weight for n, m in model.named_modules() if isinstance(m, Linear)}
    converted = {name for name, stored in formats.items() if stored is not None}
    assert len(converted) == 2 * (4 * 4 + 2)
    assert not any(
        "gate" in n or "adaln" in n or ".audio_attn" in n or "audio_ff" in n for n in converted
    )
    assert all(n.startswith("transformer_blocks.") for n in converted)
    case = golden("dit.uniform")
    for output, got in zip(("video_velocity", "audio_velocity"), run(model, case), strict=True):
        want = case.outputs[output]
        assert 0 < (got - want).norm() < 0.1 * want.norm()


def test_written_fp8_checkpoint_equals_conversion_while_loading(
    golden: Goldens, tmp_path: Path
) -> None:
    parts = tiny(golden)
    path = tmp_path / "fp8.safetensors"
    write_fp8_checkpoint(list(parts.values()), path)
    assert [p.name for p in tmp_path.iterdir()] == ["fp8.safetensors"]
    again = components(open_checkpoint(path))
    assert again.keys() == parts.keys()
    assert again["transformer"].config == parts["transformer"].config
    vae, source = again["video_vae"], parts["video_vae"]
    assert all(torch.equal(vae.read(key), source.read(key)) for key in source.names)
    case = golden("dit.uniform")
    want = run(load_transformer(parts["transformer"], load=LoadOptions(precision="fp8")), case)
    for got, expected in zip(run(load_transformer(again["transformer"]), case), want, strict=True):
        assert torch.equal(got, expected)
    with pytest.raises(UnsupportedQuantization, match="is already quantised"):
        write_fp8_checkpoint([again["transformer"]], tmp_path / "twice.safetensors")
    assert not (tmp_path / "twice.safetensors").exists()


def test_safetensors_reads_the_written_file(golden: Goldens, tmp_path: Path) -> None:
    write_fp8_checkpoint([tiny(golden)["transformer"]], tmp_path / "fp8.safetensors")
    with safe_open(tmp_path / "fp8.safetensors", "pt") as file:
        layers = json.loads(file.metadata()["_quantization_metadata"])["layers"]
        layer = "model.diffusion_model.transformer_blocks.0.ff.net.2"
        assert layers[layer] == {"format": "float8_e4m3fn"}
        weight, scale = (file.get_tensor(f"{layer}.{n}") for n in ("weight", "weight_scale"))
    assert weight.dtype == torch.float8_e4m3fn
    assert (scale.dtype, scale.shape) == (torch.float32, ())
    key = "transformer_blocks.0.ff.net.2.weight"
    source = tiny(golden)["transformer"].read(key).float()
    assert (weight.float() * scale - source).norm() < 0.04 * source.norm()


# --- memory and speed -----------------------------------------------------------------------------

MEASURE = """
import sys, time, os, torch
from torch import nn
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.quant_formats import stored_tensors
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.loading import load_module, tensor_readers

def peak():
    with open("/proc/self/status") as status:
        return next(int(l.split()[1]) * 1024 for l in status if l.startswith("VmHWM"))

class Net(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(Linear(2048, 2048, bias=False) for _ in range(layers))

def load(path):
    file = open_checkpoint(path)
    component = Component("transformer", file, {n: n for n in stored_tensors(file)})
    count = len(component.names)
    readers = tensor_readers(component)
    return component.nbytes, load_module(lambda: Net(count), readers, device="cpu",
        dtype=torch.bfloat16, label="net")

load(sys.argv[1])  # warm up, so that first-use costs are not counted
before = peak()
nbytes, net = load(sys.argv[2])
print((peak() - before) / nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["bf16", "fp8"])
def test_loading_needs_only_the_stored_bytes(tmp_path: Path, kind: str) -> None:
    weight = torch.randn(2048, 2048).to(torch.bfloat16 if kind == "bf16" else torch.float8_e4m3fn)
    tensors = {}
    for number in range(200_000_000 // weight.nbytes):
        tensors[f"layers.{number}.weight"] = weight.clone()
        if kind == "fp8":
            tensors[f"layers.{number}.weight_scale"] = torch.tensor(0.5)
    save_file(tensors, tmp_path / "big.safetensors")
    first = {k: v for k, v in tensors.items() if k.startswith("layers.0.")}
    save_file(first, tmp_path / "small.safetensors")
    paths = [str(tmp_path / f"{n}.safetensors") for n in ("small", "big")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 0.5 < float(done.stdout) <= 1.05
