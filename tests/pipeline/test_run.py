"""The whole path on the tiny checkpoint of the goldens: stages, store, resume, cancel, damage.

Its weights are random, so nothing is said about pictures here; sizes, keys and bits are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from fractions import Fraction
from pathlib import Path

import pytest
from helpers.tiny_clips import (
    FIELDS,
    GOLDEN,
    frames,
    make,
    refined_with,
    request_with,
    reused,
)

from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.cli.commands.runs import show_run
from latent_ladder.errors import Cancelled, MediaError, RequestError
from latent_ladder.media.video_reader import probe, read_frames
from latent_ladder.pipeline.events import Event, StageDone, StepDone, Waiting, Warned
from latent_ladder.pipeline.run import Cancel, Result, RunOptions, execute, prepare
from latent_ladder.request.files import request_of_clip
from latent_ladder.storage.artifact_store import Store

FirstRun = tuple[Result, list[Event], Store, Path]


@pytest.fixture(scope="session")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def first(library: Library, tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """One finished run, shared by several tests."""
    folder = tmp_path_factory.mktemp("first")
    store = Store(folder / "store")
    result, events = make(request_with(), library, store, folder / "a.mp4")
    return result, events, store, folder


@pytest.mark.slow
def test_a_prompt_becomes_a_file_with_sound_of_equal_length(first: FirstRun) -> None:
    result, _, _, folder = first
    info = probe(folder / "a.mp4")
    assert (info.width, info.height, info.frames, info.fps) == (64, 64, 9, Fraction(24))
    assert info.audio_duration_s == pytest.approx(9 / 24, abs=1 / 48000)
    assert result.duration_s == pytest.approx(9 / 24)
    assert sum(1 for chunk in read_frames(folder / "a.mp4")) >= 1


def test_every_run_keeps_its_metrics_and_shows_them(
    first: FirstRun, capsys: pytest.CaptureFixture[str]
) -> None:
    result, _, store, _ = first
    assert result.metrics is not None
    assert result.metrics["frames"] == 9
    assert result.metrics["detail"] > 0
    assert result.metrics["sound"]["level_db"] < 0
    assert store.runs.find(result.run).metrics == result.metrics
    show_run(result.run, store.root)
    shown = capsys.readouterr().out
    assert f"{result.metrics['motion']:.3f}" in shown
    assert f"{result.metrics['sound']['level_db']:.3f}" in shown


def test_stages_run_in_order_with_steps(first: FirstRun) -> None:
    _, events, _, _ = first
    names = [e.stage for e in events if isinstance(e, StageDone)]
    assert names == [
        "prompt", "negative prompt", "base", "upsample", "refine", "sound", "decode and write",
    ]  # fmt: skip
    steps = [
        (e.stage, e.done, e.steps)
        for e in events
        if isinstance(e, StepDone) and e.sigma is not None
    ]
    assert steps == [
        ("base", 1, 2),
        ("base", 2, 2),
        ("refine", 1, 2),
        ("refine", 2, 2),
    ]
    decoded = [e.done for e in events if isinstance(e, StepDone) and e.stage == "decode and write"]
    assert decoded == sorted(decoded)
    assert decoded[-1] == 9
    sigmas = [e.sigma for e in events if isinstance(e, StepDone) and e.stage == "refine"]
    assert sigmas == pytest.approx([0.5, 0.0])


def test_the_clip_carries_its_request(first: FirstRun) -> None:
    result, _, _, folder = first
    assert request_of_clip(folder / "a.mp4") == result.request


def test_again_reuses_everything_and_gives_the_same_frames(
    first: FirstRun, library: Library, tmp_path: Path
) -> None:
    result, _, store, folder = first
    second, _ = make(request_with(), library, store, tmp_path / "b.mp4")
    assert all(was for name, was in reused(second).items() if name != "decode and write")
    assert frames(tmp_path / "b.mp4") == frames(folder / "a.mp4")
    assert [s.key for s in second.stages] == [s.key for s in result.stages]


@pytest.mark.slow
def test_a_stage_2_field_reruns_from_stage_2(
    first: FirstRun, library: Library, tmp_path: Path
) -> None:
    _, _, store, folder = first
    result, _ = make(refined_with(sigmas=[0.8, 0.5, 0.0]), library, store, tmp_path / "b.mp4")
    assert reused(result) == {
        "prompt": True,
        "negative prompt": True,
        "base": True,
        "upsample": True,
        "refine": False,
        "sound": False,
        "decode and write": False,
    }
    assert frames(tmp_path / "b.mp4") != frames(folder / "a.mp4")


def test_how_the_file_is_encoded_reruns_no_stage(
    first: FirstRun, library: Library, tmp_path: Path
) -> None:
    _, _, store, _ = first
    result, _ = make(request_with(output={"crf": 30}), library, store, tmp_path / "b.mp4")
    assert [s.stage for s in result.stages if not s.reused] == ["decode and write"]


@pytest.mark.slow
def test_without_sound(library: Library, store: Store, tmp_path: Path) -> None:
    result, _ = make(request_with(audio="none"), library, store, tmp_path / "a.mp4")
    assert result.audio_duration_s is None
    assert probe(tmp_path / "a.mp4").audio_duration_s is None


def test_keeping_stage_1_sound_shares_the_picture(
    first: FirstRun, library: Library, tmp_path: Path
) -> None:
    _, _, store, folder = first
    result, _ = make(request_with(audio="keep"), library, store, tmp_path / "b.mp4")
    made = [s.stage for s in result.stages if not s.reused]
    assert made == ["sound", "decode and write"]
    assert frames(tmp_path / "b.mp4") == frames(folder / "a.mp4")


@pytest.mark.slow
def test_a_canvas_is_rounded_up_and_cropped(library: Library, store: Store, tmp_path: Path) -> None:
    result, _ = make(request_with(width=72, height=50), library, store, tmp_path / "a.mp4")
    info = probe(tmp_path / "a.mp4")
    assert (info.width, info.height) == (72, 50)
    assert any(w.code for w in result.warnings)


@pytest.mark.slow
def test_a_damaged_artefact_is_made_again_and_told(
    library: Library, store: Store, tmp_path: Path
) -> None:
    first, _ = make(request_with(), library, store, tmp_path / "a.mp4")
    key = next(s.key for s in first.stages if s.stage == "refine")
    artefact = store.get(key)
    assert artefact is not None
    path = artefact.path
    data = bytearray(path.read_bytes())
    data[-100] ^= 255
    path.write_bytes(data)
    second, events = make(request_with(), library, store, tmp_path / "b.mp4")
    assert any(isinstance(e, Warned) and "damaged" in e.message for e in events)
    assert not reused(second)["refine"]
    assert frames(tmp_path / "a.mp4") == frames(tmp_path / "b.mp4")


@pytest.mark.slow
def test_cancelling_finishes_the_step_and_keeps_stages(
    library: Library, store: Store, tmp_path: Path
) -> None:
    cancel, seen = Cancel(), []

    def listen(event: Event) -> None:
        seen.append(event)
        if isinstance(event, StepDone) and event.stage == "refine":
            cancel.request()

    prepared = prepare(request_with(), library, store)
    with pytest.raises(Cancelled):
        execute(prepared, tmp_path / "a.mp4", RunOptions(on_event=listen, cancel=cancel))
    assert [e.done for e in seen if isinstance(e, StepDone) and e.stage == "refine"] == [1]
    assert not (tmp_path / "a.mp4").exists()
    [record] = store.runs.list()[0]
    assert record.status == "cancelled"
    result, _ = make(request_with(), library, store, tmp_path / "a.mp4")
    assert reused(result)["base"]
    assert not reused(result)["refine"]


def test_an_existing_output_is_refused_before_anything_runs(
    library: Library, store: Store, tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"precious")
    with pytest.raises(MediaError, match="already exists"):
        make(request_with(), library, store, tmp_path / "a.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == b"precious"
    assert list(store.entries()) == []


@pytest.mark.slow
def test_two_threads_of_work_wait_for_each_other(
    library: Library, store: Store, tmp_path: Path
) -> None:
    prepared = prepare(request_with(), library, store)
    code = f"""
        import time
        from pathlib import Path
        from latent_ladder.storage.artifact_store import Store
        with Store(Path({str(store.root)!r})).lock({prepared.plan.run_key!r}):
            print("held", flush=True)
            time.sleep(1.5)
    """
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        _, events = make(request_with(), library, store, tmp_path / "a.mp4")
    assert [e.pid for e in events if isinstance(e, Waiting)] == [other.pid]


@pytest.mark.slow
def test_killed_at_any_moment_resumes_to_the_same_bits(
    first: FirstRun, library: Library, tmp_path: Path
) -> None:
    _, _, _, folder = first
    store = Store(tmp_path / "store")
    code = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from helpers.tiny_clips import GOLDEN, make, request_with
        from latent_ladder.checkpoints.selection import scan
        from latent_ladder.storage.artifact_store import Store
        make(request_with(), scan([GOLDEN]), Store(Path({str(store.root)!r})), Path(sys.argv[1]))
    """
    for stored in (1, 3):
        child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "killed.mp4")]
        )
        deadline = time.monotonic() + 120
        while len(list(store.entries())) < stored and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert not (tmp_path / "killed.mp4").exists()
    assert {r.status for r in store.runs.list()[0]} == {"interrupted"}
    result, _ = make(request_with(), library, store, tmp_path / "killed.mp4")
    assert reused(result)["prompt"]
    assert frames(tmp_path / "killed.mp4") == frames(folder / "a.mp4")


