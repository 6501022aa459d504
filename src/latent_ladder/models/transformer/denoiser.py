"""Denoiser: guided x0 predictions of packed latents, the model that a sampler calls.

All guidance passes of a step run in one forward of the transformer. Masks set the noise level of
each token here; the denoising loop blends existing content into x and x0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ladder.models.transformer.graphs import GraphedForward
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.streams import (
    GuideBias,
    Nag,
    PreparedStream,
    StreamInput,
    prepare_stream,
)
from latent_ladder.sampling.denoise import Packing
from latent_ladder.sampling.guiders import Guidance, Pass, combine, passes_needed, skips, weights
from latent_ladder.sampling.samplers import Prediction

ORDER = (Pass.COND, Pass.PERTURBED, Pass.ISOLATED, Pass.UNCOND)
"""Order of passes in a forward: those with the same prompt are adjacent and share its keys."""

UNGUIDED = Guidance()

GuidedPrediction = tuple[Tensor, Tensor | None]
"""Guided x0 of a stream (B, N, C), and x0 of the negative prompt or ``None`` if it was not run."""
LastPredictions = tuple[GuidedPrediction | None, GuidedPrediction | None]
"""Last predictions of the video and the audio stream."""


@dataclass(frozen=True)
class DenoiserStream:
    """Stream (video or audio) to denoise: token positions, text contexts, mask and guidance.

    ``positions`` (1, axes, N, 2): intervals, see :mod:`rope_tables`. ``positive`` (1 or B, L, D),
    ``negative`` (1, L, D): text contexts; both streams have as many positive ones. ``mask``
    (1 or B, N, 1): noise levels, ``None`` to generate all tokens. ``bias`` (1, 1, N, N),
    ``keyframe_mask`` (1, N, 1): as in :class:`PreparedStream`. ``frozen``: existing content that is
    not denoised, only attended to by the other stream. ``nag``: normalized attention guidance of
    the passes with the positive prompt, of which there is one then.
    """

    positions: Tensor
    positive: Tensor
    negative: Tensor | None = None
    mask: Tensor | None = None
    guidance: Guidance = UNGUIDED
    bias: Tensor | GuideBias | None = None
    keyframe_mask: Tensor | None = None
    frozen: bool = False
    nag: Nag | None = None


class _GuidedStream:
    """Stream prepared for a transformer, with its noise level per token and last prediction."""

    def __init__(self, transformer: Transformer, stream: DenoiserStream) -> None:
        tokens = stream.positions.shape[2]
        mask = stream.mask
        if mask is None:
            mask = torch.ones(1, tokens, 1, device=stream.positions.device)
        self.mask = torch.zeros_like(mask) if stream.frozen else mask.float()
        negative = [] if stream.negative is None else [stream.negative]
        contexts = [stream.positive, *negative]
        self.prepared: PreparedStream = prepare_stream(
            transformer.config,
            stream.positions,
            torch.cat(contexts),
            mask=self.mask,
            bias=stream.bias,
            keyframe_mask=stream.keyframe_mask,
            nag=stream.nag,
        )
        self.stream = stream
        self.last_prediction: GuidedPrediction | None = None
        self.conditioned: Tensor | None = None

    def skips_step(self, step: int) -> bool:
        """Return True if ``step`` reuses the last prediction (``Guidance.skip_step``)."""
        return self.last_prediction is not None and skips(self.stream.guidance, step)

    def make_input(self, tokens: Tensor, sigma: float, enabled: bool) -> StreamInput:
        """Input of the transformer for ``tokens`` (B, N, C) at ``sigma``."""
        own_sigma = tokens.new_full((1,), 0.0 if self.stream.frozen else sigma)
        return StreamInput(self.prepared, tokens, own_sigma, enabled)

    def stg_blocks(self, sigma: float) -> frozenset[int]:
        """Blocks whose self-attention the perturbed pass skips in this stream."""
        guidance = self.stream.guidance
        return frozenset(guidance.stg_blocks if Pass.PERTURBED in weights(guidance, sigma) else ())

    def guide(self, tokens: Tensor, velocity: dict[Pass, Tensor], sigma: float) -> GuidedPrediction:
        """Combine the passes' x0 = x - velocity * sigma of each token; stores the result."""
        x0 = {p: tokens - v * (self.mask * sigma) for p, v in velocity.items()}
        x0.setdefault(Pass.ISOLATED, x0[Pass.COND])
        guided = combine(x0, self.stream.guidance, sigma), x0.get(Pass.UNCOND)
        self.last_prediction, self.conditioned = guided, x0[Pass.COND]
        return guided


