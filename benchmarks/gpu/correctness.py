"""Correctness and memory on the first GPU, in less than ten minutes.

    python benchmarks/gpu/correctness.py                  # a CUDA device with 24 GB or more
    python benchmarks/gpu/correctness.py --tiny           # a rehearsal on the CPU
    python benchmarks/gpu/correctness.py --pretend twin   # the same on a pretended GPU

No network. Wheels: torch (a CUDA build), numpy, pydantic, pytest, and what the package itself
needs; triton comes with torch. The caps of 80, 24, 16 and 12 GB need as much GPU memory and 80 GiB
of RAM; those that do not fit are left out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from caps import CONTEXT_GIB, check_identical, measure
from forwards import TINY, build, config, our_call, workload
from gpu_report import ROOT, Campaign, Row, campaign, same, within
from product_checks import check_commands, check_decoders, check_refused_registration

from latent_ladder.memory.planner import GIB
from latent_ladder.models.transformer import fused
from latent_ladder.models.transformer.attention_backends import BACKENDS
from latent_ladder.models.transformer.fused import gate_heads_, norm_modulate, norm_rotate
from latent_ladder.models.weights import nvfp4_products
from latent_ladder.models.weights.dequantize import swizzle
from latent_ladder.models.weights.linear import native_fp8_linear, supports_native_fp8
from latent_ladder.models.weights.nvfp4_products import nvfp4_linear, quantize_nvfp4
from latent_ladder.models.weights.quantize_fp8 import quantize_fp8
from latent_ladder.models.weights.quantized_tensor import QuantizedTensor

BF16 = torch.bfloat16
ROUNDED = 2**-8
"""One rounding to bfloat16, as a share of the largest value."""
CAPS = (80.0, 24.0, 16.0, 12.0)


def error_of(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest error as a share of the largest value."""
    wanted = wanted.double()
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


def check_bits(run: Campaign) -> Iterator[Row]:
    """Blocks that are resident, in pinned memory and in ordinary memory give the same bits."""
    yield same("resident, pinned and mapped blocks", check_identical(run.device))


def check_cpu(run: Campaign) -> Iterator[Row]:
    """A small transformer on the device against the CPU, both in bf16."""
    shape = config(tiny=True)
    model, on_device = build(shape, torch.device("cpu")), build(shape, run.device)
    state = {name: value.to(run.device) for name, value in model.state_dict().items()}
    on_device.load_state_dict(state, assign=True)
    for stage in TINY:
        torch.manual_seed(2)
        wanted = our_call(model, workload(stage, shape, torch.device("cpu")), False)().clone()
        torch.manual_seed(2)
        work = workload(stage, shape, torch.device("cpu"))
        moved: dict[str, Any] = {
            name: value.to(run.device)
            for name, value in vars(work).items()
            if isinstance(value, torch.Tensor)
        }
        work = replace(work, **moved)
        got = our_call(on_device, work, False)().cpu()
        yield within(f"{stage.name}: device against CPU", error_of(got, wanted), 0.05)


def check_fused(run: Campaign) -> Iterator[Row]:
    """Triton kernels against float64."""
    if (reason := fused.reason_against(run.device)) or run.pretend:
        yield Row("fused kernels", f"not run: {reason or 'pretended card'}"[:40])
        return
    device = run.device
    x = torch.randn(2, 512, 4096, device=device, dtype=BF16)
    scale, shift = torch.randn(2, 1, 4096, device=device, dtype=BF16)
    normed = x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    got = norm_modulate(x, scale, shift, 1e-6, torch.empty_like(x))
    wanted = normed * scale.double() + shift.double()
    yield within("norm and modulation", error_of(got, wanted), ROUNDED)
    angles = torch.randn(1, 512, 32, 64, device=device)
    rotation = torch.polar(torch.ones_like(angles), angles)
    got = norm_rotate(x, scale[0], 1e-6, rotation)
    a, b = (normed * scale[0].double()).view(2, 512, 32, 2, 64).unbind(-2)
    cos, sin = rotation.real.double(), rotation.imag.double()
    wanted = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)
    yield within("norm and rotation", error_of(got, wanted), ROUNDED)
    heads, logits = x.view(2, 512, 32, 128).clone(), x[..., :32].contiguous()
    wanted = heads.double() * 2 * logits.double().sigmoid()[..., None]
    yield within("gates of heads", error_of(gate_heads_(heads, logits), wanted), ROUNDED)


def check_attention(run: Campaign) -> Iterator[Row]:
    """Every backend of this machine against float64."""
    q, k, v = (
        torch.randn(1, 512, 32, 128, device=run.device, dtype=BF16).transpose(1, 2)
        for _ in range(3)
    )
    wanted = BACKENDS["plain"].function(q.double(), k.double(), v.double(), None)
    for name, backend in BACKENDS.items():
        reason = backend.reason_against(run.device)
        if reason is not None:
            yield Row(f"attention {name}", reason[:26])
            continue
        limit = 0.02 if backend.exact else 0.2
        yield within(f"attention {name}", error_of(backend.function(q, k, v, None), wanted), limit)