def test_an_upscale_stage_makes_the_file_larger_and_reuses_all(
    library: Library, first: FirstRun, tmp_path: Path
) -> None:
    _, _, store, _ = first
    stages = [*FIELDS["stages"], {"kind": "upscale", "name": "lanczos", "factor": 1.5}]
    result, _ = make(request_with(stages=stages), library, store, tmp_path / "b.mp4")
    stored = [stage for stage in result.stages if stage.stage != "decode and write"]
    assert all(stage.reused for stage in stored)
    info = probe(tmp_path / "b.mp4")
    assert (info.width, info.height) == result.request.resolved.final_size
    assert info.width > FIELDS["width"]


def test_unknown_words_and_cut_prompts_are_told(library: Library, store: Store) -> None:
    long = request_with(prompt="red ball " * 5000)
    codes = {w.code: w.message for w in prepare(long, library, store).warnings}
    assert "cut at" in codes["prompt_cut"]


def test_a_clip_without_a_request_says_so(tmp_path: Path) -> None:
    from numpy import zeros

    from latent_ladder.media.video_writer import VideoSpec, write_video

    write_video(
        tmp_path / "x.mp4", [zeros((9, 32, 32, 3), "uint8")], VideoSpec((32, 32), Fraction(24))
    )
    with pytest.raises(RequestError, match="contains no request"):
        request_of_clip(tmp_path / "x.mp4")
