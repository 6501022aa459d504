"""Memory, GPUs and measured rates of this machine. Does not import torch.

GPUs are queried with ``nvidia-smi``, which answers in tens of milliseconds where importing torch
takes seconds. Rates are measured by ``ladder bench`` and stored in the user's data folder.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import psutil

from latent_ladder.errors import MemoryBudgetError, RequestError, StoreError
from latent_ladder.memory.planner import GIB, Budget, Machine
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.user_folders import user_folder

QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits")
CONTEXT_BYTES = GIB // 2
"""Memory of a CUDA context and its libraries, without any tensor."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU and its memory in bytes."""

    name: str
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class MemoryOptions:
    """Memory options of a user, in GiB; ``None`` uses what the machine has.

    ``vram`` is the budget on the device (of the process's memory on the CPU), ``reserve_vram`` is
    left free for other programs, ``ram`` is the limit of pinned memory. ``offload`` is auto, none,
    stream or disk. ``changes`` lists the fallbacks that may alter the picture, each with a warning:
    "tiles" (smaller tiles of the decoder), "fp8" (the transformer stored in fp8).
    """

    vram: float | None = None
    reserve_vram: float = 0.6
    ram: float | None = None
    offload: str = "auto"
    changes: frozenset[str] = frozenset({"tiles"})

    def __post_init__(self) -> None:
        for name, value in (("--vram", self.vram), ("--ram", self.ram)):
            if value is not None and not 0 < value < 2**20:
                raise RequestError(f"{name}={value} is not a size in GiB", f"use {name} 16")
        if not 0 <= self.reserve_vram < 2**20:
            raise RequestError(
                f"--reserve-vram={self.reserve_vram} is not a size in GiB", "use --reserve-vram 0.6"
            )
        if self.offload not in ("auto", "none", "stream", "disk"):
            raise RequestError(
                f"--offload={self.offload} is unknown", "use auto, none, stream or disk"
            )
        if unknown := self.changes - {"tiles", "fp8"}:
            raise RequestError(
                f"--oom-policy={','.join(sorted(unknown))} is unknown",
                "use same, tiles, fp8 or tiles,fp8",
            )


@cache
def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs in the order of their numbers; empty where there are none or no driver."""
    if shutil.which(QUERY[0]) is None:
        return ()
    import subprocess  # a seventh of the import time of this module, needed only with a GPU

    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=10, check=True)
        return tuple(_gpu(line) for line in done.stdout.splitlines() if line.strip())
    except (OSError, subprocess.SubprocessError, ValueError):
        return ()


def _gpu(line: str) -> Gpu:
    name, total, free = (part.strip() for part in line.rsplit(",", 2))
    return Gpu(name, int(total) * 2**20, int(free) * 2**20)


def ram_bytes() -> int:
    """Bytes of memory that a program may use now without swapping."""
    return int(psutil.virtual_memory().available)


def budget(options: MemoryOptions, device: str = "auto") -> Budget:
    """The memory that a run may use on ``device`` (auto, cpu, cuda, mps).

    Raises :class:`MemoryBudgetError` when the reserve leaves nothing.
    """
    cards = gpus() if device in ("auto", "cuda") or device.startswith("cuda:") else ()
    number = int(device.partition(":")[2] or 0)
    kind = "cuda" if len(cards) > number else device.partition(":")[0].replace("auto", "cpu")
    ram = int(options.ram * GIB) if options.ram is not None else ram_bytes()
    if options.vram is not None:
        return Budget(kind, int(options.vram * GIB), ram)
    free = cards[number].free_bytes - CONTEXT_BYTES if kind == "cuda" else ram
    left = free - int(options.reserve_vram * GIB)
    if left <= 0:
        raise MemoryBudgetError(
            f"{free / GIB:.1f} GiB are free on {kind} and {options.reserve_vram:g} are reserved",
            "close other programs, or use a smaller --reserve-vram",
        )
    return Budget(kind, left, ram)


# --- measured rates ------------------------------------------------------------------------------


def figures_file() -> Path:
    """The file of measured rates; ``LADDER_DATA`` overrides the folder."""
    folder = os.environ.get("LADDER_DATA")
    if folder:
        return Path(folder) / "machine.json"
    return user_folder("data") / "machine.json"


def device_name(device: str) -> str:
    """The name of a device in the file of rates: the GPU's, or "cpu"."""
    cards = gpus()
    return cards[0].name if device == "cuda" and cards else device


def read_rates(device: str) -> Machine | None:
    """The rates measured for a device, ``None`` where ``ladder bench`` has not been run on it."""
    try:
        rates = json.loads(figures_file().read_text("utf-8"))[device_name(device)]
        return Machine(**{name: float(rates[name]) for name in ("flops", "copy", "disk")})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_rates(device: str, machine: Machine) -> Path:
    """Store measured rates; returns the file. Raises :class:`StoreError`."""
    path = figures_file()
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    known[device_name(device)] = asdict(machine)
    with convert_write_errors(StoreError, path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=2).encode())
    return path
