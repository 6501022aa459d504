"""Measures of sound, in numpy: level, loudness, peak, clipping, silence, distance, onsets.

Sounds are (channels, S) float in -1..1. Everything here needs no weights and is deterministic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Sound = NDArray[np.float32]
Values = NDArray[np.float64]

RATE = 48000
"""The sample rate that the K-weighting filters are given for; files are read at it."""

FLOOR_DB = -120.0
"""What digital silence is called, in dBFS."""

CLIPPED = 0.999
SILENT_DB, SILENCE_WINDOW_S = -60.0, 0.05
WINDOW, HOP, MELS = 1024, 480, 64
LONGEST_LAG_S = 0.5

# Recommendation ITU-R BS.1770-4, tables 1 and 2: the shelf and the high-pass, at 48 kHz.
_SHELF = (
    (1.53512485958697, -2.69169618940638, 1.19839281085285),
    (1.0, -1.69065929318241, 0.73248077421585),
)
_HIGH_PASS = ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621))


@dataclass(frozen=True)
class SoundMetrics:
    """One sound. See docs/reference/metrics.md for what each number means.

    ``level_db`` RMS in dBFS (0 = a full-scale square wave); ``loudness_lufs`` integrated loudness,
    ITU-R BS.1770-4, ``None`` below the gate or under 0.4 s; ``peak_db`` largest sample, dBFS;
    ``clipping`` share of samples at or above 0.999 of full scale; ``silence`` share of 50 ms
    windows below -60 dBFS; ``onset_lag_s`` how much later the sound's onsets come than the
    picture's motion (positive: sound late), ``onset_correlation`` how well they fit there, -1..1;
    both ``None`` where either never changes.
    """

    level_db: float
    loudness_lufs: float | None
    peak_db: float
    clipping: float
    silence: float
    onset_lag_s: float | None = None
    onset_correlation: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def measure_sound(
    sound: Sound, rate: int, motion: Values | None = None, fps: float = 0.0
) -> SoundMetrics | None:
    """Measure (channels, S) in -1..1; ``motion`` per pair of frames gives the onset lag.

    ``None`` for a sound without samples. Loudness needs ``rate`` 48000 and is ``None`` elsewhere.
    """
    if sound.ndim != 2 or sound.shape[1] == 0:
        return None
    size = np.abs(sound)
    lag, fit = (None, None) if motion is None else onset_lag(sound, rate, motion, fps)
    return SoundMetrics(
        level_db=decibel(float(np.mean(sound.astype(np.float64) ** 2))),
        loudness_lufs=loudness(sound) if rate == RATE else None,
        peak_db=decibel(float(size.max()) ** 2),
        clipping=float(np.mean(size >= CLIPPED)),
        silence=_silence(sound, rate),
        onset_lag_s=lag,
        onset_correlation=fit,
    )


def decibel(power: float) -> float:
    """10 log10(power), not below :data:`FLOOR_DB`."""
    return max(FLOOR_DB, 10.0 * float(np.log10(max(power, 1e-30))))


def loudness(sound: Sound) -> float | None:
    """Integrated loudness of a 48 kHz mono or stereo sound, LUFS (ITU-R BS.1770-4).

    L = -0.691 + 10 log10(sum of the channels' mean squares after K-weighting) over 400 ms blocks
    that overlap by 75 %, gated at -70 LUFS and at 10 LU under the mean of what is left.
    """
    block, step = round(0.4 * RATE), round(0.1 * RATE)
    if sound.shape[1] < block:
        return None
    sums = np.concatenate([[0.0], np.cumsum((k_weighted(sound) ** 2).sum(0))])
    starts = np.arange(0, sound.shape[1] - block + 1, step)
    power = (sums[starts + block] - sums[starts]) / block
    for gate in (-70.0, None):
        if not len(power) or not power.any():
            return None
        least = _lufs(float(power.mean())) - 10.0 if gate is None else gate
        power = power[-0.691 + 10 * np.log10(np.maximum(power, 1e-30)) > least]
    return _lufs(float(power.mean())) if len(power) else None


def k_weighted(sound: Sound) -> Values:
    """The sound through both filters of BS.1770, in the frequency domain.

    The zeros put behind it hold the filters' tails (38 Hz: -120 dB after 0.2 s).
    """
    length = sound.shape[1]
    padded = 1 << (length + RATE // 2 - 1).bit_length()
    z = np.exp(-2j * np.pi * np.arange(padded // 2 + 1) / padded)
    spectrum = np.fft.rfft(sound.astype(np.float64), padded)
    for above, below in (_SHELF, _HIGH_PASS):
        spectrum *= np.polyval(above[::-1], z) / np.polyval(below[::-1], z)
    return np.asarray(np.fft.irfft(spectrum, padded)[:, :length])


def spectral_distance(a: Sound, b: Sound, rate: int) -> float | None:
    """Mean |difference| of two log-mel spectrograms, dB, over the part both have; 0 = the same.

    64 bands to half the rate, 1024-sample Hann windows 480 apart, channels averaged, powers not
    below -80 dB. ``None`` if either is too short for a window.
    """
    length = min(a.shape[1], b.shape[1])
    if length < WINDOW:
        return None
    mels = [_log_mel(s[:, :length], rate) for s in (a, b)]
    return float(np.mean(np.abs(mels[0] - mels[1])))


def onset_lag(
    sound: Sound, rate: int, motion: Values, fps: float
) -> tuple[float | None, float | None]:
    """(lag in s, correlation): the shift of sound against motion at which both fit best.

    Onsets: spectral flux, the summed rise of the log-mel bands (Dixon, "Onset detection
    revisited", 2006), its maximum per frame of video. ``motion``[i] is what frame i + 1 shows to
    have moved. Pearson's correlation at every shift of up to 0.5 s; the resolution is one frame.
    """
    frames = len(motion)
    if fps <= 0 or sound.shape[1] < WINDOW or frames < 4:
        return None, None
    flux = np.maximum(np.diff(_log_mel(sound, rate), axis=0), 0.0).sum(1)
    # Window i is centred on its middle; its flux is the rise from window i to i + 1.
    times = ((np.arange(len(flux)) + 1) * HOP + WINDOW / 2) / rate
    onsets = np.zeros(frames + 1)
    slots = np.floor(times * fps).astype(int)
    inside = slots <= frames
    np.maximum.at(onsets, slots[inside], flux[inside])
    onsets = onsets[1:]
    longest = min(round(LONGEST_LAG_S * fps), frames // 2)
    # Small shifts first: of equal fits the one nearest to "in time" is told.
    shifts = sorted(range(-longest, longest + 1), key=abs)
    fits = [(_correlation(motion, onsets, shift), shift) for shift in shifts]
    known = [(fit, shift) for fit, shift in fits if fit is not None]
    if not known:
        return None, None
    fit, shift = max(known, key=lambda pair: pair[0])
    return shift / fps, fit


def _correlation(motion: Values, onsets: Values, shift: int) -> float | None:
    """Pearson's, of motion[i] with onsets[i + shift]."""
    n = len(motion)
    a = motion[max(0, -shift) : n - max(0, shift)]
    b = onsets[max(0, shift) : n - max(0, -shift)]
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size > 1e-9 else None


def _lufs(power: float) -> float:
    return -0.691 + 10.0 * float(np.log10(max(power, 1e-30)))


def _silence(sound: Sound, rate: int) -> float:
    window = max(1, round(SILENCE_WINDOW_S * rate))
    power = sound.astype(np.float64) ** 2
    whole = max(1, power.shape[1] // window)
    parts = np.array_split(power.mean(0), whole)
    return float(np.mean([decibel(float(part.mean())) < SILENT_DB for part in parts]))


def _log_mel(sound: Sound, rate: int) -> Values:
    """(windows, 64) powers in dB, not below -80."""
    mono = sound.mean(0, dtype=np.float64)
    count = 1 + (len(mono) - WINDOW) // HOP
    window = np.hanning(WINDOW)
    bands = _mel_bands(rate)
    out = np.empty((count, MELS))
    for i in range(count):
        spectrum = np.fft.rfft(mono[i * HOP : i * HOP + WINDOW] * window)
        out[i] = bands @ (np.abs(spectrum) ** 2) / (window.sum() ** 2 / 4)
    return np.asarray(10.0 * np.log10(np.maximum(out, 1e-8)))


def _mel_bands(rate: int) -> Values:
    """Triangles (64, bins), equally far apart in mel = 2595 log10(1 + f / 700)."""
    top = 2595.0 * np.log10(1.0 + rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, MELS + 2) / 2595.0) - 1.0)
    bins = np.fft.rfftfreq(WINDOW, 1.0 / rate)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0.0, np.minimum(rise, fall)))
