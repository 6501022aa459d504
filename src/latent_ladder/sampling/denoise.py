"""The denoising loop: seeded noise, masks and packing around a sampler.

Two streams, video and audio tokens, are packed into one tensor ``(B, n)``, so a sampler needs no
knowledge of either. This module knows no checkpoint, no file and no guidance: the model is any
function of packed x. All noise is generated on the CPU, so that a seed gives the same clip on every
device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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
"""The order of random numbers: ComfyUI's or LTX-2's, see ``draw_noise`` and ``noise_source``."""
Masks = Literal["comfyui", "ltx"]
"""The meaning of a mask between 0 and 1: ComfyUI's or LTX-2's, see ``sample``."""


@dataclass(frozen=True)
class LatentState:
    """One stream before sampling, all tensors float32 on the device of the run.

    Noise is added to ``tokens (B, N, C)`` (zeros, or an upsampled clip). ``clean`` is the content
    to preserve, ``mask (B, N, 1)`` the share of each token that is generated: 1 all, 0 none.
    """

    tokens: Tensor
    clean: Tensor
    mask: Tensor

    @classmethod
    def empty(cls, tokens: int, width: int, device: torch.device | str = "cpu") -> LatentState:
        """A stream of ``(1, tokens, width)`` zeros that is generated everywhere."""
        return cls.of(torch.zeros(1, tokens, width, device=device))

    @classmethod
    def of(cls, tokens: Tensor) -> LatentState:
        """A stream that is generated everywhere, starting from ``tokens``."""
        tokens = tokens.float()
        return cls(tokens, tokens, torch.ones_like(tokens[..., :1]))

    def with_content(self, first: int, content: Tensor, strength: float = 1.0) -> LatentState:
        """The stream with ``content (B, n, C)`` at tokens ``first`` on; strength 1 preserves it.

        An image becomes the first frame in this way; strength 0 has no effect. Source: LTX-2
        ``VideoConditionByLatentIndex``.
        """
        span = slice(first, first + content.shape[1])
        clean, mask = self.clean.clone(), self.mask.clone()
        clean[:, span] = content
        mask[:, span] = 1.0 - strength
        return replace(self, clean=clean, mask=mask)

    def with_appended(self, content: Tensor, strength: float = 1.0) -> LatentState:
        """The stream with ``content (B, n, C)`` appended after the clip: keyframes, references.

        These tokens start from zeros; ``latents.tokens_to_video`` drops them again. Source: LTX-2
        ``VideoConditionByKeyframeIndex``.
        """
        tail = LatentState.of(torch.zeros_like(content)).with_content(0, content, strength)
        return self._followed_by(tail)

    def with_slots(self, tokens: Tensor) -> LatentState:
        """The stream with ``tokens (B, n, C)`` appended after the clip, generated like it.

        Source: LTX-2 ``keyframe_slots.py``.
        """
        return self._followed_by(LatentState.of(tokens))

    @classmethod
    def stack(cls, states: Sequence[LatentState]) -> LatentState:
        """The streams of several runs of one shape as a batch."""
        if len(states) == 1:
            return states[0]
        return cls(
            torch.cat([s.tokens for s in states]),
            torch.cat([s.clean for s in states]),
            torch.cat([s.mask for s in states]),
        )

    def _followed_by(self, tail: LatentState) -> LatentState:
        return LatentState(
            torch.cat([self.tokens, tail.tokens], dim=1),
            torch.cat([self.clean, tail.clean], dim=1),
            torch.cat([self.mask, tail.mask], dim=1),
        )


@dataclass(frozen=True)
class Packing:
    """Layout of packed x: (tokens, width) of video and of audio, ``None`` where absent."""

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


@dataclass(frozen=True)
class NoiseShapes:
    """Shapes of the noise for the start of a run.

    Latents ``video (B, C, F, H, W)`` and ``audio (B, C, T, M)``, and the number of ``extra`` video
    tokens behind the clip.
    """

    video: Sequence[int] | None
    audio: Sequence[int] | None
    extra: int = 0


def draw_noise(
    seed: int,
    video_shape: Sequence[int] | None,
    audio_shape: Sequence[int] | None,
    order: Order = "comfyui",
    extra_video_tokens: int = 0,
    earlier: Sequence[NoiseShapes] = (),
) -> tuple[Tensor | None, Tensor | None]:
    """Standard normal noise for the start of a run, as float32 CPU tokens.

    ``video_shape (B, C, F, H, W)`` and ``audio_shape (B, C, T, M)`` are latent shapes. One
    generator makes video first, then audio:

    - ``"comfyui"`` in the layout of the latents; appended tokens are whole latent frames after the
      clip (a part of a frame is generated whole and cut), so they change all of the noise;
    - ``"ltx"`` in the layout of the tokens; appended ones do not change those of the clip. Runs of
      one clip share the generator, so the noise of ``earlier`` ones comes first.
    """
    layout = _TokenNoise(video_shape, audio_shape, extra_video_tokens)
    if order == "ltx":
        return layout.in_tokens(generator_after(seed, earlier))
    return layout.separate(torch.Generator().manual_seed(seed))


def generator_after(seed: int, earlier: Sequence[NoiseShapes]) -> torch.Generator:
    """The generator of ``seed`` after the noise of ``earlier`` runs in LTX-2's order.

    The state is computed, never stored: a run that is taken up again gets the same noise. Source:
    LTX-2 pipelines, which pass one generator from stage to stage and then to the decoder.
    """
    generator = torch.Generator().manual_seed(seed)
    for shapes in earlier:
        _TokenNoise(shapes.video, shapes.audio, shapes.extra).in_tokens(generator)
    return generator


OFFICIAL_RES_2S_SEEDS = (-1, 9999)
"""Seeds of the step and substep noise of LTX-2's res_2s, whatever the seed of the clip."""


