"""Accelerators (NVIDIA and AMD: ``cuda``, Intel: ``xpu``, Apple: ``mps``) behind one set of calls.

The modules ``torch.cuda`` and ``torch.xpu`` have the same functions for streams, events and memory;
:func:`device_module` returns the one of a device. AMD's cards are ``cuda`` devices of a ROCm build.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import torch

KINDS = ("cuda", "xpu", "mps")
"""Device types in the order in which "auto" prefers them."""
BF16_CAPABILITY = (8, 0)
FP8_CAPABILITY = (8, 9)
FP4_CAPABILITY = (10, 0)
ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")


def has_streams(device: torch.device) -> bool:
    """True if copies to the device can overlap with its work."""
    return device.type in ("cuda", "xpu")


def device_module(device: torch.device) -> Any:
    """The module with streams, events and memory of a device of a kind with streams."""
    return torch.get_device_module(device.type)


def count(kind: str) -> int:
    """Number of devices of a kind that PyTorch can use; the CPU is one."""
    if kind == "cpu":
        return 1
    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = torch.get_device_module(kind)
    return module.device_count() if module.is_available() else 0


def free_and_total(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a device's own memory; ``None`` for CPU and Apple GPUs.

    Memory that PyTorch keeps for its next tensors counts as free.
    """
    if not has_streams(device):
        return None
    module = device_module(device)
    free, total = module.mem_get_info(device)
    cached = module.memory_reserved(device) - module.memory_allocated(device)
    return int(free) + int(cached), int(total)


def device_name(device: torch.device) -> str:
    """Name of a device as its driver gives it, or its type."""
    return device_module(device).get_device_name(device) if has_streams(device) else device.type


def allocated_bytes(device: torch.device) -> int:
    """Bytes of tensors on a device; 0 where PyTorch does not count them."""
    return int(device_module(device).memory_allocated(device)) if has_streams(device) else 0


def return_cached_memory(device: torch.device) -> None:
    """Give memory that PyTorch caches back to the driver."""
    if has_streams(device):
        device_module(device).empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def synchronize(device: torch.device) -> None:
    """Let the host wait for all work on a device."""
    if has_streams(device):
        device_module(device).synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def has_bf16(device: torch.device) -> bool:
    """True if a device computes in bfloat16 itself: NVIDIA from Ampere on, AMD, Intel, Apple.

    Turing and older cards only emulate it, at a fraction of the speed of float32.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return device.type != "cpu"
    return bool(torch.cuda.get_device_capability(device) >= BF16_CAPABILITY)


def has_fp8_products(device: torch.device) -> bool:
    """True if ``torch._scaled_mm`` multiplies e4m3: NVIDIA from Ada (8.9) on.

    AMD's fp8 has other exponents, so files of e4m3 do not fit.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return bool(torch.cuda.get_device_capability(device) >= FP8_CAPABILITY)


def has_fp4_products(device: torch.device) -> bool:
    """True if a card multiplies e2m1 with block scales: NVIDIA from Blackwell (10.0) on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return bool(torch.cuda.get_device_capability(device) >= FP4_CAPABILITY)


def prepare(device: torch.device, limit_bytes: int | None = None) -> None:
    """Set up the allocator of an NVIDIA GPU; call before the first tensor is on it.

    Segments become expandable where the system supports it (Linux) and the user has chosen no
    settings, which avoids most fragmentation. On Windows the process is limited to ``limit_bytes``
    of the card: the driver would otherwise move memory to RAM without an error, many times slower,
    and no fallback would be taken.
    """
    if device.type != "cuda" or torch.version.hip is not None:
        return
    if _has_expandable_segments() and not any(name in os.environ for name in ALLOCATOR_VARIABLES):
        torch.cuda.memory._set_allocator_settings("expandable_segments:True")
    if limit_bytes is not None and spills_silently():
        _, total = torch.cuda.mem_get_info(device)
        share = max(min(limit_bytes / total, 1.0), 0.0)
        torch.cuda.set_per_process_memory_fraction(share, device)


def spills_silently() -> bool:
    """True on Windows, also below WSL: the driver moves memory of a full card to RAM."""
    return sys.platform == "win32" or _is_wsl()


def _has_expandable_segments() -> bool:
    return sys.platform == "linux" and not _is_wsl()


def _is_wsl() -> bool:
    return sys.platform == "linux" and "microsoft" in platform.release().lower()
