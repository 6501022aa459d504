"""Audio metrics in numpy: level, loudness, peak, clipping, silence, spectral distance, onset lag.

Waveforms are (channels, S) float in -1..1. No weights are needed, and all results are
deterministic.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latent_ladder.media.open_media import SAMPLE_RATE

Waveform = NDArray[np.float32]
Values = NDArray[np.float64]

"""Sample rate in Hz of the K-weighting filters; files are resampled to it."""

FLOOR_DB = -120.0
"""Level of digital silence, in dBFS."""

CLIPPING_LEVEL = 0.999
SILENT_DB, SILENCE_WINDOW_S = -60.0, 0.05
WINDOW, HOP, MELS = 1024, 480, 64
MAX_LAG_S = 0.5

# Recommendation ITU-R BS.1770-4, tables 1 and 2: shelf and high-pass filters at 48 kHz.
_SHELF = (
    (1.53512485958697, -2.69169618940638, 1.19839281085285),
    (1.0, -1.69065929318241, 0.73248077421585),
)
_HIGH_PASS = ((1.0, -2.0, 1.0), (1.0, -1.99004745483398, 0.99007225036621))


@dataclass(frozen=True)
class AudioMetrics:
    """Metrics of one audio track; docs/reference/metrics.md explains them.

    - ``level_db``: RMS in dBFS (0 = a full-scale square wave).
    - ``loudness_lufs``: integrated loudness of ITU-R BS.1770-4; ``None`` below the gate, for less
      than 0.4 s, or at another sample rate than 48 kHz.
    - ``peak_db``: largest sample in dBFS.
    - ``clipping``: share of samples at or above 0.999 of full scale.
    - ``silence``: share of 50 ms windows below -60 dBFS.
    - ``onset_lag_s``: delay of the onsets in the audio after the motion in the video, in seconds
      (positive: audio late); ``onset_correlation``: their correlation at this lag, -1..1. Both
      ``None`` if audio or video never changes.
    """

    level_db: float
    loudness_lufs: float | None
    peak_db: float
    clipping: float
    silence: float
    onset_lag_s: float | None = None
    onset_correlation: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The metrics as plain JSON data."""
        return asdict(self)


def measure_audio(
    sound: Waveform, rate: int, motion: Values | None = None, fps: float = 0.0
) -> AudioMetrics | None:
    """Measure a waveform (channels, S) in -1..1 at ``rate`` Hz; ``None`` without samples.

    ``motion`` has one value per pair of frames of a video at ``fps``; without it there is no onset
    lag. Loudness is ``None`` unless ``rate`` is 48000.
    """
    if sound.ndim != 2 or sound.shape[1] == 0:
        return None
    size = np.abs(sound)
    lag, fit = (None, None) if motion is None else onset_lag(sound, rate, motion, fps)
    return AudioMetrics(
        level_db=to_decibel(float(np.mean(sound.astype(np.float64) ** 2))),
        loudness_lufs=integrated_loudness(sound) if rate == SAMPLE_RATE else None,
        peak_db=to_decibel(float(size.max()) ** 2),
        clipping=float(np.mean(size >= CLIPPING_LEVEL)),
        silence=_silent_share(sound, rate),
        onset_lag_s=lag,
        onset_correlation=fit,
    )


def to_decibel(power: float) -> float:
    """10 log10(power) in dB, at least :data:`FLOOR_DB`."""
    return max(FLOOR_DB, 10.0 * float(np.log10(max(power, 1e-30))))


def integrated_loudness(sound: Waveform) -> float | None:
    """Integrated loudness in LUFS of a mono or stereo waveform at 48 kHz (ITU-R BS.1770-4).

    L = -0.691 + 10 log10(sum over channels of the mean square after K-weighting), over 400 ms
    blocks that overlap by 75 %, gated at -70 LUFS, then at 10 LU below the mean of the remaining
    blocks. ``None`` for less than 0.4 s or if no block remains.
    """
    block, step = round(0.4 * SAMPLE_RATE), round(0.1 * SAMPLE_RATE)
    if sound.shape[1] < block:
        return None
    sums = np.concatenate([[0.0], np.cumsum((apply_k_weighting(sound) ** 2).sum(0))])
    starts = np.arange(0, sound.shape[1] - block + 1, step)
    power = (sums[starts + block] - sums[starts]) / block
    for gate in (-70.0, None):
        if not len(power) or not power.any():
            return None
        threshold = _lufs(float(power.mean())) - 10.0 if gate is None else gate
        power = power[-0.691 + 10 * np.log10(np.maximum(power, 1e-30)) > threshold]
    return _lufs(float(power.mean())) if len(power) else None


