"""Measured rates of a device: matrix products, copies to it, reads of a file."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from latent_ladder.errors import MediaError
from latent_ladder.memory.planner import Machine
from latent_ladder.models.accelerator import has_streams, synchronize
from latent_ladder.models.device import Runtime
from latent_ladder.storage.atomic_write import convert_write_errors
from latent_ladder.storage.temporary_files import temporary_folder

REPEATS = 5
SIDES = {"cpu": 2048, "mps": 4096, "cuda": 8192, "xpu": 8192}
"""Sides of the square matrices: large enough for the rate that a stage reaches."""
COPY_BYTES = {"cpu": 2**27, "mps": 2**28, "cuda": 2**30, "xpu": 2**30}
READ_BYTES = 2**29
MFU = 0.75
"""Share of the rate of a bare matrix product that a whole forward reaches: attention, norms and
gates take the rest. Measured on the CPU at pocket and medium size, see
docs/laboratory/benchmarks.md."""


def measure(runtime: Runtime, file: Path | None = None) -> Machine:
    """Rates of a device; ``file`` is read from the disk that the models are on.

    Without a file, one of 512 MiB is written to the temporary folder and read back. Raises
    :class:`MediaError` when ``file`` cannot be read.
    """
    return Machine(
        flops=MFU * _matmul_flops(runtime), copy=_copy_rate(runtime), disk=_disk_rate(file)
    )


def _matmul_flops(runtime: Runtime) -> float:
    side = SIDES[runtime.device.type]
    a = torch.randn(side, side, device=runtime.device).to(runtime.dtype)
    b = torch.randn(side, side, device=runtime.device).to(runtime.dtype)
    return 2 * side**3 / _best_seconds(lambda: a @ b, runtime)


def _copy_rate(runtime: Runtime) -> float:
    kind = runtime.device.type
    source = torch.empty(
        COPY_BYTES[kind], dtype=torch.uint8, pin_memory=has_streams(runtime.device)
    )
    target = torch.empty_like(source, device=runtime.device)
    return len(source) / _best_seconds(lambda: target.copy_(source, non_blocking=True), runtime)


def _best_seconds(work: Callable[[], object], runtime: Runtime) -> float:
    """Seconds of the fastest of ``REPEATS`` runs, after a warm-up run."""
    best = float("inf")
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        work()
        synchronize(runtime.device)
        best = min(best, time.perf_counter() - began)
    return best


def _disk_rate(file: Path | None) -> float:
    if file is not None:
        return _read_rate(file)
    with temporary_folder() as folder:
        path = folder / "read"
        with convert_write_errors(MediaError, "the file to read", folder, READ_BYTES):
            path.write_bytes(os.urandom(2**20) * (READ_BYTES >> 20))
        return _read_rate(path)


def _read_rate(path: Path) -> float:
    """Bytes/s of a sequential read, without the page cache where the system can drop it."""
    buffer = bytearray(2**24)
    try:
        with path.open("rb", buffering=0) as opened:
            with suppress(AttributeError, OSError):
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began, done = time.perf_counter(), 0
            while done < READ_BYTES and (got := opened.readinto(buffer)):
                done += got
    except OSError as error:
        raise MediaError(f"{path} cannot be read: {error}", "name a model file") from error
    if not done:
        raise MediaError(f"{path} is empty", "name a model file of some hundred megabytes")
    return done / (time.perf_counter() - began)
