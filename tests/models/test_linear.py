"""Linear with a weight in every stored form: results, moving, and adapter branches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latent_ladder.models.weights import linear
from latent_ladder.models.weights.linear import Linear, LowRank
from latent_ladder.models.weights.quantize_fp8 import quantize_fp8
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

IN, OUT = 64, 48


def q8_0() -> QuantizedTensor:
    blocks = torch.randint(0, 256, (OUT * IN // 32, 34), dtype=torch.uint8)
    blocks[:, :2] = (torch.rand(len(blocks), 1) * 1e-3).half().view(torch.uint8)
    return QuantizedTensor("q8_0", (OUT, IN), {"weight": blocks.view(OUT, -1)})


def int8() -> QuantizedTensor:
    q = torch.randint(-127, 128, (OUT, IN), dtype=torch.int8)
    return QuantizedTensor(
        "int8", (OUT, IN), {"weight": q, "weight_scale": torch.rand(OUT, 1) / 99}
    )


def nvfp4() -> QuantizedTensor:
    parts = {
        "weight": torch.randint(0, 256, (OUT, IN // 2), dtype=torch.uint8),
        "weight_scale": torch.rand(128, 4).to(torch.float8_e4m3fn),
        "weight_scale_2": torch.tensor(0.1),
        "pre_quant_scale": torch.rand(IN) + 0.5,
    }
    return QuantizedTensor("nvfp4", (OUT, IN), parts)


def fp8() -> QuantizedTensor:
    return quantize_fp8(torch.randn(OUT, IN))


QUANTIZERS = {make.__name__: make for make in (fp8, q8_0, int8, nvfp4)}


@pytest.fixture(params=QUANTIZERS)
def quantized(request: pytest.FixtureRequest) -> QuantizedTensor:
    torch.manual_seed(0)
    return QUANTIZERS[request.param]()


def layer_of(weight: torch.Tensor | QuantizedTensor, dtype: torch.dtype = torch.float32) -> Linear:
    """Layer with ``weight`` in its stored form, and a bias."""
    layer = Linear(IN, OUT).requires_grad_(False)
    assert layer.bias is not None
    layer.bias.normal_()
    layer.to(dtype).set_weight(weight, dtype)
    return layer


def applied_weight(quantized: QuantizedTensor) -> torch.Tensor:
    """Weight that the layer applies, in float32."""
    weight = quantized.dequantize(torch.float32)
    return weight if quantized.input_scale is None else weight * quantized.input_scale


def test_computes_with_the_dequantised_weight(quantized: QuantizedTensor) -> None:
    layer, x = layer_of(quantized), torch.randn(2, 5, IN)
    assert (layer.in_features, layer.out_features) == (IN, OUT)
    assert layer.weight is None
    assert list(layer.state_dict()) == ["bias"]
    torch.testing.assert_close(layer(x), F.linear(x, applied_weight(quantized), layer.bias))
    assert torch.equal(layer.dense_weight(torch.float16), quantized.dequantize(torch.float16))


def test_branches_add_to_quantised_and_float_weights_alike(quantized: QuantizedTensor) -> None:
    layer, x = layer_of(quantized), torch.randn(3, IN)
    plain = layer_of(applied_weight(quantized))
    branch = LowRank(0.7, torch.randn(4, IN), torch.randn(OUT, 4))
    layer.branches = plain.branches = (branch,)
    for layer_with_branch in (layer, plain):
        assert not torch.equal(
            layer_with_branch(x), F.linear(x, applied_weight(quantized), layer_with_branch.bias)
        )
    plain.bias = layer.bias
    torch.testing.assert_close(layer(x), plain(x), rtol=1e-4, atol=1e-4)


def test_moving_never_converts_a_quantised_weight(quantized: QuantizedTensor) -> None:
    layer, x = layer_of(quantized), torch.randn(3, IN)
    want = layer(x)
    before = {part: t.dtype for part, t in quantized.parts.items()}
    layer.double()
    assert layer.compute_dtype == torch.float64
    assert layer.quantized_weight is not None
    assert {part: t.dtype for part, t in layer.quantized_weight.parts.items()} == before
    torch.testing.assert_close(layer(x.double()).float(), want)
    layer.bfloat16()
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    on_meta = layer.to("meta").quantized_weight
    assert on_meta is not None
    assert on_meta.device.type == "meta"


def test_float_weights_as_stored_give_identical_results() -> None:
    weight, x = torch.randn(OUT, IN).bfloat16(), torch.randn(7, IN)
    as_stored, converted = layer_of(weight), layer_of(weight.float())
    converted.bias = as_stored.bias
    assert as_stored.weight.dtype == torch.bfloat16
    assert as_stored.compute_dtype == torch.float32
    assert torch.equal(as_stored(x), converted(x))


def test_gradients_reach_the_input(quantized: QuantizedTensor) -> None:
    layer, x = layer_of(quantized), torch.randn(3, IN, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, applied_weight(quantized).sum(0).expand(3, IN))


def test_native_fp8_is_used_only_where_supported(quantized: QuantizedTensor) -> None:
    layer, x = layer_of(quantized, torch.bfloat16), torch.randn(3, IN).bfloat16()
    want = layer(x)
    layer.native_fp8 = True
    assert not linear.supports_native_fp8(x, quantized)
    assert torch.equal(layer(x), want)


def test_native_fp8_is_close_to_the_dequantised_result() -> None:
    quantized, x = fp8(), torch.randn(2, 16, IN).bfloat16()
    bias = torch.randn(OUT).bfloat16()
    got = linear.native_fp8_linear(x, quantized, bias).float()
    want = F.linear(x.float(), quantized.dequantize(torch.float32), bias.float())
    assert got.shape == (2, 16, OUT)
    assert (got - want).norm() < 0.04 * want.norm()


def test_weights_are_decoded_once_within_a_block(
    quantized: QuantizedTensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = layer_of(quantized), torch.randn(3, IN)
    expected, calls = layer(x), []
    real = QuantizedTensor.dequantize

    def counted(self: QuantizedTensor, dtype: torch.dtype) -> torch.Tensor:
        calls.append(dtype)
        return real(self, dtype)

    monkeypatch.setattr(QuantizedTensor, "dequantize", counted)
    with linear.decode_once(layer):
        assert torch.equal(layer(x), expected)
        assert torch.equal(layer(x), expected)
        assert layer(x.bfloat16().float().to(torch.float32)).dtype == torch.float32
    assert calls == [torch.float32]
    layer(x)
    assert len(calls) == 2, "nothing is kept after the block"
