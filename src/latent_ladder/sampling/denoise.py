"""The denoising loop: seeded noise, masks and packing around a sampler.

Two streams, video and audio tokens, are packed into one tensor ``(B, n)`` so that a sampler needs
to know nothing about either. This module knows no checkpoint, no file and no guidance: the model
is any function of packed x. All noise is drawn on the CPU, so that a seed means the same clip on
every device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from latent_ladder.errors import LadderError, RequestError
from latent_ladder.latents.tokens import audio_to_tokens, video_to_tokens
from latent_ladder.sampling.samplers import (
    Model,
    Noise,
    OnStep,
    Prediction,
    SamplerOptions,
    sampler_spec,
)

Order = Literal["comfyui", "ltx"]
"""Whose order the random numbers are drawn in, see ``draw_noise`` and ``noise_source``."""
Masks = Literal["comfyui", "ltx"]
"""Whose meaning a mask between 0 and 1 has, see ``sample``."""


@dataclass(frozen=True)
class LatentState:
    """One stream before sampling, all tensors float32 on the device of the run.

    ``tokens (B, N, C)`` are what noise is added to (zeros, or an upsampled clip), ``clean``
    the content to keep, ``mask (B, N, 1)`` how much of each token is generated: 1 all, 0 kept.
    """

    tokens: Tensor
    clean: Tensor
    mask: Tensor

    @classmethod
    def empty(cls, tokens: int, width: int, device: torch.device | str = "cpu") -> LatentState:
        """Nothing to keep and nothing to start from: ``(1, tokens, width)`` zeros."""
        return cls.of(torch.zeros(1, tokens, width, device=device))

    @classmethod
    def of(cls, tokens: Tensor) -> LatentState:
        """A stream that is generated everywhere, starting from ``tokens``."""
        tokens = tokens.float()
        return cls(tokens, tokens, torch.ones_like(tokens[..., :1]))

    def keeping(self, first: int, content: Tensor, strength: float = 1.0) -> LatentState:
        """With ``content (B, n, C)`` held at tokens ``first`` on: 1 fully, 0 not at all.

        This is how an image becomes the first frame. Source: LTX-2 ``VideoConditionByLatentIndex``.
        """
        span = slice(first, first + content.shape[1])
        clean, mask = self.clean.clone(), self.mask.clone()
        clean[:, span] = content
        mask[:, span] = 1.0 - strength
        return replace(self, clean=clean, mask=mask)

    def extended(self, content: Tensor, strength: float = 1.0) -> LatentState:
        """With tokens behind the clip that hold ``content (B, n, C)``: keyframes, references.

        They start from zeros; ``latents.tokens_to_video`` drops them again. Source: LTX-2
        ``VideoConditionByKeyframeIndex``.
        """
        tail = LatentState.of(torch.zeros_like(content)).keeping(0, content, strength)
        return LatentState(
            torch.cat([self.tokens, tail.tokens], dim=1),
            torch.cat([self.clean, tail.clean], dim=1),
            torch.cat([self.mask, tail.mask], dim=1),
        )


@dataclass(frozen=True)
class Packing:
    """Where each stream lies in packed x: (tokens, width) of video and audio, ``None`` = absent."""

    video: tuple[int, int] | None
    audio: tuple[int, int] | None

    @classmethod
    def of(cls, video: LatentState | None, audio: LatentState | None) -> Packing:
        """The packing of two states."""
        return cls(
            None if video is None else (video.tokens.shape[1], video.tokens.shape[2]),
            None if audio is None else (audio.tokens.shape[1], audio.tokens.shape[2]),
        )

    def pack(self, video: Tensor | None, audio: Tensor | None) -> Tensor:
        """Tokens ``(B, N, C)`` and ``(B, T, D)`` -> x ``(B, N*C + T*D)``, video first."""
        parts = []
        for tokens, shape in ((video, self.video), (audio, self.audio)):
            if (None if tokens is None else tuple(tokens.shape[1:])) != shape:
                got = None if tokens is None else tuple(tokens.shape)
                raise ValueError(f"a stream of shape {got} does not fit the packing's {shape}")
            if tokens is not None:
                parts.append(tokens.flatten(1))
        return torch.cat(parts, dim=1)

    def unpack(self, x: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """x ``(B, n)`` -> video and audio tokens, views of x."""
        split = math.prod(self.video) if self.video else 0
        video = x[:, :split].reshape(-1, *self.video) if self.video else None
        audio = x[:, split:].reshape(-1, *self.audio) if self.audio else None
        return video, audio


def draw_noise(
    seed: int,
    video_shape: Sequence[int] | None,
    audio_shape: Sequence[int] | None,
    order: Order = "comfyui",
    extra_video_tokens: int = 0,
) -> tuple[Tensor | None, Tensor | None]:
    """Standard normal noise for the start of a run, as float32 CPU tokens.

    ``video_shape (B, C, F, H, W)`` and ``audio_shape (B, C, T, M)`` are latent shapes. One
    generator draws video first, then audio:

    - ``"comfyui"`` in the layout of the latents; appended tokens are whole latent frames behind
      the clip (a part of a frame is drawn whole and cut), so they change all of the noise;
    - ``"ltx"`` in the layout of the tokens; appended ones leave those of the clip as they are.
    """
    generator = torch.Generator().manual_seed(seed)
    layout = _TokenNoise(video_shape, audio_shape, extra_video_tokens)
    return layout.separate(generator, order)


def noise_source(
    seed: int,
    video_shape: Sequence[int] | None,
    audio_shape: Sequence[int] | None,
    order: Order = "comfyui",
    *,
    extra_video_tokens: int = 0,
    standardise: bool = False,
) -> Noise:
    """The noise that ancestral and SDE samplers add, packed ``(B, n)`` float32 on the CPU.

    Each kind has its own CPU generator and is drawn call by call, so a run must ask in order:

    - ``"comfyui"``: seed + 1, one draw over ComfyUI's packed latent (video ``(B, C, F, H, W)``
      flattened, then audio), as ComfyUI does for a latent on the CPU; substeps: seed + 2;
    - ``"ltx"``: seed + 10000, tokens, video then audio; substeps: seed + 20000. (The official
      res_2s uses -1 and 9999 whatever the user's seed; here the user's seed counts.)

    ``standardise`` gives each stream's draw mean 0 and deviation 1 exactly, as res_2s wants.
    """
    offsets = {"comfyui": (1, 2), "ltx": (10000, 20000)}[order]
    generators = {
        kind: torch.Generator().manual_seed(_wrapped(seed + offset))
        for kind, offset in zip(("step", "substep"), offsets, strict=True)
    }
    layout = _TokenNoise(video_shape, audio_shape, extra_video_tokens)
    draw = layout.together if order == "comfyui" else layout.in_tokens

    drawn = {"step": -1, "substep": -1}

    def noise(step: int, kind: str) -> Tensor:
        if step <= drawn[kind]:
            raise ValueError(f"{kind} noise {step} after {drawn[kind]}: one source is for one run")
        drawn[kind] = step
        streams = [t for t in draw(generators[kind]) if t is not None]
        if standardise:
            streams = [standardised(t) for t in streams]
        return torch.cat([t.flatten(1) for t in streams], dim=1)

    return noise


def _wrapped(seed: int) -> int:
    return seed % 2**64


def standardised(noise: Tensor) -> Tensor:
    """Noise shifted and scaled to mean 0 and deviation 1, overall and over the last two dims.

    Source: LTX-2 ``_get_new_noise``; float64 inside, float32 out.
    """
    n = noise.double()
    n = (n - n.mean()) / n.std()
    n = (n - n.mean((-2, -1), keepdim=True)) / n.std((-2, -1), keepdim=True)
    return n.float()


@dataclass(frozen=True)
class _TokenNoise:
    """Draws of tokens for one pair of latent shapes; which layout is drawn decides the values."""

    video: Sequence[int] | None
    audio: Sequence[int] | None
    extra: int

    def separate(
        self, generator: torch.Generator, order: Order
    ) -> tuple[Tensor | None, Tensor | None]:
        if order == "ltx":
            return self.in_tokens(generator)
        video = None if self.video is None else torch.randn(self._drawn(), generator=generator)
        audio = None if self.audio is None else torch.randn(*self.audio, generator=generator)
        return self._to_tokens(video, audio)

    def together(self, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        b = (self.video or self.audio or (1,))[0]
        n_video = math.prod(self._drawn()[1:]) if self.video else 0
        n_audio = math.prod(self.audio[1:]) if self.audio else 0
        # one draw: torch's CPU generator gives other numbers when the same count is drawn in parts
        packed = torch.randn(b, 1, n_video + n_audio, generator=generator)
        video = packed[:, 0, :n_video].reshape(self._drawn()) if self.video else None
        audio = packed[:, 0, n_video:].reshape(*self.audio) if self.audio else None
        return self._to_tokens(video, audio)

    def in_tokens(self, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        video = audio = None
        if self.video is not None:
            b, c, f, h, w = self.video
            video = torch.randn(b, f * h * w + self.extra, c, generator=generator)
        if self.audio is not None:
            b, c, t, m = self.audio
            audio = torch.randn(b, t, c * m, generator=generator)
        return video, audio

    def _drawn(self) -> tuple[int, int, int, int, int]:
        b, c, f, h, w = self.video or (0, 0, 0, 1, 1)
        return b, c, f + math.ceil(self.extra / (h * w)), h, w

    def _to_tokens(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if video is not None and self.video is not None:
            kept = math.prod(self.video[2:]) + self.extra
            video = video_to_tokens(video)[:, :kept].contiguous()
        return video, None if audio is None else audio_to_tokens(audio)


def _no_noise(step: int, kind: str) -> Tensor:
    raise ValueError(f"no source for the noise of {kind} {step}, see noise_source")


@dataclass(frozen=True)
class Noises:
    """All the randomness of a run: noise tokens of the start, and the source for later steps."""

    video: Tensor | None
    audio: Tensor | None
    source: Noise = _no_noise

    @classmethod
    def seeded(
        cls,
        seed: int,
        video_shape: Sequence[int] | None,
        audio_shape: Sequence[int] | None,
        sampler: str,
        *,
        order: Order = "comfyui",
        extra_video_tokens: int = 0,
    ) -> Noises:
        """What ``seed`` means for ``sampler`` and these latent shapes (see ``draw_noise``)."""
        standardise = sampler_spec(sampler).standardised
        shapes = (seed, video_shape, audio_shape, order)
        video, audio = draw_noise(*shapes, extra_video_tokens)
        source = noise_source(
            *shapes, extra_video_tokens=extra_video_tokens, standardise=standardise
        )
        return cls(video, audio, source)


@dataclass(frozen=True)
class SamplingPlan:
    """How to sample: the descending sigmas, the sampler and its dials, the meaning of masks."""

    sigmas: Sequence[float]
    sampler: str = "euler"
    options: SamplerOptions = field(default_factory=SamplerOptions)
    masks: Masks = "ltx"


def sample(
    model: Model,
    video: LatentState | None,
    audio: LatentState | None,
    noises: Noises,
    plan: SamplingPlan,
    on_step: OnStep | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Noise the states to the first sigma, denoise them, return video and audio tokens (float32).

    A run may start below sigma 1: x = (1 - sigma) tokens + sigma noise. Tokens with mask 0 come
    back as ``clean``. For masks in between,

    - ``"ltx"``: x starts as a blend of ``clean`` and the noised tokens, and every prediction is
      blended with ``clean``;
    - ``"comfyui"``: x starts fully noised, the model sees x blended with ``clean`` at every
      evaluation, and its prediction is blended too, after it was redone with the scalar sigma
      (x - sigma v) instead of each token's own.

    Both expect a model that predicts x0 = x - mask sigma v, as ``models.denoiser`` does.

    ``on_step(step, x, denoised)`` gets packed tensors after each step; what it raises ends the
    run. Raises ``RequestError`` for unusable sigmas, ``LadderError`` when a prediction is not
    finite.
    """
    sigmas = _checked(plan.sigmas)
    spec = sampler_spec(plan.sampler)
    packing = Packing.of(video, audio)
    kept = _Kept.of(packing, video, audio, plan.masks)

    noise = packing.pack(noises.video, noises.audio).to(kept.tokens)
    x = kept.noised(noise, sigmas[0])

    def source(step: int, kind: str) -> Tensor:
        return noises.source(step, kind).to(x)

    x = spec.function(
        kept.guarded(model),
        x,
        sigmas,
        noise=source,
        options=replace(plan.options, keep=kept.after_noise),
        on_step=on_step,
    )
    return packing.unpack(torch.where(kept.mask == 0, kept.clean, x))


