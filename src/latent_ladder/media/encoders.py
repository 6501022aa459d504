"""What a file's name and a few settings mean to FFmpeg: containers, codecs, defaults, as tables.

A new codec or container is a new row. Nothing here opens a file; asking whether this build of
PyAV has an encoder is the only call into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latent_ladder.errors import MediaError

Options = Callable[[int | None, str], dict[str, str]]
"""(crf, preset) -> the encoder's options."""


@dataclass(frozen=True)
class Codec:
    """One video codec: FFmpeg's encoder, its pixel formats (the default first), what crf and
    preset are called there, and the presets it knows."""

    encoder: str
    pix_fmts: tuple[str, ...]
    crf: int | None
    preset: str
    presets: tuple[str, ...]
    options: Options
    tag: str | None = None


@dataclass(frozen=True)
class Container:
    """One kind of video file: FFmpeg's format, the codecs it may hold (the usual one first), its
    sound encoder, and options of the container."""

    format: str
    codecs: tuple[str, ...]
    sound: str | None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderSettings:
    """What a user may ask of the encoder; the defaults leave it to the file's name and codec."""

    codec: str = "auto"
    crf: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None


@dataclass(frozen=True)
class Encoding:
    """All that the encoder is told besides size and rate."""

    container: Container
    encoder: str
    pix_fmt: str
    options: Mapping[str, str]
    sound: str | None
    tag: str | None = None

    @property
    def bits(self) -> int:
        """Bits per channel that the file keeps."""
        return bits_of(self.pix_fmt)


def bits_of(pix_fmt: str) -> int:
    """Bits per channel of a pixel format: 8, unless its name says more."""
    return next((n for n in (10, 12, 16) if f"p{n}" in pix_fmt or f"{3 * n}" in pix_fmt), 8)


def _x264(crf: int | None, preset: str) -> dict[str, str]:
    return {"crf": str(crf), "preset": preset}


def _x265(crf: int | None, preset: str) -> dict[str, str]:
    # x265 writes its settings to stderr, whatever FFmpeg's log level is.
    return {"crf": str(crf), "preset": preset, "x265-params": "log-level=error"}


def _prores(_crf: int | None, preset: str) -> dict[str, str]:
    return {"profile": preset, "vendor": "apl0"}


_X26X = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
    "placebo",
)  # fmt: skip
_420, _422, _444 = (
    ("yuv420p", "yuv420p10le"),
    ("yuv422p", "yuv422p10le"),
    ("yuv444p", "yuv444p10le"),
)
CODECS: Mapping[str, Codec] = {
    "h264": Codec("libx264", (*_420, *_422, *_444), 19, "veryfast", _X26X, _x264),
    "h265": Codec(
        "libx265", (*reversed(_420), *_422, *_444), 21, "veryfast", _X26X, _x265, tag="hvc1"
    ),
    "av1": Codec(
        "libsvtav1", tuple(reversed(_420)), 30, "8", tuple(map(str, range(14))), _x264
    ),
    "prores": Codec(
        "prores_ks", ("yuv422p10le", "yuv444p10le"), None, "hq",
        ("proxy", "lt", "standard", "hq", "4444", "4444xq"), _prores,
    ),
    "gif": Codec("gif", ("pal8",), None, "", ("",), lambda _crf, _preset: {}),
    "webp": Codec(
        "libwebp_anim", ("yuv420p", "bgra"), None, "picture",
        ("default", "picture", "photo", "drawing", "icon", "text"),
        lambda _crf, preset: {"preset": preset, "quality": "88"},
    ),
}  # fmt: skip

# Tags beyond the standard ones survive only with use_metadata_tags. The movie timescale counts
# edit lists; the default of 1 ms would round the end of the sound, 1/240000 s is exact for 48 kHz
# and all usual frame rates.
_MOV_OPTIONS = {"movflags": "use_metadata_tags+faststart", "movie_timescale": "240000"}
CONTAINERS: Mapping[str, Container] = {
    ".mp4": Container("mp4", ("h264", "h265", "av1"), "aac", _MOV_OPTIONS),
    ".mov": Container("mov", ("h264", "h265", "prores"), "aac", _MOV_OPTIONS),
    ".mkv": Container("matroska", ("h264", "h265", "av1", "prores"), "aac"),
    ".webm": Container("webm", ("av1",), "libopus"),
    ".gif": Container("gif", ("gif",), None, {"loop": "0"}),
    ".webp": Container("webp", ("webp",), None, {"loop": "0"}),
}
SOUND_SUFFIX = ".wav"
STILLS: Mapping[str, tuple[str, str]] = {
    ".png": ("png", "rgb24"),
    ".tif": ("tiff", "rgb48le"),
    ".tiff": ("tiff", "rgb48le"),
    ".exr": ("exr", "gbrpf32le"),
}
"""Ending of single frames -> FFmpeg's encoder and the format given to it; EXR stores halves."""

_PCM = "pcm_s24le"
"""ProRes is for editing, and so is its sound."""


def choose_encoding(path: Path, settings: EncoderSettings) -> Encoding:
    """The encoding of a video at ``path``. Raises :class:`MediaError` for what does not go
    together, or what this build of FFmpeg lacks."""
    suffix = path.suffix.lower()
    container = CONTAINERS[suffix]
    crf, preset, pix_fmt = settings.crf, settings.preset, settings.pix_fmt
    name = container.codecs[0] if settings.codec == "auto" else settings.codec
    if name not in container.codecs:
        fits = next((s for s, c in CONTAINERS.items() if name in c.codecs), ".mkv")
        raise MediaError(
            f"a {suffix} file holds {' or '.join(container.codecs)}, not {name}",
            f"write to {path.with_suffix(fits).name}, or leave the codec to the file's name",
        )
    chosen = CODECS[name]
    if crf is not None and chosen.crf is None:
        raise MediaError(f"{name} has no crf, got crf={crf}", "leave output.crf out")
    for what, value, known in (
        ("preset", preset, chosen.presets), ("pixel format", pix_fmt, chosen.pix_fmts)
    ):  # fmt: skip
        if value is not None and value not in known:
            raise MediaError(f"{name} has no {what} {value!r}", f"use one of {', '.join(known)}")
    sound = _PCM if name == "prores" else container.sound
    encoding = Encoding(
        container,
        chosen.encoder,
        pix_fmt or chosen.pix_fmts[0],
        chosen.options(chosen.crf if crf is None else crf, preset or chosen.preset),
        sound,
        chosen.tag if container.format in ("mp4", "mov") else None,
    )
    for encoder in (encoding.encoder, *([sound] if sound else ())):
        require_encoder(encoder)
    return encoding


def require_encoder(name: str) -> None:
    """Raise :class:`MediaError` if this build of FFmpeg has no such encoder."""
    import av

    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise MediaError(
            f"the installed PyAV has no encoder {name}",
            "install the PyAV wheel from PyPI (pip install --force-reinstall av), or choose "
            "another codec",
        ) from error
