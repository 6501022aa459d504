"""Quantised tensors in their stored form, and reading tensors of a checkpoint component.

A tensor is dequantised only when used, and copied only when moved: the parts of a
:class:`QuantizedTensor` are the file's memory-mapped tensors until ``to`` or ``clone``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import UnsupportedQuantization
from latent_ladder.models.weights import dequantize
from latent_ladder.models.weights.dequantize import BLOCK_SCALED_FORMATS, FORMATS
from latent_ladder.models.weights.dequantize_ggml import GGML_BLOCKS


@dataclass(frozen=True)
class QuantizedTensor:
    """Quantised tensor of logical ``shape``: its stored ``parts``, all on one device.

    ``parts``: "weight" and, depending on the format, "weight_scale", "weight_scale_2" and
    "pre_quant_scale". ``options``: "convrot" and "convrot_groupsize" of rotated int8; "swizzled"
    (default true) of nvfp4 and mxfp8. The stored form may be padded beyond ``shape``.
    """

    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(t.numel() * t.element_size() for t in self.parts.values())

    @property
    def device(self) -> torch.device:
        """Device of the parts."""
        return self.parts["weight"].device

    @property
    def input_scale(self) -> Tensor | None:
        """Scale (in,) to multiply the layer's input by (AWQ), ``None`` if the file has none."""
        return self.parts.get("pre_quant_scale")

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Dequantise to ``shape`` in ``dtype`` on the parts' device; without the input scale."""
        return dequantize.dequantize(self.format, self.parts, self.options, self.shape, dtype)

    @torch.no_grad()
    def dequantize_rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Dequantise only the rows ``index`` (n,) of a matrix, such as an embedding table."""
        return _select_rows(self, index).dequantize(dtype)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantizedTensor:
        """Move to ``device``; returns the tensor itself if it is there."""
        if self.device == torch.device(device):
            return self
        return self._map_parts(lambda t: t.to(device, non_blocking=non_blocking))

    def clone(self) -> QuantizedTensor:
        """Copy the parts, so that they no longer reference the file."""
        return self._map_parts(torch.clone)

    def _map_parts(self, change: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        return replace(self, parts={part: change(t) for part, t in self.parts.items()})

    def matches_shape(self, shape: tuple[int, ...]) -> bool:
        """Return True if this is a tensor of ``shape``, possibly padded."""
        pad = BLOCK_SCALED_FORMATS[self.format].pad if self.format in BLOCK_SCALED_FORMATS else 1
        return self.shape == shape or (
            len(self.shape) == len(shape)
            and all(-(-n // pad) * pad == m for n, m in zip(shape, self.shape, strict=True))
        )

    def crop(self, shape: tuple[int, ...]) -> QuantizedTensor:
        """Remove padding: the same tensor with ``shape``, which must match (``matches_shape``)."""
        return self if self.shape == shape else replace(self, shape=shape)

    def check_scales(self, name: str) -> None:
        """Raise :class:`CorruptCheckpoint` if a scale is NaN or infinite; ``name`` is for it."""
        dequantize.check_scales(self.format, self.parts, name)


def _select_rows(tensor: QuantizedTensor, index: Tensor) -> QuantizedTensor:
    parts, options = dict(tensor.parts), dict(tensor.options)
    index, columns = index.to(tensor.device), tensor.shape[-1]
    weight = parts["weight"]
    if tensor.format in GGML_BLOCKS:  # one row of blocks per row of the matrix
        weight = weight.reshape(math.prod(tensor.shape[:-1]), -1)
    scale = parts.get("weight_scale")
    if (
        tensor.format in BLOCK_SCALED_FORMATS
        and scale is not None
        and options.get("swizzled", True)
    ):
        tiling = BLOCK_SCALED_FORMATS[tensor.format]
        blocks = weight.shape[1] * tiling.packed // tiling.block
        scale, options["swizzled"] = dequantize.unswizzle(scale, len(weight), blocks), False
    if scale is not None:
        parts["weight_scale"] = scale if scale.numel() == 1 else scale[index]
    parts["weight"] = weight[index]
    return QuantizedTensor(tensor.format, (len(index), columns), parts, options)


def read_stored(
    component: Component, key: str, shape: tuple[int, ...] | None = None
) -> Tensor | QuantizedTensor:
    """Read a tensor of a component, memory-mapped and not dequantised.

    A tensor that is not quantised is returned as a plain tensor. ``shape`` removes the padding of
    nvfp4 and mxfp8. Raises :class:`UnsupportedQuantization`, and :class:`CorruptCheckpoint` if
    the parts do not match each other.
    """
    stored = component.stored_tensor(key)
    if stored.format not in FORMATS:
        tensor = component.read(key)
        return tensor if shape is None or tensor.numel() != math.prod(shape) else tensor.view(shape)
    parts = {part: component.file.read(name) for part, name in stored.parts.items()}
    if stored.format == "nvfp4":  # few operations support torch's dtype for pairs of e2m1
        parts["weight"] = parts["weight"].view(torch.uint8)
    found = QuantizedTensor(stored.format, tuple(stored.shape), parts, stored.options)
    dequantize.check_parts(found.format, parts, found.options, found.shape, _label(component, key))
    return found.crop(shape) if shape is not None and found.matches_shape(shape) else found


def read_float(component: Component, key: str, dtype: torch.dtype) -> Tensor:
    """Read a tensor of a component in ``dtype``, dequantised if needed.

    Raises :class:`UnsupportedQuantization` for tensors that are not floats.
    """
    tensor = read_stored(component, key)
    if isinstance(tensor, Tensor):
        if not tensor.is_floating_point():
            raise UnsupportedQuantization(
                f"{_label(component, key)}: dtype {tensor.dtype}, expected floats",
                f"use a file with floats or one of the formats {', '.join(FORMATS)}",
            )
        return tensor.to(dtype)
    return tensor.dequantize(dtype)


def _label(component: Component, key: str) -> str:
    return f"{component.file.path.name}: {key}"
