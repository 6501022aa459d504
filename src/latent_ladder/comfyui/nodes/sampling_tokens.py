"""Tokens of a sampling job: states, positions, guides, voices and noise of both streams.

Noise is generated for the whole latent, guide frames included, as in ComfyUI; places of a guide on
a smaller grid that are no tokens are left out of the streams and keep their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    Guider,
    Latent,
    Noise,
    Sampler,
)
from latent_ladder.latents.shapes import (
    AUDIO_LATENTS_PER_SECOND,
)
from latent_ladder.latents.tokens import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.models.text_encoder.conditioning import Conditioning as Context
from latent_ladder.models.transformer.denoiser import DenoiserStream
from latent_ladder.models.transformer.keyframes import keyframe_mask
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.models.transformer.streams import GuideBias, Nag
from latent_ladder.sampling.denoise import (
    LatentState,
    Noises,
    Packing,
    draw_noise,
    noise_source,
)
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.samplers import sampler_spec


@dataclass(frozen=True)
class SamplingJob:
    """The inputs of a sampling node."""

    guider: Guider
    sampler: Sampler
    sigmas: tuple[float, ...]
    noise: Noise
    latent: Latent


class JobTokens:
    """The latent of a sampling job as tokens, and tokens as its latent."""

    def __init__(self, job: SamplingJob, device: torch.device) -> None:
        self._job, self._device = job, device
        self._indices = _kept_token_indices(job.guider.positive, job.latent)

    @property
    def are_all_places(self) -> bool:
        """True if each place of the latent is a token."""
        return self._indices is None

    def initial_states(self) -> tuple[LatentState | None, LatentState | None]:
        latent, device = self._job.latent, self._device
        video = audio = None
        if latent.video is not None and not self._job.guider.model.audio_only:
            mask = self._select_tokens(video_to_tokens(latent.full_video_mask().to(device)))
            tokens = video_to_tokens(latent.video.to(device).float())
            video = _latent_state(self._select_tokens(tokens), mask)
        if latent.audio is not None:
            tokens = audio_to_tokens(latent.audio.to(device).float())
            audio = _latent_state(tokens, _audio_mask(latent, tokens))
            voice = self._job.guider.positive.reference_audio
            if voice is not None:
                audio = _append_voice(audio, audio_to_tokens(voice.to(tokens)))
        return video, audio

    @property
    def voice_tokens(self) -> int:
        """The number of tokens of the reference voice, which follow the audio tokens."""
        voice = self._job.guider.positive.reference_audio
        return 0 if voice is None or self._job.latent.audio is None else int(voice.shape[2])

    def _select_tokens(self, tokens: Tensor) -> Tensor:
        return tokens if self._indices is None else tokens[:, self._indices.to(tokens.device)]

    def video_stream(
        self,
        state: LatentState,
        contexts: Sequence[Context],
        terms: Guidance,
        nag: Nag | None,
    ) -> DenoiserStream:
        positions, clip_tokens = self._video_positions()
        return DenoiserStream(
            positions=positions.to(self._device),
            positive=contexts[0].video,
            negative=contexts[1].video if len(contexts) > 1 else None,
            mask=_noise_levels(state),
            guidance=terms,
            frozen=_is_frozen(state),
            keyframe_mask=keyframe_mask(
                positions, positions.shape[2] - clip_tokens, self._generated_tokens(clip_tokens)
            ).to(self._device),
            bias=self._guide_bias(),
            nag=nag,
        )

    def _generated_tokens(self, first: int) -> slice | None:
        """The tokens of generated keyframes, which are one block; ``first`` is the first guide."""
        counts = [
            (guide.positions.shape[2], bool(guide.generated))
            for guide in self._job.guider.positive.guides
        ]
        if not any(generated for _, generated in counts):
            return None
        before = sum(n for n, _ in takewhile(lambda count: not count[1], counts))
        inside = sum(n for n, generated in counts if generated)
        return slice(first + before, first + before + inside)

    def _guide_bias(self) -> GuideBias | None:
        """Attention between clip and guides; ``None`` if all guides have full weight."""
        guides = self._job.guider.positive.guides
        if all(guide.weights is None for guide in guides):
            return None
        counts = [guide.positions.shape[2] for guide in guides]
        clip = torch.ones(self._video_positions()[1])
        weights = [
            torch.ones(count) if guide.weights is None else guide.weights
            for guide, count in zip(guides, counts, strict=True)
        ]
        is_guide = torch.cat([torch.zeros_like(clip), torch.ones(sum(counts))])
        return GuideBias.of_weights(
            torch.cat([clip, *weights]).to(self._device), is_guide.to(self._device)
        )

    def audio_stream(
        self,
        state: LatentState,
        contexts: Sequence[Context],
        terms: Guidance,
        nag: Nag | None,
    ) -> DenoiserStream:
        frozen = _is_frozen(state)
        length = state.tokens.shape[1] - self.voice_tokens
        positions = audio_positions(length)
        if self.voice_tokens:
            positions = torch.cat([positions, voice_positions(self.voice_tokens)], dim=2)
        return DenoiserStream(
            positions=positions.to(self._device),
            positive=contexts[0].audio,
            negative=contexts[1].audio if len(contexts) > 1 else None,
            mask=None if frozen else _noise_levels(state),
            guidance=terms,
            frozen=frozen,
            nag=nag,
        )

    def _video_positions(self) -> tuple[Tensor, int]:
        """Return the bounds of all video tokens, and how many of them are the clip's.

        Those of each guide follow the clip.
        """
        positive, video = self._job.guider.positive, self._job.latent.video
        if video is None:
            raise TypeError("a latent without video has no video positions")
        f, h, w = video.shape[2:]
        fps = positive.fps
        parts = [video_positions(f - positive.guide_frames, h, w, fps)]
        for guide in positive.guides:
            positions = guide.positions.clone()
            positions[:, 0] /= fps
            parts.append(positions)
        return torch.cat(parts, dim=2), parts[0].shape[2]

    def make_noise(self) -> Noises:
        latent, seed, name = self._job.latent, self._job.noise.seed, self._job.sampler.name
        shapes = (
            None if latent.video is None else latent.video.shape,
            None if latent.audio is None else latent.audio.shape,
        )
        video, audio = draw_noise(seed, *shapes)
        if self._job.noise.empty:
            video, audio = (None if n is None else torch.zeros_like(n) for n in (video, audio))
        sampler_noise = noise_source(seed, *shapes, standardise=sampler_spec(name).standardised)
        packing = Packing(
            None if video is None else (video.shape[1], video.shape[2]),
            None if audio is None else (audio.shape[1], audio.shape[2]),
        )

        def source(step: int, kind: str) -> Tensor:
            parts = self._fit_noise(*packing.unpack(sampler_noise(step, kind)))
            return torch.cat([t.flatten(1) for t in parts if t is not None], dim=1)

        return Noises(*self._fit_noise(video, audio), source)

    def _fit_noise(
        self, video: Tensor | None, audio: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return noise of the latent as noise of the tokens; voice tokens get none."""
        if video is not None:
            video = None if self._job.guider.model.audio_only else self._select_tokens(video)
        if audio is not None and self.voice_tokens:
            audio = F.pad(audio, (0, 0, 0, self.voice_tokens))
        return video, audio

    def clip_latents(self, packing: Packing, predicted: Tensor) -> Tensor:
        """Return the video latents of a prediction without guide frames."""
        video = self.to_latent(*packing.unpack(predicted)).video
        if video is None:
            raise TypeError("a prediction without video has no preview")
        return video[:, :, : video.shape[2] - self._job.guider.positive.guide_frames]

    def to_latent(self, video: Tensor | None, audio: Tensor | None) -> Latent:
        """Return tokens as a latent on the CPU, with the masks of the input latent."""
        latent = self._job.latent
        out = latent
        if video is not None and latent.video is not None:
            out = replace(out, video=self._to_grid(video, latent.video).float().cpu())
        if audio is not None and latent.audio is not None:
            tokens = audio[:, : latent.audio.shape[2]]  # without the voice
            out = replace(out, audio=tokens_to_audio(tokens, latent.audio.shape[1]).float().cpu())
        return out

    def _to_grid(self, tokens: Tensor, like: Tensor) -> Tensor:
        """Return video tokens on the grid of the latent; other places keep their values."""
        if self._indices is not None:
            grid = video_to_tokens(like.to(tokens))
            grid[:, self._indices.to(tokens.device)] = tokens
            tokens = grid
        return tokens_to_video(tokens, *like.shape[2:])


