"""Types of the values on the links of a graph.

Large objects are represented by descriptions: a model by its components and LoRAs, a prompt by its
text, which is encoded when a sampler first needs it, and images by a stream that can be read
several times, so no node loads a whole clip unless it needs all frames at once. These classes load
and compute nothing by themselves.
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
class GuidancePatch:
    """A guidance term that a node adds to a model, active while sigma is in its range."""

    scale: float
    sigma_high: float = 1.0
    sigma_low: float = 0.0
    blocks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Model:
    """MODEL: a transformer, its LoRAs in order, and the patches of nodes.

    ``shift`` is mu of its sigma table. ``stg``, ``modality`` and ``identity`` are guidance terms;
    ``identity`` pushes away from the prediction without the reference voice. ``adain`` are the
    per-step statistics of the ``LTXVPerStep*Patcher`` nodes. ``audio_only``: the video stream is
    not run. ``nag``: normalized attention guidance.
    """

    transformer: Component
    loras: tuple[tuple[Component, float], ...] = ()
    shift: float = SHIFT
    stg: GuidancePatch | None = None
    modality: GuidancePatch | None = None
    identity: GuidancePatch | None = None
    adain: StepStatistics | None = None
    audio_only: bool = False
    nag: NagPatch | None = None

    def with_lora(self, lora: Component, strength: float) -> Model:
        """Return the model with one more LoRA; at strength 0 it is unchanged."""
        return replace(self, loras=(*self.loras, (lora, strength))) if strength else self


@dataclass(frozen=True)
class NagPatch:
    """Normalized attention guidance away from a prompt for video, and one for audio."""

    scale: float
    tau: float
    alpha: float
    video: Conditioning | None
    audio: Conditioning | None


@dataclass(frozen=True)
class StepStatistics:
    """Target statistics of predictions: after step i they are moved by ``factors[i]`` towards them.

    The targets are the mean and standard deviation per channel of ``reference`` (latents), or
    without it ``mean`` and ``std``, measured without outliers beyond ``percentile`` percent.
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
    """CLIP: the text encoder, its projection and connectors, and LoRAs for the encoder."""

    text_encoder: Component
    projection: Component
    connectors: Component | None = None
    loras: tuple[tuple[Component, float], ...] = ()


@dataclass(frozen=True)
class VideoVaeFile:
    """VAE: a video VAE."""

    component: Component


@dataclass(frozen=True)
class AudioVaeFile:
    """VAE: an audio VAE, with a vocoder if there is one."""

    component: Component
    vocoder: Component | None


@dataclass(frozen=True)
class IcLoraParameters:
    """IC_LORA_PARAMETERS: the factor by which references are smaller than the clip."""

    downscale_factor: float


@dataclass(frozen=True)
class UpsamplerFile:
    """LATENT_UPSCALE_MODEL."""

    component: Component


@dataclass(frozen=True)
class DurationHeadFile:
    """MODEL_PATCH: a duration head of LTX-2.5."""

    component: Component


@dataclass(frozen=True)
class UpscalerFile:
    """UPSCALE_MODEL: a pixel upscaler."""

    component: Component


# --- conditioning -------------------------------------------------------------------------------


@dataclass(frozen=True)
class GuideFrames:
    """Guide frames that are appended to the clip's latent frames.

    ``frames`` is their number of latent frames. ``positions`` (1, 3, N, 2) are the bounds of their
    tokens in pixel frames, pixels, pixels. ``stride`` s: only every s-th row and column are tokens.
    ``weights`` (N,): factors of the attention between the clip and each token, ``None`` is 1.
    ``generated``: the frames of the clip that keyframes to generate stand for; empty for guides.
    """

    frames: int
    positions: Tensor
    stride: int = 1
    weights: Tensor | None = None
    generated: tuple[int, ...] = ()


@dataclass(frozen=True)
class Conditioning:
    """CONDITIONING: a prompt to be encoded, and the settings of conditioning nodes.

    ``frame_rate`` is ``None`` if no node has set it; the model then assumes 25. ``zeroed``: the
    context is all zeros. ``reference_audio``: latents (1, C, T, M) of a reference voice.
    """

    clip: TextEncoderFiles
    text: str
    frame_rate: float | None = None
    guides: tuple[GuideFrames, ...] = ()
    zeroed: bool = False
    reference_audio: Tensor | None = None

    @property
    def fps(self) -> float:
        """The frame rate for positions in time."""
        return 25.0 if self.frame_rate is None else self.frame_rate

    @property
    def guide_frames(self) -> int:
        """The number of appended latent frames."""
        return sum(guide.frames for guide in self.guides)

    @property
    def generated_keyframes(self) -> tuple[int, ...]:
        """The frames of the clip that keyframes to generate stand for."""
        return tuple(frame for guide in self.guides for frame in guide.generated)


