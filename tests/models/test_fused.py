"""Fused kernels against float64, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from helpers.goldens import Goldens
from helpers.transformer_inputs import inputs_of
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.models.transformer.fused import gate_heads_, norm_modulate, norm_rotate
from latent_ladder.models.transformer.model import load_transformer
from latent_ladder.models.weights.linear import has_row_scales, native_fp8_linear
from latent_ladder.models.weights.quantize_fp8 import quantize_fp8

pytest.importorskip("triton", reason="Triton is not installed: pip install triton")
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)
if os.environ.get("TRITON_INTERPRET") == "1":
    from latent_ladder.models.weights.fp8_kernel import quantize_tokens

MODEL = "checkpoints/tiny-ltx-2.3.safetensors"
EPS = 1e-6
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Largest error as a share of the largest value: float32 sums, one rounding to bfloat16 (the
interpreter cuts off where a GPU rounds)."""
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=["float32", "bfloat16"])


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_near(got: Tensor, wanted: Tensor) -> None:
    assert wanted.dtype == torch.float64
    error = (got.double() - wanted).abs().max() / wanted.abs().max()
    assert error <= ROUNDING[got.dtype]


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt()


@DTYPES
@pytest.mark.parametrize("per_row", [1, 2])
def test_norm_and_modulation(dtype: torch.dtype, per_row: int) -> None:
    """On a chunk of a larger stream, with modulation for all rows or for each."""
    x = random(2, 7, 24, dtype=dtype)[:, 2:6]
    scale, shift = (random(per_row, 3, 24, dtype=dtype, seed=s)[:, 1] for s in (1, 2))
    out = torch.zeros(2, 4, 24, dtype=dtype)
    norm_modulate(x, scale, shift, EPS, out)
    assert_near(out, rms(x.double()) * scale.double()[:, None] + shift.double()[:, None])


@DTYPES
@pytest.mark.parametrize("per_row", [1, 2])
def test_norm_and_rotation(dtype: torch.dtype, per_row: int) -> None:
    x, weight = random(2, 5, 24, dtype=dtype), random(24, dtype=dtype, seed=1)
    angles = random(per_row, 8, 3, 4, seed=2)
    rotation = torch.polar(torch.ones_like(angles), angles)[:, 2:7]
    got = norm_rotate(x, weight, EPS, rotation)
    a, b = (rms(x.double()) * weight.double()).view(2, 5, 3, 2, 4).unbind(-2)
    cos, sin = rotation.real.double(), rotation.imag.double()
    assert_near(got, torch.cat([a * cos - b * sin, b * cos + a * sin], -1))


@DTYPES
def test_gates_of_heads(dtype: torch.dtype) -> None:
    """In place, on the transposed output of attention."""
    x, logits = random(2, 3, 5, 4, dtype=dtype), random(2, 5, 3, dtype=dtype, seed=1)
    wanted = x.transpose(1, 2).double() * 2 * logits.double().sigmoid()[..., None]
    got = x.transpose(1, 2)
    gate_heads_(got, logits)
    assert_near(got, wanted)
    assert_near(x.transpose(1, 2), wanted)


@DTYPES
def test_rounding_the_input_of_an_fp8_product(dtype: torch.dtype) -> None:
    """The nearest number of e4m3 in float64, with the largest number of each token at 448."""
    x = random(6, 200, dtype=dtype)[:, :131]
    x[1] *= 1e4
    x[2, 5:] *= 1e-3  # below the smallest normal number of e4m3
    x[3] = 0
    numbers, scales = quantize_tokens(x)
    wanted = (x.double().abs().amax(-1, keepdim=True) / 448).clamp_min(1e-12)
    torch.testing.assert_close(scales.double(), wanted, rtol=1e-7, atol=0)
    exact = x.double() / scales.double()
    finite = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    finite = finite[finite.isfinite()]
    nearest = (exact[..., None] - finite).abs().amin(-1)
    error = (numbers.double() - exact).abs()
    assert (error <= nearest + 1e-6 * exact.abs()).all()
    assert not numbers[3].double().any()


def test_fp8_products_are_the_same_bits_with_the_kernel() -> None:
    weight = quantize_fp8(random(32, 48))
    x = random(2, 16, 48, dtype=torch.bfloat16, seed=1)
    assert has_row_scales(x.device)
    plain = native_fp8_linear(x, weight, None)
    assert torch.equal(native_fp8_linear(x, weight, None, fused=True), plain)


@pytest.mark.slow
def test_whole_forward_with_fused_kernels(golden: Goldens) -> None:
    """Equal to the plain operations to float32 rounding, with two noise levels and gates."""
    model = load_transformer(components(open_checkpoint(golden.path(MODEL)))["transformer"])
    case = golden("dit.per_token")
    with torch.no_grad():
        plain = model(*inputs_of(model.config, case))
        model.use_fused(True)
        for got, wanted in zip(model(*inputs_of(model.config, case)), plain, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
