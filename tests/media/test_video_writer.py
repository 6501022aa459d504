"""Videos read back with frames, colours, times and metadata; a failed write leaves no file."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from latent_ladder.errors import Cancelled, MediaError
from latent_ladder.media.encoders import EncoderSettings
from latent_ladder.media.image_input import load_image
from latent_ladder.media.video_reader import (
    extract_frames,
    probe,
    read_audio,
    read_frames,
    read_metadata,
)
from latent_ladder.media.video_writer import (
    QUEUED_CHUNKS,
    VideoSpec,
    check_size,
    check_video_path,
    write_video,
)
from latent_ladder.storage.temporary_files import ABANDONED_S, PART_PREFIX

SPEC = VideoSpec((96, 64), Fraction(24))
NTSC = Fraction(30000, 1001)


def chunks(n_frames: int, step: int = 8) -> Iterator[np.ndarray]:
    """Grey frames of rising brightness, in chunks as the VAE decodes them: 1 frame, then 8 each."""
    first = 0
    while first < n_frames:
        end = min(n_frames, first + (1 if first == 0 else step))
        levels = np.arange(first, end, dtype=np.uint8)[:, None, None, None]
        yield np.broadcast_to(levels * 2, (end - first, 64, 96, 3))
        first = end


def tone(seconds: float, rate: int = 48000, hertz: float = 440.0) -> np.ndarray:
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.stack([wave, -wave]).astype(np.float32)


def noise(n_chunks: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Frames that do not compress."""
    rng = np.random.default_rng(seed)
    for _ in range(n_chunks):
        yield rng.integers(0, 256, (4, 64, 96, 3), np.uint8)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize(
    ("fps", "n_frames"),
    [
        (Fraction(24), 49),
        (NTSC, 121),
        (Fraction(24000, 1001), 97),
        (Fraction(25), 9),
        (Fraction(50), 1),
    ],
)
def test_times_are_exact_and_audio_ends_with_the_video(
    tmp_path: Path, fps: Fraction, n_frames: int, suffix: str
) -> None:
    path = tmp_path / f"clip{suffix}"
    spec = VideoSpec((96, 64), fps)
    written = write_video(path, chunks(n_frames), spec, audio=(tone(3.0), 48000))
    duration = n_frames / fps
    samples = round(duration * 48000)
    assert written.frames == n_frames
    assert written.duration_s == float(duration)
    assert written.bytes == path.stat().st_size
    info = probe(path)
    assert (info.width, info.height, info.frames, info.fps) == (96, 64, n_frames, fps)
    assert info.duration_s == pytest.approx(float(duration), abs=1e-6)
    assert info.audio_duration_s == pytest.approx(samples / 48000, abs=1e-5)
    assert written.audio_duration_s == samples / 48000
    sound = read_audio(path, 48000)
    assert sound.shape == (2, samples)
    with av.open(str(path)) as container:
        assert container.duration == pytest.approx(float(duration * 1_000_000), abs=25)
        times = [frame.pts * frame.time_base for frame in container.decode(video=0)]
    assert times == [i / fps for i in range(n_frames)]


def test_frames_are_read_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, chunks(49), SPEC)
    levels = [float(frame.mean()) for frame in read_frames(path)]
    assert levels == pytest.approx([2.0 * i for i in range(49)], abs=2.0)
    assert probe(path).audio_duration_s is None
    assert read_audio(path, 48000).shape == (2, 0)


def test_single_frames_give_the_same_file_as_chunks(tmp_path: Path) -> None:
    one, many = tmp_path / "one.mp4", tmp_path / "many.mp4"
    write_video(one, (frame for chunk in chunks(17) for frame in chunk), SPEC)
    write_video(many, chunks(17), SPEC)
    assert one.read_bytes() == many.read_bytes()


