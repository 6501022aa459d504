"""Device guard for the type CUDA in the CPU build of PyTorch, compiled on first use.

The library is compiled once per version of PyTorch and source, into ``build/pretended``.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("guard.cpp")
CACHE = Path(__file__).parents[2] / "build" / "pretended"


def compiler() -> str | None:
    """Path of the C++ compiler: ``CXX``, g++ or clang++; ``None`` if there is none."""
    names = (os.environ.get("CXX"), "g++", "clang++")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@cache
def reason_against() -> str | None:
    """Reason why CUDA cannot be pretended here, ``None`` if it can; compiles the guard."""
    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this PyTorch supports GPUs itself; pretending needs the CPU build"
    if sys.platform != "linux":
        return f"the device guard is compiled on Linux only, this is {sys.platform}"
    if compiler() is None:
        return "no C++ compiler (g++ or clang++) to compile the device guard"
    try:
        _compiled()
    except subprocess.CalledProcessError as error:
        return f"the device guard does not compile: {error.stderr[:500]}"
    return None


@cache
def install() -> None:
    """Register the guard with PyTorch; it stays until the process ends and changes nothing else.

    Raises ``RuntimeError`` with :func:`reason_against`.
    """
    if reason := reason_against():
        raise RuntimeError(reason)
    ctypes.CDLL(str(_compiled())).install()


@cache
def _compiled() -> Path:
    """The compiled library. Raises ``CalledProcessError`` with the compiler's output."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    library = CACHE / f"guard-{key}.so"
    if library.exists():
        return library
    folder = Path(torch.__file__).parent
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:  # other processes may compile too
        made = Path(scratch) / "guard.so"
        command = [
            str(compiler()), "-O1", "-shared", "-fPIC", "-std=c++20", f"-I{folder / 'include'}",
            str(SOURCE), "-o", str(made), f"-L{folder / 'lib'}", "-lc10",
        ]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True, text=True)
        made.replace(library)
    return library
