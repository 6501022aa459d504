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

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from latent_ladder.checkpoints.components import Component
from latent_ladder.latents.shapes import FRAMES_PER_LATENT, PIXELS_PER_LATENT, Resolution
from latent_ladder.models.diffusion_decoder_config import (
    ATTENTION_VALUES,
    ATTENTION_VALUES_ELSEWHERE,
    BAND_VALUES,
    BAND_VALUES_ELSEWHERE,
    DiffusionDecoderConfig,
    diffusion_decoder_config,
    has_diffusion_decoder,
    held_values,
)
from latent_ladder.models.network_configs import (
    CHUNK_TOKENS_GPU,
    CHUNK_VALUES,
    CHUNK_VALUES_ELSEWHERE,
    video_decoder_config,
)
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.request.sampling_options import StreamGuidance
from latent_ladder.request.stages import BaseStage, SamplingStage, UpsampleStage
from latent_ladder.sampling.guiders import Guidance, passes_needed, skips
from latent_ladder.sampling.names import SAMPLER_FACTS

CHUNK_COPIES = 9
"""Tensors of the stream's width in memory at once for a chunk: 4 of the feed-forward's hidden
layer, its input and output, the normed input, and fragmentation of the allocator."""
UPSAMPLER_COPIES = 3
"""Feature maps in memory at once in a residual block of the latent upsampler."""
CHUNK_TENSORS = 10
"""Tensors of a chunk's size in memory at once."""
BLOCK_TENSORS = 12
"""Tensors of a band's size in memory at once in a block of the diffusion decoder."""
BAND_BYTES = 12
"""Per pixel of each frame of a band of blended tiles: float32 RGB."""


@dataclass(frozen=True)
class DitSize:
    """Dimensions of a transformer that its FLOPs depend on."""

    layers: int
    video_dim: int
    audio_dim: int
    text_tokens: int = 1024
    latent_channels: int = 128


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
class ModelSizes:
    """Sizes of the models of a run, in bytes unless said otherwise.

    ``weights`` are stored bytes by role. ``largest`` has the largest part that is loaded at once of
    each role that is loaded part by part (such as a layer of the text encoder). ``blocks`` are the
    stored bytes of each transformer block of ``block_values`` numbers. ``value_bytes`` is the size
    of an activation and of a weight in the compute dtype. ``decoder_held`` is the number of values
    that the decoder caches per pixel of one frame, whatever the length of the clip.
    ``diffusion_decoder`` is the configuration of a diffusion decoder, which caches otherwise.
    """

    dit: DitSize
    weights: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    largest: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    value_bytes: int = 2
    blocks: tuple[int, ...] = ()
    block_values: int = 0
    upsampler_channels: int = 1024
    decoder_held: float = 610.0
    diffusion_decoder: DiffusionDecoderConfig | None = None

    def bytes_of(self, *roles: str) -> int:
        """Bytes of the weights of several roles; 0 for a role without weights."""
        return sum(self.weights.get(role, 0) for role in roles)

    @property
    def outside_bytes(self) -> int:
        """Bytes of the transformer outside its blocks, as stored."""
        return self.bytes_of("transformer") - sum(self.blocks)


LTX_2_3 = ModelSizes(
    DitSize(layers=48, video_dim=4096, audio_dim=2048),
    MappingProxyType(
        {
            "transformer": 2 * 18_988_838_144,
            "connectors": 2 * (1_612_546_304 + 403_620_096),
            "text_projection": 2 * (770_707_456 + 385_353_728),
            "text_encoder": 24_379_468_890,
            "video_vae": 2 * (318_936_897 + 407_169_072),
            "audio_vae": 2 * (21_333_008 + 31_915_138),
            "vocoder": 2 * 128_537_448,
            "latent_upsampler": 2 * 497_867_904,
            "distilled_lora": 7_605_000_000,
        }
    ),
    largest=MappingProxyType(
        {
            "text_encoder": 2 * 225_000_000,
            "text_projection": 2 * 770_707_456,
            "connectors": 2 * 1_612_546_304,
            "video_vae": 2 * 407_169_072,
        }
    ),
    blocks=(2 * 386_695_360,) * 48,
    block_values=386_695_360,
)
"""LTX-2.3 22B in bf16, as published."""


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


def sizes_of(
    parts: Mapping[str, Component], value_bytes: int = 2, text_tokens: int = 1024
) -> ModelSizes:
    """Sizes from the headers of the selected components, by role; a ``transformer`` is required."""
    upsampler = parts.get("latent_upsampler")
    vae = parts.get("video_decoder", parts.get("video_vae"))
    blocks, block_values = _blocks(parts["transformer"])
    return ModelSizes(
        dit=dit_size(parts["transformer"], text_tokens),
        weights=MappingProxyType({role: part.nbytes for role, part in parts.items()}),
        largest=MappingProxyType(_largest(parts, value_bytes)),
        value_bytes=value_bytes,
        blocks=blocks,
        block_values=block_values,
        upsampler_channels=upsampler.shape("initial_conv.weight")[0] if upsampler else 0,
        **_decoder_sizes(vae),
    )


