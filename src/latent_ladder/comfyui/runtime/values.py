"""Values on the links of a graph: descriptions of heavy data, tensors for small data.

A model is a description (components and LoRAs), a text is encoded when a sampler first needs it,
and images are a stream that can be computed again, so a whole clip is only in memory if a node
needs all of it. Everything here is a value; nothing loads or computes by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latent_ladder.checkpoints.components import Component
from latent_ladder.sampling.samplers import SamplerOptions
from latent_ladder.sampling.schedules import SHIFT, Sigmas

# --- models -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Patch:
    """A term that a node adds to a model's guidance while sigma is in its range."""

    scale: float
    sigma_high: float = 1.0
    sigma_low: float = 0.0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Model:
    """A transformer with its LoRAs in order, and the patches of nodes.

    ``shift`` is mu of its sigma table; ``stg``, ``modality`` and ``identity`` (away from
    a run without the reference voice) are terms of guidance, ``adain``
    the per-step statistics that ``LTXVPerStep*Patcher`` nodes move latents towards. ``audio_only``:
    the video stream is not run.
    """

    transformer: Component
    loras: tuple[tuple[Component, float], ...] = ()
    shift: float = SHIFT
    stg: Patch | None = None
    modality: Patch | None = None
    identity: Patch | None = None
    adain: StepStatistics | None = None
    audio_only: bool = False

    def with_lora(self, lora: Component, strength: float) -> Model:
        """The model with one more LoRA; unchanged at strength 0."""
        return replace(self, loras=(*self.loras, (lora, strength))) if strength else self


@dataclass(frozen=True)
class StepStatistics:
    """After step i the prediction moves by ``factors[i]`` towards given statistics.

    The target is the mean and deviation per channel of the latents ``reference``; without them
    ``mean`` and ``std``, clipped at ``percentile`` percent.
    """

    factors: tuple[float, ...]
    reference: Tensor | None = None
    mean: float = 0.0
    std: float = 1.0
    percentile: float = 100.0
    clip: bool = False
    per_frame: bool = False


@dataclass(frozen=True)
class TextEncoderFiles:
    """CLIP: files that encode prompts, and LoRAs for the text encoder."""

    text_encoder: Component
    projection: Component
    connectors: Component | None = None
    loras: tuple[tuple[Component, float], ...] = ()


@dataclass(frozen=True)
class VideoVaeFile:
    """A VAE output that is a video VAE."""

    component: Component


@dataclass(frozen=True)
class AudioVaeFile:
    """A VAE output that is an audio VAE, with its vocoder where its file has one."""

    component: Component
    vocoder: Component | None


@dataclass(frozen=True)
class IcLoraParameters:
    """IC_LORA_PARAMETERS: factor by which references are smaller than the clip."""

    downscale_factor: float


@dataclass(frozen=True)
class UpsamplerFile:
    """A LATENT_UPSCALE_MODEL."""

    component: Component


@dataclass(frozen=True)
class UpscalerFile:
    """An UPSCALE_MODEL: a network that enlarges pixels."""

    component: Component


# --- conditioning -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuideFrames:
    """Guide frames: latent frames after the end of the clip that fix what is seen at some time.

    ``positions`` (1, 3, N, 2) are bounds of their tokens in pixel frames, pixels, pixels;
    ``frames`` counts latent frames. ``stride`` s: only every s-th row and column are tokens.
    """

    frames: int
    positions: Tensor
    stride: int = 1


@dataclass(frozen=True)
class Conditioning:
    """CONDITIONING: a text to be encoded, and the values that nodes added to it.

    ``frame_rate`` ``None`` means that no node wrote one: the model's 25. ``zeroed``: the context
    is all zeros. ``reference_audio``: latents (1, C, T, M) put before those of the sound.
    """

    clip: TextEncoderFiles
    text: str
    frame_rate: float | None = None
    guides: tuple[GuideFrames, ...] = ()
    zeroed: bool = False
    reference_audio: Tensor | None = None

    @property
    def fps(self) -> float:
        """Frames per second for the positions in time."""
        return 25.0 if self.frame_rate is None else self.frame_rate

    @property
    def guide_frames(self) -> int:
        """Number of guide frames after the clip."""
        return sum(guide.frames for guide in self.guides)


# --- latents ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latent:
    """LATENT: video (1, C, F, H, W), audio (1, C, T, M), or both as one.

    Masks are the generated share, 1 all, 0 kept: (1, 1, F or 1, H or 1, W or 1) for video,
    (1, 1, T or 1, 1) for audio; ``None`` is all.
    """

    video: Tensor | None = None
    audio: Tensor | None = None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None

    @property
    def is_audio_video(self) -> bool:
        """True for an audio-video latent."""
        return self.video is not None and self.audio is not None

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that exist, by name; the inverse of :meth:`from_tensors`."""
        found = {
            "video": self.video, "audio": self.audio,
            "video_mask": self.video_mask, "audio_mask": self.audio_mask,
        }  # fmt: skip
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Latent:
        """The latent of :meth:`tensors`."""
        names = ("video", "audio", "video_mask", "audio_mask")
        return cls(**{name: tensors.get(name) for name in names})

    def full_video_mask(self) -> Tensor:
        """The video's mask (1, 1, F, H, W); all ones if there is none."""
        if self.video is None:
            raise ValueError("an audio latent has no video mask")
        _, _, f, h, w = self.video.shape
        if self.video_mask is None:
            return torch.ones(1, 1, f, h, w)
        return self.video_mask.float().expand(1, 1, f, h, w)


