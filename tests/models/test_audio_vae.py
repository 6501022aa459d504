"""Audio against the reference: front end, VAE, vocoders; and waveform lengths."""

from __future__ import annotations

import copy
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import checkpoint_layouts as layouts
from helpers.goldens import Goldens
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.errors import MediaError, UnknownLayout
from latent_ladder.models.audio_chunks import CHUNK_FRAMES, CHUNK_LATENTS
from latent_ladder.models.audio_vae.snake_beta import SnakeActivation
from latent_ladder.models.audio_vae.vae import (
    AudioVae,
    fit_length,
    load_audio_vae,
    log_mel,
    resample,
)
from latent_ladder.models.audio_vae.vocoder import (
    Vocoder,
    load_vocoder,
    run_in_chunks,
    vocode,
    vocode_low_band,
)


@pytest.fixture(scope="module")
def parts(golden: Goldens) -> dict[str, Component]:
    return components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))


@pytest.fixture(scope="module")
def audio(parts: dict[str, Component]) -> AudioVae:
    torch.set_num_threads(1)
    return load_audio_vae(parts["audio_vae"], parts["vocoder"], device="cpu")


# --- against the reference ------------------------------------------------------------------------


def test_mel(golden: Goldens) -> None:
    case = golden("audio.mel")
    case.check("mel", log_mel(case.inputs["waveform"]))


def test_encode(golden: Goldens, audio: AudioVae) -> None:
    case = golden("audio.encode")
    case.check("latent", audio.encode_mel(case.inputs["mel"]))
    waveform = golden("audio.mel").inputs["waveform"][0]
    case.check("latent", audio.encode(waveform, 16000))


@pytest.mark.parametrize(("output", "rate"), [("from48k", 48000), ("from44k1", 44100)])
def test_resample(output: str, rate: int, golden: Goldens) -> None:
    case = golden("audio.resample")
    waveform = case.inputs["waveform"].flatten(0, 1)
    want = case.outputs[output]
    case.check(output, resample(waveform, rate, 16000).reshape(want.shape))
    assert resample(waveform, rate, rate) is waveform


def test_decode(golden: Goldens, audio: AudioVae) -> None:
    case = golden("audio.decode")
    mel = audio.decode_mel(case.inputs["latent"])
    assert mel.shape[2] == 4 * case.inputs["latent"].shape[2] - 3
    case.check("mel", mel)


def test_vocoder_with_bandwidth_extension(golden: Goldens, audio: AudioVae) -> None:
    case = golden("audio.vocoder")
    assert audio.vocoder is not None
    assert audio.sample_rate == 48000
    case.check("waveform", vocode(audio.vocoder, case.inputs["mel"]))
    low = vocode_low_band(audio.vocoder, case.inputs["mel"])
    assert low.abs().max() == 1, "the golden must reach the clamp"
    case.check("low", low[..., : case.outputs["low"].shape[-1]])


def test_vocoder_of_2_0(golden: Goldens) -> None:
    case = golden("ltx20.vocoder")
    file = open_checkpoint(golden.path("checkpoints/tiny-ltx-2.0.safetensors"))
    vocoder = load_vocoder(components(file)["vocoder"], device="cpu")
    assert vocoder.sample_rate == case.params["sampling_rate"]
    case.check("waveform", vocode(vocoder, golden("audio.decode").outputs["mel"]))


def test_always_float32(golden: Goldens, audio: AudioVae) -> None:
    """The file is bfloat16; neither its dtype nor an outer autocast changes the vocoder's."""
    assert audio.vocoder is not None
    assert {p.dtype for p in _weights(audio.vocoder)} == {torch.float32}
    mel = golden("audio.vocoder").inputs["mel"][:, :, :6]
    want = vocode(audio.vocoder, mel)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vocode(audio.vocoder, mel), want)


def _weights(vocoder: Vocoder) -> list[Tensor]:
    parts = (vocoder.main, vocoder.bwe_generator, vocoder.mel_stft)
    return [t for n in parts if n is not None for t in n.state_dict().values()]


