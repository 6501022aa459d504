"""A long clip in windows of time: the part that a window sees, and what becomes of its result.

The whole clip lies on the CPU; only a window is ever on the device. A window keeps what the one
before made of their common part (Lightricks' looping sampler does the same with guide tokens) and
has a clock of its own, so that what attends to each other has the positions of a short clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from latent_ladder.errors import LadderError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.tokens import tokens_to_audio, tokens_to_video
from latent_ladder.pipeline.input_encoding import Start
from latent_ladder.pipeline.plan import PlannedStage
from latent_ladder.request.windows import Window
from latent_ladder.sampling.denoise import LatentState, Packing

Streams = tuple[Tensor | None, Tensor | None]
"""Video tokens (1, N, C) and audio tokens (1, T, D)."""
OnStep = Callable[[int, int, float], None]
"""(steps done, of how many, sigma reached); may raise to stop after the step."""

OnEstimate = Callable[[int, Callable[[], Tensor]], None]
"""(steps done, a function that gives the video latents (1, C, F, H, W) estimated there)."""


@dataclass(frozen=True)
class Clip:
    """A clip under way: its ``start``, and the tokens that were ``made`` of it so far.

    Tokens that no window has reached yet are those of the start; guide tokens are none of the clip.
    """

    start: Start
    resolution: Resolution
    video: Tensor
    audio: Tensor | None

    @classmethod
    def of(cls, start: Start, resolution: Resolution) -> Clip:
        """Nothing made yet."""
        video = start.video.tokens[:, : resolution.video_tokens].clone()
        return cls(
            start, resolution, video, None if start.audio is None else start.audio.tokens.clone()
        )

    @property
    def per_frame(self) -> int:
        """Tokens of one latent frame."""
        return self.resolution.latent_height * self.resolution.latent_width

    def part(self, window: Window, strength: float, device: torch.device | str = "cpu") -> Start:
        """What a window starts from, on ``device``: its tokens and the guide tokens of its time.

        ``strength`` holds what the window before made of its first latents.
        """
        start, per_frame = self.start, self.per_frame
        inside = torch.arange(window.start * per_frame, window.stop * per_frame)
        guides = self._guides(window)
        index = torch.cat([inside, guides])
        made = self.video[:, : window.stop * per_frame]
        video = _held(
            _at(start.video, index), made[:, inside[: window.overlap * per_frame]], strength
        )
        audio, first = start.audio, window.sound[0]
        if audio is not None and self.audio is not None:
            audio = _at(audio, torch.arange(*window.sound))
            audio = _held(audio, self.audio[:, first : first + window.sound_overlap], strength)
        positions, heard = start.positions[:, :, index], start.audio_positions
        heard = heard[:, :, first : window.sound[1]]
        if window.number:
            positions, heard = (_on_its_clock(p, window) for p in (positions, heard))
        return replace(
            start,
            video=_to(video, device),
            audio=None if audio is None else _to(audio, device),
            positions=positions.to(device),
            audio_positions=heard.to(device),
            extra=len(guides),
        )

    def _guides(self, window: Window) -> Tensor:
        """Indices of the guide tokens whose middle lies in the window's time; all if it is whole.

        What lies before the clip or behind it belongs to its first or last window.
        """
        first = self.resolution.video_tokens
        times = self.start.positions[0, 0, first:].mean(-1)
        begins = float(window.offset_s) if window.number else -torch.inf
        last = window.stop == self.resolution.latent_frames
        ends = torch.inf if last else begins_after(window, self.resolution)
        return first + ((times >= begins) & (times < ends)).nonzero()[:, 0]

    def with_made(self, window: Window, tokens: Streams) -> Clip:
        """The clip with a window's tokens; where it held others, they fade into its own."""
        found, heard = tokens
        video, audio = self.video, self.audio
        if found is not None:
            n, p = len(window) * self.per_frame, self.per_frame
            video = _faded_in(video, found[:, :n].cpu(), window.start * p, window.overlap, p)
        if heard is not None and audio is not None:
            audio = _faded_in(audio, heard.cpu(), window.sound[0], window.sound_overlap, 1)
        return replace(self, video=video, audio=audio)


