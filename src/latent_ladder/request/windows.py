"""Windows in time: a clip longer than the model's time positions is made window by window.

A window is denoised completely before the next one begins. The next one starts with the frames that
both share, as an extension starts with the end of a video. Attention never reaches beyond a window,
so neither memory nor positions depend on the number of windows.

Time is causal: the first latent frame of a sequence stands for one frame, each later one for eight.
A window that does not begin with the clip therefore has one more latent frame in that place, as
tiles of the decoder do (``latents.tiling.temporal_spans``). Plain numbers, no tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo

from latent_ladder.latents.shapes import (
    AUDIO_LATENTS_PER_SECOND,
    FRAMES_PER_LATENT,
    MAX_SECONDS_OF_ROPE,
    Resolution,
    duration,
    nearest_frames,
)
from latent_ladder.request.fields import Real, Table, is_int
from latent_ladder.request.problems import Found, Problem
from latent_ladder.request.validation_errors import value_problems

OVERLAP_FRAMES = 24
"""Default overlap of neighbours, that of Lightricks' looping sampler."""
SHORTEST = 2 * FRAMES_PER_LATENT + 1
"""A window has a first latent frame, one of the overlap and a new one."""
SLACK_FRAMES = 4
"""A clip of just the longest duration, rounded up to 8k+1 frames, is still made in one piece."""


def _window_frames(value: Any) -> int:
    low, step = SHORTEST, FRAMES_PER_LATENT
    if not is_int(value) or value < low or (value - 1) % step:
        near = max(nearest_frames(value)[0], low) if is_int(value) else 121
        raise Problem(f"is not 8k+1 frames from {low} up", f"use {near}")
    return int(value)


def _overlap_frames(value: Any, info: ValidationInfo) -> int:
    frames: int = info.data.get("frames", SHORTEST)
    most = (frames - 1) // 2 // FRAMES_PER_LATENT * FRAMES_PER_LATENT
    if value is None:
        return min(OVERLAP_FRAMES, most)
    if not is_int(value) or value < FRAMES_PER_LATENT or value % FRAMES_PER_LATENT:
        raise Problem("is not a multiple of 8 from 8 up", f"use {min(OVERLAP_FRAMES, most)}")
    if value > most:
        raise Problem("is more than half of a window", f"use {most}, or longer windows")
    return int(value)


