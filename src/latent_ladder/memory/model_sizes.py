"""Sizes of the models of a run, read from their headers. Pure numbers, no device."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from latent_ladder.checkpoints.components import Component
from latent_ladder.memory.prompt_cost import NO_TEXT, TextSizes, text_sizes
from latent_ladder.memory.sound_cost import SoundSizes, sound_sizes
from latent_ladder.models.diffusion_decoder_config import (
    DiffusionDecoderConfig,
    diffusion_decoder_config,
    has_diffusion_decoder,
)
from latent_ladder.models.network_configs import VideoVaeConfig, video_decoder_config


@dataclass(frozen=True)
class DitSize:
    """Dimensions of a transformer that its FLOPs depend on."""

    layers: int
    video_dim: int
    audio_dim: int
    text_tokens: int = 1024
    latent_channels: int = 128


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of the models of a run, in bytes unless said otherwise.

    ``weights`` are stored bytes by role. ``largest`` has the largest part that is loaded at once of
    each role that is loaded part by part (such as a layer of the text encoder). ``blocks`` are the
    stored bytes of each transformer block of ``block_values`` numbers. ``value_bytes`` is the size
    of an activation and of a weight in the compute dtype. ``decoder_held`` is the number of values
    that the decoder caches per pixel of one frame, whatever the length of the clip, ``decoder`` its
    configuration. ``text`` is what encodes prompts, ``prompt_tokens`` are the tokens of each
    prompt (empty: not counted yet). ``sound`` is what decodes sound, if anything does.
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
    decoder: VideoVaeConfig | None = None
    text: TextSizes = NO_TEXT
    prompt_tokens: tuple[int, ...] = ()
    diffusion_decoder: DiffusionDecoderConfig | None = None
    sound: SoundSizes | None = None

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
    decoder=VideoVaeConfig(
        latent_channels=128,
        patch=4,
        widths=(1024, 512, 512, 256, 128),
        layers=(2, 2, 4, 6, 4),
        resamplers=("all", "all", "time", "space"),
        padding="zeros",
        causal=False,
        residual=(False, False, False, False),
    ),
    text=TextSizes(
        encoder=10_758_389_760,
        layers=48,
        attention=4096,
        states=188_160,
        projection=1_156_055_040,
        connectors=2_014_838_784,
        connector_attention=8 * (4096 + 2048),
    ),
)
"""LTX-2.3 22B in bf16, as published."""


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
        text=text_sizes(parts, text_tokens),
        sound=sound_sizes(parts),
        upsampler_channels=upsampler.shape("initial_conv.weight")[0] if upsampler else 0,
        **_decoder_sizes(vae),
    )


def _decoder_sizes(vae: Component | None) -> dict[str, Any]:
    """Sizes on which the memory of the video decoder depends."""
    if vae is None:
        return {"decoder_held": 0}
    shapes = vae.shapes()
    if has_diffusion_decoder(shapes):
        return {"diffusion_decoder": diffusion_decoder_config(shapes, vae.config)}
    config = video_decoder_config(shapes, vae.config)
    return {"decoder_held": config.cached_values, "decoder": config}


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
