"""Single frames as files: PNG (8 bit), TIFF (16 bit), EXR (half floats), and sound alone as WAV.

All frames are written into a temporary folder beside the wanted one, which is renamed at the end.
PNG and TIFF hold the values of the clip, sRGB to all that read them. EXR is scene-linear by
convention, so the sRGB curve is taken off; its primaries are those of BT.709.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.container_metadata import as_comment
from latent_ladder.media.encoders import SOUND_SUFFIX, STILLS, require_encoder
from latent_ladder.media.video_writer import (
    AUDIO_RATE,
    Frames,
    VideoSpec,
    WrittenVideo,
    check_file,
    feed,
    replacing,
    resampled,
)
from latent_ladder.storage.atomic_write import commit, convert_write_errors, part_path

SIDECAR = "request.json"
"""Beside the frames: the metadata, for formats that cannot hold it and for all who look there."""

SOUND = "sound.wav"
_NUMBER = re.compile(r"%0?(\d*)d")
Sound = tuple[NDArray[np.float32], int]
Encode = Callable[[Frames], bytes]


@dataclass(frozen=True)
class Stills:
    """Where single frames go: ``folder`` and the pattern of names in it, such as ``%05d.png``."""

    folder: Path
    pattern: str

    @classmethod
    def of(cls, path: Path) -> Stills | None:
        """What ``frames/%05d.png`` means; ``None`` for a path without a ``%d``."""
        return cls(path.parent, path.name) if _NUMBER.search(path.name) else None

    def name(self, index: int) -> str:
        """The name of one frame, counted from 0."""
        return self.pattern % index

    def owns(self, name: str) -> bool:
        """Whether a file in the folder is one that an earlier run wrote."""
        head, _, tail = _NUMBER.sub("\0", self.pattern, count=1).partition("\0")
        found = re.fullmatch(f"{re.escape(head)}\\d+{re.escape(tail)}", name)
        return bool(found) or name in (SIDECAR, SOUND)


def check_stills(path: Path, overwrite: bool) -> None:
    """Raise :class:`MediaError` if frames could not be written to the pattern ``path``."""
    stills = Stills.of(path)
    if stills is None or path.suffix.lower() not in STILLS or not _formats(stills.pattern):
        raise MediaError(
            f"output {path.name} is no pattern of frames, expected one number and "
            f"{', '.join(STILLS)}",
            f"write to {path.parent / '%05d.png'}",
        )
    require_encoder(STILLS[path.suffix.lower()][0])
    folder = stills.folder
    if not folder.absolute().parent.is_dir():
        raise MediaError(f"output folder {folder.parent} does not exist", "create it first")
    if folder.exists() and not folder.is_dir():
        raise MediaError(f"output folder {folder} is a file", "choose another folder")
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if not stills.owns(name)]
    if others:
        raise MediaError(
            f"output folder {folder} holds other files, such as {others[0]}",
            "name a folder of its own for the frames: it is replaced as a whole",
        )
    if names and not overwrite:
        raise MediaError(
            f"output folder {folder} already holds frames",
            "allow overwriting, or choose another folder",
        )


def _formats(pattern: str) -> bool:
    try:
        return pattern % 1 != pattern % 2
    except (TypeError, ValueError):
        return False


def write_stills(
    path: Path,
    frames: Iterable[Frames],
    spec: VideoSpec,
    *,
    audio: Sound | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> WrittenVideo:
    """Write every frame to the pattern ``path``, the sound to ``sound.wav`` beside them.

    Raises :class:`MediaError`, and whatever ``frames`` raises; then the folder is as it was.
    """
    check_stills(path, overwrite)
    stills, tags = Stills(path.parent, path.name), dict(metadata or {})
    encode = _encoder(path.suffix.lower(), spec, tags)
    count = 0
    with (
        convert_write_errors(MediaError, f"frames {path.name}", stills.folder.absolute().parent),
        _fresh_folder(stills.folder) as fresh,
    ):

        def write(chunk: Frames) -> None:
            nonlocal count
            for frame in chunk[None] if chunk.ndim == 3 else chunk:
                (fresh / stills.name(count)).write_bytes(encode(frame))
                count += 1

        feed(write, frames)
        if not count:
            raise MediaError("there are no frames to write", hint="ask for at least one frame")
        if audio is not None:
            _write_pcm(fresh / SOUND, audio, Fraction(count) / spec.fps, tags)
        facts = {"fps": str(spec.fps), "frames": count, "pattern": stills.pattern}
        text = json.dumps({**tags, **facts}, ensure_ascii=False, indent=1)
        (fresh / SIDECAR).write_text(text, "utf-8")
        total = sum(p.stat().st_size for p in fresh.iterdir())
    duration = float(count / spec.fps)
    return WrittenVideo(path, count, duration, None if audio is None else duration, total)


def write_sound(
    path: Path,
    audio: Sound | None,
    duration: Fraction,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> WrittenVideo:
    """Write the sound alone, 24-bit PCM, cut or padded to ``duration`` seconds."""
    check_file(path, overwrite)
    if audio is None:
        raise MediaError(
            f"there is no sound for {path.name}", "ask for sound, or write to a video file"
        )
    with (
        convert_write_errors(MediaError, f"sound {path.name}", path.parent),
        replacing(path) as part,
    ):
        samples = _write_pcm(part, audio, duration, metadata or {})
        commit(part, path)
    return WrittenVideo(path, 0, float(duration), samples / AUDIO_RATE, path.stat().st_size)


def is_sound(path: Path) -> bool:
    """Whether a path names sound alone."""
    return path.suffix.lower() == SOUND_SUFFIX


def _write_pcm(path: Path, audio: Sound, duration: Fraction, metadata: Mapping[str, str]) -> int:
    """Write a WAV file; samples written."""
    import av

    wave = np.zeros((2, round(duration * AUDIO_RATE)), np.float32)
    found = resampled(*audio)[:, : wave.shape[1]]
    wave[:, : found.shape[1]] = found
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s24le", rate=AUDIO_RATE, layout="stereo")
        container.metadata["comment"] = as_comment(metadata)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
        frame.sample_rate = AUDIO_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return wave.shape[1]


@contextmanager
def _fresh_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` if the block ends well."""
    fresh = part_path(folder.absolute())
    fresh.mkdir()
    try:
        yield fresh
        if folder.exists():
            old = part_path(folder.absolute())
            folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old)
        else:
            fresh.rename(folder)
    finally:
        with suppress(OSError):
            shutil.rmtree(fresh)


