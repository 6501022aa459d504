"""Predicted and measured memory of LTX-2.3 on one GPU with a limited amount of memory.

Part of :mod:`correctness`. Transformer (48 layers, 19 B parameters) and video decoder have random
bf16 weights. For each limit in GiB the planner plans the distilled job of 1920x1088, 121 frames
(8 + 3 steps). The allocator is limited accordingly; a forward of each stage and the decoding of the
clip are run as planned. Measured: seconds, peak against the prediction (goal: within 10 %), and the
time relative to that of the largest limit (goal for streaming in stage 2: at most 15 % more).
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from helpers import checkpoint_layouts as layouts  # noqa: E402

from latent_ladder.memory.model_sizes import LTX_2_3, DitSize, ModelSizes  # noqa: E402
from latent_ladder.memory.planner import GIB, Budget, Policy, StageMemory, plan_memory  # noqa: E402
from latent_ladder.models.network_configs import (  # noqa: E402
    video_decoder_config,
)
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig  # noqa: E402
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream  # noqa: E402
from latent_ladder.models.transformer.model import Transformer  # noqa: E402
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions  # noqa: E402
from latent_ladder.models.vae_loading import LatentStatistics  # noqa: E402
from latent_ladder.models.video_vae.networks import VideoDecoder, pack_kernels  # noqa: E402
from latent_ladder.models.video_vae.vae import VideoVae, decode_video  # noqa: E402
from latent_ladder.models.weights.block_offload import BlockOffload  # noqa: E402
from latent_ladder.models.weights.loading import EmptyOnMeta  # noqa: E402
from latent_ladder.request.model import Request  # noqa: E402
from latent_ladder.request.presets import read_preset  # noqa: E402
from latent_ladder.storage.atomic_write import readable_size  # noqa: E402

BF16 = torch.bfloat16
CONTEXT_GIB = 0.5
"""Memory of CUDA itself; the planner's budget is the limit minus this."""


# --- networks and sizes --------------------------------------------------------------------------


