"""Page-locked ("pinned") memory of the host, which a GPU copies from without the CPU's help."""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

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
        self.flat, release = registered
        weakref.finalize(self, release).atexit = False


def _registered(nbytes: int, device: torch.device) -> tuple[Tensor, Callable[[], None]] | None:
    """Registered bytes, and a function that unregisters them; ``None`` if it was refused."""
    allocated = torch.empty(nbytes + 2 * mmap.PAGESIZE, dtype=torch.uint8)
    start = -allocated.data_ptr() % mmap.PAGESIZE
    pages = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if int(runtime.cudaHostRegister(allocated.data_ptr() + start, pages, 0)) != 0:
        _clear_last_error(device)
        return None
    flat = allocated[start : start + nbytes]
    # The memory itself is an argument: it stays alive until it has been unregistered.
    return flat, partial(_unregister, runtime, allocated, flat.data_ptr())


def _unregister(runtime: Any, _: Tensor, address: int) -> None:
    runtime.cudaHostUnregister(address)


def _clear_last_error(device: torch.device) -> None:
    """Launch a kernel that takes CUDA's last error, which would fail the next launch otherwise."""
    with suppress(RuntimeError):
        torch.zeros(1, device=device).add_(1)
    torch.cuda.synchronize(device)
