"""Video writer: encodes an iterator of frames to a file, in constant memory.

BT.709 or HDR on BT.2020 in limited range and 48 kHz stereo, in the codecs and containers of
:mod:`latent_ladder.media.encoders`. A second thread encodes while the caller's iterator computes
the next frames. Audio is interleaved with the video and has exactly its length. The file gets its
final name when it is complete.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import LadderError, MediaError
from latent_ladder.media.container_metadata import EMBEDDED_TAG_SUFFIXES, embed_tags
from latent_ladder.media.encoders import CONTAINERS, EncoderSettings, Encoding, choose_encoding
from latent_ladder.media.gif_palette import PaletteFilter
from latent_ladder.media.hdr import TRANSFERS
from latent_ladder.media.open_media import SAMPLE_RATE
from latent_ladder.storage.atomic_write import (
    commit,
    convert_write_errors,
    explain_write_error,
)
from latent_ladder.storage.temporary_files import part_path, remove_abandoned

if TYPE_CHECKING:
    from av.container import OutputContainer

QUEUED_CHUNKS = 2

_LEAST_ROOM = 16384
"""Bytes that must be free on the disk before encoding starts."""

SUFFIXES = tuple(CONTAINERS)

_BT709, _BT2020 = 1, 9
_LIMITED_RANGE = 1

Frames = NDArray[np.uint8] | NDArray[np.uint16]
"""(n, H, W, 3) or (H, W, 3) RGB, 0..255 or 0..65535."""

_RGB = {np.dtype(np.uint8): "rgb24", np.dtype(np.uint16): "rgb48le"}


@dataclass(frozen=True)
class VideoSpec:
    """Size (width, height), both even, frame rate and encoder settings of a video."""

    size: tuple[int, int]
    fps: Fraction
    settings: EncoderSettings = field(default_factory=EncoderSettings)


@dataclass(frozen=True)
class WrittenVideo:
    """A finished file.

    ``audio_duration_s`` is ``None`` without audio, else equal to ``duration_s`` within half a
    sample.
    """

    path: Path
    frames: int
    duration_s: float
    audio_duration_s: float | None
    bytes: int


def check_video_path(path: Path, overwrite: bool = False) -> None:
    """Raise :class:`MediaError` if a video could not be written to ``path``. Leaves no file.

    Call it before a long computation; :func:`write_video` calls it again.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise MediaError(
            f"output {path.name} ends in {path.suffix or 'nothing'!r}, expected "
            f"{', '.join(SUFFIXES)}",
            hint=f"write to {path.with_suffix('.mp4').name}",
        )
    check_output_path(path, overwrite)