def noise_source(
    seed: int,
    video_shape: Sequence[int] | None,
    audio_shape: Sequence[int] | None,
    order: Order = "comfyui",
    *,
    extra_video_tokens: int = 0,
    standardise: bool = False,
    number: int = 0,
) -> Noise:
    """The noise that ancestral and SDE samplers add, packed ``(B, n)`` float32 on the CPU.

    Each kind has its own CPU generator, advanced call by call, so a run must call it in order:

    - ``"comfyui"``: seed + 1, one call over ComfyUI's packed latent (video ``(B, C, F, H, W)``
      flattened, then audio), as ComfyUI does for a latent on the CPU; substeps: seed + 2;
    - ``"ltx"``: seed + 10000, tokens, video then audio; substeps: seed + 20000.

    ``standardise`` gives the noise of each stream mean 0 and deviation 1 exactly, as res_2s needs.
    In the order ``"ltx"`` such noise is made in float64 from :data:`OFFICIAL_RES_2S_SEEDS` plus
    ``number``, that of a window in time. Source: LTX-2 ``res2s_audio_video_denoising_loop``.
    """
    official = standardise and order == "ltx"
    seeds = [seed + offset for offset in {"comfyui": (1, 2), "ltx": (10000, 20000)}[order]]
    if official:
        seeds = [fixed + number for fixed in OFFICIAL_RES_2S_SEEDS]
    generators = {
        kind: torch.Generator().manual_seed(_wrap_seed(own))
        for kind, own in zip(("step", "substep"), seeds, strict=True)
    }
    layout = _TokenNoise(video_shape, audio_shape, extra_video_tokens)
    dtype = torch.float64 if official else torch.float32
    draw = layout.together if order == "comfyui" else partial(layout.in_tokens, dtype=dtype)

    drawn = {"step": -1, "substep": -1}

    def noise(step: int, kind: str) -> Tensor:
        if step <= drawn[kind]:
            raise ValueError(f"{kind} noise {step} after {drawn[kind]}: one source is for one run")
        drawn[kind] = step
        streams = [t for t in draw(generators[kind]) if t is not None]
        if standardise:
            streams = [standardise_noise(t) for t in streams]
        return torch.cat([t.flatten(1) for t in streams], dim=1)

    return noise


