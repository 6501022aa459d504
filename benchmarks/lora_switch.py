"""Switching LoRAs between stages, and what they cost per step against a merged weight.

``python benchmarks/lora_switch.py [--device cpu] [--rank 16] [--threads 2] [--rounds 5]``

Switch: all 1660 linear layers of 2.3 at their real widths, a LoRA file of ``--rank`` for each.
Timed are the first ``attach_loras`` (reads the file from the page cache, checks every number), a change
of strength, ``detach_loras``, and a new ``attach_loras`` after it. On the CPU the base weights are hollow
(one number stretched over each matrix: attaching never looks at them) and the file is the rank's
share of the real one (rank 384: 7.6 GB); on a GPU give ``--device cuda --rank 384``: there the
base is whole (needs about 60 GB).

Step: a plain forward with branches, with the same LoRA merged into the weights, and without; the
pocket's sizes and one block at real width with rank 384 on the CPU, the whole network at stage 2
sizes on a GPU. The three take turns within each round; medians, on the CPU of
processor time. Writes
``benchmarks/results/lora_switch.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.models.lora.attach import attach_loras, temporary_loras
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.weights.linear import Linear, LowRank
from latent_ladder.models.weights.loading import EmptyOnMeta

RESULTS = Path(__file__).parent / "results"
REAL_RANK = 384


class Sizes(NamedTuple):
    """Latent frames, height, width; tokens of sound and text."""

    frames: int
    height: int
    width: int
    audio: int
    text: int


CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
"""On the CPU processor time of all threads, which a busy machine disturbs least."""

STAGE_2 = Sizes(16, 34, 60, 126, 1024)
"""1920x1088, 121 frames."""


def linears(model: nn.Module) -> dict[str, Linear]:
    """Every layer an adapter can amend, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Linear)}


def hollow(shape: TransformerConfig) -> Transformer:
    """Layers of the right shapes in bf16 that take no memory."""
    with EmptyOnMeta():
        model = Transformer(shape)
    one = torch.zeros(1, dtype=torch.bfloat16)
    for layer in linears(model).values():
        layer.weight = nn.Parameter(one.expand(layer.weight.shape), requires_grad=False)
        if layer.bias is not None:
            layer.bias = nn.Parameter(one.expand(layer.bias.shape), requires_grad=False)
    return model


def filled(shape: TransformerConfig) -> Transformer:
    """Random float32 weights on the CPU."""
    model = Transformer(shape)
    model.initialise(0)
    return model.eval().requires_grad_(False)


def write_lora(model: nn.Module, rank: int, path: Path, dtype: torch.dtype) -> Component:
    """A LoRA for every layer, of at most ``rank``; equal shapes hold equal numbers."""
    drawn: dict[tuple[int, int], Tensor] = {}

    def matrix(rows: int, columns: int) -> Tensor:
        if (rows, columns) not in drawn:
            drawn[rows, columns] = (torch.randn(rows, columns) * 0.02).to(dtype)
        return drawn[rows, columns].clone()

    tensors = {}
    for name, layer in linears(model).items():
        r = min(rank, layer.in_features, layer.out_features)
        tensors[f"diffusion_model.{name}.lora_A.weight"] = matrix(r, layer.in_features)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = matrix(layer.out_features, r)
    save_file(tensors, path)
    return components(open_checkpoint(path))["lora"]


def switch_times(model: nn.Module, part: Component, device: torch.device) -> dict[str, object]:
    """Seconds of every kind of switch."""
    report = []

    clock = CLOCKS[device.type]

    def timed(call: Callable[[], object]) -> float:
        started = clock()
        report.append(call())
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    first = timed(lambda: attach_loras(model, [(part, 0.25)]))
    strength = [timed(lambda s=s: attach_loras(model, [(part, s)])) for s in (0.5, 1.0, 0.25)]
    detach_loras = timed(lambda: detach_loras(model))
    again = timed(lambda: attach_loras(model, [(part, 0.5)]))
    detach_loras(model)
    return {
        "match": str(report[0]),
        "lora_bytes": part.nbytes,
        "first_attach_s": first,
        "bytes_per_s": part.nbytes / first,
        "strength_s": statistics.median(strength),
        "detach_s": detach_loras,
        "attach_after_detach_s": again,
    }


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """What is attached, added into the weights instead."""
    layers = [(m, m.branches, m.weight) for m in linears(model).values()]
    for layer, branches, weight in layers:
        both = weight.float()
        for branch in branches:
            assert isinstance(branch, LowRank)
            both = both + branch.delta()
        layer.weight = nn.Parameter(both.to(weight.dtype), requires_grad=False)
        layer.branches = ()
    try:
        yield
    finally:
        for layer, branches, weight in layers:
            layer.weight, layer.branches = weight, branches