def check_output_path(path: Path, overwrite: bool) -> None:
    """Raise :class:`MediaError` if a file could not be written to ``path``. Leaves no file.

    Makes its folder where that is missing.
    """
    if path.is_dir():
        raise MediaError(f"output {path} is a folder", hint=f"write to {path / 'clip.mp4'}")
    with convert_write_errors(MediaError, f"output folder {path.parent}", path.parent.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not overwrite:
        raise MediaError(
            f"output {path} already exists", hint="--overwrite replaces it; or choose another name"
        )
    _check_writable(path)


def check_size(size: tuple[int, int]) -> None:
    """Raise :class:`MediaError` unless width and height are even, as yuv420p needs."""
    width, height = size
    if width < 2 or height < 2 or width % 2 or height % 2:
        even = f"{max(2, width // 2 * 2)}x{max(2, height // 2 * 2)}"
        raise MediaError(
            f"video size {width}x{height} has an odd side, expected even width and height",
            hint=f"crop the frames to {even}",
        )


def write_video(
    path: Path,
    frames: Iterable[Frames],
    spec: VideoSpec,
    *,
    audio: tuple[NDArray[np.float32], int] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> WrittenVideo:
    """Encode ``frames`` to ``path``; at most ``QUEUED_CHUNKS`` chunks wait for the encoder.

    ``frames`` are chunks (n, H, W, 3) or single frames (H, W, 3). ``audio`` is a (2, S) waveform in
    -1..1 and its sample rate; it is resampled to 48 kHz and cut or padded with silence to
    round(n_frames / fps * 48000) samples. GIF and WebP have no audio. ``metadata`` may have any
    keys; MKV stores them in upper case, and ``read_metadata`` returns them in lower case.

    Raises :class:`MediaError` (invalid path, size or frames; disk full) and whatever ``frames``
    raises; an older file at ``path`` is unchanged then.
    """
    check_video_path(path, overwrite)
    check_size(spec.size)
    encoding = choose_encoding(path, spec.settings)
    waveform = None if audio is None or encoding.audio_encoder is None else resample_audio(*audio)
    tags = metadata or {}
    try:
        with temporary_output(path) as part:
            inside = {} if path.suffix.lower() in EMBEDDED_TAG_SUFFIXES else tags
            encoder = _Encoder(part, spec, encoding, waveform)
            _encode_all(encoder, frames, inside)
            with _convert_ffmpeg_errors():
                embed_tags(part, tags)
                commit(part, path)
    except _EncodingError as failure:
        raise _to_media_error(failure.cause, path) from failure.cause
    return WrittenVideo(
        path=path,
        frames=encoder.frames,
        duration_s=float(encoder.frames / spec.fps),
        audio_duration_s=None if waveform is None else encoder.samples / SAMPLE_RATE,
        bytes=path.stat().st_size,
    )


def _encode_all(encoder: _Encoder, frames: Iterable[Frames], metadata: Mapping[str, str]) -> None:
    """Write the whole file; afterwards ``encoder`` is closed and only its counts are valid."""
    try:
        encoder.start(metadata)
        encode_in_thread(encoder.encode, frames)
        encoder.finish()
    except BaseException:
        # Closing writes a trailer, which fails again after a failed encoding.
        with suppress(_EncodingError):
            encoder.close()
        raise
    encoder.close()


def encode_in_thread(encode: Callable[[Frames], None], frames: Iterable[Frames]) -> None:
    """Call ``encode`` for every chunk in a worker thread while ``frames`` computes the next one.

    An exception in the iterator or in ``encode`` stops both and is raised here.
    """
    waiting: deque[Future[None]] = deque()
    pool = ThreadPoolExecutor(1, thread_name_prefix="encode")
    try:
        for chunk in frames:
            waiting.append(pool.submit(encode, chunk))
            # Do not keep the chunk alive while the next one is computed.
            del chunk
            if len(waiting) > QUEUED_CHUNKS:
                waiting.popleft().result()
        while waiting:
            waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _EncodingError(Exception):
    """FFmpeg or the disk failed. Not an OSError, which the caller's iterator may raise too."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


@contextmanager
def _convert_ffmpeg_errors() -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, OSError) as error:
        raise _EncodingError(error) from error


def _to_media_error(cause: Exception, path: Path) -> LadderError:
    if isinstance(cause, OSError):
        return explain_write_error(cause, MediaError, f"video {path.name}", path.parent, needed=0)
    return MediaError(
        f"video {path.name} cannot be encoded: {cause}", hint="try another size or preset"
    )


class _Encoder:
    """An open container; ``frames`` and ``samples`` count what has been encoded."""

    def __init__(
        self,
        path: Path,
        spec: VideoSpec,
        encoding: Encoding,
        waveform: NDArray[np.float32] | None,
    ) -> None:
        import av

        self.frames = 0
        self.samples = 0
        self._failed = False  # after an error, until the caller gets it: encode nothing more
        self._spec = spec
        self._waveform = waveform
        self._pix_fmt = encoding.pix_fmt
        self._colours = _colours(encoding.transfer)
        self._palette = PaletteFilter(spec.size, spec.fps) if encoding.pix_fmt == "pal8" else None
        with _convert_ffmpeg_errors():
            self._container = av.open(
                str(path),
                "w",
                format=encoding.container.format,
                container_options=dict(encoding.container.options),
            )
            self._video = _video_stream(self._container, spec, encoding)
            self._audio = None if waveform is None else _audio_stream(self._container, encoding)

    def start(self, metadata: Mapping[str, str]) -> None:
        """Write the header."""
        with _convert_ffmpeg_errors():
            self._container.metadata.update(metadata)
            # Not with the first packet: PyAV crashes when it writes a failed header again.
            self._container.start_encoding()

    def encode(self, chunk: Frames) -> None:
        """Encode one frame or a chunk of frames, and the audio up to the end of the last frame."""
        if self._failed:
            return
        self._failed = True
        with _convert_ffmpeg_errors():
            for frame in self._check_chunk(chunk):
                self._encode_frame(frame)
            self._encode_audio()
        self._failed = False

    def finish(self) -> None:
        """Flush both encoders. Raises :class:`MediaError` if there was no frame."""
        if not self.frames:
            raise MediaError("there are no frames to write", hint="--frames must be at least 1")
        with _convert_ffmpeg_errors():
            self._mux(self._video.encode(None))
            if self._audio is not None:
                self._mux(self._audio.encode(None))

    def close(self) -> None:
        """Write the trailer and close the file."""
        with _convert_ffmpeg_errors():
            self._container.close()

    def _check_chunk(self, chunk: Frames) -> Frames:
        width, height = self._spec.size
        stacked: Frames = chunk[None] if chunk.ndim == 3 else chunk
        if stacked.shape[1:] != (height, width, 3) or stacked.dtype not in _RGB:
            raise MediaError(
                f"frames are {chunk.dtype} {chunk.shape}, expected uint8 or uint16 "
                f"(n, {height}, {width}, 3)"
            )
        contiguous: Frames = np.ascontiguousarray(stacked)  # type: ignore[assignment]
        return contiguous

    def _encode_frame(self, pixels: Frames) -> None:
        import av

        frame = av.VideoFrame.from_ndarray(pixels, format=_RGB[pixels.dtype])
        if self._palette is not None:
            frame = self._palette.apply(frame)
        else:
            frame = frame.reformat(
                format=self._pix_fmt, dst_colorspace=self._colours.matrix, dst_color_range="MPEG"
            )
            # ProRes reads these from the frame, all other encoders from their own settings.
            frame.color_primaries, frame.color_trc = self._colours.primaries, self._colours.transfer
        frame.pts = self.frames
        frame.time_base = 1 / self._spec.fps
        self._mux(self._video.encode(frame))
        self.frames += 1

    def _encode_audio(self) -> None:
        """Encode the audio up to the end of the last frame, then silence if it is shorter."""
        if self._waveform is None or self._audio is None:
            return
        import av

        end = round(self.frames / self._spec.fps * SAMPLE_RATE)
        samples = np.zeros((2, end - self.samples), np.float32)
        found = self._waveform[:, self.samples : end]
        samples[:, : found.shape[1]] = found
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = self.samples
        frame.time_base = Fraction(1, SAMPLE_RATE)
        self._mux(self._audio.encode(frame))
        self.samples = end

    def _mux(self, packets: Any) -> None:
        self._container.mux(packets)


class _Colours(NamedTuple):
    """Colours of a video: FFmpeg's matrix for the conversion, and the numbers of ITU-T H.273."""

    matrix: str
    space: int
    primaries: int
    transfer: int


def _colours(transfer: str) -> _Colours:
    if transfer == "sdr":
        return _Colours("ITU709", _BT709, _BT709, _BT709)
    return _Colours("BT2020", _BT2020, _BT2020, TRANSFERS[transfer])


def _video_stream(container: OutputContainer, spec: VideoSpec, encoding: Encoding) -> Any:
    if encoding.encoder == "libsvtav1":
        os.environ.setdefault("SVT_LOG", "1")  # otherwise it writes its settings to stderr
    stream: Any = container.add_stream(encoding.encoder, rate=spec.fps)
    stream.width, stream.height = spec.size
    stream.pix_fmt = encoding.pix_fmt
    stream.time_base = 1 / spec.fps
    stream.options = dict(encoding.options)
    codec = stream.codec_context
    if encoding.tag is not None:
        codec.codec_tag = encoding.tag
    colours = _colours(encoding.transfer)
    codec.color_primaries, codec.color_trc = colours.primaries, colours.transfer
    codec.colorspace = colours.space
    codec.color_range = _LIMITED_RANGE
    return stream


def _audio_stream(container: Any, encoding: Encoding) -> Any:
    stream = container.add_stream(encoding.audio_encoder, rate=SAMPLE_RATE, layout="stereo")
    stream.bit_rate = 192_000
    stream.time_base = Fraction(1, SAMPLE_RATE)
    return stream


def resample_audio(waveform: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Resample a waveform (2, S) from ``rate`` Hz to (2, S') at 48 kHz, clipped to -1..1.

    NaN becomes silence. Raises :class:`MediaError` for another shape.
    """
    import av

    if waveform.ndim != 2 or waveform.shape[0] != 2 or rate <= 0:
        raise MediaError(f"audio is {waveform.shape} at {rate} Hz, expected (2, samples)")
    clean = np.nan_to_num(waveform.astype(np.float32), nan=0.0).clip(-1.0, 1.0)
    if rate == SAMPLE_RATE or not clean.shape[1]:
        return clean
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(clean), format="fltp", layout="stereo")
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SAMPLE_RATE)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([part.to_ndarray() for part in parts], axis=1)


@contextmanager
def temporary_output(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; a file there is deleted after the block.

    The block renames the file to keep it. Those that dead processes left in the folder are deleted
    first.
    """
    remove_abandoned([path.parent])
    part = part_path(path)
    try:
        yield part
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _check_writable(path: Path) -> None:
    """Write a small file: permission bits do not show a read-only file system or a full disk."""
    part = part_path(path)
    with convert_write_errors(MediaError, f"video {path.name}", path.parent, _LEAST_ROOM):
        try:
            part.write_bytes(bytes(_LEAST_ROOM))
        finally:
            part.unlink(missing_ok=True)
