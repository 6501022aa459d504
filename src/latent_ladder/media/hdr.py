"""HDR pictures: log codes of the models, scene-linear light, and the signals of HDR video.

The video VAE knows values from 0 to 1 only. In an HDR run they are a logarithmic code of
scene-linear light: ACEScct on the primaries AP1 (LTX-2.5, S-2016-001 of the Academy) or ARRI LogC3
at EI 800 (the HDR IC-LoRA of LTX-2.3). Light is linear RGB with the primaries of BT.709; 1.0 is
diffuse white. Video files hold it as PQ or HLG on BT.2020 (ITU-R BT.2100): white at 203 nits, which
is 0.75 in HLG (ITU-R BT.2408), for a display of 1000 nits. EXR files hold the light itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from latent_ladder.errors import MediaError
from latent_ladder.media.colour import (
    BT2020_LUMINANCE,
    BT2020_TO_BT709,
    PEAK_NITS,
    WHITE_NITS,
    light_to_sdr,
)
from latent_ladder.media.image_files import MAX_PIXELS, ImageTooLargeError
from latent_ladder.media.open_media import open_media

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Light = NDArray[np.float32]
"""(..., 3) RGB."""
Space = Literal["srgb_linear", "acescg", "acescct"]
"""Colours of an EXR file: linear with BT.709 primaries, linear with AP1, or ACEScct codes."""

EXR_SUFFIX = ".exr"
HALF_MAX = 65504.0
"""The largest number of a half float."""
_BT709_TO_AP1 = np.array(
    [[0.6130974, 0.3395231, 0.0473795],
     [0.0701937, 0.9163539, 0.0134524],
     [0.0206156, 0.1095698, 0.8698146]]
)  # fmt: skip
"""Linear RGB, white point D65, to AP1 with white point D60 (Bradford adaptation)."""
_AP1_TO_BT709 = np.linalg.inv(_BT709_TO_AP1)
_BT709_TO_BT2020 = np.linalg.inv(np.array(BT2020_TO_BT709))


def acescct(light: NDArray[Any]) -> NDArray[np.float64]:
    """ACEScct code of linear light, without change of primaries; 0..1, brighter light is cut."""
    x = np.asarray(light, np.float64)
    log = (np.log2(np.maximum(x, 0.0078125)) + 9.72) / 17.52
    line = 10.5402377416545 * x + 0.0729055341958355
    return np.clip(np.where(x <= 0.0078125, line, log), 0, 1)


def from_acescct(code: NDArray[Any]) -> NDArray[np.float64]:
    """Linear light of ACEScct codes; the inverse of :func:`acescct`, never negative."""
    c = np.asarray(code, np.float64)
    line = (c - 0.0729055341958355) / 10.5402377416545
    return np.maximum(np.where(c <= 0.155251141552511, line, 2 ** (c * 17.52 - 9.72)), 0)


_A, _B, _C, _D, _E, _F, _CUT = 5.555556, 0.052272, 0.247190, 0.385537, 5.367655, 0.092809, 0.010591
"""Constants of LogC3 at EI 800."""


def logc3(light: NDArray[Any]) -> NDArray[np.float64]:
    """LogC3 code (EI 800) of linear light; 0..1, brighter light is cut."""
    x = np.asarray(light, np.float64)
    log = _C * np.log10(_A * np.maximum(x, _CUT) + _B) + _D
    return np.clip(np.where(x >= _CUT, log, _E * x + _F), 0, 1)


def from_logc3(code: NDArray[Any]) -> NDArray[np.float64]:
    """Linear light of LogC3 codes; the inverse of :func:`logc3`, never negative."""
    c = np.asarray(code, np.float64)
    log = (10 ** ((c - _D) / _C) - _B) / _A
    return np.maximum(np.where(c >= _E * _CUT + _F, log, (c - _F) / _E), 0)


def light_of_codes(codes: NDArray[Any], curve: str) -> Light:
    """Linear BT.709 light (..., 3) of the model's codes (..., 3); ``curve`` acescct or logc3."""
    if curve == "logc3":
        return from_logc3(codes).astype(np.float32)
    return (from_acescct(codes) @ _AP1_TO_BT709.T).astype(np.float32)