def _decoder_sizes(vae: Component | None) -> dict[str, Any]:
    """What the memory of the video decoder depends on."""
    if vae is None:
        return {"decoder_held": 0}
    shapes = vae.shapes()
    if has_diffusion_decoder(shapes):
        return {"diffusion_decoder": diffusion_decoder_config(shapes, vae.config)}
    return {"decoder_held": video_decoder_config(shapes, vae.config).cached_values}


def dit_size(transformer: Component, text_tokens: int = 1024) -> DitSize:
    """Dimensions of a transformer, from the shapes of its tensors."""
    blocks, _ = _blocks(transformer)
    sound = "audio_patchify_proj.weight"
    return DitSize(
        layers=len(blocks),
        video_dim=transformer.shape("patchify_proj.weight")[0],
        audio_dim=transformer.shape(sound)[0] if sound in transformer else 0,
        text_tokens=text_tokens,
        latent_channels=transformer.shape("patchify_proj.weight")[1],
    )


def _blocks(transformer: Component) -> tuple[tuple[int, ...], int]:
    """Stored bytes of each transformer block, and the number of values in one."""
    known = transformer.file.cached
    if "blocks" not in known:
        known["blocks"] = _count_blocks(transformer)
    found: tuple[tuple[int, ...], int] = known["blocks"]
    return found


def _count_blocks(transformer: Component) -> tuple[tuple[int, ...], int]:
    stored: Counter[str] = Counter()
    values: Counter[str] = Counter()
    for key, shape in transformer.shapes().items():
        if key.startswith("transformer_blocks."):
            number = key.split(".", 2)[1]
            stored[number] += transformer.nbytes_of(key)
            values[number] += math.prod(shape)
    return tuple(stored[n] for n in sorted(stored, key=int)), max(values.values(), default=0)


_PARTS: Mapping[str, Callable[[str], str]] = {
    "text_encoder": lambda key: ".".join(key.split(".")[:2]),
    "text_projection": lambda key: key.split(".")[0],
    "connectors": lambda key: key.split(".")[0],
    "video_vae": lambda key: key.split(".")[0],
    "video_decoder": lambda key: key.split(".")[0],
}
"""Roles that are loaded part by part, and the part that a tensor belongs to."""


def _largest(parts: Mapping[str, Component], value_bytes: int) -> dict[str, int]:
    """Bytes in the compute dtype of the largest part of each role that is loaded part by part."""
    roles = [role for role in _PARTS if role in parts]
    return {role: _largest_part(parts[role]) * value_bytes for role in roles}


def _largest_part(part: Component) -> int:
    """Number of values in the largest part of a component."""
    known, key_of = part.file.cached, _PARTS[part.role]
    if (part.role, "part") not in known:
        sizes: dict[str, int] = {}
        for key in part.names:
            if not key.startswith("embed_tokens."):  # rows are read from the file as needed
                name = key_of(key)
                sizes[name] = sizes.get(name, 0) + math.prod(part.shape(key))
        known[part.role, "part"] = max(sizes.values(), default=0)
    found: int = known[part.role, "part"]
    return found


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
    """
    d, a, v = sizes.dit.video_dim, sizes.dit.audio_dim, sizes.value_bytes
    n, na = video_tokens, audio_tokens
    together = max(n, min(rows * n, chunk_tokens))
    residuals = rows * (n * d + na * a) * v
    keys_values = 2 * together * d * v
    rotations = 4 * (n * (d + a) + 2 * na * a)
    chunk = CHUNK_COPIES * min(rows * n, chunk_tokens) * d * v
    kept = (3 + rows) * (n + na) if whole_tokens is None else (7 + rows) * (whole_tokens + na)
    latents = 4 * kept * sizes.dit.latent_channels
    return residuals + keys_values + rotations + chunk + latents


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
    """The cost of each stage in the order they run: prompt, the request's stages, decode."""
    prompt = StageCost("prompt", "prompt", passes=1 + request.needs_negative)
    stages = [_stage_cost(request, i, sizes) for i in range(len(request.stages))]
    return (prompt, *stages, StageCost("decode", "decode", request.resolved.canvas))


def _stage_cost(request: Request, index: int, sizes: ModelSizes) -> StageCost:
    stage, resolved = request.stages[index], request.resolved.stages[index]
    name, resolution = resolved.name, resolved.resolution
    windows = [window.resolution(resolution) for window in resolved.windows]
    slots = stage.generated_keyframes if isinstance(stage, BaseStage) else 0
    per_frame = resolution.latent_height * resolution.latent_width
    longest = max(window.video_tokens for window in windows) + slots * per_frame
    if isinstance(stage, UpsampleStage):
        before = request.resolved.stages[index - 1].resolution
        flops = _upsample_flops(before, resolution, sizes.upsampler_channels)
        return StageCost(name, "upsample", resolution, flops=flops, window_tokens=longest)
    if not isinstance(stage, SamplingStage):
        return StageCost(name, stage.kind, resolution)
    passes, forwards = count_passes(request, index)
    loras = (lora.name or "distilled_lora" for lora in stage.loras if lora.strength)
    tiles = [resolved.tile_tokens(window) for window in resolved.windows]
    if slots:
        tiles = [(longest,)]  # a single window, and no tiles
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


