"""Frames from a device to the host, copied while the device computes the next ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, empty, uint8

from latent_ladder.models.accelerator import device_module, has_streams

SLOTS = 2
"""Chunks in page-locked memory: one that arrives, and one that is read."""


def to_host(chunks: Iterable[Tensor]) -> Iterator[NDArray[Any]]:
    """Arrays with the numbers of ``chunks``, in order; chunks must not be changed afterwards.

    On a device with streams a chunk is copied to page-locked memory on a stream of its own. It is
    yielded when the work of the next one has been launched, so the device computes while the host
    encodes. The arrays belong to the caller.
    """
    waiting: deque[_Arrival] = deque()
    copier: _Copier | None = None
    for chunk in chunks:
        if not has_streams(chunk.device):
            yield chunk.cpu().numpy()
            continue
        copier = copier or _Copier(chunk)
        waiting.append(copier.start(chunk))
        if len(waiting) == SLOTS:
            yield waiting.popleft().array()
    while waiting:
        yield waiting.popleft().array()


@dataclass(frozen=True)
class _Arrival:
    """A copy that is under way; ``source`` stays alive until it has ended."""

    source: Tensor
    target: Tensor
    done: Any

    def array(self) -> NDArray[Any]:
        """The numbers, in memory of their own; waits for the copy."""
        self.done.synchronize()
        return np.array(self.target.numpy())


class _Copier:
    """Stream and ring of page-locked buffers for chunks of one device."""

    def __init__(self, first: Tensor) -> None:
        self._module = device_module(first.device)
        self._stream = self._module.Stream(first.device)
        self._buffers: list[Tensor] = [empty(0, dtype=uint8)] * SLOTS
        self._next = 0

    def start(self, chunk: Tensor) -> _Arrival:
        """Copy a chunk behind the work that was launched so far."""
        target = self._slot(chunk.nbytes).view(chunk.dtype).view(chunk.shape)
        self._stream.wait_stream(self._module.current_stream(chunk.device))
        with self._module.stream(self._stream):
            target.copy_(chunk, non_blocking=True)
            done = self._stream.record_event()
        return _Arrival(chunk, target, done)

    def _slot(self, nbytes: int) -> Tensor:
        index, self._next = self._next, (self._next + 1) % SLOTS
        if len(self._buffers[index]) < nbytes:
            self._buffers[index] = _page_locked(nbytes)
        return self._buffers[index][:nbytes]


def _page_locked(nbytes: int) -> Tensor:
    """Page-locked bytes, or ordinary ones where the system refuses to lock more."""
    try:
        return empty(nbytes, dtype=uint8, pin_memory=True)
    except RuntimeError:
        return empty(nbytes, dtype=uint8)
