"""HDR clips: EXR pictures in, HDR video and EXR frames out, with SDR previews beside them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import pytest
from helpers.tiny_clips import GOLDEN, frames, make, request_with, reused

from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.media.hdr import load_exr, sdr_of_light
from latent_ladder.media.image_sequence import write_image_file
from latent_ladder.media.video_reader import read_frames
from latent_ladder.media.video_writer import Frames, VideoSpec
from latent_ladder.pipeline.run import prepare
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def light(tmp_path: Path) -> Path:
    """A picture whose right half is up to ten times as bright as white."""
    ramp = np.linspace(0, 10, 96, dtype=np.float32)[None, :, None]
    pixels = np.repeat(ramp, 64, axis=0) * np.array([1.0, 0.7, 0.4], np.float32)
    path = tmp_path / "light.exr"
    write_image_file(path, cast(list[Frames], [pixels]), VideoSpec((96, 64), Fraction(24)))
    return path


@pytest.mark.slow
def test_exr_in_hdr_video_and_exr_out(
    light: Path, library: Library, store: Store, tmp_path: Path
) -> None:
    request = request_with(hdr="acescct", audio="none", images=[{"file": str(light)}])
    clip = tmp_path / "clip.mp4"
    make(request, library, store, clip)
    with av.open(str(clip)) as opened:
        frame = next(opened.decode(video=0))
        assert (frame.format.name, int(frame.color_trc)) == ("yuv420p10le", 18)
    preview = tmp_path / "clip.sdr.mp4"
    with av.open(str(preview)) as opened:
        assert next(opened.decode(video=0)).format.name == "yuv420p"
    shown = zip(read_frames(preview), read_frames(clip), strict=True)
    for a, b in shown:  # means: codecs blur the noise of random weights
        assert np.abs(a.mean((0, 1)) - b.mean((0, 1))).max() < 10
    result, _ = make(request, library, store, tmp_path / "frames/%03d.exr")
    assert {name for name, done in reused(result).items() if not done} <= {"decode and write"}
    found = load_exr(tmp_path / "frames/000.exr")
    assert found.shape == (64, 64, 3)
    first = next(iter(read_frames(tmp_path / "frames.sdr.mp4")))
    assert np.abs(first.mean((0, 1)) - sdr_of_light(found).mean((0, 1))).max() < 10
    with pytest.raises(MediaError, match=r"clip\.sdr\.mp4 already exists"):
        clip.unlink()
        make(request, library, store, clip)
    assert frames(preview)


def test_the_colours_of_a_picture_are_in_its_key(
    light: Path, library: Library, store: Store
) -> None:
    def keys(curve: str, **image: Any) -> list[str]:
        request = request_with(hdr=curve, images=[{"file": str(light), **image}])
        plan = prepare(request, library, store).plan
        return [s.key for s in plan.stages if s.kind == "images"]

    plain = keys("acescct")
    assert keys("acescct", space="acescg") != plain
    assert keys("logc3") != plain
    assert keys("acescct", crf=20) == plain, "an EXR file is not compressed"


def test_mixed_light_is_refused(tmp_path: Path) -> None:
    exr, png = [{"file": "a.exr"}], [{"file": "a.png"}]
    with pytest.raises(RequestError, match=r"image a\.exr is HDR, and hdr=off"):
        request_with(images=exr)
    with pytest.raises(RequestError, match=r"hdr=acescct: image a\.png is not HDR"):
        request_with(hdr="acescct", images=[*exr, {**png[0], "frame": -1}])
    with pytest.raises(RequestError, match=r"video a\.mp4 is not HDR"):
        request_with(hdr="logc3", video={"file": "a.mp4", "denoise": 0.5})
    with pytest.raises(RequestError, match=r"video a%d\.exr is HDR, and hdr=off"):
        request_with(video={"file": "a%d.exr", "denoise": 0.5})
    for field in ({"fps": 24}, {"space": "acescg"}):
        with pytest.raises(RequestError, match="belongs to EXR files"):
            request_with(video={"file": "a.mp4", "denoise": 0.5, **field})


@pytest.mark.slow
def test_frames_of_an_hdr_clip_are_made_again_in_part_with_their_sound(
    library: Library, store: Store, tmp_path: Path
) -> None:
    """The part that is kept has the latents of the frames; the sound is that beside them."""
    make(request_with(hdr="acescct", fps=25), library, store, tmp_path / "f/%02d.exr")
    video = {"file": str(tmp_path / "f/%02d.exr"), "mode": "retake", "region": [0.2, 0.3]}
    request = request_with(hdr="acescct", fps=25, video=video)
    prepared = prepare(request, library, store)
    file = next(f for stage in prepared.plan.stages for f in stage.files)
    assert file.options["fps"] == "25"
    assert file.options["has_sound"] is True
    result, _ = make(request, library, store, tmp_path / "again/%02d.exr")
    assert not any(done for name, done in reused(result).items() if name.startswith("video"))
    assert len(list((tmp_path / "again").glob("*.exr"))) == 9
    assert (tmp_path / "again" / "sound.wav").is_file()
    (tmp_path / "f" / "03.exr").unlink()
    write_image_file(
        tmp_path / "f" / "03.exr",
        cast(list[Frames], [np.ones((64, 64, 3), np.float32)]),
        VideoSpec((64, 64), Fraction(24)),
    )
    with pytest.raises(MediaError, match="changed while the run was using it"):
        file.check_unchanged()
