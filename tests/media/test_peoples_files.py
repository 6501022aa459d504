"""Files as people have them: cut, late, anamorphic, interlaced, HDR, damaged, hostile."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latent_ladder.errors import MediaError
from latent_ladder.media import colour, image_files
from latent_ladder.media.audio_input import check_audio, read_audio_input
from latent_ladder.media.image_files import IMAGE_FORMATS, ImageTooLargeError, open_image
from latent_ladder.media.image_input import check_image, load_image
from latent_ladder.media.video_input import check_video
from latent_ladder.media.video_reader import (
    probe,
    read_audio,
    read_frames,
    read_metadata,
    timed_frames,
)

RATE = 48_000
TIMES_24 = tuple(Fraction(n, 24) for n in range(12))


def write_clip(
    path: Path,
    times: Sequence[Fraction] = TIMES_24,
    *,
    shape: Fraction = Fraction(1),
    sound_at: Fraction | None = None,
    gap: Fraction = Fraction(0),
    rate: int = 24,
) -> Path:
    """A clip of grey frames at ``times``; with ``sound_at``, 0.25 s of PCM at 0.5, twice."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"bf": "0", "crf": "10"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.sample_aspect_ratio = shape
        video.codec_context.time_base = Fraction(1, 1000)
        for number, time in enumerate(times):
            grey = np.full((48, 64, 3), 20 * (number % 12) + 10, np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, "rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    if sound_at is not None:
        add_sound(path, sound_at, gap)
    return path


def add_sound(path: Path, start: Fraction, gap: Fraction) -> None:
    """Copy the clip with two blocks of 12,000 samples; the second is ``gap`` seconds late."""
    silent = path.with_stem("silent")
    path.rename(silent)
    with av.open(str(silent)) as source, av.open(str(path), "w") as target:
        video = source.streams.video[0]
        copied = target.add_stream_from_template(video)
        sound = target.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        for packet in source.demux(video):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
        for block in range(2):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, 24_000), 16_384, np.int16), format="s16", layout="stereo"
            )
            frame.sample_rate, frame.time_base = RATE, Fraction(1, RATE)
            frame.pts = round((start + block * (Fraction(1, 4) + gap)) * RATE)
            target.mux(sound.encode(frame))
        target.mux(sound.encode(None))


def write_float_wav(path: Path, samples: NDArray[np.float32]) -> Path:
    with av.open(str(path), "w", format="wav") as container:
        stream = container.add_stream("pcm_f32le", rate=RATE, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(samples.T).reshape(1, -1), format="flt", layout="stereo"
        )
        frame.sample_rate = RATE
        container.mux([*stream.encode(frame), *stream.encode(None)])
    return path


# --- times ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(24000, 1001), Fraction(30), Fraction(25)])
def test_a_rate_survives_times_rounded_to_milliseconds(tmp_path: Path, rate: Fraction) -> None:
    # the header of this file states 50 fps, so that only the times can decide
    times = [n / rate for n in range(48)]
    path = write_clip(tmp_path / "a.mkv", times, rate=50)
    assert check_video(path).fps == rate
    assert probe(path).fps == rate
    assert not check_video(path).variable_rate


def test_a_variable_rate_has_the_mean_rate(tmp_path: Path) -> None:
    times = [Fraction(n, 10) for n in (0, 1, 2, 5, 6, 7, 8, 12, 13, 15)]
    found = check_video(write_clip(tmp_path / "a.mkv", times))
    assert found.variable_rate
    assert found.fps == 6
    assert found.frames == 10


def test_late_sound_stays_late_and_gaps_are_silent(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound_at=Fraction(1, 10), gap=Fraction(1, 5))
    heard = read_audio(path, RATE)[0] > 0.25
    begin, end = (np.flatnonzero(np.diff(heard.astype(int)) == step) + 1 for step in (1, -1))
    assert begin.tolist() == pytest.approx([0.1 * RATE, 0.55 * RATE], abs=0.002 * RATE)
    assert end[0] == pytest.approx(0.35 * RATE, abs=0.002 * RATE)
    assert np.array_equal(read_audio_input(path, None), read_audio(path, RATE))


def test_sound_before_the_first_picture_is_cut(tmp_path: Path) -> None:
    times = [Fraction(1, 4) + time for time in TIMES_24]
    path = write_clip(tmp_path / "a.mkv", times, sound_at=Fraction(0))
    assert read_audio(path, RATE).shape[1] == pytest.approx(0.25 * RATE, abs=0.002 * RATE)