def codes_of_exr(pixels: Light, space: Space, curve: str) -> Light:
    """The model's codes (..., 3), 0..1, of the values of an EXR file with the colours ``space``."""
    if curve == "logc3":
        return logc3(_bt709_light(pixels, space)).astype(np.float32)
    if space == "acescct":
        return np.clip(pixels, 0, 1)
    matrix = np.eye(3) if space == "acescg" else _BT709_TO_AP1
    return acescct(np.maximum(pixels @ matrix.T, 0)).astype(np.float32)


def _bt709_light(pixels: Light, space: Space) -> NDArray[np.float64]:
    if space == "srgb_linear":
        return np.maximum(np.asarray(pixels, np.float64), 0)
    ap1 = from_acescct(pixels) if space == "acescct" else np.asarray(pixels, np.float64)
    return np.maximum(ap1 @ _AP1_TO_BT709.T, 0)


def signal_of_light(light: Light, transfer: str) -> NDArray[np.uint16]:
    """Signal (..., 3) of linear light in ``pq`` or ``hlg`` on BT.2020, 0..65535.

    HLG ends at 1000 nits: light above white is compressed to that. PQ holds up to 10,000 nits.
    """
    wide = np.maximum(np.asarray(light, np.float64) @ _BT709_TO_BT2020.T, 0)
    signal = _pq(wide * WHITE_NITS) if transfer == "pq" else _hlg(_soft_limit(wide))
    return np.round(np.clip(signal, 0, 1) * 65535).astype(np.uint16)


def _pq(nits: NDArray[np.float64]) -> NDArray[np.float64]:
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    y = np.minimum(nits / 10_000, 1) ** m1
    return np.asarray(((c1 + c2 * y) / (1 + c3 * y)) ** m2)


def _soft_limit(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Light up to the peak of the display: unchanged to white, then bent; the hue is preserved."""
    room = PEAK_NITS / WHITE_NITS - 1
    most = np.maximum(light.max(-1, keepdims=True), 1e-9)
    over = np.maximum(most - 1, 0)
    return np.asarray(light * np.where(most > 1, (1 + over / (1 + over / room)) / most, 1))


def _hlg(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """HLG signal of display light (1: white) on a display of 1000 nits, gamma 1.2."""
    shown = light * (WHITE_NITS / PEAK_NITS)
    luminance = np.maximum(shown @ BT2020_LUMINANCE.astype(np.float64), 1e-9)[..., None]
    scene = shown * luminance ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    bright = a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    return np.asarray(np.where(scene <= 1 / 12, np.sqrt(3 * scene), bright))


def sdr_of_light(light: Light) -> NDArray[np.uint8]:
    """8-bit BT.709 (..., 3) of linear light; highlights are compressed, white stays below 1."""
    return light_to_sdr(np.maximum(light, 0))


def load_exr(path: Path) -> Light:
    """Pixels (H, W, 3) of an EXR file, float32, transparency dropped. Raises MediaError.

    Files with half floats in ZIP compression were tried; FFmpeg reads others as well.
    """
    try:
        with open_media(path, "an EXR image", ("exr_pipe",)) as opened:
            size = opened.streams.video[0]
            if size.width * size.height > MAX_PIXELS:
                raise ImageTooLargeError(
                    f"{path.name} has {size.width}x{size.height} pixels, expected at most "
                    f"{MAX_PIXELS:,}",
                    "scale it down to the size of the clip first",
                )
            pixels = _read_planes(next(opened.decode(video=0)))
    except (IndexError, StopIteration, ValueError) as error:
        raise MediaError(
            f"{path.name} cannot be read as an EXR image", "export it with half floats, ZIP"
        ) from error
    if not np.isfinite(pixels).all():
        raise MediaError(f"{path.name} holds NaN or infinity", "repair it in the program it is of")
    return pixels


def _read_planes(frame: VideoFrame) -> Light:
    """RGB (H, W, 3) of a frame of floats; FFmpeg's own conversion would cut them at 1."""
    name = frame.format.name
    kind = np.dtype("<f2" if "f16" in name else "<f4")
    if not name.endswith(("f16le", "f32le")):
        raise ValueError(f"pixels are {name}")
    planes = []
    for plane in frame.planes[:3]:
        rows = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
        planes.append(rows[:, : frame.width * kind.itemsize].copy().view(kind))
    red, green, blue = (
        (planes * 3)[:3] if name.startswith("gray") else (planes[i] for i in (2, 0, 1))
    )
    return np.stack([red, green, blue], -1).astype(np.float32)


TRANSFERS: Mapping[str, int] = {"pq": 16, "hlg": 18}
"""Transfer characteristics of ITU-T H.273 by name."""
