"""A video as input: sampled at the clip's times, as start, kept in part, as reference."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_clips import FIELDS, GOLDEN, load_artefact, make, request_with
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder import Request
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.cli.commands.flags import InputFlags, RequestFlags
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.media.video_input import check_video, sample_frames
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.pipeline.run import Result, prepare
from latent_ladder.pipeline.start_state import apply_inputs, plain_start
from latent_ladder.sampling.denoise import LatentState
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def video(path: Path, frames: int = 9, fps: int = 24, sound: bool = True) -> Path:
    """Frames that brighten by a fixed step each, with a tone."""
    pixels = np.empty((frames, 64, 64, 3), np.uint8)
    for i in range(frames):
        pixels[i] = 10 + 10 * i
    t = np.arange(round(frames / fps * 48000)) / 48000
    tone = (np.sin(2 * np.pi * 300 * t) * 0.3).astype(np.float32)
    audio = (np.stack([tone, tone]), 48000) if sound else None
    write_video(path, [pixels], VideoSpec((64, 64), Fraction(fps)), audio=audio)
    return path


def stored(result: Result, store: Store) -> dict[str, dict[str, torch.Tensor]]:
    return {s.stage: load_artefact(store, s.key) for s in result.stages if s.key.startswith("b2-")
            and store.get(s.key) is not None}  # fmt: skip


def test_frames_are_the_nearest_in_time(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", frames=12, fps=24)
    info = check_video(path)
    assert (info.size, info.frames, info.fps) == ((64, 64), 12, Fraction(24))
    assert (info.variable_rate, info.has_audio) == (False, True)
    times = [Fraction(t) for t in ("-1", "0", "1/24", "1/12", "0.21", "9")]
    grey = [frame[16, 16, 0] for frame in sample_frames(path, times, (32, 32), (32, 32))]
    assert grey == pytest.approx([10, 10, 20, 30, 60, 120], abs=3)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("hello hello")
    for name, message in {
        "no.mp4": "does not exist",
        "empty.mp4": "0 bytes",
        "text.mp4": "read",
    }.items():
        with pytest.raises(MediaError, match=message):
            check_video(tmp_path / name)


def test_a_video_without_pictures_is_refused(tmp_path: Path) -> None:
    import av

    write_sound(tmp_path / "song.m4a")
    with pytest.raises(MediaError, match="has no video track"):
        check_video(tmp_path / "song.m4a")
    with av.open(str(tmp_path / "no-frames.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        container.start_encoding()
    with pytest.raises(MediaError, match=r"has no frames|cannot be read"):
        check_video(tmp_path / "no-frames.mkv")


def write_sound(path: Path) -> None:
    tone = np.sin(np.arange(24000) / 10).astype(np.float32) * 0.3
    pixels = np.zeros((12, 32, 32, 3), np.uint8)
    both = path.with_suffix(".mp4")
    write_video(
        both, [pixels], VideoSpec((32, 32), Fraction(24)), audio=(np.stack([tone] * 2), 48000)
    )
    import av

    with av.open(str(both)) as source, av.open(str(path), "w", format="ipod") as target:
        heard = source.streams.audio[0]
        out = target.add_stream_from_template(heard)
        for packet in source.demux(heard):
            if packet.dts is not None:
                packet.stream = out
                target.mux(packet)


def test_a_variable_rate_and_a_turned_video_are_said(
    library: Library, store: Store, tmp_path: Path
) -> None:
    import av

    with av.open(str(tmp_path / "phone.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.time_base = Fraction(1, 600)
        stream.codec_context.time_base = Fraction(1, 600)
        for i, at in enumerate((0, 20, 40, 100, 120, 200, 220, 240)):
            frame = av.VideoFrame.from_ndarray(np.full((32, 64, 3), 20 * i, np.uint8), "rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 600)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert check_video(tmp_path / "phone.mp4").variable_rate
    asked = {"file": str(tmp_path / "phone.mp4"), "mode": "v2v", "denoise": 0.5}
    said = " ".join(w.message for w in prepare(request_with(video=asked), library, store).warnings)
    assert "phone.mp4 has a variable frame rate; it is sampled at 24 fps" in said
    assert "has no sound" in said
    assert "is cropped left and right to the clip's shape and loses 50% of its area" in said
    boxed = request_with(video={**asked, "fit": "letterbox"})
    said = " ".join(w.message for w in prepare(boxed, library, store).warnings)
    assert "gets black bars above and below" in said


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"mode": "v2v"}, "denoise is missing"),
        ({"mode": "retake"}, "region is missing"),
        ({"mode": "retake", "region": [0.1, 5]}, "ends after the clip"),
        ({"mode": "retake", "region": [0.3, 0.1]}, "does not run forwards"),
        ({"mode": "extend", "extend": 9.0}, "leaves nothing"),
        ({"mode": "extend", "extend": 0.1, "denoise": 0.5}, "belongs to mode v2v"),
        ({"mode": "mix"}, "unknown"),
    ],
)
def test_impossible_videos_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request_with(video={"file": "a.mp4", **table})


def test_a_video_survives_toml_and_json() -> None:
    request = request_with(video={"file": "a.mp4", "mode": "retake", "region": [0.1, 0.3]})
    assert Request.from_toml(request.to_toml()) == request
    assert Request.from_json(request.to_json()) == request


def test_flags_name_the_mode_and_the_length(library: Library, tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", frames=20)
    asked = RequestFlags(prompt="x", preset="pocket")
    made = asked.build_request(library, InputFlags(video=path, extend="0.5s"))
    assert made.video is not None
    assert (made.video.mode, made.video.extend, made.frames) == ("extend", 0.5, 33)
    made = asked.build_request(library, InputFlags(video=path, region="0.1-0.4"))
    assert made.video is not None
    assert (made.video.mode, made.video.region, made.frames) == ("retake", (0.1, 0.4), 17)
    made = asked.build_request(library, InputFlags(video=path))
    assert made.video is not None
    assert (made.video.mode, made.video.denoise) == ("v2v", 0.6)


@pytest.mark.slow
def test_the_base_starts_at_the_level_of_the_video(
    library: Library, store: Store, tmp_path: Path
) -> None:
    path = video(tmp_path / "in.mp4")
    base = {"kind": "base", "sigmas": [1.0, 0.7, 0.3, 0.0]}
    request = request_with(
        stages=[base], width=64, height=64,
        video={"file": str(path), "mode": "v2v", "denoise": 0.5},
    )  # fmt: skip
    assert request.resolved.stages[0].sigmas == (0.5, 0.3, 0.0)
    assert request_with(stages=[base]).resolved.stages[0].sigmas == (1.0, 0.7, 0.3, 0.0)
    result, _ = make(request, library, store, tmp_path / "a.mp4")
    assert [s.stage for s in result.stages][1:3] == ["video 64x64", "base"]
    found = stored(result, store)
    near = (found["base"]["video"] - found["video 64x64"]["video_in"]).std()
    assert near > 0


@pytest.mark.slow
def test_at_level_0_the_video_itself_is_refined(
    library: Library, store: Store, tmp_path: Path
) -> None:
    path = video(tmp_path / "in.mp4", sound=False)
    request = request_with(video={"file": str(path), "mode": "v2v", "denoise": 0.0}, audio="none")
    result, _ = make(request, library, store, tmp_path / "a.mp4")
    names = [s.stage for s in result.stages if "prompt" not in s.stage]
    assert names == ["base", "upsample", "refine", "decode and write"]
    assert (result.frames, result.audio_duration_s) == (9, None)


@pytest.mark.slow
def test_a_retake_changes_only_its_region(library: Library, store: Store, tmp_path: Path) -> None:
    path = video(tmp_path / "in.mp4", frames=25)
    request = request_with(
        frames=25, video={"file": str(path), "mode": "retake", "region": [0.5, 0.8]},
    )  # fmt: skip
    result, _ = make(request, library, store, tmp_path / "a.mp4")
    found = stored(result, store)
    for stage, size in (("base", 32), ("refine", 64)):
        kept = found[f"video {size}x{size}"]["video_in"]
        same = torch.isclose(found[stage]["video"], kept, atol=1e-5).flatten(3).all(3).all(1)[0]
        # latents 0-3 last until 1/24, 9/24, 17/24, 25/24 s
        assert same.tolist() == [True, True, False, False]
    sound = torch.isclose(found["base"]["audio"], found["video 32x32"]["sound_in"], atol=1e-5)
    held = sound.all(3).all(1)[0]
    assert held[:10].all()
    assert not held[14:19].any()


@pytest.mark.parametrize(("extend", "kept"), [(0.34, [1, 1, 0, 0]), (-0.34, [0, 0, 1, 1])])
def test_an_extension_keeps_the_end_or_the_beginning(extend: float, kept: list[int]) -> None:
    request = request_with(frames=25, video={"file": "a", "mode": "extend", "extend": extend})
    resolution = Resolution(64, 64, 25, Fraction(24), 26)
    start = plain_start(LatentState.empty(16, 4), LatentState.empty(26, 6), resolution)
    inputs = {"video_in": torch.ones(1, 4, 4, 2, 2), "sound_in": torch.ones(1, 2, 26, 3)}
    made = apply_inputs(start, inputs, request, resolution)
    assert made.audio is not None
    assert made.video.mask.reshape(4, 4).amin(1).tolist() == [1.0 - k for k in kept]
    assert made.audio.mask.reshape(-1)[0 if extend > 0 else -1] == 0
    assert made.audio.mask.reshape(-1)[-1 if extend > 0 else 0] == 1


def test_a_video_shorter_than_what_is_kept_is_refused(
    library: Library, store: Store, tmp_path: Path
) -> None:
    path = video(tmp_path / "in.mp4", frames=9)
    asked = {"file": str(path), "mode": "extend", "extend": 0.2}
    with pytest.raises(MediaError, match="must be kept"):
        prepare(request_with(frames=49, video=asked), library, store)


def test_a_reference_lies_over_the_part_it_shows() -> None:
    request = request_with(frames=17, video={"file": "a", "mode": "reference", "strength": 0.9})
    resolution = Resolution(128, 64, 17, Fraction(24), 0)
    start = plain_start(LatentState.empty(24, 4), None, resolution)
    inputs = {"video_in": torch.ones(1, 4, 3, 1, 2)}
    made = apply_inputs(start, inputs, request, resolution, reference_factor=2)
    assert made.extra == 6
    assert made.video.mask[0, -6:, 0].tolist() == pytest.approx([0.1] * 6)
    tail = made.positions[0, :, -6:]
    assert tail[1, 0].tolist() == [0, 64]
    assert tail[2, 1].tolist() == [64, 128]
    assert torch.equal(tail[0, ::2], made.positions[0, 0, :24:8])
    slow = apply_inputs(start, {"video_in": torch.ones(1, 4, 2, 1, 2)}, request, resolution)
    assert slow.positions[0, 0, -1].tolist() == pytest.approx([1 / 24, 17 / 24])


def test_a_reference_without_a_lora_is_refused(
    library: Library, store: Store, tmp_path: Path
) -> None:
    path = video(tmp_path / "in.mp4")
    asked = {"file": str(path), "mode": "reference"}
    with pytest.raises(RequestError, match="IC-LoRA"):
        prepare(request_with(video=asked), library, store)


@pytest.mark.slow
def test_an_ic_lora_says_how_small_its_reference_is(
    library: Library, store: Store, tmp_path: Path
) -> None:
    """The distilled LoRA of the goldens, under the metadata that an IC-LoRA carries."""
    source = GOLDEN / "loras" / "tiny-distilled-lora.safetensors"
    with safe_open(source, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = {**(opened.metadata() or {}), "reference_downscale_factor": "2"}
    (tmp_path / "loras").mkdir()
    save_file(tensors, tmp_path / "loras" / "my-ic-lora.safetensors", facts)
    base, *others = FIELDS["stages"]
    stages = [{**base, "loras": [{"name": "my-ic-lora.safetensors"}]}, *others]
    asked = {"file": str(video(tmp_path / "in.mp4")), "mode": "reference", "strength": 0.8}
    with_lora = scan([GOLDEN, tmp_path])
    request = request_with(video=asked, stages=stages, width=128, height=128)
    result, _ = make(request, with_lora, store, tmp_path / "out.mp4")
    found = stored(result, store)
    assert found["video 64x64"]["video_in"].shape[-2:] == (1, 1)  # 32 px: half of stage 1's 64
    assert found["base"]["video"].shape[-3:] == (2, 2, 2)
    assert found["base"]["video"].isfinite().all()


def test_another_frame_rate_is_said(library: Library, store: Store, tmp_path: Path) -> None:
    path = video(tmp_path / "in.mp4", fps=30, sound=False)
    asked = {"file": str(path), "mode": "v2v", "denoise": 0.5}
    said = " ".join(w.message for w in prepare(request_with(video=asked), library, store).warnings)
    assert "has 30 fps; it is sampled at 24 fps" in said
    assert "has no sound" in said
    assert FIELDS["frames"] == 9
