"""An input sound: checked, encoded, fixed while the video is generated, and muxed unchanged."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.tiny_clips import CHOICE, GOLDEN, load_artefact, make, request_with, reused

from latent_ladder import Request
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan, select_models
from latent_ladder.cli.commands.flags import InputFlags, RequestFlags
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.media.audio_input import check_audio, read_audio_input
from latent_ladder.media.video_reader import probe, read_audio
from latent_ladder.models.audio_vae.vae import load_audio_vae
from latent_ladder.pipeline.run import prepare
from latent_ladder.pipeline.stages.input_encoding import encode_in_spans
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def tone(path: Path, seconds: float, rate: int = 22050, channels: int = 1) -> Path:
    """A 440 Hz tone that swells, as 16-bit WAV."""
    t = np.arange(round(seconds * rate)) / rate
    values = np.sin(2 * np.pi * 440 * t) * 0.5 * t / max(seconds, 1e-9)
    samples = np.repeat((values * 32767).astype("<i2")[:, None], channels, 1)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def test_a_sound_is_measured_and_read_no_further_than_asked(tmp_path: Path) -> None:
    path = tone(tmp_path / "a.wav", 1.5)
    info = check_audio(path)
    assert info.duration_s == pytest.approx(1.5)
    assert (info.rate, info.channels) == (22050, 1)
    assert read_audio_input(path, Fraction(1, 2)).shape == (2, 24000)
    whole = read_audio_input(path, Fraction(3))
    assert whole.shape[1] == pytest.approx(72000, abs=64)
    assert np.allclose(whole, read_audio(path, 48000)[:, : whole.shape[1]], atol=1e-6)


def test_what_has_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").write_bytes(b"")
    (tmp_path / "text.wav").write_text("hello hello hello")
    tone(tmp_path / "none.wav", 0.0)
    for name, message in {
        "missing.wav": "does not exist",
        "empty.wav": "0 bytes",
        "text.wav": "cannot be read as audio",
        "none.wav": "lasts 0 s",
    }.items():
        with pytest.raises(MediaError, match=message):
            check_audio(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "the rest of the clip is silent"), (0.9, "its beginning")]
)
def test_the_sound_of_the_clip_is_the_given_one(
    library: Library, store: Store, tmp_path: Path, seconds: float, said: str
) -> None:
    path = tone(tmp_path / "voice.wav", seconds)
    request = request_with(audio_in=str(path))
    assert Request.from_toml(request.to_toml()) == request
    result, _ = make(request, library, store, tmp_path / "a.mkv")
    assert said in " ".join(w.message for w in result.warnings)
    keys = {s.stage: s.key for s in result.stages}
    given = load_artefact(store, keys["audio_in"])["given_sound"]
    for name in ("base", "refine"):
        assert torch.allclose(load_artefact(store, keys[name])["audio"], given, atol=1e-6)
    info = probe(tmp_path / "a.mkv")
    assert info.audio_duration_s == pytest.approx(9 / 24, abs=0.03)
    kept = read_audio_input(path, Fraction(9, 24))
    got = read_audio(tmp_path / "a.mkv", 48000)[:, 1000 : kept.shape[1] - 1000]
    want = kept[:, 1000 : kept.shape[1] - 1000]
    likeness = (got * want).sum() / np.sqrt((got**2).sum() * (want**2).sum())
    assert likeness > 0.98  # but for the loss of the sound's codec
    again, _ = make(request, library, store, tmp_path / "b.mkv")
    assert all(was for name, was in reused(again).items() if name != "decode and write")


@pytest.mark.slow
def test_the_sound_drives_the_picture(library: Library, store: Store, tmp_path: Path) -> None:
    loud, quiet = tone(tmp_path / "a.wav", 0.5), tone(tmp_path / "b.wav", 0.5, channels=2)
    quiet.write_bytes(loud.read_bytes()[:44] + bytes(len(loud.read_bytes()) - 44))
    base = []
    for path in (loud, quiet):
        stages = [{"kind": "base", "schedule": {"steps": 2}}]
        request = request_with(audio_in=str(path), stages=stages, width=32, height=32)
        result, _ = make(request, library, store, path.with_suffix(".mp4"))
        key = next(s.key for s in result.stages if s.stage == "base")
        base.append(load_artefact(store, key)["video"])
    assert not torch.allclose(base[0], base[1], atol=1e-4)


def test_a_long_sound_is_encode_in_spans_as_it_would_be_whole(library: Library) -> None:
    audio_vae = select_models(library, CHOICE).audio_vae
    assert audio_vae is not None
    vae = load_audio_vae(audio_vae, None, device="cpu", parts=("encoder",))
    samples = torch.randn(2, 301 * 1920, generator=torch.Generator().manual_seed(0)) * 0.2
    whole = vae.encode(samples, 48000)[:, :, :300]
    spans = encode_in_spans(vae, samples, 300, span=70)
    torch.testing.assert_close(spans, whole, rtol=1e-4, atol=1e-4)


def test_a_silent_clip_of_a_sound_is_a_contradiction() -> None:
    with pytest.raises(RequestError, match="silent clip"):
        request_with(audio_in="a.wav", audio="none")


def test_a_clip_without_a_length_is_as_long_as_its_sound(library: Library, tmp_path: Path) -> None:
    inputs = InputFlags(audio_in=tone(tmp_path / "a.wav", 1.2))
    asked = RequestFlags(prompt="x", preset="pocket")
    assert asked.build_request(library, inputs).frames == 25  # 28.8 frames of sound
    asked = RequestFlags(prompt="x", preset="pocket", sets=["frames=9"])
    assert asked.build_request(library, inputs).frames == 9
    long = InputFlags(audio_in=tone(tmp_path / "b.wav", 25, rate=8000))
    made = RequestFlags(prompt="x", preset="pocket").build_request(library, long)
    assert made.frames == 601  # in windows of time


def test_of_three_hours_of_sound_a_clip_takes_what_it_is_told(
    library: Library, store: Store, tmp_path: Path
) -> None:
    path = tone(tmp_path / "opera.wav", 3 * 3600, rate=100)
    asked, inputs = RequestFlags(prompt="x", preset="pocket"), InputFlags(audio_in=path)
    with pytest.raises(
        RequestError, match=r"is 10800.0 s long; without --duration a clip"
    ) as raised:
        asked.build_request(library, inputs)
    assert "--duration 300" in (raised.value.hint or "")
    request = request_with(audio_in=str(path))
    said = " ".join(w.message for w in prepare(request, library, store).warnings)
    assert "lasts 10800.00 s, the clip 0.38 s: only its beginning is used" in said
    assert read_audio_input(path, Fraction(1)).shape == (2, 48000)


def test_no_audio_is_short_for_audio_none(library: Library) -> None:
    assert (
        RequestFlags(prompt="x", preset="pocket", no_audio=True).build_request(library).audio
        == "none"
    )


def test_a_sound_without_an_encoder_is_found_before_anything_runs(
    library: Library, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        prepare(request_with(audio_in=str(tmp_path / "no.wav")), library, store)
