"""The training code of the pocket model: its world, its cache, its judge, its quantised copies.

Only what the `dev` extra can import; the training loops have `train.py --dry-run`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.models.weights.quantized_tensor import read_float

sys.path.insert(0, str(Path(__file__).parents[2] / "training" / "pocket"))

import cache
import fit
import formats
import judge
import measures
import state
import upscaler
import vae as video_vae
import world

pytestmark = pytest.mark.slow

SCENES = [
    world.example_scene(),
    world.Scene("star", "blue", "plain", "up", "plain", "sand", 0.05, -0.22, 0.42),
    world.Scene("square", "purple", "striped", "bounce", "hills", "mint", 0.0, 0.3, 0.41, 0.3),
    world.Scene("triangle", "yellow", "plain", "grow", "gradient", "brown", 0.0, -0.05, 0.31),
]


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_a_rendered_object_is_where_its_trajectory_says(motion: str) -> None:
    x, y = world._start(motion, random.Random(1))
    scene = world.Scene("circle", "red", "plain", motion, "plain", "grey", x, y, 0.4)
    clip = world.render([scene], 25, 64)[0].float()
    red = (clip[..., 0] - clip[..., 1] > 90).float()
    axis = (torch.arange(64) + 0.5) / 32 - 1
    total = red.sum((1, 2))
    found = torch.stack([(red.sum(1) @ axis) / total, (red.sum(2) @ -axis) / total])
    want = torch.stack(world.trajectory(scene, torch.arange(25) / 24)[:2])
    assert (found - want).abs().max() < 0.03


def test_captions_stay_within_the_vocabulary_that_the_product_announces() -> None:
    rng = random.Random(0)
    used = {
        word
        for _ in range(400)
        for word in re.findall(r"[a-z]+", world.caption(world.random_scene(rng), rng).lower())
    }
    assert used <= set(world.VOCABULARY)
    with safe_open(EMBEDDED / state.TEXT_ENCODER, framework="pt") as file:
        assert sorted(world.VOCABULARY) == sorted(json.loads(file.metadata()["known_words"]))


@pytest.fixture(scope="module")
def encoder() -> video_vae.Transform:
    """Some affine map of blocks; mixing must hold for every one."""
    draw = torch.Generator().manual_seed(0)
    shape = (video_vae.LATENT_CHANNELS, 3, 8, 32, 32)
    weight = torch.randn(shape, generator=draw) / 157
    return video_vae.Transform(weight, torch.randn(shape[0], generator=draw))


@pytest.mark.parametrize("scene", SCENES, ids=lambda s: s.background)
def test_latents_mixed_from_masks_are_those_of_the_rendered_clip(
    scene: world.Scene, encoder: video_vae.Transform
) -> None:
    other = cache.recolor_scene(scene, random.Random(2))
    parts = cache.geometry(encoder, scene, 256)[:, :, :, :3]
    mixed = torch.tensordot(cache.palette(other), parts, 2) + cache.offset(encoder)
    true = encoder(video_vae.to_signal(world.render([other], 17, 256)))[0]
    assert (mixed - true).square().mean() < 1e-3 * true.square().mean()


@pytest.mark.parametrize("scene", SCENES[:2], ids=lambda s: s.shape)
def test_the_judge_recognises_every_attribute_of_a_real_clip(scene: world.Scene) -> None:
    clip = world.render([scene], 25, 256)[0]
    assert all(judge.judge(clip, scene).values())


@pytest.mark.parametrize(
    ("attribute", "other"),
    [("shape", "star"), ("color", "green"), ("motion", "up"), ("background", "hills")],
)
def test_the_judge_denies_what_a_clip_does_not_show(attribute: str, other: str) -> None:
    clip = world.render([SCENES[0]], 25, 256)[0]
    change: dict[str, Any] = {attribute: other}
    claimed = dataclasses.replace(SCENES[0], **change)
    assert not judge.judge(clip, claimed)[attribute]


def test_the_tracker_follows_a_real_clip() -> None:
    scene = SCENES[1]
    times = torch.arange(0, 25, 8)
    found = judge.track(world.render([scene], 25, 256)[0][times], scene)
    want = torch.stack(world.trajectory(scene, times / 24), dim=1)
    assert (found - want).abs().max() < 0.08


def test_blur_lowers_edges_and_high_frequencies() -> None:
    clip = world.render([SCENES[1]], 1, 128)[0]
    soft = torch.nn.functional.avg_pool2d(clip.permute(0, 3, 1, 2).float(), 5, 1, 2)
    blurred = soft.permute(0, 2, 3, 1).to(torch.uint8)
    sharp, dull = measures.detail(clip), measures.detail(blurred)
    assert dull["edges"] < 0.7 * sharp["edges"]
    assert dull["high"] < sharp["high"] - 3


def _matrix() -> torch.Tensor:
    return torch.randn(48, 512, generator=torch.Generator().manual_seed(0)) * 0.05


def _error(got: torch.Tensor) -> float:
    return float((got - _matrix()).norm() / _matrix().norm())


LIMITS = {"Q8_0": 0.01, "Q6_K": 0.025, "Q5_1": 0.05, "Q5_0": 0.055, "Q5_K": 0.05, "Q4_1": 0.09,
          "Q4_0": 0.1, "Q4_K": 0.1, "Q3_K": 0.2, "Q2_K": 0.4}  # fmt: skip


@pytest.mark.parametrize(("kind", "limit"), LIMITS.items())
def test_gguf_blocks_are_read_back_by_the_reference_reader(kind: str, limit: float) -> None:
    quantise = formats.BLOCKS[kind][1]
    blocks = quantise(_matrix().numpy())
    back = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert _error(torch.from_numpy(np.ascontiguousarray(back))) < limit


def test_fp8_with_its_scale_is_close_to_the_matrix() -> None:
    parts = formats.fp8(_matrix())
    assert _error(parts["weight"].float() * parts["weight_scale"]) < 0.03


def test_nvfp4_with_its_swizzled_scales_is_close_to_the_matrix() -> None:
    parts = formats.nvfp4(_matrix())
    scales = parts["weight_scale"].float()
    rows, columns = scales.shape
    scales = scales.reshape(rows // 128, columns // 4, 32, 4, 4).permute(0, 3, 2, 1, 4)
    scales = scales.reshape(rows, columns)[:48, :32] * parts["weight_scale_2"]
    codes = torch.stack([parts["weight"] >> 4, parts["weight"] & 15], -1).flatten(1).long()
    values = formats.E2M1[codes & 7] * torch.where(codes > 7, -1.0, 1.0)
    assert _error((values.unflatten(1, (-1, 16)) * scales[..., None]).flatten(1)) < 0.12


@pytest.mark.parametrize(("kind", "limit"), [("mxfp8", 0.03), ("int8", 0.01), ("nvfp4", 0.12)])
def test_copies_are_read_back_by_the_product(kind: str, limit: float, tmp_path: Path) -> None:
    name = f"{formats.NET}transformer_blocks.0.attn1.to_q.weight"
    matrix = torch.randn(100, 200, generator=torch.Generator().manual_seed(0)) * 0.05
    save_file({name: matrix}, tmp_path / "whole.safetensors", {"config": "{}"})
    formats.WRITERS[kind](tmp_path / "whole.safetensors", tmp_path)
    (copy,) = (tmp_path / "checkpoints").iterdir()
    part = components(open_checkpoint(copy))["transformer"]
    key = "transformer_blocks.0.attn1.to_q.weight"
    assert part.stored_tensor(key).format == kind
    got = read_float(part, key, torch.float32)[:100, :200]  # stored padded
    assert got.shape == matrix.shape
    assert float((got - matrix).norm() / matrix.norm()) < limit


def test_the_scene_of_a_draft_is_solved_for(encoder: video_vae.Transform) -> None:
    weight = torch.ones(video_vae.LATENT_CHANNELS, 1, 1, 1)
    solver = fit.Fit(encoder, cache.offset(encoder), weight)
    true = SCENES[1]
    draft = torch.tensordot(cache.palette(true), solver.parts(true), 2) + solver.offset
    draft = draft + 0.1 * torch.randn(draft.shape, generator=torch.Generator().manual_seed(0))
    guess = dataclasses.replace(true, x=true.x + 0.06, y=true.y - 0.05, radius=true.radius - 0.03)
    high, found, misfit = solver(draft, guess)
    for name in ("x", "y", "radius"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), abs=0.01)
    assert misfit < 0.2  # the noise
    assert high.shape == (video_vae.LATENT_CHANNELS, 4, 16, 16)
    assert max(map(abs, solver.match_colors(draft, found).tint)) <= 3


def test_the_upscaler_starts_as_bilinear_interpolation() -> None:
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = upscaler.initial_network()(x)
    want = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(got[..., 4:-4, 4:-4], want[..., 4:-4, 4:-4])
