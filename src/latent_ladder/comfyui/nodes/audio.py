"""Sound: loaded, made, cut, encoded, decoded."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor

from latent_ladder.comfyui.nodes.node_context import Ask, Meaning
from latent_ladder.comfyui.runtime.values import Audio, AudioVaeFile, Latent, Value
from latent_ladder.errors import MediaError
from latent_ladder.media.video_reader import opened
from latent_ladder.models.audio_vae.vae import load_audio

LOUDEST_DEVIATIONS = 5.0


def load(ask: Ask) -> list[Value]:
    """``LoadAudio``: a sound file, or the sound of a video."""
    path = ask.engine.input_file(ask.text("audio"))
    try:
        return [read(path)]
    except MediaError as error:
        raise ask.error(error.message, error.hint) from error


def read(path: Path) -> Audio:
    """All of a file's sound at its own rate and channels. Raises :class:`MediaError`."""
    import av

    with opened(path, "a sound") as container:
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


def empty(ask: Ask) -> list[Value]:
    """``EmptyAudio``: silence."""
    rate = ask.whole("sample_rate")
    samples = round(ask.number("duration") * rate)
    return [Audio(torch.zeros(ask.whole("channels"), samples), rate)]


def trimmed(ask: Ask) -> list[Value]:
    """``TrimAudioDuration``: seconds from a start on; a negative start counts from the end."""
    audio = ask.get("audio", Audio)
    length, rate = audio.waveform.shape[-1], audio.rate
    start = ask.number("start_index")
    first = length + round(start * rate) if start < 0 else round(start * rate)
    first = max(0, min(first, length - 1))
    last = max(0, min(first + round(ask.number("duration") * rate), length))
    if first >= last:
        raise ask.error("the start lies behind the end of the sound")
    return [Audio(audio.waveform[:, first:last], rate)]


def _latents(ask: Ask) -> Tensor:
    latent = ask.get("samples", Latent)
    if latent.audio is None:
        raise ask.error(
            "samples holds no sound", "connect the audio output of LTXVSeparateAVLatent"
        )
    return latent.audio


def _decoded(ask: Ask, name: str) -> Audio:
    vae, latents, engine = ask.get(name, AudioVaeFile), _latents(ask), ask.engine
    if vae.vocoder is None:
        raise ask.error("the file of the audio VAE has no vocoder", "choose one that has")
    vocoder = vae.vocoder

    def work() -> Audio:
        decoder = load_audio(
            vae.component, vocoder, device=engine.runtime.device, parts=("decoder",)
        )
        return Audio(decoder.decode(latents), decoder.sample_rate)

    return engine.runner.retry_without_transformer(work, ask.warn)


def decode(ask: Ask) -> list[Value]:
    """``LTXVAudioVAEDecode``; of an audio-video latent it is the sound."""
    return [_decoded(ask, "audio_vae")]


def decode_plain(ask: Ask) -> list[Value]:
    """``VAEDecodeAudio``: made quieter where five deviations are above 1."""
    audio = _decoded(ask, "vae")
    loudness = (audio.waveform.std() * LOUDEST_DEVIATIONS).clamp(min=1.0)
    return [Audio(audio.waveform / loudness, audio.rate)]


def encoded_sound(ask: Ask, vae: AudioVaeFile, audio: Audio) -> Tensor:
    """Normalised latents (1, C, T, M) of a sound, on the CPU."""
    engine = ask.engine
    if not any(key.startswith("encoder.") for key in vae.component.names):
        raise ask.error("the audio VAE has no encoder", "choose a file that has one")

    def work() -> Tensor:
        device = engine.runtime.device
        encoder = load_audio(vae.component, None, device=device, parts=("encoder",))
        return encoder.encode(audio.waveform, audio.rate).float().cpu()

    return engine.runner.retry_without_transformer(work, ask.warn)


def _encoded(ask: Ask, name: str) -> list[Value]:
    vae, audio = ask.get(name, AudioVaeFile), ask.get("audio", Audio)
    return [Latent(audio=encoded_sound(ask, vae, audio))]


def encode(ask: Ask) -> list[Value]:
    """``LTXVAudioVAEEncode``."""
    return _encoded(ask, "audio_vae")


def encode_plain(ask: Ask) -> list[Value]:
    """``VAEEncodeAudio``."""
    return _encoded(ask, "vae")


MEANINGS: Mapping[str, Meaning] = MappingProxyType(
    {
        "LoadAudio": Meaning(load),
        "EmptyAudio": Meaning(empty),
        "TrimAudioDuration": Meaning(trimmed),
        "LTXVAudioVAEDecode": Meaning(decode, keeps=True),
        "VAEDecodeAudio": Meaning(decode_plain, keeps=True),
        "LTXVAudioVAEEncode": Meaning(encode, keeps=True),
        "VAEEncodeAudio": Meaning(encode_plain, keeps=True),
    }
)
