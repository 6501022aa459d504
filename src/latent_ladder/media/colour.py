"""Conversion of HDR and wide-gamut video to 8-bit BT.709, as SDR displays show it.

PQ (SMPTE ST 2084) and HLG (ARIB STD-B67) are decoded to display light as ITU-R BT.2100 defines it,
HLG for a display of 1000 nits. Reference white is 203 nits (ITU-R BT.2408); brighter light is
compressed. BT.2020 and P3 primaries become those of BT.709.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Numbers of ITU-T H.273, which FFmpeg uses.
_PQ, _HLG = 16, 18
_BT2020, _P3_DCI, _P3_D65 = 9, 11, 12
_GAMMA_TRANSFERS = (0, 1, 2, 4, 5, 6, 7, 13, 14, 15)
"""Transfers that displays show alike: BT.709, BT.601, sRGB, BT.2020 in SDR, unspecified."""
WHITE_NITS, PEAK_NITS, DISPLAY_GAMMA, KNEE = 203.0, 1000.0, 2.4, 0.75

BT2020_TO_BT709 = (
    (1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349),
    (-0.018151, -0.100579, 1.118730),
)  # fmt: skip
_TO_BT709 = {
    _BT2020: BT2020_TO_BT709,
    _P3_D65: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0),
              (-0.019638, -0.078636, 1.098274)),
}  # fmt: skip
"""Linear RGB to linear BT.709 RGB, both with white point D65."""
BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)
"""Luminance weights of BT.2020."""


def needs_conversion(frame: VideoFrame) -> bool:
    """True for PQ, HLG, and the primaries of BT.2020 and P3."""
    return _transfer(frame) in (_PQ, _HLG) or _primaries(frame) in _TO_BT709


def describe_colour(frame: VideoFrame) -> str:
    """A note on the conversion of a video's colours; empty for ordinary video."""
    transfer, primaries = _transfer(frame), _primaries(frame)
    gamut = {_BT2020: "BT.2020", _P3_D65: "P3"}.get(primaries)
    if transfer in (_PQ, _HLG):
        kind = "PQ" if transfer == _PQ else "HLG"
        return f"is HDR ({kind}); it is converted to SDR, highlights are compressed"
    if transfer not in _GAMMA_TRANSFERS:
        return f"has transfer characteristics {transfer} (H.273); they are read as BT.709"
    return f"has {gamut} colours; they are converted to BT.709" if gamut else ""


def convert_to_bt709(rgb: NDArray[np.uint16], frame: VideoFrame) -> NDArray[np.uint8]:
    """RGB (H, W, 3) of a frame, 0..65535, as 8-bit BT.709 for SDR."""
    transfer = _transfer(frame)
    light = _light_table(transfer)[rgb]
    if transfer == _HLG:  # the opto-optical transfer function, gamma 1.2 at 1000 nits
        scene_luminance = np.maximum(light @ BT2020_LUMINANCE, 1e-6)[..., None]
        light = light * scene_luminance ** np.float32(0.2) * np.float32(PEAK_NITS / WHITE_NITS)
    matrix = _TO_BT709.get(_primaries(frame))
    if matrix is not None:
        light = np.maximum(light @ np.array(matrix, np.float32).T, 0)
    if transfer in (_PQ, _HLG):
        return light_to_sdr(light)
    return _displayed(light)


def light_to_sdr(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Linear BT.709 light (..., 3), 1 = reference white, as 8-bit BT.709 for SDR."""
    return _displayed(_compress_highlights(light))


def _displayed(light: NDArray[np.float32]) -> NDArray[np.uint8]:
    shown = np.clip(light, 0, 1) ** np.float32(1 / DISPLAY_GAMMA)
    return np.asarray(np.round(shown * 255), np.uint8)


def _transfer(frame: VideoFrame) -> int:
    return int(frame.color_trc)


def _primaries(frame: VideoFrame) -> int:
    found = int(frame.color_primaries)
    return _P3_D65 if found == _P3_DCI else found


@cache
def _light_table(transfer: int) -> NDArray[np.float32]:
    """Light of each 16-bit code: 1 = reference white; for HLG, scene light 0..1."""
    code = np.arange(65536, dtype=np.float64) / 65535
    if transfer == _PQ:
        m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
        root = code ** (1 / m2)
        nits = 10_000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)
        light = nits / WHITE_NITS
    elif transfer == _HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12)
    else:
        light = code**DISPLAY_GAMMA
    return light.astype(np.float32)


def _compress_highlights(light: NDArray[np.float32]) -> NDArray[np.float32]:
    """Light 0..peak to 0..1, unchanged below :data:`KNEE`; the hue is preserved.

    Above the knee k: k + d / (1 + d (1/(1-k) - 1/(peak-k))), d = light - k.
    """
    peak = PEAK_NITS / WHITE_NITS
    most = np.clip(light.max(-1, keepdims=True), 1e-6, None)
    excess = np.minimum(np.maximum(most - KNEE, 0), peak - KNEE)
    bent = KNEE + excess / (1 + excess * (1 / (1 - KNEE) - 1 / (peak - KNEE)))
    scaled: NDArray[np.float32] = light * np.where(most > KNEE, bent / most, 1).astype(np.float32)
    return scaled
