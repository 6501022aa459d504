"""Block offloading: transformer blocks that do not fit on the device are copied there when needed.

The weights of a block (in their stored form) and its LoRA matrices are copied as one contiguous
range of bytes into one of a few buffers on the device; while one block is computed, the next is
copied. The source is pinned memory or, if there is not enough of it, the memory-mapped file. The
operations are the same as with all blocks on the device, so results are bit-identical. On the
CPU, "the device" is the process's own memory and the source is the file.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from latent_ladder.models.weights.linear import Branch, Linear
from latent_ladder.models.weights.offload_schedule import BUFFERS, streamed_block_numbers

ALIGNMENT = 256
"""Alignment in bytes of tensors in a buffer: valid for all dtypes and fast in CUDA kernels."""


class _TensorRef(NamedTuple):
    """Tensor of a layer, and a function that assigns another tensor in its place."""

    tensor: Tensor
    assign: Callable[[Tensor], None]


@dataclass(frozen=True)
class BlockOffload:
    """Options of block offloading: ``resident`` blocks stay on the device, others are streamed.

    ``pinned``: the streamed blocks are stored in pinned memory (CUDA only). Otherwise they are
    read from where they are, which may be the memory-mapped file.
    """

    resident: int
    pinned: bool = False


class BlockIterator(Protocol):
    """Iterator over blocks in order, each with its weights on the device."""

    def blocks(self) -> Iterator[nn.Module]: ...

    def close(self) -> None: ...


class ResidentBlocks:
    """Block iterator without offloading: all blocks are on their device."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks

    def blocks(self) -> Iterator[nn.Module]:
        """Iterate over all blocks."""
        return iter(self._blocks)

    def close(self) -> None:
        """Do nothing: there are no buffers to free."""


class StreamedBlocks:
    """Block iterator with offloading: some blocks are resident, the others are streamed.

    Streamed blocks are evenly spaced between resident ones, which gives each copy the compute
    time of several blocks. Create a new one when LoRAs change. :meth:`close` frees the buffers;
    every tensor is then where it was before.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, offload: BlockOffload
    ) -> None:
        self._blocks = blocks
        streamed = streamed_block_numbers(len(blocks), len(blocks) - offload.resident)
        for number, block in enumerate(blocks):
            if number not in streamed:
                _move_to_device(block, device)
        pin = offload.pinned and device.type == "cuda"
        self._packed_blocks: dict[int, _PackedBlock] = {}
        try:
            for number in streamed:
                self._packed_blocks[number] = _PackedBlock(_tensor_refs(blocks[number]), pin)
            self._ring = _BufferRing(self._packed_blocks, device)
        except BaseException:
            self._unpin()
            raise

    def blocks(self) -> Iterator[nn.Module]:
        """Iterate over all blocks; a streamed block is valid only until the next one is yielded."""
        for number, block in enumerate(self._blocks):
            packed_block = self._packed_blocks.get(number)
            if packed_block is None:
                yield block
                continue
            buffer = self._ring.wait_for(number)
            packed_block.install(buffer)
            try:
                yield block
            finally:
                packed_block.restore()
                self._ring.release(number)

    def close(self) -> None:
        """Stop copying, free the buffers and unpin the memory."""
        self._ring.close()
        self._unpin()

    def _unpin(self) -> None:
        for packed_block in self._packed_blocks.values():
            packed_block.unpin()


def streamed_bytes(block: nn.Module) -> int:
    """Bytes copied to the device when ``block`` is streamed, with alignment."""
    return sum(_align(ref.tensor.nbytes) for ref in _tensor_refs(block))


def _move_to_device(block: nn.Module, device: torch.device) -> None:
    for ref in _tensor_refs(block):
        if ref.tensor.device != device:
            ref.assign(ref.tensor.to(device))


class _PackedBlock:
    """Tensors of a streamed block, at their source and with their offsets in a buffer."""

    def __init__(self, refs: Sequence[_TensorRef], pin: bool) -> None:
        self._tensor_refs = refs
        offsets = []
        self.nbytes = 0
        for ref in refs:
            offsets.append(self.nbytes)
            self.nbytes += _align(ref.tensor.nbytes)
        self._offsets = offsets
        self._pinned = _PinnedMemory(self.nbytes) if pin else None
        self._flat: Tensor | None = None
        if self._pinned is not None:
            self.copy_into(self._pinned.flat)
            self._flat = self._pinned.flat
            views = list(self._views(self._flat))
            for ref, view in zip(refs, views, strict=True):
                ref.assign(view)
            self._tensor_refs = [p._replace(tensor=v) for p, v in zip(refs, views, strict=True)]

    def unpin(self) -> None:
        """Unpin the memory; call when no copy is in progress."""
        if self._pinned is not None:
            self._pinned.unpin()

    def copy_into(self, buffer: Tensor) -> None:
        """Copy the tensors from their source into ``buffer`` (uint8)."""
        if self._flat is not None:
            buffer[: self.nbytes].copy_(self._flat, non_blocking=True)
            return
        for ref, offset in zip(self._tensor_refs, self._offsets, strict=True):
            data = ref.tensor.reshape(-1).view(torch.uint8)
            buffer[offset : offset + len(data)].copy_(data)

    @property
    def contiguous(self) -> bool:
        """True if the tensors are in one range of pinned memory."""
        return self._flat is not None

    def install(self, buffer: Tensor) -> None:
        """Let the layers use views into ``buffer``."""
        for ref, view in zip(self._tensor_refs, self._views(buffer), strict=True):
            ref.assign(view)

    def restore(self) -> None:
        """Let the layers use the source tensors again."""
        for ref in self._tensor_refs:
            ref.assign(ref.tensor)

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for ref, offset in zip(self._tensor_refs, self._offsets, strict=True):
            data = buffer[offset : offset + ref.tensor.nbytes]
            yield data.view(ref.tensor.dtype).view(ref.tensor.shape)


class _DeviceBuffer:
    """Buffer on the device, its CUDA events, and pinned staging memory for unpinned sources.

    ``ready``: the copy into the buffer is complete. ``free``: the computation that used the
    buffer is complete.
    """

    def __init__(self, nbytes: int, device: torch.device, staged: bool) -> None:
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        cuda = device.type == "cuda"
        self.staging = (
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) if cuda and staged else None
        )
        self.ready = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self.free = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        if self.free is not None:
            # The allocator may return memory that pending work on this stream still reads.
            self.free.record(torch.cuda.current_stream(device))


class _BufferRing:
    """Ring of buffers, filled by a worker thread in the order in which blocks are used."""

    def __init__(self, packed_blocks: dict[int, _PackedBlock], device: torch.device) -> None:
        self._packed_blocks, self._device = packed_blocks, device
        self._order = list(packed_blocks)
        size = max((p.nbytes for p in packed_blocks.values()), default=0)
        staged = any(not p.contiguous for p in packed_blocks.values())
        count = min(BUFFERS, len(packed_blocks))
        self._buffers = [_DeviceBuffer(size, device, staged) for _ in range(count)]
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ladder-stream")
        self._pending: deque[tuple[int, _DeviceBuffer, Future[None]]] = deque()
        self._fill_from(0)

    def wait_for(self, number: int) -> Tensor:
        """Wait until block ``number`` has been copied; returns its buffer."""
        if not self._pending or self._pending[0][0] != number:
            self._fill_from(self._order.index(number))  # the last forward was interrupted
        _, buffer_slot, future = self._pending[0]
        future.result()
        if buffer_slot.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(buffer_slot.ready)
        return buffer_slot.buffer

    def release(self, number: int) -> None:
        """Mark block ``number`` as computed and copy the next block into its buffer."""
        _, buffer_slot, _ = self._pending.popleft()
        if buffer_slot.free is not None:
            buffer_slot.free.record(torch.cuda.current_stream(self._device))
        last = self._pending[-1][0] if self._pending else number
        following = (self._order.index(last) + 1) % len(self._order)
        self._submit_copy(self._order[following], buffer_slot)

    def close(self) -> None:
        """Wait for copies in progress and free the buffers."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
        self._pending.clear()
        self._buffers.clear()

    def _fill_from(self, start: int) -> None:
        for _, _, future in self._pending:
            future.result()
        self._pending.clear()
        for k, buffer_slot in enumerate(self._buffers):
            self._submit_copy(self._order[(start + k) % len(self._order)], buffer_slot)

    def _submit_copy(self, number: int, buffer_slot: _DeviceBuffer) -> None:
        self._pending.append(
            (number, buffer_slot, self._worker.submit(self._copy, number, buffer_slot))
        )

    def _copy(self, number: int, buffer_slot: _DeviceBuffer) -> None:
        """Copy a block into a free buffer; runs in the worker thread."""
        packed_block = self._packed_blocks[number]
        if self._stream is None or buffer_slot.free is None or buffer_slot.ready is None:
            packed_block.copy_into(buffer_slot.buffer)
            return
        staging = None if packed_block.contiguous else buffer_slot.staging
        if staging is not None:
            buffer_slot.ready.synchronize()  # the last copy from the staging memory is complete
            packed_block.copy_into(staging)  # a computation may still be using the buffer
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(buffer_slot.free)
            if staging is None:
                packed_block.copy_into(buffer_slot.buffer)
            else:
                buffer_slot.buffer.copy_(staging, non_blocking=True)
            buffer_slot.ready.record(self._stream)


