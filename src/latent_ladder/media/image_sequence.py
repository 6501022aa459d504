"""Image sequences (PNG with 8 bits, TIFF with 16 bits, EXR with half floats) and WAV files.

All frames are written into a temporary folder next to the output folder, which is renamed at the
end. PNG and TIFF contain the values of the clip, which readers interpret as sRGB. EXR is
scene-linear by convention, so the sRGB transfer curve is removed; its primaries are those of
BT.709.
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
from latent_ladder.media.container_metadata import encode_comment
from latent_ladder.media.encoders import AUDIO_SUFFIX, IMAGE_ENCODERS, require_encoder
from latent_ladder.media.hdr import HALF_MAX
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.media.video_writer import (
    Frames,
    VideoSpec,
    WrittenVideo,
    check_output_path,
    encode_in_thread,
    resample_audio,
    temporary_output,
)
from latent_ladder.storage.atomic_write import commit, convert_write_errors, write_atomically
from latent_ladder.storage.read_file import read_small_text
from latent_ladder.storage.temporary_files import part_path, remove_abandoned

SIDECAR = "request.json"
"""Name of the metadata file in the folder of the frames; TIFF and EXR files have no metadata."""

MAX_SIDECAR_BYTES = 2**24
"""Largest size of that file."""

AUDIO_FILE = "sound.wav"
_NUMBER = re.compile(r"%0?(\d*)d")
Waveform = tuple[NDArray[np.float32], int]
Encode = Callable[[Frames], bytes]


@dataclass(frozen=True)
class FramePattern:
    """Output path of an image sequence: ``folder``, and a name pattern such as ``%05d.png``."""

    folder: Path
    pattern: str

    @classmethod
    def from_path(cls, path: Path) -> FramePattern | None:
        """Parse a path such as ``frames/%05d.png``; ``None`` for a path without a ``%d``."""
        return cls(path.parent, path.name) if _NUMBER.search(path.name) else None

    def name(self, index: int) -> str:
        """The file name of the frame ``index``, counted from 0."""
        return self.pattern % index

    def matches(self, name: str) -> bool:
        """True for the name of a file that :func:`write_image_sequence` writes."""
        head, _, tail = _NUMBER.sub("\0", self.pattern, count=1).partition("\0")
        found = re.fullmatch(f"{re.escape(head)}\\d+{re.escape(tail)}", name)
        return bool(found) or name in (SIDECAR, AUDIO_FILE)


def read_sidecar(folder: Path) -> dict[str, Any]:
    """The metadata beside the frames of a sequence. Raises :class:`MediaError`."""
    try:
        found = json.loads(read_small_text(folder / SIDECAR, MAX_SIDECAR_BYTES, MediaError))
    except (MediaError, ValueError, RecursionError) as error:
        raise MediaError(
            f"folder {folder} has no readable {SIDECAR}: {error}",
            "give a clip, or the folder of an image sequence",
        ) from error
    return found if isinstance(found, dict) else {}


def check_image_sequence(path: Path, overwrite: bool) -> None:
    """Raise :class:`MediaError` if frames could not be written to the pattern ``path``."""
    target = FramePattern.from_path(path)
    suffix = path.suffix.lower()
    if target is None or suffix not in IMAGE_ENCODERS or not _is_valid_pattern(target.pattern):
        raise MediaError(
            f"output {path.name} is not a pattern of frame names, expected one %d and a suffix of "
            f"{', '.join(IMAGE_ENCODERS)}",
            f"write to {path.parent / '%05d.png'}",
        )
    require_encoder(IMAGE_ENCODERS[suffix][0])
    folder = target.folder
    with convert_write_errors(MediaError, f"output folder {folder}", folder.parent):
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise MediaError(f"output folder {folder} is a file", "choose another folder")
    names = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    others = [name for name in names if not target.matches(name)]
    if others:
        raise MediaError(
            f"output folder {folder} contains other files, such as {others[0]}",
            "choose an empty or new folder: the whole folder is replaced by the frames",
        )
    if names and not overwrite:
        raise MediaError(
            f"output folder {folder} already contains frames",
            "--overwrite replaces them; or choose another folder",
        )


def _is_valid_pattern(pattern: str) -> bool:
    try:
        return pattern % 1 != pattern % 2
    except (TypeError, ValueError):
        return False


def write_image_sequence(
    path: Path,
    frames: Iterable[Frames],
    spec: VideoSpec,
    *,
    audio: Waveform | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> WrittenVideo:
    """Write every frame to the pattern ``path``, the audio to ``sound.wav`` in the same folder.

    ``frames`` are chunks (n, H, W, 3) or single frames (H, W, 3); ``audio`` is a (2, S) waveform
    in -1..1 and its sample rate. Raises :class:`MediaError`, and whatever ``frames`` raises; the
    folder is unchanged then.
    """
    check_image_sequence(path, overwrite)
    target, tags = FramePattern(path.parent, path.name), dict(metadata or {})
    encode = _encoder(path.suffix.lower(), spec, tags)
    count = 0
    with (
        convert_write_errors(MediaError, f"frames {path.name}", target.folder.absolute().parent),
        _temporary_folder(target.folder) as folder,
    ):

        def write(chunk: Frames) -> None:
            nonlocal count
            for frame in chunk[None] if chunk.ndim == 3 else chunk:
                (folder / target.name(count)).write_bytes(encode(frame))
                count += 1

        encode_in_thread(write, frames)
        if not count:
            raise MediaError("there are no frames to write", hint="--frames must be at least 1")
        if audio is not None:
            _write_pcm(folder / AUDIO_FILE, audio, Fraction(count) / spec.fps, tags)
        facts = {"fps": str(spec.fps), "frames": count, "pattern": target.pattern}
        text = json.dumps({**tags, **facts}, ensure_ascii=False, indent=1)
        (folder / SIDECAR).write_text(text, "utf-8")
        total = sum(p.stat().st_size for p in folder.iterdir())
    duration = float(count / spec.fps)
    return WrittenVideo(path, count, duration, None if audio is None else duration, total)


def check_image_file(path: Path, overwrite: bool) -> None:
    """Raise :class:`MediaError` if one image could not be written to ``path``."""
    require_encoder(IMAGE_ENCODERS[path.suffix.lower()][0])
    check_output_path(path, overwrite)


def write_image_file(
    path: Path,
    frames: Iterable[Frames],
    spec: VideoSpec,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> WrittenVideo:
    """Write the only frame of a clip as one image.

    Raises :class:`MediaError`, and whatever ``frames`` raises; an older file is unchanged then.
    """
    check_image_file(path, overwrite)
    encode = _encoder(path.suffix.lower(), spec, dict(metadata or {}))
    written: list[bytes] = []
    for chunk in frames:
        written += [encode(frame) for frame in (chunk[None] if chunk.ndim == 3 else chunk)]
    if len(written) != 1:
        raise MediaError(f"{path.name} is one image for {len(written)} frames", "use --frames 1")
    with convert_write_errors(MediaError, f"image {path.name}", path.parent, len(written[0])):
        write_atomically(path, written[0])
    return WrittenVideo(path, 1, float(1 / spec.fps), None, len(written[0]))


def write_audio(
    path: Path,
    audio: Waveform | None,
    duration: Fraction,
    *,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> WrittenVideo:
    """Write audio only, as a WAV file of 24-bit PCM, cut or padded to ``duration`` seconds.

    Raises :class:`MediaError` if there is no audio, or ``path`` cannot be written.
    """
    check_output_path(path, overwrite)
    if audio is None:
        raise MediaError(
            f"there is no audio to write to {path.name}",
            "leave --no-audio (--audio none) out, or write to a video file",
        )
    with (
        convert_write_errors(MediaError, f"audio {path.name}", path.parent),
        temporary_output(path) as part,
    ):
        samples = _write_pcm(part, audio, duration, metadata or {})
        commit(part, path)
    return WrittenVideo(path, 0, float(duration), samples / SAMPLE_RATE, path.stat().st_size)


def is_audio_file(path: Path) -> bool:
    """True for the path of a file with audio only (.wav)."""
    return path.suffix.lower() == AUDIO_SUFFIX


def _write_pcm(path: Path, audio: Waveform, duration: Fraction, metadata: Mapping[str, str]) -> int:
    """Write a WAV file and return the number of samples per channel."""
    import av

    wave = np.zeros((2, round(duration * SAMPLE_RATE)), np.float32)
    found = resample_audio(*audio)[:, : wave.shape[1]]
    wave[:, : found.shape[1]] = found
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_s24le", rate=SAMPLE_RATE, layout="stereo")
        container.metadata["comment"] = encode_comment(metadata)
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return wave.shape[1]


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``folder`` if the block ends without an exception."""
    remove_abandoned([folder.absolute().parent])
    new = part_path(folder.absolute())
    new.mkdir()
    try:
        yield new
        if folder.exists():
            old = part_path(folder.absolute())
            folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old)
        else:
            new.rename(folder)
    finally:
        with suppress(OSError):
            shutil.rmtree(new)


