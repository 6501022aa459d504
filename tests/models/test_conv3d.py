"""3D convolution by frames, and the versions of PyTorch and cuDNN that need it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latent_ladder.models.conv3d import Conv3d, conv3d_by_frames, takes_detour


@pytest.mark.parametrize(
    ("version", "cudnn", "expected"),
    [
        ("2.10.0+cu128", 91002, True), ("2.9.1+cu128", 91002, True), ("2.10.0+cu130", 91501, False),
        ("2.8.0+cu128", 91002, False), ("2.11.0+cu130", 91002, False), ("2.13.0+cpu", None, False),
        ("unknown", 91002, False),
    ],
)  # fmt: skip
def test_versions_that_avoid_cudnn(version: str, cudnn: int | None, expected: bool) -> None:
    assert takes_detour(version, cudnn) is expected


@pytest.mark.parametrize("padding", [(0, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_by_frames_is_the_same_convolution(padding: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, 6, 8, 7), torch.randn(4, 5, 3, 3, 3)
    bias = torch.randn(4)
    expected = F.conv3d(x, weight, bias, padding=padding)
    torch.testing.assert_close(conv3d_by_frames(x, weight, bias, padding), expected)


def test_the_layer_is_that_of_pytorch() -> None:
    layer = Conv3d(3, 4, 3, padding=1)
    x = torch.randn(1, 3, 4, 5, 6)
    expected = F.conv3d(x, layer.weight, layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)