class Denoiser:
    """Model (:data:`~latent_ladder.sampling.samplers.Model`) for the sampler of one stage.

    ``force_uncond``: predict the negative prompt at every step, for CFG++ samplers.
    ``max_passes``: passes per forward at most; fewer are slower and need less memory.
    ``updated_video``: see :meth:`Transformer.forward`.
    A denoiser stores the last prediction of each stream (for ``Guidance.skip_step``), so each
    run of a sampler needs a new one.
    """

    def __init__(
        self,
        transformer: Transformer,
        video: DenoiserStream | None,
        audio: DenoiserStream | None,
        *,
        force_uncond: bool = False,
        max_passes: int | None = None,
        updated_video: bool = False,
    ) -> None:
        self.updated_video = updated_video
        self.transformer = transformer
        self._forward: GraphedForward | Transformer = (
            GraphedForward(transformer) if transformer.graphs else transformer
        )
        self.video = None if video is None else _GuidedStream(transformer, video)
        self.audio = None if audio is None else _GuidedStream(transformer, audio)
        self.force_uncond = force_uncond
        self.max_passes = max_passes or len(ORDER)
        config = transformer.config
        self.packing = Packing(
            None if video is None else (video.positions.shape[2], config.video.in_channels),
            None if audio is None else (audio.positions.shape[2], config.audio.in_channels),
        )

    @property
    def last_predictions(self) -> LastPredictions:
        """Last predictions; set them to continue from another denoiser of the same tokens."""
        video, audio = self.video, self.audio
        return (
            None if video is None else video.last_prediction,
            None if audio is None else audio.last_prediction,
        )

    @last_predictions.setter
    def last_predictions(self, predictions: LastPredictions) -> None:
        for stream, prediction in zip((self.video, self.audio), predictions, strict=True):
            if stream is not None:
                stream.last_prediction = prediction

    @property
    def conditioned(self) -> tuple[Tensor | None, Tensor | None]:
        """X0 of video and audio with the prompt alone, of the last call; ``None`` before it."""
        video, audio = self.video, self.audio
        return (
            None if video is None else video.conditioned,
            None if audio is None else audio.conditioned,
        )

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float, step: int) -> Prediction:
        """Predict the guided x0 of packed ``x`` (B, n), float32.

        The prediction also has x0 of the negative prompt, if that was run for all streams.
        """
        streams = (self.video, self.audio)
        tokens = self.packing.unpack(x.float())
        active = [s is not None and not s.skips_step(step) for s in streams]
        velocities = self._predict(tokens, sigma, active) if any(active) else ({}, {})
        results: list[GuidedPrediction | None] = []
        for s, t, on, velocity in zip(streams, tokens, active, velocities, strict=True):
            if s is None or t is None:
                results.append(None)
            else:
                results.append(s.guide(t, velocity, sigma) if on else s.last_prediction)
        denoised = self.packing.pack(*(None if r is None else r[0] for r in results))
        uncond = [None if r is None else r[1] for r in results]
        if any(r is not None and u is None for r, u in zip(results, uncond, strict=True)):
            return Prediction(denoised, None)
        return Prediction(denoised, self.packing.pack(*uncond))

    def _predict(
        self, tokens: Sequence[Tensor | None], sigma: float, active: Sequence[bool]
    ) -> tuple[dict[Pass, Tensor], dict[Pass, Tensor]]:
        """Predict the velocities of all passes that the active streams need, by pass."""
        streams = (self.video, self.audio)
        inputs = [
            None if s is None or t is None else s.make_input(t, sigma, on)
            for s, t, on in zip(streams, tokens, active, strict=True)
        ]
        passes = self._passes(sigma, active)
        video: dict[Pass, Tensor] = {}
        audio: dict[Pass, Tensor] = {}
        for start in range(0, len(passes), self.max_passes):
            group = passes[start : start + self.max_passes]
            specs = [self._pass_spec(p, sigma, active) for p in group]
            for velocities, by_pass in zip(
                self._forward(inputs[0], inputs[1], specs, updated_video=self.updated_video),
                (video, audio),
                strict=True,
            ):
                if velocities is not None:
                    by_pass.update(zip(group, velocities.chunk(len(group)), strict=True))
        return video, audio

    def _passes(self, sigma: float, active: Sequence[bool]) -> list[Pass]:
        """Passes of the active streams at ``sigma``, in the order of :data:`ORDER`."""
        video, audio = (
            s.stream.guidance if s is not None and on else None
            for s, on in zip((self.video, self.audio), active, strict=True)
        )
        needed = set(passes_needed(video, audio, sigma, self.force_uncond))
        if self.video is None or self.audio is None:
            needed.discard(Pass.ISOLATED)
        return [p for p in ORDER if p in needed]

    def _pass_spec(self, p: Pass, sigma: float, active: Sequence[bool]) -> PassSpec:
        prompts = max(len(s.stream.positive) for s in (self.video, self.audio) if s is not None)
        if p is Pass.UNCOND:
            for s in (self.video, self.audio):
                if s is not None and s.stream.negative is None:
                    raise ValueError("guidance with a negative prompt, but no negative context")
            return PassSpec(context=prompts)
        positive = 0 if prompts == 1 else None
        if p is Pass.ISOLATED:
            return PassSpec(context=positive, isolated=True)
        if p is Pass.COND:
            return PassSpec(context=positive)
        video, audio = (
            s.stg_blocks(sigma) if s is not None and on else frozenset()
            for s, on in zip((self.video, self.audio), active, strict=True)
        )
        return PassSpec(context=positive, stg_video=video, stg_audio=audio)
