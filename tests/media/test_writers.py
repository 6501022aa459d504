"""All kinds of output read back: frames, bit depth, colours, audio, metadata; errors leave none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from latent_ladder.errors import MediaError
from latent_ladder.media import encoders
from latent_ladder.media.encoders import EncoderSettings, bits_per_channel, require_encoder
from latent_ladder.media.video_reader import probe, read_audio, read_metadata
from latent_ladder.media.video_writer import VideoSpec, WrittenVideo
from latent_ladder.media.writers import bit_depth, check_clip, write_clip_file
from latent_ladder.pipeline.stages.decoding import integer_frames
from latent_ladder.pipeline.thumbnails import Thumbnails
from latent_ladder.request.output import Output

SIZE, FPS, COUNT = (96, 64), Fraction(24), 9
TAGS = {"latent_ladder": '{"request": {"prompt": "Füchse 狐 🦊"}}', "comment": "Füchse"}


def ramps(kind: type[np.unsignedinteger] = np.uint16, count: int = COUNT) -> Iterator[np.ndarray]:
    """Red rises to the right, green downwards, blue with time."""
    width, height = SIZE
    x = np.broadcast_to(np.linspace(0, 1, width), (height, width))
    y = np.broadcast_to(np.linspace(0, 1, height)[:, None], (height, width))
    for i in range(count):
        pixels = np.stack([x, y, np.full_like(x, i / count)], -1)
        yield (pixels * np.iinfo(kind).max).round().astype(kind)[None]


def tone(seconds: float) -> tuple[np.ndarray, int]:
    wave = 0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * 48000)) / 48000)
    return np.stack([wave, wave]).astype(np.float32), 48000


def write(path: Path, frames: Iterator[np.ndarray] | None = None, **settings: Any) -> WrittenVideo:
    encoder = EncoderSettings(**settings)
    check_clip(path, False, encoder)
    return write_clip_file(
        path,
        ramps() if frames is None else frames,
        VideoSpec(SIZE, FPS, encoder),
        audio=tone(1.0),
        duration=COUNT / FPS,
        metadata=TAGS,
        overwrite=False,
    )


@pytest.mark.parametrize(
    ("name", "codec", "video", "pix_fmt", "sound"),
    [
        ("a.mp4", "auto", "h264", "yuv420p", "aac"),
        ("b.mp4", "h265", "hevc", "yuv420p10le", "aac"),
        ("c.mp4", "av1", "libdav1d", "yuv420p10le", "aac"),
        ("d.mov", "prores", "prores", "yuv422p10le", "pcm_s24le"),
        ("e.mkv", "h265", "hevc", "yuv420p10le", "aac"),
        ("f.webm", "auto", "libdav1d", "yuv420p10le", "opus"),
    ],
)
def test_videos_read_back(
    tmp_path: Path, name: str, codec: str, video: str, pix_fmt: str, sound: str
) -> None:
    path = tmp_path / name
    written = write(path, codec=codec)
    assert written.frames == COUNT
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert container.streams.video[0].codec_context.name == video
        assert container.streams.audio[0].codec_context.name == sound
    first = frames[0]
    assert (len(frames), first.format.name, first.width, first.height) == (COUNT, pix_fmt, *SIZE)
    tags = (first.colorspace, first.color_primaries, first.color_trc, first.color_range)
    assert tags == (1, 1, 1, 1)
    info = probe(path)
    assert (info.frames, info.fps) == (COUNT, FPS)
    assert info.duration_s == pytest.approx(COUNT / 24, abs=0.0015)  # mkv counts in ms
    assert info.audio_duration_s == pytest.approx(COUNT / 24, abs=0.022)
    assert {k: read_metadata(path)[k] for k in TAGS} == TAGS
    rgb = frames[4].reformat(format="rgb24", src_colorspace=1).to_ndarray()
    true = list(ramps(np.uint8))[4][0]
    assert np.abs(rgb.astype(int) - true).mean() < 6


def test_ten_bit_codecs_store_ten_bits(tmp_path: Path) -> None:
    """A grey ramp over one eighth of the range has four times the levels of 8 bits."""
    levels = np.linspace(20000, 28000, SIZE[0]).astype(np.uint16)
    pixels = np.broadcast_to(levels[None, :, None], (SIZE[1], SIZE[0], 3))
    counts = {}
    for codec, frames in (("h264", pixels), ("h265", pixels), ("prores", pixels)):
        path = tmp_path / ("x.mov" if codec == "prores" else f"{codec}.mp4")
        crf = None if codec == "prores" else 1
        write(path, iter([frames[None]] * 3), codec=codec, crf=crf)
        with av.open(str(path)) as container:
            plane = next(container.decode(video=0)).planes[0]
        kind = np.uint8 if codec == "h264" else np.uint16
        luma = np.frombuffer(bytes(plane), kind).reshape(SIZE[1], -1)[:, : SIZE[0]]
        counts[codec] = len(np.unique(luma[SIZE[1] // 2]))
    assert counts["h264"] < 32
    assert counts["h265"] > 1.8 * counts["h264"]
    assert counts["prores"] > 1.8 * counts["h264"]


def test_frames_are_converted_to_the_bit_depth_of_the_file() -> None:
    frames = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1)
    (eight,), (ten,) = (integer_frames([frames], bits) for bits in (8, 10))
    assert eight.tolist() == [[[[0, 128, 255]]]]
    assert ten.tolist() == [[[[0, 32768, 65535]]]]
    assert [frames.dtype for frames in integer_frames([frames], 16)] == [np.uint16]
    assert [bits_per_channel(p) for p in ("yuv420p", "yuv420p10le", "pal8", "rgb48le")] == [
        8,
        10,
        8,
        16,
    ]


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_animated_images_read_back_with_the_request(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path)
    with Image.open(path) as image:
        assert (getattr(image, "n_frames", 1), image.size) == (COUNT, SIZE)
        assert image.info["loop"] == 0
        image.seek(COUNT - 1)
        got = np.asarray(image.convert("RGB"), int)
    assert np.abs(got - list(ramps(np.uint8))[-1][0]).mean() < 8
    assert {k: read_metadata(path)[k] for k in TAGS} == TAGS


@pytest.mark.parametrize(
    ("suffix", "bits", "pix_fmt"), [("png", 8, "rgb24"), ("tif", 16, "rgb48le"), ("exr", 16, "")]
)
def test_single_frames_read_back(tmp_path: Path, suffix: str, bits: int, pix_fmt: str) -> None:
    path = tmp_path / "frames" / f"%03d.{suffix}"
    assert bit_depth(path, EncoderSettings()) == bits
    written = write(path)
    names = sorted(p.name for p in path.parent.iterdir())
    assert names == [*(f"{i:03d}.{suffix}" for i in range(COUNT)), "request.json", "sound.wav"]
    assert written.frames == COUNT
    assert {k: read_metadata(path)[k] for k in TAGS} == TAGS
    assert read_audio(path.parent / "sound.wav", 48000).shape == (2, 18000)
    with av.open(str(path.parent / f"004.{suffix}")) as container:
        frame = next(container.decode(video=0))
    if suffix == "exr":
        assert (
            frame.format.name == "gbrpf16le"
        )  # half floats, which PyAV does not convert to an array
        return
    assert frame.format.name == pix_fmt
    true = list(ramps(np.uint16 if bits == 16 else np.uint8))[4][0]
    assert np.abs(frame.to_ndarray().astype(int) - true).max() <= (bits == 8)
    if suffix == "png":
        assert {k: read_metadata(path.parent / "004.png")[k] for k in TAGS} == TAGS


def test_exr_is_linear_light(tmp_path: Path) -> None:
    path = tmp_path / "f" / "%d.exr"
    grey = np.full((1, SIZE[1], SIZE[0], 3), 0.5 * 65535, np.uint16)
    write(path, iter([grey]))
    with av.open(str(path.parent / "0.exr")) as container:
        frame = next(container.decode(video=0))
    half_floats = np.frombuffer(bytes(frame.planes[0]), np.float16)
    assert float(half_floats[0]) == pytest.approx(0.2140, abs=0.001)


def test_audio_only_reads_no_frames(tmp_path: Path) -> None:
    def unread_frames() -> Iterator[np.ndarray]:
        raise AssertionError("frames were read")
        yield

    path = tmp_path / "a.wav"
    written = write(path, unread_frames())
    assert (written.frames, written.audio_duration_s) == (0, 0.375)
    assert np.abs(read_audio(path, 48000) - tone(0.375)[0]).max() < 1e-4
    assert read_metadata(path)["latent_ladder"] == TAGS["latent_ladder"]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("a.mp4", {"codec": "prores"}, "can contain h264 or h265 or av1, not prores"),
        ("a.webm", {"codec": "h264"}, "can contain av1, not h264"),
        ("a.mov", {"codec": "prores", "crf": 20}, "has no crf"),
        ("a.mp4", {"preset": "best"}, "no preset 'best'"),
        ("a.webm", {"pix_fmt": "yuv444p"}, "no pixel format"),
        ("a.png", {}, "one image, not a clip"),
        ("%d%d.png", {}, "not a pattern of frame names"),
        ("%05d.jpg", {}, "not a pattern of frame names"),
        ("a.avi", {}, "ends in '.avi'"),
    ],
)
def test_invalid_combinations_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(MediaError, match=message) as caught:
        check_clip(tmp_path / name, False, EncoderSettings(**settings))
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("codec", "encoder"), [("h264", "h264_nvenc"), ("h265", "hevc_nvenc")])
def test_nvenc_is_used_where_it_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, encoder: str
) -> None:
    path, settings = tmp_path / "a.mp4", EncoderSettings(codec=f"{codec}_nvenc")
    monkeypatch.setattr(encoders, "reason_against_nvenc", lambda _: "no driver")
    with pytest.raises(MediaError, match="NVIDIA GPU: no driver") as caught:
        check_clip(path, False, settings)
    assert f"--codec {codec}," in str(caught.value.hint)
    monkeypatch.setattr(encoders, "reason_against_nvenc", lambda _: None)
    found = encoders.choose_encoding(path, settings)
    assert (found.encoder, found.bits) == (encoder, 8)
    assert found.options["cq"] == ("19" if codec == "h264" else "21")
    lossless = encoders.choose_encoding(path, replace(settings, crf=0, preset="p7"))
    assert lossless.options == {"preset": "p7", "tune": "lossless"}
    with pytest.raises(MediaError, match="8 bits, HDR needs 10"):
        encoders.choose_encoding(path, replace(settings, transfer="pq"))
    with pytest.raises(MediaError, match="can contain av1, not"):
        encoders.choose_encoding(path.with_suffix(".webm"), settings)


def test_an_encoder_is_opened_to_see_that_it_works() -> None:
    assert encoders.reason_against_nvenc("libx264") is None
    if not torch.cuda.is_available():
        reason = encoders.reason_against_nvenc("h264_nvenc")
        assert reason is not None and "cannot be opened" in reason


def test_a_missing_encoder_is_named_in_the_error() -> None:
    require_encoder("libx264")
    with pytest.raises(MediaError, match="no encoder libnothing"):
        require_encoder("libnothing")


def test_a_failed_image_sequence_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "frames" / "%03d.png"
    write(path)
    old = {p.name: p.read_bytes() for p in path.parent.iterdir()}

    def failing() -> Iterator[np.ndarray]:
        yield next(ramps())
        raise KeyboardInterrupt

    spec = VideoSpec(SIZE, FPS)
    arguments: dict[str, Any] = {"audio": None, "duration": COUNT / FPS, "metadata": TAGS}
    with pytest.raises(KeyboardInterrupt):
        write_clip_file(path, failing(), spec, overwrite=True, **arguments)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == old
    assert [p.name for p in tmp_path.iterdir()] == ["frames"]
    with pytest.raises(MediaError, match="already contains frames"):
        check_clip(path, False, EncoderSettings())
    write_clip_file(path, ramps(count=2), spec, overwrite=True, **arguments)
    assert len(list(path.parent.glob("*.png"))) == 2
    (path.parent / "holiday.png").touch()
    with pytest.raises(MediaError, match=r"contains other files, such as holiday\.png"):
        check_clip(path, True, EncoderSettings())


def test_poster_and_sheet_are_written_next_to_the_clip(tmp_path: Path) -> None:
    thumbnails = Thumbnails(tmp_path / "a.mp4", Output(poster=True, sheet=True), COUNT, TAGS)
    passed = list(thumbnails.collect(ramps()))
    assert len(passed) == COUNT
    thumbnails.write()
    with Image.open(tmp_path / "a.poster.png") as poster:
        got = np.asarray(poster, int)
    assert np.abs(got - list(ramps(np.uint8))[COUNT // 2][0]).max() <= 1
    with Image.open(tmp_path / "a.sheet.png") as sheet:
        assert sheet.size == (4 * 100 - 4, 3 * 68 - 4)
    assert read_metadata(tmp_path / "a.poster.png")["comment"] == "Füchse"
    Thumbnails(tmp_path / "b.mp4", Output(), COUNT, TAGS).write()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.poster.png", "a.sheet.png"]


def test_default_fields_of_the_output_are_unchanged() -> None:
    assert Output().fields() == {"codec": "h264", "crf": 19}
    assert Output(poster=True).fields() == Output().fields()
    assert Output(codec="av1", crf=28).fields() == {"codec": "av1", "crf": 28}
