"""Time and memory of forwards of the 2.3 transformer (48 layers, 19 B random bf16 weights).

Part of :mod:`speed` and :mod:`end_to_end`. For stage 1 (960x544, 121 frames) and stage 2
(1920x1088, 121 frames): ours and diffusers' transformer on the same weights in one process.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import gpu_report  # noqa: F401
import torch
from denoiser import GUIDANCE
from rival import Workload, rival_forward, rival_guided_step
from torch import Tensor

from latent_ladder.models.network_configs import chunk_tokens
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.weights.loading import EmptyOnMeta, load_module
from latent_ladder.sampling.guiders import Guidance


@dataclass(frozen=True)
class Stage:
    """Latent sizes of one stage, and its audio and text tokens."""

    name: str
    frames: int
    height: int
    width: int
    audio: int
    text: int
    guided: bool


REAL = (
    Stage("stage 1, 960x544x121", 16, 17, 30, 126, 1024, guided=True),
    Stage("stage 2, 1920x1088x121", 16, 34, 60, 126, 1024, guided=False),
)
TINY = (
    Stage("tiny 1", 3, 4, 6, 20, 32, guided=True),
    Stage("tiny 2", 3, 8, 12, 20, 32, guided=False),
)


def config(tiny: bool) -> TransformerConfig:
    """Configuration of the 2.3 transformer, or of a tiny one."""
    layers, heads, width, audio_head_dim = (2, 4, 16, 8) if tiny else (48, 32, 128, 64)
    dim, audio = heads * width, heads * audio_head_dim
    return TransformerConfig(
        layers,
        StreamConfig(128, 128, heads, width, 4 * dim, dim, (20.0, 2048.0, 2048.0)),
        StreamConfig(128, 128, heads, audio_head_dim, 4 * audio, audio, (20.0,)),
    )


def build(shape: TransformerConfig, device: torch.device) -> Transformer:
    """Build a transformer with random bf16 weights on the device; modulation tables are float32."""
    with EmptyOnMeta():
        slots = {name: t.shape for name, t in Transformer(shape).state_dict().items()}

    def random_tensor(name: str) -> Tensor:
        empty = torch.empty(slots[name], dtype=torch.bfloat16, device=device)
        if name.endswith("norm.weight"):
            return empty.fill_(1)
        return empty.normal_(std=slots[name][-1] ** -0.5)

    model = load_module(
        lambda: Transformer(shape),
        {name: partial(random_tensor, name) for name in slots},
        device=device,
        dtype=torch.bfloat16,
        keep_float32=lambda name: "scale_shift_table" in name,
        label="random transformer",
    )
    model.set_chunk_tokens(chunk_tokens(device.type))
    return model


def workload(stage: Stage, shape: TransformerConfig, device: torch.device) -> Workload:
    """Random latents (float32) and text contexts (bf16)."""
    torch.manual_seed(1)

    def random_tensor(*size: int) -> Tensor:
        return torch.randn(1, *size, device=device)

    texts = [random_tensor(stage.text, s.dim).bfloat16() for s in (shape.video, shape.audio) * 2]
    return Workload(
        random_tensor(stage.frames * stage.height * stage.width, 128),
        random_tensor(stage.audio, 128),
        video_positions(stage.frames, stage.height, stage.width, 24).to(device),
        audio_positions(stage.audio).to(device),
        texts[0],
        texts[1],
        texts[2],
        texts[3],
        sigma=0.7,
    )


def our_call(model: Transformer, work: Workload, guided: bool) -> Callable[[], Tensor]:
    """Function that runs one step of ours; rotation tables are built before, as in a stage."""
    guidance = Guidance()
    if guided:
        cfg, stg, modality, rescale = GUIDANCE
        guidance = Guidance(cfg, stg, modality, rescale, (stg_block(model.config.layers),))
    video = DenoiserStream(
        work.video_positions, work.video_context, work.negative_video_context, guidance=guidance
    )
    audio = DenoiserStream(
        work.audio_positions, work.audio_context, work.negative_audio_context, guidance=guidance
    )
    denoiser = Denoiser(model, video, audio)
    x = denoiser.packing.pack(work.video, work.audio)
    return lambda: denoiser(x, work.sigma, 0).denoised


def rival_call(model: torch.nn.Module, work: Workload, guided: bool) -> Callable[[], object]:
    """Function that runs one step of diffusers."""
    blocks = model.get_submodule("transformer_blocks")
    assert isinstance(blocks, torch.nn.ModuleList)
    layers = len(blocks)

    def call() -> object:
        with torch.inference_mode():
            if guided:
                return rival_guided_step(model, work, [stg_block(layers)], GUIDANCE)
            return rival_forward(model, work)

    return call


def stg_block(layers: int) -> int:
    """Block for STG: 28 of 48, or at the same relative depth."""
    return layers * 28 // 48


def flops(shape: TransformerConfig, stage: Stage) -> float:
    """Floating-point operations of one plain forward."""
    d, s = shape.video.dim, shape.audio.dim
    n, m, text = stage.frames * stage.height * stage.width, stage.audio, stage.text
    linear = n * (14 * d * d + 4 * d * s) + m * 18 * s * s + 2 * text * (d * d + s * s)
    attention = 2 * (n * n * d + m * m * s + n * text * d + m * text * s + 2 * n * m * s)
    return 2.0 * shape.layers * (linear + attention)


def measure(call: Callable[[], object], device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds after one warm-up call, and peak memory above that allocated before."""
    cuda = device.type == "cuda"
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    allocated_before = torch.cuda.memory_allocated() if cuda else 0
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() - allocated_before if cuda else 0
    return {"seconds": statistics.median(times[1:]), "peak_gib": peak / 2**30}


def matmul_rate(device: torch.device, size: int) -> float:
    """FLOP/s of a square bf16 product, best of five."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    best = min(measure(lambda: a @ a, device, 1)["seconds"] for _ in range(5))
    return 2.0 * size**3 / best
