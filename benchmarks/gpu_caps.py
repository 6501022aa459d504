"""LTX-2.3 at its real size on one GPU under caps: predicted and measured memory, streaming.

    python benchmarks/gpu_caps.py           # a CUDA device with 80 GB, 80 GiB of RAM
    python benchmarks/gpu_caps.py --tiny    # the same path with small networks on the CPU

The transformer has random bf16 weights (48 layers, 19 B parameters), the video decoder as well. For
every cap of ``--caps`` GiB the planner says how the distilled job of 1920x1088, 121 frames is held
(8 + 3 steps); the allocator is limited to the cap and a forward of each stage, then the decoding of
the clip, are run as planned: seconds, measured peak and predicted peak (goal within 10 %), and the
time against the largest cap's (goal for streaming in stage 2: 15 % more at most). First the outputs
of a resident, a pinned and a mixed run of a small network are compared bit for bit.
Needs torch, numpy, pydantic and this package's source, no network. Writes
``benchmarks/results/gpu_caps.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from helpers import checkpoint_layouts as layouts  # noqa: E402

from latent_ladder.memory.cost_model import LTX_2_3, DitSize, ModelSizes  # noqa: E402
from latent_ladder.memory.planner import GIB, Budget, Policy, StageMemory, plan_memory  # noqa: E402
from latent_ladder.models import network_configs as dims  # noqa: E402
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig  # noqa: E402
from latent_ladder.models.transformer.denoiser import Denoiser, StreamRun  # noqa: E402
from latent_ladder.models.transformer.model import Transformer  # noqa: E402
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions  # noqa: E402
from latent_ladder.models.vae_loading import Statistics  # noqa: E402
from latent_ladder.models.video_vae.networks import VideoDecoder, packed  # noqa: E402
from latent_ladder.models.video_vae.vae import VideoVae, decode_video  # noqa: E402
from latent_ladder.models.weights.block_offload import Residency  # noqa: E402
from latent_ladder.models.weights.loading import EmptyOnMeta  # noqa: E402
from latent_ladder.pipeline.output import decode_tiles  # noqa: E402
from latent_ladder.request.model import Request  # noqa: E402
from latent_ladder.request.presets import read_preset  # noqa: E402
from latent_ladder.storage.atomic_write import readable_size  # noqa: E402

RESULTS = Path(__file__).parent / "results"
BF16 = torch.bfloat16
CONTEXT_GIB = 0.5
"""Of a cap, what CUDA itself takes; the budget is the rest."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--caps", type=float, nargs="*", default=[80, 24, 16, 12])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU")
    asked = parser.parse_args()
    if not asked.tiny and not torch.cuda.is_available():
        print("error: this benchmark needs a CUDA device", file=sys.stderr)
        print("hint:  --tiny checks the script on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if asked.tiny else "cuda")
    report: dict[str, Any] = {
        "device": "cpu" if asked.tiny else torch.cuda.get_device_name(),
        "same_bits": same_bits(device),
    }
    print(f"{report['device']}; streamed and resident give the same bits: {report['same_bits']}")
    report["caps"] = list(measure(asked.tiny, device, asked.caps, asked.rounds))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("gpu_caps_tiny.json" if asked.tiny else "gpu_caps.json")
    path.write_text(json.dumps(report, indent=1) + "\n")
    return 0


# --- networks and sizes --------------------------------------------------------------------------


def config(tiny: bool) -> TransformerConfig:
    """The 2.3 config, or one of its shape that fits anywhere."""
    layers, heads, width = (24, 8, 32) if tiny else (48, 32, 128)
    dim, audio = heads * width, heads * width // 2
    return TransformerConfig(
        layers,
        StreamConfig(128, 128, heads, width, 4 * dim, dim, (20.0, 2048.0, 2048.0)),
        StreamConfig(128, 128, heads, width // 2, 4 * audio, audio, (20.0,)),
    )


def build(shape: TransformerConfig, device: torch.device) -> Transformer:
    """Random weights, drawn on the device; the matrices of blocks wait on the CPU."""
    with EmptyOnMeta():
        model = Transformer(shape)
    state = {}
    for name, slot in model.state_dict().items():
        dtype = torch.float32 if "scale_shift_table" in name else BF16
        tensor = torch.empty(slot.shape, dtype=dtype, device=device)
        if name.endswith("norm.weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=slot.shape[-1] ** -0.5)
        state[name] = tensor.cpu() if travels(name, tensor) else tensor
    model.load_state_dict(state, assign=True)
    place(model, device)
    return model.eval().requires_grad_(False)


def travels(name: str, tensor: Tensor) -> bool:
    """Whether it is a matrix of a block, which may be streamed."""
    inside = name.startswith("transformer_blocks.") and "scale_shift_table" not in name
    return inside and tensor.dim() == 2


def place(model: Transformer, device: torch.device) -> None:
    """Everything but the matrices of blocks on the device."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not travels(name, tensor):
            tensor.data = tensor.data.to(device)


def sizes_of(shape: TransformerConfig, tiny: bool) -> ModelSizes:
    """What the planner takes the networks for."""
    if not tiny:
        return LTX_2_3
    with EmptyOnMeta():
        slots = Transformer(shape).state_dict()
    block = sum(t.numel() for n, t in slots.items() if n.startswith("transformer_blocks.0."))
    whole = 2 * sum(t.numel() for t in slots.values())
    return ModelSizes(
        DitSize(shape.layers, shape.video.dim, shape.audio.dim),
        {"transformer": whole, "video_vae": 2**20},
        {"video_vae": 2**20},
        blocks=(2 * block,) * shape.layers,
        block_values=block,
        upsampler_channels=8,
        decoder_held=30.0,
    )


def decoder(tiny: bool, device: torch.device) -> VideoVae:
    """A video decoder with random weights in bf16; the small one has narrow layers."""
    stages = ((1, 16), (1, 16), (1, 16), (1, 8), (1, 8))
    shapes = dict(layouts.video_vae(decoder=stages) if tiny else layouts.video_vae())
    coder = dims.video_decoder(shapes, {} if tiny else layouts.VAE_CONFIG)
    with torch.device(device):
        network = VideoDecoder(coder).to(BF16).eval().requires_grad_(False)
    flat = Statistics(torch.zeros(128, device=device), torch.ones(128, device=device))
    return VideoVae(None, packed(network), coder, flat, device, BF16)


# --- work ----------------------------------------------------------------------------------------


def forward(model: Transformer, stage: StageMemory, device: torch.device) -> Callable[[], Tensor]:
    """One plain forward of a stage on random numbers."""
    resolution, audio = stage.cost.resolution, max(stage.cost.audio_tokens, 8)
    if resolution is None:
        raise TypeError(f"{stage.cost.name} is not sampled")
    frames, height, width = (
        resolution.latent_frames,
        resolution.latent_height,
        resolution.latent_width,
    )

    def stream(positions: Tensor, dim: int) -> StreamRun:
        text = torch.randn(1, 1024, dim, device=device).to(BF16)
        return StreamRun(positions.to(device), text)

    denoiser = Denoiser(
        model,
        stream(video_positions(frames, height, width, 24), model.config.video.dim),
        stream(audio_positions(audio), model.config.audio.dim),
    )
    video = torch.randn(1, frames * height * width, 128, device=device)
    x = denoiser.packing.pack(video, torch.randn(1, audio, 128, device=device))
    return lambda: denoiser(x, 0.7, 0).denoised


def same_bits(device: torch.device) -> bool:
    """A small network resident, all streamed and partly streamed, pinned and not."""
    torch.manual_seed(0)
    model = build(config(tiny=True), device)
    request = asked(True)
    stage = plan_memory(request, sizes_of(config(True), True), Budget("cpu", 2**40, 2**40)).of(
        "base"
    )
    call = forward(model, stage, device)
    found = []
    for residency in (Residency(0, True), Residency(0), Residency(5, True), Residency(24)):
        with torch.inference_mode(False), model.held(device, residency):
            found += [call().cpu() for _ in range(3)]
    return all(torch.equal(found[0], other) for other in found) and bool(found[0].isfinite().all())


def asked(tiny: bool) -> Request:
    """The distilled two-stage job."""
    size = {"width": 128, "height": 128, "frames": 9} if tiny else {
        "width": 1920, "height": 1088, "frames": 121,
    }  # fmt: skip
    fields = read_preset("distilled").fields | {"prompt": "A cat walks.", "seed": 1} | size
    return Request.from_dict(fields).pick_seed()


# --- measuring -----------------------------------------------------------------------------------


def measure(
    tiny: bool, device: torch.device, caps: list[float], rounds: int
) -> Iterator[dict[str, Any]]:
    """Every cap, the largest first: its times are what the others are compared with."""
    torch.manual_seed(1)
    shape, request = config(tiny), asked(tiny)
    sizes, model = sizes_of(shape, tiny), build(shape, device)
    first: dict[str, float] = {}
    for cap in sorted(caps, reverse=True):
        budget = Budget(device.type, bytes_of(cap, tiny), 2**40)
        limit(cap, device)
        plan = plan_memory(request, sizes, budget, Policy(changes=frozenset({"tiles"})))
        for stage in plan.stages:
            if stage.cost.kind in ("base", "refine"):
                place(model, device)
                model.set_chunk_tokens(stage.offload_plan.chunk_tokens)
                held = stage.offload_plan.resident
                residency = Residency(shape.layers if held is None else held, pinned=True)
                with model.held(device, residency):
                    found = timed(forward(model, stage, device), device, rounds)
            elif stage.cost.kind == "decode":
                model.to("cpu")  # a run lets go of it before
                found = timed(decoding(request, stage, decoder(tiny, device), device), device, 1)
            else:
                continue
            name = stage.cost.name
            first.setdefault(name, found["seconds"])
            yield line(cap, stage, found, first[name])


def bytes_of(cap: float, tiny: bool) -> int:
    """The budget of a cap; the small network takes as many MiB, and 8 to work in."""
    return int((cap + 8) * 2**20) if tiny else int((cap - CONTEXT_GIB) * GIB)


def limit(cap: float, device: torch.device) -> None:
    """Let the allocator hand out no more than the cap."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total), device)


def decoding(
    request: Request, stage: StageMemory, vae: VideoVae, device: torch.device
) -> Callable[[], object]:
    """The whole clip from random latents; frames are let go as they come."""
    last = request.resolutions[-1]
    grid = (last.latent_frames, last.latent_height, last.latent_width)
    latents = torch.randn(1, 128, *grid, device=device)
    plan = decode_tiles(grid, stage.offload_plan.decode(request.decode))

    def call() -> object:
        return sum(len(chunk) for chunk in decode_video(latents, vae, plan))

    return call


def timed(call: Callable[[], object], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds after one warm-up, and the peak of everything allocated."""
    cuda = device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return {"seconds": statistics.median(times[1:]), "peak_bytes": peak}


def line(
    cap: float, stage: StageMemory, found: Mapping[str, float], first: float
) -> dict[str, Any]:
    """One measurement, printed."""
    ratio = found["peak_bytes"] / stage.peak_bytes
    print(
        f"cap {cap:g}  {stage.cost.name:7} {found['seconds']:8.2f} s, "
        f"{found['seconds'] / first:.2f} of the largest cap's; peak "
        f"{readable_size(int(found['peak_bytes']))}, predicted "
        f"{readable_size(stage.peak_bytes)} ({ratio:.2f}); {stage.offload_plan}",
        flush=True,
    )
    return {
        "cap_gib": cap,
        "stage": stage.cost.name,
        "holding": str(stage.offload_plan),
        "predicted_bytes": stage.peak_bytes,
        "slower_by": found["seconds"] / first - 1,
        **found,
    }


if __name__ == "__main__":
    sys.exit(main())
