"""Patches of model predictions: statistics, guidance by sigma, and voice guidance."""

from __future__ import annotations

from collections.abc import Sequence
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


def with_terms_by_sigma(models: Sequence[tuple[float, Predict]], zero_above: float) -> Predict:
    """Return a model that selects one of several models by sigma (``STGGuiderAdvanced``).

    The selected model has the nearest sigma at or above the current one, or is the last one if
    there is none. Above ``zero_above`` the prediction is zero.
    """

    def predict(x: Tensor, sigma: float, step: int) -> Prediction:
        if sigma > zero_above:
            return Prediction(torch.zeros_like(x), torch.zeros_like(x))
        higher = [entry for entry in models if entry[0] >= sigma]
        _, model = min(higher, key=lambda entry: entry[0]) if higher else models[-1]
        return model(x, sigma, step)

    return predict


def with_voice_guidance(
    model: Predict,
    with_voice: Predict,
    without_voice: Denoiser,
    packing: Packing,
    patch: GuidancePatch,
) -> Predict:
    """Return a model with guidance towards a reference voice (``LTXVReferenceAudio``).

    The scaled difference between the predictions of ``with_voice`` and ``without_voice`` is added
    to those of ``model``. The audio of ``without_voice`` lacks the voice tokens, which come last.
    """

    def predict(x: Tensor, sigma: float, step: int) -> Prediction:
        prediction = model(x, sigma, step)
        if not patch.sigma_low <= sigma <= patch.sigma_high:
            return prediction
        conditioned = packing.unpack(with_voice(x, sigma, step).denoised)
        video, audio = packing.unpack(x)
        if audio is not None and without_voice.packing.audio is not None:
            audio = audio[:, : without_voice.packing.audio[0]]
        x_without = without_voice.packing.pack(video, audio)
        reference = without_voice.packing.unpack(without_voice(x_without, sigma, step).denoised)
        guided = list(packing.unpack(prediction.denoised))
        for i, (with_, without) in enumerate(zip(conditioned, reference, strict=True)):
            stream = guided[i]
            if stream is not None and with_ is not None and without is not None:
                n = without.shape[1]
                stream = stream.clone()
                stream[:, :n] += patch.scale * (with_[:, :n] - without)
                guided[i] = stream
        return Prediction(packing.pack(guided[0], guided[1]), prediction.uncond)

    return predict
