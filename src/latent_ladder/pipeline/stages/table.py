"""Table of stage kinds: the function that makes the artefact of each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from latent_ladder.pipeline.stages.audio_decoding import make_sound
from latent_ladder.pipeline.stages.denoising import denoise
from latent_ladder.pipeline.stages.input_encoding import (
    encode_audio,
    encode_images,
    encode_source_video,
    encode_video,
)
from latent_ladder.pipeline.stages.latent_upsampling import upsample_latents
from latent_ladder.pipeline.stages.stage_job import StageFunction
from latent_ladder.pipeline.stages.temporal_round import refine
from latent_ladder.pipeline.stages.text_encoding import encode_text

STAGES: Mapping[str, StageFunction] = MappingProxyType(
    {
        "prompt": encode_text,
        "images": encode_images,
        "audio_in": encode_audio,
        "video_in": encode_video,
        "source": encode_source_video,
        "base": denoise,
        "upsample": upsample_latents,
        "refine": refine,
        "sound": make_sound,
    }
)
"""Stage function by ``PlannedStage.kind``."""
