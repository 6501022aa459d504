"""NVFP4 products: rounding, the swizzle of scales, and whole products, against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latent_ladder.models import accelerator
from latent_ladder.models.weights import linear, nvfp4_products
from latent_ladder.models.weights.dequantize import E2M1, swizzle, unswizzle
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.nvfp4_products import nvfp4_linear, quantize_nvfp4
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor


def decoded(packed: Tensor, swizzled_scale: Tensor, columns: int) -> Tensor:
    """Numbers (rows, columns) in float64 of packed e2m1 with swizzled scales."""
    signed = torch.tensor([*E2M1, *(-x for x in E2M1)], dtype=torch.float64)
    numbers = signed[torch.stack((packed >> 4, packed & 15), -1).long()].flatten(-2)
    scale = unswizzle(swizzled_scale, len(packed), columns // 16).view(torch.float8_e4m3fn)
    return numbers * scale.double().repeat_interleave(16, -1)


def exact_product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor,
                  dtype: torch.dtype) -> Tensor:  # fmt: skip
    """What cuBLAS computes, from the same bytes, in float64."""
    columns = 2 * a.shape[1]
    return (decoded(a, a_scale, columns) @ decoded(b, b_scale, columns).T).to(dtype)


def weight_of(rows: int, columns: int, swizzled: bool = True) -> QuantizedTensor:
    """Random weight whose stored form is padded to multiples of 16."""
    tall, wide = -(-rows // 16) * 16, -(-columns // 16) * 16
    numbers, scale, per_row = quantize_nvfp4(torch.randn(tall, wide))
    parts = {
        "weight": numbers,
        "weight_scale": swizzle(scale) if swizzled else scale,
        "weight_scale_2": per_row.max(),
    }
    return QuantizedTensor("nvfp4", (rows, columns), parts, {"swizzled": swizzled})


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (130, 7), (300, 12)])
def test_swizzled_scales_return(rows: int, columns: int) -> None:
    scale = torch.randint(0, 256, (rows, columns), dtype=torch.uint8)
    assert torch.equal(unswizzle(swizzle(scale), rows, columns), scale)


def test_each_number_of_e2m1_stays_and_ties_go_to_even() -> None:
    """With a largest number of 6 x 448 both scales are exact, so only e2m1 is rounded."""
    numbers = torch.tensor([*E2M1, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -5.0]) * 448
    wanted = torch.tensor([*E2M1, 0, 1, 1, 2, 2, 4, 4, -4]) * 448
    packed, scale, per_token = quantize_nvfp4(numbers[None])
    got = decoded(packed, swizzle(scale), 16) * per_token
    torch.testing.assert_close(got[0], wanted.double(), rtol=1e-6, atol=0)


def test_a_token_of_zeros_and_a_tiny_one_stay_finite() -> None:
    x = torch.zeros(3, 32)
    x[1, 3], x[2] = 1e-20, 3e4
    packed, scale, per_token = quantize_nvfp4(x)
    got = decoded(packed, swizzle(scale), 32) * per_token
    torch.testing.assert_close(got, x.double(), rtol=1e-3, atol=1e-24)


@pytest.mark.parametrize("swizzled", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_product_is_that_of_the_rounded_factors(swizzled: bool, with_bias: bool) -> None:
    """Against float64 on the same rounded input; the stored weight is padded."""
    torch.manual_seed(0)
    weight = weight_of(40, 72, swizzled)
    x = torch.randn(2, 5, 72).bfloat16()
    bias = torch.randn(40).bfloat16() if with_bias else None
    got = nvfp4_linear(x, weight, bias, product=exact_product)
    packed, scale, per_token = quantize_nvfp4(F.pad(x.view(10, 72), (0, 8)))
    rounded = (decoded(packed, swizzle(scale), 80) * per_token)[:, :72]
    wanted = F.linear(rounded, weight.dequantize(torch.float32).double())
    wanted = wanted if bias is None else wanted + bias
    assert got.shape == (2, 5, 40)
    assert (got.view(10, 40).double() - wanted).abs().max() <= 2**-7 * wanted.abs().max()


def test_rounding_the_input_costs_a_tenth_of_its_norm() -> None:
    """A token's result does not depend on the tokens next to it."""
    torch.manual_seed(0)
    x = torch.randn(64, 256).bfloat16()
    x[5] *= 1000
    weight = weight_of(64, 256)
    got = nvfp4_linear(x, weight, None, product=exact_product)
    exact = x.double() @ weight.dequantize(torch.float32).double().T
    error = (got.double() - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0.03 < error.mean() < 0.11
    assert torch.equal(got[7:9], nvfp4_linear(x[7:9], weight, None, product=exact_product))


def test_a_card_before_blackwell_is_refused_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, card = torch.device("cpu"), torch.device("cuda")
    assert "Blackwell" in str(nvfp4_products.reason_against(cpu))
    monkeypatch.setattr(torch.version, "hip", None)
    for capability, usable in {(8, 9): False, (9, 0): False, (10, 0): True, (12, 0): True}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        assert accelerator.has_fp4_products(card) is usable
        monkeypatch.setattr(nvfp4_products, "_tried", lambda _: False)
        reason = str(nvfp4_products.reason_against(card))
        assert ("driver" if usable else "10.0") in reason


def test_a_layer_multiplies_nvfp4_only_where_asked_and_supported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layer = Linear(64, 32, bias=False).requires_grad_(False)
    weight = weight_of(32, 64)
    layer.set_weight(weight, torch.bfloat16)
    x = torch.randn(3, 64).bfloat16()
    plain = layer(x)
    layer.native_fp4 = True
    assert torch.equal(layer(x), plain)
    monkeypatch.setattr(linear, "supports_nvfp4", lambda *_: True)
    monkeypatch.setattr(
        linear, "nvfp4_linear", lambda x, w, b: nvfp4_linear(x, w, b, product=exact_product)
    )
    rounded = layer(x)
    assert not torch.equal(rounded, plain)
    assert (rounded - plain).float().norm() < 0.15 * plain.float().norm()