class _PinnedMemory:
    """Pinned memory of exactly ``nbytes`` bytes.

    torch rounds pinned memory up to a power of two, which is a third more RAM for the blocks of
    LTX-2.3. If the system refuses to register the pages (limit on locked memory), torch's own
    pinned memory is used.
    """

    def __init__(self, nbytes: int) -> None:
        allocated = torch.empty(nbytes + 2 * mmap.PAGESIZE, dtype=torch.uint8)
        start = -allocated.data_ptr() % mmap.PAGESIZE
        self.flat = allocated[start : start + nbytes]
        self._is_registered = _pin_pages(self.flat.data_ptr(), nbytes)
        if not self._is_registered:
            self.flat = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def unpin(self) -> None:
        """Unregister the pages; call when no copy is in progress."""
        if self._is_registered:
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(self.flat.data_ptr())
            self._is_registered = False


def _pin_pages(address: int, nbytes: int) -> bool:
    pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return nbytes > 0 and int(runtime.cudaHostRegister(address, pages, 0)) == 0


def _tensor_refs(block: nn.Module) -> list[_TensorRef]:
    return [ref for m in block.modules() if isinstance(m, Linear) for ref in _layer_refs(m)]


def _layer_refs(layer: Linear) -> Iterator[_TensorRef]:
    """The weight of a layer, in its stored form, and the tensors of its branches."""
    if layer.weight is not None:
        yield _TensorRef(layer.weight.data, partial(_assign_weight, layer))
    if layer.quantized_weight is not None:
        for part, tensor in layer.quantized_weight.parts.items():
            yield _TensorRef(tensor, partial(_assign_part, layer, part))
    for index, branch in enumerate(layer.branches):
        for field in fields(branch):
            tensor = getattr(branch, field.name)
            if isinstance(tensor, Tensor):
                yield _TensorRef(tensor, partial(_assign_branch, layer, index, field.name))


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
