"""Measured peak memory of a stage.

On a GPU: the memory that PyTorch allocated there. On the CPU: the resident set of the process, from
the kernel's high-water mark. Linux can reset the mark; elsewhere it is that of the whole process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def program_bytes(device: torch.device) -> int:
    """Memory of the process now, on the CPU: the interpreter and its libraries before a model.

    0 on a GPU, where only tensors are counted.
    """
    if device.type == "cuda":
        return 0
    import psutil

    return int(psutil.Process().memory_info().rss)


def reset(device: torch.device) -> None:
    """Begin a new measurement."""
    from latent_ladder.models.accelerator import device_module, has_streams

    if has_streams(device):
        device_module(device).reset_peak_memory_stats(device)
    elif _CLEAR.exists():
        try:
            _CLEAR.write_text("5")
        except (
            OSError
        ):  # not permitted in some containers: the mark is then that of the whole process
            return


def peak_bytes(device: torch.device) -> int:
    """Bytes at the peak since :func:`reset`."""
    from latent_ladder.models.accelerator import device_module, has_streams

    if has_streams(device):
        return int(device_module(device).max_memory_allocated(device))
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
