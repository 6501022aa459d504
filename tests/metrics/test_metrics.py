"""Metrics of clips with known results: a moving square, a flash, a seam, a sine, clicks."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from numpy.typing import NDArray
from typer.testing import CliRunner

from latent_ladder.cli.commands import measure as command
from latent_ladder.errors import MediaError
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.metrics.audio import AudioMetrics, measure_audio, spectral_distance
from latent_ladder.metrics.measure import compare_clips, compare_files, measure_clip, measure_file
from latent_ladder.metrics.optical_flow import compute_flow
from latent_ladder.metrics.video import ClipMeter

FPS = 24.0
RATE = 48000


def texture(height: int, width: int, seed: int = 0, sigma: float = 1.5) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), sigma)
    whole: np.ndarray = np.clip(128 + 40 * soft / soft.std(), 0, 255).astype(np.uint8)
    return whole


def moving_square(n: int, step: float = 3.0, size: tuple[int, int] = (96, 128)) -> np.ndarray:
    """A textured square of 48 px that moves to the right over a static, textured background."""
    background, square = texture(*size, seed=1), texture(48, 48, seed=2)
    clip = np.repeat(background[None], n, 0)
    for i, frame in enumerate(clip):
        x = 4 + round(i * step)
        frame[24:72, x : x + 48] = square
    return clip


def panning_clip(n: int, step: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    wide = texture(size[0], size[1] + n * step)
    return np.stack([wide[:, i * step : i * step + size[1]] for i in range(n)])


def static_clip(n: int, size: tuple[int, int] = (64, 96)) -> np.ndarray:
    return np.repeat(texture(*size)[None], n, 0)


def brighten(frames: np.ndarray, by: float | np.ndarray) -> np.ndarray:
    brighter: np.ndarray = np.clip(frames.astype(np.float32) + by, 0, 255).astype(np.uint8)
    return brighter


def number(value: float | None) -> float:
    """A measure that must have a value."""
    assert value is not None
    return value


def measure_sound(samples: np.ndarray) -> AudioMetrics:
    """Measures of a sound that is not empty."""
    found = measure_audio(samples, RATE)
    assert found is not None
    return found


def sine(decibel: float, seconds: float = 1.0, hertz: float = 997.0) -> np.ndarray:
    wave = 10 ** (decibel / 20) * np.sin(
        2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE
    )
    return np.stack([wave, wave]).astype(np.float32)


# --- motion ---


def test_a_square_of_three_pixels_per_frame_has_that_speed() -> None:
    measured = measure_clip(moving_square(9), FPS)
    diagonal = math.hypot(96, 128)
    fast = 100 * 3 * FPS / diagonal
    share = 48 * 48 / (96 * 128)
    assert measured.dynamic_degree == pytest.approx(fast, rel=0.05)
    # the strip that the square uncovers is no motion of the square
    assert measured.motion == pytest.approx(fast * share, rel=0.05)
    assert measured.dynamic_share == 1.0


def test_motion_does_not_depend_on_size_or_frame_rate() -> None:
    small, large = panning_clip(6, 1), np.repeat(np.repeat(panning_clip(6, 1), 2, 1), 2, 2)
    a, b = measure_clip(small, FPS).motion, measure_clip(large, FPS).motion
    assert b == pytest.approx(a, rel=0.05)
    assert a == pytest.approx(100 * FPS / math.hypot(64, 96), rel=0.05)
    assert measure_clip(small[::2], FPS / 2).motion == pytest.approx(a, rel=0.05)


def test_a_static_clip_has_no_motion_and_is_frozen() -> None:
    measured = measure_clip(static_clip(8), FPS)
    assert (measured.motion, measured.dynamic_degree, measured.dynamic_share) == (0.0, 0.0, 0.0)
    assert (measured.freeze, measured.freeze_longest_s) == (1.0, 7 / FPS)
    assert (measured.flicker, measured.warping_error, measured.color_drift) == (0.0, 0.0, 0.0)
    assert any(text.startswith("static") for text in measured.warnings)


def test_flow_is_the_same_for_every_number_of_threads() -> None:
    a, b = (cv2.cvtColor(f, cv2.COLOR_RGB2GRAY) for f in moving_square(2))
    before = cv2.getNumThreads()
    try:
        flows = []
        for threads in (1, 3):
            cv2.setNumThreads(threads)
            flows.append(compute_flow(a, b))
            assert cv2.getNumThreads() == threads
    finally:
        cv2.setNumThreads(before)
    assert np.array_equal(flows[0], flows[1])


# --- temporal faults ---


def test_flicker_grows_with_noise_and_motion_has_none() -> None:
    noise = np.random.default_rng(3).standard_normal((7, 64, 96, 1))
    smooth = measure_clip(panning_clip(7, 2), FPS)
    levels = [measure_clip(brighten(static_clip(7), s * noise), FPS) for s in (2, 4, 8)]
    flickers = [number(m.flicker) for m in levels]
    assert number(smooth.flicker) < 1.0 < flickers[0] < flickers[1] < flickers[2]
    errors = [number(m.warping_error) for m in (smooth, levels[0], levels[2])]
    assert errors[0] < errors[1] < errors[2]


def test_a_blinking_clip_has_a_flicker_of_twice_its_amplitude() -> None:
    blink = np.stack([brighten(f, 6 * (-1) ** i) for i, f in enumerate(static_clip(8) // 2 + 60)])
    assert measure_clip(blink, FPS).flicker == pytest.approx(12.0, abs=1.0)
    fade = np.stack([brighten(f, 3 * i) for i, f in enumerate(static_clip(8) // 2 + 60)])
    assert number(measure_clip(fade, FPS).flicker) < 1.0


def test_only_a_flash_in_the_last_second_counts() -> None:
    for at, expected in ((27, 30.0), (3, 0.0)):
        clip = static_clip(30) // 2 + 40
        clip[at] = brighten(clip[at], 30)
        found = measure_clip(clip, 10.0)
        assert found.last_second_flash == pytest.approx(expected, abs=0.5)
        assert any(t.startswith("flashing") for t in found.warnings) == (at == 27)


def test_a_clip_frozen_for_half_its_length_has_a_freeze_of_one_half() -> None:
    clip = panning_clip(17, 2)
    clip[8:] = clip[8]
    measured = measure_clip(clip, 8.0)
    assert measured.freeze == 0.5
    assert measured.freeze_longest_s == 1.0
    assert any(text.startswith("frozen") for text in measured.warnings)


# --- single frames ---


def test_detail_falls_with_every_blur() -> None:
    sharp = texture(64, 96, sigma=0.5)
    clips = [sharp] + [cv2.GaussianBlur(sharp, (0, 0), s) for s in (0.7, 1.2, 2.0)]
    found = [measure_clip([clip] * 2, FPS).detail for clip in clips]
    assert found == sorted(found, reverse=True)
    assert found[0] > 4 * found[-1]


def test_a_seam_is_found_with_a_known_and_an_unknown_grid() -> None:
    clip = panning_clip(5, 3, (128, 160))
    clean = measure_clip(clip, FPS).seam_energy
    seamed = clip.copy()
    seamed[:, :, 64:128] = brighten(seamed[:, :, 64:128], 25)
    unknown = measure_clip(seamed, FPS).seam_energy
    assert clean < 0.35 < 2 * clean + 0.3 < unknown
    assert measure_clip(seamed, FPS, tile=(64, 64)).seam_energy > 0.5
    assert measure_clip(seamed, FPS, tile=(48, 48)).seam_energy < 0.35


def test_a_colour_ramp_drifts_by_its_difference_in_lab() -> None:
    ends = np.array([[120, 120, 120], [150, 120, 90]], np.float32)
    ramp = np.stack([np.tile(ends[0] + (ends[1] - ends[0]) * i / 3, (32, 48, 1)) for i in range(4)])
    measured = measure_clip(ramp.astype(np.uint8), 1.0)
    lab = cv2.cvtColor(ends[None] / 255, cv2.COLOR_RGB2LAB)[0]
    assert measured.color_drift == pytest.approx(float(np.linalg.norm(lab[1] - lab[0])), abs=0.3)
    assert measure_clip(np.stack([ramp[0]] * 4).astype(np.uint8), 1.0).color_drift == 0.0


def test_clipped_shares_are_counted() -> None:
    frame = np.full((40, 40, 3), 128, np.uint8)
    frame[:10], frame[10:12] = 0, 255
    measured = measure_clip([frame, frame], FPS)
    assert (measured.clipped_blacks, measured.clipped_whites) == (0.25, 0.05)


# --- two clips ---


def enlarge(clip: np.ndarray) -> np.ndarray:
    h, w = clip.shape[1:3]
    return np.stack([cv2.resize(f, (2 * w, 2 * h), interpolation=cv2.INTER_LANCZOS4) for f in clip])


def test_an_enlarged_draft_keeps_everything_and_adds_nothing() -> None:
    draft = moving_square(5)
    found = compare_clips(draft, enlarge(draft), FPS)
    assert number(found.motion_kept) > 0.93
    assert found.structure_similarity > 0.98
    assert found.detail_added_db == pytest.approx(0.0, abs=0.2)
    assert found.color_drift < 0.5
    assert compare_clips(draft, draft, FPS).motion_kept == 1.0


def test_detail_added_is_positive_for_noise_and_negative_for_blur() -> None:
    draft = moving_square(3)
    up = enlarge(draft)
    noise = np.random.default_rng(5).standard_normal((1, *up.shape[1:3], 1))
    added = [compare_clips(draft, brighten(up, s * noise), FPS).detail_added_db for s in (4, 12)]
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 2.5) for f in up])
    assert compare_clips(draft, blurred, FPS).detail_added_db < -3 < 0 < added[0] < added[1]


def test_different_and_lost_motion_lowers_motion_kept() -> None:
    draft = panning_clip(5, 3)
    slower = panning_clip(5, 2)
    lost = compare_clips(draft, np.stack([draft[0]] * 5), FPS)
    assert lost.motion_kept == pytest.approx(0.0, abs=0.02)
    assert lost.motion_error_px == pytest.approx(3.0, rel=0.06)
    part = compare_clips(draft, slower, FPS)
    assert part.motion_kept == pytest.approx(1 - 1 / 5, abs=0.05)
    assert number(compare_clips(draft, draft[:, :, ::-1], FPS).motion_kept) < 0.1


def test_a_clip_of_twice_the_rate_is_compared_at_the_same_times() -> None:
    fast = panning_clip(9, 1)
    found = compare_clips(fast[::2], fast, 12.0, refined_fps=24.0)
    assert (found.frames, found.motion_kept, found.structure_similarity) == (5, 1.0, 1.0)
    assert found.notes == ("12 and 24 fps: compared at 12 fps",)


def test_clips_of_different_aspect_ratios_are_refused() -> None:
    with pytest.raises(MediaError, match="expected the same aspect ratio") as caught:
        compare_clips(static_clip(2), static_clip(2, (96, 64)), FPS)
    assert caught.value.hint


# --- audio ---


def test_a_sine_has_its_level_and_loudness() -> None:
    found = measure_sound(sine(-20))
    assert found.level_db == pytest.approx(-23.01, abs=0.01)
    assert found.peak_db == pytest.approx(-20.0, abs=0.01)
    # BS.1770: a 997 Hz sine of 0 dBFS in one channel reads -3.01 LUFS, in two 0.
    assert found.loudness_lufs == pytest.approx(-20.0, abs=0.05)
    one = sine(0.0)
    one[1] = 0
    assert measure_sound(one).loudness_lufs == pytest.approx(-3.01, abs=0.05)
    assert (found.clipping, found.silence) == (0.0, 0.0)


def test_clipping_and_silence_are_shares() -> None:
    clipped = np.clip(sine(0) * 2, -1, 1)
    assert measure_sound(clipped).clipping == pytest.approx(2 / 3, abs=0.01)
    half = sine(-20)
    half[:, RATE // 2 :] = 0
    assert measure_sound(half).silence == pytest.approx(0.5, abs=0.01)
    nothing = measure_sound(np.zeros((2, RATE), np.float32))
    assert (nothing.level_db, nothing.loudness_lufs, nothing.silence) == (-120.0, None, 1.0)
    assert measure_audio(np.zeros((2, 0), np.float32), RATE) is None


def test_spectral_distance_is_zero_only_for_equal_audio() -> None:
    a = sine(-20)
    assert spectral_distance(a, a, RATE) == 0.0
    louder, other = (
        spectral_distance(a, a * 2, RATE),
        spectral_distance(a, sine(-20, hertz=3e3), RATE),
    )
    assert 0.0 < number(louder) < number(other)
    assert spectral_distance(a[:, :100], a, RATE) is None


@pytest.mark.parametrize("delay_s", [0.08, 0.0, -0.08])
def test_delayed_clicks_are_measured_to_one_frame(delay_s: float) -> None:
    jumps = (5, 14, 21, 33)
    background, square = texture(64, 96), texture(24, 24, seed=7)
    clip, sound = [], np.zeros((2, 2 * RATE), np.float32)
    for i in range(40):
        frame = background.copy()
        x = 4 + 6 * sum(i >= jump for jump in jumps)
        frame[20:44, x : x + 24] = square
        clip.append(frame)
    for jump in jumps:
        at = round((jump / FPS + delay_s) * RATE)
        sound[:, at : at + 480] = np.random.default_rng(jump).uniform(-0.5, 0.5, 480)
    found = measure_clip(clip, FPS, (sound, RATE)).sound
    assert found is not None
    assert found.onset_lag_s == pytest.approx(delay_s, abs=1.01 / FPS)
    assert number(found.onset_correlation) > 0.45


# --- files, the command, memory ---


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    clips = {
        "draft": moving_square(9),
        "refined": enlarge(moving_square(7)),
        "silent": moving_square(9),
    }
    paths = {name: folder / f"{name}.mp4" for name in clips}
    for name, clip in clips.items():
        size = clip.shape[2], clip.shape[1]
        audio = None if name == "silent" else (sine(-20), RATE)
        write_video(paths[name], [clip], VideoSpec(size, Fraction(24)), audio=audio)
    return paths


def test_a_file_measures_like_its_frames(files: dict[str, Path]) -> None:
    direct, read = measure_clip(moving_square(9), FPS), measure_file(files["draft"])
    assert read.dynamic_degree == pytest.approx(direct.dynamic_degree, rel=0.05)
    assert read.sound is not None
    assert read.sound.level_db == pytest.approx(-23.0, abs=0.5)
    assert (read.frames, read.width, read.height, read.fps) == (9, 128, 96, 24.0)
    assert measure_file(files["silent"]).sound is None


def test_files_of_different_length_are_compared_over_the_shorter_one(
    files: dict[str, Path],
) -> None:
    found = compare_files(files["draft"], files["refined"])
    assert found.frames == 7
    assert "different lengths" in found.notes[0]
    assert number(found.motion_kept) > 0.85
    assert number(found.spectral_distance) < 6.0
    assert compare_files(files["draft"], files["silent"]).spectral_distance is None


def test_the_command_prints_a_table_or_json(files: dict[str, Path]) -> None:
    app = typer.Typer()
    command.register(app)
    runner = CliRunner()
    shown = runner.invoke(app, [str(files["draft"]), str(files["refined"])])
    assert shown.exit_code == 0
    for name, _, _ in (*command.CLIP_METRICS, *command.SOUND_METRICS, *command.COMPARISON_METRICS):
        assert name in shown.stdout
    body = json.loads(runner.invoke(app, [str(files["silent"]), "--json"]).stdout)
    assert body["comparison"] is None
    assert body["clips"][0]["sound"] is None
    assert {name for name, _, _ in command.CLIP_METRICS} <= body["clips"][0].keys()


def test_files_without_video_are_errors(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    for path, words in (
        (tmp_path / "none.mp4", "does not exist"),
        (tmp_path / "text.mp4", "cannot be"),
    ):
        with pytest.raises(MediaError, match=words):
            measure_file(path)
    with pytest.raises(ValueError, match="without frames"):
        measure_clip([], FPS)
    with pytest.raises(ValueError, match="the first was"):
        measure_clip([static_clip(1)[0], static_clip(1, (32, 32))[0]], FPS)


@pytest.mark.parametrize("size", [(64, 64), (16, 16), (480, 16), (2, 2), (65, 33)])
def test_one_frame_and_odd_sizes_are_measured(size: tuple[int, int]) -> None:
    alone = measure_clip(static_clip(1, size), FPS)
    assert (alone.motion, alone.freeze, alone.last_second_flash) == (None, None, None)
    json.dumps(measure_clip(static_clip(3, size), FPS).to_dict(), allow_nan=False)
    json.dumps(
        compare_clips(static_clip(2, size), static_clip(2, size), FPS).to_dict(), allow_nan=False
    )


def test_only_a_few_frames_are_in_memory() -> None:
    import tracemalloc

    def frames(n: int) -> Iterator[np.ndarray]:
        for i in range(n):
            yield np.roll(texture(64, 96), i, 1)

    def peak(n: int) -> int:
        meter = ClipMeter(FPS)
        tracemalloc.start()
        for frame in frames(n):
            meter.add(frame)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(2)
    assert peak(24) < peak(6) + 64 * 96 * 3 * 3


def test_importing_metrics_loads_no_opencv() -> None:
    code = (
        "import sys, latent_ladder.metrics.measure, latent_ladder.cli.commands.measure\n"
        "assert not {'cv2', 'torch', 'av'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def textured_scene(ball_x: float, side: int = 128) -> NDArray[np.float64]:
    """A smooth background with a bright disc at ``ball_x``; luminance (side, side)."""
    ys, xs = np.mgrid[:side, :side]
    background = 100 + 40 * xs / side + 20 * np.sin(xs / 9) * np.cos(ys / 7)
    inside = np.clip(0.5 + 16 - np.hypot(xs - ball_x, ys - side / 2), 0, 1)
    return np.asarray(background * (1 - inside) + 220 * inside)


def as_frame(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.repeat(np.clip(values, 0, 255).astype(np.uint8)[..., None], 3, 2)


STILL: dict[str, Callable[[int, np.random.Generator], NDArray[np.float64]]] = {
    "noise": lambda t, rng: textured_scene(50) + rng.normal(0, 5, (128, 128)),
    "flicker": lambda t, rng: textured_scene(50) * (1 + 0.06 * (-1) ** t),
    "shimmer": lambda t, rng: textured_scene(50 + 0.7 * (-1) ** t),
}
"""Clips in which nothing moves, but every frame differs from the one before."""


@pytest.mark.parametrize("kind", STILL)
def test_a_still_clip_that_flickers_moves_less_than_one_with_a_moving_disc(kind: str) -> None:
    rng = np.random.default_rng(3)
    still = measure_clip([as_frame(STILL[kind](t, rng)) for t in range(9)], FPS)
    moving = measure_clip([as_frame(textured_scene(40 + 2 * t)) for t in range(9)], FPS)
    assert still.motion is not None and moving.motion is not None
    assert still.motion < 0.1 * moving.motion
    assert any("static" in warning for warning in still.warnings)
    assert not any("static" in warning for warning in moving.warnings)


def test_motion_on_every_second_frame_is_still_motion() -> None:
    once = [as_frame(textured_scene(40 + 2 * t)) for t in range(7)]
    twice = [frame for frame in once for _ in range(2)]
    smooth, stepped = measure_clip(once, FPS), measure_clip(twice, FPS)
    assert smooth.motion is not None
    assert stepped.motion == pytest.approx(smooth.motion * 6 / 13, rel=0.02)  # 6 of 13 pairs move
