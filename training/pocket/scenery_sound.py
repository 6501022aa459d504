"""Sound of the second world, in the form that its vocoder can make: weighted wavelets.

The first object hums: pitch follows its height, stereo position its place in the picture, loudness
its size, timbre its shape; a glowing one rings like a chime. Impacts are knocks, on water drops.
Around it there is wind (stronger with mist and clouds), the swell of water, or, on a meadow at
night, crickets. As in `sound.py` tones walk along the overtones of 100 Hz; wind is two fixed
noises whose strength flickers. The mel front end is that of `sound.py`.
"""

from __future__ import annotations

import functools
import math
import random

import torch
from scenery import CEILING, REST, Scene, camera_path, impacts, trajectory
from sound import (
    FRAME_S,
    HOP,
    LATENT_RATE,
    MEL_RATE,
    MELS,
    N_FFT,
    SAMPLE_RATE,
    latent_frames,
    log_mel,
    mel_basis,
    mel_frames,
)
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "CHANNELS", "FRAME_S", "HOP", "LATENT_RATE", "LOUDNESS", "MELS", "MEL_RATE", "N_FFT",
    "SAMPLE_RATE", "bank", "controls", "latent_frames", "log_mel", "mel_basis", "mel_frames",
    "render_controls", "scene_mels", "waveform",
]  # fmt: skip

FUNDAMENTALS = tuple(range(5, 19))  # in units of 100 Hz
TIMBRES: dict[str, dict[int, float]] = {
    "ball": {1: 1.0},
    "cube": {1: 1.0, 3: 0.4},
    "cone": {1: 1.0, 2: 0.4},
    "star": {1: 1.0, 2: 0.5, 3: 0.35},
    "ring": {1: 0.8, 2: 0.7},
}
CRICKET = 43
PARTIALS = tuple(sorted({*FUNDAMENTALS, *(2 * n for n in FUNDAMENTALS),
                         *(3 * n for n in FUNDAMENTALS if n < 14), CRICKET}))  # fmt: skip
WINDS = ((250.0, 900.0), (900.0, 3200.0))  # Hz
KNOCKS, DROPS = 5, 8  # slices of 10 ms
ROWS = len(PARTIALS) + len(WINDS) + KNOCKS + DROPS
CHANNELS = 2 * ROWS
LOUDNESS, REFERENCE_RADIUS = 0.3, 0.33
PAN_GAIN = 1.3
CHIME_S, CHIME_DECAY_S = 0.8, 0.35
WIND_LOUDNESS = {"clear": 0.25, "clouds": 0.5, "mist": 0.8, "aurora": 0.35}


def partial_of_height(y: Tensor) -> Tensor:
    """Pitch in units of 100 Hz at height y: from 6 on the ground to 16 at the ceiling."""
    share = (y - REST) / (CEILING - REST)
    return (6.0 * (16 / 6) ** share).clamp(FUNDAMENTALS[0], FUNDAMENTALS[-1])


def _fundamentals(pitch: Tensor) -> Tensor:
    """Amplitudes (..., 14) of the fundamentals: one, or two while the pitch passes between them."""
    away = torch.tensor(FUNDAMENTALS) - pitch[..., None]
    return torch.softmax(-(away**2) / 0.09, dim=-1).sqrt()


@functools.cache
def _timbre(shape: str) -> Tensor:
    """(14, partials) map from fundamentals to the partials of one shape's tone."""
    out = torch.zeros(len(FUNDAMENTALS), len(PARTIALS))
    for row, n in enumerate(FUNDAMENTALS):
        for multiple, amplitude in TIMBRES[shape].items():
            if n * multiple in PARTIALS:
                out[row, PARTIALS.index(n * multiple)] = amplitude
    return out / out.square().sum(-1, keepdim=True).sqrt()


def _pan(x: Tensor) -> Tensor:
    """(2, ...) gains of left and right for a place in the picture."""
    angle = math.pi / 4 * (1 + (PAN_GAIN * x).clamp(-1, 1))
    return torch.stack([angle.cos(), angle.sin()])


def _tone(scene: Scene, t: Tensor) -> Tensor:
    """(partials, len(t)) amplitudes of the hum, or of the chime of a glowing object."""
    _, y, radius = trajectory(scene.first, t)
    loudness = LOUDNESS * (radius / REFERENCE_RADIUS).clamp(0.4, 1.6) ** 2
    if scene.first.finish == "glowing":
        loudness = 1.25 * loudness * torch.exp(-(t % CHIME_S) / CHIME_DECAY_S)
    if scene.first.texture != "plain":
        loudness = loudness * (1 - 0.4 * torch.sin(math.pi * 6.25 * t) ** 2)
    return loudness * (_fundamentals(partial_of_height(y)) @ _timbre(scene.first.shape)).T


def _air(scene: Scene, t: Tensor) -> Tensor:
    """(2, winds, len(t)) strengths of the wind, left and right apart."""
    rng = random.Random(f"{scene.seed}/wind")
    phases = [6.28 * rng.random() for _ in range(12)]
    flicker = torch.tensor([[rng.gauss(0, 1) for _ in range(len(t))] for _ in range(2)])
    level = 0.05 * WIND_LOUDNESS[scene.weather]
    out = []
    for side in range(2):
        gust = 1 + 0.5 * torch.sin(1.3 * t + phases[side]) + 0.3 * torch.sin(2.9 * t + phases[2])
        swell = 0.5 + 0.5 * torch.sin(2.2 * t + phases[3] + 0.6 * side)
        strength = level * gust * (1 + 0.35 * flicker[side]).clamp(min=0.1)
        water = 0.06 * swell**2 if scene.ground == "water" else torch.zeros_like(t)
        out.append(torch.stack([strength + 0.4 * water, 0.5 * strength + water]))
    return torch.stack(out)