def test_colours_survive_and_are_tagged_bt709(tmp_path: Path) -> None:
    colours = [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
        (255, 255, 255),
        (0, 0, 0),
        (200, 100, 50),
        (12, 230, 180),
    ]
    path = tmp_path / "clip.mp4"
    shown = (np.broadcast_to(np.array(c, np.uint8), (4, 64, 96, 3)) for c in colours)
    write_video(path, shown, SPEC)
    frames = list(read_frames(path))
    for i, colour in enumerate(colours):
        assert np.abs(frames[4 * i + 2].astype(int) - colour).max() <= 4
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        assert tags == (1, 1, 1, 1)
        assert frame.format.name == "yuv420p"
        # Red in BT.709 limited range: the values in the file.
        planes = [plane[32 // k, 48 // k] for plane, k in zip(yuv(frame), (1, 2, 2), strict=True)]
    assert planes == pytest.approx([63, 102, 240], abs=2)


def yuv(frame: av.VideoFrame) -> list[np.ndarray]:
    rows = frame.to_ndarray()
    height, width = frame.height, frame.width
    chroma = rows[height:].reshape(2, height // 2, width // 2)
    return [rows[:height], chroma[0], chroma[1]]


def test_untagged_hd_is_read_as_bt709_and_smaller_video_as_bt601(tmp_path: Path) -> None:
    for width, expected in ((96, (233, 0, 2)), (1280, (254, 0, 0))):
        path = tmp_path / f"{width}.mkv"
        planes = np.full((64 * 3 // 2, width), 63, np.uint8)
        planes[64:80], planes[80:] = 102, 240
        with av.open(str(path), "w") as container:
            stream = container.add_stream("ffv1", rate=24)
            stream.width, stream.height, stream.pix_fmt = width, 64, "yuv420p"
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            container.mux([*stream.encode(frame), *stream.encode(None)])
        pixel = next(read_frames(path))[32, 48]
        assert np.abs(pixel.astype(int) - expected).max() <= 8


def test_the_tone_survives_resampling_and_is_padded_with_silence(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, chunks(49), SPEC, audio=(tone(1.0, rate=24000), 24000))
    sound = read_audio(path, 48000)
    assert sound.shape == (2, 98000)
    middle = sound[0, 12000:36000]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * 48000 / 24000 == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.03)
    assert np.abs(sound[:, 50000:]).max() < 0.01
    assert np.corrcoef(sound[0, 4800:43200], sound[1, 4800:43200])[0, 1] < -0.99
    start = sound[0, :4800] - tone(0.1)[0]
    assert np.abs(start).mean() < 0.03  # in phase: no delay from the encoder


def test_audio_of_a_wrong_shape_is_an_error_and_nan_is_silence(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=r"expected \(2, samples\)"):
        write_video(tmp_path / "a.mp4", chunks(9), SPEC, audio=(tone(1)[0], 48000))
    path = tmp_path / "b.mp4"
    write_video(path, chunks(9), SPEC, audio=(np.full((2, 99), np.nan, np.float32), 48000))
    assert np.abs(read_audio(path, 48000)).max() == 0.0


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_metadata_survives(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"Füchse im Schnee{suffix}"
    tags = {"latent_ladder": '{"prompt": "Füchse 狐 🦊"}' + " " * 5000, "title": "Füchse"}
    write_video(path, chunks(9), SPEC, metadata=tags, audio=(tone(1), 48000))
    found = read_metadata(path)
    assert found["latent_ladder"] == tags["latent_ladder"]
    assert found["title"] == "Füchse"
    assert probe(path).metadata == found


def test_mkv_durations_are_right_within_one_audio_block(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    write_video(path, chunks(49), VideoSpec((96, 64), NTSC), audio=(tone(3.0), 48000))
    info = probe(path)
    duration = float(49 / NTSC)
    assert (info.frames, info.fps) == (49, NTSC)
    assert info.duration_s == pytest.approx(duration, abs=0.002)
    assert info.audio_duration_s == pytest.approx(duration, abs=1024 / 48000)


# --- errors before and during encoding ---


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_invalid_outputs_are_refused_before_frames_are_read(tmp_path: Path) -> None:
    old = tmp_path / "old.mp4"
    old.write_bytes(b"old content")
    (tmp_path / "folder.mp4").mkdir()
    cases = {
        tmp_path / "clip.avi": "ends in '.avi'",
        tmp_path / "clip": "ends in 'nothing'",
        tmp_path / "folder.mp4": "is a folder",
        old: "already exists",
        old / "clip.mp4": "cannot be written",
    }

    def unread_frames() -> Iterator[np.ndarray]:
        raise AssertionError("frames were read")
        yield

    for path, words in cases.items():
        with pytest.raises(MediaError, match=words) as caught:
            check_video_path(path)
        assert caught.value.hint
        with pytest.raises(MediaError, match=words):
            write_video(path, unread_frames(), SPEC)
    check_video_path(old, overwrite=True)
    check_video_path(tmp_path / "CLIP.MP4")
    check_video_path(tmp_path / "new" / "folder" / "clip.mp4")
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    assert old.read_bytes() == b"old content"
    assert entries(tmp_path) == ["folder.mp4", "new", "old.mp4"]


def test_odd_sizes_are_refused_with_an_even_one_as_hint() -> None:
    check_size((640, 480))
    with pytest.raises(MediaError, match="641x479") as caught:
        check_size((641, 479))
    assert "640x478" in str(caught.value.hint)


def test_wrong_frames_are_an_error_and_leave_no_file(tmp_path: Path) -> None:
    wrong: dict[str, Any] = {
        "shape": np.zeros((2, 64, 98, 3), np.uint8),
        "float": np.zeros((2, 64, 96, 3), np.float32),
        "grey": np.zeros((64, 96), np.uint8),
    }
    for name, chunk in wrong.items():
        with pytest.raises(MediaError, match="expected uint8"):
            write_video(tmp_path / f"{name}.mp4", [*chunks(9), chunk, *chunks(40)], SPEC)
    with pytest.raises(MediaError, match="no frames"):
        write_video(tmp_path / "none.mp4", [], SPEC, audio=(tone(1), 48000))
    with pytest.raises(MediaError, match=r"h264 has no preset '\?'"):
        settings = EncoderSettings(preset="?")
        write_video(tmp_path / "x.mp4", chunks(9), VideoSpec((96, 64), Fraction(24), settings))
    assert entries(tmp_path) == []


@pytest.mark.parametrize("after", [0, 1, 5, 30])
@pytest.mark.parametrize("error", [Cancelled("stop"), KeyboardInterrupt(), OSError(5, "camera")])
def test_a_generator_that_raises_leaves_the_old_file(
    tmp_path: Path, after: int, error: BaseException
) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old content")
    threads = threading.active_count()

    def failing() -> Iterator[np.ndarray]:
        yield from chunks(after)
        raise error

    with pytest.raises(type(error)) as caught:
        write_video(path, failing(), SPEC, audio=(tone(2), 48000), overwrite=True)
    assert caught.value is error
    assert path.read_bytes() == b"old content"
    assert entries(tmp_path) == ["clip.mp4"]
    assert threading.active_count() == threads


def test_few_chunks_are_alive_at_once(tmp_path: Path) -> None:
    """A fast generator of 300 frames waits for the encoder."""
    alive = most = 0

    class Counted(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None

    def counted_chunks() -> Iterator[np.ndarray]:
        nonlocal alive, most
        for _ in range(75):
            chunk = np.ndarray.__new__(Counted, (4, 64, 96, 3), np.uint8)
            chunk[:] = 7
            alive += 1
            most = max(most, alive)
            yield chunk

    written = write_video(tmp_path / "clip.mp4", counted_chunks(), SPEC)
    assert written.frames == 300
    # Queued chunks, one being encoded, one being made (the generator refers to its last one).
    assert most <= QUEUED_CHUNKS + 3
    assert alive == 0


def test_encoding_overlaps_with_the_generator(tmp_path: Path) -> None:
    """The first chunk is released while the generator still computes the second."""

    class Chunk(np.ndarray):
        pass

    def waiting_frames() -> Iterator[np.ndarray]:
        first = np.ndarray.__new__(Chunk, (8, 64, 96, 3), np.uint8)
        encoded = threading.Event()
        weakref.finalize(first, encoded.set)
        chunks_left = [first]
        del first
        yield chunks_left.pop()
        assert encoded.wait(timeout=20)
        yield from chunks(9)

    assert write_video(tmp_path / "clip.mp4", waiting_frames(), SPEC).frames == 17


FILL = """
import os, resource, sys
from fractions import Fraction
from pathlib import Path
import numpy as np
from latent_ladder.errors import MediaError
from latent_ladder.media.video_reader import probe, read_frames
from latent_ladder.media.video_writer import VideoSpec, write_video
folder, limits = Path(sys.argv[1]), [int(limit) for limit in sys.argv[2:]]
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
rng = np.random.default_rng(0)
noise = rng.integers(0, 256, (12, 64, 96, 3), np.uint8)
sound = rng.uniform(-0.5, 0.5, (2, 24000)).astype(np.float32)
for limit in limits:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    path = folder / f"{limit}.mp4"
    try:
        write_video(path, noise, VideoSpec((96, 64), Fraction(24)), audio=(sound, 48000))
        assert len(list(read_frames(path))) == 12
        print("whole")
    except MediaError as error:
        assert "does not fit" in str(error) or "needs 16.0 KiB" in str(error), error
        assert not list(folder.iterdir()), list(folder.iterdir())
        print("refused")
fds = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")[:-1]]
assert not [name for name in fds if "mp4" in name], fds
"""


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_point_leaves_no_file(tmp_path: Path) -> None:
    """Real EFBIG errors, from the first byte to the last byte of the trailer."""
    write_video(
        tmp_path / "whole.mp4",
        np.random.default_rng(0).integers(0, 256, (12, 64, 96, 3), np.uint8),
        SPEC,
        audio=(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 24000)).astype(np.float32), 48000),
    )
    size = (tmp_path / "whole.mp4").stat().st_size
    folder = tmp_path / "small"
    folder.mkdir()
    limits = [
        0,
        10,
        16000,
        16400,
        size // 2,
        size - 3000,
        size - 1000,
        size - 300,
        size - 1,
        2 * size,
    ]
    command = [sys.executable, "-c", FILL, str(folder), *map(str, limits)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * 9 + ["whole"]


@pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="needs a read-only folder such as /proc"
)
def test_a_read_only_folder_is_refused() -> None:
    with pytest.raises(MediaError, match="cannot be written to /proc") as caught:
        check_video_path(Path("/proc/clip.mp4"))
    assert caught.value.hint


def test_abandoned_files_of_a_killed_writer_are_deleted(tmp_path: Path) -> None:
    stale, fresh = tmp_path / f"{PART_PREFIX}clip-1.mp4", tmp_path / f"{PART_PREFIX}clip-2.mp4"
    for path in (stale, fresh):
        path.touch()
    past = time.time() - ABANDONED_S - 10
    os.utime(stale, (past, past))
    write_video(tmp_path / "clip.mp4", chunks(1), SPEC)
    assert entries(tmp_path) == [fresh.name, "clip.mp4"]


# --- files of other programs ---


def test_files_without_video_are_errors(tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("not a video at all " * 50)
    (tmp_path / "empty.mp4").touch()
    sound = tmp_path / "sound.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    cases = {
        text: "cannot be read as a video",
        tmp_path / "empty.mp4": "cannot be read as a video",
        tmp_path / "missing.mp4": "does not exist",
        tmp_path: "cannot be read as a video",
        sound: "has no video track",
    }
    for path, words in cases.items():
        with pytest.raises(MediaError, match=words) as caught:
            probe(path)
        assert caught.value.hint
    assert read_audio(sound, 8000).shape == (2, 800)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_video_is_an_error(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"clip{suffix}"
    write_video(path, noise(8), SPEC)
    os.truncate(path, int(path.stat().st_size * part))
    if suffix == ".mp4":
        with pytest.raises(MediaError, match=r"truncated|cannot be read"):
            list(read_frames(path))
    else:  # MKV does not store the number of frames
        assert 0 < len(list(read_frames(path))) < 32


def test_a_rotated_phone_video_is_read_upright(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    left_red = np.zeros((3, 64, 96, 3), np.uint8)
    left_red[:, :, :48] = (255, 0, 0)
    write_video(path, [left_red], SPEC)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    turn_right = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = np.array(turn_right, ">i4").tobytes()
    path.write_bytes(data)
    frame = next(read_frames(path))
    assert frame.shape == (96, 64, 3)
    assert (frame[10, 32, 0] > 200, frame[90, 32, 0] < 50) == (True, True)
    assert (probe(path).width, probe(path).height) == (64, 96)


def test_frames_are_extracted_as_lossless_images(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(path, chunks(9), SPEC)
    files = extract_frames(path, tmp_path / "frames")
    assert [file.name for file in files] == [f"{i:05d}.png" for i in range(9)]
    for file, frame in zip(files, read_frames(path), strict=True):
        assert np.array_equal(load_image(file), frame)


def test_images_are_rotated_and_made_opaque(tmp_path: Path) -> None:
    left_red = np.zeros((4, 8, 3), np.uint8)
    left_red[:, :4] = (255, 0, 0)
    image = Image.fromarray(left_red)
    exif = Image.Exif()
    exif[0x0112] = 6  # displayed rotated to the right
    image.save(tmp_path / "a.png", exif=exif)
    rotated = load_image(tmp_path / "a.png")
    assert rotated.shape == (8, 4, 3)
    assert tuple(rotated[0, 0]) == (255, 0, 0)
    Image.new("RGBA", (2, 2), (255, 255, 255, 0)).save(tmp_path / "b.png")
    assert load_image(tmp_path / "b.png").tolist() == [[[0] * 3] * 2] * 2
    Image.new("L", (2, 2), 9).save(tmp_path / "c.png")
    assert load_image(tmp_path / "c.png").shape == (2, 2, 3)
    (tmp_path / "d.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    for name, words in (("d.png", "cannot be read"), ("e.png", "does not exist")):
        with pytest.raises(MediaError, match=words):
            load_image(tmp_path / name)


def test_media_imports_without_torch() -> None:
    code = (
        "import sys, latent_ladder.media.video_reader, latent_ladder.media.video_writer\n"
        "assert 'torch' not in sys.modules and 'av' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