# --- encoding of one frame ----------------------------------------------------------------------


def _encoder(suffix: str, spec: VideoSpec, tags: Mapping[str, str]) -> Encode:
    if suffix == ".png":
        return partial(encode_png, tags=tags)
    options = {
        ".exr": {"format": "half", "compression": "zip16"},
    }.get(suffix, {"compression_algo": "deflate"})
    return partial(_encode_with_ffmpeg, suffix=suffix, spec=spec, options=options)


def encode_png(frame: Frames, tags: Mapping[str, str]) -> bytes:
    """An 8-bit PNG of a frame (H, W, 3), with the tags as text chunks."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in tags.items():
        info.add_itxt(name, text)
    file = BytesIO()
    pixels = frame if frame.dtype == np.uint8 else ((frame + 128.0) / 257).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG", pnginfo=info, compress_level=4)
    return file.getvalue()


def _encode_with_ffmpeg(
    frame: Frames, suffix: str, spec: VideoSpec, options: Mapping[str, str]
) -> bytes:
    """One frame (H, W, 3) encoded as TIFF or EXR by FFmpeg."""
    import av

    name, pix_fmt = IMAGE_ENCODERS[suffix]
    codec: Any = av.CodecContext.create(name, "w")
    codec.width, codec.height = spec.size
    codec.pix_fmt, codec.time_base = pix_fmt, 1 / spec.fps
    codec.options = dict(options)
    pixels = _to_linear_light(frame) if suffix == ".exr" else _to_uint16(frame)
    video_frame = av.VideoFrame.from_ndarray(pixels, format=pix_fmt)
    video_frame.pts = 0
    return b"".join(bytes(packet) for packet in (*codec.encode(video_frame), *codec.encode(None)))


def _to_uint16(frame: Frames) -> NDArray[np.uint16]:
    return frame.astype(np.uint16) * 257 if frame.dtype == np.uint8 else frame.astype(np.uint16)


def _to_linear_light(frame: Frames) -> NDArray[np.float32]:
    """sRGB integers -> linear light in 0..1, float32 (IEC 61966-2-1); floats are linear."""
    if frame.dtype == np.float32:
        return np.asarray(np.clip(frame, -HALF_MAX, HALF_MAX), np.float32)
    x = frame.astype(np.float32) / np.iinfo(frame.dtype).max
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return np.ascontiguousarray(curve, np.float32)
