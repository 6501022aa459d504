"""Block offloading: transformer blocks that do not fit on the device are copied there when needed.

The weights of a block (in their stored form) and its LoRA matrices are copied as contiguous ranges
of bytes into one of a few buffers on the device; while one block is computed, the next is copied.
The source is pinned memory or, if there is not enough of it, the memory-mapped file. The operations
are the same as with all blocks on the device, so results are bit-identical. On the CPU, "the
device" is the process's own memory and the source is the file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latent_ladder.models.accelerator import device_module, has_streams, synchronize
from latent_ladder.models.weights.block_placement import BlockPlacement, PlacedBlock
from latent_ladder.models.weights.offload_schedule import BUFFERS, streamed_block_numbers


@dataclass(frozen=True)
class BlockOffload:
    """Options of block offloading: ``resident`` blocks stay on the device, others are streamed.

    ``pinned``: the streamed blocks are stored in pinned memory (GPUs with streams only). Otherwise
    they are read from where they are, which may be the memory-mapped file.
    """

    resident: int
    pinned: bool = False

    def streamed(self, blocks: int) -> tuple[int, ...]:
        """Numbers of the streamed blocks out of ``blocks``."""
        return streamed_block_numbers(blocks, blocks - self.resident)


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

    Streamed blocks are spread between resident ones, which gives each copy the compute time of
    several blocks. Create a new one when LoRAs change; ``placement`` keeps what the next one can
    use. :meth:`close` frees the buffers; the tensors of streamed blocks are then at rest.
    """

    def __init__(
        self, placement: BlockPlacement, device: torch.device, offload: BlockOffload
    ) -> None:
        self._placement = placement
        streamed = offload.streamed(len(placement.blocks))
        placement.place(streamed, device, offload.pinned and has_streams(device))
        self._streamed = {number: placement.blocks[number] for number in streamed}
        self._ring = _BufferRing(self._streamed, device)

    def blocks(self) -> Iterator[nn.Module]:
        """Iterate over all blocks; a streamed block is valid only until the next one is yielded."""
        for number, placed in enumerate(self._placement.blocks):
            if number not in self._streamed:
                yield placed.module
                continue
            buffer = self._ring.wait_for(number)
            placed.install(buffer)
            try:
                yield placed.module
            finally:
                placed.restore()
                self._ring.release(number)

    def close(self) -> None:
        """Stop copying and free the buffers."""
        self._ring.close()


class _DeviceBuffer:
    """Buffer on the device, its events, and pinned staging memory for unpinned sources.

    ``ready``: the copy into the buffer is complete. ``free``: the computation that used the
    buffer is complete.
    """

    def __init__(self, nbytes: int, device: torch.device, staged: bool) -> None:
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.staging: Tensor | None = None
        self.ready: Any = None
        self.free: Any = None
        if has_streams(device):
            module = device_module(device)
            self.ready, self.free = module.Event(), module.Event()
            # The allocator may return memory that pending work on this stream still reads.
            self.free.record(module.current_stream(device))
            if staged:
                self.staging = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class _BufferRing:
    """Ring of buffers, filled by a worker thread in the order in which blocks are used."""

    def __init__(self, blocks: dict[int, PlacedBlock], device: torch.device) -> None:
        self._blocks, self._device = blocks, device
        self._order = list(blocks)
        size = max((block.nbytes for block in blocks.values()), default=0)
        staged = any(not block.is_pinned for block in blocks.values())
        count = min(BUFFERS, len(blocks))
        self._buffers = [_DeviceBuffer(size, device, staged) for _ in range(count)]
        self._module: Any = device_module(device) if has_streams(device) else None
        self._stream = None if self._module is None else self._module.Stream(device)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ladder-stream")
        self._pending: deque[tuple[int, _DeviceBuffer, Future[None]]] = deque()
        self._fill_from(0)

    def wait_for(self, number: int) -> Tensor:
        """Wait until block ``number`` has been copied; returns its buffer."""
        if not self._pending or self._pending[0][0] != number:
            self._fill_from(self._order.index(number))  # the last forward was interrupted
        _, buffer_slot, future = self._pending[0]
        future.result()
        if self._module is not None:
            self._module.current_stream(self._device).wait_event(buffer_slot.ready)
        return buffer_slot.buffer

    def release(self, number: int) -> None:
        """Mark block ``number`` as computed and copy the next block into its buffer."""
        _, buffer_slot, _ = self._pending.popleft()
        if self._module is not None:
            buffer_slot.free.record(self._module.current_stream(self._device))
        last = self._pending[-1][0] if self._pending else number
        following = (self._order.index(last) + 1) % len(self._order)
        self._submit_copy(self._order[following], buffer_slot)

    def close(self) -> None:
        """Wait for copies in progress and free the buffers."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        synchronize(self._device)
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
        block = self._blocks[number]
        if self._module is None or self._stream is None:
            block.copy_into(buffer_slot.buffer)
            return
        staging = None if block.is_pinned else buffer_slot.staging
        if staging is not None:
            buffer_slot.ready.synchronize()  # the last copy from the staging memory is complete
            block.copy_into(staging)  # a computation may still be using the buffer
        with self._module.stream(self._stream):
            self._stream.wait_event(buffer_slot.free)
            if staging is None:
                block.copy_into(buffer_slot.buffer)
            else:
                buffer_slot.buffer.copy_(staging, non_blocking=True)
            buffer_slot.ready.record(self._stream)
