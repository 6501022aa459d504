"""Map original tensor names to names in diffusers' classes, for its side of a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from latent_ladder.checkpoints.components import Component

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
"""Parts of dotted names that differ, by component role."""

_WHOLE_NAMES = {
    "per_channel_statistics.mean-of-means": "latents_mean",
    "per_channel_statistics.std-of-means": "latents_std",
}

_VAE_BLOCK = re.compile(r"(encoder\.down_blocks|decoder\.up_blocks)\.(\d+)\.")


def network_names(component: Component) -> dict[str, str]:
    """Map the original name of each tensor to its name in the network class, one to one.

    Tensors that no network uses (unused statistics) are left out. A name that is not in the tables
    is unchanged, so that strict loading reports it.
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
    """Number of downsampling blocks (those with odd numbers) of the video encoder."""
    found = (re.match(r"encoder\.down_blocks\.(\d+)\.conv\.", key) for key in keys)
    return len({match[1] for match in found if match})


def _block_name(key: str, depth: int) -> str:
    """Rename the blocks of a video VAE, which the original numbers in one list.

    In the encoder, 0, 2, 4, ... are residual blocks and 1, 3, 5, ... the resamplers after them;
    the last residual blocks have no resampler. The decoder starts with residual blocks, followed
    by alternating resamplers and residual blocks.
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
