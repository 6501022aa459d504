"""The parts of a request that name files to start from: pictures, a sound, a video.

Plain validated values; nothing here opens a file. A path is kept as it was written. Frames and
seconds are those of the clip, whatever a stage works on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from latent_ladder.request.fields import FileName, Int, Real, Table, is_int
from latent_ladder.request.problems import Found, Problem

LAST = -1
"""The frame number that means the last one of the clip."""
MAX_CRF = 51

Fit = Literal["cover", "letterbox"]
"""How a picture of another shape fills the canvas: cut at two sides, or with black bars."""
Mode = Literal["v2v", "retake", "extend", "reference"]


def _crf(value: Any) -> Any:
    if value == "auto" or (is_int(value) and 0 <= value <= MAX_CRF):
        return value
    raise Problem(f'is neither "auto" nor 0 to {MAX_CRF}', 'use "auto", or 0 to leave it out')


def _region(value: Any) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise Problem("is not two times in seconds", "use region=[1.5, 3.0]")
    if not all(isinstance(t, int | float) and not isinstance(t, bool) for t in value):
        raise Problem("holds something that is not a number", "use region=[1.5, 3.0]")
    start, end = (float(t) + 0.0 for t in value)
    if not 0 <= start < end:
        raise Problem("does not run forwards from 0 s on", "use region=[1.5, 3.0]")
    return start, end


Crf = Annotated[int | Literal["auto"], BeforeValidator(_crf)]
Region = Annotated[tuple[float, float], BeforeValidator(_region)]


class Image(Table):
    """A picture that the clip shows at ``frame`` (-1: the last one), held with ``strength``.

    Frame 0 replaces the first latent frame; at any other frame the picture is a guide beside the
    clip. ``strength`` 1 keeps it as it is, 0 leaves it out. ``crf`` is the rate of the H.264
    compression that the picture goes through first, because the model was trained on frames of
    videos; "auto" is that of the model family, 0 none.
    """

    file: FileName
    frame: Int = Field(default=0, ge=LAST)
    strength: Real = Field(default=1.0, ge=0, le=1)
    fit: Fit = "cover"
    crf: Crf = "auto"

    def index(self, frames: int) -> int:
        """The frame in a clip of ``frames``."""
        return frames - 1 if self.frame == LAST else self.frame


class Video(Table):
    """A video that the clip starts from.

    ``v2v``: the base stage starts from the video at the noise level ``denoise`` instead of from
    noise alone (0: it does not sample, the video itself is upsampled and refined).
    ``retake``: everything outside ``region`` (seconds) is kept, what is inside is made anew.
    ``extend``: the clip ends with that many new seconds, or begins with them where ``extend`` is
    negative; the rest of it is the end, or the beginning, of the video.
    ``reference``: the video guides the base stage through an IC-LoRA, held with ``strength``.
    """

    file: FileName
    mode: Mode = "v2v"
    denoise: Real | None = Field(default=None, ge=0, le=1)
    region: Region | None = None
    extend: Real | None = Field(default=None, ge=-3600, le=3600)
    strength: Real = Field(default=1.0, ge=0, le=1)
    fit: Fit = "cover"

    @property
    def keeps(self) -> bool:
        """Whether a part of the video is held in every stage."""
        return self.mode in ("retake", "extend")

    def generated_span(self, duration_s: float) -> tuple[float, float]:
        """From when to when a clip of ``duration_s`` is generated, in seconds."""
        if self.mode == "retake" and self.region is not None:
            return self.region
        if self.mode == "extend" and self.extend is not None:
            new = self.extend
            return (duration_s - new, duration_s) if new > 0 else (0.0, -new)
        return 0.0, duration_s

    def start_s(self, duration_s: float, source_s: float) -> float:
        """The time of the clip's first frame in a source of ``source_s`` s; may be below 0."""
        if self.mode != "extend" or self.extend is None:
            return 0.0
        if self.extend < 0:
            return self.extend
        return max(source_s - (duration_s - self.extend), 0.0)


FIELD_OF_MODE: Mapping[str, str] = {"v2v": "denoise", "retake": "region", "extend": "extend"}
"""The field of :class:`Video` that a mode needs, and no other one takes."""
EXAMPLE: Mapping[str, str] = {
    "denoise": "video.denoise=0.6",
    "region": "video.region=[1.5, 3.0]",
    "extend": "video.extend=2",
}


def inputs_problems(
    images: Sequence[Image], video: Video | None, frames: int, fps: Fraction
) -> list[Found]:
    """What is wrong with the inputs of a clip of ``frames`` frames."""
    return _images_problems(images, frames) + (
        [] if video is None else _video_problems(video, float(frames / fps))
    )


def _images_problems(images: Sequence[Image], frames: int) -> list[Found]:
    found: list[Found] = []
    taken: dict[int, int] = {}
    for i, image in enumerate(images):
        at = image.index(frames)
        if at >= frames:
            text = f"images[{i}].frame={image.frame} is beyond the clip of {frames} frames"
            found.append((text, f"use 0 to {frames - 1}, or -1 for the last frame"))
        elif at in taken:
            text = f"images[{taken[at]}] and images[{i}] are both for frame {at}"
            found.append((text, "give one of them another frame"))
        taken[at] = i
    return found


def _video_problems(video: Video, duration_s: float) -> list[Found]:
    found: list[Found] = []
    for mode, field in FIELD_OF_MODE.items():
        given = getattr(video, field) is not None
        if given and mode != video.mode:
            text = f"video.{field} belongs to mode {mode}, and the mode is {video.mode}"
            found.append((text, f"leave it out, or use video.mode={mode}"))
        elif not given and mode == video.mode:
            found.append((f"video.{field} is missing for mode {mode}", f"set {EXAMPLE[field]}"))
    if found:
        return found
    if video.region is not None and video.region[1] > duration_s + 1e-6:
        start, end = video.region
        text = (
            f"video.region={start:g}-{end:g} s ends after the clip, which lasts {duration_s:.2f} s"
        )
        found.append((text, f"end it at {duration_s:.2f} at the latest"))
    if video.extend is not None and not 0 < abs(video.extend) < duration_s:
        text = f"video.extend={video.extend:g} s leaves nothing of a clip of {duration_s:.2f} s"
        text = text if video.extend else "video.extend=0 s adds nothing"
        found.append((text, "extend by less than the clip's length; make the clip longer"))
    return found
