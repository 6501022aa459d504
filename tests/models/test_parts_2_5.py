"""Duration head, latent upsamplers and sound of LTX-2.5 against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.goldens import Goldens

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.latents.shapes import clip_frames
from latent_ladder.models.audio_vae.vae import load_audio_vae
from latent_ladder.models.audio_vae.vocoder import load_vocoder, vocode
from latent_ladder.models.duration_head import load_duration_head
from latent_ladder.models.latent_upsampler.upsample import load_upsampler, upsample
from latent_ladder.models.vae_loading import read_latent_statistics

CPU: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def parts(golden: Goldens, path: str) -> dict[str, Component]:
    return components(open_checkpoint(golden.path(path)))


def test_duration_of_a_prompt(golden_2_5: Goldens) -> None:
    case = golden_2_5("duration.seconds")
    head = load_duration_head(
        parts(golden_2_5, f"model_patches/{case.params['file']}")["duration_head"], device="cpu"
    )
    i = case.inputs
    with torch.no_grad():
        for name, streams in (
            ("both", (i["video"], i["audio"])),
            ("video_only", (i["video"], None)),
            ("audio_only", (None, i["audio"])),
            ("negative_both", (i["video_n"], i["audio_n"])),
        ):
            case.check(name, head(*streams).reshape(case.outputs[name].shape))


def test_frames_of_a_duration(golden_2_5: Goldens) -> None:
    for seconds, fps, shortest, longest, frames in golden_2_5("duration.frames").outputs["table"]:
        values = (round(float(seconds), 4), float(fps), float(shortest), float(longest))
        assert clip_frames(*values) == int(frames), values


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
def test_upsamplers(golden_2_5: Goldens, kind: str) -> None:
    case = golden_2_5(f"upscale.{kind}")
    file = parts(golden_2_5, f"latent_upscale_models/{case.params['file']}")
    upsampler = load_upsampler(file["latent_upsampler"], **CPU)
    vae = parts(golden_2_5, "vae/tiny-ltx-2.5-video-vae.safetensors")["video_vae"]
    statistics = read_latent_statistics(vae)
    case.check("latent", upsample(case.inputs["latent"], upsampler, statistics), **TIGHT)
    case.check("slots", upsample(case.inputs["slots"], upsampler, statistics), **TIGHT)


def test_sound(golden_2_5: Goldens) -> None:
    found = parts(golden_2_5, "vae/tiny-ltx-2.5-audio-vae.safetensors")
    vae = load_audio_vae(found["audio_vae"], found["vocoder"], device="cpu")
    encode, decode = (golden_2_5(f"audio.{name}") for name in ("encode", "decode"))
    encode.check("latent", vae.encode(encode.inputs["waveform"][0], 16_000), **TIGHT)
    mel = vae.decode_mel(decode.inputs["latent"])
    decode.check("mel", mel, **TIGHT)
    vocoder = load_vocoder(found["vocoder"], device="cpu")
    waveform = vocode(vocoder, mel)
    decode.check("waveform", waveform.reshape(decode.outputs["waveform"].shape), **TIGHT)
