"""Kernel launches and bytes that a forward of LTX-2.3 moves, with and without the fast path.

    python benchmarks/gpu/traffic.py

Counted, not timed: on a pretended card that has shapes but no numbers, two blocks of the real
width, times 24. Bytes are those of each kernel's tensors, read and written, without caches. Needs
torch's CPU build and a C++ compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gpu_report  # noqa: F401
import pytest
import torch
from forwards import REAL, Stage, build, config, our_call, workload
from pretended import ghost
from pretended.standins import Card, Machine

from latent_ladder.models.lora.adapters import merge_low_rank
from latent_ladder.models.transformer import fused
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.weights.linear import Linear, LowRank
from latent_ladder.models.weights.quantize_fp8 import is_fp8_weight
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

LAYERS = 2
TIMES = 48 // LAYERS
DEVICE = torch.device("cuda")
RANK, LORAS = 64, 3
PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "attention", "_scaled_mm")


@dataclass
class _Kernel:
    """Stand-in of a Triton kernel: a launch that reads and writes its tensors."""

    log: ghost.Log
    name: str

    def __getitem__(self, _grid: object) -> Callable[..., None]:
        def launch(*args: Any, **_: Any) -> None:
            tensors = [a for a in args if isinstance(a, torch.Tensor)]
            written = 2 if self.name == "gate_heads_kernel" else 1
            sizes = [t.numel() * t.element_size() for t in tensors]
            sizes[0] *= written
            self.log.launches[self.log.stage, self.name] += 1
            self.log.moved[self.log.stage, self.name] += sum(sizes)

        return launch


@dataclass
class _Kernels:
    log: ghost.Log

    def __getattr__(self, name: str) -> _Kernel:
        return _Kernel(self.log, name)


def blocks(model: Transformer) -> Iterator[tuple[str, Linear]]:
    """Matrices of blocks that fp8 and LoRAs apply to."""
    for name, module in model.named_modules():
        if isinstance(module, Linear) and is_fp8_weight(f"{name}.weight"):
            yield name, module


def with_fp8(model: Transformer) -> None:
    """Weights of blocks in fp8 with one scale."""
    for _, layer in blocks(model):
        shape = (layer.out_features, layer.in_features)
        parts = {
            "weight": torch.empty(shape, dtype=torch.float8_e4m3fn, device=DEVICE),
            "weight_scale": torch.ones((), device=DEVICE),
        }
        layer.set_weight(QuantizedTensor("fp8_e4m3", shape, parts), torch.bfloat16)


def with_loras(model: Transformer, merged: bool) -> None:
    """Three LoRAs of rank 64 on the matrices of blocks."""
    for _, layer in blocks(model):
        down = torch.empty(RANK, layer.in_features, dtype=torch.bfloat16, device=DEVICE)
        up = torch.empty(layer.out_features, RANK, dtype=torch.bfloat16, device=DEVICE)
        branches = tuple(LowRank(0.5, down, up) for _ in range(LORAS))
        layer.branches = merge_low_rank(branches) if merged else branches


def nothing(_: Transformer) -> None:
    """The plain forward in bf16."""


CASES: dict[str, Callable[[Transformer], None]] = {
    "bf16": nothing,
    "bf16, fused": lambda model: model.use_fused(True),
    "three LoRAs": lambda model: with_loras(model, merged=False),
    "three LoRAs, loras": lambda model: with_loras(model, merged=True),
    "fp8 file": with_fp8,
}


@contextmanager
def pretended() -> Iterator[ghost.Log]:
    """A card of any size, with counted stand-ins of the Triton kernels."""
    machine = Machine([Card(total_bytes=2**50)])
    with ghost.pretend(machine) as log, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_kernels", lambda: _Kernels(log))
        yield log


def count(stage: Stage, change: Callable[[Transformer], None]) -> tuple[int, int, float, float]:
    """Launches, of them products, and bytes of all kernels and of those that are no products."""
    with pretended() as log, torch.no_grad():
        shape = replace(config(tiny=False), layers=LAYERS)
        model = build(shape, DEVICE)
        change(model)
        call = our_call(model, workload(stage, shape, DEVICE), False)
        log.stage = "forward"
        call()
        launches = {name: n for (s, name), n in log.launches.items() if s == "forward"}
        moved = {name: n for (s, name), n in log.moved.items() if s == "forward"}
    other = sum(n for name, n in moved.items() if name not in PRODUCTS)
    products = sum(n for name, n in launches.items() if name in PRODUCTS)
    return (
        sum(launches.values()) * TIMES,
        products * TIMES,
        sum(moved.values()) * TIMES / 1e9,
        other * TIMES / 1e9,
    )


def main() -> None:
    print("| stage | forward | launches | of them products | GB moved | without products |")
    print("|---|---|---|---|---|---|")
    for stage in REAL:
        for name, change in CASES.items():
            launches, products, moved, other = count(stage, change)
            title = stage.name.partition(",")[0]
            print(
                f"| {title} | {name} | {launches:,} | {products:,} | {moved:,.0f} | {other:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
