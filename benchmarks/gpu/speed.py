"""Speed of forwards, kernels and products on the first GPU, in less than ten minutes.

    python benchmarks/gpu/speed.py                  # a CUDA device with 80 GB
    python benchmarks/gpu/speed.py --tiny           # a rehearsal on the CPU
    python benchmarks/gpu/speed.py --pretend twin   # the same on a pretended GPU

No network. Wheels: torch (a CUDA build), diffusers 0.42.1 and transformers for the other side (left
out where they are missing), and what the package itself needs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from forwards import (
    REAL,
    TINY,
    build,
    config,
    flops,
    matmul_rate,
    measure,
    our_call,
    rival_call,
    workload,
)
from gpu_report import Campaign, Row, campaign
from rival import build_rival

from latent_ladder.models.transformer import fused
from latent_ladder.models.transformer.attention_backends import fastest, measure_backends
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.weights.linear import native_fp8_linear, supports_native_fp8
from latent_ladder.models.weights.quantize_fp8 import quantize_fp8
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

BF16 = torch.bfloat16
ATTENTION = ((32, 32640, 128), (32, 8160, 128))
PRODUCTS = ((8192, 4096, 4096), (8192, 4096, 16384), (8192, 16384, 4096), (1024, 4096, 4096))
"""Rows, input and output width of products of a block."""
CHUNKS = (2048, 4096, 8192, 16384, 32768)
TOP = 25


def seconds(call: Callable[[], object], run: Campaign) -> float:
    """Median seconds of a call after a first one."""
    return measure(call, run.device, 1 if run.tiny else 3)["seconds"]


def time_attention(run: Campaign) -> Iterator[Row]:
    """Attention backends at the sizes of both stages."""
    for shape in ((4, 256, 32),) if run.tiny else ATTENTION:
        measured = measure_backends(run.device, BF16, shape)
        for one in measured:
            value = one.note[:26] if one.seconds is None else f"{one.seconds * 1e3:.2f} ms"
            yield Row(f"attention {one.name} {shape}", value, numbers=vars(one))
        yield Row(f"fastest exact at {shape}", fastest(measured))


def dequantise_and_multiply(x: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
    """The product of a quantised weight as every card can compute it."""
    return F.linear(x, weight.dequantize(BF16))


def time_products(run: Campaign) -> Iterator[Row]:
    """fp8 products against bf16, and against dequantising first."""
    for rows, inner, outer in ((64, 64, 64),) if run.tiny else PRODUCTS:
        x = torch.randn(rows, inner, device=run.device, dtype=BF16)
        dense = torch.randn(outer, inner, device=run.device, dtype=BF16)
        weight, name = quantize_fp8(dense), f"{rows}x{inner}x{outer}"
        times = {
            "bf16": seconds(partial(F.linear, x, dense), run),
            "fp8 dequantised": seconds(partial(dequantise_and_multiply, x, weight), run),
        }
        if run.device.type == "cpu" or supports_native_fp8(x, weight):
            times["fp8 product"] = seconds(partial(native_fp8_linear, x, weight, None), run)
        for kind, value in times.items():
            rate = 2 * rows * inner * outer / value / 1e12
            yield Row(f"{name}, {kind}", f"{value * 1e3:.3f} ms, {rate:.0f} TFLOP/s",
                      numbers={"seconds": value})  # fmt: skip


class Forwards:
    """The large transformer and its measurements; loaded once."""

    def __init__(self, run: Campaign) -> None:
        self.run, self.shape = run, config(run.tiny)
        self.stages = TINY if run.tiny else REAL
        self.model: Transformer = build(self.shape, run.device)

    def plain(self) -> Iterator[Row]:
        """Forwards of both stages, ours and diffusers'."""
        peak = matmul_rate(self.run.device, 256 if self.run.tiny else 8192)
        yield Row("bf16 product", f"{peak / 1e12:.0f} TFLOP/s")
        has_rival = find_spec("diffusers") is not None
        rival = build_rival(self.model) if has_rival else None
        for stage in self.stages:
            work = workload(stage, self.shape, self.run.device)
            ours = seconds(our_call(self.model, work, False), self.run)
            numbers = {"ours": ours, "share": flops(self.shape, stage) / ours / peak}
            value = f"{ours:.3f} s"
            if rival is not None:
                theirs = numbers["diffusers"] = seconds(rival_call(rival, work, False), self.run)
                value += f", diffusers {theirs:.3f} s"
            yield Row(f"{stage.name}, forward", value, numbers=numbers)

    def switches(self) -> Iterator[Row]:
        """Each switch of the fast path against the plain forward of both stages."""
        for stage in self.stages:
            work = workload(stage, self.shape, self.run.device)
            plain = seconds(our_call(self.model, work, False), self.run)
            for name, change in self._changes().items():
                change(True)
                try:
                    value = seconds(our_call(self.model, work, False), self.run)
                finally:
                    change(False)
                yield Row(f"{stage.name}, {name}", f"{value:.3f} s, {value / plain:.2f} of plain",
                          numbers={"seconds": value, "plain": plain})  # fmt: skip

    def _changes(self) -> dict[str, Callable[[bool], None]]:
        found: dict[str, Callable[[bool], None]] = {}
        if self.run.pretend is None and fused.reason_against(self.run.device) is None:
            found["fused"] = self.model.use_fused
        if self.run.pretend is None and self.run.device.type == "cuda":
            found["graphs"] = lambda on: setattr(self.model, "graphs", on)
        return found

    def chunks(self) -> Iterator[Row]:
        """Tokens per chunk: time and peak memory of a forward of stage 2."""
        work = workload(self.stages[1], self.shape, self.run.device)
        before = self.model.chunk_tokens
        for tokens in CHUNKS:
            self.model.set_chunk_tokens(tokens)
            found = measure(our_call(self.model, work, False), self.run.device, 1)
            value = f"{found['seconds']:.3f} s, {found['peak_gib']:.2f} GiB"
            yield Row(f"chunks of {tokens} tokens", value, numbers=found)
        self.model.set_chunk_tokens(before)

    def profile(self) -> Iterator[Row]:
        """The kernels that take most time in a forward of stage 2."""
        cuda = self.run.device.type == "cuda"
        if self.run.pretend:
            yield Row("profile", "not run: pretended card")
            return
        call = our_call(self.model, workload(self.stages[1], self.shape, self.run.device), False)
        call()
        kind = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kind.CUDA if cuda else kind.CPU]) as profiler:
            call()
            if cuda:
                torch.cuda.synchronize()
        name = "self_device_time_total" if cuda else "self_cpu_time_total"
        events = sorted(profiler.key_averages(), key=lambda e: -float(getattr(e, name)))
        whole = sum(float(getattr(e, name)) for e in events) or 1.0
        for event in events[:TOP]:
            spent = float(getattr(event, name))
            yield Row(event.key[:38], f"{spent / whole:.1%}, {event.count} calls",
                      numbers={"kernel": event.key, "seconds": spent / 1e6})  # fmt: skip


def main() -> None:
    with campaign("speed", __doc__.splitlines()[0]) as run, torch.no_grad():
        run.check("attention", lambda: time_attention(run))
        run.check("products", lambda: time_products(run))
        began = time.monotonic()
        forwards = Forwards(run)
        print(f"transformer made in {time.monotonic() - began:.0f} s")
        for name, work in (
            ("forwards", forwards.plain), ("switches", forwards.switches),
            ("chunks", forwards.chunks), ("profile", forwards.profile),
        ):  # fmt: skip
            run.check(name, work)


if __name__ == "__main__":
    main()
