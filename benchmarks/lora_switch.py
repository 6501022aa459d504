"""Time of switching LoRAs between stages, and their cost per step compared with merged weights.

``python benchmarks/lora_switch.py [--device cpu] [--rank 16] [--threads 2] [--rounds 5]``

Switch: all 1660 linear layers of 2.3 at their real widths, with a LoRA file of ``--rank``.
Measured are the first ``attach_loras`` (reads the file from the page cache and checks every
number), a change of strength, ``detach_loras``, and ``attach_loras`` after it. On the CPU the base
weights take no memory (one number expanded to each matrix, as attaching does not read them) and
the file is smaller than a real one by its rank (rank 384: 7.6 GB). On a GPU use ``--device cuda
--rank 384``; the base then has real weights (about 60 GB).

Step: a plain forward with branches, with the same LoRA merged into the weights, and without; on
the CPU the pocket's sizes and one block of real width with rank 384, on a GPU the whole network at
stage-2 sizes. The three alternate within each round; reported are medians, on the CPU of processor
time. Writes ``benchmarks/results/lora_switch.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.models.lora.attach import attach_loras, detach_loras, temporary_loras
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.weights.linear import Linear, LowRank
from latent_ladder.models.weights.loading import EmptyOnMeta

RESULTS = Path(__file__).parent / "results"
REAL_RANK = 384


class Sizes(NamedTuple):
    """Latent frames, height and width, and audio and text tokens."""

    frames: int
    height: int
    width: int
    audio: int
    text: int


CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}
"""Clock by device; on the CPU processor time of all threads, which other processes affect less."""

STAGE_2 = Sizes(16, 34, 60, 126, 1024)
"""1920x1088, 121 frames."""


def linears(model: nn.Module) -> dict[str, Linear]:
    """All layers that adapters can be attached to, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, Linear)}


def build_empty(shape: TransformerConfig) -> Transformer:
    """Build a transformer with bf16 weights of the right shapes that take no memory."""
    with EmptyOnMeta():
        model = Transformer(shape)
    one = torch.zeros(1, dtype=torch.bfloat16)
    for layer in linears(model).values():
        layer.weight = nn.Parameter(one.expand(layer.weight.shape), requires_grad=False)
        if layer.bias is not None:
            layer.bias = nn.Parameter(one.expand(layer.bias.shape), requires_grad=False)
    return model


def build_random(shape: TransformerConfig) -> Transformer:
    """Build a transformer with random float32 weights on the CPU."""
    model = Transformer(shape)
    model.initialise(0)
    return model.eval().requires_grad_(False)


def write_lora(model: nn.Module, rank: int, path: Path, dtype: torch.dtype) -> Component:
    """Write a LoRA for every layer, of at most ``rank``; equal shapes have equal numbers."""
    matrices: dict[tuple[int, int], Tensor] = {}

    def matrix(rows: int, columns: int) -> Tensor:
        if (rows, columns) not in matrices:
            matrices[rows, columns] = (torch.randn(rows, columns) * 0.02).to(dtype)
        return matrices[rows, columns].clone()

    tensors = {}
    for name, layer in linears(model).items():
        r = min(rank, layer.in_features, layer.out_features)
        tensors[f"diffusion_model.{name}.lora_A.weight"] = matrix(r, layer.in_features)
        tensors[f"diffusion_model.{name}.lora_B.weight"] = matrix(layer.out_features, r)
    save_file(tensors, path)
    return components(open_checkpoint(path))["lora"]


def switch_times(model: nn.Module, part: Component, device: torch.device) -> dict[str, object]:
    """Measure seconds of every kind of switch."""
    report = []

    clock = CLOCKS[device.type]

    def time_call(call: Callable[[], object]) -> float:
        start = clock()
        report.append(call())
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    first = time_call(lambda: attach_loras(model, [(part, 0.25)]))
    strength = [
        time_call(partial(attach_loras, model, [(part, value)])) for value in (0.5, 1.0, 0.25)
    ]
    detach = time_call(lambda: detach_loras(model))
    again = time_call(lambda: attach_loras(model, [(part, 0.5)]))
    detach_loras(model)
    return {
        "match": str(report[0]),
        "lora_bytes": part.nbytes,
        "first_attach_s": first,
        "bytes_per_s": part.nbytes / first,
        "strength_s": statistics.median(strength),
        "detach_s": detach,
        "attach_after_detach_s": again,
    }


@contextmanager
def merge_branches(model: nn.Module) -> Iterator[None]:
    """Merge the attached branches into the weights inside the ``with`` block."""
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
    """Function that runs one plain forward on random inputs."""
    layer = model.get_submodule("patchify_proj")
    assert isinstance(layer, Linear)
    device, dtype = layer.weight.device, layer.weight.dtype

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
    """Measure median seconds of a forward: plain, with branches, merged."""
    device = next(model.parameters()).device
    call = forward(model, sizes)
    times: dict[str, list[float]] = {"plain": [], "branches": [], "merged": []}

    clock = CLOCKS[device.type]

    def time_call() -> float:
        start = clock()
        with torch.no_grad():
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start

    time_call()
    for _ in range(rounds):
        times["plain"].append(time_call())
        with temporary_loras(model, [(part, 0.5)]):
            times["branches"].append(time_call())
            with merge_branches(model):
                times["merged"].append(time_call())
    results = {name: statistics.median(values) for name, values in times.items()}
    return results | {"branches_over_merged": results["branches"] / results["merged"]}


def small_config(layers: int, heads: int, width: int) -> TransformerConfig:
    """Configuration of a small 2.3 transformer."""
    dim, audio_dim = heads * width, heads * width // 2
    return TransformerConfig(
        layers,
        StreamConfig(128, 128, heads, width, 4 * dim, dim, (20.0, 2048.0, 2048.0)),
        StreamConfig(128, 128, heads, width // 2, 4 * audio_dim, audio_dim, (20.0,)),
    )


def cpu_cases() -> Iterator[tuple[str, TransformerConfig, Sizes, int]]:
    """Yield name, configuration, sizes and rank of the CPU cases."""
    yield "pocket", small_config(6, 4, 32), Sizes(4, 16, 16, 51, 128), 16
    yield "one block of 22B", small_config(1, 32, 128), Sizes(2, 16, 16, 51, 128), REAL_RANK


def build_full(shape: TransformerConfig, device: torch.device) -> Transformer:
    """Build the whole network with random weights on a GPU."""
    sys.path.insert(0, str(Path(__file__).parent / "gpu"))
    from forwards import build

    return build(shape, device)


def main() -> None:
    """Measure, print and write the results."""
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
    shape = small_config(48, 32, 128)
    model = build_empty(shape) if device.type == "cpu" else build_full(shape, device)
    with tempfile.TemporaryDirectory() as folder:
        part = write_lora(model, args.rank, Path(folder) / "l.safetensors", torch.bfloat16)
        switch = switch_times(model, part, device)
        if device.type == "cuda":
            steps["22B, stage 2"] = step_times(model, STAGE_2, part, args.rounds)
        for name, case, sizes, rank in cpu_cases():
            if device.type == "cuda" or name not in args.cases:
                continue
            net = build_random(case)
            part = write_lora(net, rank, Path(folder) / f"{rank}.safetensors", torch.float32)
            steps[name] = step_times(net, sizes, part, args.rounds)
    results = {"device": args.device, "rank": args.rank, "switch": switch, "steps": steps}
    print(json.dumps(results, indent=2))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lora_switch.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