def _checked(sigmas: Sequence[float]) -> list[float]:
    values = [float(s) for s in sigmas]
    falling = all(a > b for a, b in pairwise(values))
    if len(values) < 2 or not falling or values[-1] < 0 or values[0] > 1:
        raise RequestError(
            f"sigmas={values} cannot be sampled, expected at least two, falling, between 1 and 0",
            "for example 0.909375, 0.725, 0.421875, 0",
        )
    return values


@dataclass(frozen=True)
class _Kept:
    """Packed states of a run, all ``(B, n)``: where it starts and what it must not change."""

    tokens: Tensor
    clean: Tensor
    mask: Tensor
    masks: Masks

    @classmethod
    def of(
        cls, packing: Packing, video: LatentState | None, audio: LatentState | None, masks: Masks
    ) -> _Kept:
        states = (video, audio)

        def packed(part: Callable[[LatentState], Tensor]) -> Tensor:
            return packing.pack(*(None if s is None else part(s).float() for s in states))

        return cls(
            packed(lambda s: s.tokens),
            packed(lambda s: s.clean),
            packed(lambda s: s.mask.expand_as(s.tokens)),
            masks,
        )

    def blend(self, x: Tensor) -> Tensor:
        """x where the mask is 1, the clean content where it is 0."""
        return x * self.mask + self.clean * (1 - self.mask)

    def noised(self, noise: Tensor, sigma: float) -> Tensor:
        """x at the first sigma, (1 - sigma) tokens + sigma noise, with the masks' meaning."""
        if self.masks == "ltx":
            return self.blend(torch.lerp(self.tokens, noise, sigma))
        # ComfyUI has one latent for both: what is kept is also what is noised
        return torch.lerp(torch.where(self.mask < 1, self.clean, self.tokens), noise, sigma)

    def after_noise(self, x: Tensor) -> Tensor:
        """x after a sampler added noise to it."""
        return self.blend(x).to(x.dtype) if self.masks == "ltx" else x

    def guarded(self, model: Model) -> Model:
        """``model`` with the masks applied to what it sees and says, and its answer checked."""

        def masked(x: Tensor, sigma: float, step: int) -> Prediction:
            seen = self.blend(x) if self.masks == "comfyui" else x
            denoised, uncond = model(seen, sigma, step)
            if not torch.isfinite(denoised).all():
                raise LadderError(
                    f"the prediction at step {step + 1}, sigma {sigma:.4g}, holds NaN or infinity",
                    "try other weights: a damaged or wrongly quantised checkpoint, an fp16 compute "
                    "type or a LoRA of another model family does this",
                )
            if self.masks == "comfyui":
                denoised = self._with_scalar_sigma(seen, denoised)
                return Prediction(
                    self.blend(denoised),
                    None if uncond is None else self._with_scalar_sigma(seen, uncond),
                )
            uncond = None if uncond is None else self.blend(uncond.float())
            return Prediction(self.blend(denoised.float()), uncond)

        return masked

    def _with_scalar_sigma(self, seen: Tensor, x0: Tensor) -> Tensor:
        """seen - sigma v from x0 = seen - mask sigma v; where the mask is 0 nobody asks."""
        x0 = x0.float()
        return torch.where(self.mask > 0, seen - (seen - x0) / self.mask, x0)
