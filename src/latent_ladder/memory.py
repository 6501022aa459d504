"""What a request costs before it runs: FLOPs, passes, bytes per stage. Pure numbers, no device.

FLOPs of one forward of the transformer, with L layers, widths d (video) and a (audio), N video, Na
audio and T text tokens (the same count as for any multiply-add: 2)::

    L [ 2 N (14 d^2 + 4 d a) + 4 N^2 d + 4 N T d + 8 N Na a
        + 2 T (2 d^2 + 2 a^2) + 2 Na 18 a^2 + 4 Na^2 a + 4 Na T a ]

14 d^2 are the query, key, value and output of self-attention (4), query and output of the text's
(2) and the feed-forward (8); 4 d a the projections between picture and sound. Within 0.5 % of a
counted forward. Bytes are first estimates: weights as stored, activations at their largest point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from latent_ladder.checkpoints.layout import Component
from latent_ladder.request import Request
from latent_ladder.request_stages import SamplingStage, StreamGuidance, UpsampleStage
from latent_ladder.sampling.guiders import Guidance, passes_needed, skips
from latent_ladder.sampling.names import SAMPLER_FACTS
from latent_ladder.shapes import Rung

STREAM_COPIES = 6
"""Tensors of the stream's width alive at once beside the hidden layer of the feed-forward."""
UPSAMPLER_COPIES = 3
"""Feature maps alive at once in a residual block of the latent upsampler."""
DECODE_TILE_PX = 768
DECODE_TILE_FRAMES = 80
"""The tile a decode is estimated with where the request says ``auto``."""


@dataclass(frozen=True)
class DitSize:
    """The numbers of a transformer that its FLOPs depend on."""

    layers: int
    video_dim: int
    audio_dim: int
    text_tokens: int = 1024


class Flops(NamedTuple):
    """FLOPs of one forward: video ``linears``, video ``self_attention``, and everything else."""

    linears: float
    self_attention: float
    rest: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linears + self.self_attention + self.rest


@dataclass(frozen=True)
class ModelSizes:
    """The models of a run as a planner sees them.

    ``weights`` are bytes by role, ``value_bytes`` those of one activation. The decoder needs
    ``decode_bytes`` plus ``decode_bytes_per_px`` for every pixel of every frame of a tile.
    """

    dit: DitSize
    weights: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    value_bytes: int = 2
    upsampler_channels: int = 1024
    decode_bytes: int = 2**30
    decode_bytes_per_px: int = 350

    def bytes_of(self, *roles: str) -> int:
        """Bytes of the weights of several roles; a role without weights counts nothing."""
        return sum(self.weights.get(role, 0) for role in roles)


LTX_2_3 = ModelSizes(
    DitSize(layers=48, video_dim=4096, audio_dim=2048),
    MappingProxyType(
        {
            "transformer": 2 * 18_988_838_144,
            "connectors": 2 * (1_612_546_304 + 403_620_096),
            "text_projection": 2 * (770_707_456 + 385_353_728),
            "text_encoder": 24_400_000_000,
            "video_vae": 2 * (318_936_897 + 407_169_072),
            "audio_vae": 2 * (21_333_008 + 31_915_138),
            "vocoder": 2 * 128_537_448,
            "latent_upsampler": 2 * 497_867_904,
            "distilled_lora": 7_605_000_000,
        }
    ),
)
"""LTX-2.3 22B in bf16, as published."""


@dataclass(frozen=True)
class StageCost:
    """What one stage costs.

    ``forwards`` counts single passes of the transformer (a batch of two is two), ``passes`` the
    most that one step needs. ``peak_bytes`` is the weights the stage uses and its activations.
    """

    name: str
    kind: str
    rung: Rung | None = None
    steps: int = 0
    passes: int = 0
    forwards: int = 0
    flops: float = 0.0
    weight_bytes: int = 0
    activation_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        """Bytes needed when everything the stage uses is resident."""
        return self.weight_bytes + self.activation_bytes


def sizes_of(parts: Mapping[str, Component], value_bytes: int = 2) -> ModelSizes:
    """What the headers of the chosen components say, by role; ``transformer`` must be one."""
    upsampler = parts.get("latent_upsampler")
    return ModelSizes(
        dit=dit_size(parts["transformer"]),
        weights=MappingProxyType({role: weight_bytes(part) for role, part in parts.items()}),
        value_bytes=value_bytes,
        upsampler_channels=upsampler.shape("initial_conv.weight")[0] if upsampler else 0,
    )


def dit_size(transformer: Component, text_tokens: int = 1024) -> DitSize:
    """The numbers of a transformer, from its shapes."""
    blocks = {name.split(".")[1] for name in transformer.names if name.startswith("transformer_b")}
    sound = "audio_patchify_proj.weight"
    return DitSize(
        layers=len(blocks),
        video_dim=transformer.shape("patchify_proj.weight")[0],
        audio_dim=transformer.shape(sound)[0] if sound in transformer else 0,
        text_tokens=text_tokens,
    )


def weight_bytes(component: Component) -> int:
    """Bytes of a component's tensors as stored."""
    return sum(component.file.tensors[name].nbytes for name in component.names.values())


