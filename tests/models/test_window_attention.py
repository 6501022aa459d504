"""Window attention and its rotary positions against the reference, and in parts."""

from __future__ import annotations

import pytest
import torch
from helpers.goldens import Goldens

from latent_ladder.models.diffusion_decoder_config import window_range
from latent_ladder.models.video_vae import window_attention as windows
from latent_ladder.models.video_vae.window_attention import (
    Box,
    apply_rope,
    rope_split,
    window_attention,
)


def whole(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kernel: tuple[int, int, int]
) -> torch.Tensor:
    grid = (q.shape[0], q.shape[1], q.shape[2])
    box = Box((0, 0, 0), grid)
    return window_attention(q, k, v, kernel, grid, (box, box), 1.0)


@pytest.mark.parametrize(
    "name", ["inside", "kernel_equals_axis", "axis_below_kernel", "even_kernel"]
)
@pytest.mark.parametrize("tile", [(4, 8, 8), (2, 3, 2), (1, 1, 1)])
def test_windows(
    golden_2_5: Goldens, name: str, tile: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "QUERY_TILE", tile)
    case = golden_2_5(f"na3d.{name}")
    q, k, v = (case.inputs[n] for n in "qkv")
    got = whole(q[0], k[0], v[0], tuple(case.params["kernel"]))
    case.check("out", got.reshape(case.outputs["out"].shape))


def test_rope(golden_2_5: Goldens) -> None:
    case = golden_2_5("na3d.rope")
    case.check("y", apply_rope(case.inputs["x"][0], (0, 0, 0))[None])
    for width, split in case.params["splits_of"].items():
        assert rope_split(int(width)) == tuple(split)


def test_a_part_of_the_queries_needs_the_keys_of_its_windows_only() -> None:
    generator = torch.Generator().manual_seed(0)
    grid, kernel = (9, 10, 7), (5, 3, 3)
    q, k, v = (torch.randn(*grid, 2, 16, generator=generator) for _ in "qkv")
    want = whole(q, k, v, kernel)
    first, stop = (2, 0, 3), (6, 4, 7)
    ranges = [
        window_range(a, b, n, w) for a, b, n, w in zip(first, stop, grid, kernel, strict=True)
    ]
    keys = tuple(slice(*r) for r in ranges)
    part = tuple(slice(a, b) for a, b in zip(first, stop, strict=True))
    boxes = (
        Box(first, (4, 4, 4)),
        Box(
            (ranges[0][0], ranges[1][0], ranges[2][0]),
            (
                ranges[0][1] - ranges[0][0],
                ranges[1][1] - ranges[1][0],
                ranges[2][1] - ranges[2][0],
            ),
        ),
    )
    got = window_attention(q[part], k[keys], v[keys], kernel, grid, boxes, 1.0)
    torch.testing.assert_close(got, want[part])