class Windows(Table):
    """Windows of ``frames`` (8k+1), of which neighbours share ``overlap_frames``.

    Both count frames of the clip. ``strength`` is the weight of the window before in the shared
    frames: 1 leaves them unchanged, below that both are blended.
    """

    frames: Annotated[int, BeforeValidator(_window_frames)]
    """Length of a window in frames of the clip: 8k+1, from 17 to the frames of 20 s; shorter
    windows need less memory."""
    overlap_frames: Annotated[int, BeforeValidator(_overlap_frames)] = Field(
        default=None, validate_default=True
    )
    """Frames that neighbours share: a multiple of 8, at most half a window; unset, 24 or as many as
    that allows. More makes the transition steadier and takes longer."""
    strength: Real = Field(default=1.0, ge=0, le=1)
    """Weight of the window before in the shared frames: 1 leaves them unchanged, below that both
    windows are blended."""

    def problems(self, fps: Fraction, time_factor: int) -> list[Found]:
        """Problems of these windows for a clip at ``fps`` and its temporal upsampling factor."""
        found: list[Found] = []
        seconds, step = float(duration(self.frames, fps)), FRAMES_PER_LATENT * time_factor
        longest = _longest(fps, time_factor)
        if self.frames > longest:
            text = f"windows.frames={self.frames} is {seconds:.2f} s, and the model's time "
            text += f"positions cover {MAX_SECONDS_OF_ROPE} s"
            found.append((text, f"use windows.frames={longest}"))
        if (self.frames - 1) % step:
            near = max(nearest_frames(self.frames, time_factor)[0], 2 * step + 1)
            text = f"windows.frames={self.frames} is not {step}k+1, as the temporal upsampler needs"
            found.append((text, f"use windows.frames={near}"))
        if self.overlap_frames % step:
            near = max(self.overlap_frames // step, 1) * step
            text = f"windows.overlap_frames={self.overlap_frames} is not a multiple of {step}, as "
            text += "the temporal upsampler needs"
            found.append((text, f"use windows.overlap_frames={near}"))
        return found

    def plan(self, resolution: Resolution, time_factor: int) -> tuple[Window, ...]:
        """The windows of a resolution with the clip's frame rate divided by ``time_factor``."""
        step = FRAMES_PER_LATENT * time_factor
        size = (self.frames - 1) // step + 1
        overlap = self.overlap_frames // step + 1
        if resolution.latent_frames <= size:
            return (whole_window(resolution),)
        return tuple(_windows(resolution, size, overlap, 1 / (resolution.fps * time_factor)))


@dataclass(frozen=True)
class Window:
    """Latent frames ``start`` to ``stop`` of a resolution.

    The first ``overlap`` of them were made by the window before. ``sound`` (first, last) and
    ``sound_overlap`` are the same in audio latents. The window's time starts ``offset_s`` seconds
    into the clip.
    """

    number: int
    start: int
    stop: int
    overlap: int
    sound: tuple[int, int]
    sound_overlap: int
    offset_s: Fraction = Fraction(0)

    def __len__(self) -> int:
        return self.stop - self.start

    def resolution(self, of: Resolution) -> Resolution:
        """The resolution of the window alone, of a clip with the resolution ``of``."""
        frames = (len(self) - 1) * FRAMES_PER_LATENT + 1
        first, last = self.sound
        return Resolution(of.width, of.height, frames, of.fps, last - first)


def whole_window(resolution: Resolution) -> Window:
    """One window that covers the whole clip."""
    return Window(0, 0, resolution.latent_frames, 0, (0, resolution.audio_latents), 0)


def _windows(
    resolution: Resolution, size: int, overlap: int, frame_s: Fraction
) -> Iterator[Window]:
    """Windows of ``size`` latent frames; the last one overlaps more rather than be shorter.

    ``frame_s`` is the duration of a frame of the clip: sound is cut alike at all resolutions.
    """
    total = resolution.latent_frames
    count = math.ceil((total - overlap) / (size - overlap))
    before, audio_before = 0, 0
    for number in range(count):
        start = min(number * (size - overlap), total - size)
        stop = start + size
        offset = Fraction(start * FRAMES_PER_LATENT) / resolution.fps
        ends = Fraction((stop - 1) * FRAMES_PER_LATENT) / resolution.fps + frame_s
        first = math.ceil(offset * AUDIO_LATENTS_PER_SECOND)
        last = round(ends * AUDIO_LATENTS_PER_SECOND) if stop < total else resolution.audio_latents
        sound = (min(first, resolution.audio_latents), min(last, resolution.audio_latents))
        overlaps = (max(before - start, 0), max(audio_before - sound[0], 0))
        yield Window(number, start, stop, overlaps[0], sound, overlaps[1], offset)
        before, audio_before = stop, sound[1]


def _longest(fps: Fraction, time_factor: int, limit_s: Fraction | int = MAX_SECONDS_OF_ROPE) -> int:
    """Largest number of frames of a window of at most ``limit_s`` seconds."""
    return nearest_frames(limit_s * fps, time_factor)[0]


def choose_windows(
    frames: int,
    fps: Fraction,
    time_factor: int,
    limit_s: Fraction | int = MAX_SECONDS_OF_ROPE,
) -> Windows | None:
    """The windows of ``windows = "auto"``; ``None`` where the clip is made in one piece.

    As few as cover the clip, and as short as that number allows. ``limit_s`` is the length in
    seconds that the model can make in one piece, by default that of the published models.
    """
    longest = _longest(fps, time_factor, limit_s)
    step = FRAMES_PER_LATENT * time_factor
    if frames <= limit_s * fps + SLACK_FRAMES or longest < 2 * step + 1:
        return None
    shared = max(min(OVERLAP_FRAMES, (longest - 1) // 2) // step, 1)
    total, size, overlap = (frames - 1) // step + 1, (longest - 1) // step + 1, shared + 1
    count = math.ceil((total - overlap) / (size - overlap))
    even = math.ceil((total + (count - 1) * overlap) / count)
    return Windows(frames=(even - 1) * step + 1, overlap_frames=shared * step)


def _choice(value: Any) -> Any:
    if isinstance(value, dict):
        try:
            return Windows.model_validate(value)
        except ValidationError as error:
            (text, hint), *_ = value_problems(error, Windows, {}, ())
            said = None if hint is None else hint.replace("use ", "use windows.", 1)
            raise Problem(f"windows.{text}", said, whole=True) from error
    if not isinstance(value, Windows) and value not in ("auto", "off"):
        hint = 'use "auto", "off" or {frames = 241, overlap_frames = 24}'
        raise Problem('is neither "auto", "off" nor a table of windows', hint)
    return value


WindowsChoice = Annotated[Literal["auto", "off"] | Windows, BeforeValidator(_choice)]
