"""Tables of containers, codecs and their defaults; the encoder settings for an output file.

A new codec or container is a new row. Nothing here opens a file. The only calls into PyAV check
whether its FFmpeg has an encoder and can open it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from latent_ladder.errors import MediaError

Options = Callable[[int | None, str], dict[str, str]]
"""Function from (crf, preset) to the options of FFmpeg's encoder."""


@dataclass(frozen=True)
class Codec:
    """One video codec.

    ``encoder`` is FFmpeg's name, ``pix_fmts`` its pixel formats with the default first. ``crf`` and
    ``preset`` are defaults (``crf=None``: the codec has none), ``presets`` the valid presets.
    ``options`` converts crf and preset to encoder options. ``tag`` is the codec tag in MP4 and MOV.
    """

    encoder: str
    pix_fmts: tuple[str, ...]
    crf: int | None
    preset: str
    presets: tuple[str, ...]
    options: Options
    tag: str | None = None


@dataclass(frozen=True)
class Container:
    """One container format: FFmpeg's name, its codecs (the default first), its audio encoder.

    ``audio_encoder`` is ``None`` for a format without audio; ``options`` are container options of
    FFmpeg.
    """

    format: str
    codecs: tuple[str, ...]
    audio_encoder: str | None
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EncoderSettings:
    """Encoder settings of a request. ``auto`` and ``None`` are the defaults of file and codec.

    ``transfer`` is ``sdr``, or ``hlg`` or ``pq``, which need 10 bits and a codec that has them.
    """

    codec: str = "auto"
    crf: int | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    transfer: str = "sdr"


@dataclass(frozen=True)
class Encoding:
    """All settings of the encoder except size and frame rate; made by :func:`choose_encoding`."""

    container: Container
    encoder: str
    pix_fmt: str
    options: Mapping[str, str]
    audio_encoder: str | None
    tag: str | None = None
    transfer: str = "sdr"

    @property
    def bits(self) -> int:
        """Bits per channel of the encoded video."""
        return bits_per_channel(self.pix_fmt)


def bits_per_channel(pix_fmt: str) -> int:
    """Bits per channel of one of FFmpeg's pixel formats, from its name: 8, 10, 12 or 16."""
    return next((n for n in (10, 12, 16) if f"p{n}" in pix_fmt or f"{3 * n}" in pix_fmt), 8)


def _x264(crf: int | None, preset: str) -> dict[str, str]:
    return {"crf": str(crf), "preset": preset}


def _x265(crf: int | None, preset: str) -> dict[str, str]:
    # x265 ignores FFmpeg's log level and writes its settings to stderr.
    return {"crf": str(crf), "preset": preset, "x265-params": "log-level=error"}


