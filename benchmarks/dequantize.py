"""Time of dequantising weights, compared with gguf-py (GGML types) and comfy-kitchen (others).

    python benchmarks/dequantize.py [--rows 4096] [--columns 4096] [--threads 1] [--repeat 5]

Needs ``pip install gguf comfy-kitchen packaging``; rows of a missing library have no comparison.
Prints a table: our time to float32 (with one thread its processor time, which other processes
affect less), the other library's time, the ratio (below 1: ours is faster), the largest
difference of the results, and the relative L2 error of the format on normal random weights, if an
encoder is available.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latent_ladder.models.weights.dequantize_ggml import GGML_BLOCKS
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

sys.path.append(str(Path(__file__).parents[1] / "training" / "pocket"))
from k_types import ENCODERS

CLOCK = {True: time.process_time, False: time.perf_counter}
"""Clock by number of threads: True for a single thread."""


@dataclass(frozen=True)
class Case:
    """Quantised matrix, the other library's decoder for it, and the original matrix, if known."""

    stored: QuantizedTensor
    rival: Callable[[], Any] | None
    original: Tensor | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("rows", 4096), ("columns", 4096), ("threads", 1), ("repeat", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    weight = torch.randn(args.rows, args.columns, generator=torch.Generator().manual_seed(0)) * 0.02
    cases = kitchen_cases(weight) | ggml_cases(weight)
    print(
        f"{args.rows} x {args.columns} to float32, {args.threads} thread(s), best of {args.repeat}"
    )
    print(
        f"{'format':10}{'ours ms':>9}{'rival ms':>10}{'ratio':>7}{'max diff':>10}{'rel. error':>11}"
    )
    for name, case in cases.items():
        print(f"{name:10}" + measure_case(case, args.repeat), flush=True)


def measure_case(case: Case, repeat: int) -> str:
    """Measure one format and return its table row; both sides alternate within a run."""
    ours, theirs = [], []
    for _ in range(repeat):
        ours.append(time_call(lambda: case.stored.dequantize(torch.float32)))
        if case.rival is not None:
            theirs.append(time_call(case.rival))
    got = case.stored.dequantize(torch.float32)
    text = f"{min(ours) * 1e3:9.1f}"
    if case.rival is None:
        text += f"{'-':>10}{'-':>7}{'-':>10}"
    else:
        diff = (got - torch.as_tensor(case.rival()).float()).abs().max().item()
        text += f"{min(theirs) * 1e3:10.1f}{min(ours) / min(theirs):7.2f}{diff:10.1e}"
    if case.original is None:
        return text + f"{'-':>11}"
    return text + f"{((got - case.original).norm() / case.original.norm()).item():11.2%}"


def time_call(call: Callable[[], Any]) -> float:
    start = CLOCK[torch.get_num_threads() == 1]()
    call()
    return CLOCK[torch.get_num_threads() == 1]() - start


def import_optional(name: str) -> Any:
    """Import a module; ``None`` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# --- comfy-kitchen --------------------------------------------------------------------------------

LAYOUTS: dict[str, tuple[str, dict[str, bool]]] = {
    "fp8_e4m3": ("TensorCoreFP8Layout", {}),
    "nvfp4": ("TensorCoreNVFP4Layout", {}),
    "mxfp8": ("TensorCoreMXFP8Layout", {}),
    "int8": ("TensorWiseINT8Layout", {}),
    "int8 rows": ("TensorWiseINT8Layout", {"per_channel": True}),
    "int8 rot.": ("TensorWiseINT8Layout", {"per_channel": True, "convrot": True}),
}


def kitchen_cases(weight: Tensor) -> dict[str, Case]:
    """Matrices encoded by comfy-kitchen; empty if it is not installed."""
    kitchen = import_optional("comfy_kitchen.tensor")
    if kitchen is None:
        return {}
    return {name: kitchen_case(kitchen, weight, name) for name in LAYOUTS}


def kitchen_case(kitchen: Any, weight: Tensor, name: str) -> Case:
    layout, options = LAYOUTS[name]
    encoded = kitchen.QuantizedTensor.from_float(weight, layout, **options)
    parts = dict(encoded.state_dict("weight"))
    stored = QuantizedTensor(name.split()[0], tuple(weight.shape), parts, options)
    return Case(stored, encoded.dequantize, weight)


# --- gguf-py --------------------------------------------------------------------------------------


def ggml_cases(weight: Tensor) -> dict[str, Case]:
    """Matrices of every GGML type: K types encoded by this project, others by gguf-py."""
    gguf = import_optional("gguf")
    return {name: ggml_case(gguf, weight, name) for name in GGML_BLOCKS}


def ggml_case(gguf: Any, weight: Tensor, name: str) -> Case:
    original: Tensor | None = weight
    if name in ENCODERS:
        blocks = ENCODERS[name](weight.numpy())
    elif gguf is None:
        blocks, original = random_blocks(name, weight.numel()).reshape(len(weight), -1), None
    else:
        type_ = gguf.GGMLQuantizationType[name.upper()]
        blocks = gguf.quants.quantize(weight.numpy(), type_)
    stored = QuantizedTensor(name, tuple(weight.shape), {"weight": torch.from_numpy(blocks)})
    if gguf is None:
        return Case(stored, None, original)
    type_ = gguf.GGMLQuantizationType[name.upper()]
    return Case(stored, lambda: gguf.quants.dequantize(blocks, type_), original)


def random_blocks(name: str, weights: int) -> np.ndarray:
    """Random blocks of a type with small finite scales, uint8 (n, bytes)."""
    block, random = GGML_BLOCKS[name], np.random.default_rng(0)
    blocks = random.integers(0, 256, (weights // block.weights, block.bytes), dtype=np.uint8)
    for at in block.float16_offsets:
        half = random.uniform(0.0, 0.01, (len(blocks), 1)).astype(np.float16)
        blocks[:, at : at + 2] = half.view(np.uint8)
    return blocks


if __name__ == "__main__":
    main()
