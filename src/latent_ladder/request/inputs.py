"""Input files of a request: pictures and a video.

Plain validated values; nothing here opens a file. A path is stored as it was written. Frames and
seconds are those of the final clip in every stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from latent_ladder.request.fields import FileName, Fps, Int, Real, Table, is_int
from latent_ladder.request.problems import Found, Problem

LAST = -1
"""The frame number that means the last one of the clip."""
MAX_CRF = 51

Fit = Literal["cover", "letterbox"]
"""Fit of a picture of another aspect ratio: cropped at two sides, or with black bars."""
Mode = Literal["v2v", "retake", "extend", "reference"]
Space = Literal["srgb_linear", "acescg", "acescct"]
EXR = ".exr"


def _crf(value: Any) -> Any:
    if value == "auto" or (is_int(value) and 0 <= value <= MAX_CRF):
        return value
    raise Problem(f'is neither "auto" nor 0 to {MAX_CRF}', 'use "auto", or 0 for no compression')


def _region(value: Any) -> Any:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise Problem("is not two times in seconds", "use region=[1.5, 3.0]")
    if not all(isinstance(t, int | float) and not isinstance(t, bool) for t in value):
        raise Problem("contains something that is not a number", "use region=[1.5, 3.0]")
    start, end = (float(t) + 0.0 for t in value)
    if not 0 <= start < end:
        raise Problem("does not run forwards from 0 s on", "use region=[1.5, 3.0]")
    return start, end


Crf = Annotated[int | Literal["auto"], BeforeValidator(_crf)]
Region = Annotated[tuple[float, float], BeforeValidator(_region)]


class Image(Table):
    """A picture that the clip shows at ``frame`` (-1: the last one).

    Frame 0 replaces the first latent frame; at any other frame the picture is a keyframe whose
    tokens are appended to the clip. ``strength`` 1 keeps the picture unchanged, 0 ignores it.
    ``crf`` is the rate of an H.264 compression of the picture before it is encoded, because the
    model was trained on frames of videos; "auto" is that of the model family, 0 means none.
    """

    file: FileName
    """Path of the picture."""
    frame: Int = Field(default=0, ge=LAST)
    """Frame of the clip that shows the picture, counted from 0; -1 is the last one."""
    strength: Real = Field(default=1.0, ge=0, le=1)
    """Closeness to the picture: 1 shows it unchanged, 0 ignores it, values between allow
    changes."""
    fit: Fit = "cover"
    """Treatment of a picture of another shape: ``cover`` crops it, ``letterbox`` adds black
    bars."""
    space: Space = "srgb_linear"
    """Colours of an EXR picture in an HDR request: linear light with the primaries of sRGB or of
    ACEScg, or ACEScct codes."""
    crf: Crf = "auto"
    """H.264 compression of the picture before it is encoded, 0 (none) to 51; ``auto`` is that of
    the model family (33 for LTX-2 and 2.3), because the model was trained on frames of videos."""

    @property
    def is_exr(self) -> bool:
        """True for an EXR file, which holds HDR light."""
        return self.file.lower().endswith(EXR)

    def index(self, frames: int) -> int:
        """The frame in a clip of ``frames``."""
        return frames - 1 if self.frame == LAST else self.frame


class Video(Table):
    """A video that the clip starts from.

    ``v2v``: the base stage starts from the video at the noise level ``denoise`` instead of from
    noise alone (0: it does not sample, the video itself is upsampled and refined).
    ``retake``: the inside of ``region`` (seconds) is generated again, the rest is preserved.
    ``extend``: the clip ends with that many new seconds, or begins with them where ``extend`` is
    negative; the rest of it is the end, or the beginning, of the video.
    ``reference``: the video guides the base stage through an IC-LoRA, with ``strength``.
    """

    file: FileName
    """Path of the video, or the pattern of EXR files (``shot/%05d.exr``) in an HDR request."""
    mode: Mode = "v2v"
    """Use of the video: ``v2v`` starts from it, ``retake`` makes a part of it again, ``extend``
    adds seconds, ``reference`` follows it through an IC-LoRA."""
    denoise: Real | None = Field(default=None, ge=0, le=1)
    """Mode ``v2v``: noise level from which the base stage starts; 1 makes all of it again, lower
    values change less, 0 leaves it to the stages after the base stage."""
    region: Region | None = None
    """Mode ``retake``: start and end in seconds of the part to make again, such as [1.5, 3.0]."""
    extend: Real | None = Field(default=None, ge=-3600, le=3600)
    """Mode ``extend``: seconds to add at the end, or before the start where negative."""
    strength: Real = Field(default=1.0, ge=0, le=1)
    """Mode ``reference``: strength with which the video guides the base stage; lower it to follow
    the video less."""
    fit: Fit = "cover"
    """Treatment of a video of another shape: ``cover`` crops it, ``letterbox`` adds black bars."""
    space: Space = "srgb_linear"
    """Colours of EXR files: linear light with the primaries of sRGB or of ACEScg, or ACEScct
    codes."""
    fps: Fps | None = None
    """Frame rate of EXR files, which do not hold one; default: that in ``request.json`` beside
    them, else the clip's."""

    @property
    def is_exr(self) -> bool:
        """True for EXR files, which hold HDR light."""
        return self.file.lower().endswith(EXR)

    @property
    def keeps(self) -> bool:
        """True where a part of the video is preserved in every stage."""
        return self.mode in ("retake", "extend")

    def generated_span(self, duration_s: float) -> tuple[float, float]:
        """(start, end) in seconds of the part of a clip of ``duration_s`` that is generated."""
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
"""The field of :class:`Video` that a mode needs, and that no other mode has."""
EXAMPLE: Mapping[str, str] = {
    "denoise": "video.denoise=0.6",
    "region": "video.region=[1.5, 3.0]",
    "extend": "video.extend=2",
}