def test_long_audio_in_chunks_equals_the_whole(audio: AudioVae) -> None:
    """In float64, so that too little context cannot be mistaken for rounding."""
    assert audio.vocoder is not None
    for loaded in (audio.vocoder.main, audio.vocoder.bwe_generator):
        assert loaded is not None
        generator = copy.deepcopy(loaded).double()
        context = generator.context
        mel = noise(1, 128, 4 * context).double() - 4
        with torch.no_grad():
            whole = generator(mel)
            chunked = run_in_chunks(generator, mel, context, context, generator.rate)
        assert chunked.shape == whole.shape == (1, 2, 4 * context * generator.rate)
        assert (chunked - whole).abs().max() < 1e-12


def test_less_context_changes_the_result(audio: AudioVae) -> None:
    """The context is needed: with an eighth of it, chunks differ from the whole."""
    assert audio.vocoder is not None
    generator = audio.vocoder.main
    mel = noise(1, 128, 200) - 4
    with torch.no_grad():
        short = run_in_chunks(generator, mel, 40, generator.context // 8, generator.rate)
        assert (short - generator(mel)).abs().max() > 1e-5


@pytest.fixture(scope="module")
def pocket() -> Vocoder:
    path = next((EMBEDDED / "checkpoints").glob("*.safetensors"))
    return load_vocoder(components(open_checkpoint(path))["vocoder"], device="cpu")


def test_bandwidth_extension_in_chunks_equals_the_whole(
    pocket: Vocoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spectrogram and resampling need context too; 233 frames are not whole chunks."""
    mel = noise(1, 2, 233, 64) - 4
    whole = vocode(pocket, mel)
    monkeypatch.setattr("latent_ladder.models.audio_chunks.CHUNK_FRAMES", 60)
    chunked = vocode(pocket, mel)
    assert chunked.shape == whole.shape == (1, 2, 233 * 480)
    assert not torch.equal(chunked, whole), "it was not split into chunks"
    assert (chunked - whole).abs().max() < 1e-5


def test_long_audio_is_generated_in_chunks(pocket: Vocoder) -> None:
    """Memory is bounded: at most 5 s at once, and longer audio is more chunks."""
    seen: list[int] = []
    generators = [g for g in (pocket.main, pocket.bwe_generator) if g is not None]
    hooks = [
        g.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
        for g in generators
    ]
    vocode(pocket, noise(1, 2, 1200, 64) - 4)
    for hook in hooks:
        hook.remove()
    assert max(seen) == CHUNK_FRAMES
    assert len(seen) > 1200 / CHUNK_FRAMES + 2400 / CHUNK_FRAMES


@pytest.mark.parametrize("shape", [(1, 3, 1), (2, 5, 7), (1, 4, 3000)])
def test_activation_in_blocks_equals_its_definition(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latent_ladder.models.audio_vae.snake_beta.BLOCK_VALUES", 2 * shape[2])
    activation = SnakeActivation(shape[1]).requires_grad_(False)
    for seed, values in enumerate(activation.state_dict().values()):
        values.copy_(noise(*values.shape, seed=seed) * 0.3)
    x = noise(*shape)
    torch.testing.assert_close(activation._forward_blocks(x), activation._forward_convolutions(x))


@pytest.mark.parametrize("latents", [1, 3, 64])
def test_audio_vae_in_chunks_equals_the_whole(
    latents: int, audio: AudioVae, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convolutions store their context, so the chunk length does not change the result."""
    z, mel = noise(1, 2, 17, 16), noise(1, 2, 66, 64) - 4
    want = audio.decode_mel(z), audio.encode_mel(mel)
    assert (want[0].shape[2], want[1].shape[2]) == (65, 17)
    monkeypatch.setitem(CHUNK_LATENTS, "cpu", latents)
    for found, whole in zip((audio.decode_mel(z), audio.encode_mel(mel)), want, strict=True):
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- end to end -----------------------------------------------------------------------------------


def tone(rate: int, seconds: float, hz: float = 440.0) -> Tensor:
    return 0.5 * torch.sin(torch.arange(round(rate * seconds)) * (2 * math.pi * hz / rate))[None]


def test_waveform_to_latents_and_back(audio: AudioVae) -> None:
    latents = audio.encode(tone(44100, 1.0), 44100)
    assert latents.shape == (1, 2, 26, 16)
    waveform = audio.decode(latents[:, :, :5])
    assert waveform.shape == (2, (4 * 5 - 3) * 480)
    assert waveform.dtype == torch.float32
    assert waveform.abs().max() <= 1


def test_mono_is_duplicated(audio: AudioVae) -> None:
    mono = tone(16000, 0.3)
    assert torch.equal(audio.encode(mono, 16000), audio.encode(mono.expand(2, -1), 16000))
    surround = torch.cat([mono, mono, -mono, mono, mono, mono])
    assert torch.equal(audio.encode(surround, 16000), audio.encode(mono, 16000))
    with pytest.raises(MediaError, match="channels, samples"):
        audio.encode(mono[0], 16000)


def test_resampling_keeps_low_tones_and_removes_high_ones() -> None:
    kept = resample(tone(48000, 0.5), 48000, 16000)[0, 400:-400]
    np.testing.assert_allclose(kept, tone(16000, 0.5)[0, 400:-400], atol=2e-3)
    gone = resample(tone(48000, 0.5, 11000.0), 48000, 16000)[0, 400:-400]
    assert gone.abs().max() < 0.01


def test_parts_are_loaded_separately(parts: dict[str, Component]) -> None:
    only = load_audio_vae(parts["audio_vae"], None, device="cpu", parts=("encoder",))
    assert (only.decoder, only.vocoder) == (None, None)
    with pytest.raises(ValueError, match="without its decoder"):
        only.decode(torch.zeros(1, 2, 3, 16))
    with pytest.raises(ValueError, match="without its vocoder"):
        assert only.sample_rate


# --- other widths ---------------------------------------------------------------------------------


def test_pocket_widths(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {f"audio_vae.{k}": s for k, s in layouts.audio_vae(**layouts.POCKET_AUDIO)}
    shapes |= {f"vocoder.{k}": s for k, s in layouts.vocoder(**layouts.POCKET_VOCODER)}
    tensors = {k: torch.randn(s, generator=generator) * 0.1 for k, s in shapes.items()}
    tensors["audio_vae.per_channel_statistics.std-of-means"] = torch.ones(32)
    path = tmp_path / "audio.safetensors"
    save_file(tensors, path, {"config": json.dumps({"vocoder": layouts.POCKET_VOCODER_CONFIG})})
    found = components(open_checkpoint(path))
    audio = load_audio_vae(found["audio_vae"], found["vocoder"], device="cpu")
    assert (audio.config.base, audio.config.multipliers) == (32, (1, 1, 2))
    assert (audio.config.latent_channels, audio.config.mel_bins) == (2, 64)
    assert audio.decode(torch.zeros(1, 2, 3, 16)).shape == (2, 9 * 480)
    bare = Component("vocoder", found["vocoder"].file, found["vocoder"].names)
    with pytest.raises(UnknownLayout, match="the header has no strides"):
        load_vocoder(bare, device="cpu")


# --- lengths --------------------------------------------------------------------------------------


@given(
    st.integers(1, 3000),
    st.integers(1, 241),
    st.sampled_from([Fraction(24), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(50)]),
    st.sampled_from([24000, 48000]),
)
@settings(max_examples=60, deadline=None)
def test_length_is_exact(samples: int, frames: int, fps: Fraction, rate: int) -> None:
    fitted = fit_length(torch.ones(2, samples), frames, fps, rate)
    assert fitted.shape == (2, round(frames * rate / fps))
    assert fitted.abs().max() <= 1


def test_fade_out_before_a_cut_and_before_silence() -> None:
    """The last 5 ms fade from full level to zero, before a cut and before silence."""
    for samples in (60000, 40000):
        waveform = torch.ones(2, samples)
        fitted = fit_length(waveform, 24, Fraction(24), 48000)
        end = min(samples, 48000)
        assert fitted.diff().abs().max() < 1 / 200
        assert fitted[:, : end - 240].min() == 1
        assert fitted[:, end - 1 :].abs().max() == 0
        assert waveform.min() == 1, "the input must not change"


def test_waveform_of_the_right_length_is_unchanged() -> None:
    waveform = torch.ones(2, 48000)
    assert fit_length(waveform, 24, Fraction(24), 48000) is waveform