def test_a_gap_of_hours_is_damage(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mkv", sound_at=Fraction(0), gap=Fraction(9000))
    with pytest.raises(MediaError, match=r"a\.mkv has a gap of 9000 s"):
        read_audio(path, RATE)


def test_frames_hidden_by_an_edit_list_are_not_shown(tmp_path: Path) -> None:
    path = cut_without_loss(write_clip(tmp_path / "whole.mp4"), tmp_path / "cut.mp4")
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 12
    greys = [int(frame.mean()) for frame in read_frames(path)]
    assert len(greys) == 8
    assert greys[0] == pytest.approx(20 * 4 + 10, abs=4)
    assert probe(path).frames == check_video(path).frames == 8


def cut_without_loss(source: Path, target: Path) -> Path:
    """A copy whose first four frames have times before 0: MP4 hides them by an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        for packet in old.demux(stream):
            if packet.dts is None or packet.pts is None or packet.time_base is None:
                continue
            shift = round(Fraction(4, 24) / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = copied
            new.mux(packet)
    return target


# --- picture -------------------------------------------------------------------------------------


def test_pixels_become_square(tmp_path: Path) -> None:
    wide = write_clip(tmp_path / "a.mp4", shape=Fraction(4, 3))
    tall = write_clip(tmp_path / "b.mp4", shape=Fraction(8, 9))
    assert next(read_frames(wide)).shape == (48, 85, 3)
    assert next(read_frames(tall)).shape == (54, 64, 3)
    found = check_video(wide)
    assert found.size == (85, 48)
    assert not found.rotated
    assert found.notes == ("has pixels of shape 4:3; its 64x48 are used as 85x48",)
    assert check_video(write_clip(tmp_path / "c.mp4")).notes == ()


def test_an_interlaced_video_is_deinterlaced(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream(
            "libx264", rate=25, options={"x264-params": "tff=1:bframes=0", "crf": "5"}
        )
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        for number in range(8):
            comb = np.full((64, 64, 3), 40, np.uint8)
            comb[0::2, 6 * number : 6 * number + 20] = 220
            comb[1::2, 6 * number + 3 : 6 * number + 23] = 220  # half a frame later
            container.mux(video.encode(av.VideoFrame.from_ndarray(comb, "rgb24")))
        container.mux(video.encode(None))
    frames = list(timed_frames(path))
    assert [time for time, _ in frames] == [Fraction(n, 25) for n in range(8)]
    combs = [comb_size(frame) for _, frame in frames[2:6]]
    with av.open(str(path)) as container:
        stored = [
            comb_size(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)
        ]
    assert max(combs) < 0.5 * min(stored[2:6])
    assert "is interlaced; it is deinterlaced" in check_video(path).notes


def comb_size(frame: NDArray[np.uint8]) -> float:
    """Mean difference of neighbouring rows; that of one field's movement in a combed frame."""
    return float(np.abs(np.diff(frame[..., 1].astype(float), axis=0)).mean())


@pytest.mark.parametrize(("transfer", "kind"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_converted_and_said(tmp_path: Path, transfer: int, kind: str) -> None:
    # code values of ITU-R BT.2408, table 1: 203 nits is 58 % in PQ and 75 % in HLG
    white = {16: 0.58, 18: 0.75}[transfer]
    codes = np.repeat(np.linspace(0.0, white, 64)[None], 64, 0)
    path = write_hdr(tmp_path / "a.mp4", codes, transfer)
    shown = next(read_frames(path))[32].astype(int)
    assert np.abs(shown - shown[:, :1]).max() <= 2  # grey stays grey
    assert shown[0, 0] <= 3
    assert np.diff(shown[:, 1]).min() >= -1  # rises
    # reference white: 0.75 + 0.25 / (1 + 0.25 (4 - 1 / 4.176)), to the power of 1 / 2.4
    assert shown[-1, 1] == pytest.approx(242, abs=3)
    assert any(f"is HDR ({kind})" in note for note in check_video(path).notes)


def write_hdr(path: Path, codes: NDArray[np.float64], transfer: int) -> Path:
    """Two grey 10-bit frames with these codes (H, W), tagged BT.2020."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24, options={"crf": "1"})
        video.height, video.width = codes.shape
        video.pix_fmt = "yuv420p10le"
        context = video.codec_context
        context.color_primaries, context.color_trc, context.colorspace = 9, transfer, 9
        context.color_range = 1
        frame = av.VideoFrame(codes.shape[1], codes.shape[0], "yuv420p10le")
        luma = np.round(64 + codes * 876).astype("<u2")
        for plane, values in zip(frame.planes, (luma, None, None), strict=True):
            rows = np.full((plane.height, plane.line_size // 2), 512, "<u2")
            if values is not None:
                rows[:, : plane.width] = values
            plane.update(rows.tobytes())
        for number in range(2):
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    return path


def test_gamut_matrices_leave_white_white() -> None:
    for matrix in colour._TO_BT709.values():
        assert np.array(matrix).sum(1) == pytest.approx(1, abs=2e-5)


# --- sound ---------------------------------------------------------------------------------------


def test_mono_is_as_loud_as_stereo(tmp_path: Path) -> None:
    tone = (16_000 * np.sin(np.arange(RATE) * 0.05)).astype("<i2")
    for channels in (1, 2):
        with wave.open(str(tmp_path / f"{channels}.wav"), "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(np.repeat(tone[:, None], channels, 1).tobytes())
    mono, stereo = (read_audio_input(tmp_path / f"{n}.wav", None) for n in (1, 2))
    assert np.array_equal(mono, stereo)
    assert np.array_equal(read_audio(tmp_path / "1.wav"), mono)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_in_a_file_is_its_fault(tmp_path: Path, bad: float) -> None:
    samples = np.zeros((2, RATE), np.float32)
    assert check_audio(write_float_wav(tmp_path / "good.wav", samples)).duration_s == 1
    samples[1, 30_000] = bad
    path = write_float_wav(tmp_path / "bad.wav", samples)
    for read in (check_audio, lambda path: read_audio_input(path, None)):
        with pytest.raises(MediaError, match=r"bad\.wav has samples that are NaN or infinite"):
            read(path)


# --- damaged and hostile -------------------------------------------------------------------------


def test_tags_that_are_not_utf8_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(write_clip(tmp_path / "b.mkv"))) as old, av.open(str(path), "w") as new:
        new.metadata["title"] = "ZZZZZZ"
        copied = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = copied
                new.mux(packet)
    path.write_bytes(path.read_bytes().replace(b"ZZZZZZ", b"caf\xe9 \xff"))
    assert read_metadata(path)["title"] == "caf\ufffd \ufffd"
    assert probe(path).frames == check_video(path).frames == len(list(read_frames(path))) == 12


def test_a_truncated_jpeg_is_read_and_said(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=95)
    whole = load_image(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    found = load_image(tmp_path / "cut.jpg")
    assert np.array_equal(found[:8], whole[:8])
    assert np.ptp(found[-8:].astype(int)) == 0
    assert "is truncated: its missing part is grey" in check_image(tmp_path / "cut.jpg").notes
    assert check_image(tmp_path / "a.jpg").notes == ()


def test_eps_starts_no_other_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program started"))
    for read in (check_image, load_image, read_metadata):
        with pytest.raises(MediaError, match=r"a\.png cannot be read as an image"):
            read(tmp_path / "a.png")
    assert "EPS" not in IMAGE_FORMATS


def test_images_and_containers_are_opened_in_one_place() -> None:
    source = Path(image_files.__file__).parents[1]
    openers = {
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        for line in file.read_text("utf-8").splitlines()
        if "Image.open(" in line or ("av.open(" in line and '"w"' not in line)
    }
    # two of them open containers for writing, in calls of several lines
    writers = {"media/video_writer.py", "comfyui/nodes/saving.py"}
    assert openers - writers == {"media/image_files.py", "media/open_media.py"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.ffconcat", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("a.mp4", "ffconcat version 1.0\nfile clip.mp4\n"),
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n"),
    ],
)
def test_playlists_are_not_followed(tmp_path: Path, name: str, text: str) -> None:
    write_clip(tmp_path / "clip.mp4")
    (tmp_path / name).write_text(text)
    for read in (check_video, probe, check_audio, read_metadata):
        with pytest.raises(MediaError, match="cannot be read"):
            read(tmp_path / name)


def test_a_name_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "clip.mp4")
    with pytest.raises(MediaError, match="does not exist"):
        check_video(Path("concat:clip.mp4"))
    (tmp_path / "clip.mp4").rename(tmp_path / "concat:clip.mp4")
    assert check_video(Path("concat:clip.mp4")).frames == 12


def test_bombs_are_refused_before_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("1", (40_000, 40_000)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("decoded"))
    for read in (check_image, load_image, read_metadata):
        with pytest.raises(ImageTooLargeError, match=r"a\.png has .* pixels"):
            read(tmp_path / "a.png")


def test_the_frames_of_an_animation_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.new("L", (50, 40), 10 * n) for n in range(10)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    monkeypatch.setattr(image_files, "MAX_PIXELS", 15_000)
    with open_image(tmp_path / "a.gif") as image:
        assert image.size == (50, 40)
    with (
        pytest.raises(ImageTooLargeError, match="50x40 pixels in 10 frames, expected at most"),
        open_image(tmp_path / "a.gif", all_frames=True),
    ):
        pass


def test_content_in_memory_is_checked_alike() -> None:
    with (
        pytest.raises(MediaError, match=r"x\.png cannot be read"),
        open_image(Path("x.png"), io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n")),
    ):
        pass


def test_the_cover_of_a_sound_file_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mka"
    with av.open(str(path), "w", format="matroska") as container:
        sound = container.add_stream("pcm_s16le", rate=RATE, layout="stereo")
        cover = io.BytesIO()
        Image.new("RGB", (8, 8)).save(cover, "PNG")
        container.add_attachment("cover.png", "image/png", cover.getvalue())
        frame = av.AudioFrame.from_ndarray(
            np.full((1, 24_000), 9_000, np.int16), format="s16", layout="stereo"
        )
        frame.sample_rate = RATE
        container.mux([*sound.encode(frame), *sound.encode(None)])
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match="has no video track"):
        check_video(path)
    assert read_audio_input(path, None).shape == (2, 12_000)