def inputs_problems(
    images: Sequence[Image], video: Video | None, frames: int, fps: Fraction
) -> list[Found]:
    """Problems of the inputs of a clip of ``frames`` frames."""
    return _images_problems(images, frames) + (
        [] if video is None else _video_problems(video, float(frames / fps))
    )


def _images_problems(images: Sequence[Image], frames: int) -> list[Found]:
    found: list[Found] = []
    used: dict[int, int] = {}
    for i, image in enumerate(images):
        at = image.index(frames)
        if at >= frames:
            text = f"images[{i}].frame={image.frame} is beyond the clip of {frames} frames"
            found.append((text, f"use 0 to {frames - 1}, or -1 for the last frame"))
        elif at in used:
            text = f"images[{used[at]}] and images[{i}] are both for frame {at}"
            found.append((text, "set another frame for one of them"))
        used[at] = i
    return found


def _video_problems(video: Video, duration_s: float) -> list[Found]:
    found: list[Found] = []
    for mode, field in FIELD_OF_MODE.items():
        is_set = getattr(video, field) is not None
        if is_set and mode != video.mode:
            text = f"video.{field} belongs to mode {mode}, and the mode is {video.mode}"
            found.append((text, f"remove it, or use video.mode={mode}"))
        elif not is_set and mode == video.mode:
            found.append((f"video.{field} is missing for mode {mode}", f"set {EXAMPLE[field]}"))
    if not video.is_exr:
        values = {"fps": video.fps is not None, "space": video.space != "srgb_linear"}
        found += [
            (f"video.{name} belongs to EXR files, and {video.file} is another file",
             f"remove it, or use EXR files such as shot/%05d{EXR}")
            for name, is_set in values.items() if is_set
        ]  # fmt: skip
    if found:
        return found
    if video.region is not None and video.region[1] > duration_s + 1e-6:
        start, end = video.region
        text = (
            f"video.region={start:g}-{end:g} s ends after the clip, which lasts {duration_s:.2f} s"
        )
        found.append((text, f"use an end of at most {duration_s:.2f}"))
    if video.extend is not None and not 0 < abs(video.extend) < duration_s:
        text = f"video.extend={video.extend:g} s leaves nothing of a clip of {duration_s:.2f} s"
        text = text if video.extend else "video.extend=0 s adds nothing"
        found.append((text, "use less than the duration of the clip, or a longer --duration"))
    return found
