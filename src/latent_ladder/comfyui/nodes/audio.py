"""Audio nodes: load, create, trim, encode, decode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.values import Audio, AudioVaeFile, Latent, Value
from latent_ladder.errors import MediaError
from latent_ladder.media.audio_input import read_original_audio
from latent_ladder.models.audio_vae.vae import load_audio_vae, resample

PEAK_DEVIATIONS = 5.0
"""``VAEDecodeAudio`` scales audio down if this many standard deviations exceed 1."""


ENCODE_RATE, CROP_SAMPLES = 44_100, 4096
"""ComfyUI encodes audio at this rate (Hz), in multiples of so many samples."""


def crop_audio(waveform: Tensor) -> Tensor:
    """Return the middle of a waveform (C, S) whose length is a multiple of 4096 samples."""
    length = waveform.shape[1] // CROP_SAMPLES * CROP_SAMPLES
    start = waveform.shape[1] % CROP_SAMPLES // 2
    return waveform[:, start : start + length]


def load_audio(ctx: NodeContext) -> list[Value]:
    """``LoadAudio``: an audio file, or the audio of a video."""
    path = ctx.engine.input_file(ctx.text("audio"))
    try:
        return [read_audio(path)]
    except MediaError as error:
        raise ctx.error(error.message, error.hint) from error


def read_audio(path: Path) -> Audio:
    """Read the audio of a file at its own rate and channels. Raises :class:`MediaError`."""
    samples, rate = read_original_audio(path, padded=True)
    return Audio(torch.from_numpy(samples), rate)


def empty_audio(ctx: NodeContext) -> list[Value]:
    """``EmptyAudio``: silence."""
    rate = ctx.integer("sample_rate")
    samples = round(ctx.number("duration") * rate)
    return [Audio(torch.zeros(ctx.integer("channels"), samples), rate)]


def trim_audio(ctx: NodeContext) -> list[Value]:
    """``TrimAudioDuration``: a duration from a start on; a negative start counts from the end."""
    audio = ctx.get("audio", Audio)
    length, rate = audio.waveform.shape[-1], audio.rate
    start = ctx.number("start_index")
    first = length + round(start * rate) if start < 0 else round(start * rate)
    first = max(0, min(first, length - 1))
    last = max(0, min(first + round(ctx.number("duration") * rate), length))
    if first >= last:
        raise ctx.error("the start is after the end of the audio")
    return [Audio(audio.waveform[:, first:last], rate)]


def _audio_latents(ctx: NodeContext) -> Tensor:
    latent = ctx.get("samples", Latent)
    if latent.audio is None:
        raise ctx.error(
            "samples contains no audio", "connect the audio output of LTXVSeparateAVLatent"
        )
    return latent.audio


def _decode(ctx: NodeContext, name: str) -> Audio:
    vae, latents, engine = ctx.get(name, AudioVaeFile), _audio_latents(ctx), ctx.engine
    if vae.vocoder is None:
        raise ctx.error("there is no vocoder for the audio VAE", "choose a file with a vocoder")
    vocoder = vae.vocoder

    def work() -> Audio:
        decoder = load_audio_vae(
            vae.component, vocoder, device=engine.runtime.device, parts=("decoder",)
        )
        return Audio(decoder.decode(latents), decoder.sample_rate)

    return engine.runner.retry_without_transformer(work, ctx.warn)


def decode_ltxv_audio(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioVAEDecode``; of an audio-video latent, the audio is decoded."""
    return [_decode(ctx, "audio_vae")]


def decode_generic_audio(ctx: NodeContext) -> list[Value]:
    """``VAEDecodeAudio``: scaled down if five standard deviations exceed 1."""
    audio = _decode(ctx, "vae")
    loudness = (audio.waveform.std() * PEAK_DEVIATIONS).clamp(min=1.0)
    return [Audio(audio.waveform / loudness, audio.rate)]


def encode_audio(ctx: NodeContext, vae: AudioVaeFile, audio: Audio) -> Tensor:
    """Encode audio as normalised latents (1, C, T, M) on the CPU.

    As in ComfyUI, the audio is resampled to 44.1 kHz and cropped to the middle multiple of
    :data:`CROP_SAMPLES` first.
    """
    engine = ctx.engine
    waveform = crop_audio(resample(audio.waveform.float(), audio.rate, ENCODE_RATE))
    if not waveform.shape[1]:
        seconds = CROP_SAMPLES / ENCODE_RATE
        raise ctx.error(f"the audio is shorter than {seconds:.3f} s", "use a longer one")
    if not any(key.startswith("encoder.") for key in vae.component.names):
        raise ctx.error("the audio VAE has no encoder", "choose a file with an encoder")

    def work() -> Tensor:
        device = engine.runtime.device
        encoder = load_audio_vae(vae.component, None, device=device, parts=("encoder",))
        return encoder.encode(waveform, ENCODE_RATE).float().cpu()

    return engine.runner.retry_without_transformer(work, ctx.warn)


def _encode(ctx: NodeContext, name: str) -> list[Value]:
    vae, audio = ctx.get(name, AudioVaeFile), ctx.get("audio", Audio)
    return [Latent(audio=encode_audio(ctx, vae, audio))]


def encode_ltxv_audio(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioVAEEncode``: audio as latents."""
    return _encode(ctx, "audio_vae")


def encode_generic_audio(ctx: NodeContext) -> list[Value]:
    """``VAEEncodeAudio``: audio as latents."""
    return _encode(ctx, "vae")


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LoadAudio": NodeFunction(load_audio, version=3),
        "EmptyAudio": NodeFunction(empty_audio),
        "TrimAudioDuration": NodeFunction(trim_audio),
        "LTXVAudioVAEDecode": NodeFunction(decode_ltxv_audio, stored=True),
        "VAEDecodeAudio": NodeFunction(decode_generic_audio, stored=True),
        "LTXVAudioVAEEncode": NodeFunction(encode_ltxv_audio, stored=True, version=2),
        "VAEEncodeAudio": NodeFunction(encode_generic_audio, stored=True, version=2),
    }
)
