"""Predicted cost of a request: FLOPs, passes and bytes per stage. Pure numbers, no device.

FLOPs of one forward of the transformer, with L layers, widths d (video) and a (audio), N video, Na
audio and T text tokens (the same count as for any multiply-add: 2)::

    L [ 2 N (14 d^2 + 4 d a) + 4 N^2 d + 4 N T d + 8 N Na a
        + 2 T (2 d^2 + 2 a^2) + 2 Na 18 a^2 + 4 Na^2 a + 4 Na T a ]

14 d^2 are the query, key, value and output of self-attention (4), query and output of the text's
(2) and the feed-forward (8); 4 d a the projections between picture and sound. Within 0.5 % of a
counted forward. NAG of a stream attends to a second text: 4 N T d + 2 T 2 d^2 more.
:mod:`latent_ladder.memory.planner` decides which weights are on the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from latent_ladder.latents.shapes import Resolution
from latent_ladder.memory.decode_cost import decode_flops
from latent_ladder.memory.model_sizes import DitSize, ModelSizes
from latent_ladder.memory.prompt_cost import prompt_flops
from latent_ladder.memory.sound_cost import sound_flops
from latent_ladder.models.network_configs import CHUNK_TOKENS_GPU
from latent_ladder.request.keyframes_first import keyframe_tokens
from latent_ladder.request.model import Request
from latent_ladder.request.sampling_options import StreamGuidance
from latent_ladder.request.stages import SamplingStage, UpsampleStage
from latent_ladder.sampling.guiders import Guidance, passes_needed, skips
from latent_ladder.sampling.names import SAMPLER_FACTS

CHUNK_COPIES = 9
"""Tensors of the stream's width in memory at once for a chunk: 4 of the feed-forward's hidden
layer, its input and output, the normed input, and fragmentation of the allocator."""
LATENT_COPIES = 9
"""Latents of all tokens in float32 at once, next to a prediction per row: noise, mask and start of
the stage, the sampler's state, tokens packed for the transformer."""
TILED_COPIES = 5
"""More of them in a tiled stage: the blended prediction, its weights, a tile's part."""
UPSAMPLER_COPIES = 4
"""Feature maps in memory at once in a residual block of the latent upsampler."""


class Flops(NamedTuple):
    """FLOPs of one forward: video ``linears``, video ``self_attention``, and the ``rest``."""

    linears: float
    self_attention: float
    rest: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.linears + self.self_attention + self.rest


@dataclass(frozen=True)
class StageCost:
    """Cost of one stage that does not depend on its offload plan.

    ``forwards`` counts single passes of the transformer (a batch of two is two), ``passes`` is the
    largest number that one step needs, ``lora_bytes`` are the stored bytes of its LoRAs.
    ``window_tokens`` and ``audio_tokens`` are those of the longest window in time, ``tile_tokens``
    those of the largest tile of a tiled stage.
    """

    name: str
    kind: str
    resolution: Resolution | None = None
    steps: int = 0
    passes: int = 0
    forwards: int = 0
    flops: float = 0.0
    audio_tokens: int = 0
    lora_bytes: int = 0
    batch_passes: int | None = None
    tile_tokens: int | None = None
    window_tokens: int = 0


def forward_flops(
    dit: DitSize, video_tokens: int, audio_tokens: int, nag: tuple[bool, bool] = (False, False)
) -> Flops:
    """FLOPs of one pass over one sample; no ``audio_tokens`` means a pass without sound.

    ``nag``: whether video and audio have normalized attention guidance.
    """
    d, a, text, n, na = (
        dit.video_dim, dit.audio_dim, dit.text_tokens, video_tokens, audio_tokens,
    )  # fmt: skip
    linears = 2 * n * (14 * d**2 + (4 * d * a if na else 0))
    self_attention = 4 * n**2 * d
    rest = 4 * n * text * d + 2 * text * 2 * d**2
    if na:
        rest += 8 * n * na * a + 2 * text * 2 * a**2
        rest += 2 * na * 18 * a**2 + 4 * na**2 * a + 4 * na * text * a
    for guided, width, tokens in zip(nag, (d, a), (n, na), strict=True):
        if guided and tokens:
            rest += 4 * tokens * text * width + 2 * text * 2 * width**2
    return Flops(dit.layers * linears, dit.layers * self_attention, dit.layers * rest)


def transformer_activations(
    sizes: ModelSizes,
    video_tokens: int,
    audio_tokens: int,
    rows: int = 1,
    chunk_tokens: int = CHUNK_TOKENS_GPU,
    whole_tokens: int | None = None,
) -> int:
    """Peak bytes of the activations of a forward of ``rows`` samples.

    The residual streams, the keys and values of the rows computed together and the float32 rotation
    tables have the full length; everything else is as long as a chunk. The sampler stores its
    float32 latents and one prediction per row; in a tiled stage those have ``whole_tokens`` tokens.
    Counted on a pretended GPU (tests/pretended).
    """
    d, a, v = sizes.dit.video_dim, sizes.dit.audio_dim, sizes.value_bytes
    n, na = video_tokens, audio_tokens
    together = max(n, min(rows * n, chunk_tokens))
    residuals = rows * (n * d + na * a) * v
    keys_values = 2 * together * d * v
    rotations = 4 * (n * (d + a) + 2 * na * a)
    chunk = CHUNK_COPIES * min(rows * n, chunk_tokens) * d * v
    latents = _kept_latents(sizes, n, na, rows, whole_tokens)
    return residuals + keys_values + rotations + chunk + latents


