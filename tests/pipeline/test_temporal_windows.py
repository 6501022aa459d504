"""Long clips in temporal windows: their starts and overlaps, their memory, invalid requests."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny_clips import FIELDS, GOLDEN, load_artefact, make, request_with
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from latent_ladder import Request
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.cli.app import app
from latent_ladder.errors import RequestError
from latent_ladder.latents.shapes import Resolution, audio_latents
from latent_ladder.media.video_reader import probe
from latent_ladder.memory.cost_model import estimate
from latent_ladder.memory.model_sizes import LTX_2_3
from latent_ladder.memory.planner import Budget, plan_memory
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.pipeline.events import Event, StageStarted, StepDone
from latent_ladder.pipeline.preparation import Prepared
from latent_ladder.pipeline.start_state import StartState, keyframe_positions, plain_start
from latent_ladder.pipeline.temporal_windows import PartialClip, ramp, upsample_windows
from latent_ladder.request.windows import Windows, whole_window
from latent_ladder.sampling.denoise import LatentState
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


SHORT = {"frames": 17, "overlap_frames": 8}
TEMPORAL = [{"kind": "base", "schedule": {"steps": 2}}, {"kind": "upsample", "axis": "temporal"}]


def resolution(frames: int, fps: Fraction | int = 24) -> Resolution:
    return Resolution(64, 32, frames, Fraction(fps), audio_latents(frames, Fraction(fps)))


def clip_of(frames: int) -> PartialClip:
    """A clip whose tokens are their own index."""
    of = resolution(frames)
    video = torch.arange(of.video_tokens).float().reshape(1, -1, 1)
    sound = torch.arange(of.audio_latents).float().reshape(1, -1, 1)
    return PartialClip.of(plain_start(LatentState.of(video), LatentState.of(sound), of), of)


# --- which windows ------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    latents=st.integers(2, 400),
    size=st.integers(2, 60),
    share=st.integers(1, 30),
    fps=st.sampled_from([Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(50)]),
)
def test_windows_cover_a_clip_in_order_and_are_all_as_long(
    latents: int, size: int, share: int, fps: Fraction
) -> None:
    clip = resolution(8 * latents + 1, fps)
    windows = Windows(frames=8 * size + 1, overlap_frames=8 * min(share, max(size // 2, 1))).plan(
        clip, 1
    )
    assert windows[0].start == 0
    assert windows[-1].stop == clip.latent_frames
    assert windows[-1].sound[1] == clip.audio_latents
    assert windows[0].overlap == windows[0].sound_overlap == 0
    if len(windows) == 1:
        assert windows == (whole_window(clip),)
        return
    assert {len(w) for w in windows} == {size + 1}
    for before, after in pairwise(windows):
        assert before.start < after.start < before.stop < after.stop
        assert after.overlap == before.stop - after.start >= 2  # one of them stands for one frame
        assert after.sound_overlap == before.sound[1] - after.sound[0] > 0
        first_sound = Fraction(after.sound[0], 25) - after.offset_s
        assert 0 <= first_sound < Fraction(1, 25)


def test_up_to_twenty_seconds_a_clip_is_whole_and_beyond_it_is_not() -> None:
    assert len(request_with(frames=481).resolved.stages[0].windows) == 1
    windows = request_with(frames=1441).resolved.stages[0].windows
    assert [(w.start, w.stop, w.overlap) for w in windows] == [
        (0, 49, 0), (45, 94, 4), (90, 139, 4), (132, 181, 7),
    ]  # fmt: skip
    assert len(request_with(frames=1441, windows="off").resolved.stages[0].windows) == 1


def test_rungs_of_half_the_rate_have_the_same_windows_in_time() -> None:
    request = Request.from_dict(
        {**FIELDS, "frames": 97, "windows": {"frames": 33, "overlap_frames": 16},
         "stages": TEMPORAL}
    )  # fmt: skip
    low, high = request.resolved.stages[0].windows, request.resolved.stages[1].windows
    assert len(low) == len(high) == 5
    for slow, fast in zip(low, high, strict=True):
        assert (fast.start, fast.stop - 1) == (2 * slow.start, 2 * (slow.stop - 1))
        assert fast.offset_s == slow.offset_s
        assert fast.sound == slow.sound


@pytest.mark.parametrize(
    ("windows", "said", "hint"),
    [
        (
            {"frames": 100},
            "windows.frames=100 is not 8k+1 frames from 17 up",
            "windows.frames=97",
        ),
        ({"frames": 9}, "windows.frames=9 is not 8k+1", "windows.frames=17"),
        ({"frames": "many"}, "windows.frames='many' is not 8k+1", "windows.frames=121"),
        ({"frames": 961}, "windows.frames=961 is 40.04 s", "windows.frames=473"),
        (
            {"frames": 97, "overlap_frames": 4},
            "is not a multiple of 8 from 8 up",
            "overlap_frames=24",
        ),
        (
            {"frames": 97, "overlap_frames": 56},
            "is more than half of a window",
            "overlap_frames=48",
        ),
        ({"frames": 97, "strength": 1.5}, "windows.strength=1.5", "1"),
        ({"frames": 97, "frame": 97}, "windows.frame is not a field", "frames"),
        ("some", "windows='some' is neither", "auto"),
    ],
)
def test_windows_that_cannot_be_are_refused_in_words(
    windows: dict[str, Any] | str, said: str, hint: str
) -> None:
    with pytest.raises(RequestError) as raised:
        request_with(windows=windows)
    assert said in str(raised.value)
    assert hint in str(raised.value.hint)


def test_a_temporal_upsampler_needs_windows_that_halve() -> None:
    table = {**FIELDS, "frames": 97, "stages": TEMPORAL}
    with pytest.raises(RequestError, match=r"windows.frames=41 is not 16k\+1"):
        Request.from_dict({**table, "windows": {"frames": 41, "overlap_frames": 16}})
    with pytest.raises(RequestError, match=r"overlap_frames=24 is not a multiple of 16"):
        Request.from_dict({**table, "windows": {"frames": 65, "overlap_frames": 24}})


def test_windows_survive_toml_and_set() -> None:
    from latent_ladder.request.overrides import apply_sets

    request = request_with(frames=49, windows=SHORT)
    assert Request.from_toml(request.to_toml()) == request
    changed = Request.from_dict(apply_sets(request.to_dict(), ["windows.strength=0.5"]))
    assert changed.resolved.windows == Windows(**SHORT, strength=0.5)
    assert "windows" not in request_with(frames=17, windows=SHORT).stage_fields(0)


# --- what it costs ------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_number_of_windows() -> None:
    def of(seconds: int) -> Request:
        return Request.from_preset(
            "conservative",
            prompt="A fox.",
            frames=24 * seconds + 1,
            width=1920,
            height=1088,
            windows={"frames": 241},
        )

    budget = Budget("cuda", 200 * 2**30, 200 * 2**30)
    minute, ten = (plan_memory(of(s), LTX_2_3, budget) for s in (60, 600))
    for stage in ("base", "upsample", "refine", "decode"):
        assert minute.of(stage).peak_bytes == ten.of(stage).peak_bytes
    work = [sum(s.flops for s in estimate(of(s), LTX_2_3)) for s in (60, 600)]
    assert 8 < work[1] / work[0] < 12
    assert work[0] < 0.6 * sum(
        s.flops for s in estimate(of(60).model_copy(update={"windows": "off"}), LTX_2_3)
    )


def test_the_plan_says_in_how_many_windows(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        ["plan", "a red ball rolls", "--duration", "60", "--store", str(tmp_path)],
        env={"COLUMNS": "300"},
    )
    assert done.exit_code == 0, done.output
    assert done.output.count("in 90 windows of 25 frames") == 3  # base, upsample, refine
    assert "60.04 s are made in 90 windows of 1.04 s" in done.output


# --- what a window sees -------------------------------------------------------------------------


def test_a_whole_clip_is_one_window_that_changes_nothing() -> None:
    clip = clip_of(33)
    part = clip.window_start(whole_window(clip.resolution), 1.0)
    assert torch.equal(part.video.tokens, clip.start.video.tokens)
    assert torch.equal(part.positions, clip.start.positions)
    assert torch.equal(part.audio_positions, clip.start.audio_positions)
    assert part.video_mask is None
    assert part.audio_mask is None


def test_every_window_has_the_places_of_a_clip_of_its_own() -> None:
    clip = clip_of(65)
    for window in Windows(frames=25, overlap_frames=8).plan(clip.resolution, 1):
        part = clip.window_start(window, 1.0)
        torch.testing.assert_close(part.positions, video_positions(4, 1, 2, 24))
        # audio latents of 40 ms and frames of 1/24 s do not meet: true distances are kept
        own = audio_positions(part.audio_positions.shape[2])
        assert (part.audio_positions - own).abs().max() < 0.04
        assert part.audio_positions.min() >= 0


def test_what_the_window_before_made_is_kept_and_the_rest_is_new() -> None:
    clip = clip_of(49)
    first, second, *_ = Windows(frames=25, overlap_frames=8).plan(clip.resolution, 1)
    made = (torch.full((1, 8, 1), 100.0), torch.full((1, first.sound[1], 1), 200.0))
    clip = clip.with_window(first, made)
    part = clip.window_start(second, 1.0)
    assert part.video.clean[0, :, 0].tolist() == [100.0] * 4 + [8.0, 9.0, 10.0, 11.0]
    assert part.video.mask[0, :, 0].tolist() == [0.0] * 4 + [1.0] * 4
    assert part.audio is not None
    assert part.audio.clean[0, : second.sound_overlap].eq(200).all()
    assert part.audio.mask[0, :, 0].sum() == len(part.audio.mask[0]) - second.sound_overlap
    assert clip.window_start(second, 0.25).video.mask[0, 0, 0] == 0.75
    kept = clip.with_window(second, (part.video.clean, part.audio.clean))
    assert torch.equal(kept.video, clip.video)
    assert kept.audio is not None
    assert clip.audio is not None
    assert torch.equal(kept.audio, clip.audio)


def test_a_loose_hold_fades_from_one_window_into_the_next() -> None:
    clip = clip_of(49)
    first, second, *_ = Windows(frames=25, overlap_frames=8).plan(clip.resolution, 1)
    clip = clip.with_window(first, (torch.zeros(1, 8, 1), None))
    clip = clip.with_window(second, (torch.ones(1, 8, 1), None))
    assert clip.video[0, 4:12, 0].tolist() == [0, 0, 0.5, 0.5, 1, 1, 1, 1]
    assert ramp(0).tolist() == []


def test_a_keyframe_is_held_by_the_windows_of_its_time_and_guides_end_with_the_clip() -> None:
    clip = clip_of(65)
    start = clip.start
    places = [keyframe_positions(Fraction(n, 24), clip.resolution) for n in (3, 30, 64)]
    guide = torch.tensor([-1.0, -2.0, -3.0]).repeat_interleave(2).reshape(1, 6, 1)
    start = StartState(
        start.video.with_appended(guide), start.audio,
        torch.cat([start.positions, *places], 2), start.audio_positions, extra=6,
    )  # fmt: skip
    clip = PartialClip.of(start, clip.resolution)
    found = []
    for window in Windows(frames=25, overlap_frames=8).plan(clip.resolution, 1):
        part = clip.window_start(window, 1.0)
        found.append(part.video.clean[0, 8:, 0].unique().tolist())
        assert part.positions[0, 0].max() < 25 / 24 + 1e-5
        assert part.extra == part.video.tokens.shape[1] - 8
    assert found == [[-1.0], [-2.0], [], [-3.0]]
    assert clip.video.shape[1] == clip.resolution.video_tokens


def test_upsampling_in_windows_meets_without_a_step() -> None:
    clip = resolution(97)
    windows = Windows(frames=33, overlap_frames=16).plan(clip, 1)
    latents = torch.randn(1, 3, clip.latent_frames, 1, 2)
    same = upsample_windows(latents, [(w, w) for w in windows], lambda part: part)
    torch.testing.assert_close(same, latents)
    sizes: list[int] = []

    def brighter(part: torch.Tensor) -> torch.Tensor:
        sizes.append(part.shape[2])
        return part * 0 + len(sizes)

    steps = upsample_windows(latents, [(w, w) for w in windows], brighter)[0, 0, :, 0, 0]
    assert set(sizes) == {5}
    assert steps.diff().abs().max() < 1


# --- through the whole path ---------------------------------------------------------------------

BASE_ONLY = FIELDS["stages"][:1]


def latents_of(prepared: Prepared, kind: str) -> dict[str, torch.Tensor]:
    stage = next(s for s in prepared.plan.stages if s.kind == kind)
    return load_artefact(prepared.store, stage.key)


@pytest.mark.slow
def test_a_longer_clip_begins_as_the_shorter_one_and_every_step_is_told(
    library: Library, store: Store, tmp_path: Path
) -> None:
    from latent_ladder.pipeline.run import RunOptions, execute, prepare

    short = request_with(frames=17, stages=BASE_ONLY, windows=SHORT)
    long = request_with(frames=41, stages=BASE_ONLY, windows=SHORT)
    found = []
    events: list[object] = []
    for name, request in (("a", short), ("b", long)):
        prepared = prepare(request, library, store)
        execute(prepared, tmp_path / f"{name}.mp4", RunOptions(on_event=events.append))
        found.append(latents_of(prepared, "base"))
    assert torch.equal(found[0]["video"], found[1]["video"][:, :, :3])
    assert torch.equal(found[0]["audio"], found[1]["audio"][:, :, : found[0]["audio"].shape[2]])
    assert found[1]["video"].isfinite().all()
    windows = long.resolved.stages[0].windows
    assert len(windows) == 4
    (started,) = [e for e in events if isinstance(e, StageStarted) and e.stage == "base"][1:]
    steps = [e for e in events if isinstance(e, StepDone) and e.stage == "base"][2:]
    assert started.steps == 2 * len(windows)
    assert [e.done for e in steps] == list(range(1, started.steps + 1))


@pytest.mark.slow
def test_a_stage_that_was_killed_goes_on_after_its_last_whole_window(
    library: Library, store: Store, tmp_path: Path
) -> None:
    from latent_ladder.errors import Cancelled
    from latent_ladder.pipeline.partial_results import partial_keys
    from latent_ladder.pipeline.run import Cancel, RunOptions, execute, prepare

    request = request_with(frames=41, stages=BASE_ONLY, windows=SHORT)
    cancel, steps = Cancel(), []

    def stop_in_the_third_window(event: Event) -> None:
        if isinstance(event, StepDone) and event.stage == "base":
            steps.append(event.done)
            if event.done == 5:
                cancel.request()

    prepared = prepare(request, library, store)
    options = RunOptions(on_event=stop_in_the_third_window, cancel=cancel)
    with pytest.raises(Cancelled):
        execute(prepared, tmp_path / "a.mp4", options)
    base = next(s for s in prepared.plan.stages if s.kind == "base")
    (key,) = partial_keys(base)
    store.prune()
    artefact = store.get(key)
    assert artefact is not None
    assert artefact.meta["windows"] == 2

    steps.clear()
    options = RunOptions(on_event=stop_in_the_third_window)
    result = execute(prepare(request, library, store), tmp_path / "a.mp4", options)
    assert steps == [5, 6, 7, 8]
    assert "base continues after 2 of its 4 windows" in "".join(w.message for w in result.warnings)
    assert store.get(key) is None

    other = Store(tmp_path / "other")
    whole_run = prepare(request, library, other)
    execute(whole_run, tmp_path / "b.mp4", RunOptions())
    resumed, at_once = latents_of(prepared, "base"), latents_of(whole_run, "base")
    assert torch.equal(resumed["video"], at_once["video"])
    assert torch.equal(resumed["audio"], at_once["audio"])


@pytest.mark.slow
def test_every_task_goes_through_windows(library: Library, store: Store, tmp_path: Path) -> None:
    """Two stages over a first frame, a keyframe, a given sound and a kept part of a video."""
    from PIL import Image

    Image.fromarray(np.full((40, 64, 3), 90, np.uint8)).save(tmp_path / "a.png")
    fields = {
        "frames": 33,
        "windows": SHORT,
        "images": [
            {"file": str(tmp_path / "a.png")},
            {"file": str(tmp_path / "a.png"), "frame": 30, "strength": 0.8},
        ],
    }
    result, _ = make(request_with(**fields), library, store, tmp_path / "a.mp4")
    info = probe(result.output)
    assert info.frames == 33
    assert info.audio_duration_s == pytest.approx(33 / 24, abs=1e-3)
    kept = {"file": str(result.output), "mode": "retake", "region": [0.9, 1.2]}
    again = request_with(frames=33, windows=SHORT, video=kept, audio_in=str(result.output))
    assert probe(make(again, library, store, tmp_path / "b.mp4")[0].output).frames == 33


@pytest.mark.slow
def test_a_long_video_is_enlarged_in_windows(
    library: Library, store: Store, tmp_path: Path
) -> None:
    from latent_ladder.jobs.upscaling import upscale_fields
    from latent_ladder.media.video_input import check_video
    from latent_ladder.media.video_writer import VideoSpec, write_video

    shades = np.linspace(0, 255, 41).astype(np.uint8)
    frames = np.broadcast_to(shades[:, None, None, None], (41, 32, 64, 3)).copy()
    write_video(tmp_path / "in.mp4", [frames], VideoSpec((64, 32), Fraction(24)))
    fields = upscale_fields(tmp_path / "in.mp4", check_video(tmp_path / "in.mp4"), 2.0)
    del fields["upsample_by"]
    result, _ = make(request_with(**fields, windows=SHORT), library, store, tmp_path / "out.mp4")
    assert probe(result.output).frames == 41