# --- one frame ----------------------------------------------------------------------------------


def _encoder(suffix: str, spec: VideoSpec, tags: Mapping[str, str]) -> Encode:
    if suffix == ".png":
        return partial(as_png, tags=tags)
    options = {
        ".exr": {"format": "half", "compression": "zip16"},
    }.get(suffix, {"compression_algo": "deflate"})
    return partial(_coded, suffix=suffix, spec=spec, options=options)


def as_png(frame: Frames, tags: Mapping[str, str]) -> bytes:
    """A PNG with the tags as text chunks, 8 bits."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in tags.items():
        info.add_itxt(name, text)
    file = BytesIO()
    pixels = frame if frame.dtype == np.uint8 else ((frame + 128.0) / 257).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info, compress_level=4)
    return file.getvalue()


def _coded(frame: Frames, suffix: str, spec: VideoSpec, options: Mapping[str, str]) -> bytes:
    """A picture from one of FFmpeg's encoders."""
    import av

    name, pix_fmt = STILLS[suffix]
    codec: Any = av.CodecContext.create(name, "w")
    codec.width, codec.height = spec.size
    codec.pix_fmt, codec.time_base = pix_fmt, 1 / spec.fps
    codec.options = dict(options)
    pixels = _linear(frame) if suffix == ".exr" else _sixteen_bits(frame)
    picture = av.VideoFrame.from_ndarray(pixels, format=pix_fmt)
    picture.pts = 0
    return b"".join(bytes(packet) for packet in (*codec.encode(picture), *codec.encode(None)))


def _sixteen_bits(frame: Frames) -> NDArray[np.uint16]:
    return frame.astype(np.uint16) * 257 if frame.dtype == np.uint8 else frame.astype(np.uint16)


def _linear(frame: Frames) -> NDArray[np.float32]:
    """0..1 in linear light (IEC 61966-2-1)."""
    x = frame.astype(np.float32) / np.iinfo(frame.dtype).max
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return np.ascontiguousarray(curve, np.float32)