def forward(model: Transformer, sizes: Sizes) -> Callable[[], Tensor]:
    """One plain forward on random numbers."""
    weight = model.patchify_proj.weight
    device, dtype = weight.device, weight.dtype

    def stream(positions: Tensor, dim: int) -> DenoiserStream:
        return DenoiserStream(
            positions.to(device), torch.randn(1, sizes.text, dim).to(device, dtype)
        )

    denoiser = Denoiser(
        model,
        stream(video_positions(*sizes[:3], 24), model.config.video.dim),
        stream(audio_positions(sizes.audio), model.config.audio.dim),
    )
    video = torch.randn(1, sizes.frames * sizes.height * sizes.width, 128, device=device)
    x = denoiser.packing.pack(video, torch.randn(1, sizes.audio, 128, device=device))
    return lambda: denoiser(x, 0.7, 0).denoised


def step_times(model: Transformer, sizes: Sizes, part: Component, rounds: int) -> dict[str, float]:
    """Median seconds of a forward: plain, with branches, merged."""
    device = next(model.parameters()).device
    call = forward(model, sizes)
    times: dict[str, list[float]] = {"plain": [], "branches": [], "merged": []}

    clock = CLOCKS[device.type]

    def timed() -> float:
        started = clock()
        with torch.no_grad():
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - started

    timed()
    for _ in range(rounds):
        times["plain"].append(timed())
        with temporary_loras(model, [(part, 0.5)]):
            times["branches"].append(timed())
            with merged(model):
                times["merged"].append(timed())
    found = {name: statistics.median(values) for name, values in times.items()}
    return found | {"branches_over_merged": found["branches"] / found["merged"]}


def small(layers: int, heads: int, width: int) -> TransformerConfig:
    """A transformer of the 2.3 shape."""
    dim, sound = heads * width, heads * width // 2
    return TransformerConfig(
        layers,
        StreamConfig(128, 128, heads, width, 4 * dim, dim, (20.0, 2048.0, 2048.0)),
        StreamConfig(128, 128, heads, width // 2, 4 * sound, sound, (20.0,)),
    )


def cpu_cases() -> Iterator[tuple[str, TransformerConfig, Sizes, int]]:
    """Name, network, sizes, rank."""
    yield "pocket", small(6, 4, 32), Sizes(4, 16, 16, 51, 128), 16
    yield "one block of 22B", small(1, 32, 128), Sizes(2, 16, 16, 51, 128), REAL_RANK


def whole(shape: TransformerConfig, device: torch.device) -> Transformer:
    """The whole network with random weights on a GPU."""
    from gpu_22b import build

    return build(shape, device)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=["pocket", "one block of 22B"])
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    device, steps = torch.device(args.device), {}
    shape = small(48, 32, 128)
    model = hollow(shape) if device.type == "cpu" else whole(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        part = write_lora(model, args.rank, Path(folder) / "l.safetensors", torch.bfloat16)
        switch = switch_times(model, part, device)
        if device.type == "cuda":
            steps["22B, stage 2"] = step_times(model, STAGE_2, part, args.rounds)
        for name, case, sizes, rank in cpu_cases():
            if device.type == "cuda" or name not in args.cases:
                continue
            net = filled(case)
            part = write_lora(net, rank, Path(folder) / f"{rank}.safetensors", torch.float32)
            steps[name] = step_times(net, sizes, part, args.rounds)
    found = {"device": args.device, "rank": args.rank, "switch": switch, "steps": steps}
    print(json.dumps(found, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lora_switch.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