def forward_flops(dit: DitSize, video_tokens: int, audio_tokens: int) -> Flops:
    """FLOPs of one pass over one sample; no ``audio_tokens`` means a pass without sound."""
    d, a, text, n, na = (
        dit.video_dim, dit.audio_dim, dit.text_tokens, video_tokens, audio_tokens,
    )  # fmt: skip
    linears = 2 * n * (14 * d**2 + (4 * d * a if na else 0))
    self_attention = 4 * n**2 * d
    rest = 4 * n * text * d + 2 * text * 2 * d**2
    if na:
        rest += 8 * n * na * a + 2 * text * 2 * a**2
        rest += 2 * na * 18 * a**2 + 4 * na**2 * a + 4 * na * text * a
    return Flops(dit.layers * linears, dit.layers * self_attention, dit.layers * rest)


def transformer_activations(sizes: ModelSizes, video_tokens: int, audio_tokens: int) -> int:
    """Bytes of one sample's activations where they are largest, the feed-forward of the video."""
    dit = sizes.dit
    hidden = 4 * video_tokens * dit.video_dim
    streams = STREAM_COPIES * (video_tokens * dit.video_dim + audio_tokens * dit.audio_dim)
    return (hidden + streams) * sizes.value_bytes


def count_passes(request: Request, index: int) -> tuple[int, int]:
    """(most passes of one step, forwards of the whole stage) of sampling stage ``index``."""
    stage, sigmas = request.stages[index], request.sigmas(index)
    if not isinstance(stage, SamplingStage):
        return 0, 0
    video, sound = _guidance(stage.guidance.video), _guidance(stage.guidance.audio)
    audio = None if request.audio == "none" else sound
    facts = SAMPLER_FACTS[stage.sampler]
    counts = [
        0
        if skips(video, step) and (audio is None or skips(audio, step))
        else len(passes_needed(video, audio, sigma, facts.needs_uncond))
        for step, sigma in enumerate(sigmas[:-1])
    ]
    extra = facts.extra_evals * counts[-1]
    return max(counts), max(facts.evals_per_step * sum(counts) + extra, 0)


def _guidance(g: StreamGuidance) -> Guidance:
    return Guidance(**g.model_dump())


def estimate(request: Request, sizes: ModelSizes) -> tuple[StageCost, ...]:
    """The cost of each stage in the order they run: prompt, the request's stages, decode."""
    prompts = 1 + request.needs_negative
    text_roles = ("text_encoder", "text_projection", "connectors")
    prompt = StageCost("prompt", "prompt", passes=prompts, weight_bytes=sizes.bytes_of(*text_roles))
    stages = [_stage_cost(request, i, sizes) for i in range(len(request.stages))]
    return (prompt, *stages, _decode_cost(request, sizes))


def _stage_cost(request: Request, index: int, sizes: ModelSizes) -> StageCost:
    stage, rung = request.stages[index], request.rungs[index]
    name = request.stage_names[index]
    if isinstance(stage, UpsampleStage):
        return _upsample_cost(name, request.rungs[index - 1], rung, sizes)
    if not isinstance(stage, SamplingStage):
        return StageCost(name, stage.kind, rung)
    sound = 0 if request.audio == "none" else rung.audio_latents
    passes, forwards = count_passes(request, index)
    at_once = 1 if stage.batch_passes == "auto" else min(stage.batch_passes, passes)
    loras = sizes.bytes_of(*("distilled_lora" for lora in stage.loras if lora.role == "distilled"))
    return StageCost(
        name,
        stage.kind,
        rung,
        steps=stage.steps,
        passes=passes,
        forwards=forwards,
        flops=forwards * forward_flops(sizes.dit, rung.video_tokens, sound).total,
        weight_bytes=sizes.bytes_of("transformer") + loras,
        activation_bytes=at_once * transformer_activations(sizes, rung.video_tokens, sound),
    )


def _upsample_cost(name: str, low: Rung, high: Rung, sizes: ModelSizes) -> StageCost:
    """Eight 3x3x3 convolutions below and eight above a 3x3 one that feeds the pixel shuffle."""
    channels = sizes.upsampler_channels
    cubes = 2 * 27 * channels**2 * 8 * (low.video_tokens + high.video_tokens)
    shuffle = 2 * 9 * channels**2 * high.video_tokens
    return StageCost(
        name,
        "upsample",
        high,
        flops=cubes + shuffle,
        weight_bytes=sizes.bytes_of("latent_upsampler"),
        activation_bytes=UPSAMPLER_COPIES * channels * high.video_tokens * sizes.value_bytes,
    )


def _decode_cost(request: Request, sizes: ModelSizes) -> StageCost:
    last, decode = request.rungs[-1], request.decode
    tile_px = DECODE_TILE_PX if decode.tile_px == "auto" else decode.tile_px
    tile_frames = DECODE_TILE_FRAMES if decode.tile_frames == "auto" else decode.tile_frames
    tile = min(tile_px, last.width) * min(tile_px, last.height) * min(tile_frames, last.frames)
    roles = ("video_vae",) if request.audio == "none" else ("video_vae", "audio_vae", "vocoder")
    return StageCost(
        "decode",
        "decode",
        last,
        weight_bytes=sizes.bytes_of(*roles),
        activation_bytes=sizes.decode_bytes + sizes.decode_bytes_per_px * tile,
    )
