"""Sampling the pocket model inside training: guided Euler steps, for evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import math

import torch
from dit import AUDIO_CHANNELS, FPS, Trainee
from torch import Tensor
from vae import LATENT_CHANNELS

from latent_ladder.models.passes import PassSpec
from latent_ladder.models.rope import audio_positions, video_positions
from latent_ladder.models.streams import StreamInput, stream_stage

REFINE_SIGMAS = (0.909375, 0.725, 0.421875, 0.0)


def schedule(steps: int, shift: float = 2.05, terminal: float = 0.1) -> list[float]:
    """LTX-2's sigmas at its default token count: shifted linear, stretched to end at `terminal`."""
    even = [1 - i / steps for i in range(steps)]
    shifted = [math.exp(shift) / (math.exp(shift) + 1 / s - 1) for s in even]
    stretch = (1 - terminal) / (1 - shifted[-1])
    return [1 - (1 - s) * stretch for s in shifted] + [0.0]


@dataclasses.dataclass(frozen=True)
class Guided:
    """x0 of both streams under classifier-free guidance; contexts are computed once."""

    trainee: Trainee
    video_context: Tensor
    audio_context: Tensor
    grid: tuple[int, int, int]
    cfg: float

    @classmethod
    def of(
        cls, trainee: Trainee, prompts: list[str], grid: tuple[int, int, int], cfg: float
    ) -> Guided:
        """For one prompt per batch item."""
        video, audio = trainee.tower([*prompts, ""])
        return cls(trainee, video, audio, grid, cfg)

    def __call__(self, video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Denoised tokens (B, N, C) of both streams."""
        net, count = self.trainee.net, len(video)
        passes = [PassSpec()] + ([PassSpec(context=count)] if self.cfg != 1 else [])
        level = torch.full((1,), sigma)
        places = video_positions(*self.grid, FPS)
        stage_v = stream_stage(net.config, places, self.video_context)
        stage_a = stream_stage(net.config, audio_positions(audio.shape[1]), self.audio_context)
        out = net(StreamInput(stage_v, video, level), StreamInput(stage_a, audio, level), passes)
        denoised = []
        for x, velocity in zip((video, audio), out, strict=True):
            x0 = x - sigma * velocity.unflatten(0, (len(passes), count))
            denoised.append(x0[0] if len(passes) == 1 else x0[1] + self.cfg * (x0[0] - x0[1]))
        return denoised[0], denoised[1]


def audio_length(latent_frames: int) -> int:
    """Audio tokens of a clip."""
    return round((1 + 8 * (latent_frames - 1)) / FPS * 25)


@torch.no_grad()
def euler(
    denoise: Guided, video: Tensor, audio: Tensor, sigmas: list[float]
) -> tuple[Tensor, Tensor]:
    """Follow the flow from noise level sigmas[0] to the last."""
    for sigma, following in itertools.pairwise(sigmas):
        x0_v, x0_a = denoise(video, audio, sigma)
        video = video + (video - x0_v) / sigma * (following - sigma)
        audio = audio + (audio - x0_a) / sigma * (following - sigma)
    return video, audio


def generate(
    trainee: Trainee,
    prompts: list[str],
    seed: int,
    steps: int = 16,
    cfg: float = 3.0,
    size: int = 256,
) -> tuple[Tensor, Tensor]:
    """(normalised video latents (B, C, 4, size/32, size/32), audio tokens) of 25-frame clips."""
    generator = torch.Generator().manual_seed(seed)
    grid = (4, size // 32, size // 32)
    tokens = math.prod(grid)
    with torch.no_grad():
        denoise = Guided.of(trainee, prompts, grid, cfg)
        video = torch.randn(len(prompts), tokens, LATENT_CHANNELS, generator=generator)
        shape = (len(prompts), audio_length(4), AUDIO_CHANNELS)
        audio = torch.randn(shape, generator=generator)
        video, audio = euler(denoise, video, audio, schedule(steps))
    return video.transpose(1, 2).unflatten(2, grid), audio
