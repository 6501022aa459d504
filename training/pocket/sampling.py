"""Sampling the pocket model inside training: guided Euler steps, for evaluation."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from dit import AUDIO_CHANNELS, FPS, Trainee
from torch import Tensor, nn
from vae import LATENT_CHANNELS, denormalize, normalize

from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.presets import read_preset


def refine_sigmas(denoise: float | None = None) -> list[float]:
    """The steps of the pocket preset's stage 2, at its own `denoise` or at another."""
    fields = read_preset("pocket").fields
    if denoise is not None:
        fields = apply_sets(fields, [f"refine.denoise={denoise}"])
    return list(Request.from_dict(fields | {"prompt": "-"}).sigmas(2))


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
    mask: Tensor | None = None  # (B, N), 0 for given tokens
    rescale: float = 0.0  # of the video, towards the spread of the unguided prediction

    @classmethod
    def of(
        cls,
        trainee: Trainee,
        prompts: list[str],
        grid: tuple[int, int, int],
        cfg: float,
        mask: Tensor | None = None,
    ) -> Guided:
        """For one prompt per batch item."""
        video, audio = trainee.tower([*prompts, ""])
        return cls(trainee, video, audio, grid, cfg, mask)

    def __call__(self, video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Denoised tokens (B, N, C) of both streams."""
        net, count = self.trainee.net, len(video)
        passes = [PassSpec()] + ([PassSpec(context=count)] if self.cfg != 1 else [])
        level = torch.full((1,), sigma)
        places = video_positions(*self.grid, FPS)
        stage_v = prepare_stream(net.config, places, self.video_context, mask=self.mask)
        stage_a = prepare_stream(net.config, audio_positions(audio.shape[1]), self.audio_context)
        out = net(StreamInput(stage_v, video, level), StreamInput(stage_a, audio, level), passes)
        denoised = []
        own = 1.0 if self.mask is None else self.mask[:, :, None]
        for x, velocity, part in zip((video, audio), out, (own, 1.0), strict=True):
            x0 = x - sigma * part * velocity.unflatten(0, (len(passes), count))
            denoised.append(x0[0] if len(passes) == 1 else x0[1] + self.cfg * (x0[0] - x0[1]))
            if self.rescale and len(denoised) == 1:
                spread = x0[0].std((1, 2), keepdim=True) / denoised[0].std((1, 2), keepdim=True)
                denoised[0] = denoised[0] * (self.rescale * spread + 1 - self.rescale)
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
    cfg: float = 2.0,
    rescale: float = 0.0,
    size: int = 256,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(normalised video latents (B, C, 4, size/32, size/32), audio tokens) of 25-frame clips;
    `given` (B, C, size/32, size/32) is the first latent frame."""
    generator = torch.Generator().manual_seed(seed)
    grid = (4, size // 32, size // 32)
    tokens, mask = math.prod(grid), None
    with torch.no_grad():
        video = torch.randn(len(prompts), tokens, LATENT_CHANNELS, generator=generator)
        if given is not None:
            video, mask = _hold(video, given, grid)
        denoise = Guided.of(trainee, prompts, grid, cfg, mask)
        denoise = dataclasses.replace(denoise, rescale=rescale)
        shape = (len(prompts), audio_length(4), AUDIO_CHANNELS)
        audio = torch.randn(shape, generator=generator)
        video, audio = euler(denoise, video, audio, schedule(steps))
    return video.transpose(1, 2).unflatten(2, grid), audio


def zoomed(zoom: nn.Module, vae: Any, video: Tensor) -> Tensor:
    """Normalised latents (B, C, F, H, W) -> (B, C, F, 2 H, 2 W)."""
    with torch.no_grad():
        return normalize(vae, zoom(denormalize(vae, video)))


@torch.no_grad()
def refine(
    trainee: Trainee,
    prompts: list[str],
    video: Tensor,
    audio: Tensor,
    sigmas: list[float],
    seed: int = 0,
    given: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 2 without guidance: noise both streams to sigmas[0] and denoise.

    `given` (B, C, H, W) replaces the first latent frame, which then keeps sigma 0.
    """
    generator = torch.Generator().manual_seed(seed)
    grid = tuple(video.shape[2:])
    tokens = video.flatten(2).transpose(1, 2)
    noisy = (1 - sigmas[0]) * tokens + sigmas[0] * torch.randn(tokens.shape, generator=generator)
    mask = None
    if given is not None:
        noisy, mask = _hold(noisy, given, grid)
    audio = (1 - sigmas[0]) * audio + sigmas[0] * torch.randn(audio.shape, generator=generator)
    denoise = Guided.of(trainee, prompts, grid, 1.0, mask)
    out, audio = euler(denoise, noisy, audio, sigmas)
    return out.transpose(1, 2).unflatten(2, grid), audio


def _hold(video: Tensor, given: Tensor, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(tokens with the given first frame in place, mask 0 there)."""
    mask = torch.ones(len(video), *grid)
    mask[:, 0] = 0
    held = video.clone()
    held[:, : grid[1] * grid[2]] = given.flatten(2).transpose(1, 2)
    return held, mask.flatten(1)
