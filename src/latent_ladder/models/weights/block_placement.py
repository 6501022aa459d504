"""Places of the transformer blocks' weights, kept from stage to stage.

At rest, the weights of a block are where they were loaded (usually the mapped file) or in pinned
memory, in one range per block. A resident block has a copy on the device. From stage to stage only
the difference moves: pinned ranges and resident copies stay as long as they are of use.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latent_ladder.models.weights.linear import Branch, Linear
from latent_ladder.models.weights.pinned_memory import PinnedMemory

ALIGNMENT = 256
"""Alignment in bytes of tensors in a buffer: valid for all dtypes and fast in CUDA kernels."""


class TensorRef(NamedTuple):
    """Tensor of a layer, and a function that assigns another tensor in its place."""

    tensor: Tensor
    assign: Callable[[Tensor], None]


class TensorRange:
    """Tensors of a block as one range of bytes: their sources, and their offsets in a buffer."""

    def __init__(self, refs: Sequence[TensorRef]) -> None:
        self.refs = list(refs)
        self._offsets = []
        self.nbytes = 0
        for ref in refs:
            self._offsets.append(self.nbytes)
            self.nbytes += _align(ref.tensor.nbytes)
        self._pinned: PinnedMemory | None = None

    @property
    def is_pinned(self) -> bool:
        """True if the tensors are in one range of pinned memory."""
        return self._pinned is not None or not self.refs

    def pin(self, device: torch.device) -> None:
        """Move the tensors into pinned memory; the layers use them there from now on."""
        if self.is_pinned:
            return
        pinned = PinnedMemory(self.nbytes, device)
        self.copy_into(pinned.flat)
        self._use(pinned)

    def share_pinned(self, other: TensorRange) -> None:
        """Use the pinned memory of a range with the same contents, if it has any."""
        if other._pinned is not None:
            self._use(other._pinned)

    def _use(self, pinned: PinnedMemory) -> None:
        self._pinned = pinned
        views = list(self._views(pinned.flat))
        self.refs = [TensorRef(v, ref.assign) for ref, v in zip(self.refs, views, strict=True)]
        self.restore()

    def to_host(self) -> None:
        """Move tensors that are on a device to ordinary memory."""
        self.refs = [
            ref if ref.tensor.device.type == "cpu" else TensorRef(ref.tensor.cpu(), ref.assign)
            for ref in self.refs
        ]
        self.restore()

    def copy_into(self, buffer: Tensor) -> None:
        """Copy the tensors into the beginning of ``buffer`` (uint8)."""
        if self._pinned is not None:
            buffer[: self.nbytes].copy_(self._pinned.flat, non_blocking=True)
            return
        for ref, offset in zip(self.refs, self._offsets, strict=True):
            data = ref.tensor.reshape(-1).view(torch.uint8)
            buffer[offset : offset + len(data)].copy_(data)

    def install(self, buffer: Tensor) -> None:
        """Let the layers use views into ``buffer``."""
        for ref, view in zip(self.refs, self._views(buffer), strict=True):
            ref.assign(view)

    def restore(self) -> None:
        """Let the layers use the tensors at rest."""
        for ref in self.refs:
            ref.assign(ref.tensor)

    def copy_to(self, device: torch.device) -> None:
        """Let the layers use copies on ``device``; the tensors at rest are kept."""
        for ref in self.refs:
            if ref.tensor.device != device:
                ref.assign(ref.tensor.to(device, non_blocking=self.is_pinned))

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for ref, offset in zip(self.refs, self._offsets, strict=True):
            data = buffer[offset : offset + ref.tensor.nbytes]
            yield data.view(ref.tensor.dtype).view(ref.tensor.shape)


class PlacedBlock:
    """One block: its weights at rest, and whether a copy of them is on the device."""

    def __init__(self, block: nn.Module) -> None:
        self.module, self._layers = block, linear_layers(block)
        self.weights = TensorRange([r for layer in self._layers for r in _weight_refs(layer)])
        self.branches = TensorRange(())
        self._branch_sources: list[Tensor] = []
        self._is_resident = False

    @property
    def nbytes(self) -> int:
        """Bytes of weights and adapter branches in a buffer."""
        return self.weights.nbytes + self.branches.nbytes

    @property
    def is_pinned(self) -> bool:
        """True if everything is in pinned memory."""
        return self.weights.is_pinned and self.branches.is_pinned

    def leave(self) -> None:
        """Free the copy on the device."""
        if self._is_resident:
            self.weights.restore()
        self._is_resident = False

    def settle(self, device: torch.device) -> None:
        """Copy the weights to the device, and the branches that are attached now."""
        if not self._is_resident:
            self.weights.copy_to(device)
        self._is_resident = True
        self.branches, self._branch_sources = TensorRange(()), []
        TensorRange(self._branch_refs()).copy_to(device)

    def prepare_to_stream(self, device: torch.device, pinned: bool) -> None:
        """Get weights and branches ready to be copied to a buffer, again and again."""
        refs = self._branch_refs()
        branches, sources = TensorRange(refs), [ref.tensor for ref in refs]
        if pinned and _are_same(sources, self._branch_sources):  # as in the stage before
            branches.share_pinned(self.branches)
        self.branches, self._branch_sources = branches, sources
        for tensors in (self.weights, self.branches):
            if pinned:
                tensors.pin(device)
            elif device.type != "cpu":
                tensors.to_host()

    def copy_into(self, buffer: Tensor) -> None:
        """Copy weights and branches from rest into ``buffer`` (uint8)."""
        for tensors, part in self._parts(buffer):
            tensors.copy_into(part)

    def install(self, buffer: Tensor) -> None:
        """Let the layers use views into ``buffer``."""
        for tensors, part in self._parts(buffer):
            tensors.install(part)

    def restore(self) -> None:
        """Let the layers use the tensors at rest again."""
        self.weights.restore()
        self.branches.restore()

    def _parts(self, buffer: Tensor) -> Iterator[tuple[TensorRange, Tensor]]:
        yield self.weights, buffer[: self.weights.nbytes]
        if self.branches.nbytes:
            yield self.branches, buffer[self.weights.nbytes : self.nbytes]

    def _branch_refs(self) -> list[TensorRef]:
        return [ref for layer in self._layers for ref in _branch_refs(layer)]


class BlockPlacement:
    """All blocks of a transformer with the places of their weights."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.blocks = [PlacedBlock(block) for block in blocks]

    def free(self, streamed: Collection[int]) -> None:
        """Free the copies of ``streamed`` blocks on the device."""
        for number in streamed:
            self.blocks[number].leave()

    def place(self, streamed: Collection[int], device: torch.device, pinned: bool) -> None:
        """Stream the blocks ``streamed`` from now on, and copy the others to the device.

        Blocks leave before others come, so that there are never more than the new plan allows.
        """
        self.free(streamed)
        for number in streamed:
            self.blocks[number].prepare_to_stream(device, pinned)
        for number, block in enumerate(self.blocks):
            if number not in streamed:
                block.settle(device)