def check_fp8(run: Campaign) -> Iterator[Row]:
    """fp8 products against the same weight, dequantised."""
    weight = quantize_fp8(torch.randn(4096, 4096, device=run.device))
    x = torch.randn(512, 4096, device=run.device, dtype=BF16)
    if run.device.type == "cuda" and not supports_native_fp8(x, weight):
        yield Row("fp8 products", "not on this card")
        return
    wanted = F.linear(x.double(), weight.dequantize(torch.float32).double())
    got = native_fp8_linear(x, weight, None).double()
    error = float((got - wanted).norm() / wanted.norm())
    yield within("fp8 products, relative norm", error, 0.04)


def check_fp4(run: Campaign) -> Iterator[Row]:
    """NVFP4 products against the exact product with the input before it is rounded."""
    if (reason := nvfp4_products.reason_against(run.device)) is not None:
        yield Row("NVFP4 products", f"not on this card: {reason}")
        return
    numbers, scale, per_row = quantize_nvfp4(torch.randn(4096, 4096, device=run.device))
    parts = {"weight": numbers, "weight_scale": swizzle(scale), "weight_scale_2": per_row.max()}
    weight = QuantizedTensor("nvfp4", (4096, 4096), parts)
    x = torch.randn(512, 4096, device=run.device).bfloat16()
    wanted = x.double() @ weight.dequantize(torch.float32).double().t()
    error = float((nvfp4_linear(x, weight, None).double() - wanted).norm() / wanted.norm())
    yield within("NVFP4 products, relative norm", error, 0.11)


def check_graphs(run: Campaign) -> Iterator[Row]:
    """Recorded forwards against those that are not, for the same inputs."""
    if run.device.type != "cuda" or run.pretend:
        yield Row("CUDA graphs", "not run: needs a GPU")
        return
    shape = config(tiny=True)
    model = build(shape, run.device)
    work = workload(TINY[1], shape, run.device)
    wanted = our_call(model, work, False)().clone()
    model.graphs = True
    call = our_call(model, work, False)
    yield same("CUDA graphs", all(torch.equal(call(), wanted) for _ in range(3)))


def check_convolution(run: Campaign) -> Iterator[Row]:
    """Memory of a bf16 3D convolution above its input and output."""
    if run.device.type != "cuda" or run.pretend:
        yield Row("3D convolution, memory", "not run: needs a GPU")
        return
    network = torch.nn.Conv3d(512, 512, 3, padding=1, device=run.device, dtype=BF16)
    x = torch.randn(1, 512, 16, 68, 120, device=run.device, dtype=BF16)
    with torch.inference_mode():
        network(x)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        network(x)
    above = torch.cuda.max_memory_allocated() - before
    size = x.numel() * 2
    yield Row(
        "3D convolution, memory", f"{above / size:.2f} of its input", "<= 3", above <= 3 * size,
        {"bytes": above},
    )  # fmt: skip


def check_caps(run: Campaign) -> Iterator[Row]:
    """Predicted and measured peaks under limits."""
    caps = list(CAPS)
    if run.device.type == "cuda" and not run.tiny:
        total = torch.cuda.get_device_properties(run.device).total_memory / GIB
        caps = [cap for cap in CAPS if cap + CONTEXT_GIB <= total]
    for found in measure(run.tiny, run.device, caps, 1):
        ratio = found["peak_bytes"] / found["predicted_bytes"]
        slower = found["slower_by"]
        is_measured = run.device.type == "cuda" and not run.tiny
        yield Row(
            f"{found['cap_gib']:g} GiB, {found['stage']}",
            f"peak {ratio:.2f} of plan, {slower:+.0%} time",
            "<= 1.0",
            ratio <= 1.0 if is_measured else None,
            found,
        )


def check_races(run: Campaign) -> Iterator[Row]:
    """PyTorch's stream sanitizer on streamed blocks, in a process of its own."""
    if run.device.type != "cuda" or run.pretend:
        yield Row("stream sanitizer", "not run: needs a GPU")
        return
    code = "import torch; from caps import check_identical; check_identical(torch.device('cuda'))"
    paths = [ROOT / "benchmarks" / "gpu", ROOT / "benchmarks", ROOT / "tests", ROOT / "src"]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        env={**os.environ, "TORCH_CUDA_SANITIZER": "1", "PYTHONPATH": ":".join(map(str, paths))},
    )  # fmt: skip
    races = done.stderr.count("CSAN detected")
    clean = done.returncode == 0 and not races
    yield Row("stream sanitizer", f"{races} races, exit {done.returncode}", "0 races", clean)


CHECKS = {
    "bits": check_bits, "CPU": check_cpu, "fused": check_fused, "attention": check_attention,
    "fp8": check_fp8, "fp4": check_fp4, "graphs": check_graphs, "convolution": check_convolution,
    "races": check_races, "decoders": check_decoders, "registration": check_refused_registration,
    "caps": check_caps, "commands": check_commands,
}  # fmt: skip


def main() -> None:
    with campaign("correctness", __doc__.splitlines()[0]) as run, torch.no_grad():
        for name, check in CHECKS.items():
            run.check(name, lambda check=check: check(run))  # type: ignore[misc]


if __name__ == "__main__":
    main()
