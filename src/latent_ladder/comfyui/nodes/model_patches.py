"""What nodes patch into a model's predictions: statistics that are moved, a voice that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.latent_statistics import apply_statistics
from latent_ladder.comfyui.runtime.values import Patch, StepStatistics
from latent_ladder.latents.tokens import tokens_to_video, video_to_tokens
from latent_ladder.models.transformer.denoiser import Denoiser
from latent_ladder.sampling.denoise import Packing
from latent_ladder.sampling.samplers import Model as Predict
from latent_ladder.sampling.samplers import Prediction


def with_statistics(
    model: Predict, packing: Packing, asked: StepStatistics, grid: tuple[int, int, int]
) -> Predict:
    """``model`` with the video of every prediction moved by the factor of its turn, the last for
    all that follow (``LTXVPerStepAdainPatcher``, ``LTXVPerStepStatNormPatcher``)."""
    turns = count()

    def patched(x: Tensor, sigma: float, step: int) -> Prediction:
        found = model(x, sigma, step)
        video, audio = packing.unpack(found.denoised)
        factor = asked.factors[min(next(turns), len(asked.factors) - 1)]
        if video is None:
            return found
        latents = apply_statistics(tokens_to_video(video, *grid), asked, factor)
        return Prediction(packing.pack(video_to_tokens(latents), audio), found.uncond)

    return patched


def with_terms_by_sigma(rows: Sequence[tuple[float, Predict]], zero_above: float) -> Predict:
    """The model of the nearest sigma at or above, the last one below all; zero over a threshold
    (``STGGuiderAdvanced``)."""

    def patched(x: Tensor, sigma: float, step: int) -> Prediction:
        if sigma > zero_above:
            return Prediction(torch.zeros_like(x), torch.zeros_like(x))
        higher = [row for row in rows if row[0] >= sigma]
        _, model = min(higher, key=lambda row: row[0]) if higher else rows[-1]
        return model(x, sigma, step)

    return patched


def with_voice_guidance(
    model: Predict, plain: Predict, bare: Denoiser, packing: Packing, patch: Patch
) -> Predict:
    """``model`` pushed away from what is predicted without the voice (``LTXVReferenceAudio``).

    ``plain`` is conditioned on prompt and voice alone, ``bare`` on the prompt alone: its sound has
    fewer tokens, those of the voice that stand last.
    """

    def patched(x: Tensor, sigma: float, step: int) -> Prediction:
        found = model(x, sigma, step)
        if not patch.sigma_low <= sigma <= patch.sigma_high:
            return found
        with_voice = packing.unpack(plain(x, sigma, step).denoised)
        video, audio = packing.unpack(x)
        short = audio
        if audio is not None and bare.packing.audio is not None:
            short = audio[:, : bare.packing.audio[0]]
        seen = bare.packing.pack(video, short)
        without = bare.packing.unpack(bare(seen, sigma, step).denoised)
        guided = list(packing.unpack(found.denoised))
        for i, (full, less) in enumerate(zip(with_voice, without, strict=True)):
            target = guided[i]
            if target is not None and full is not None and less is not None:
                new = target.clone()
                n = less.shape[1]
                new[:, :n] += patch.scale * (full[:, :n] - less)
                guided[i] = new
        return Prediction(packing.pack(guided[0], guided[1]), found.uncond)

    return patched
