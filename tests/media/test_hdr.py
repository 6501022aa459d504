"""HDR: the curves of the official code, HDR video with its tags, EXR files, read back."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import pytest
from helpers.goldens import Goldens

from latent_ladder.errors import MediaError
from latent_ladder.media import hdr
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.image_sequence import write_image_file
from latent_ladder.media.video_reader import read_frames
from latent_ladder.media.video_writer import Frames, VideoSpec, write_video


def test_the_curves_are_the_official_ones(golden_2_5: Goldens) -> None:
    case = golden_2_5("hdr.curves")
    linear = case.inputs["linear"].numpy()
    for name, to, back in (
        ("acescct", hdr.acescct, hdr.from_acescct), ("logc3", hdr.logc3, hdr.from_logc3)
    ):  # fmt: skip
        want = case.outputs[f"{name}_code"].numpy()
        np.testing.assert_allclose(to(linear), want, rtol=1e-4, atol=1e-6)
        want = case.outputs[f"{name}_back"].numpy()
        np.testing.assert_allclose(back(to(linear)), want, rtol=1e-4, atol=1e-6)


def test_the_working_space_is_the_official_one(golden_2_5: Goldens) -> None:
    case = golden_2_5("hdr.working_space")
    rgb = case.inputs["rgb"].permute(1, 2, 0).numpy()
    outputs = {name: t.permute(1, 2, 0).numpy() for name, t in case.outputs.items()}
    codes = hdr.codes_of_exr(rgb, "srgb_linear", "acescct")
    np.testing.assert_allclose(codes, outputs["from_rec709"], rtol=1e-4, atol=1e-4)
    back = hdr.light_of_codes(codes, "acescct")
    np.testing.assert_allclose(back, outputs["back_rec709"], rtol=1e-4, atol=1e-4)
    aces = hdr.codes_of_exr(rgb, "acescg", "acescct")
    np.testing.assert_allclose(aces, outputs["from_acescg"], rtol=1e-4, atol=1e-4)


def test_white_is_at_203_nits() -> None:
    white = np.ones((1, 3), np.float32)
    assert hdr.signal_of_light(white, "hlg")[0] / 65535 == pytest.approx([0.75] * 3, abs=1e-3)
    assert hdr.signal_of_light(white, "pq")[0] / 65535 == pytest.approx([0.5807] * 3, abs=1e-3)
    brightest = hdr.signal_of_light(white * 1000, "hlg") / 65535
    assert 0.99 < float(brightest.max()) <= 1


@pytest.mark.parametrize(
    ("suffix", "codec", "transfer"),
    [(".mp4", "auto", "hlg"), (".mkv", "av1", "pq"), (".mp4", "h265", "pq")],
)
def test_hdr_video_has_its_tags_and_reads_back(
    tmp_path: Path, suffix: str, codec: str, transfer: str
) -> None:
    """10 bits, BT.2020, the transfer; its light survives, and players show white as white."""
    ramp = np.linspace(0, 4, 64, dtype=np.float32)
    light = np.repeat(ramp[None, :, None], 32, axis=0) * np.ones(3, np.float32)
    path = tmp_path / f"clip{suffix}"
    settings = EncoderSettings(codec, crf=4, transfer=transfer)
    signal = hdr.signal_of_light(light, transfer)
    write_video(path, [signal[None]] * 3, VideoSpec((64, 32), Fraction(24), settings))
    with av.open(str(path)) as opened:
        frame = next(opened.decode(video=0))
        assert "10" in frame.format.name
        assert (int(frame.color_primaries), int(frame.colorspace)) == (9, 9)
        assert int(frame.color_trc) == {"hlg": 18, "pq": 16}[transfer]
        found = frame.reformat(format="rgb48le").to_ndarray()
    assert np.abs(found.astype(float) - signal).max() < 65535 * 0.02
    shown = next(iter(read_frames(path)))
    assert np.abs(shown.astype(int) - hdr.sdr_of_light(light)).max() < 12


def test_codecs_of_8_bits_are_refused(tmp_path: Path) -> None:
    frames = [np.zeros((32, 32, 3), np.uint16)]
    for name, settings in (
        ("a.mp4", EncoderSettings("h264", transfer="hlg")),
        ("a.mp4", EncoderSettings("h265", pix_fmt="yuv420p", transfer="pq")),
        ("a.gif", EncoderSettings(transfer="pq")),
    ):
        with pytest.raises(MediaError, match=r"HDR"):
            write_video(tmp_path / name, frames, VideoSpec((32, 32), Fraction(24), settings))


def test_exr_files_read_back(tmp_path: Path) -> None:
    light = np.random.default_rng(1).random((16, 32, 3)).astype(np.float32) * 50
    path = tmp_path / "a.exr"
    write_image_file(path, cast(list[Frames], [light]), VideoSpec((32, 16), Fraction(24)))
    np.testing.assert_allclose(hdr.load_exr(path), light, rtol=2e-3)
    (tmp_path / "b.exr").write_bytes(b"not an image")
    with pytest.raises(MediaError, match="cannot be read as an EXR"):
        hdr.load_exr(tmp_path / "b.exr")
    with pytest.raises(MediaError, match="does not exist"):
        hdr.load_exr(tmp_path / "c.exr")
