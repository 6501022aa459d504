"""``ladder upscale`` and ``ladder sound``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import typer
from helpers.tiny_clips import GOLDEN
from typer.testing import CliRunner

from latent_ladder.cli.commands import upscale as command
from latent_ladder.errors import RequestError
from latent_ladder.jobs.upscaling import upscale_fields
from latent_ladder.media.video_input import InputVideo
from latent_ladder.media.video_reader import probe, read_audio
from latent_ladder.media.video_writer import VideoSpec, write_video

TINY = ["--set", "models.checkpoint=tiny-ltx-2.3.safetensors", "--models", str(GOLDEN)]


def run(*words: str) -> None:
    app = typer.Typer()
    command.register(app)
    done = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_an_enlarged_video_has_the_same_sound(tmp_path: Path) -> None:
    t = np.arange(18000) / 48000
    tone = (np.sin(2 * np.pi * 300 * t) * 0.3).astype(np.float32)
    pixels = np.random.default_rng(0).integers(0, 255, (9, 40, 64, 3), np.uint8)
    spec = VideoSpec((64, 40), Fraction(24))
    write_video(tmp_path / "in.mp4", [pixels], spec, audio=(np.stack([tone, tone]), 48000))
    out = tmp_path / "out.mkv"
    run(
        "upscale", str(tmp_path / "in.mp4"), "-p", "distilled", "-q", "-o", str(out), *TINY,
        "--store", str(tmp_path / "store"), "--denoise", "0.2",
    )  # fmt: skip
    info = probe(out)
    assert (info.width, info.height, info.frames, info.fps) == (128, 80, 9, Fraction(24))
    sound = read_audio(out, 48000)[0, 2000:16000]
    correlation = (sound * tone[2000:16000]).sum() / np.sqrt(
        (sound**2).sum() * (tone[2000:16000] ** 2).sum()
    )
    assert correlation > 0.95


@pytest.mark.slow
def test_sound_is_written_as_wav(tmp_path: Path) -> None:
    out = tmp_path / "x.wav"
    run(
        "sound", "rain", "-p", "distilled", "-q", "-o", str(out), *TINY,
        "--store", str(tmp_path / "store"), "--duration", "0.4",
    )  # fmt: skip
    assert read_audio(out, 48000).shape[1] == pytest.approx(0.375 * 48000, abs=2)


def test_unknown_factors_are_refused(tmp_path: Path) -> None:
    long = InputVideo((64, 64), 999, Fraction(24), 41.7, False, False, False)
    assert upscale_fields(tmp_path / "a.mp4", long, 2.0)["frames"] == 1001
    with pytest.raises(RequestError, match="no latent upsampler"):
        upscale_fields(tmp_path / "a.mp4", long, 3.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.webp"])
def test_upscale_of_an_image_writes_an_image(tmp_path: Path, name: str) -> None:
    from PIL import Image

    Image.new("RGB", (64, 32), (200, 30, 30)).save(tmp_path / name)
    store = str(tmp_path / "store")
    run("upscale", str(tmp_path / name), "-p", "distilled", "-q", *TINY, "--store", store)
    with Image.open(tmp_path / "photo-x2.png") as image:
        assert (image.size, image.format) == ((128, 64), "PNG")
