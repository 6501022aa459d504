"""Stream inputs of the transformer's golden cases."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from helpers.goldens import GoldenCase
from latent_ladder.models.transformer.config import TransformerConfig
from latent_ladder.models.transformer.streams import (
    PreparedStream,
    StreamInput,
    attention_bias,
    prepare_stream,
)
from latent_ladder.models.weights.linear import Linear


def linear(model: torch.nn.Module, name: str) -> Linear:
    """The linear layer ``name`` of a model."""
    layer = model.get_submodule(name)
    assert isinstance(layer, Linear), name
    return layer


def prepare_case_stream(
    config: TransformerConfig,
    inputs: Mapping[str, torch.Tensor],
    name: str,
    *,
    bias: torch.Tensor | None = None,
    keyframe_mask: torch.Tensor | None = None,
) -> PreparedStream:
    """Prepare one stream of a golden case; its timesteps are sigma times the mask."""
    mask = inputs.get(f"{name}_timesteps")
    if mask is not None:
        mask = mask / inputs["sigma"]
    positions, context = inputs[f"{name}_positions"], inputs[f"{name}_context"]
    return prepare_stream(
        config, positions, context, mask=mask, bias=bias, keyframe_mask=keyframe_mask
    )


def inputs_of(
    config: TransformerConfig, case: GoldenCase
) -> tuple[StreamInput | None, StreamInput | None]:
    """Video and audio stream input of a golden case, None if absent."""
    inputs, params = case.inputs, case.params
    video = audio = None
    if "video_tokens" in inputs:
        mask = inputs.get("video_attention_mask_x4")
        bias = None if mask is None else attention_bias(mask.float() / 4)
        keyframe_mask = inputs.get("video_keyframes_mask")
        prepared = prepare_case_stream(
            config, inputs, "video", bias=bias, keyframe_mask=keyframe_mask
        )
        video = StreamInput(
            prepared, inputs["video_tokens"], inputs["sigma"], params["video_enabled"]
        )
    if "audio_tokens" in inputs:
        sigma = inputs.get("audio_sigma", inputs["sigma"])
        prepared = prepare_case_stream(config, inputs, "audio")
        audio = StreamInput(prepared, inputs["audio_tokens"], sigma, params["audio_enabled"])
    return video, audio