def begins_after(window: Window, resolution: Resolution) -> float:
    """The time in the clip at which what follows a window begins, in seconds."""
    return float(window.offset_s + window.resolution(resolution).frames / resolution.fps)


def upsampled(
    latents: Tensor, windows: Sequence[tuple[Window, Window]], larger: Callable[[Tensor], Tensor]
) -> Tensor:
    """Latents (1, C, F, H, W) enlarged window by window: pairs before and after, faded over."""
    out: Tensor | None = None
    for before, after in windows:
        part = larger(latents[:, :, before.start : before.stop]).cpu()
        if out is None:
            total = windows[-1][1].stop
            out = part.new_zeros((*part.shape[:2], total, *part.shape[3:]))
        place = out[:, :, after.start : after.stop]
        held = ramp(after.overlap)[:, None, None]
        place[:, :, : after.overlap].lerp_(part[:, :, : after.overlap], held)
        place[:, :, after.overlap :] = part[:, :, after.overlap :]
    if out is None:
        raise ValueError("no window, no clip")
    return out


def ramp(held: int) -> Tensor:
    """Weights of a window's own result over what it held: 0 at its first latent frame, which stands
    for one frame instead of eight, and rising."""
    return torch.arange(held, dtype=torch.float32) / max(held, 1)


def _faded_in(whole: Tensor, part: Tensor, first: int, held: int, per_step: int) -> Tensor:
    """``whole`` (1, N, C) with ``part`` at token ``first``; steps have ``per_step`` tokens."""
    weights = torch.ones(part.shape[1], 1)
    weights[: held * per_step] = ramp(held).repeat_interleave(per_step)[:, None]
    out = whole.clone()
    place = out[:, first : first + part.shape[1]]
    place.copy_(torch.lerp(place, part.to(place), weights))
    return out


def _at(state: LatentState, index: Tensor) -> LatentState:
    return LatentState(state.tokens[:, index], state.clean[:, index], state.mask[:, index])


def _held(state: LatentState, made: Tensor, strength: float) -> LatentState:
    """The first tokens are those ``made`` already; what the start keeps there is kept as it is."""
    n = made.shape[1]
    if not n:
        return state
    tokens, clean, mask = state.tokens.clone(), state.clean.clone(), state.mask.clone()
    tokens[:, :n], clean[:, :n] = made, made
    mask[:, :n] = mask[:, :n].clamp_max(1 - strength)
    return LatentState(tokens, clean, mask)


def _to(state: LatentState, device: torch.device | str) -> LatentState:
    return LatentState(state.tokens.to(device), state.clean.to(device), state.mask.to(device))


def _on_its_clock(positions: Tensor, window: Window) -> Tensor:
    """Times counted from the window's beginning; its first latent frame stands for one frame."""
    positions = positions.clone()
    positions[:, 0] = (positions[:, 0] - float(window.offset_s)).clamp_min(0)
    return positions


Shapes = tuple[Sequence[int], Sequence[int] | None]
"""The shapes of video latents (B, C, F, H, W) and audio latents (B, C, T, M)."""


@dataclass(frozen=True)
class Seen:
    """A window of a sampling stage under way, and who looks on."""

    stage: PlannedStage
    clip: Clip
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

    def after(self, packing: Packing, step: int, _: Tensor, denoised: Tensor) -> None:
        """Tell of a step: the steps of all windows count."""
        steps = len(self.stage.sigmas) - 1
        done = self.window.number * steps + step + 1
        if self.on_estimate is not None:
            tokens = packing.unpack(denoised)
            self.on_estimate(done, lambda: self._estimate(tokens))
        self.on_step(done, self.stage.steps, self.stage.sigmas[step + 1])

    def _estimate(self, tokens: Streams) -> Tensor:
        """The video latents of the whole clip, the window as it is estimated."""
        clip = self.clip.with_made(self.window, (tokens[0], None))
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