def _nvenc(crf: int | None, preset: str) -> dict[str, str]:
    # A cq of 0 means "no aim" to NVENC, where crf 0 means lossless.
    if crf == 0:
        return {"preset": preset, "tune": "lossless"}
    return {"preset": preset, "tune": "hq", "rc": "vbr", "cq": str(crf), "b": "0"}


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
NVENC_SUFFIX = "_nvenc"
"""Ending of codecs that the video encoder of an NVIDIA GPU writes."""
_NVENC_FORMATS = ("yuv420p", "yuv444p")
_NVENC_PRESETS = tuple(f"p{n}" for n in range(1, 8))
CODECS: Mapping[str, Codec] = {
    "h264": Codec("libx264", (*_420, *_422, *_444), 19, "veryfast", _X26X, _x264),
    "h265": Codec(
        "libx265", (*reversed(_420), *_422, *_444), 21, "veryfast", _X26X, _x265, tag="hvc1"
    ),
    "h264_nvenc": Codec("h264_nvenc", _NVENC_FORMATS, 19, "p4", _NVENC_PRESETS, _nvenc),
    "h265_nvenc": Codec(
        "hevc_nvenc", _NVENC_FORMATS, 21, "p4", _NVENC_PRESETS, _nvenc, tag="hvc1"
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

# Tags beyond the standard ones are written only with use_metadata_tags. The movie timescale is the
# unit of edit lists: its default of 1 ms would round the end of the audio, 1/240000 s is exact for
# 48 kHz and all usual frame rates.
_MOV_OPTIONS = {"movflags": "use_metadata_tags+faststart", "movie_timescale": "240000"}
CONTAINERS: Mapping[str, Container] = {
    ".mp4": Container("mp4", ("h264", "h265", "av1"), "aac", _MOV_OPTIONS),
    ".mov": Container("mov", ("h264", "h265", "prores"), "aac", _MOV_OPTIONS),
    ".mkv": Container("matroska", ("h264", "h265", "av1", "prores"), "aac"),
    ".webm": Container("webm", ("av1",), "libopus"),
    ".gif": Container("gif", ("gif",), None, {"loop": "0"}),
    ".webp": Container("webp", ("webp",), None, {"loop": "0"}),
}
AUDIO_SUFFIX = ".wav"
IMAGE_ENCODERS: Mapping[str, tuple[str, str]] = {
    ".png": ("png", "rgb24"),
    ".tif": ("tiff", "rgb48le"),
    ".tiff": ("tiff", "rgb48le"),
    ".exr": ("exr", "gbrpf32le"),
}
"""Suffix of an image sequence -> FFmpeg's encoder and its input format; EXR stores half floats."""

_PCM = "pcm_s24le"
"""Audio encoder for ProRes: uncompressed, as files for editing have it."""


def choose_encoding(path: Path, settings: EncoderSettings) -> Encoding:
    """The encoding of a video at ``path``, from its suffix and the settings.

    Raises :class:`MediaError` for a codec that the container cannot hold, for a crf, preset or
    pixel format that the codec does not have, and for an encoder that FFmpeg was built without.
    """
    suffix = path.suffix.lower()
    container = CONTAINERS[suffix]
    crf, preset, pix_fmt = settings.crf, settings.preset, settings.pix_fmt
    name = container.codecs[0] if settings.codec == "auto" else settings.codec
    if settings.transfer != "sdr":
        name, pix_fmt = _hdr_codec(path, container, settings)
    if name.removesuffix(NVENC_SUFFIX) not in container.codecs:
        plain = name.removesuffix(NVENC_SUFFIX)
        fits = next((s for s, c in CONTAINERS.items() if plain in c.codecs), ".mkv")
        raise MediaError(
            f"a {suffix} file can contain {' or '.join(container.codecs)}, not {name}",
            f"write to {path.with_suffix(fits).name}, or leave --codec out",
        )
    chosen = CODECS[name]
    if crf is not None and chosen.crf is None:
        raise MediaError(f"{name} has no crf, got crf={crf}", "leave --crf (output.crf) out")
    for what, value, known in (
        ("preset", preset, chosen.presets), ("pixel format", pix_fmt, chosen.pix_fmts)
    ):  # fmt: skip
        if value is not None and value not in known:
            raise MediaError(f"{name} has no {what} {value!r}", f"use one of {', '.join(known)}")
    audio_encoder = _PCM if name == "prores" else container.audio_encoder
    encoding = Encoding(
        container,
        chosen.encoder,
        pix_fmt or chosen.pix_fmts[0],
        chosen.options(chosen.crf if crf is None else crf, preset or chosen.preset),
        audio_encoder,
        chosen.tag if container.format in ("mp4", "mov") else None,
        settings.transfer,
    )
    for encoder in (encoding.encoder, *([audio_encoder] if audio_encoder else ())):
        require_encoder(encoder)
    if name.endswith(NVENC_SUFFIX) and (reason := reason_against_nvenc(chosen.encoder)) is not None:
        raise MediaError(
            f"{name} needs the video encoder of an NVIDIA GPU: {reason}",
            f"use --codec {name.removesuffix(NVENC_SUFFIX)}, which encodes on the CPU",
        )
    return encoding


HDR_CODECS = ("h265", "av1", "prores")
"""Codecs with 10 bits that mark HDR, the default first."""


def _hdr_codec(
    path: Path, container: Container, settings: EncoderSettings
) -> tuple[str, str | None]:
    """Codec and pixel format of an HDR video. Raises :class:`MediaError` if there are none."""
    usable = [name for name in HDR_CODECS if name in container.codecs]
    if not usable:
        raise MediaError(
            f"a {path.suffix} file cannot hold HDR", f"write to {path.with_suffix('.mp4').name}"
        )
    name = usable[0] if settings.codec == "auto" else settings.codec
    if name.removesuffix(NVENC_SUFFIX) in container.codecs and name not in usable:
        raise MediaError(f"{name} is written with 8 bits, HDR needs 10", f"use {usable[0]}")
    deep = [fmt for fmt in CODECS[name].pix_fmts if bits_per_channel(fmt) > 8]
    if settings.pix_fmt is not None and bits_per_channel(settings.pix_fmt) == 8:
        raise MediaError(f"{settings.pix_fmt} has 8 bits, HDR needs 10", f"use {', '.join(deep)}")
    return name, settings.pix_fmt or deep[0]


@cache
def reason_against_nvenc(encoder: str) -> str | None:
    """Reason why FFmpeg cannot open an encoder of NVIDIA's here, ``None`` if it can.

    An encoder that FFmpeg was built with still needs the driver and a card that has it.
    """
    import av

    context: Any = av.CodecContext.create(encoder, "w")
    context.width = context.height = 256
    context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 24)
    try:
        context.open()
    except (av.FFmpegError, OSError) as error:
        return f"it cannot be opened ({error.strerror or type(error).__name__})"
    return None


def require_encoder(name: str) -> None:
    """Raise :class:`MediaError` if this build of FFmpeg has no such encoder."""
    import av

    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise MediaError(
            f"the installed PyAV has no encoder {name}",
            "install the PyAV wheel from PyPI (pip install --force-reinstall av), or choose "
            "another --codec",
        ) from error
