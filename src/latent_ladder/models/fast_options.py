"""Names of the fast path's switches; no torch.

None of them changes what is computed but for rounding, except ``fp8`` and ``fp4`` (inputs of
matrix products are rounded to 8 or 4 bits) and lossy attention. All are off unless the
user names them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

FAST: Mapping[str, str] = MappingProxyType(
    {
        "attention": "the fastest exact attention, measured (attention=NAME: that one)",
        "fused": "norm, modulation, rotation and gates in one kernel each (Triton)",
        "fp8": "matrix products in fp8 where weights are fp8 and the card multiplies it",
        "fp4": "matrix products in NVFP4 where weights are NVFP4 (Blackwell)",
        "loras": "all LoRAs of a layer as one low-rank product",
        "graphs": "one CUDA graph per kind of forward, where all blocks are on the card",
        "compile": "attention and feed-forward compiled by torch.compile",
    }
)
"""Switches of ``--fast`` and what each does."""


ATTENTION = (
    "sdpa", "cudnn", "flash", "efficient", "flash2", "flash3", "flash4", "sage", "plain",
)  # fmt: skip
"""Names for ``attention=NAME``; sage rounds queries and keys to 8 bits."""


def unknown_switch(names: frozenset[str]) -> str | None:
    """The first name that is no switch, ``None`` if all are."""
    for name in sorted(names):
        switch, _, value = name.partition("=")
        if switch not in FAST or (value and (switch != "attention" or value not in ATTENTION)):
            return name
    return None


def attention_of(names: frozenset[str]) -> str | None:
    """Attention backend that the switches ask for: a name, "auto", or ``None`` for the default."""
    for name in names:
        switch, _, value = name.partition("=")
        if switch == "attention":
            return value or "auto"
    return None