def table_activations(
    sizes: ModelSizes,
    video_tokens: int,
    audio_tokens: int,
    rows: int = 1,
    whole_tokens: int | None = None,
) -> int:
    """Peak bytes while the rotation table of the video is built, before a forward.

    Angles, cosines, sines and the table itself are in float32; in a tiled stage, which has
    ``whole_tokens`` in all, the tables of the tile before are still there. More than
    :func:`transformer_activations` where chunks are short and tiles large.
    """
    d, a, n, na = sizes.dit.video_dim, sizes.dit.audio_dim, video_tokens, audio_tokens
    building = 4 * n * d + 3 * 2 * n * d
    before = 0 if whole_tokens is None else 4 * (n * (d + a) + 2 * na * a)
    return building + before + _kept_latents(sizes, n, na, rows, whole_tokens)


def _kept_latents(sizes: ModelSizes, n: int, na: int, rows: int, whole_tokens: int | None) -> int:
    """Bytes of what the sampler keeps: float32 latents of all tokens, a prediction per row."""
    copies = LATENT_COPIES + rows + (0 if whole_tokens is None else TILED_COPIES)
    tokens = (n if whole_tokens is None else whole_tokens) + na
    return 4 * copies * tokens * sizes.dit.latent_channels


def count_passes(request: Request, index: int) -> tuple[int, int]:
    """(most passes of one step, forwards of the whole stage) of sampling stage ``index``.

    Both are 0 for other kinds of stage, and for a base stage that does not sample.
    """
    stage, sigmas = request.stages[index], request.resolved.stages[index].sigmas
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
    if not counts:
        return 0, 0
    extra = facts.extra_evals * counts[-1]
    return max(counts), max(facts.evals_per_step * sum(counts) + extra, 0)


def _guidance(g: StreamGuidance) -> Guidance:
    return Guidance(**g.terms())


def estimate(request: Request, sizes: ModelSizes) -> tuple[StageCost, ...]:
    """The cost of each stage in the order they run: prompt, the request's, sound, decode."""
    prompts, canvas = 1 + request.needs_negative, request.resolved.canvas
    tokens = sizes.prompt_tokens or (sizes.text.length,) * prompts
    flops = sum(prompt_flops(sizes.text, count) for count in tokens)
    prompt = StageCost("prompt", "prompt", passes=prompts, flops=flops)
    stages = [_stage_cost(request, i, sizes) for i in range(len(request.stages))]
    decode = StageCost(
        "decode", "decode", canvas, flops=decode_flops(canvas, request.decode, sizes)
    )
    if request.audio == "none":
        return (prompt, *stages, decode)
    made = sizes.sound is not None and request.audio_in is None
    sound = StageCost(
        "sound",
        "sound",
        audio_tokens=canvas.audio_latents if made else 0,
        flops=sound_flops(sizes.sound, canvas.audio_latents) if made and sizes.sound else 0.0,
    )
    return (prompt, *stages, sound, decode)


def _stage_cost(request: Request, index: int, sizes: ModelSizes) -> StageCost:
    stage, resolved = request.stages[index], request.resolved.stages[index]
    name, resolution = resolved.name, resolved.resolution
    windows = [window.resolution(resolution) for window in resolved.windows]
    beside = keyframe_tokens(request.stages, index, resolution)
    longest = max(beside or [window.video_tokens for window in windows])
    if isinstance(stage, UpsampleStage):
        before = request.resolved.stages[index - 1].resolution
        flops = _upsample_flops(before, resolution, sizes)
        return StageCost(name, "upsample", resolution, flops=flops, window_tokens=longest)
    if not isinstance(stage, SamplingStage):
        return StageCost(name, stage.kind, resolution)
    passes, forwards = count_passes(request, index)
    loras = (lora.name or "distilled_lora" for lora in stage.loras if lora.strength)
    tiles = [resolved.tile_tokens(window) for window in resolved.windows]
    if beside:
        tiles = [beside]  # a single window
    audio = [0 if request.audio == "none" else window.audio_latents for window in windows]
    nag = (stage.guidance.video.has_nag, stage.guidance.audio.has_nag)
    flops = sum(
        forward_flops(sizes.dit, n, audio_tokens, nag).total
        for tokens, audio_tokens in zip(tiles, audio, strict=True)
        for n in tokens
    )
    return StageCost(
        name,
        stage.kind,
        resolution,
        steps=stage.steps,
        passes=passes,
        forwards=forwards * len(windows),
        flops=forwards * flops,
        audio_tokens=max(audio),
        lora_bytes=sizes.bytes_of(*loras),
        batch_passes=None if stage.batch_passes == "auto" else stage.batch_passes,
        tile_tokens=max(map(max, tiles)) if len(tiles[0]) > 1 else None,
        window_tokens=longest,
    )


def _upsample_flops(low: Resolution, high: Resolution, sizes: ModelSizes) -> float:
    """FLOPs of eight 3x3x3 convolutions before and eight after a 3x3 one for the pixel shuffle.

    One more at each end leads from the latents and back to them.
    """
    channels = sizes.upsampler_channels
    ends = channels * sizes.dit.latent_channels
    cubes = 2 * 27 * (8 * channels**2 + ends) * (low.video_tokens + high.video_tokens)
    return cubes + 2 * 9 * channels**2 * high.video_tokens


def upsample_activations(sizes: ModelSizes, tokens: int) -> int:
    """Peak bytes of the latent upsampler's feature maps for ``tokens`` video tokens."""
    return UPSAMPLER_COPIES * sizes.upsampler_channels * tokens * sizes.value_bytes
