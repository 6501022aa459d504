"""Euler sampling with classifier-free guidance, for evaluation and for drafts during training."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from dit import AUDIO_CHANNELS, FPS, PocketModel
from state import generator as new_generator
from torch import Tensor, nn
from vae import LATENT_CHANNELS, denormalize, normalize

from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import StreamInput, prepare_stream
from latent_ladder.request.model import Request
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.presets import read_preset


def refine_sigmas(denoise: float | None = None) -> list[float]:
    """Sigmas of the pocket preset's stage 2, with its own `refine.denoise` or another."""
    fields = read_preset("pocket").fields
    if denoise is not None:
        fields = apply_sets(fields, [f"refine.denoise={denoise}"])
    return list(Request.from_dict(fields | {"prompt": "-"}).resolved.stages[2].sigmas)


def schedule(steps: int, shift: float = 2.05, terminal: float = 0.1) -> list[float]:
    """LTX-2's schedule at its default token count: linear, shifted, stretched to `terminal`."""
    linear = [1 - i / steps for i in range(steps)]
    shifted = [math.exp(shift) / (math.exp(shift) + 1 / s - 1) for s in linear]
    stretch = (1 - terminal) / (1 - shifted[-1])
    return [1 - (1 - s) * stretch for s in shifted] + [0.0]


@dataclasses.dataclass(frozen=True)
class GuidedDenoiser:
    """Predicts x0 of both streams with classifier-free guidance; contexts are computed once."""

    model: PocketModel
    video_context: Tensor
    audio_context: Tensor
    grid: tuple[int, int, int]
    cfg: float
    mask: Tensor | None = None  # (B, N), 0 for tokens of a given first frame
    rescale: float = 0.0  # of the video, towards the standard deviation of the conditional one

    @classmethod
    def from_prompts(
        cls,
        model: PocketModel,
        prompts: list[str],
        grid: tuple[int, int, int],
        cfg: float,
        mask: Tensor | None = None,
    ) -> GuidedDenoiser:
        """For one prompt per clip of the batch; the unconditional prompt is empty."""
        video, audio = model.tower([*prompts, ""])
        return cls(model, video, audio, grid, cfg, mask)

    def __call__(self, video: Tensor, audio: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Denoised tokens (B, N, C) of both streams."""
        net, count = self.model.net, len(video)
        passes = [PassSpec()] + ([PassSpec(context=count)] if self.cfg != 1 else [])
        sigma_tensor = torch.full((1,), sigma)
        positions = video_positions(*self.grid, FPS)
        prepared_video = prepare_stream(net.config, positions, self.video_context, mask=self.mask)
        prepared_audio = prepare_stream(
            net.config, audio_positions(audio.shape[1]), self.audio_context
        )
        out = net(
            StreamInput(prepared_video, video, sigma_tensor),
            StreamInput(prepared_audio, audio, sigma_tensor),
            passes,
        )
        denoised = []
        video_mask = 1.0 if self.mask is None else self.mask[:, :, None]
        for x, velocity, stream_mask in zip((video, audio), out, (video_mask, 1.0), strict=True):
            x0 = x - sigma * stream_mask * velocity.unflatten(0, (len(passes), count))
            denoised.append(x0[0] if len(passes) == 1 else x0[1] + self.cfg * (x0[0] - x0[1]))
            if self.rescale and len(denoised) == 1:
                ratio = x0[0].std((1, 2), keepdim=True) / denoised[0].std((1, 2), keepdim=True)
                denoised[0] = denoised[0] * (self.rescale * ratio + 1 - self.rescale)
        return denoised[0], denoised[1]


def audio_length(latent_frames: int) -> int:
    """Number of audio tokens of a clip of `latent_frames` latent frames."""
    return round((1 + 8 * (latent_frames - 1)) / FPS * 25)


@torch.no_grad()
def euler(
    denoise: GuidedDenoiser, video: Tensor, audio: Tensor, sigmas: list[float]
) -> tuple[Tensor, Tensor]:
    """Euler steps through `sigmas`, from the first to the last; returns both streams."""
    for sigma, following in itertools.pairwise(sigmas):
        x0_v, x0_a = denoise(video, audio, sigma)
        video = video + (video - x0_v) / sigma * (following - sigma)
        audio = audio + (audio - x0_a) / sigma * (following - sigma)
    return video, audio


def generate(
    model: PocketModel,
    prompts: list[str],
    seed: int,
    steps: int = 16,
    cfg: float = 2.0,
    rescale: float = 0.0,
    size: int = 256,
    first_latents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 1: normalised video latents (B, C, 4, size/32, size/32) and audio tokens, 25 frames.

    `first_latents` (B, C, size/32, size/32) is an optional first latent frame to condition on.
    """
    generator = new_generator(seed)
    grid = (4, size // 32, size // 32)
    tokens, mask = math.prod(grid), None
    with torch.no_grad():
        video = torch.randn(len(prompts), tokens, LATENT_CHANNELS, generator=generator)
        if first_latents is not None:
            video, mask = _insert_first_frame(video, first_latents, grid)
        denoise = GuidedDenoiser.from_prompts(model, prompts, grid, cfg, mask)
        denoise = dataclasses.replace(denoise, rescale=rescale)
        shape = (len(prompts), audio_length(4), AUDIO_CHANNELS)
        audio = torch.randn(shape, generator=generator)
        video, audio = euler(denoise, video, audio, schedule(steps))
    return video.transpose(1, 2).unflatten(2, grid), audio


def upsample_latents(upsampler: nn.Module, vae: Any, video: Tensor) -> Tensor:
    """Upsample normalised latents (B, C, F, H, W) to (B, C, F, 2 H, 2 W)."""
    with torch.no_grad():
        return normalize(vae, upsampler(denormalize(vae, video)))


@torch.no_grad()
def refine(
    model: PocketModel,
    prompts: list[str],
    video: Tensor,
    audio: Tensor,
    sigmas: list[float],
    seed: int = 0,
    first_latents: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Stage 2 without guidance: add noise at sigmas[0] to both streams and denoise.

    `first_latents` (B, C, H, W) replaces the first latent frame, whose sigma is then 0.
    """
    generator = new_generator(seed)
    grid = tuple(video.shape[2:])
    tokens = video.flatten(2).transpose(1, 2)
    noisy = (1 - sigmas[0]) * tokens + sigmas[0] * torch.randn(tokens.shape, generator=generator)
    mask = None
    if first_latents is not None:
        noisy, mask = _insert_first_frame(noisy, first_latents, grid)
    audio = (1 - sigmas[0]) * audio + sigmas[0] * torch.randn(audio.shape, generator=generator)
    denoise = GuidedDenoiser.from_prompts(model, prompts, grid, 1.0, mask)
    out, audio = euler(denoise, noisy, audio, sigmas)
    return out.transpose(1, 2).unflatten(2, grid), audio


def _insert_first_frame(
    video: Tensor, first_latents: Tensor, grid: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Video tokens with a first latent frame inserted, and the mask (B, N) that is 0 there."""
    mask = torch.ones(len(video), *grid)
    mask[:, 0] = 0
    tokens = video.clone()
    tokens[:, : grid[1] * grid[2]] = first_latents.flatten(2).transpose(1, 2)
    return tokens, mask.flatten(1)
