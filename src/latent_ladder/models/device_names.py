"""Names of devices as users write them. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from latent_ladder.errors import RequestError

DEVICES = ("auto", "cpu", "cuda", "xpu", "mps")
"""Devices of ``--device``; cuda and xpu may have a number: ``cuda:1``."""


class DeviceName(NamedTuple):
    """Kind of a device and its number, ``None`` where none was named."""

    kind: str
    number: int | None = None

    def __str__(self) -> str:
        return self.kind if self.number is None else f"{self.kind}:{self.number}"


def parse_device(text: str) -> DeviceName:
    """Parse "auto", "cpu" or "cuda:1". Raises :class:`RequestError` for anything else."""
    kind, colon, number = text.partition(":")
    if kind not in DEVICES:
        raise RequestError(f"unknown device {text}", f"use --device {' or '.join(DEVICES)}")
    if not colon:
        return DeviceName(kind)
    if kind not in ("cuda", "xpu"):
        raise RequestError(f"device {text}: there is only one {kind}", f"use --device {kind}")
    if not number.isascii() or not number.isdigit():
        raise RequestError(
            f"device {text}: {number or 'nothing'} is not the number of a GPU",
            f"use --device {kind}:0 for the first one",
        )
    return DeviceName(kind, int(number))


def missing_device(name: DeviceName, count: int) -> RequestError:
    """Error for a device that PyTorch does not see; ``count``: those of its kind that it does."""
    if not count:
        return RequestError(
            f"device {name} is not available in this installation of PyTorch",
            "use --device auto, or install PyTorch with support for your GPU",
        )
    known = f"{name.kind}:0" if count == 1 else f"{name.kind}:0 to {name.kind}:{count - 1}"
    return RequestError(
        f"device {name} does not exist, PyTorch sees {known}",
        f"use --device {name.kind}:{count - 1}, or check CUDA_VISIBLE_DEVICES"
        if name.kind == "cuda"
        else f"use --device {name.kind}:{count - 1}",
    )