def _upsample_flops(low: Resolution, high: Resolution, channels: int) -> float:
    """FLOPs of eight 3x3x3 convolutions before and eight after a 3x3 one for the pixel shuffle."""
    cubes = 2 * 27 * channels**2 * 8 * (low.video_tokens + high.video_tokens)
    return cubes + 2 * 9 * channels**2 * high.video_tokens


def upsample_activations(sizes: ModelSizes, tokens: int) -> int:
    """Peak bytes of the latent upsampler's feature maps for ``tokens`` video tokens."""
    return UPSAMPLER_COPIES * sizes.upsampler_channels * tokens * sizes.value_bytes


def decode_activations(
    last: Resolution,
    decode: Decode,
    sizes: ModelSizes,
    device: str = "cuda",
    *,
    frames_in_ram: bool = False,
) -> int:
    """Peak bytes of decoding a clip of resolution ``last``, whole or in tiles.

    A diffusion decoder may keep the frames between its blocks in RAM.
    A tile needs what the decoder caches for its part of a frame. The blended bands of tiles come on
    top of that, two at a time where spans of time overlap. Tiles of a grid are decoded together:
    each needs its own cache and one latent frame of float32, overlaps counted once per tile.
    """
    if sizes.diffusion_decoder is not None:
        return _diffusion_activations(last, decode, sizes, device, frames_in_ram)
    chunk = CHUNK_TENSORS * CHUNK_VALUES.get(device, CHUNK_VALUES_ELSEWHERE) * sizes.value_bytes
    width, height, frames = last.width, last.height, last.frames
    out = 8 * width * height * 3 * 5  # one latent frame as float32 and as uint8
    if tiling := decode.tiling((1, last.latent_height, last.latent_width)):
        area = tiling.area * PIXELS_PER_LATENT**2
        waiting = 0 if tiling.is_whole else FRAMES_PER_LATENT * area * BAND_BYTES
        return int(sizes.decoder_held * area * sizes.value_bytes) + chunk + out + waiting
    if decode.tile_px == decode.tile_frames == "auto":
        return int(sizes.decoder_held * width * height * sizes.value_bytes) + chunk + out
    side = width if decode.tile_px == "auto" else decode.tile_px
    span = 80 if decode.tile_frames == "auto" else decode.tile_frames
    tile = min(side, width) * min(side, height)
    band = BAND_BYTES * width * height * min(span, frames) * (2 if span < frames else 1)
    return int(sizes.decoder_held * tile * sizes.value_bytes) + chunk + out + band


def _diffusion_activations(
    last: Resolution, decode: Decode, sizes: ModelSizes, device: str, frames_in_ram: bool
) -> int:
    """Peak bytes of the diffusion decoder: frames between its blocks, a band, pixels of a chunk.

    In tiles, the frames are those of a tile, and the features of the whole clip and the blended
    band of pixels come on top.
    """
    config, width = sizes.diffusion_decoder, sizes.value_bytes
    if config is None:
        raise TypeError("the video decoder is not a diffusion decoder")
    latents = (last.latent_frames, last.latent_height, last.latent_width)
    working = width * (
        BLOCK_TENSORS * BAND_VALUES.get(device, BAND_VALUES_ELSEWHERE)
        + ATTENTION_VALUES.get(device, ATTENTION_VALUES_ELSEWHERE)
    )
    working += 8 * last.width * last.height * 3 * 5
    size = decode.diffusion_tiles
    if size is None:
        return working + (0 if frames_in_ram else width * held_values(config, latents))
    frames, rows, cols = (
        whole if tile is None else min(-(-tile // scale), whole)
        for tile, scale, whole in zip(
            (size.frames, size.rows, size.cols),
            (FRAMES_PER_LATENT, PIXELS_PER_LATENT, PIXELS_PER_LATENT),
            latents,
            strict=True,
        )
    )
    last_stage = len(config.strides) - 1
    features = math.prod(config.grid(latents, last_stage)) * config.channels[last_stage]
    span = last.frames if size.frames is None else min(2 * size.frames, last.frames)
    band = BAND_BYTES * last.width * last.height * span
    held = 0 if frames_in_ram else width * (held_values(config, (frames, rows, cols)) + features)
    return working + held + band


def decoder_ram_bytes(last: Resolution, sizes: ModelSizes) -> int:
    """Bytes of RAM for the frames between the blocks of a diffusion decoder."""
    if sizes.diffusion_decoder is None:
        return 0
    latents = (last.latent_frames, last.latent_height, last.latent_width)
    return sizes.value_bytes * held_values(sizes.diffusion_decoder, latents)
