"""A weight in its stored form, and reading one of a component whatever its form.

Nothing is decoded before it is used, and nothing copied before it is moved: the parts of a
:class:`QuantizedTensor` are the file's mapped tensors until ``to`` or ``copied``.
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
from latent_ladder.models.weights.dequantize import FORMATS, TILINGS
from latent_ladder.models.weights.dequantize_ggml import BLOCKS


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor of logical ``shape`` as its stored ``parts``, all on one device.

    ``parts``: "weight" and, by format, "weight_scale", "weight_scale_2", "pre_quant_scale".
    ``options``: "convrot" and "convrot_groupsize" of rotated int8; "swizzled" (default true) of
    nvfp4 and mxfp8. The stored form may be padded beyond ``shape``.
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
        """Where the parts are."""
        return self.parts["weight"].device

    @property
    def input_scale(self) -> Tensor | None:
        """What the layer's input is multiplied by, (in,), where the file has it."""
        return self.parts.get("pre_quant_scale")

    @torch.no_grad()
    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The numbers in ``dtype`` on the parts' device; without the input's scale."""
        return dequantize.dequantize(self.format, self.parts, self.options, self.shape, dtype)

    @torch.no_grad()
    def rows(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows ``index`` (n,) of a matrix: an embedding need not be decoded whole."""
        return _rows(self, index).dequantize(dtype)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantizedTensor:
        """The same on ``device``; itself if it is there."""
        if self.device == torch.device(device):
            return self
        return self._mapped(lambda t: t.to(device, non_blocking=non_blocking))

    def copied(self) -> QuantizedTensor:
        """A copy in memory of its own, which does not keep the file open."""
        return self._mapped(torch.clone)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> QuantizedTensor:
        return replace(self, parts={part: change(t) for part, t in self.parts.items()})

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether this is a tensor of ``shape``, apart from padding."""
        pad = TILINGS[self.format].pad if self.format in TILINGS else 1
        return self.shape == shape or (
            len(self.shape) == len(shape)
            and all(-(-n // pad) * pad == m for n, m in zip(shape, self.shape, strict=True))
        )

    def cropped(self, shape: tuple[int, ...]) -> QuantizedTensor:
        """The same seen as ``shape``, which must fit."""
        return self if self.shape == shape else replace(self, shape=shape)

    def check_scales(self, name: str) -> None:
        """Raise :class:`CorruptCheckpoint` naming the tensor if a scale is NaN or infinite."""
        dequantize.check_scales(self.format, self.parts, name)


def _rows(tensor: QuantizedTensor, index: Tensor) -> QuantizedTensor:
    parts, options = dict(tensor.parts), dict(tensor.options)
    index, columns = index.to(tensor.device), tensor.shape[-1]
    weight = parts["weight"]
    if tensor.format in BLOCKS:  # whose rows are those of the shape only after this
        weight = weight.reshape(math.prod(tensor.shape[:-1]), -1)
    scale = parts.get("weight_scale")
    if tensor.format in TILINGS and scale is not None and options.get("swizzled", True):
        tiling = TILINGS[tensor.format]
        blocks = weight.shape[1] * tiling.packed // tiling.block
        scale, options["swizzled"] = dequantize.unswizzled(scale, len(weight), blocks), False
    if scale is not None:
        parts["weight_scale"] = scale if scale.numel() == 1 else scale[index]
    parts["weight"] = weight[index]
    return QuantizedTensor(tensor.format, (len(index), columns), parts, options)


def read_stored(
    component: Component, key: str, shape: tuple[int, ...] | None = None
) -> Tensor | QuantizedTensor:
    """One tensor of a component, mapped: a tensor where it is stored as numbers.

    ``shape`` cuts off the padding of nvfp4 and mxfp8. Raises :class:`UnsupportedQuantization`
    and, when parts do not fit each other, :class:`CorruptCheckpoint`.
    """
    stored = component.stored(key)
    if stored.format not in FORMATS:
        tensor = component.read(key)
        return tensor if shape is None or tensor.numel() != math.prod(shape) else tensor.view(shape)
    parts = {part: component.file.read(name) for part, name in stored.parts.items()}
    if stored.format == "nvfp4":  # torch's pairs of e2m1 are bytes that few operations take
        parts["weight"] = parts["weight"].view(torch.uint8)
    found = QuantizedTensor(stored.format, tuple(stored.shape), parts, stored.options)
    dequantize.check(found.format, parts, found.options, found.shape, _label(component, key))
    return found.cropped(shape) if shape is not None and found.fits(shape) else found


def read_float(component: Component, key: str, dtype: torch.dtype) -> Tensor:
    """One tensor of a component as numbers, whatever its stored form."""
    found = read_stored(component, key)
    if isinstance(found, Tensor):
        if not found.is_floating_point():
            raise UnsupportedQuantization(
                f"{_label(component, key)}: numbers of type {found.dtype}, expected floats",
                f"known formats: {', '.join(FORMATS)}",
            )
        return found.to(dtype)
    return found.dequantize(dtype)


def _label(component: Component, key: str) -> str:
    return f"{component.file.path.name}: {key}"
