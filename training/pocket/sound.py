"""Synthesise the audio of the pocket world; log-mel analysis as in LTX-2.

Each object makes a tone: its height sets the pitch, its x the panning, its size the loudness and
its shape the timbre; stripes add tremolo, and every impact is a knock. Pitches are multiples of
100 Hz, because a convolutional vocoder with 100 mel frames per second can only sustain a tone with
a whole number of periods per frame; any other pitch needs a phase that a mel spectrogram does not
contain. Audio is therefore a sum of fixed wavelets (`bank`) with slowly varying weights
(`controls`), one per ten milliseconds. This module does not depend on any network.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from world import Scene, impacts, trajectory

SAMPLE_RATE = 48000
MEL_RATE = 16000
HOP = 160
N_FFT = 1024
MELS = 64
MEL_FLOOR = 1e-5
FRAME_S = HOP / MEL_RATE
LATENT_RATE = 25.0

FUNDAMENTALS = tuple(range(5, 19))  # in units of 100 Hz
OVERTONES: dict[str, dict[int, float]] = {
    "circle": {1: 1.0},
    "square": {1: 1.0, 3: 0.4},
    "triangle": {1: 1.0, 2: 0.4},
    "star": {1: 1.0, 2: 0.5, 3: 0.35},
}
_DOUBLES = [2 * n for n in FUNDAMENTALS]
_TRIPLES = [3 * n for n in FUNDAMENTALS if n < 14]
PARTIALS = tuple(sorted({*FUNDAMENTALS, *_DOUBLES, *_TRIPLES}))
KNOCK_SLICES = 5
CHANNELS = 2 * (len(PARTIALS) + KNOCK_SLICES)
REST_Y, REST_PARTIAL, OCTAVES_PER_UNIT = -0.05, 9.0, 1.8
LOUDNESS, REFERENCE_RADIUS = 0.3, 0.42
KNOCK_LOUDNESS = 0.35
PAN_GAIN = 1.6
TREMOLO_HZ, TREMOLO_DEPTH = 6.25, 0.45


def partial_of_height(y: Tensor) -> Tensor:
    """Pitch of an object at height y (half sides), in units of 100 Hz."""
    pitch = REST_PARTIAL * 2 ** (OCTAVES_PER_UNIT * (y - REST_Y))
    return pitch.clamp(FUNDAMENTALS[0], FUNDAMENTALS[-1])


def _fundamentals(pitch: Tensor) -> Tensor:
    """Amplitudes (..., 14) of the fundamentals: one, or two while the pitch is between them."""
    distance = torch.tensor(FUNDAMENTALS) - pitch[..., None]
    return torch.softmax(-(distance**2) / 0.09, dim=-1).sqrt()


@functools.cache
def _timbre(shape: str) -> Tensor:
    """Matrix (14, partials) from fundamentals to the partials of one shape's tone."""
    out = torch.zeros(len(FUNDAMENTALS), len(PARTIALS))
    for row, n in enumerate(FUNDAMENTALS):
        for multiple, amplitude in OVERTONES[shape].items():
            if n * multiple in PARTIALS:
                out[row, PARTIALS.index(n * multiple)] = amplitude
    return out / out.square().sum(-1, keepdim=True).sqrt()


def _tone(scene: Scene, t: Tensor) -> Tensor:
    """Amplitudes (2, partials, len(t)) of the tone, left and right."""
    x, y, radius = trajectory(scene, t)
    loudness = LOUDNESS * (radius / REFERENCE_RADIUS).clamp(0.4, 1.5) ** 2
    if scene.texture == "striped":
        loudness = loudness * (1 - TREMOLO_DEPTH * torch.sin(math.pi * TREMOLO_HZ * t) ** 2)
    angle = math.pi / 4 * (1 + (PAN_GAIN * x).clamp(-1, 1))
    pan = torch.stack([angle.cos(), angle.sin()])
    tone = (_fundamentals(partial_of_height(y)) @ _timbre(scene.shape)).T
    return pan[:, None] * loudness * tone


def controls(scene: Scene, count: int) -> Tensor:
    """Weights (CHANNELS, count) of the wavelets; column m belongs to the time (m + 1/2) * 10 ms.

    Rows: partials on the left, partials on the right, knock slices left, knock slices right.
    """
    t = (torch.arange(count) + 0.5) * FRAME_S
    knock = torch.zeros(KNOCK_SLICES, count)
    for impact in impacts(scene, count * FRAME_S):
        first = round(impact / FRAME_S - 0.5)
        for slice_ in range(KNOCK_SLICES):
            if 0 <= first + slice_ < count:
                knock[slice_, first + slice_] = KNOCK_LOUDNESS
    return torch.cat([_tone(scene, t).flatten(0, 1), knock, knock])


