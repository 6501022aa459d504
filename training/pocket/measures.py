"""Measures of detail, motion and audio, from pixels and samples alone.

Frames are uint8 (F, H, W, 3) if not stated otherwise.
"""

from __future__ import annotations

import math

import torch
import world
from torch import Tensor

EDGE_SHARE = 0.01  # share of the pixels that counts as edges
BANDS = {"low": (1 / 64, 1 / 16), "middle": (1 / 16, 1 / 6), "high": (1 / 6, 1 / 2)}
"""Spatial frequencies in cycles per pixel."""


def luma(frames: Tensor) -> Tensor:
    """Luma (F, H, W) in 0..1, with Rec. 709 weights."""
    return frames.float() @ torch.tensor([0.2126, 0.7152, 0.0722]) / 255


def psnr(a: Tensor, b: Tensor) -> float:
    """PSNR in dB of two 8-bit tensors."""
    error = (a.float() - b.float()).square().mean()
    return float(10 * torch.log10(255.0**2 / error))


def band_powers(frames: Tensor) -> dict[str, float]:
    """Mean spectral power of the luma in each of `BANDS`, in dB, under a Hann window."""
    return _bands(luma(frames))


def error_band_powers(frames: Tensor, true: Tensor) -> dict[str, float]:
    """Mean spectral power of the difference from the true frames: missing or wrong detail."""
    return {f"{name} error": v for name, v in _bands(luma(frames) - luma(true)).items()}


def _bands(y: Tensor) -> dict[str, float]:
    height, width = y.shape[1:]
    window = torch.hann_window(height)[:, None] * torch.hann_window(width)
    y = (y - y.mean((1, 2), keepdim=True)) * window
    power = torch.fft.rfft2(y).abs().square().mean(0)
    radius = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    out = {}
    for name, (low, high) in BANDS.items():
        inside = (radius >= low) & (radius < high)
        out[name] = float(10 * torch.log10(power[inside].mean() + 1e-12))
    return out


def gradients(frames: Tensor) -> Tensor:
    """Magnitude (F, H - 1, W - 1) of the luma's gradient per pixel."""
    y = luma(frames)
    return torch.hypot(y[:, 1:, :-1] - y[:, :-1, :-1], y[:, :-1, 1:] - y[:, :-1, :-1])


def edge_sharpness(frames: Tensor) -> float:
    """Mean gradient over the steepest percent of the pixels of every frame."""
    steep = gradients(frames).flatten(1)
    return float(steep.topk(max(1, round(EDGE_SHARE * steep.shape[1])), dim=1).values.mean())


def flat_region_error(frames: Tensor, reference: Tensor) -> float:
    """RMS difference (0..1) from a reference away from its edges: stains and noise."""
    flat = torch.nn.functional.max_pool2d(gradients(reference)[:, None], 9, 1, 4)[:, 0] < 0.004
    error = (frames.float() - reference.float()).square().mean(-1)[:, :-1, :-1] / 255**2
    return float(error[flat].mean().sqrt())


def halo(frames: Tensor, reference: Tensor) -> float:
    """RMS difference (0..1) from a reference near its strong edges: ringing.

    Measured in a ring of 3 to 10 pixels around those edges, where the reference is smooth.
    """
    pool = torch.nn.functional.max_pool2d
    steep = (gradients(reference) > 0.06)[:, None].float()
    ring = (pool(steep, 21, 1, 10) - pool(steep, 7, 1, 3))[:, 0] > 0
    calm = pool(gradients(reference)[:, None], 5, 1, 2)[:, 0] < 0.02
    error = (frames.float() - reference.float()).square().mean(-1)[:, :-1, :-1] / 255**2
    return float(error[ring & calm].mean().sqrt()) if bool((ring & calm).any()) else 0.0


def detail(frames: Tensor) -> dict[str, float]:
    """Band powers and edge sharpness."""
    return {**band_powers(frames), "edges": edge_sharpness(frames)}


def averages(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every entry over the rows, rounded to four digits."""
    names = rows[0]
    return {n: round(sum(r[n] for r in rows) / len(rows), 4) for n in names}


def path_difference(a: Tensor, b: Tensor) -> float:
    """Largest distance between two tracks (F, 3) after removing their means, in half sides.

    0 means the same motion.
    """
    centred_a, centred_b = a - a.mean(0), b - b.mean(0)
    return float((centred_a - centred_b).norm(dim=1).max())


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson correlation."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp(min=1e-9))


def motion_correlations(wave: Tensor, pitch: Tensor, scene: world.Scene) -> dict[str, float]:
    """Correlation of a waveform (2, S) at 48 kHz with the scene's motion, and its level.

    `pitch` is in Hz per 10 ms. By motion, the correlation is that of pitch with height, of panning
    with x, or of loudness with size.
    """
    inside = slice(6, -6)
    t = torch.arange(len(pitch)) * 0.01
    x, y, radius = world.trajectory(scene, t)
    hop = 480
    energy = wave[:, : wave.shape[1] // hop * hop].unflatten(1, (-1, hop)).square().mean(-1)
    energy = energy[:, : len(pitch)]
    out = {"level_db": 10 * math.log10(float(energy.sum(0).mean()) + 1e-12)}
    short = slice(inside.start, energy.shape[1] + inside.stop)
    if scene.motion in ("up", "down", "bounce"):
        out["pitch_height"] = correlation(pitch.log()[inside], y[inside])
    elif scene.motion in ("left", "right"):
        side = (energy[1] - energy[0]) / energy.sum(0).clamp(min=1e-9)
        out["pan_x"] = correlation(side[short], x[: energy.shape[1]][short])
    elif scene.motion == "grow":
        loud = energy.sum(0).clamp(min=1e-9).log()
        out["loudness_size"] = correlation(loud[short], radius[: energy.shape[1]][short])
    if scene.motion not in ("up", "down", "bounce"):
        out["pitch_still_semitones"] = float(pitch.log2()[inside].std() * 12)
    return out
