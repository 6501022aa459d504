"""Temporal windows of a long clip: cutting out the start of a window, merging its result.

The whole clip is on the CPU, a single window on the device. A window keeps the result of the
window before in their overlap (Lightricks' looping sampler does the same with guide tokens). Its
time positions start at 0, so tokens that attend to each other have the positions of a short clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_ladder.errors import LadderError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.tokens import tokens_to_audio, tokens_to_video
from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.pipeline.start_state import StartState
from latent_ladder.request.windows import Window
from latent_ladder.sampling.denoise import LatentState, Packing

Streams = tuple[Tensor | None, Tensor | None]
"""Video tokens (1, N, C) and audio tokens (1, T, D)."""
OnStep = Callable[[int, int, float], None]
"""(steps done, of how many, sigma reached); may raise to stop after the step."""

OnEstimate = Callable[[int, Callable[[], Tensor]], None]
"""(steps done, a function that computes the estimated video latents (1, C, F, H, W))."""


@dataclass(frozen=True)
class PartialClip:
    """A clip being made: its ``start``, and its ``video`` and ``audio`` tokens so far.

    Tokens that no window has reached yet are those of the start. Guide tokens are not part of it.
    """

    start: StartState
    resolution: Resolution
    video: Tensor
    audio: Tensor | None

    @classmethod
    def of(cls, start: StartState, resolution: Resolution) -> PartialClip:
        """The clip before its first window."""
        video = start.video.tokens[:, : resolution.video_tokens].clone()
        return cls(
            start, resolution, video, None if start.audio is None else start.audio.tokens.clone()
        )

    @property
    def per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.resolution.latent_height * self.resolution.latent_width

    def window_start(
        self, window: Window, strength: float, device: torch.device | str = "cpu"
    ) -> StartState:
        """Start of a window on ``device``: its tokens and the guide tokens of its time.

        ``strength`` is how firmly the overlap with the window before keeps that one's result.
        """
        start, per_frame = self.start, self.per_frame
        inside = torch.arange(window.start * per_frame, window.stop * per_frame)
        guides = self._guides(window)
        index = torch.cat([inside, guides])
        made = self.video[:, : window.stop * per_frame]
        video = _keep_first(
            _at(start.video, index), made[:, inside[: window.overlap * per_frame]], strength
        )
        audio, first = start.audio, window.sound[0]
        if audio is not None and self.audio is not None:
            audio = _at(audio, torch.arange(*window.sound))
            made = self.audio[:, first : first + window.sound_overlap]
            audio = _keep_first(audio, made, strength)
        positions = start.positions[:, :, index]
        sound_positions = start.audio_positions[:, :, first : window.sound[1]]
        if window.number:
            positions = _from_window_start(positions, window)
            sound_positions = _from_window_start(sound_positions, window)
        return replace(
            start,
            video=_to(video, device),
            audio=None if audio is None else _to(audio, device),
            positions=positions.to(device),
            audio_positions=sound_positions.to(device),
            extra=len(guides),
        )

    def _guides(self, window: Window) -> Tensor:
        """Indices of the guide tokens whose middle is in the window's time."""
        first = self.resolution.video_tokens
        times = self.start.positions[0, 0, first:].mean(-1)
        return first + times_in_window(times, window, self.resolution).nonzero()[:, 0]

    def with_window(self, window: Window, tokens: Streams) -> PartialClip:
        """The clip with a window's tokens; in the overlap, the old ones are blended into them."""
        new_video, new_audio = tokens
        video, audio = self.video, self.audio
        if new_video is not None:
            n, p = len(window) * self.per_frame, self.per_frame
            video = _blend_in(video, new_video[:, :n].cpu(), window.start * p, window.overlap, p)
        if new_audio is not None and audio is not None:
            audio = _blend_in(audio, new_audio.cpu(), window.sound[0], window.sound_overlap, 1)
        return replace(self, video=video, audio=audio)


def times_in_window(times: Tensor, window: Window, resolution: Resolution) -> Tensor:
    """True for the ``times`` (n,) in seconds that belong to a window of the clip.

    Times before or after the clip belong to its first or last window.
    """
    begins = float(window.offset_s) if window.number else -torch.inf
    last = window.stop == resolution.latent_frames
    ends = torch.inf if last else window_end_s(window, resolution)
    return (times >= begins) & (times < ends)


def window_end_s(window: Window, resolution: Resolution) -> float:
    """End of a window, in seconds of the clip."""
    return float(window.offset_s + window.resolution(resolution).frames / resolution.fps)


