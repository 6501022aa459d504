"""Compact upscaling network (SRVGGNetCompact of Real-ESRGAN), built from its state dict.

A chain of 3x3 convolutions with PReLUs at the size of the input, then a pixel shuffle; the input,
enlarged by nearest neighbour, is added. realesr-animevideov3, realesr-general-x4v3 and the pocket
upscaler have this architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_WEIGHT = re.compile(r"body\.(\d+)\.(weight|bias)")


@dataclass(frozen=True)
class CompactShape:
    """The dimensions of a compact network.

    ``features`` channels, ``convolutions`` between the first and the last one, factor ``scale``.
    """

    features: int
    convolutions: int
    scale: int


def compact_shape(shapes: Mapping[str, Sequence[int]]) -> CompactShape | None:
    """The dimensions of a compact network, from the names and shapes of its tensors.

    ``None`` for another network.
    """
    found = [match for name in shapes if (match := _WEIGHT.fullmatch(name))]
    if len(found) != len(shapes) or not found:
        return None
    last = max(int(match[1]) for match in found)
    first, end = shapes.get("body.0.weight", ()), shapes.get(f"body.{last}.weight", ())
    if len(first) != 4 or len(end) != 4 or last < 2 or last % 2 or first[1] != 3:
        return None
    shape = CompactShape(first[0], last // 2 - 1, math.isqrt(end[0] // 3))
    wanted = shape_table(shape)
    return shape if {name: tuple(sizes) for name, sizes in shapes.items()} == wanted else None


def shape_table(shape: CompactShape) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor, by name, of a network with these dimensions."""
    width, last = shape.features, 2 * shape.convolutions + 2
    table: dict[str, tuple[int, ...]] = {}
    for i in range(0, last + 1, 2):
        rows = 3 * shape.scale**2 if i == last else width
        table[f"body.{i}.weight"] = (rows, width if i else 3, 3, 3)
        table[f"body.{i}.bias"] = (rows,)
        if i != last:
            table[f"body.{i + 1}.weight"] = (width,)
    return table


class CompactNetwork(nn.Module):
    """The network: (n, 3, H, W) -> (n, 3, H * scale, W * scale), both in 0..1."""

    def __init__(self, shape: CompactShape) -> None:
        super().__init__()
        self.scale = shape.scale
        width = shape.features
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.PReLU(width)]
        for _ in range(shape.convolutions):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width)]
        layers.append(nn.Conv2d(width, 3 * self.scale**2, 3, padding=1))
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Enlarge by nearest neighbour and add the residual of the convolutions."""
        repeated = F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
        return F.pixel_shuffle(self.body(x), self.scale) + repeated


def load_compact(state: Mapping[str, Tensor], dtype: torch.dtype) -> CompactNetwork | None:
    """The network with the weights of a state dict, on their device, in ``dtype``.

    ``None`` if the state dict is of another architecture.
    """
    shape = compact_shape({name: tuple(value.shape) for name, value in state.items()})
    if shape is None:
        return None
    with torch.device("meta"):
        network = CompactNetwork(shape)
    network.load_state_dict({k: v.to(dtype) for k, v in state.items()}, assign=True)
    return network.eval().requires_grad_(False)