def _knock(t: Tensor) -> Tensor:
    """Waveform of an impact at times t >= 0 in seconds: low and short high decaying sines."""
    parts = ((130.0, 0.022, 0.9), (245.0, 0.014, 0.6), (2350.0, 0.004, 0.35), (3150.0, 0.003, 0.3))
    tones = [a * torch.exp(-t / decay) * torch.sin(2 * math.pi * f * t) for f, decay, a in parts]
    return torch.where(t >= 0, torch.stack(tones).sum(0), 0.0)


@functools.cache
def bank(sample_rate: int) -> Tensor:
    """Wavelets (CHANNELS, 2, 2 * hop): fixed waves under triangular windows of two hops."""
    hop = round(sample_rate * FRAME_S)
    t = (torch.arange(2 * hop, dtype=torch.float64) + 0.5 - hop) / sample_rate + FRAME_S / 2
    window = 1 - (t - FRAME_S / 2).abs() / FRAME_S
    n = torch.tensor(PARTIALS, dtype=torch.float64)[:, None]
    # output sample k is at time k / sample_rate, half a sample before the window's sample
    t = t - 0.5 / sample_rate
    waves = torch.sin(2 * math.pi * 100 * n * t + math.pi * n**2 / len(PARTIALS))
    start = FRAME_S / 2 - FRAME_S  # the first slice of a knock starts half a frame early
    slices = torch.stack([_knock(t - start + k * FRAME_S) for k in range(KNOCK_SLICES)])
    out = torch.zeros(CHANNELS, 2, 2 * hop, dtype=torch.float64)
    p, k = len(PARTIALS), KNOCK_SLICES
    out[:p, 0], out[p : 2 * p, 1] = waves, waves
    out[2 * p : 2 * p + k, 0], out[2 * p + k :, 1] = slices, slices
    return (out * window).float()


def render_controls(weights: Tensor, sample_rate: int) -> Tensor:
    """Waveform (B, 2, M * hop) of controls (B, CHANNELS, M)."""
    hop = round(sample_rate * FRAME_S)
    return F.conv_transpose1d(weights, bank(sample_rate), stride=hop, padding=hop // 2)


def waveform(scene: Scene, frames: int, fps: float, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Audio of a scene, (2, round(frames / fps * sample_rate)) in [-1, 1].

    `sample_rate` must be a multiple of 200 Hz. The audio has no frequencies above 5 kHz, so it does
    not alias at 16 kHz or more.
    """
    samples = round(frames / fps * sample_rate)
    weights = controls(scene, math.ceil(samples / (sample_rate * FRAME_S)))
    return render_controls(weights[None], sample_rate)[0, :, :samples]


def _hz_of_mel(mel: np.ndarray) -> np.ndarray:
    log_step = np.log(6.4) / 27
    return np.where(mel >= 15, 1000 * np.exp((mel - 15) * log_step), mel * 200 / 3)


def _mel_of_hz(hz: float) -> float:
    return hz * 3 / 200 if hz < 1000 else 15 + math.log(hz / 1000) * 27 / math.log(6.4)


@functools.cache
def mel_basis(n_fft: int = N_FFT, sample_rate: int = MEL_RATE) -> Tensor:
    """Mel filters (MELS, n_fft // 2 + 1): unit-area triangles on Slaney's scale up to Nyquist."""
    frequencies = np.linspace(0, sample_rate / 2, n_fft // 2 + 1)
    edges = _hz_of_mel(np.linspace(0, _mel_of_hz(sample_rate / 2), MELS + 2))
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rise, fall = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    triangles = np.clip(np.minimum(rise, fall), 0, None) * 2 / (high - low)
    return torch.from_numpy(triangles).float()


def log_mel(wave: Tensor) -> Tensor:
    """Log mels (B, 2, 1 + S // 160, 64) of 16 kHz audio (B, 2, S), as LTX-2 computes them."""
    window = torch.hann_window(N_FFT)
    spectrum = torch.stft(
        wave.flatten(0, 1), N_FFT, HOP, window=window, center=True, return_complex=True
    )
    mel = (mel_basis().to(wave.device) @ spectrum.abs()).clamp(min=MEL_FLOOR).log()
    return mel.transpose(1, 2).unflatten(0, wave.shape[:2])


def latent_frames(frames: int, fps: float) -> int:
    """Number of audio latent frames of a clip: 25 per second."""
    return round(frames / fps * LATENT_RATE)


def mel_frames(latents: int) -> int:
    """Number of mel frames that the causal audio VAE decodes from `latents` latent frames."""
    return 4 * latents - 3


def scene_mels(scenes: list[Scene], latents: int) -> tuple[Tensor, Tensor]:
    """Log mels (B, 2, 4T-3, 64) and controls (B, CHANNELS, 4T-3) of scenes, T latent frames."""
    count = mel_frames(latents)
    weights = torch.stack([controls(scene, count + N_FFT // HOP) for scene in scenes])
    mel = log_mel(render_controls(weights, MEL_RATE))
    return mel[:, :, :count], weights[:, :, :count]
