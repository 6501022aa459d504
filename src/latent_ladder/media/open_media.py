"""Opening of video and audio files: accepted containers, readable errors, the first real picture.

Only containers in :data:`CONTAINER_FORMATS` are opened, and only the named file is read. FFmpeg
would open the other files and addresses that playlists and manifests (``ffconcat``, ``m3u8``,
``mpd``, ``sdp``) name.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from latent_ladder.errors import MediaError
from latent_ladder.media import image_files
from latent_ladder.storage.read_file import read_error

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.video.stream import VideoStream

SAMPLE_RATE = 48_000
"""Sample rate in Hz of all sound that is read, measured and written."""
CONTAINER_FORMATS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "nut", "mxf"),
    *("gif", "apng", "webp", "ivf", "m4v", "h264", "hevc", "obu", "mpegvideo", "yuv4mpegpipe"),
    *("dv", "wav", "w64", "flac", "ogg", "mp3", "aac", "aiff", "au", "caf", "ac3", "eac3"),
    *("dts", "amr", "tak", "wv", "tta", "ape", "mpc", "mpc8", "rm", "voc", "webp_pipe", "wtv"),
)
"""FFmpeg's names of the containers that are opened."""


@contextmanager
def open_media(
    path: Path, what: str = "a video", formats: Sequence[str] = CONTAINER_FORMATS
) -> Iterator[InputContainer]:
    """An open container; FFmpeg's errors inside the block become a :class:`MediaError`.

    ``formats`` are FFmpeg's names of the containers that may be opened; ``what`` names the expected
    kind of file in the message. Tags that are not UTF-8 are read with replacement characters.
    """
    import av

    _check_file(path, what)
    options = {"format_whitelist": ",".join(formats), "protocol_whitelist": "file"}
    try:
        # "file:" makes a name such as "concat:a" a name, not an instruction
        with av.open(
            f"file:{path}",
            format=formats[0] if len(formats) == 1 else None,
            metadata_errors="replace",
            container_options=options,
        ) as container:
            yield container
    except FileNotFoundError as error:
        raise MediaError(f"file {path} does not exist", hint="check the path") from error
    except av.ArgumentError as error:
        raise MediaError(
            f"{path.name} cannot be read as {what}: its format is not among those that are read",
            hint="convert it to MP4, MKV or WAV; playlists and lists of files are not followed",
        ) from error
    except (av.FFmpegError, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MediaError(
            f"{path.name} cannot be read as {what}: {reason}",
            hint="use another file: this is not a media file, or it is truncated or damaged",
        ) from error


def _check_file(path: Path, what: str) -> None:
    """Raise :class:`MediaError` unless ``path`` is a file, or missing: FFmpeg says that."""
    try:
        is_file = stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise read_error(path, error, MediaError) from error
    if not is_file:
        raise MediaError(
            f"{path} cannot be read as {what}: it is not a file", "give the path of a file"
        )


def video_stream(container: InputContainer, path: Path) -> VideoStream:
    """The first video track that is not the cover picture of a sound file.

    Raises :class:`MediaError` if there is none, or if its frames are larger than
    :data:`~latent_ladder.media.image_files.MAX_PIXELS`.
    """
    found = find_video_stream(container)
    if found is None:
        raise MediaError(f"{path.name} has no video track", hint="use a video file")
    if found.codec_context is None:
        raise MediaError(
            f"the video track of {path.name} is in a format that cannot be decoded",
            hint="convert it to H.264 first",
        )
    if found.width * found.height > image_files.MAX_PIXELS:
        raise MediaError(
            f"{path.name} has frames of {found.width}x{found.height} pixels, expected at most "
            f"{image_files.MAX_PIXELS:,} pixels",
            hint="scale it down first",
        )
    return found


def find_video_stream(container: InputContainer) -> VideoStream | None:
    """The first video track that is not a cover picture; ``None`` if there is none."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            return stream
    return None


def find_audio_stream(container: InputContainer) -> AudioStream | None:
    """The first sound track that can be decoded; ``None`` if there is none."""
    streams: list[AudioStream] = list(container.streams.audio)
    # the type of PyAV does not know that a track in an unknown format has no codec
    return next((s for s in streams if getattr(s, "codec_context", None) is not None), None)
