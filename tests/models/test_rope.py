"""Positions (exact) and rotation tables against the reference."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from helpers.goldens import Goldens

from latent_ladder.models.transformer.rope import RopeTable, rotate
from latent_ladder.models.transformer.rope_tables import (
    RopeConfig,
    audio_positions,
    build_rope_table,
    video_positions,
)

VIDEO_MAX_POS = (20.0, 2048.0, 2048.0)


@pytest.mark.parametrize(
    ("case", "size", "fps"),
    [
        ("positions.video", (5, 4, 6), 24),
        ("positions.video_ntsc", (16, 3, 5), Fraction(30000, 1001)),
    ],
)
def test_video_positions(
    golden: Goldens, case: str, size: tuple[int, int, int], fps: int | Fraction
) -> None:
    golden(case).check("positions", video_positions(*size, fps), rtol=0, atol=0)


def test_audio_positions(golden: Goldens) -> None:
    golden("positions.audio").check("positions", audio_positions(34), rtol=0, atol=0)


def test_first_latent_frame_is_one_pixel_frame() -> None:
    seconds = video_positions(3, 1, 1, 24)[0, 0] * 24
    torch.testing.assert_close(seconds, torch.tensor([[0.0, 1.0], [1.0, 9.0], [9.0, 17.0]]))


@pytest.mark.parametrize(
    ("case", "positions", "dim", "max_pos"),
    [
        ("rope.video", "video", 64, VIDEO_MAX_POS),
        ("rope.audio", "audio", 32, (20.0,)),
        ("rope.cross_video", "video", 32, (20.0,)),
        ("rope.cross_audio", "audio", 32, (20.0,)),
    ],
)
def test_tables(
    golden: Goldens, case: str, positions: str, dim: int, max_pos: tuple[float, ...]
) -> None:
    bounds = video_positions(5, 4, 6, 24) if positions == "video" else audio_positions(34)
    table = build_rope_table(bounds[:, : len(max_pos)], RopeConfig(dim, 4, max_pos))
    golden(case).check("cos", table.cos.transpose(1, 2), atol=1e-5)
    golden(case).check("sin", table.sin.transpose(1, 2), atol=1e-5)


def test_table_of_the_full_width(golden: Goldens) -> None:
    bounds = video_positions(16, 3, 5, Fraction(30000, 1001))
    table = build_rope_table(bounds, RopeConfig(4096, 32, VIDEO_MAX_POS))
    tokens, heads = [0, 1, 17, 100, 239], [0, 8, 16, 24]
    for name, values in (("cos", table.cos), ("sin", table.sin)):
        stored = values[:, tokens][:, :, heads].transpose(1, 2)
        golden("rope.fullsize").check(name, stored, atol=1e-5)


@pytest.mark.parametrize("grad", [False, True])
def test_rotation(golden: Goldens, grad: bool) -> None:
    case = golden("rope.apply")
    cos, sin = (case.inputs[n].transpose(1, 2).contiguous() for n in ("cos", "sin"))
    with torch.set_grad_enabled(grad):
        rotated = rotate(
            case.inputs["x"].unflatten(-1, (4, -1)), RopeTable(torch.complex(cos, sin))
        )
    if not grad:  # pairs side by side
        rotated = rotated.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    case.check("y", rotated.flatten(-2), atol=1e-6)


def test_rotation_keeps_lengths_and_relative_angles() -> None:
    """Attention scores depend only on position differences, along every axis."""
    shape = RopeConfig(48, 2, VIDEO_MAX_POS)
    bounds = video_positions(4, 3, 3, 24)
    moved = bounds + torch.tensor([1.0, 64.0, 32.0])[None, :, None, None]
    x, y = torch.randn(2, 1, 36, 2, 24).unbind()

    def scores(positions: torch.Tensor) -> torch.Tensor:
        rope = build_rope_table(positions, shape)
        q, k = rotate(x, rope), rotate(y, rope)
        torch.testing.assert_close(q.norm(dim=-1), x.norm(dim=-1))
        return torch.einsum("bnhd,bmhd->bhnm", q, k)

    torch.testing.assert_close(scores(bounds), scores(moved), rtol=1e-3, atol=2e-2)


def test_rotation_in_bfloat16() -> None:
    rope = build_rope_table(audio_positions(9), RopeConfig(32, 4, (20.0,)))
    x = torch.randn(1, 9, 4, 8)
    got = rotate(x.bfloat16(), rope)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), rotate(x, rope), rtol=2e-2, atol=2e-2)
