"""GPUs of this machine with their memory. Imports torch only where it has to be asked.

PyTorch knows best: its numbers, its order (``CUDA_VISIBLE_DEVICES``, ``CUDA_DEVICE_ORDER``) and
the memory that it can get. Importing it takes seconds, so where it is not loaded ``nvidia-smi`` is
asked first, in tens of milliseconds, and PyTorch only if that is missing or may use another order.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

QUERY = "name,memory.total,memory.free,uuid,compute_cap"
COMMAND = ("nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
BF16_CAPABILITY = 8.0
DRIVER_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""Device files of NVIDIA's and AMD's driver, and of Windows' below WSL."""
SECONDS = 120


@dataclass(frozen=True)
class Gpu:
    """One GPU and its memory in bytes; ``kind`` is PyTorch's device type (cuda, xpu).

    ``has_bf16``: it computes in bfloat16. ``uuid`` as NVIDIA's driver gives it.
    """

    name: str
    total_bytes: int
    free_bytes: int
    kind: str = "cuda"
    has_bf16: bool = True
    uuid: str = ""


def gpus() -> tuple[Gpu, ...]:
    """GPUs that PyTorch can use, in the order of their numbers; asked anew at each call.

    Without PyTorch in this process the order is that of ``nvidia-smi``, or a child process asks
    PyTorch: this process stays free of it.
    """
    if "torch" in sys.modules:
        return torch_gpus()
    if not may_have_gpus():
        return ()
    found = _driver_gpus()
    return _child_gpus() if found is None else found


def may_have_gpus() -> bool:
    """False where PyTorch is a CPU build or no driver is installed, as far as files can tell."""
    try:
        if version("torch").endswith("+cpu"):
            return False
    except PackageNotFoundError:
        return False
    if sys.platform == "darwin":
        return False
    if sys.platform == "win32" or shutil.which(COMMAND[0]) is not None:
        return True
    return any(Path(name).exists() for name in DRIVER_FILES) or any(
        Path("/dev/dri").glob("render*")
    )


def torch_gpus() -> tuple[Gpu, ...]:
    """GPUs as PyTorch gives them; imports it, and starts CUDA in this process."""
    import torch

    from latent_ladder.models import accelerator

    found = []
    for kind in ("cuda", "xpu"):
        for number in range(accelerator.count(kind)):
            device = torch.device(kind, number)
            free, total = accelerator.free_and_total(device) or (0, 0)
            name, has_bf16 = accelerator.device_name(device), accelerator.has_bf16(device)
            found.append(Gpu(name, total, free, kind, has_bf16))
    return tuple(found)


@cache
def _child_gpus() -> tuple[Gpu, ...]:
    """Result of :func:`torch_gpus` in another process; once, as it takes seconds."""
    try:
        done = subprocess.run(
            (sys.executable, "-m", __name__), capture_output=True, text=True, timeout=SECONDS,
            check=True,
        )  # fmt: skip
        return tuple(Gpu(**entry) for entry in json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError):
        return ()


def _driver_gpus() -> tuple[Gpu, ...] | None:
    """GPUs as ``nvidia-smi`` gives them; ``None`` where it does not answer for PyTorch."""
    if shutil.which(COMMAND[0]) is None:
        return None
    try:
        done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=10, check=True)
        found = tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    # The driver counts by bus; CUDA puts the fastest first unless it is told otherwise.
    is_same_order = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if len({gpu.name for gpu in found}) > 1 and not is_same_order:
        return None
    visible = _visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return tuple(replace(gpu, uuid="") for gpu in visible)


def _gpu(line: str) -> Gpu:
    name, total, free, uuid, capability = (part.strip() for part in line.rsplit(",", 4))
    has_bf16 = float(capability) >= BF16_CAPABILITY
    return Gpu(name, int(total) * 2**20, int(free) * 2**20, "cuda", has_bf16, uuid)


def _visible(found: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """The GPUs that ``CUDA_VISIBLE_DEVICES`` leaves, in its order, up to its first wrong entry."""
    if setting is None:
        return found
    visible: list[Gpu] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isdigit():
            matching = found[int(entry) : int(entry) + 1]
        else:
            matching = tuple(g for g in found if entry and g.uuid.startswith(entry))
        if len(matching) != 1:
            break
        visible += matching
    return tuple(visible)


if __name__ == "__main__":
    sys.stdout.write(json.dumps([asdict(gpu) for gpu in torch_gpus()]))
