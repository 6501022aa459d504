"""Original tensor names -> names in diffusers' classes, for the rival's side of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from latent_ladder.checkpoints.components import Component

Renaming = Callable[[Iterable[str]], dict[str, str]]

_SEGMENTS: Mapping[str, Mapping[str, str]] = {
    "video_vae": {"res_blocks": "resnets"},
    "audio_vae": {},
    "vocoder": {
        "resblocks": "resnets",
        "ups": "upsamplers",
        "conv_pre": "conv_in",
        "conv_post": "conv_out",
        "act_post": "act_out",
    },
    "connectors": {
        "video_embeddings_connector": "video_connector",
        "audio_embeddings_connector": "audio_connector",
        "transformer_1d_blocks": "transformer_blocks",
        "q_norm": "norm_q",
        "k_norm": "norm_k",
    },
    "text_projection": {
        "video_aggregate_embed": "video_text_proj_in",
        "audio_aggregate_embed": "audio_text_proj_in",
        "aggregate_embed": "text_proj_in",
    },
    "latent_upsampler": {},
}
"""Names between dots that are spelled differently, by role."""

_WHOLE_NAMES = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}

_VAE_BLOCK = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.")


def network_names(component: Component) -> dict[str, str]:
    """Original name -> name in the network class, for every tensor the network has.

    One-to-one; names that no network uses (unused statistics) are left out, anything else that is
    not in the tables keeps its name, so that a strict load reports it.
    """
    segments = _SEGMENTS[component.role]
    keys = [key for key in component.names if not _is_unused(key)]
    depth = _encoder_depth(keys) if component.role == "video_vae" else 0
    renamed = {}
    for key in keys:
        name = _WHOLE_NAMES.get(key) or ".".join(
            segments.get(part, part) for part in _block_name(key, depth).split(".")
        )
        renamed[key] = name.replace(".lowpass.", ".") if component.role == "vocoder" else name
    return renamed


def _is_unused(key: str) -> bool:
    return key.startswith("per_channel_statistics.") and key not in _WHOLE_NAMES


def _encoder_depth(keys: Iterable[str]) -> int:
    """How many down-sampling blocks (the odd ones) the video encoder has."""
    found = (re.match(r"encoder\.down_blocks\.(\d+)\.conv\.", key) for key in keys)
    return len({match[1] for match in found if match})


def _block_name(key: str, depth: int) -> str:
    """Video VAE: the original counts residual stages and resamplers in one list.

    Encoder 0, 2, 4, ... are stages, 1, 3, 5, ... the resampler after each, the last one stands
    alone; the decoder starts with a lone stage, then resampler and stage alternate.
    """
    match = _VAE_BLOCK.match(key)
    if match is None:
        return key
    path, number, rest = match[1], int(match[2]), key[match.end() :]
    if path.startswith("encoder"):
        if number == 2 * depth:
            return f"encoder.mid_block.{rest}"
        inner = "downsamplers.0." if number % 2 else ""
        return f"{path}.{number // 2}.{inner}{rest}"
    if number == 0:
        return f"decoder.mid_block.{rest}"
    inner = "upsamplers.0." if number % 2 else ""
    return f"{path}.{(number - 1) // 2}.{inner}{rest}"
