"""Encoding and decoding of waveforms: log-mel front end, audio VAE and vocoder, all in float32.

Front end of the reference implementation: 16 kHz, 1024-point STFT with a hop of 160 samples,
magnitudes, 64 Slaney mel bands up to 8 kHz, ``log(max(x, 1e-5))``. One audio latent frame is four
mel frames (25 latent frames per second); T latent frames decode to 4 T - 3 mel frames.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import MediaError
from latent_ladder.models.audio_vae.networks import (
    AudioDecoder,
    AudioEncoder,
    load_audio_decoder,
    load_audio_encoder,
)
from latent_ladder.models.audio_vae.vocoder import Vocoder, load_vocoder, vocode
from latent_ladder.models.exact_float32 import exact_float32
from latent_ladder.models.network_configs import AudioVaeConfig
from latent_ladder.models.vae_loading import LatentStatistics, read_latent_statistics

MEL_RATE = 16000
N_FFT = 1024
HOP = 160
MEL_FLOOR = 1e-5
FADE_S = 0.005


@dataclass(frozen=True)
class AudioVae:
    """Loaded audio VAE with its vocoder; a part that was not loaded is None."""

    encoder: AudioEncoder | None
    decoder: AudioDecoder | None
    vocoder: Vocoder | None
    config: AudioVaeConfig
    statistics: LatentStatistics
    device: torch.device

    @property
    def sample_rate(self) -> int:
        """Sample rate of the waveforms from :meth:`decode`, in Hz."""
        if self.vocoder is None:
            raise ValueError("this audio VAE was loaded without its vocoder")
        return self.vocoder.sample_rate

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (1, C, T, M) to a stereo waveform (2, S) in -1..1.

        The waveform is float32, on the CPU.
        """
        mel = self.decode_mel(latents)
        if self.vocoder is None:
            raise ValueError("this audio VAE was loaded without its vocoder")
        return vocode(self.vocoder, mel)[0].cpu()

    @torch.no_grad()
    def decode_mel(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, C, T, M) to log-mel (B, 2, 4 T - 3, 64)."""
        if self.decoder is None:
            raise ValueError("this audio VAE was loaded without its decoder")
        mean, std = self._statistics(latents)
        with exact_float32():
            mel: Tensor = self.decoder(latents.to(self.device, torch.float32) * std + mean)
        return mel

    def encode(self, waveform: Tensor, rate: int) -> Tensor:
        """Encode a waveform (channels, S) at ``rate`` Hz to normalised latents (1, C, T, M).

        Mono is duplicated; of more than two channels the first two are used. Raises
        :class:`MediaError` for a waveform of another shape or without samples.
        """
        if waveform.ndim != 2 or not waveform.numel():
            raise MediaError(
                f"waveform of shape {list(waveform.shape)}, expected (channels, samples)"
            )
        stereo = waveform.expand(2, -1) if waveform.shape[0] == 1 else waveform[:2]
        return self.encode_mel(log_mel(resample(stereo.float(), rate, MEL_RATE)[None]))

    @torch.no_grad()
    def encode_mel(self, mel: Tensor) -> Tensor:
        """Encode log-mel (B, 2, T, 64) to normalised latents (B, C, T', M), the mean."""
        if self.encoder is None:
            raise ValueError("this audio VAE was loaded without its encoder")
        with exact_float32():
            means = self.encoder(mel.to(self.device, torch.float32))
        means = means[:, : self.config.latent_channels]
        mean, std = self._statistics(means)
        latents: Tensor = (means - mean) / std
        return latents

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel and mel band (channel-major), (C, 1, M)."""
        mean, std = (
            values.view(latents.shape[1], 1, -1)
            for values in (self.statistics.mean, self.statistics.std)
        )
        return mean, std


def load_audio_vae(
    vae: Component,
    vocoder: Component | None,
    *,
    device: torch.device | str,
    parts: Collection[str] = ("encoder", "decoder"),
) -> AudioVae:
    """Load the ``parts`` of an audio VAE and, if given, its vocoder; always in float32.

    Raises :class:`UnknownLayout` for an unsupported VAE or vocoder.
    """
    encoder = load_audio_encoder(vae, device=device) if "encoder" in parts else None
    decoder = load_audio_decoder(vae, device=device) if "decoder" in parts else None
    loaded = decoder or encoder
    if loaded is None:
        raise ValueError(f"parts {parts!r} name neither encoder nor decoder")
    return AudioVae(
        encoder,
        decoder,
        None if vocoder is None else load_vocoder(vocoder, device=device),
        loaded.config,
        read_latent_statistics(vae, device),
        torch.device(device),
    )


def fit_length(waveform: Tensor, n_frames: int, fps: Fraction, rate: int) -> Tensor:
    """Cut a waveform (channels, S), or pad it with silence, to the duration of ``n_frames``.

    The result has exactly ``round(n_frames / fps * rate)`` samples. The last 5 ms before the cut
    or the silence fade out, to avoid a click.
    """
    length = round(Fraction(n_frames) / fps * rate)
    if waveform.shape[-1] == length:
        return waveform
    cut = waveform[..., :length].clone()
    fade = min(int(FADE_S * rate), cut.shape[-1])
    cut[..., cut.shape[-1] - fade :] *= torch.linspace(1, 0, fade + 1)[1:].to(cut)
    return F.pad(cut, (0, length - cut.shape[-1]))


# --- front end ----------------------------------------------------------------------------------


def log_mel(waveform: Tensor) -> Tensor:
    """Convert a waveform (B, 2, S) at 16 kHz to log-mel (B, 2, T, 64), a frame per 160 samples."""
    batch, channels, _ = waveform.shape
    spectrum = torch.stft(
        waveform.flatten(0, 1),
        N_FFT,
        HOP,
        window=torch.hann_window(N_FFT, device=waveform.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    bands = _mel_filters().to(waveform.device) @ spectrum.abs()
    mel = bands.clamp(min=MEL_FLOOR).log().transpose(1, 2)
    return mel.reshape(batch, channels, *mel.shape[1:])


@lru_cache(maxsize=1)
def _mel_filters(bands: int = 64, top_hz: float = MEL_RATE / 2) -> Tensor:
    """Triangular mel filters (bands, bins) of equal area, evenly spaced on the Slaney mel scale.

    The scale is linear up to 1 kHz (200/3 Hz per mel), then logarithmic (27 mel up to 6.4 kHz).
    Source: Slaney, Auditory Toolbox (1998).
    """
    break_hz, hz_per_mel, log_step = 1000.0, 200.0 / 3, math.log(6.4) / 27
    break_mel = break_hz / hz_per_mel
    top_mel = break_mel + math.log(top_hz / break_hz) / log_step
    mels = torch.linspace(0, top_mel, bands + 2, dtype=torch.float64)
    edges = torch.where(
        mels < break_mel,
        mels * hz_per_mel,
        break_hz * torch.exp((mels - break_mel) * log_step),
    )
    bins = torch.linspace(0, MEL_RATE / 2, N_FFT // 2 + 1, dtype=torch.float64)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising, falling = (bins - low) / (centre - low), (high - bins) / (high - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


def resample(waveform: Tensor, rate: int, new_rate: int) -> Tensor:
    """Resample (channels, S) from ``rate`` to ``new_rate`` Hz with a band-limited sinc filter.

    Hann window of 6 zero crossings, roll-off 0.99, as in the reference. Source: J. O. Smith,
    Digital Audio Resampling.
    """
    if rate == new_rate:
        return waveform
    divisor = math.gcd(rate, new_rate)
    old, new = rate // divisor, new_rate // divisor
    kernels, width = _sinc_kernels(old, new)
    padded = F.pad(waveform, (width, width + old))[:, None]
    phases = F.conv1d(padded, kernels.to(waveform)[:, None], stride=old)
    length = math.ceil(waveform.shape[-1] * new / old)
    return phases.transpose(1, 2).flatten(1)[:, :length]


@lru_cache(maxsize=4)
def _sinc_kernels(old: int, new: int) -> tuple[Tensor, int]:
    """Sinc kernels, one per output phase, and their width in samples before the current one."""
    crossings = 6
    cutoff = min(old, new) * 0.99
    width = math.ceil(crossings * old / cutoff)
    phase = -torch.arange(new, dtype=torch.float64)[:, None] / new
    time = phase + torch.arange(-width, width + old, dtype=torch.float64) / old
    time = (time * cutoff).clamp(-crossings, crossings)
    window = torch.cos(time * math.pi / crossings / 2) ** 2
    return (torch.sinc(time) * window * cutoff / old).float(), width