# --- sampling -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """NOISE of a seed. ``empty``: none at the start, but samplers use noise in their steps."""

    seed: int = 0
    empty: bool = False


@dataclass(frozen=True)
class Sampler:
    """SAMPLER: a name of ``sampling.samplers`` and its options.

    ``video_factors`` and ``audio_factors`` normalise predictions step by step
    (``LTXVNormalizingSampler``).
    """

    name: str
    options: SamplerOptions = field(default_factory=SamplerOptions)
    video_factors: tuple[float, ...] = ()
    audio_factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class SigmaList:
    """SIGMAS."""

    sigmas: Sigmas


@dataclass(frozen=True)
class StreamTerms:
    """Guidance terms of one stream, with the names of ``sampling.guiders.Guidance``."""

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] = ()
    skip_step: int = 0
    cfg_star: bool = False


@dataclass(frozen=True)
class Guider:
    """GUIDER: a model, its prompts, and the terms for video and audio.

    ``negative`` may be missing where no term needs it. ``always_uncond``: the negative prompt is
    evaluated even where no scale asks for it. ``by_sigma`` replaces the terms of both streams by
    those of the nearest sigma above; over ``zero_above`` the prediction is zero.
    """

    model: Model
    positive: Conditioning
    negative: Conditioning | None
    video: StreamTerms
    audio: StreamTerms
    always_uncond: bool = False
    terms_by_sigma: tuple[tuple[float, StreamTerms], ...] = ()
    zero_above_sigma: float = math.inf


@dataclass(frozen=True)
class GuiderParameters:
    """GUIDER_PARAMETERS: terms by modality, ``"VIDEO"`` and ``"AUDIO"``."""

    terms: dict[str, StreamTerms]
    perturb_attn: dict[str, bool]
    cross_attn: dict[str, bool]


# --- pictures, sound, clips ---------------------------------------------------------------------

Chunks = Iterator[Tensor]


@dataclass(frozen=True)
class Images:
    """IMAGE: ``count`` frames, computed again at each iteration.

    ``pixels()`` gives chunks (n, 3, height, width) float32, 0..1, on any device. ``integers``,
    where a source has them more exactly than rounding ``pixels`` would, gives chunks (n, H, W, 3)
    uint8. ``smaller()`` gives the same frames made with less memory, ``None`` where that ends.
    """

    count: int
    width: int
    height: int
    pixels: Callable[[], Chunks]
    pixels_uint8: Callable[[], Iterator[NDArray[np.uint8]]] | None = None
    lower_memory: Callable[[], Images | None] = lambda: None

    @classmethod
    def from_tensor(cls, frames: Tensor) -> Images:
        """Frames (N, 3, H, W) that are there already."""
        n, _, height, width = frames.shape
        return cls(n, width, height, lambda: iter(torch.split(frames, 8)))

    def to_tensor(self) -> Tensor:
        """All frames at once, (N, 3, H, W) float32 on the CPU."""
        return torch.cat([chunk.float().cpu() for chunk in self.pixels()])

    def map(
        self, change: Callable[[Tensor], Tensor], size: tuple[int, int] | None = None
    ) -> Images:
        """The frames changed chunk by chunk; ``size`` (width, height) is what they become."""
        width, height = size or (self.width, self.height)

        def fewer() -> Images | None:
            less = self.lower_memory()
            return None if less is None else less.map(change, size)

        return Images(
            self.count,
            width,
            height,
            lambda: (change(c) for c in self.pixels()),
            lower_memory=fewer,
        )

    def first(self, count: int) -> Images:
        """Only the first ``count`` frames."""
        if count >= self.count:
            return self

        def fewer() -> Images | None:
            less = self.lower_memory()
            return None if less is None else less.first(count)

        return replace(
            self, count=count, pixels=lambda: _take(self.pixels(), count), pixels_uint8=None,
            lower_memory=fewer,
        )  # fmt: skip


def _take(chunks: Chunks, count: int) -> Chunks:
    left = count
    for chunk in chunks:
        yield chunk[:left]
        left -= len(chunk)
        if left <= 0:
            return


@dataclass(frozen=True)
class Mask:
    """MASK: (N, H, W) float32, 0..1."""

    values: Tensor


@dataclass(frozen=True)
class Audio:
    """AUDIO: (channels, S) float32 at ``rate`` samples a second."""

    waveform: Tensor
    rate: int


@dataclass(frozen=True)
class Video:
    """VIDEO: pictures with a rate and perhaps sound; ``file`` where it is a file as it is."""

    images: Images
    fps: Fraction
    audio: Callable[[], Audio | None] = lambda: None
    file: Path | None = None
    bits: int = 8


Value = Any
"""A value on a link: one of the classes above, or plain text, numbers, booleans."""
