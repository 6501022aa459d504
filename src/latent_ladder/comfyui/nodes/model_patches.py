"""Patches of model predictions: statistics, guidance by sigma, and voice guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.latent_statistics import apply_statistics
from latent_ladder.comfyui.runtime.values import GuidancePatch, StepStatistics
from latent_ladder.latents.tokens import tokens_to_video, video_to_tokens
from latent_ladder.models.transformer.denoiser import Denoiser
from latent_ladder.sampling.denoise import Packing
from latent_ladder.sampling.samplers import Model as Predict
from latent_ladder.sampling.samplers import Prediction


def with_statistics(
    model: Predict, packing: Packing, target: StepStatistics, grid: tuple[int, int, int]
) -> Predict:
    """Return a model whose video predictions are moved towards target statistics.

    Prediction i uses ``factors[i]``; later ones use the last factor. Nodes:
    ``LTXVPerStepAdainPatcher``, ``LTXVPerStepStatNormPatcher``.
    """
    calls = count()

    def predict(x: Tensor, sigma: float, step: int) -> Prediction:
        prediction = model(x, sigma, step)
        video, audio = packing.unpack(prediction.denoised)
        factor = target.factors[min(next(calls), len(target.factors) - 1)]
        if video is None:
            return prediction
        latents = apply_statistics(tokens_to_video(video, *grid), target, factor)
        return Prediction(packing.pack(video_to_tokens(latents), audio), prediction.uncond)

    return predict


@dataclass(frozen=True)
class DenoiserBySigma:
    """A model that selects one of several denoisers by sigma (``STGGuiderAdvanced``).

    The selected denoiser has the nearest sigma at or above the current one, or is the last one if
    there is none. Above ``zero_above`` the prediction is zero.
    """

    denoisers: Sequence[tuple[float, Denoiser]]
    zero_above: float = math.inf

    def select(self, sigma: float) -> Denoiser | None:
        """The denoiser at ``sigma``, ``None`` where the prediction is zero."""
        if sigma > self.zero_above:
            return None
        higher = [entry for entry in self.denoisers if entry[0] >= sigma]
        return min(higher, key=lambda entry: entry[0])[1] if higher else self.denoisers[-1][1]

    def __call__(self, x: Tensor, sigma: float, step: int) -> Prediction:
        """Predict as :meth:`Denoiser.__call__` does."""
        denoiser = self.select(sigma)
        if denoiser is None:
            return Prediction(torch.zeros_like(x), torch.zeros_like(x))
        return denoiser(x, sigma, step)


def with_voice_guidance(
    model: DenoiserBySigma, without_voice: Denoiser, packing: Packing, patch: GuidancePatch
) -> Predict:
    """Return a model with guidance towards a reference voice (``LTXVReferenceAudio``).

    The scaled difference between the prediction of the prompt, which ``model`` computes anyway, and
    that of ``without_voice`` is added: one more pass. The audio of ``without_voice`` lacks the
    voice tokens, which come last.
    """

    def predict(x: Tensor, sigma: float, step: int) -> Prediction:
        prediction, denoiser = model(x, sigma, step), model.select(sigma)
        if denoiser is None or not patch.sigma_low < sigma <= patch.sigma_high:
            return prediction
        video, audio = packing.unpack(x)
        if audio is not None and without_voice.packing.audio is not None:
            audio = audio[:, : without_voice.packing.audio[0]]
        x_without = without_voice.packing.pack(video, audio)
        reference = without_voice.packing.unpack(without_voice(x_without, sigma, step).denoised)
        guided = list(packing.unpack(prediction.denoised))
        for i, (with_, without) in enumerate(zip(denoiser.conditioned, reference, strict=True)):
            stream = guided[i]
            if stream is not None and with_ is not None and without is not None:
                n = without.shape[1]
                stream = stream.clone()
                stream[:, :n] += patch.scale * (with_[:, :n] - without)
                guided[i] = stream
        return Prediction(packing.pack(guided[0], guided[1]), prediction.uncond)

    return predict
