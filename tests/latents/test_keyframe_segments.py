"""Layout of keyframes-first clips against the reference, and for every length."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.goldens import Goldens
from hypothesis import given
from hypothesis import strategies as st

from latent_ladder.latents.keyframe_segments import (
    SEGMENTS,
    SegmentTile,
    keyframe_canvas,
    segment_tiles,
)


def as_reference(tile: SegmentTile) -> dict[str, Any]:
    return {
        "pixel_start": tile.first_frame,
        "pixel_end": tile.last_frame,
        "latent_start": tile.first_latent,
        "latent_end_exclusive": tile.latent_stop,
        "anchor_kf_global": list(tile.given),
        "slot_kf_global": list(tile.generated),
        "drop_latent_prefix": tile.repeated_latents,
    }


def test_layout_of_the_reference(golden_2_5: Goldens) -> None:
    rows = golden_2_5("dfr.layout").params["rows"]
    assert len(rows) > 10
    for row in rows:
        canvas = keyframe_canvas(row["frames"])
        assert (canvas.frames, canvas.segment) == (row["canvas"], row["segment"]), row["frames"]
        assert list(canvas.keyframes) == row["positions"]
        for number, tiles in enumerate(row["rounds"], 1):
            got = [as_reference(tile) for tile in segment_tiles(canvas, number)]
            assert got == tiles, (row["frames"], number)


@given(st.integers(1, 2000), st.integers(1, 3))
def test_tiles_cover_every_latent_once(frames: int, number: int) -> None:
    """Every keyframe is given where it is known, and no tile begins without one."""
    canvas = keyframe_canvas(frames)
    assert 0 <= canvas.frames - frames < max(SEGMENTS) + 1
    known = {n << number for n in canvas.keyframes}
    for earlier in range(1, number):
        for tile in segment_tiles(canvas, earlier):
            known |= {n << (number - earlier) for n in tile.generated}
    kept: list[int] = []
    for tile in segment_tiles(canvas, number):
        latents = range(tile.first_latent, tile.latent_stop)
        kept += latents[tile.repeated_latents :]
        assert set(tile.given) <= known
        assert set(tile.generated).isdisjoint(known)
        assert tile.frames % 8 == 1
        assert tile.first_frame == 0 or tile.first_frame in tile.given
        assert tile.last_frame in tile.given
    last = canvas.frames_after(number) - 1
    assert kept == list(range(last // 8 + 1))


def test_impossible_layouts() -> None:
    with pytest.raises(ValueError, match="0 frames"):
        keyframe_canvas(0)
    with pytest.raises(ValueError, match="round 0"):
        segment_tiles(keyframe_canvas(9), 0)