# --- latents ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latent:
    """LATENT: video (1, C, F, H, W), audio (1, C, T, M), or both.

    Noise masks are 1 where everything is generated and 0 where the latent is preserved:
    (1, 1, F or 1, H or 1, W or 1) for video, (1, 1, T or 1, 1) for audio; ``None`` is all ones.
    ``keyframe_places`` (1 + K,) of keyframes that were generated: the frames of their clip, then
    the frame of each.
    """

    video: Tensor | None = None
    audio: Tensor | None = None
    video_mask: Tensor | None = None
    audio_mask: Tensor | None = None
    keyframe_places: Tensor | None = None

    @property
    def is_audio_video(self) -> bool:
        """True for an audio-video latent."""
        return self.video is not None and self.audio is not None

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name; :meth:`from_tensors` is the inverse."""
        found = {
            "video": self.video, "audio": self.audio,
            "video_mask": self.video_mask, "audio_mask": self.audio_mask,
            "keyframe_places": self.keyframe_places,
        }  # fmt: skip
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Latent:
        """Return the latent of :meth:`tensors`."""
        names = ("video", "audio", "video_mask", "audio_mask", "keyframe_places")
        return cls(**{name: tensors.get(name) for name in names})

    def full_video_mask(self) -> Tensor:
        """Return the video mask (1, 1, F, H, W), all ones if there is none."""
        if self.video is None:
            raise ValueError("an audio latent has no video mask")
        _, _, f, h, w = self.video.shape
        if self.video_mask is None:
            return torch.ones(1, 1, f, h, w)
        return self.video_mask.float().expand(1, 1, f, h, w)


# --- sampling -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """NOISE: the noise of a seed; ``empty``: no initial noise, only the sampler's own."""

    seed: int = 0
    empty: bool = False


@dataclass(frozen=True)
class Sampler:
    """SAMPLER: a name of :mod:`latent_ladder.sampling.samplers`, and its options."""

    name: str
    options: SamplerOptions = field(default_factory=SamplerOptions)


@dataclass(frozen=True)
class SigmaList:
    """SIGMAS."""

    sigmas: Sigmas


@dataclass(frozen=True)
class StreamTerms:
    """The guidance of one stream; fields as in :class:`latent_ladder.sampling.guiders.Guidance`."""

    cfg: float = 1.0
    stg: float = 0.0
    modality: float = 1.0
    rescale: float = 0.0
    stg_blocks: tuple[int, ...] = ()
    skip_step: int = 0
    cfg_star: bool = False


@dataclass(frozen=True)
class Guider:
    """GUIDER: a model, its prompts, and the guidance of the video and audio streams.

    ``negative`` may be ``None`` if no term needs it. ``always_uncond``: the negative prompt is
    evaluated even if no scale needs it. ``terms_by_sigma`` replaces the terms of both streams by
    those of the nearest sigma above; above ``zero_above_sigma`` the prediction is zero.
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
    """GUIDER_PARAMETERS: settings by modality, ``"VIDEO"`` and ``"AUDIO"``."""

    terms: dict[str, StreamTerms]
    perturb_attn: dict[str, bool]
    cross_attn: dict[str, bool]


# --- images, audio, videos ----------------------------------------------------------------------

Chunks = Iterator[Tensor]


@dataclass(frozen=True)
class Images:
    """IMAGE: a stream of ``count`` frames that is computed again each time it is read.

    ``pixels()`` returns chunks (n, 3, height, width) float32, 0..1, on any device.
    ``pixels_uint8()`` returns chunks (n, H, W, 3) uint8; it is set if the source has them more
    exactly than rounding ``pixels`` would. ``lower_memory()`` returns the same frames computed with
    less memory, ``None`` if that is not possible.
    """

    count: int
    width: int
    height: int
    pixels: Callable[[], Chunks]
    pixels_uint8: Callable[[], Iterator[NDArray[np.uint8]]] | None = None
    lower_memory: Callable[[], Images | None] = lambda: None

    @classmethod
    def from_tensor(cls, frames: Tensor) -> Images:
        """Return a stream of the frames (N, 3, H, W)."""
        n, _, height, width = frames.shape
        return cls(n, width, height, lambda: iter(torch.split(frames, 8)))

    def to_tensor(self) -> Tensor:
        """Return all frames at once, (N, 3, H, W) float32 on the CPU."""
        return torch.cat([chunk.float().cpu() for chunk in self.pixels()])

    def map(
        self, change: Callable[[Tensor], Tensor], size: tuple[int, int] | None = None
    ) -> Images:
        """Return the frames after ``change``, applied chunk by chunk.

        ``size`` is their new (width, height).
        """
        width, height = size or (self.width, self.height)

        def lower_memory() -> Images | None:
            source = self.lower_memory()
            return None if source is None else source.map(change, size)

        return Images(
            self.count,
            width,
            height,
            lambda: (change(c) for c in self.pixels()),
            lower_memory=lower_memory,
        )

    def first(self, count: int) -> Images:
        """Return the first ``count`` frames."""
        if count >= self.count:
            return self

        def lower_memory() -> Images | None:
            source = self.lower_memory()
            return None if source is None else source.first(count)

        return replace(
            self, count=count, pixels=lambda: _take(self.pixels(), count), pixels_uint8=None,
            lower_memory=lower_memory,
        )  # fmt: skip


def _take(chunks: Chunks, count: int) -> Chunks:
    remaining = count
    for chunk in chunks:
        yield chunk[:remaining]
        remaining -= len(chunk)
        if remaining <= 0:
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
    """VIDEO: images, frame rate and audio; ``file`` is set for an unmodified file."""

    images: Images
    fps: Fraction
    audio: Callable[[], Audio | None] = lambda: None
    file: Path | None = None
    bits: int = 8


Value = Any
"""A value on a link: one of the classes above, or a string, number or boolean."""
