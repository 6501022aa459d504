"""Start of a sampling stage: the tokens of both streams, and what input files fix of them.

An image at frame 0 replaces the first latent frame. Any other image, and a reference video, is
appended as guide tokens with positions of their own; these are dropped when tokens become latents
again. Slots of generated keyframes are appended in the same way, but denoised. Source: LTX-2
``VideoConditionByLatentIndex``, ``VideoConditionByKeyframeIndex``, ``keyframe_slots.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from latent_ladder.latents.shapes import Resolution, duration
from latent_ladder.latents.slot_frames import slot_frames
from latent_ladder.latents.tokens import audio_to_tokens, video_to_tokens
from latent_ladder.models.transformer.keyframes import keyframe_mask
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.request.model import Request
from latent_ladder.sampling.denoise import LatentState

InputLatents = Mapping[str, Tensor]
"""Tensors of the input artefacts by name, see :mod:`.stages.input_encoding`."""
INPUT_KINDS = frozenset({"images", "audio_in", "video_in"})
"""Stage kinds whose artefacts are input latents of a sampling stage."""
TIME_EPS = 1e-4
"""Rounding tolerance in seconds: a token that overlaps a region by less is outside."""


@dataclass(frozen=True)
class StartState:
    """Both streams before sampling.

    ``positions`` (1, 3, N, 2) are the bounds of all video tokens in time, height and width,
    ``audio_positions`` (1, 1, T, 2) those of the audio tokens in time. The last ``extra`` video
    tokens are not part of the clip: guide tokens, and ``slots``, the generated keyframes.
    """

    video: LatentState
    audio: LatentState | None
    positions: Tensor
    audio_positions: Tensor
    extra: int = 0
    frozen_audio: bool = False
    slots: slice | None = None

    @property
    def video_mask(self) -> Tensor | None:
        """Noise levels of the video tokens, ``None`` if all are generated."""
        return _mask(self.video)

    @property
    def keyframe_mask(self) -> Tensor:
        """Video tokens (1, N, 1) with the mark of keyframes, which LTX-2.5 has learned."""
        return keyframe_mask(self.positions, self.extra, self.slots)

    @property
    def audio_mask(self) -> Tensor | None:
        """Noise levels of the audio tokens, ``None`` if all are generated or none."""
        return None if self.audio is None or self.frozen_audio else _mask(self.audio)


def plain_start(
    video: LatentState, audio: LatentState | None, resolution: Resolution
) -> StartState:
    """Start without input files: every token is generated."""
    grid = (resolution.latent_frames, resolution.latent_height, resolution.latent_width)
    sound = audio_positions(resolution.audio_latents)
    return StartState(video, audio, video_positions(*grid, resolution.fps), sound)


def apply_inputs(
    start: StartState,
    inputs: InputLatents,
    request: Request,
    resolution: Resolution,
    slots: int = 0,
    reference_factor: int = 1,
) -> StartState:
    """The start with all input latents of the request applied, and ``slots`` generated keyframes.

    A reference video is smaller than the clip by ``reference_factor``. Slots stand before it, as in
    the official pipelines.
    """
    mode = None if request.video is None or "video_in" not in inputs else request.video.mode
    is_reference = mode == "reference"
    if is_reference and not slots:
        start = append_reference(start, inputs, request, resolution, reference_factor)
    elif mode is not None and not is_reference:
        start = VIDEO_MODES[mode](start, inputs, request, resolution)
    if "given_sound" in inputs and start.audio is not None:
        start = _with_audio(start, start.audio, inputs["given_sound"])
    start = apply_images(start, inputs, request, resolution)
    if slots:
        start = append_slots(start, slot_frames(slots, resolution.frames), resolution)
        if is_reference:
            start = append_reference(start, inputs, request, resolution, reference_factor)
    return start


def append_slots(
    start: StartState,
    frames: Sequence[int],
    resolution: Resolution,
    latents: Tensor | None = None,
) -> StartState:
    """The start with a slot for a generated keyframe at each of ``frames``.

    They start from ``latents`` (1, C, K, H, W), by default from zeros.
    """
    count = resolution.latent_height * resolution.latent_width * len(frames)
    tokens = (
        start.video.tokens.new_zeros(1, count, start.video.tokens.shape[2])
        if latents is None
        else video_to_tokens(latents).to(start.video.tokens)
    )
    positions = [keyframe_positions(duration(n, resolution.fps), resolution) for n in frames]
    first = start.video.tokens.shape[1]
    return replace(
        start,
        video=start.video.with_slots(tokens),
        positions=torch.cat([start.positions, *positions], dim=2),
        extra=start.extra + count,
        slots=slice(first, first + count),
    )


def apply_images(
    start: StartState, inputs: InputLatents, request: Request, resolution: Resolution
) -> StartState:
    """The start with every image of the request fixed at its frame, in their order."""
    for i, image in enumerate(request.active_images):
        tokens = video_to_tokens(inputs[f"image.{i}"]).to(start.video.tokens)
        frame = image.index(request.frames)
        if frame == 0:
            start = replace(start, video=start.video.with_content(0, tokens, image.strength))
        else:
            positions = keyframe_positions(duration(frame, request.fps), resolution)
            start = append_guide(start, tokens, positions, image.strength)
    return start


def _start_from_video(
    start: StartState, inputs: InputLatents, _request: Request, _resolution: Resolution
) -> StartState:
    """Mode v2v: the noise of the first sigma is added to the video and its sound."""
    audio = start.audio
    if audio is not None and "sound_in" in inputs:
        audio = LatentState.of(audio_to_tokens(inputs["sound_in"]).to(audio.tokens))
    video = LatentState.of(video_to_tokens(inputs["video_in"]).to(start.video.tokens))
    return replace(start, video=video, audio=audio)


def _keep_outside_region(
    start: StartState, inputs: InputLatents, request: Request, _resolution: Resolution
) -> StartState:
    """Modes retake and extend: tokens outside the region keep the video.

    A token that overlaps the region is generated. Source: LTX-2 ``TemporalRegionMask``.
    """
    if request.video is None:
        raise TypeError("the plan has a video, the request has none")
    region = request.video.generated_span(float(duration(request.frames, request.fps)))
    content = video_to_tokens(inputs["video_in"])
    video = _generate_region(start.video, content, start.positions, region)
    audio = start.audio
    if audio is not None and "sound_in" in inputs:
        sound = audio_to_tokens(inputs["sound_in"])
        audio = _generate_region(audio, sound, start.audio_positions, region)
    return replace(start, video=video, audio=audio)


def _generate_region(
    state: LatentState, content: Tensor, positions: Tensor, region: tuple[float, float]
) -> LatentState:
    starts, ends = positions[0, 0, :, 0], positions[0, 0, :, 1]
    inside = (ends > region[0] + TIME_EPS) & (starts < region[1] - TIME_EPS)
    mask = inside.to(state.mask).reshape(1, -1, 1)
    return replace(state, clean=content.to(state.tokens), mask=mask)


def append_reference(
    start: StartState,
    inputs: InputLatents,
    request: Request,
    resolution: Resolution,
    factor: int = 1,
) -> StartState:
    """Mode reference: the video as guide tokens. Source: LTX-2 ``VideoConditionByReferenceLatent``.

    Positions are scaled to the clip: height and width by the ``factor`` that the reference is
    smaller, time by the one that it is slower, with the first frame left where it is.
    """
    if request.video is None:
        raise TypeError("the plan has a reference video, the request has none")
    latents = inputs["video_in"]
    frames, height, width = latents.shape[2:]
    positions = reference_positions((frames, height, width), resolution, factor)
    tokens = video_to_tokens(latents).to(start.video.tokens)
    return append_guide(start, tokens, positions, request.video.strength)


def reference_positions(
    grid: tuple[int, int, int], resolution: Resolution, factor: int = 1
) -> Tensor:
    """Bounds (1, 3, N, 2) of the tokens of a reference of ``grid`` (frames, rows, columns)."""
    frames, height, width = grid
    slower = max(round((resolution.latent_frames - 1) / max(frames - 1, 1)), 1)
    positions = video_positions(frames, height, width, resolution.fps / slower)
    positions[:, 0] = (positions[:, 0] - (slower - 1) / float(resolution.fps)).clamp_min(0)
    positions[:, 1:] *= factor
    return positions


def base_reference_positions(base: Resolution, resolution: Resolution) -> Tensor:
    """Bounds (1, 3, N, 2) of a base stage's clip as the reference of a larger one."""
    grid = (base.latent_frames, base.latent_height, base.latent_width)
    return reference_positions(grid, resolution, resolution.latent_height // base.latent_height)


VIDEO_MODES: Mapping[str, Callable[[StartState, InputLatents, Request, Resolution], StartState]] = {
    "v2v": _start_from_video,
    "retake": _keep_outside_region,
    "extend": _keep_outside_region,
}
"""Change of the start by each mode of an input video; a reference is appended to it."""


def _with_audio(start: StartState, audio: LatentState, latents: Tensor) -> StartState:
    """The start with its whole sound fixed: it conditions the video and does not change."""
    tokens = audio_to_tokens(latents).to(audio.tokens)
    return replace(start, audio=audio.with_content(0, tokens), frozen_audio=True)


def keyframe_positions(time: Fraction, resolution: Resolution) -> Tensor:
    """Bounds (1, 3, H*W, 2) of the tokens of one frame that is shown at ``time`` seconds."""
    positions = video_positions(
        1, resolution.latent_height, resolution.latent_width, resolution.fps
    )
    start, end = (float(t) for t in (time, time + 1 / resolution.fps))
    positions[:, 0] = torch.tensor([start, end], dtype=torch.float32)
    return positions


def append_guide(
    start: StartState, tokens: Tensor, positions: Tensor, strength: float
) -> StartState:
    """The start with ``tokens`` (1, N, C) appended, which are kept with ``strength``."""
    return replace(
        start,
        video=start.video.with_appended(tokens, strength),
        positions=torch.cat([start.positions, positions], dim=2),
        extra=start.extra + tokens.shape[1],
    )


def _mask(state: LatentState) -> Tensor | None:
    return state.mask if bool((state.mask < 1).any()) else None
