"""Names of the fast path's switches; no torch.

None of them changes what is computed but for rounding, except ``fp8`` and ``fp4`` (inputs of
matrix products are rounded to 8 or 4 bits) and lossy attention. All are off unless the
user names them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


def merged_lora_bytes(names: frozenset[str], lora_bytes: Sequence[int]) -> int:
    """Most bytes that the switch ``loras`` adds to those of the LoRAs on the device.

    ``lora_bytes`` are the sizes of the LoRAs in use together. Their low-rank tensors are copied
    where a layer has two or more; other kinds of adapters are not, so it may be less.
    """
    return sum(lora_bytes) if "loras" in names and len(lora_bytes) > 1 else 0


def recording_bytes(names: frozenset[str], activation_bytes: int, io_bytes: int, kinds: int) -> int:
    """Most bytes that the switch ``graphs`` keeps on the device until a stage ends.

    Each of ``kinds`` kinds of forward that are recorded keeps its activations
    (``activation_bytes``, the peak of one forward) and copies of its inputs and outputs
    (``io_bytes``). Forwards of streamed blocks are not recorded: they have 0 kinds.
    """
    return kinds * (activation_bytes + io_bytes) if "graphs" in names else 0
