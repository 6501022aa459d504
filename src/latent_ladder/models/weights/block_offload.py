"""Blocks that do not fit: brought to the device when it is their turn.

The big tensors of a block (weights in their stored form, LoRA matrices beside them) travel as one
run of bytes into one of a few buffers on the device; while one block computes, the next is on its
way. They come from pinned memory or, where that is short too, straight from the mapped file. The
same bytes take part in the same operations as when everything is resident, so results are equal
bit for bit. On the CPU "the device" is the process's own memory and the source is the file.

Knows nothing about what a block computes.
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
from latent_ladder.models.weights.offload_schedule import BUFFERS, spread

ALIGNMENT = 256
"""Bytes; views of any dtype into a buffer start on it, as CUDA kernels like best."""


class _Place(NamedTuple):
    """Where one travelling tensor hangs, and how to hang another in its stead."""

    tensor: Tensor
    put: Callable[[Tensor], None]


@dataclass(frozen=True)
class Residency:
    """How a stack of blocks is held: ``resident`` of them stay on the device.

    ``pinned`` keeps the others in page-locked memory (CUDA only); without it they are read where
    they lie, which may be the mapped file.
    """

    resident: int
    pinned: bool = False


class Walk(Protocol):
    """Something that gives the blocks in order, each one ready to be computed."""

    def blocks(self) -> Iterator[nn.Module]: ...

    def close(self) -> None: ...


class Resident:
    """All blocks are where they are computed."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self._blocks = blocks

    def blocks(self) -> Iterator[nn.Module]:
        """Every block."""
        return iter(self._blocks)

    def close(self) -> None:
        """Nothing to give back."""


class Streamed:
    """Some blocks stay, the others come and go; build it anew when LoRAs change.

    Streamed blocks are spread evenly between resident ones, so that a copy has several blocks'
    time. ``close`` puts every tensor back where it was and frees the buffers.
    """

    def __init__(
        self, blocks: Sequence[nn.Module], device: torch.device, residency: Residency
    ) -> None:
        self._blocks = blocks
        streamed = spread(len(blocks), len(blocks) - residency.resident)
        for number, block in enumerate(blocks):
            if number not in streamed:
                _settle(block, device)
        pin = residency.pinned and device.type == "cuda"
        self._packs: dict[int, _Pack] = {}
        try:
            for number in streamed:
                self._packs[number] = _Pack(_places(blocks[number]), pin)
            self._ring = _Ring(self._packs, device)
        except BaseException:
            self._unlock()
            raise

    def blocks(self) -> Iterator[nn.Module]:
        """Every block; a streamed one is ready only until the next is asked for."""
        for number, block in enumerate(self._blocks):
            pack = self._packs.get(number)
            if pack is None:
                yield block
                continue
            buffer = self._ring.take(number)
            pack.install(buffer)
            try:
                yield block
            finally:
                pack.restore()
                self._ring.release(number)

    def close(self) -> None:
        """Stop copying and let the buffers go."""
        self._ring.close()
        self._unlock()

    def _unlock(self) -> None:
        for pack in self._packs.values():
            pack.unlock()


def travelling_bytes(block: nn.Module) -> int:
    """Bytes of a block that are copied when it is streamed, alignment included."""
    return sum(_aligned(place.tensor.nbytes) for place in _places(block))


def _settle(block: nn.Module, device: torch.device) -> None:
    for place in _places(block):
        if place.tensor.device != device:
            place.put(place.tensor.to(device))


class _Pack:
    """The travelling tensors of one block: where they live and where they lie in a buffer."""

    def __init__(self, places: Sequence[_Place], pin: bool) -> None:
        self._places = places
        ends = []
        self.nbytes = 0
        for place in places:
            ends.append(self.nbytes)
            self.nbytes += _aligned(place.tensor.nbytes)
        self._offsets = ends
        self._locked = _PageLocked(self.nbytes) if pin else None
        self._flat: Tensor | None = None
        if self._locked is not None:
            self.gather(self._locked.flat)
            self._flat = self._locked.flat
            views = list(self._views(self._flat))
            for place, view in zip(places, views, strict=True):
                place.put(view)
            self._places = [p._replace(tensor=v) for p, v in zip(places, views, strict=True)]

    def unlock(self) -> None:
        """Let the memory be paged out again; call when no copy is under way."""
        if self._locked is not None:
            self._locked.unlock()

    def gather(self, buffer: Tensor) -> None:
        """Copy the tensors into a buffer, from wherever they are."""
        if self._flat is not None:
            buffer[: self.nbytes].copy_(self._flat, non_blocking=True)
            return
        for place, offset in zip(self._places, self._offsets, strict=True):
            data = place.tensor.reshape(-1).view(torch.uint8)
            buffer[offset : offset + len(data)].copy_(data)

    @property
    def contiguous(self) -> bool:
        """Whether the tensors lie in one page-locked run."""
        return self._flat is not None

    def install(self, buffer: Tensor) -> None:
        """Hang views into ``buffer`` in the places of the tensors."""
        for place, view in zip(self._places, self._views(buffer), strict=True):
            place.put(view)

    def restore(self) -> None:
        """Hang the tensors at home back."""
        for place in self._places:
            place.put(place.tensor)

    def _views(self, buffer: Tensor) -> Iterator[Tensor]:
        for place, offset in zip(self._places, self._offsets, strict=True):
            data = buffer[offset : offset + place.tensor.nbytes]
            yield data.view(place.tensor.dtype).view(place.tensor.shape)


