"""3D convolution in half precision, without the detour that PyTorch 2.9 and 2.10 take on NVIDIA.

These versions do not use cuDNN 9.8 to 9.14 for 3D convolutions in float16 and bfloat16, because
some of its kernels give wrong results, and unfold the input instead: 27 times its memory. A 2D
convolution over the channels of three frames is not affected and needs three times the memory.
Sources: PyTorch issues 163539 and 166643.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DETOUR_TORCH = ((2, 9), (2, 11))
"""First version of PyTorch with the detour, and the first one without."""
DETOUR_CUDNN = (90800, 91500)
"""First version of cuDNN that is avoided, and the first one that is not."""


def takes_detour(torch_version: str, cudnn_version: int | None) -> bool:
    """True if that PyTorch avoids that cuDNN for 3D convolutions in half precision."""
    numbers = re.match(r"(\d+)\.(\d+)", torch_version)
    if numbers is None or cudnn_version is None:
        return False
    version = int(numbers[1]), int(numbers[2])
    is_torch = DETOUR_TORCH[0] <= version < DETOUR_TORCH[1]
    return is_torch and DETOUR_CUDNN[0] <= cudnn_version < DETOUR_CUDNN[1]


@cache
def _takes_detour_here() -> bool:
    cudnn: Any = torch.backends.cudnn
    is_nvidia = torch.version.cuda is not None and cudnn.is_available()
    return takes_detour(torch.__version__, cudnn.version() if is_nvidia else None)


def conv3d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int]) -> Tensor:
    """(B, C, F, H, W) -> (B, C', F', H', W') of stride 1, with zeros around the input."""
    is_half = x.dtype in (torch.bfloat16, torch.float16)
    if is_half and x.device.type == "cuda" and _takes_detour_here():
        return conv3d_by_frames(x, weight, bias, padding)
    return F.conv3d(x, weight, bias, padding=padding)


def conv3d_by_frames(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int]
) -> Tensor:
    """:func:`conv3d` as one 2D convolution over the channels of neighbouring frames."""
    batch, depth = len(x), weight.shape[2]
    frames = F.pad(x, (0, 0, 0, 0, padding[0], padding[0])).transpose(1, 2)
    count = frames.shape[1] - depth + 1
    merged = torch.cat([frames[:, n : n + count] for n in range(depth)], dim=2).flatten(0, 1)
    flat = weight.transpose(1, 2).flatten(1, 2)
    convolved = F.conv2d(merged, flat, bias, padding=padding[1:])
    y: Tensor = convolved.unflatten(0, (batch, count))
    return y.transpose(1, 2)


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` of stride 1 that computes with :func:`conv3d`."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, F, H, W) -> (B, C', F', H', W')."""
        first, second, third = (int(n) for n in self.padding)
        return conv3d(input, self.weight, self.bias, (first, second, third))
