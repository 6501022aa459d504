"""Sound: loaded, made, cut, encoded, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.node_context import NodeContext, NodeFunction
from latent_ladder.comfyui.runtime.values import Audio, AudioVaeFile, Latent, Value
from latent_ladder.errors import MediaError
from latent_ladder.media.video_reader import open_media
from latent_ladder.models.audio_vae.vae import load_audio_vae

PEAK_DEVIATIONS = 5.0


def load(ctx: NodeContext) -> list[Value]:
    """``LoadAudio``: a sound file, or the sound of a video."""
    path = ctx.engine.input_file(ctx.text("audio"))
    try:
        return [read_audio(path)]
    except MediaError as error:
        raise ctx.error(error.message, error.hint) from error


def read_audio(path: Path) -> Audio:
    """All of a file's sound at its own rate and channels. Raises :class:`MediaError`."""
    import av

    with open_media(path, "a sound") as container:
        if not container.streams.audio:
            raise MediaError(f"{path.name} has no sound", "give a file with a sound track")
        stream = container.streams.audio[0]
        resampler = av.AudioResampler(format="fltp")
        parts = [
            torch.from_numpy(part.to_ndarray())
            for frame in container.decode(stream)
            for part in resampler.resample(frame)
        ]
        rate = stream.rate
        length = Fraction(0)
        if stream.duration and stream.time_base:  # the last block of AAC is longer than the sound
            length = stream.duration * stream.time_base
    if not parts:
        raise MediaError(f"{path.name} has no sound in it", "give another file")
    samples = torch.cat(parts, dim=1)
    return Audio(samples[:, : round(length * rate)] if length else samples, rate)


def empty_audio(ctx: NodeContext) -> list[Value]:
    """``EmptyAudio``: silence."""
    rate = ctx.integer("sample_rate")
    samples = round(ctx.number("duration") * rate)
    return [Audio(torch.zeros(ctx.integer("channels"), samples), rate)]


def trim(ctx: NodeContext) -> list[Value]:
    """``TrimAudioDuration``: seconds from a start on; a negative start counts from the end."""
    audio = ctx.get("audio", Audio)
    length, rate = audio.waveform.shape[-1], audio.rate
    start = ctx.number("start_index")
    first = length + round(start * rate) if start < 0 else round(start * rate)
    first = max(0, min(first, length - 1))
    last = max(0, min(first + round(ctx.number("duration") * rate), length))
    if first >= last:
        raise ctx.error("the start lies behind the end of the sound")
    return [Audio(audio.waveform[:, first:last], rate)]


def _audio_latents(ctx: NodeContext) -> Tensor:
    latent = ctx.get("samples", Latent)
    if latent.audio is None:
        raise ctx.error(
            "samples holds no sound", "connect the audio output of LTXVSeparateAVLatent"
        )
    return latent.audio


def _decode(ctx: NodeContext, name: str) -> Audio:
    vae, latents, engine = ctx.get(name, AudioVaeFile), _audio_latents(ctx), ctx.engine
    if vae.vocoder is None:
        raise ctx.error("the file of the audio VAE has no vocoder", "choose one that has")
    vocoder = vae.vocoder

    def work() -> Audio:
        decoder = load_audio_vae(
            vae.component, vocoder, device=engine.runtime.device, parts=("decoder",)
        )
        return Audio(decoder.decode(latents), decoder.sample_rate)

    return engine.runner.retry_without_transformer(work, ctx.warn)


def decode(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioVAEDecode``; of an audio-video latent it is the sound."""
    return [_decode(ctx, "audio_vae")]


def decode_limited(ctx: NodeContext) -> list[Value]:
    """``VAEDecodeAudio``: made quieter where five deviations are above 1."""
    audio = _decode(ctx, "vae")
    loudness = (audio.waveform.std() * PEAK_DEVIATIONS).clamp(min=1.0)
    return [Audio(audio.waveform / loudness, audio.rate)]


def encode_audio(ctx: NodeContext, vae: AudioVaeFile, audio: Audio) -> Tensor:
    """Normalised latents (1, C, T, M) of a sound, on the CPU."""
    engine = ctx.engine
    if not any(key.startswith("encoder.") for key in vae.component.names):
        raise ctx.error("the audio VAE has no encoder", "choose a file that has one")

    def work() -> Tensor:
        device = engine.runtime.device
        encoder = load_audio_vae(vae.component, None, device=device, parts=("encoder",))
        return encoder.encode(audio.waveform, audio.rate).float().cpu()

    return engine.runner.retry_without_transformer(work, ctx.warn)


def _encode(ctx: NodeContext, name: str) -> list[Value]:
    vae, audio = ctx.get(name, AudioVaeFile), ctx.get("audio", Audio)
    return [Latent(audio=encode_audio(ctx, vae, audio))]


def encode(ctx: NodeContext) -> list[Value]:
    """``LTXVAudioVAEEncode``."""
    return _encode(ctx, "audio_vae")


def encode_generic(ctx: NodeContext) -> list[Value]:
    """``VAEEncodeAudio``."""
    return _encode(ctx, "vae")


NODES: Mapping[str, NodeFunction] = MappingProxyType(
    {
        "LoadAudio": NodeFunction(load),
        "EmptyAudio": NodeFunction(empty_audio),
        "TrimAudioDuration": NodeFunction(trim),
        "LTXVAudioVAEDecode": NodeFunction(decode, stored=True),
        "VAEDecodeAudio": NodeFunction(decode_limited, stored=True),
        "LTXVAudioVAEEncode": NodeFunction(encode, stored=True),
        "VAEEncodeAudio": NodeFunction(encode_generic, stored=True),
    }
)