def _are_same(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """True for the very same tensors in the same order."""
    return len(tensors) == len(others) and all(map(operator.is_, tensors, others))


def streamed_bytes(block: nn.Module) -> int:
    """Bytes copied to the device when ``block`` is streamed, with alignment."""
    layers = linear_layers(block)
    refs = [r for layer in layers for r in (*_weight_refs(layer), *_branch_refs(layer))]
    return sum(_align(ref.tensor.nbytes) for ref in refs)


def linear_layers(block: nn.Module) -> list[Linear]:
    """The layers of a block whose weights are streamed."""
    return [module for module in block.modules() if isinstance(module, Linear)]


def _weight_refs(layer: Linear) -> Iterator[TensorRef]:
    """The weight of a layer, in its stored form."""
    if layer.weight is not None:
        yield TensorRef(layer.weight.data, partial(_assign_weight, layer))
    if layer.quantized_weight is not None:
        for part, tensor in layer.quantized_weight.parts.items():
            yield TensorRef(tensor, partial(_assign_part, layer, part))


def _branch_refs(layer: Linear) -> Iterator[TensorRef]:
    """The tensors of a layer's adapter branches."""
    for index, branch in enumerate(layer.branches):
        for field in fields(branch):
            tensor = getattr(branch, field.name)
            if isinstance(tensor, Tensor):
                yield TensorRef(tensor, partial(_assign_branch, layer, index, field.name))


def _assign_weight(layer: Linear, tensor: Tensor) -> None:
    layer.weight = nn.Parameter(tensor, requires_grad=False)


def _assign_part(layer: Linear, part: str, tensor: Tensor) -> None:
    weight = layer.quantized_weight
    if weight is not None:
        layer.quantized_weight = replace(weight, parts={**weight.parts, part: tensor})


def _assign_branch(layer: Linear, index: int, name: str, tensor: Tensor) -> None:
    branches: list[Branch] = list(layer.branches)
    changed: dict[str, Any] = {name: tensor}
    branches[index] = replace(branches[index], **changed)
    layer.branches = tuple(branches)


def _align(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