def _latent_state(tokens: Tensor, mask: Tensor) -> LatentState:
    return LatentState(tokens, tokens, mask)


def _append_voice(state: LatentState, voice: Tensor) -> LatentState:
    """Return the audio state with voice tokens appended, which are never noised."""
    return LatentState(
        torch.cat([state.tokens, voice], dim=1),
        torch.cat([state.clean, voice], dim=1),
        torch.cat([state.mask, torch.zeros_like(voice[..., :1])], dim=1),
    )


def drop_last_tokens(stream: DenoiserStream, count: int) -> DenoiserStream:
    """Return a stream without its last ``count`` tokens."""
    length = stream.positions.shape[2] - count
    mask = None if stream.mask is None else stream.mask[:, :length]
    return replace(stream, positions=stream.positions[:, :, :length], mask=mask)


def voice_positions(count: int) -> Tensor:
    """Return the bounds (1, 1, count, 2) in seconds of the tokens of a reference voice.

    The voice ends one latent before the clip starts, as in ID-LoRA and in ComfyUI.
    """
    positions = audio_positions(count)
    return positions - positions[0, 0, -1, 1] - 1 / AUDIO_LATENTS_PER_SECOND


def _noise_levels(state: LatentState) -> Tensor | None:
    return state.mask if bool((state.mask < 1).any()) else None


def _is_frozen(state: LatentState) -> bool:
    """Return whether nothing of a stream is generated; the other stream sees noise level 0 then."""
    return bool((state.mask == 0).all())


def _audio_mask(latent: Latent, tokens: Tensor) -> Tensor:
    """Return the audio mask (1, T, 1), resized from a mask of any length."""
    length = tokens.shape[1]
    if latent.audio_mask is None:
        return torch.ones(1, length, 1, device=tokens.device)
    mask = latent.audio_mask.float().reshape(1, 1, -1)
    if mask.shape[-1] not in (1, length):
        mask = F.interpolate(mask, length, mode="linear")
    return mask.expand(1, 1, length).transpose(1, 2).to(tokens.device)


def _kept_token_indices(positive: Conditioning, latent: Latent) -> Tensor | None:
    """Return the indices of grid positions that are tokens, or ``None`` if all are."""
    if latent.video is None or all(guide.stride == 1 for guide in positive.guides):
        return None
    f, h, w = latent.video.shape[2:]
    is_token = torch.ones(f, h, w, dtype=torch.bool)
    first = f - positive.guide_frames
    for guide in positive.guides:
        frames = is_token[first : first + guide.frames]
        if guide.stride > 1:
            frames[:] = False
        if guide.stride > 1 and guide.positions.shape[2]:
            frames[:, :: guide.stride, :: guide.stride] = True
        first += guide.frames
    return is_token.flatten().nonzero()[:, 0]
