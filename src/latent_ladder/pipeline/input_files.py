"""Input files of a request, opened and hashed while it is planned.

No torch here: a plan checks every input before anything heavy loads. Artefact keys contain the
hash of a file's bytes, never its path.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latent_ladder.checkpoints.families import FAMILIES
from latent_ladder.errors import MediaError
from latent_ladder.latents.shapes import PIXELS_PER_LATENT, Resolution, duration, nearest_frames
from latent_ladder.request.inputs import Image, Video
from latent_ladder.request.model import Request
from latent_ladder.storage.user_folders import expand_home

if TYPE_CHECKING:
    from latent_ladder.media.video_input import InputVideo

TOLERANCE_S = 0.05
"""Files that differ from the clip by less than this count as equally long."""
FPS_TOLERANCE = Fraction(1, 100)
KEPT_TOLERANCE_S = 0.5
"""Seconds that may be missing from a part to keep; its last frame is repeated."""


@dataclass(frozen=True)
class InputFile:
    """One input file with its use (``role``) and how it is prepared (``options``)."""

    path: Path
    role: str
    content: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Key fields: everything that decides the artefact made of this file."""
        return {"role": self.role, "content": self.content, **self.options}

    def check_unchanged(self) -> None:
        """Raise :class:`MediaError` if the file's content changed since it was planned."""
        if content_hash(self.path) != self.content:
            raise MediaError(f"{self.path.name} changed while the run was using it", "run again")


@dataclass(frozen=True)
class InputFiles:
    """All input files of a request, checked; ``notes`` are warnings for the user."""

    images: tuple[InputFile, ...] = ()
    sound: InputFile | None = None
    video: InputFile | None = None
    notes: tuple[str, ...] = ()


