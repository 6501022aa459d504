"""EXR sequences as input: order, rate, sound, sizes, gaps, and the light of their frames."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from latent_ladder.errors import MediaError
from latent_ladder.media.exr_sequence import Colours, find_exr_sequence
from latent_ladder.media.hdr import Light, codes_of_exr
from latent_ladder.media.image_sequence import write_image_file
from latent_ladder.media.video_input import check_video, sample_frames
from latent_ladder.media.video_writer import Frames, VideoSpec
from latent_ladder.pipeline.input_files import content_hash

SIZE = (64, 32)
COLOURS = Colours("srgb_linear", "acescct")


def light(level: float, size: tuple[int, int] = SIZE) -> Light:
    """One frame; brighter than white at the right."""
    ramp = np.linspace(0, level, size[0], dtype=np.float32)[None, :, None]
    return np.repeat(ramp, size[1], 0) * np.array([1.0, 0.7, 0.4], np.float32)


def write(path: Path, level: float, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    write_image_file(path, cast(list[Frames], [light(level, size)]), VideoSpec(size, Fraction(24)))


@pytest.fixture
def shot(tmp_path: Path) -> Path:
    """Pattern of four frames with the numbers 8 to 11, each brighter than the one before."""
    for i in range(4):
        write(tmp_path / "shot" / f"a.{8 + i}.exr", 2.0 * (i + 1))
    return tmp_path / "shot" / "a.%d.exr"


def test_frames_are_in_the_order_of_their_numbers(shot: Path) -> None:
    sequence = find_exr_sequence(shot)
    assert sequence is not None
    assert [file.name for file in sequence.files] == [f"a.{n}.exr" for n in (8, 9, 10, 11)]
    found = list(sequence.codes(COLOURS))
    for i, codes in enumerate(found):
        wanted = codes_of_exr(light(2.0 * (i + 1)), "srgb_linear", "acescct") * 255
        np.testing.assert_allclose(codes, wanted, atol=0.05)  # half floats
    assert found[3].max() > found[0].max() > 255 * 0.55, "light above white has room"


def test_the_rate_is_that_beside_the_files_else_the_given_one(shot: Path) -> None:
    assert check_video(shot, Fraction(25)).fps == 25
    assert check_video(shot).fps == 24
    (shot.parent / "request.json").write_text(json.dumps({"fps": "30000/1001"}))
    found = check_video(shot, Fraction(25))
    assert found.fps == Fraction(30000, 1001)
    assert found.duration_s == pytest.approx(4 * 1001 / 30000)
    assert (found.size, found.frames, found.has_audio) == (SIZE, 4, False)


@pytest.mark.parametrize("text", ["", "[]", '{"fps": "0"}', '{"fps": "1/0"}', "[" * 99])
def test_a_damaged_file_beside_them_is_no_rate(shot: Path, text: str) -> None:
    (shot.parent / "request.json").write_text(text)
    assert check_video(shot, Fraction(25)).fps == 25


def test_frames_are_sampled_at_the_times_of_the_clip(shot: Path) -> None:
    times = [Fraction(i, 48) for i in range(8)]
    frames = list(sample_frames(shot, times, SIZE, SIZE, fps=Fraction(24), colours=COLOURS))
    assert {frame.dtype for frame in frames} == {np.dtype(np.float32)}
    levels = [float(frame.max()) for frame in frames]
    assert levels == sorted(levels)
    assert len(set(levels)) == 4


def test_without_an_hdr_request_they_are_refused(shot: Path) -> None:
    with pytest.raises(MediaError, match="is HDR"):
        next(sample_frames(shot, [Fraction(0)], SIZE, SIZE))


def test_a_gap_is_named(shot: Path) -> None:
    (shot.parent / "a.10.exr").unlink()
    with pytest.raises(MediaError, match=r"frame a\.10\.exr is missing"):
        check_video(shot)


def test_another_size_is_named(shot: Path) -> None:
    write(shot.parent / "a.10.exr", 1.0, (32, 32))
    sequence = find_exr_sequence(shot)
    assert sequence is not None
    with pytest.raises(MediaError, match=r"a\.10\.exr has 32x32 pixels, .* have 64x32"):
        list(sequence.codes(COLOURS))


@pytest.mark.parametrize("name", ["b.%d.exr", "nowhere/%05d.exr"])
def test_no_files_are_named(shot: Path, name: str) -> None:
    with pytest.raises(MediaError, match="no file is named like"):
        check_video(shot.parent / name)


def test_a_folder_is_answered_with_its_pattern(shot: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError) as refused:
        check_video(shot.parent)
    assert str(refused.value.hint).endswith("a.%d.exr")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError) as refused:
        check_video(tmp_path / "empty")
    assert "pattern of EXR files" in str(refused.value.hint)


def test_one_file_is_a_video_of_one_frame(shot: Path) -> None:
    assert check_video(shot.parent / "a.8.exr").frames == 1


@pytest.mark.parametrize("text", [b"", b"not an image"])
def test_a_damaged_frame_is_named(shot: Path, text: bytes) -> None:
    (shot.parent / "a.8.exr").write_bytes(text)
    with pytest.raises(MediaError, match=r"a\.8\.exr"):
        check_video(shot)


def test_every_file_and_the_sound_decide_the_hash(shot: Path) -> None:
    hashes = [content_hash(shot)]
    write(shot.parent / "a.11.exr", 1.0)
    hashes.append(content_hash(shot))
    (shot.parent / "sound.wav").write_bytes(b"RIFF")
    hashes.append(content_hash(shot))
    assert len(set(hashes)) == 3