class _Slot:
    """A buffer on the device, what it waits for, and the staging memory in front of it."""

    def __init__(self, nbytes: int, device: torch.device, staged: bool) -> None:
        self.buffer = torch.empty(nbytes, dtype=torch.uint8, device=device)
        cuda = device.type == "cuda"
        self.staging = (
            torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) if cuda and staged else None
        )
        self.ready = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self.free = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        if self.free is not None:
            # The allocator may hand out memory that work under way on this stream still reads.
            self.free.record(torch.cuda.current_stream(device))


class _Ring:
    """Fills buffers in the order blocks are used, round and round, ahead of their use."""

    def __init__(self, packs: dict[int, _Pack], device: torch.device) -> None:
        self._packs, self._device = packs, device
        self._order = list(packs)
        size = max((p.nbytes for p in packs.values()), default=0)
        staged = any(not p.contiguous for p in packs.values())
        count = min(BUFFERS, len(packs))
        self._slots = [_Slot(size, device, staged) for _ in range(count)]
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="ladder-stream")
        self._coming: deque[tuple[int, _Slot, Future[None]]] = deque()
        self._fill_from(0)

    def take(self, number: int) -> Tensor:
        """The buffer that holds block ``number``; waits until it has arrived."""
        if not self._coming or self._coming[0][0] != number:
            self._fill_from(self._order.index(number))  # a forward was broken off
        _, slot, future = self._coming[0]
        future.result()
        if slot.ready is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.ready)
        return slot.buffer

    def release(self, number: int) -> None:
        """Block ``number`` was computed: its buffer takes the next one that is not on its way."""
        _, slot, _ = self._coming.popleft()
        if slot.free is not None:
            slot.free.record(torch.cuda.current_stream(self._device))
        last = self._coming[-1][0] if self._coming else number
        following = (self._order.index(last) + 1) % len(self._order)
        self._send(self._order[following], slot)

    def close(self) -> None:
        """Wait for what is on its way and free the buffers."""
        self._worker.shutdown(wait=True, cancel_futures=True)
        if self._stream is not None:
            torch.cuda.synchronize(self._device)
        self._coming.clear()
        self._slots.clear()

    def _fill_from(self, start: int) -> None:
        for _, _, future in self._coming:
            future.result()
        self._coming.clear()
        for k, slot in enumerate(self._slots):
            self._send(self._order[(start + k) % len(self._order)], slot)

    def _send(self, number: int, slot: _Slot) -> None:
        self._coming.append((number, slot, self._worker.submit(self._copy, number, slot)))

    def _copy(self, number: int, slot: _Slot) -> None:
        """In the worker: bring a block into a buffer that is no longer read."""
        pack = self._packs[number]
        if self._stream is None or slot.free is None or slot.ready is None:
            pack.gather(slot.buffer)
            return
        staging = None if pack.contiguous else slot.staging
        if staging is not None:
            slot.ready.synchronize()  # what was staged last has left
            pack.gather(staging)  # while the buffer may still be computed with
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(slot.free)
            if staging is None:
                pack.gather(slot.buffer)
            else:
                slot.buffer.copy_(staging, non_blocking=True)
            slot.ready.record(self._stream)


class _PageLocked:
    """Memory that a GPU copies from by itself, of just the size asked for.

    torch's own pinned memory is rounded up to a power of two, a third more RAM for blocks of
    2.3. Where registering is refused (a limit on locked memory) torch's is used.
    """

    def __init__(self, nbytes: int) -> None:
        whole = torch.empty(nbytes + 2 * mmap.PAGESIZE, dtype=torch.uint8)
        start = -whole.data_ptr() % mmap.PAGESIZE
        self.flat = whole[start : start + nbytes]
        self._registered = _register(self.flat.data_ptr(), nbytes)
        if not self._registered:
            self.flat = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)

    def unlock(self) -> None:
        """Ordinary memory again; call when no copy is under way."""
        if self._registered:
            runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            runtime.cudaHostUnregister(self.flat.data_ptr())
            self._registered = False


def _register(address: int, nbytes: int) -> bool:
    pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return nbytes > 0 and int(runtime.cudaHostRegister(address, pages, 0)) == 0


def _places(block: nn.Module) -> list[_Place]:
    return [place for m in block.modules() if isinstance(m, Linear) for place in _of(m)]


def _of(layer: Linear) -> Iterator[_Place]:
    """The weight, however it is stored, and the matrices of every branch."""
    if layer.weight is not None:
        yield _Place(layer.weight.data, partial(_put_weight, layer))
    if layer.stored is not None:
        for part, tensor in layer.stored.parts.items():
            yield _Place(tensor, partial(_put_part, layer, part))
    for index, branch in enumerate(layer.branches):
        for field in fields(branch):
            tensor = getattr(branch, field.name)
            if isinstance(tensor, Tensor):
                yield _Place(tensor, partial(_put_branch, layer, index, field.name))


def _put_weight(layer: Linear, tensor: Tensor) -> None:
    layer.weight = nn.Parameter(tensor, requires_grad=False)


def _put_part(layer: Linear, part: str, tensor: Tensor) -> None:
    if layer.stored is not None:
        layer.stored = replace(layer.stored, parts={**layer.stored.parts, part: tensor})


def _put_branch(layer: Linear, index: int, name: str, tensor: Tensor) -> None:
    branches: list[Branch] = list(layer.branches)
    changed: dict[str, Any] = {name: tensor}
    branches[index] = replace(branches[index], **changed)
    layer.branches = tuple(branches)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
