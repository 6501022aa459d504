"""Waveforms <-> audio latents: log-mel front end, audio VAE and vocoder, all in float32.

Front end of the reference implementation: 16 kHz, 1024-point STFT every 160 samples, magnitudes,
64 Slaney mel bands to 8 kHz, ``log(max(x, 1e-5))``. One audio latent frame is four mel frames
(25 a second); decoding gives 4 T - 3 mel frames. Knows nothing of stages or sound files.
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
from latent_ladder.models.audio_vae import networks as audio_coder
from latent_ladder.models.audio_vae.networks import load_audio_decoder, load_audio_encoder
from latent_ladder.models.audio_vae.vocoder import Vocoder, load_vocoder, vocode
from latent_ladder.models.network_configs import AudioCoder
from latent_ladder.models.vae_loading import Statistics, statistics

MEL_RATE = 16000
N_FFT = 1024
HOP = 160
MEL_FLOOR = 1e-5
FADE_S = 0.005


@dataclass(frozen=True)
class AudioDecoder:
    """A loaded audio VAE with its vocoder; a part that was not asked for is None."""

    encoder: audio_coder.AudioEncoder | None
    decoder: audio_coder.AudioDecoder | None
    vocoder: Vocoder | None
    coder: AudioCoder
    statistics: Statistics
    device: torch.device

    @property
    def sample_rate(self) -> int:
        """Samples per second that :meth:`decode` gives."""
        if self.vocoder is None:
            raise ValueError("this audio VAE was loaded without its vocoder")
        return self.vocoder.sample_rate

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (1, C, T, M) -> stereo waveform (2, S) float32 on the CPU, -1..1."""
        mel = self.decode_mel(latents)
        if self.vocoder is None:
            raise ValueError("this audio VAE was loaded without its vocoder")
        return vocode(self.vocoder, mel)[0].cpu()

    @torch.no_grad()
    def decode_mel(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, T, M) -> log-mel (B, 2, 4 T - 3, 64)."""
        if self.decoder is None:
            raise ValueError("this audio VAE was loaded without its decoder")
        mean, std = self._statistics(latents)
        mel: Tensor = self.decoder(latents.to(self.device, torch.float32) * std + mean)
        return mel

    def encode(self, waveform: Tensor, rate: int) -> Tensor:
        """Waveform (channels, S) at ``rate`` -> normalised latents (1, C, T, M), float32.

        Mono is doubled; of more than two channels the first two count.
        """
        if waveform.ndim != 2 or not waveform.numel():
            raise MediaError(f"a waveform of shape {list(waveform.shape)}, not (channels, samples)")
        stereo = waveform.expand(2, -1) if waveform.shape[0] == 1 else waveform[:2]
        return self.encode_mel(log_mel(resample(stereo.float(), rate, MEL_RATE)[None]))

    @torch.no_grad()
    def encode_mel(self, mel: Tensor) -> Tensor:
        """Log-mel (B, 2, T, 64) -> normalised latents (B, C, T', M): the distribution's mean."""
        if self.encoder is None:
            raise ValueError("this audio VAE was loaded without its encoder")
        means = self.encoder(mel.to(self.device, torch.float32))[:, : self.coder.latent_channels]
        mean, std = self._statistics(means)
        latents: Tensor = (means - mean) / std
        return latents

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """The statistics are per channel and mel band, channel-major."""
        mean, std = (
            values.view(latents.shape[1], 1, -1)
            for values in (self.statistics.mean, self.statistics.std)
        )
        return mean, std


def load_audio(
    vae: Component,
    vocoder: Component | None,
    *,
    device: torch.device | str,
    parts: Collection[str] = ("encoder", "decoder"),
) -> AudioDecoder:
    """Load the ``parts`` of an audio VAE, and its vocoder where one is given; always float32."""
    encoder = load_audio_encoder(vae, device=device) if "encoder" in parts else None
    decoder = load_audio_decoder(vae, device=device) if "decoder" in parts else None
    loaded = decoder or encoder
    if loaded is None:
        raise ValueError(f"parts {parts!r} name neither encoder nor decoder")
    return AudioDecoder(
        encoder,
        decoder,
        None if vocoder is None else load_vocoder(vocoder, device=device),
        loaded.coder,
        statistics(vae, device),
        torch.device(device),
    )


def fit_length(waveform: Tensor, n_frames: int, fps: Fraction, rate: int) -> Tensor:
    """Cut or pad (channels, S) with silence to exactly ``round(n_frames / fps * rate)`` samples.

    The last 5 ms before a cut or the silence fade out, so that neither clicks.
    """
    length = round(Fraction(n_frames) / fps * rate)
    if waveform.shape[-1] == length:
        return waveform
    kept = waveform[..., :length].clone()
    fade = min(int(FADE_S * rate), kept.shape[-1])
    kept[..., kept.shape[-1] - fade :] *= torch.linspace(1, 0, fade + 1)[1:].to(kept)
    return F.pad(kept, (0, length - kept.shape[-1]))


# --- front end ----------------------------------------------------------------------------------


def log_mel(waveform: Tensor) -> Tensor:
    """Waveform (B, 2, S) at 16 kHz -> log-mel (B, 2, T, 64), one frame per 160 samples."""
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
    """Triangles of equal area between ``bands + 2`` points even on the Slaney mel scale.

    Slaney's Auditory Toolbox (1998): linear to 1 kHz (200/3 Hz per mel), then 27 steps to 6.4 kHz.
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
    """(channels, S) from ``rate`` to ``new_rate``: band-limited sinc, Hann window of 6 zero
    crossings, roll-off 0.99 (J. O. Smith, Digital Audio Resampling), as the reference does."""
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
    """One kernel per output phase, and how far they reach back."""
    crossings = 6
    cutoff = min(old, new) * 0.99
    width = math.ceil(crossings * old / cutoff)
    phase = -torch.arange(new, dtype=torch.float64)[:, None] / new
    time = phase + torch.arange(-width, width + old, dtype=torch.float64) / old
    time = (time * cutoff).clamp(-crossings, crossings)
    window = torch.cos(time * math.pi / crossings / 2) ** 2
    return (torch.sinc(time) * window * cutoff / old).float(), width