def content_hash(path: Path) -> str:
    """blake2b (16 bytes) of a file's content. Raises :class:`MediaError`.

    For the pattern of an EXR sequence: of all its files and of the sound beside them.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(path):
        try:
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            text = f"{part} cannot be read: {error.strerror}"
            raise MediaError(text, "check the path") from error
    return digest.hexdigest()


def _parts(path: Path) -> tuple[Path, ...]:
    """The files of a sequence with its sound, or the one file."""
    if "%" not in path.name:
        return (path,)
    from latent_ladder.media.exr_sequence import find_exr_sequence

    sequence = find_exr_sequence(path)
    if sequence is None:
        return (path,)
    return sequence.files if sequence.sound is None else (*sequence.files, sequence.sound)


def read_input_files(request: Request, family: str) -> InputFiles:
    """Open and hash every file that the request names. Raises :class:`MediaError`."""
    notes: list[str] = []
    images = tuple(_image(image, request, family, notes) for image in request.active_images)
    return InputFiles(images, _sound(request, notes), _video(request, notes), tuple(notes))


def _image(image: Image, request: Request, family: str, notes: list[str]) -> InputFile:
    from latent_ladder.media.image_input import check_image

    path = expand_home(image.file)
    if image.is_exr:
        return _exr(image, path, request, notes)
    found = check_image(path)
    notes += [f"{path.name} {note}" for note in found.notes]
    if note := _fit_note(found.size, (request.width, request.height), image.fit):
        notes.append(f"{path.name} ({found.size[0]}x{found.size[1]}) {note}")
    crf = request.image_crf if image.crf == "auto" else image.crf
    crf = FAMILIES[family].image_crf if crf == "auto" else crf
    options = {"fit": image.fit, "crf": crf} | ({"frame_s": 1} if crf else {})
    return InputFile(path, "image", content_hash(path), options)


def _exr(image: Image, path: Path, request: Request, notes: list[str]) -> InputFile:
    """An HDR picture; it is not compressed, as codecs of 8 bits would cut it."""
    from latent_ladder.media.hdr import load_exr

    height, width, _ = load_exr(path).shape
    if note := _fit_note((width, height), (request.width, request.height), image.fit):
        notes.append(f"{path.name} ({width}x{height}) {note}")
    options = {"fit": image.fit, "crf": 0, "space": image.space, "curve": request.hdr}
    return InputFile(path, "image", content_hash(path), options)


def _sound(request: Request, notes: list[str]) -> InputFile | None:
    if request.audio_in is None:
        return None
    from latent_ladder.media.audio_input import check_audio

    path = expand_home(request.audio_in)
    clip_s = duration(request.frames, request.fps)
    found, clip = check_audio(path, clip_s), float(clip_s)
    lengths = f"the sound of {path.name} lasts {found.duration_s:.2f} s, the clip {clip:.2f} s"
    if found.duration_s > clip + TOLERANCE_S:
        notes.append(f"{lengths}: only its beginning is used")
    elif found.duration_s < clip - TOLERANCE_S:
        notes.append(f"{lengths}: the rest of the clip is silent")
    return InputFile(path, "sound", content_hash(path))


def _video(request: Request, notes: list[str]) -> InputFile | None:
    video = request.video
    if video is None:
        return None
    from latent_ladder.media.audio_input import check_samples
    from latent_ladder.media.video_input import check_video

    path = expand_home(video.file)
    found = check_video(path, video.fps or request.fps)
    if video.fps is not None:
        found = replace(found, fps=video.fps, duration_s=float(found.frames / video.fps))
    if found.sound_file is not None and request.audio_in is None and request.audio != "none":
        check_samples(found.sound_file)
    clip = float(duration(request.frames, request.fps))
    start = video.start_s(clip, found.duration_s)
    notes += [f"{path.name} {note}" for note in _footage_notes(found, request)]
    if note := _fit_note(found.size, (request.width, request.height), video.fit):
        notes.append(f"{path.name} ({found.size[0]}x{found.size[1]}) {note}")
    _check_length(video, found, clip, path, notes)
    options: dict[str, Any] = {
        "fit": video.fit, "start": round(start, 6), "has_sound": found.has_audio,
    }  # fmt: skip
    if video.is_exr:
        options |= {"space": video.space, "curve": request.hdr, "fps": str(found.fps)}
    return InputFile(path, video.mode, content_hash(path), options)


def _footage_notes(found: InputVideo, request: Request) -> Iterator[str]:
    if found.variable_rate:
        yield f"has a variable frame rate; it is sampled at {float(request.fps):g} fps"
    elif abs(found.fps - request.fps) > FPS_TOLERANCE:
        yield f"has {float(found.fps):g} fps; it is sampled at {float(request.fps):g} fps"
    yield from found.notes
    if found.rotated:
        yield "is stored rotated; it is used upright"
    keeps = request.video is not None and request.video.mode != "reference"
    if keeps and not found.has_audio and request.audio != "none" and request.audio_in is None:
        yield "has no sound: the parts that are kept are silent"


def _check_length(
    video: Video, found: InputVideo, clip_s: float, path: Path, notes: list[str]
) -> None:
    """Refuse a video that is too short for the part to keep; note what is not used."""
    begin, end = video.generated_span(clip_s)
    if video.mode == "extend":
        kept = clip_s - (end - begin)
        if found.duration_s < kept - KEPT_TOLERANCE_S:
            raise MediaError(
                f"{path.name} lasts {found.duration_s:.2f} s, but {kept:.2f} s of it must be kept",
                "make the clip shorter, or the extension longer",
            )
        if found.duration_s > kept + KEPT_TOLERANCE_S:
            notes.append(f"of {path.name}, {kept:.2f} of {found.duration_s:.2f} s are kept")
    elif found.duration_s > clip_s + TOLERANCE_S:
        notes.append(
            f"{path.name} lasts {found.duration_s:.2f} s: the first {clip_s:.2f} s are used"
        )
    elif found.duration_s < clip_s - TOLERANCE_S:
        notes.append(
            f"{path.name} lasts {found.duration_s:.2f} s: its last frame is repeated up to the end"
        )


def _fit_note(size: tuple[int, int], clip: tuple[int, int], fit: str) -> str:
    """Note on how an image is fitted to the clip's aspect ratio; empty if it has the same."""
    ratio = size[0] * clip[1] / (size[1] * clip[0])
    if abs(ratio - 1) < 0.01:
        return ""
    if fit == "letterbox":
        return f"gets black bars {'above and below' if ratio > 1 else 'left and right'}"
    lost = 1 - min(ratio, 1 / ratio)
    sides = "left and right" if ratio > 1 else "above and below"
    cut = f"is cropped {sides} to the clip's shape and loses {lost:.0%} of its area"
    return f"{cut}; --fit letterbox keeps all of it"


def visible_size(request: Request, resolution: Resolution) -> tuple[int, int]:
    """Size (width, height) of the part of a canvas that is left after the clip is cropped."""
    last = request.resolutions[-1]
    return (
        max(round(request.width * resolution.width / last.width), 1),
        max(round(request.height * resolution.height / last.height), 1),
    )


def reference_resolution(resolution: Resolution, options: Mapping[str, Any]) -> Resolution:
    """Resolution of a reference video: smaller and slower than its stage by the LoRA's factors.

    Sides are whole numbers of latents, at least one. Of other videos it is that of the stage.
    """
    smaller, slower = int(options.get("smaller", 1)), int(options.get("slower", 1))
    width, height = (
        max(round(side / smaller / PIXELS_PER_LATENT), 1) * PIXELS_PER_LATENT
        for side in (resolution.width, resolution.height)
    )
    frames = nearest_frames(Fraction(resolution.frames - 1, slower) + 1)[0]
    return Resolution(width, height, frames, resolution.fps / slower, resolution.audio_latents)