def upsample_windows(
    latents: Tensor, windows: Sequence[tuple[Window, Window]], enlarge: Callable[[Tensor], Tensor]
) -> Tensor:
    """Latents (1, C, F, H, W) enlarged window by window, blended where windows overlap.

    ``windows`` are pairs: the window before upsampling, and the same one after it.
    """
    out: Tensor | None = None
    for before, after in windows:
        part = enlarge(latents[:, :, before.start : before.stop]).cpu()
        if out is None:
            total = windows[-1][1].stop
            out = part.new_zeros((*part.shape[:2], total, *part.shape[3:]))
        place, overlap = out[:, :, after.start : after.stop], after.overlap
        weights = ramp(overlap)[:, None, None]
        place[:, :, :overlap].lerp_(part[:, :, :overlap], weights)
        place[:, :, overlap:] = part[:, :, overlap:]
    if out is None:
        raise ValueError("a clip has at least one window")
    return out


def ramp(overlap: int) -> Tensor:
    """Weights (overlap,) of a window's own result in its overlap with the one before.

    0 at its first latent frame, which stands for one frame instead of eight, and rising.
    """
    return torch.arange(overlap, dtype=torch.float32) / max(overlap, 1)


def _blend_in(whole: Tensor, part: Tensor, first: int, overlap: int, per_step: int) -> Tensor:
    """``whole`` (1, N, C) with ``part`` from token ``first`` on, blended over ``overlap`` steps.

    A step in time has ``per_step`` tokens.
    """
    weights = torch.ones(part.shape[1], 1)
    weights[: overlap * per_step] = ramp(overlap).repeat_interleave(per_step)[:, None]
    out = whole.clone()
    place = out[:, first : first + part.shape[1]]
    place.copy_(torch.lerp(place, part.to(place), weights))
    return out


def _at(state: LatentState, index: Tensor) -> LatentState:
    return LatentState(state.tokens[:, index], state.clean[:, index], state.mask[:, index])


def _keep_first(state: LatentState, made: Tensor, strength: float) -> LatentState:
    """The state with its first tokens replaced by ``made`` and kept with ``strength``."""
    n = made.shape[1]
    if not n:
        return state
    tokens, clean, mask = state.tokens.clone(), state.clean.clone(), state.mask.clone()
    tokens[:, :n], clean[:, :n] = made, made
    mask[:, :n] = mask[:, :n].clamp_max(1 - strength)
    return LatentState(tokens, clean, mask)


def _to(state: LatentState, device: torch.device | str) -> LatentState:
    return LatentState(state.tokens.to(device), state.clean.to(device), state.mask.to(device))


def _from_window_start(positions: Tensor, window: Window) -> Tensor:
    """Positions with times relative to the window; its first latent frame stands for one frame."""
    positions = positions.clone()
    positions[:, 0] = (positions[:, 0] - float(window.offset_s)).clamp_min(0)
    return positions


Shapes = tuple[Sequence[int], Sequence[int] | None]
"""The shapes of video latents (B, C, F, H, W) and audio latents (B, C, T, M)."""


@dataclass(frozen=True)
class WindowContext:
    """A window of a sampling stage, the clip before it, and the callbacks for its steps."""

    stage: PlannedStage
    clip: PartialClip
    window: Window
    on_step: OnStep
    on_estimate: OnEstimate | None
    shapes: Shapes

    def window_shapes(self) -> Shapes:
        """The shapes of the window's latents."""
        (b, c, _, h, w), audio = self.shapes
        first, last = self.window.sound
        if audio is not None:
            audio = (*audio[:2], last - first, audio[3])
        return (b, c, len(self.window), h, w), audio

    def report_step(self, packing: Packing, step: int, _: Tensor, denoised: Tensor) -> None:
        """Call the callbacks after a step; the steps of all windows are counted.

        The estimate is that of the first item of a batch.
        """
        steps = len(self.stage.sigmas) - 1
        done = self.window.number * steps + step + 1
        if self.on_estimate is not None:
            tokens = packing.unpack(denoised[:1])
            self.on_estimate(done, lambda: self._estimate(tokens))
        self.on_step(done, self.stage.steps, self.stage.sigmas[step + 1])

    def _estimate(self, tokens: Streams) -> Tensor:
        """Video latents of the whole clip, with the current estimate of this window."""
        clip = self.clip.with_window(self.window, (tokens[0], None))
        return clip_latents((clip.video, None), self.shapes)["video"]


def clip_latents(tokens: Streams, shapes: Shapes) -> dict[str, Tensor]:
    """Tokens of a clip as latents ``video`` (1, C, F, H, W) and, if there is any, ``audio``."""
    video, audio = tokens
    if video is None:
        raise LadderError("the sampler returned no video", "this is a bug; please report it")
    _, _, f, h, w = shapes[0]
    found = {"video": tokens_to_video(video, f, h, w)}
    if audio is not None and shapes[1] is not None:
        found["audio"] = tokens_to_audio(audio, shapes[1][1])
    return found