def controls(scene: Scene, count: int) -> Tensor:
    """Weights (CHANNELS, count) of the wavelets; column m belongs to the time (m + 1/2) * 10 ms.

    Rows of the left side, then of the right: partials, winds, knock slices, drop slices.
    """
    t = (torch.arange(count) + 0.5) * FRAME_S
    x, _, _ = trajectory(scene.first, t)
    pan = _pan(x - camera_path(scene, t))
    tones = pan[:, None] * _tone(scene, t)
    if scene.ground == "grass" and scene.time == "night":
        chirp = (torch.sin(math.pi * 22 * t) ** 2) * ((t % 0.7) < 0.32)
        tones[:, PARTIALS.index(CRICKET)] += 0.03 * chirp
    hits = torch.zeros(2, KNOCKS + DROPS, count)
    first_row, slices = (KNOCKS, DROPS) if scene.ground == "water" else (0, KNOCKS)
    for time in impacts(scene, count * FRAME_S):
        first = round(time / FRAME_S - 0.5)
        for k in range(slices):
            if 0 <= first + k < count:
                hits[:, first_row + k, first + k] = 0.35
    return torch.cat([tones, _air(scene, t), hits * pan[:, None] * 1.4142], dim=1).flatten(0, 1)


def _knock(t: Tensor) -> Tensor:
    """The sound of an impact at times t >= 0: a low thud and a short bright crack."""
    parts = ((130.0, 0.022, 0.9), (245.0, 0.014, 0.6), (2350.0, 0.004, 0.35), (3150.0, 0.003, 0.3))
    tones = [a * torch.exp(-t / decay) * torch.sin(2 * math.pi * f * t) for f, decay, a in parts]
    return torch.where(t >= 0, torch.stack(tones).sum(0), 0.0)


def _drop(t: Tensor) -> Tensor:
    """A drop: a tone that rises from 600 to 1500 Hz within 80 ms."""
    phase = 2 * math.pi * (600 * t + 0.5 * 11000 * t**2)
    tone = torch.exp(-t / 0.025) * (1 - torch.exp(-t / 0.002)) * torch.sin(phase)
    return torch.where(t >= 0, 1.3 * tone, 0.0)


@functools.cache
def bank(sample_rate: int) -> Tensor:
    """Wavelets (CHANNELS, 2, 2 * hop): triangular windows of two hops over fixed waves."""
    hop = round(sample_rate * FRAME_S)
    at = (torch.arange(2 * hop, dtype=torch.float64) + 0.5 - hop) / sample_rate + FRAME_S / 2
    window = 1 - (at - FRAME_S / 2).abs() / FRAME_S
    t = at - 0.5 / sample_rate
    n = torch.tensor(PARTIALS, dtype=torch.float64)[:, None]
    waves = [torch.sin(2 * math.pi * 100 * n * t + math.pi * n**2 / len(PARTIALS))]
    rng = random.Random("wind")
    for low, high in WINDS:
        pitches = [low + (high - low) * rng.random() for _ in range(40)]
        tones = [torch.sin(2 * math.pi * f * t + 6.28 * rng.random()) for f in pitches]
        waves.append((torch.stack(tones).sum(0) / len(pitches) ** 0.5)[None])
    start = -FRAME_S / 2  # the first slice fades in from half a frame before
    for sound, count in ((_knock, KNOCKS), (_drop, DROPS)):
        waves.append(torch.stack([sound(t - start + k * FRAME_S) for k in range(count)]))
    side = torch.cat(waves)
    out = torch.zeros(CHANNELS, 2, 2 * hop, dtype=torch.float64)
    out[:ROWS, 0], out[ROWS:, 1] = side, side
    return (out * window).float()


def render_controls(weights: Tensor, sample_rate: int) -> Tensor:
    """Waveform (B, 2, M * hop) of controls (B, CHANNELS, M)."""
    hop = round(sample_rate * FRAME_S)
    return F.conv_transpose1d(weights, bank(sample_rate), stride=hop, padding=hop // 2)


def waveform(scene: Scene, frames: int, fps: float, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """The scene's sound, (2, round(frames / fps * sample_rate)) in [-1, 1]; `sample_rate` must be
    a multiple of 200 Hz."""
    samples = round(frames / fps * sample_rate)
    weights = controls(scene, math.ceil(samples / (sample_rate * FRAME_S)))
    return render_controls(weights[None], sample_rate)[0, :, :samples].clamp(-1, 1)


def scene_mels(scenes: list[Scene], latents: int) -> tuple[Tensor, Tensor]:
    """(mel (B, 2, 4T-3, 64), controls (B, CHANNELS, 4T-3)) of scenes for T latents."""
    count = mel_frames(latents)
    weights = torch.stack([controls(scene, count + N_FFT // HOP) for scene in scenes])
    mel = log_mel(render_controls(weights, MEL_RATE))
    return mel[:, :, :count], weights[:, :, :count]