def config(tiny: bool) -> TransformerConfig:
    """Configuration of the 2.3 transformer, or of a small one."""
    layers, heads, width = (8, 8, 32) if tiny else (48, 32, 128)
    dim, audio = heads * width, heads * width // 2
    return TransformerConfig(
        layers,
        StreamConfig(128, 128, heads, width, 4 * dim, dim, (20.0, 2048.0, 2048.0)),
        StreamConfig(128, 128, heads, width // 2, 4 * audio, audio, (20.0,)),
    )


def build(shape: TransformerConfig, device: torch.device) -> Transformer:
    """Build a transformer with random weights; the matrices of its blocks are on the CPU."""
    with EmptyOnMeta():
        model = Transformer(shape)
    state = {}
    for name, parameter in model.state_dict().items():
        dtype = torch.float32 if "scale_shift_table" in name else BF16
        tensor = torch.empty(parameter.shape, dtype=dtype, device=device)
        if name.endswith("norm.weight"):
            tensor.fill_(1)
        else:
            tensor.normal_(std=parameter.shape[-1] ** -0.5)
        state[name] = tensor.cpu() if is_streamed(name, tensor) else tensor
    model.load_state_dict(state, assign=True)
    move_resident(model, device)
    return model.eval().requires_grad_(False)


def is_streamed(name: str, tensor: Tensor) -> bool:
    """Return True for a matrix of a block, which may be streamed."""
    inside = name.startswith("transformer_blocks.") and "scale_shift_table" not in name
    return inside and tensor.dim() == 2


def move_resident(model: Transformer, device: torch.device) -> None:
    """Move everything except the matrices of blocks to the device."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not is_streamed(f"{path}.{name}", parameter):
                moved = torch.nn.Parameter(parameter.detach().to(device), requires_grad=False)
                setattr(module, name, moved)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))


def sizes_of(shape: TransformerConfig, tiny: bool) -> ModelSizes:
    """Model sizes for the planner."""
    if not tiny:
        return LTX_2_3
    with EmptyOnMeta():
        parameters = Transformer(shape).state_dict()
    block = sum(t.numel() for n, t in parameters.items() if n.startswith("transformer_blocks.0."))
    whole = 2 * sum(t.numel() for t in parameters.values())
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
    """Build a video decoder with random bf16 weights; the small one has narrow layers."""
    stages = ((1, 16), (1, 16), (1, 16), (1, 8), (1, 8))
    shapes = dict(layouts.video_vae(decoder=stages) if tiny else layouts.video_vae())
    coder = video_decoder_config(shapes, {} if tiny else layouts.VAE_CONFIG)
    network = VideoDecoder(coder).to(BF16).eval().requires_grad_(False)
    state = {name: value.to(device) for name, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    flat = LatentStatistics(torch.zeros(128, device=device), torch.ones(128, device=device))
    return VideoVae(None, pack_kernels(network), coder, flat, device, BF16)


# --- work ----------------------------------------------------------------------------------------


def forward(model: Transformer, stage: StageMemory, device: torch.device) -> Callable[[], Tensor]:
    """Function that runs one plain forward of a stage on random inputs."""
    resolution, audio = stage.cost.resolution, max(stage.cost.audio_tokens, 8)
    if resolution is None:
        raise TypeError(f"{stage.cost.name} is not sampled")
    frames, height, width = (
        resolution.latent_frames,
        resolution.latent_height,
        resolution.latent_width,
    )

    def stream(positions: Tensor, dim: int) -> DenoiserStream:
        text = torch.randn(1, 1024, dim, device=device).to(BF16)
        return DenoiserStream(positions.to(device), text)

    denoiser = Denoiser(
        model,
        stream(video_positions(frames, height, width, 24), model.config.video.dim),
        stream(audio_positions(audio), model.config.audio.dim),
    )
    video = torch.randn(1, frames * height * width, 128, device=device)
    x = denoiser.packing.pack(video, torch.randn(1, audio, 128, device=device))
    return lambda: denoiser(x, 0.7, 0).denoised


def check_identical(device: torch.device) -> bool:
    """Compare the outputs of a small network with resident, streamed and pinned blocks."""
    torch.manual_seed(0)
    model = build(config(tiny=True), device)
    request = distilled_request(True)
    stage = plan_memory(request, sizes_of(config(True), True), Budget("cpu", 2**40, 2**40)).of(
        "base"
    )
    call = forward(model, stage, device)
    result = []
    for offload in (
        BlockOffload(0, True),
        BlockOffload(0),
        BlockOffload(3, True),
        BlockOffload(8),
    ):
        with torch.inference_mode(False), model.offload_blocks(device, offload):
            result += [call().cpu() for _ in range(3)]
    return all(torch.equal(result[0], other) for other in result) and bool(
        result[0].isfinite().all()
    )


def distilled_request(tiny: bool) -> Request:
    """Request of the distilled two-stage preset."""
    size = {"width": 128, "height": 128, "frames": 9} if tiny else {
        "width": 1920, "height": 1088, "frames": 121,
    }  # fmt: skip
    fields = read_preset("distilled").fields | {"prompt": "A cat walks.", "seed": 1} | size
    return Request.from_dict(fields).pick_seed()


# --- measuring -----------------------------------------------------------------------------------


def measure(
    tiny: bool, device: torch.device, caps: list[float], rounds: int
) -> Iterator[dict[str, Any]]:
    """Measure all limits, the largest first, as the others are compared with its times."""
    torch.manual_seed(1)
    shape, request = config(tiny), distilled_request(tiny)
    sizes, model = sizes_of(shape, tiny), build(shape, device)
    largest_cap_times: dict[str, float] = {}
    for cap in sorted(caps, reverse=True):
        budget = Budget(device.type, bytes_of(cap, tiny, device), 2**40)
        limit(cap, device)
        plan = plan_memory(request, sizes, budget, Policy(changes=frozenset({"tiles"})))
        for stage in plan.stages:
            if stage.cost.kind in ("base", "refine"):
                move_resident(model, device)
                model.set_chunk_tokens(stage.offload_plan.chunk_tokens)
                resident = stage.offload_plan.resident
                offload = BlockOffload(shape.layers if resident is None else resident, pinned=True)
                with model.offload_blocks(device, offload):
                    result = time_call(forward(model, stage, device), device, rounds)
            elif stage.cost.kind == "decode":
                model.give_back(BlockOffload(0))  # a run frees the transformer before decoding
                move_resident(model, torch.device("cpu"))
                result = time_call(
                    decoding(request, stage, decoder(tiny, device), device), device, 1
                )
            else:
                continue
            name = stage.cost.name
            largest_cap_times.setdefault(name, result["seconds"])
            yield line(cap, stage, result, largest_cap_times[name])


def bytes_of(cap: float, tiny: bool, device: torch.device) -> int:
    """Budget in bytes for a limit; for the small network MiB, plus workspace.

    On a card the decoder's workspace alone is near 1 GiB, so the small network fits any limit.
    """
    if tiny:
        return int((cap + 8) * 2**20) + (GIB if device.type == "cuda" else 0)
    return int((cap - CONTEXT_GIB) * GIB)


def limit(cap: float, device: torch.device) -> None:
    """Limit the CUDA allocator to ``cap`` GiB."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total), device)


def decoding(
    request: Request, stage: StageMemory, vae: VideoVae, device: torch.device
) -> Callable[[], object]:
    """Function that decodes the whole clip from random latents and drops the frames."""
    last = request.resolutions[-1]
    grid = (last.latent_frames, last.latent_height, last.latent_width)
    latents = torch.randn(1, 128, *grid, device=device)
    plan = stage.offload_plan.decode(request.decode).tiles(grid)

    def call() -> object:
        return sum(len(chunk) for chunk in decode_video(latents, vae, plan))

    return call


def time_call(call: Callable[[], object], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds after one warm-up call, and peak of allocated memory."""
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
    cap: float, stage: StageMemory, result: Mapping[str, float], largest_cap_s: float
) -> dict[str, Any]:
    """Print one measurement and return it."""
    ratio = result["peak_bytes"] / stage.peak_bytes
    print(
        f"cap {cap:g}  {stage.cost.name:7} {result['seconds']:8.2f} s, "
        f"{result['seconds'] / largest_cap_s:.2f} times that of the largest limit; peak "
        f"{readable_size(int(result['peak_bytes']))}, predicted "
        f"{readable_size(stage.peak_bytes)} ({ratio:.2f}); {stage.offload_plan}",
        flush=True,
    )
    return {
        "cap_gib": cap,
        "stage": stage.cost.name,
        "holding": str(stage.offload_plan),
        "predicted_bytes": stage.peak_bytes,
        "slower_by": result["seconds"] / largest_cap_s - 1,
        **result,
    }
