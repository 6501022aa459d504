"""Pixels, latents, tokens, frames and seconds: the guide's table, the goldens, properties."""

from __future__ import annotations

from fractions import Fraction

import pytest
from helpers.goldens import Goldens
from hypothesis import given
from hypothesis import strategies as st

from latent_ladder.errors import RequestError
from latent_ladder.latents import shapes
from latent_ladder.latents.shapes import Crop, Factor

X2 = Factor(Fraction(2))
X1_5 = Factor(Fraction(3, 2))
TEMPORAL = Factor(time=2)
FPS = Fraction(24)

GUIDE = [
    ((1280, 720), (640, 384), (1280, 768)),
    ((1920, 1080), (960, 544), (1920, 1088)),
    ((2560, 1440), (1280, 736), (2560, 1472)),  # the guide's 1280x720 is not a multiple of 32
]


@pytest.mark.parametrize(("asked", "first", "last"), GUIDE)
def test_sizes_of_the_guide(
    asked: tuple[int, int], first: tuple[int, int], last: tuple[int, int]
) -> None:
    base, final = shapes.resolutions(asked, 121, FPS, [X2])
    assert (base.width, base.height) == first
    assert (final.width, final.height) == last
    crop = shapes.centre_crop(last, asked)
    assert crop == Crop(0, (last[1] - asked[1]) // 2, *asked)


@pytest.mark.parametrize(
    ("width", "height", "frames", "tokens"),
    [
        (768, 512, 121, 6_144),
        (960, 544, 121, 8_160),
        (1536, 1024, 121, 24_576),
        (1920, 1088, 121, 32_640),
        (1920, 1088, 241, 63_240),
        (3840, 2176, 121, 130_560),
    ],
)
def test_token_counts(width: int, height: int, frames: int, tokens: int) -> None:
    assert shapes.video_tokens(width, height, frames) == tokens
    assert shapes.resolutions((width, height), frames, FPS, [])[0].video_tokens == tokens


def test_audio_of_five_seconds() -> None:
    assert shapes.audio_latents(121, FPS) == 126


def test_latent_lengths_as_the_official_implementation(golden: Goldens) -> None:
    for frames, fps, sound, latents in golden("shapes.latent_lengths").outputs["table"].tolist():
        rate = shapes.parse_fps(round(fps, 3))
        assert shapes.latent_frames(int(frames)) == latents
        assert shapes.audio_latents(int(frames), rate) == sound, (frames, fps)
        assert shapes.pixel_frames(int(latents)) == frames


def test_latent_shapes_of_a_resolution() -> None:
    resolution = shapes.resolutions((960, 544), 121, FPS, [])[0]
    assert resolution.video_latent_shape(128) == (1, 128, 16, 17, 30)
    assert resolution.audio_latent_shape(8, 16) == (1, 8, 126, 16)
    assert str(resolution) == "960x544, 121 frames"


@pytest.mark.parametrize(
    ("factors", "multiples"),
    [
        ([], (32, 32)),
        ([X2], (32, 64)),
        ([X1_5], (64, 96)),
        ([X2, X2], (32, 128)),
        ([X1_5, X1_5], (128, 288)),
        ([X2, X1_5], (32, 96)),  # doubled first, every width divides by 2
        ([TEMPORAL, X2], (32, 64)),
    ],
)
def test_multiples_of_sizes(factors: list[Factor], multiples: tuple[int, int]) -> None:
    assert shapes.size_multiples(factors) == multiples


def test_temporal_upsampling_keeps_the_duration_of_the_clip() -> None:
    base, final = shapes.resolutions((512, 512), 97, Fraction(48), [TEMPORAL])
    assert (base.frames, base.fps) == (49, Fraction(24))
    assert (final.frames, final.fps) == (97, Fraction(48))
    assert base.latent_frames == 7
    assert final.latent_frames == 2 * base.latent_frames - 1
    assert base.audio_latents == final.audio_latents == shapes.audio_latents(97, Fraction(48))
    with pytest.raises(RequestError, match="16k\\+1"):
        shapes.resolutions((512, 512), 105, Fraction(48), [TEMPORAL])


factor_lists = st.lists(st.sampled_from([X2, X1_5, TEMPORAL]), max_size=3)


@given(
    st.integers(32, 4096),
    st.integers(32, 4096),
    st.integers(0, 30),
    st.sampled_from([Fraction(24), Fraction(30000, 1001), Fraction(50)]),
    factor_lists,
)
def test_resolutions_are_whole_latents_and_no_larger_than_needed(
    width: int, height: int, k: int, fps: Fraction, factors: list[Factor]
) -> None:
    frames = 8 * shapes.time_product(factors) * k + 1
    resolutions = shapes.resolutions((width, height), frames, fps, factors)
    assert len(resolutions) == len(factors) + 1
    for resolution in resolutions:
        assert resolution.width % 32 == resolution.height % 32 == 0
        assert shapes.is_legal_frames(resolution.frames)
    for before, after, factor in zip(resolutions, resolutions[1:], factors, strict=False):
        assert after.width == before.width * factor.space
        assert after.latent_frames == (before.latent_frames - 1) * factor.time + 1
        assert after.fps == before.fps * factor.time
    last = resolutions[-1]
    multiple = shapes.size_multiples(factors)[1]
    assert 0 <= last.width - width < multiple
    assert 0 <= last.height - height < multiple
    assert (last.frames, last.fps) == (frames, fps)
    crop = shapes.centre_crop((last.width, last.height), (width, height))
    assert 0 <= crop.left <= crop.left + crop.width <= last.width
    assert 0 <= crop.top <= crop.top + crop.height <= last.height


@pytest.mark.parametrize(
    ("frames", "factor", "nearest"),
    [(100, 1, (97, 105)), (97, 1, (97, 97)), (0, 1, (1, 1)), (-5, 1, (1, 1)), (50, 2, (49, 65))],
)
def test_nearest_frames(frames: int, factor: int, nearest: tuple[int, int]) -> None:
    assert shapes.nearest_frames(frames, factor) == nearest


@pytest.mark.parametrize(
    ("seconds", "fps", "frames"),
    [(5, "24", 121), (5, "25", 121), (5, "30", 153), (10, "50", 497), (0.01, "24", 1)],
)
def test_frames_of_a_duration(seconds: float, fps: str, frames: int) -> None:
    assert shapes.frames_for(seconds, shapes.parse_fps(fps)) == frames


@given(st.floats(0.05, 100), st.integers(1, 120))
def test_the_nearest_legal_duration_is_within_half_a_latent_frame(seconds: float, fps: int) -> None:
    frames = shapes.frames_for(seconds, Fraction(fps))
    assert shapes.is_legal_frames(frames)
    assert abs(frames - Fraction(seconds) * fps) <= 4 or frames == 1


def test_wrong_frames_name_both_neighbours() -> None:
    with pytest.raises(RequestError) as caught:
        shapes.latent_frames(100)
    assert caught.value.message == "frames=100 is not 8k+1"
    assert caught.value.hint == "use 97 or 105 frames"


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        ("24", Fraction(24)),
        (25, Fraction(25)),
        ("23.976", Fraction(24000, 1001)),
        (23.976, Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("24000/1001", Fraction(24000, 1001)),
        (" 30000 / 1001 ", Fraction(30000, 1001)),
        (12.5, Fraction(25, 2)),
        (Fraction(48), Fraction(48)),
    ],
)
def test_frame_rates_are_exact(written: str | float | Fraction, rate: Fraction) -> None:
    assert shapes.parse_fps(written) == rate
    assert shapes.parse_fps(shapes.format_fps(rate)) == rate


@pytest.mark.parametrize(
    "written",
    ["0", 0, -24, "-1/2", "nan", float("nan"), "inf", "1/0", "fast", "", 241, True, "1e9"],
)
def test_impossible_frame_rates(written: str | float | bool) -> None:
    with pytest.raises(RequestError, match="fps="):
        shapes.parse_fps(written)
