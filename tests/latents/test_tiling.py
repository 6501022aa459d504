"""Tiles cover everything, their ramps sum to 1, and they are the reference's tiles."""

from __future__ import annotations

from itertools import pairwise

import pytest
from helpers.goldens import Goldens
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_ladder.latents.tiling import (
    Span,
    TileSize,
    even_tile_size,
    frame_start,
    official_size,
    one_tile,
    plan_tiles,
    spans_by_count,
    spatial_spans,
    spatial_weights,
    temporal_spans,
    temporal_weights,
)


def as_lists(spans: tuple[Span, ...]) -> list[list[int]]:
    return [[s.start, s.stop, s.left, s.right] for s in spans]


def test_official_plans(golden: Goldens) -> None:
    for want in golden("tiling.plans").params["plans"]:
        frames = 1 + (want["frames"] - 1) // 8
        rows, cols = want["height"] // 32, want["width"] // 32
        size = official_size(rows, cols)
        assert [size.frames * 8, size.rows * 32, size.cols * 32] == want["tile_pixels"]
        plan = plan_tiles(frames, rows, cols, size)
        got = [as_lists(axis) for axis in (plan.frames, plan.rows, plan.cols)]
        assert got == want["latent_intervals_start_end_leftramp_rightramp"]


def test_official_ramps(golden: Goldens) -> None:
    axes = golden("vae.decode_tiled").params["tiles"]["axes"]
    time = temporal_spans(5, 3, 1)
    assert [[s.start, s.stop] for s in time] == [a["latent"] for a in axes["frames"]]
    for got, want in zip(temporal_weights(time, 8), axes["frames"], strict=True):
        assert got == pytest.approx(want["mask"], abs=1e-6)
    rows = spatial_spans(4, 3, 1)
    for got, want in zip(spatial_weights(rows, 32), axes["height"], strict=True):
        assert got == pytest.approx(want["mask"], abs=1e-6)
    # The golden's width overlaps by two of three latents: ours are its masks over their sum.
    assert [[s.start, s.stop] for s in spatial_spans(5, 3, 2)] == [
        a["latent"] for a in axes["width"]
    ]


spans_of = st.tuples(st.integers(1, 70), st.integers(1, 30), st.integers(0, 12))


@given(spans_of, st.sampled_from([1, 2, 32]))
@settings(max_examples=150, deadline=None)
def test_spatial_ramps_sum_to_one(shape: tuple[int, int, int], scale: int) -> None:
    length, size, overlap = shape
    spans = spatial_spans(length, size, overlap)
    total = [0.0] * (length * scale)
    for span, weights in zip(spans, spatial_weights(spans, scale), strict=True):
        assert len(weights) == len(span) * scale <= size * scale
        for i, weight in enumerate(weights):
            assert 0 < weight <= 1
            total[span.start * scale + i] += weight
    assert total == pytest.approx([1.0] * len(total))


@given(spans_of, st.sampled_from([1, 8]))
@settings(max_examples=150, deadline=None)
def test_temporal_ramps_sum_to_one_and_drop_the_first_frame(
    shape: tuple[int, int, int], scale: int
) -> None:
    length, size, overlap = shape
    spans = temporal_spans(length, size, overlap)
    total = [0.0] * (1 + (length - 1) * scale)
    for n, (span, weights) in enumerate(zip(spans, temporal_weights(spans, scale), strict=True)):
        assert len(weights) == 1 + (len(span) - 1) * scale
        assert n == 0 or weights[0] == 0
        for i, weight in enumerate(weights):
            total[frame_start(span, scale) + i] += weight
    assert total == pytest.approx([1.0] * len(total))


def test_an_axis_that_fits_is_not_split() -> None:
    assert plan_tiles(4, 8, 8, official_size(8, 8)) == one_tile(4, 8, 8)
    assert one_tile(4, 8, 8).work == 1
    assert one_tile(4, 8, 8).count == 1


@given(st.integers(1, 40), st.integers(1, 4), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_spans_by_count_cover_a_side(length: int, count: int, overlap: int) -> None:
    if even_tile_size(length, count, overlap) <= overlap:
        return
    spans = spans_by_count(length, count, overlap)
    assert len(spans) == count
    assert spans[0].start == 0
    assert spans[-1].stop == length
    for before, after in pairwise(spans):
        assert before.stop - after.start == before.right == after.left == overlap


def test_a_plan_becomes_a_tiling_with_the_weights_of_decoded_pixels() -> None:
    plan = plan_tiles(5, 4, 5, TileSize(3, 3, 3, 1, 1))
    tiling = plan.tiling(32, 8)
    assert tiling.grid == plan.grid == (5, 4, 5)
    assert tiling.size == (128, 160)
    assert tiling.order == "sequential"
    for axis, pixels in ((tiling.frames, 33), (tiling.rows, 128), (tiling.cols, 160)):
        total = [0.0] * pixels
        for span in axis:
            for i, weight in enumerate(span.weights):
                total[span.first + i] += weight
        assert total == pytest.approx([1.0] * pixels)
    assert [span.drop for span in tiling.frames] == [0] + [1] * (len(tiling.frames) - 1)
