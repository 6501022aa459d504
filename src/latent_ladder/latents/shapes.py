"""Sizes and times of the LTX family: pixels, latents, tokens, frames, seconds.

Pure integers and fractions; knows no request, no file, no tensor. The rules defined here:

* a latent pixel is 32 x 32 pixels; a latent frame is 8 frames, but the first one is a single frame:
  ``frames = 8k + 1``;
* one latent pixel of one latent frame is one video token;
* sound has 25 latent steps per second, ``round(frames / fps * 25)`` for a clip, halves to even;
* the canvas rule: a request is rounded *up* until every stage has a whole number of latent pixels,
  and the decoded frames are cropped to the requested size, around the centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

from latent_ladder.errors import RequestError

PIXELS_PER_LATENT = 32
FRAMES_PER_LATENT = 8
AUDIO_LATENTS_PER_SECOND = 25
MAX_FPS = 240
MAX_SECONDS_OF_ROPE = 20
"""The temporal position embedding of the family is normalised to 20 seconds."""
MAX_PX_OF_ROPE = 2048
"""The spatial position embeddings of the family are normalised to 2048 pixels per axis."""
NTSC_TOLERANCE = Fraction(5, 1000)


class Crop(NamedTuple):
    """The part of the decoded canvas that becomes the clip, in pixels."""

    left: int
    top: int
    width: int
    height: int


class Factor(NamedTuple):
    """Factors of one latent upsampler: ``space`` of width and height, ``time`` of the rate."""

    space: Fraction = Fraction(1)
    time: int = 1


@dataclass(frozen=True)
class Resolution:
    """Size of the clip in one stage: a canvas in pixels, frames, frame rate and audio latents.

    ``audio_latents`` is the same in every stage: it belongs to the final clip.
    """

    width: int
    height: int
    frames: int
    fps: Fraction
    audio_latents: int

    @property
    def latent_width(self) -> int:
        """Latent pixels per row."""
        return self.width // PIXELS_PER_LATENT

    @property
    def latent_height(self) -> int:
        """Latent rows."""
        return self.height // PIXELS_PER_LATENT

    @property
    def latent_frames(self) -> int:
        """Latent frames."""
        return latent_frames(self.frames)

    @property
    def video_tokens(self) -> int:
        """Tokens of the video stream."""
        return self.latent_frames * self.latent_height * self.latent_width

    def video_latent_shape(self, channels: int, batch: int = 1) -> tuple[int, int, int, int, int]:
        """The shape (B, C, F, H, W) of the video latents."""
        return (batch, channels, self.latent_frames, self.latent_height, self.latent_width)

    def audio_latent_shape(
        self, channels: int, bins: int, batch: int = 1
    ) -> tuple[int, int, int, int]:
        """The shape (B, C, T, M) of the audio latents."""
        return (batch, channels, self.audio_latents, bins)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames"


# ---------------------------------------------------------------------------------------------
# frames and seconds


def is_legal_frames(frames: int, time_factor: int = 1) -> bool:
    """True for 8k+1 frames, or 16k+1 where a later stage doubles the frame rate."""
    return frames >= 1 and (frames - 1) % (FRAMES_PER_LATENT * time_factor) == 0


def nearest_frames(frames: float | Fraction, time_factor: int = 1) -> tuple[int, int]:
    """The legal frame counts around ``frames``: ``(100) -> (97, 105)``; equal when it is legal.

    The lower one is at least 1.
    """
    step = FRAMES_PER_LATENT * time_factor
    position = Fraction(frames) - 1
    below = max(0, math.floor(position / step)) * step + 1
    above = max(0, math.ceil(position / step)) * step + 1
    return below, above


def frames_for(duration_s: float | Fraction, fps: Fraction, time_factor: int = 1) -> int:
    """The legal frame count nearest to ``duration_s`` seconds; of two equally near, the lower.

    ``n`` frames last ``n / fps`` seconds: 5 s are 121 frames at 24 fps (5.04 s) and at 25 (4.84 s).
    """
    wanted = Fraction(duration_s) * fps
    below, above = nearest_frames(wanted, time_factor)
    return below if wanted - below <= above - wanted else above


def clip_frames(
    seconds: float, fps: Fraction | float, shortest: float, longest: float, time_factor: int = 1
) -> int:
    """Frames of a clip of ``seconds`` within the limits, both in seconds: 8k + 1 if possible.

    A length below the lower limit after rounding down is raised by one step; if that is above the
    upper limit, that limit is returned. Source: LTX-2 ``seconds_to_clamped_num_frames``.
    """
    step = FRAMES_PER_LATENT * time_factor
    least, most = round(shortest * fps), round(longest * fps)
    frames = min(max(round(min(max(seconds, shortest), longest) * fps), least), most)
    whole = (frames - 1) // step * step + 1
    return whole if whole >= least else min(whole + step, most)


def duration(frames: int, fps: Fraction) -> Fraction:
    """Duration of ``frames`` frames in seconds."""
    return Fraction(frames) / fps


def latent_frames(frames: int) -> int:
    """Latent frames of ``frames`` = 8k+1 frames: k+1. Raises RequestError for another count."""
    if not is_legal_frames(frames):
        below, above = nearest_frames(frames)
        raise RequestError(f"frames={frames} is not 8k+1", f"use {below} or {above} frames")
    return (frames - 1) // FRAMES_PER_LATENT + 1


def pixel_frames(latents: int) -> int:
    """Frames that ``latents`` latent frames decode to: 8(n-1)+1."""
    return (latents - 1) * FRAMES_PER_LATENT + 1


def audio_latents(frames: int, fps: Fraction) -> int:
    """Latent steps of the sound of a clip: 25 per second, rounded (halves to even)."""
    return round(duration(frames, fps) * AUDIO_LATENTS_PER_SECOND)


# ---------------------------------------------------------------------------------------------
# frame rates


def parse_fps(value: str | int | float | Fraction) -> Fraction:
    """An exact frame rate: ``24``, ``"23.976"`` -> 24000/1001, ``"30000/1001"``, ``12.5``.

    A decimal within 0.005 of a broadcast rate ``1000 n / 1001`` is that rate. Raises RequestError
    for anything that is no number, not above zero or above 240.
    """
    hint = "use a rate such as 24, 25, 30, 50, 23.976 or 30000/1001"
    if isinstance(value, bool):
        raise RequestError(f"fps={value!r} is not a frame rate", hint)
    try:
        rate = _exact_rate(value)
    except (ValueError, ZeroDivisionError, OverflowError, InvalidOperation):
        raise RequestError(f"fps={value} is not a frame rate", hint) from None
    if not 1 <= rate <= MAX_FPS:
        shown = format_fps(rate)
        raise RequestError(f"fps={shown} is outside 1 to {MAX_FPS} frames per second", hint)
    return rate


def _exact_rate(value: str | int | float | Fraction) -> Fraction:
    if isinstance(value, int | Fraction):
        return Fraction(value)
    text = str(value).strip()
    if "/" in text:
        return Fraction(text.replace(" ", ""))
    rate = Fraction(Decimal(text))
    if rate.denominator == 1:
        return rate
    broadcast = Fraction(math.ceil(rate) * 1000, 1001)
    return broadcast if abs(rate - broadcast) < NTSC_TOLERANCE else rate


def format_fps(fps: Fraction) -> str:
    """The text that :func:`parse_fps` reads back: ``24`` or ``24000/1001``."""
    return str(fps)


# ---------------------------------------------------------------------------------------------
# sizes


def video_tokens(width: int, height: int, frames: int) -> int:
    """Video tokens of a canvas whose sides are multiples of 32."""
    latents = (width // PIXELS_PER_LATENT) * (height // PIXELS_PER_LATENT)
    return latents * latent_frames(frames)


def size_multiples(factors: Sequence[Factor]) -> tuple[int, int]:
    """The numbers that the (first, final) sides must be multiples of.

    ``()`` -> (32, 32); ``x2`` -> (32, 64); ``x1.5`` -> (64, 96), because 1.5 times an odd number of
    latent pixels is not a whole number; ``x2, x2`` -> (32, 128).
    """
    product, common = Fraction(1), 1
    for factor in factors:
        product *= factor.space
        common = math.lcm(common, product.denominator)
    first = PIXELS_PER_LATENT * common
    return first, int(first * product)


def time_product(factors: Sequence[Factor]) -> int:
    """The factor of the frame rate of all upsamplers together."""
    return math.prod(factor.time for factor in factors)


def round_up(pixels: int, multiple: int) -> int:
    """The smallest multiple that is at least ``pixels``."""
    return -(-pixels // multiple) * multiple


def resolutions(
    size: tuple[int, int], frames: int, fps: Fraction, factors: Sequence[Factor]
) -> tuple[Resolution, ...]:
    """The resolutions from the first stage to the last: one more than there are ``factors``.

    ``size`` (width, height), ``frames`` and ``fps`` are those of the final clip. A temporal
    upsampler turns n frames at r fps into 2n-1 at 2r, so the first stage has the lower rate. Raises
    RequestError when ``frames`` is not legal for the factors.
    """
    in_time = time_product(factors)
    if not is_legal_frames(frames, in_time):
        below, above = nearest_frames(frames, in_time)
        step = FRAMES_PER_LATENT * in_time
        raise RequestError(f"frames={frames} is not {step}k+1", f"use {below} or {above} frames")
    first, final = size_multiples(factors)
    sound = audio_latents(frames, fps)
    width, height = (round_up(side, final) * first // final for side in size)
    count, rate = (frames - 1) // in_time + 1, fps / in_time
    found = [Resolution(width, height, count, rate, sound)]
    for factor in factors:
        width, height = int(width * factor.space), int(height * factor.space)
        count, rate = (count - 1) * factor.time + 1, rate * factor.time
        found.append(Resolution(width, height, count, rate, sound))
    return tuple(found)


def centre_crop(canvas: tuple[int, int], size: tuple[int, int]) -> Crop:
    """The centred crop of ``size`` (width, height) in ``canvas``; an odd pixel goes right or below.

    The centre, not the corner: a prompt's subject is composed around the middle of the canvas.
    """
    (canvas_width, canvas_height), (width, height) = canvas, size
    return Crop((canvas_width - width) // 2, (canvas_height - height) // 2, width, height)