def _wrap_seed(seed: int) -> int:
    return seed % 2**64


def standardise_noise(noise: Tensor) -> Tensor:
    """Noise shifted and scaled to mean 0 and deviation 1, overall and over the last two dims.

    Source: LTX-2 ``_get_new_noise``; float64 inside, float32 out.
    """
    n = noise.double()
    n = (n - n.mean()) / n.std()
    n = (n - n.mean((-2, -1), keepdim=True)) / n.std((-2, -1), keepdim=True)
    return n.float()


@dataclass(frozen=True)
class _TokenNoise:
    """Noise tokens for one pair of latent shapes; the layout of generation decides the values."""

    video: Sequence[int] | None
    audio: Sequence[int] | None
    extra: int

    def separate(self, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        shape = self._noise_shape()
        video = None if self.video is None else torch.randn(shape, generator=generator)
        audio = None if self.audio is None else torch.randn(*self.audio, generator=generator)
        return self._to_tokens(video, audio)

    def together(self, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
        b = (self.video or self.audio or (1,))[0]
        n_video = math.prod(self._noise_shape()[1:]) if self.video else 0
        n_audio = math.prod(self.audio[1:]) if self.audio else 0
        # one call: torch's CPU generator gives other numbers when the same count is made in parts
        packed = torch.randn(b, 1, n_video + n_audio, generator=generator)
        video = packed[:, 0, :n_video].reshape(self._noise_shape()) if self.video else None
        audio = packed[:, 0, n_video:].reshape(*self.audio) if self.audio else None
        return self._to_tokens(video, audio)

    def in_tokens(
        self, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor | None, Tensor | None]:
        video = audio = None
        if self.video is not None:
            b, c, f, h, w = self.video
            video = torch.randn(b, f * h * w + self.extra, c, generator=generator, dtype=dtype)
        if self.audio is not None:
            b, c, t, m = self.audio
            audio = torch.randn(b, t, c * m, generator=generator, dtype=dtype)
        return video, audio

    def _noise_shape(self) -> tuple[int, int, int, int, int]:
        b, c, f, h, w = self.video or (0, 0, 0, 1, 1)
        return b, c, f + math.ceil(self.extra / (h * w)), h, w

    def _to_tokens(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        if video is not None and self.video is not None:
            count = math.prod(self.video[2:]) + self.extra
            video = video_to_tokens(video)[:, :count].contiguous()
        return video, None if audio is None else audio_to_tokens(audio)


def _no_noise(step: int, kind: str) -> Tensor:
    raise ValueError(f"no source for the noise of {kind} {step}, see noise_source")


@dataclass(frozen=True)
class Noises:
    """All noise of a run: the tokens of the start, and the source for later steps."""

    video: Tensor | None
    audio: Tensor | None
    source: Noise = _no_noise

    @classmethod
    def from_seed(
        cls,
        seed: int,
        shapes: NoiseShapes,
        sampler: str,
        *,
        order: Order = "comfyui",
        earlier: Sequence[NoiseShapes] = (),
        window: int = 0,
    ) -> Noises:
        """The noise of ``seed`` for ``sampler`` and these latent shapes (see ``draw_noise``).

        ``window`` is the number of a window in time, whose seeds are that much higher.
        """
        seed = _wrap_seed(seed + window)
        latents = (seed, shapes.video, shapes.audio, order)
        video, audio = draw_noise(*latents, shapes.extra, earlier)
        source = noise_source(
            *latents,
            extra_video_tokens=shapes.extra,
            standardise=sampler_spec(sampler).standardised,
            number=window,
        )
        return cls(video, audio, source)

    @classmethod
    def stack(cls, runs: Sequence[Noises]) -> Noises:
        """The noise of several runs as a batch; each run has the numbers of its own seed."""
        if len(runs) == 1:
            return runs[0]
        videos = [run.video for run in runs if run.video is not None]
        audios = [run.audio for run in runs if run.audio is not None]

        def source(step: int, kind: str) -> Tensor:
            return torch.cat([run.source(step, kind) for run in runs])

        return cls(
            torch.cat(videos) if videos else None, torch.cat(audios) if audios else None, source
        )


@dataclass(frozen=True)
class SamplingPlan:
    """The descending sigmas, the sampler with its options, and the meaning of masks."""

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

    ``on_step(step, x, denoised)`` gets packed tensors after each step; an exception it raises ends
    the run. Raises ``RequestError`` for unusable sigmas, ``LadderError`` when a prediction is not
    finite.
    """
    sigmas = _check_sigmas(plan.sigmas)
    spec = sampler_spec(plan.sampler)
    packing = Packing.of(video, audio)
    states = _PackedStates.of(packing, video, audio, plan.masks)

    noise = packing.pack(noises.video, noises.audio).to(states.tokens)
    x = states.add_noise(noise, sigmas[0])

    def source(step: int, kind: str) -> Tensor:
        return noises.source(step, kind).to(x)

    x = spec.function(
        states.apply_masks(model),
        x,
        sigmas,
        noise=source,
        options=replace(plan.options, keep=states.after_noise),
        on_step=on_step,
    )
    return packing.unpack(torch.where(states.mask == 0, states.clean, x))


def _check_sigmas(sigmas: Sequence[float]) -> list[float]:
    values = [float(s) for s in sigmas]
    falling = all(a > b for a, b in pairwise(values))
    if len(values) < 2 or not falling or values[-1] < 0 or values[0] > 1:
        raise RequestError(
            f"sigmas={values} cannot be sampled, expected at least two, falling, between 1 and 0",
            "for example 0.909375, 0.725, 0.421875, 0",
        )
    return values


@dataclass(frozen=True)
class _PackedStates:
    """Packed states of a run, all ``(B, n)``: its start and the content to preserve."""

    tokens: Tensor
    clean: Tensor
    mask: Tensor
    masks: Masks

    @classmethod
    def of(
        cls, packing: Packing, video: LatentState | None, audio: LatentState | None, masks: Masks
    ) -> _PackedStates:
        states = (video, audio)

        def pack(part: Callable[[LatentState], Tensor]) -> Tensor:
            return packing.pack(*(None if s is None else part(s).float() for s in states))

        return cls(
            pack(lambda s: s.tokens),
            pack(lambda s: s.clean),
            pack(lambda s: s.mask.expand_as(s.tokens)),
            masks,
        )

    def blend(self, x: Tensor) -> Tensor:
        """x where the mask is 1, the clean content where it is 0."""
        return x * self.mask + self.clean * (1 - self.mask)

    def add_noise(self, noise: Tensor, sigma: float) -> Tensor:
        """x at the first sigma, (1 - sigma) tokens + sigma noise, with the masks applied."""
        if self.masks == "ltx":
            return self.blend(torch.lerp(self.tokens, noise, sigma))
        # ComfyUI has one latent for both: noise is added to the preserved content, too
        return torch.lerp(torch.where(self.mask < 1, self.clean, self.tokens), noise, sigma)

    def after_noise(self, x: Tensor) -> Tensor:
        """x after a sampler added noise to it."""
        return self.blend(x).to(x.dtype) if self.masks == "ltx" else x

    def apply_masks(self, model: Model) -> Model:
        """``model`` with the masks applied to input and output; the output is checked for NaN."""

        def predict(x: Tensor, sigma: float, step: int) -> Prediction:
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

        return predict

    def _with_scalar_sigma(self, seen: Tensor, x0: Tensor) -> Tensor:
        """seen - sigma v from x0 = seen - mask sigma v; x0 where the mask is 0."""
        x0 = x0.float()
        return torch.where(self.mask > 0, seen - (seen - x0) / self.mask, x0)
