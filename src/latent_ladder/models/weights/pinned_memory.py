"""Page-locked ("pinned") memory of the host, which a GPU copies from without the CPU's help."""

from __future__ import annotations

import mmap
import weakref
from contextlib import suppress

import torch
from torch import Tensor


class PinnedMemory:
    """Pinned memory of exactly ``nbytes`` bytes: ``flat`` (uint8).

    torch rounds pinned memory up to a power of two, which is a third more RAM for the blocks of
    LTX-2.3, so ordinary memory is registered with CUDA. If that is refused (limit on locked memory)
    or the device is not a CUDA one, torch's own pinned memory is used; that may raise an
    out-of-memory error. The memory is unregistered when the object is deleted.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        registered = _registered(nbytes, device) if device.type == "cuda" and nbytes else None
        if registered is None:
            self.flat = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
            return
        self.flat, allocated = registered
        # Passing the memory itself keeps it alive until it has been unregistered.
        weakref.finalize(self, _unregister, allocated, self.flat.data_ptr()).atexit = False


def _registered(nbytes: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Registered bytes and the memory that they are a part of; ``None`` if it was refused."""
    allocated = torch.empty(nbytes + 2 * mmap.PAGESIZE, dtype=torch.uint8)
    start = -allocated.data_ptr() % mmap.PAGESIZE
    pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(allocated.data_ptr() + start, pages, 0)) != 0:
        _clear_last_error(device)
        return None
    return allocated[start : start + nbytes], allocated


def _unregister(_: Tensor, address: int) -> None:
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    runtime.cudaHostUnregister(address)


def _clear_last_error(device: torch.device) -> None:
    """Launch a kernel that takes CUDA's last error, which would fail the next launch otherwise."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
    torch.cuda.synchronize(device)
