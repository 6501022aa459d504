"""The stages themselves: input artefacts and models in, tensors of the new artefact out.

Each function carries out one :class:`PlannedStage`. Networks are loaded when first needed and
released when the next stage needs the memory; the transformer stays loaded between stages, and
only its LoRAs are switched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.layout import Component
from latent_ladder.checkpoints.library import ModelSet
from latent_ladder.latents import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.models.audio_vae import AudioDecoder, fit_length, load_audio
from latent_ladder.models.denoiser import Denoiser, DenoiserSetup
from latent_ladder.models.latent_upsampler import load_upsampler, upsample
from latent_ladder.models.lora import attach, detach
from latent_ladder.models.networks import statistics
from latent_ladder.models.runtime import Runtime
from latent_ladder.models.text_encoder import Conditioning, encode_prompts
from latent_ladder.models.transformer import Transformer, load_transformer
from latent_ladder.models.video_vae import decode_video, load_video_vae
from latent_ladder.request import Request
from latent_ladder.request_stages import BaseStage, RefineStage, StreamGuidance, UpsampleStage
from latent_ladder.sampling.denoise import LatentState, Noises, SamplingPlan, sample
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.samplers import SamplerOptions
from latent_ladder.stages.plan import PlannedStage

Tensors = dict[str, Tensor]
OnStep = Callable[[int, int, float], None]
"""(steps done, of, sigma reached); may raise to stop after the step."""
