"""Memory and measured rates of this machine. Imports torch only for a GPU that was named.

Rates are measured by ``ladder bench`` and stored in the user's data folder.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from latent_ladder.errors import MemoryBudgetError, RequestError, StoreError
from latent_ladder.memory.gpus import Gpu, gpus, torch_gpus
from latent_ladder.memory.planner import GIB, Budget, Machine
from latent_ladder.models.device_names import DeviceName, missing_device, parse_device
from latent_ladder.models.fast_options import FAST, unknown_switch
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.user_folders import user_folder

CONTEXT_BYTES = GIB // 2
"""Memory of a CUDA context and its libraries, without any tensor."""
WINDOWS_PINNED = 0.45
"""Share of the RAM that Windows lets a program pin."""


@dataclass(frozen=True)
class MemoryOptions:
    """Memory options of a user, in GiB; ``None`` uses what the machine has.

    ``vram`` is the budget on the device (of the process's memory on the CPU), ``reserve_vram`` is
    left free for other programs, ``ram`` is the limit of pinned memory. ``offload`` is auto, none,
    stream or disk. ``changes`` lists the fallbacks that may alter the picture, each with a warning:
    "tiles" (smaller tiles of the decoder), "fp8" (the transformer stored in fp8). ``fast`` lists
    switches of the fast path, see :data:`latent_ladder.models.fast_options.FAST`.
    """

    vram: float | None = None
    reserve_vram: float = 0.6
    ram: float | None = None
    offload: str = "auto"
    changes: frozenset[str] = frozenset({"tiles"})
    fast: frozenset[str] = frozenset()

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
        if (wrong := unknown_switch(self.fast)) is not None:
            raise RequestError(f"--fast={wrong} is unknown", f"use {', '.join(FAST)}")
        if unknown := self.changes - {"tiles", "fp8"}:
            raise RequestError(
                f"--oom-policy={','.join(sorted(unknown))} is unknown",
                "use same, tiles, fp8 or tiles,fp8",
            )


def ram_bytes() -> int:
    """Bytes of memory that a program may use now without swapping."""
    return int(psutil.virtual_memory().available)


def pinnable_bytes() -> int:
    """Bytes of memory that can be pinned now: Windows pins no more than about half of the RAM."""
    if sys.platform != "win32":
        return ram_bytes()
    return min(ram_bytes(), int(psutil.virtual_memory().total * WINDOWS_PINNED))


def budget(options: MemoryOptions, device: str = "auto") -> Budget:
    """The memory that a run may use on ``device`` ("auto", "cpu", "cuda:1", ...).

    Raises :class:`RequestError` for an unknown device or one that is not there, and
    :class:`MemoryBudgetError` when the reserve leaves nothing.
    """
    name = parse_device(device)
    card = None if name.kind in ("cpu", "mps") else _card(name, options.vram is not None)
    ram = int(options.ram * GIB) if options.ram is not None else pinnable_bytes()
    kind = name.kind.replace("auto", "cpu") if card is None else card.kind
    found = Budget(kind, 0, ram, "" if card is None else card.name, card is None or card.has_bf16)
    if options.vram is not None:
        return replace(found, device_bytes=int(options.vram * GIB))
    free = ram_bytes() if card is None else card.free_bytes - _context_bytes()
    left = free - int(options.reserve_vram * GIB)
    if left <= 0:
        raise MemoryBudgetError(
            f"{free / GIB:.1f} GiB are free on {kind} and {options.reserve_vram:g} are reserved",
            "close other programs, or use a smaller --reserve-vram",
        )
    return replace(found, device_bytes=left)


def _card(name: DeviceName, is_memory_known: bool) -> Gpu | None:
    """The GPU that a run uses; ``None`` for "auto" where there is none.

    A named one is asked of PyTorch, whose numbers are meant. Raises :class:`RequestError`, except
    where ``is_memory_known``: a plan with ``--vram`` may be for a card of another machine.
    """
    if name.kind == "auto":
        return next(iter(gpus()), None)
    if is_memory_known and "torch" not in sys.modules:
        same = [card for card in gpus() if card.kind == name.kind]
        return same[name.number or 0] if (name.number or 0) < len(same) else None
    cards = [card for card in torch_gpus() if card.kind == name.kind]
    number = name.number or 0
    if number >= len(cards):
        raise missing_device(name, len(cards))
    return cards[number]


def _context_bytes() -> int:
    """Memory that CUDA will take for itself: none where PyTorch has started it and counts it."""
    return 0 if "torch" in sys.modules else CONTEXT_BYTES


# --- measured rates ------------------------------------------------------------------------------


def figures_file() -> Path:
    """The file of measured rates; ``LADDER_DATA`` overrides the folder."""
    folder = os.environ.get("LADDER_DATA")
    if folder:
        return Path(folder) / "machine.json"
    return user_folder("data") / "machine.json"


def read_rates(name: str) -> Machine | None:
    """The rates measured for a GPU by its name, or for "cpu" or "mps".

    ``None`` where ``ladder bench`` has not been run on it.
    """
    try:
        rates = json.loads(figures_file().read_text("utf-8"))[name]
        return Machine(**{name: float(rates[name]) for name in ("flops", "copy", "disk")})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_rates(name: str, machine: Machine) -> Path:
    """Store the rates measured for a device, by its name; returns the file.

    Raises :class:`StoreError`.
    """
    path = figures_file()
    try:
        known = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        known = {}
    known[name] = asdict(machine)
    with convert_write_errors(StoreError, path.name, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(known, indent=2).encode())
    return path
