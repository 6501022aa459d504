"""The transformer as a sampler's model: guided x0 predictions of packed latents.

All guidance passes of a step go through the transformer in one forward. Masks decide each token's
noise level here; blending kept content into x and x0 is the denoising loop's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.streams import StreamInput, StreamStage, stream_stage
from latent_ladder.sampling.denoise import Packing
from latent_ladder.sampling.guiders import Guidance, Pass, combine, passes_needed, skips, weights
from latent_ladder.sampling.samplers import Prediction

ORDER = (Pass.COND, Pass.PERTURBED, Pass.ISOLATED, Pass.UNCOND)
"""Passes of one prompt stand together, so that they share its keys without a copy."""

UNGUIDED = Guidance()

Guided = tuple[Tensor, Tensor | None]
"""Guided x0 of a stream, and that of the negative prompt if it was run."""
Last = tuple[Guided | None, Guided | None]
"""What a denoiser last said about video and audio."""


@dataclass(frozen=True)
class StreamRun:
    """One stream of a run: where its tokens are, what it is told, how it is guided.

    ``positions`` (1, axes, N, 2) bounds; ``positive`` and ``negative`` (1, L, D) text contexts;
    ``mask`` (1 or B, N, 1) noise levels, ``None``: generate everything; ``bias`` (1, 1, N, N)
    and ``marked`` (1, N, 1) as in :class:`StreamStage`. ``frozen``: given content that only
    conditions the other stream.
    """

    positions: Tensor
    positive: Tensor
    negative: Tensor | None = None
    mask: Tensor | None = None
    guidance: Guidance = UNGUIDED
    bias: Tensor | None = None
    marked: Tensor | None = None
    frozen: bool = False


class _Bound:
    """A stream bound to a transformer: its stage, its levels per token, its last predictions."""

    def __init__(self, transformer: Transformer, run: StreamRun) -> None:
        tokens = run.positions.shape[2]
        mask = run.mask
        if mask is None:
            mask = torch.ones(1, tokens, 1, device=run.positions.device)
        self.mask = torch.zeros_like(mask) if run.frozen else mask.float()
        contexts = [run.positive] if run.negative is None else [run.positive, run.negative]
        self.stage: StreamStage = stream_stage(
            transformer.config,
            run.positions,
            torch.cat(contexts),
            mask=self.mask,
            bias=run.bias,
            marked=run.marked,
        )
        self.run = run
        self.last: Guided | None = None

    def skipped(self, step: int) -> bool:
        """Whether this step keeps the last prediction."""
        return self.last is not None and skips(self.run.guidance, step)

    def input(self, tokens: Tensor, sigma: float, enabled: bool) -> StreamInput:
        """What the transformer is given at ``sigma``."""
        level = tokens.new_full((1,), 0.0 if self.run.frozen else sigma)
        return StreamInput(self.stage, tokens, level, enabled)

    def stg_blocks(self, sigma: float) -> frozenset[int]:
        """Blocks that the perturbed pass perturbs in this stream."""
        g = self.run.guidance
        return frozenset(g.stg_blocks if Pass.PERTURBED in weights(g, sigma) else ())

    def guide(
        self, tokens: Tensor, velocity: dict[Pass, Tensor], sigma: float
    ) -> tuple[Tensor, Tensor | None]:
        """Combine the passes on x0 = x - v * sigma of each token; keep and give the result."""
        x0 = {p: tokens - v * (self.mask * sigma) for p, v in velocity.items()}
        x0.setdefault(Pass.ISOLATED, x0[Pass.COND])
        self.last = combine(x0, self.run.guidance, sigma), x0.get(Pass.UNCOND)
        return self.last


class Denoiser:
    """A :data:`~latent_ladder.sampling.samplers.Model` of one stage.

    ``force_uncond`` gives samplers of the CFG++ kind the negative prompt's prediction at every
    step. ``max_passes`` runs at most that many passes per forward: slower, with less memory.
    Remembers the last prediction of each stream (for ``Guidance.skip_step``): one per run.
    """

    def __init__(
        self,
        transformer: Transformer,
        video: StreamRun | None,
        audio: StreamRun | None,
        *,
        force_uncond: bool = False,
        max_passes: int | None = None,
    ) -> None:
        self.transformer = transformer
        self.video = None if video is None else _Bound(transformer, video)
        self.audio = None if audio is None else _Bound(transformer, audio)
        self.force_uncond = force_uncond
        self.max_passes = max_passes or len(ORDER)
        config = transformer.config
        self.packing = Packing(
            None if video is None else (video.positions.shape[2], config.video.in_channels),
            None if audio is None else (audio.positions.shape[2], config.audio.in_channels),
        )

    @property
    def last(self) -> Last:
        """The last predictions, to go on from in another denoiser of the same tokens."""
        video, audio = self.video, self.audio
        return (None if video is None else video.last, None if audio is None else audio.last)

    @last.setter
    def last(self, last: Last) -> None:
        for bound, value in zip((self.video, self.audio), last, strict=True):
            if bound is not None:
                bound.last = value

    @torch.inference_mode()
    def __call__(self, x: Tensor, sigma: float, step: int) -> Prediction:
        """Guided x0 of packed x (B, n) float32, and that of the negative prompt if it was run."""
        bound = (self.video, self.audio)
        tokens = self.packing.unpack(x.float())
        active = [b is not None and not b.skipped(step) for b in bound]
        found = self._predict(tokens, sigma, active) if any(active) else ({}, {})
        results: list[tuple[Tensor, Tensor | None] | None] = []
        for b, t, on, velocity in zip(bound, tokens, active, found, strict=True):
            if b is None or t is None:
                results.append(None)
            else:
                results.append(b.guide(t, velocity, sigma) if on else b.last)
        denoised = self.packing.pack(*(None if r is None else r[0] for r in results))
        uncond = [None if r is None else r[1] for r in results]
        if any(r is not None and u is None for r, u in zip(results, uncond, strict=True)):
            return Prediction(denoised, None)
        return Prediction(denoised, self.packing.pack(*uncond))

    def _predict(
        self, tokens: Sequence[Tensor | None], sigma: float, active: Sequence[bool]
    ) -> tuple[dict[Pass, Tensor], dict[Pass, Tensor]]:
        """Velocities of the passes that the active streams want."""
        bound = (self.video, self.audio)
        inputs = [
            None if b is None or t is None else b.input(t, sigma, on)
            for b, t, on in zip(bound, tokens, active, strict=True)
        ]
        wanted = self._passes(sigma, active)
        video: dict[Pass, Tensor] = {}
        audio: dict[Pass, Tensor] = {}
        for start in range(0, len(wanted), self.max_passes):
            group = wanted[start : start + self.max_passes]
            specs = [self._spec(p, sigma, active) for p in group]
            for velocities, found in zip(
                self.transformer(*inputs, specs), (video, audio), strict=True
            ):
                if velocities is not None:
                    found.update(zip(group, velocities.chunk(len(group)), strict=True))
        return video, audio

    def _passes(self, sigma: float, active: Sequence[bool]) -> list[Pass]:
        video, audio = (
            b.run.guidance if b is not None and on else None
            for b, on in zip((self.video, self.audio), active, strict=True)
        )
        wanted = set(passes_needed(video, audio, sigma, self.force_uncond))
        if self.video is None or self.audio is None:
            wanted.discard(Pass.ISOLATED)
        return [p for p in ORDER if p in wanted]

    def _spec(self, p: Pass, sigma: float, active: Sequence[bool]) -> PassSpec:
        if p is Pass.UNCOND:
            for b in (self.video, self.audio):
                if b is not None and b.run.negative is None:
                    raise ValueError("guidance with a negative prompt needs its context")
            return PassSpec(context=1)
        if p is Pass.ISOLATED:
            return PassSpec(context=0, isolated=True)
        if p is Pass.COND:
            return PassSpec(context=0)
        video, audio = (
            b.stg_blocks(sigma) if b is not None and on else frozenset()
            for b, on in zip((self.video, self.audio), active, strict=True)
        )
        return PassSpec(context=0, stg_video=video, stg_audio=audio)
