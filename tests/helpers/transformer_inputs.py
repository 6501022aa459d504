"""Stream inputs of the transformer's golden cases."""

from __future__ import annotations

from latent_ladder.models.transformer.streams import StreamInput, attention_bias, prepare_stream


def stage_of(config, inputs, name, **more):
    """The stage of one stream of a golden case; timesteps are sigma times the mask."""
    mask = inputs.get(f"{name}_timesteps")
    if mask is not None:
        mask = mask / inputs["sigma"]
    positions, context = inputs[f"{name}_positions"], inputs[f"{name}_context"]
    return prepare_stream(config, positions, context, mask=mask, **more)


def inputs_of(config, case):
    """The two stream inputs of a golden case."""
    given, params = case.inputs, case.params
    video = audio = None
    if "video_tokens" in given:
        mask = given.get("video_attention_mask_x4")
        bias = None if mask is None else attention_bias(mask.float() / 4)
        marked = given.get("video_keyframes_mask")
        stage = stage_of(config, given, "video", bias=bias, keyframe_mask=marked)
        video = StreamInput(stage, given["video_tokens"], given["sigma"], params["video_enabled"])
    if "audio_tokens" in given:
        sigma = given.get("audio_sigma", given["sigma"])
        stage = stage_of(config, given, "audio")
        audio = StreamInput(stage, given["audio_tokens"], sigma, params["audio_enabled"])
    return video, audio