def apply_k_weighting(sound: Waveform) -> Values:
    """The waveform (channels, S) after both filters of BS.1770, computed in the frequency domain.

    It is padded with zeros for the decay of the filters (38 Hz: -120 dB after 0.2 s).
    """
    length = sound.shape[1]
    padded = 1 << (length + SAMPLE_RATE // 2 - 1).bit_length()
    z = np.exp(-2j * np.pi * np.arange(padded // 2 + 1) / padded)
    spectrum = np.fft.rfft(sound.astype(np.float64), padded)
    for numerator, denominator in (_SHELF, _HIGH_PASS):
        spectrum *= np.polyval(numerator[::-1], z) / np.polyval(denominator[::-1], z)
    return np.asarray(np.fft.irfft(spectrum, padded)[:, :length])


def spectral_distance(a: Waveform, b: Waveform, rate: int) -> float | None:
    """Mean absolute difference in dB of two log-mel spectrograms; 0 = equal.

    Compared over the length of the shorter one. 64 bands up to half the sample rate, Hann windows
    of 1024 samples with a hop of 480, channels averaged, powers limited to -80 dB. ``None`` if
    either is shorter than a window.
    """
    length = min(a.shape[1], b.shape[1])
    if length < WINDOW:
        return None
    mels = [_log_mel(s[:, :length], rate) for s in (a, b)]
    return float(np.mean(np.abs(mels[0] - mels[1])))


def onset_lag(
    sound: Waveform, rate: int, motion: Values, fps: float
) -> tuple[float | None, float | None]:
    """(lag in s, correlation) of the shift at which audio onsets and motion correlate best.

    Onset strength is the spectral flux, the summed increase of the log-mel bands (Dixon, "Onset
    detection revisited", 2006), its maximum per video frame. ``motion``[i] is the motion from frame
    i to i + 1. Pearson's correlation at every shift up to 0.5 s, with a resolution of one frame.
    """
    frames = len(motion)
    if fps <= 0 or sound.shape[1] < WINDOW or frames < 4:
        return None, None
    flux = np.maximum(np.diff(_log_mel(sound, rate), axis=0), 0.0).sum(1)
    # The flux i is the increase from window i to i + 1, at the centre of window i + 1.
    times = ((np.arange(len(flux)) + 1) * HOP + WINDOW / 2) / rate
    onsets = np.zeros(frames + 1)
    slots = np.floor(times * fps).astype(int)
    inside = slots <= frames
    np.maximum.at(onsets, slots[inside], flux[inside])
    onsets = onsets[1:]
    longest = min(round(MAX_LAG_S * fps), frames // 2)
    # Small shifts first: of equal correlations the smallest lag wins.
    shifts = sorted(range(-longest, longest + 1), key=abs)
    scores = [(_correlation(motion, onsets, shift), shift) for shift in shifts]
    known = [(score, shift) for score, shift in scores if score is not None]
    if not known:
        return None, None
    best, shift = max(known, key=lambda pair: pair[0])
    return shift / fps, best


def _correlation(motion: Values, onsets: Values, shift: int) -> float | None:
    """Pearson's correlation of motion[i] with onsets[i + shift]; ``None`` if either is constant."""
    n = len(motion)
    a = motion[max(0, -shift) : n - max(0, shift)]
    b = onsets[max(0, shift) : n - max(0, -shift)]
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum() / size) if size > 1e-9 else None


def _lufs(power: float) -> float:
    return -0.691 + 10.0 * float(np.log10(max(power, 1e-30)))


def _silent_share(sound: Waveform, rate: int) -> float:
    window = max(1, round(SILENCE_WINDOW_S * rate))
    power = sound.astype(np.float64) ** 2
    whole = max(1, power.shape[1] // window)
    parts = np.array_split(power.mean(0), whole)
    return float(np.mean([to_decibel(float(part.mean())) < SILENT_DB for part in parts]))


def _log_mel(sound: Waveform, rate: int) -> Values:
    """Log-mel spectrogram (windows, 64) in dB, at least -80."""
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
    """Triangular mel filters (64, bins), equally spaced in mel = 2595 log10(1 + f / 700)."""
    top = 2595.0 * np.log10(1.0 + rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (np.linspace(0.0, top, MELS + 2) / 2595.0) - 1.0)
    bins = np.fft.rfftfreq(WINDOW, 1.0 / rate)
    rise = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.asarray(np.maximum(0.0, np.minimum(rise, fall)))
