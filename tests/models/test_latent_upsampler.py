"""Latent upsamplers against the reference; properties of AdaIN and tiling."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.errors import RequestError, UnknownLayout
from latent_ladder.models.latent_upsampler.upsample import LatentUpsampler, load_upsampler, upsample
from latent_ladder.models.vae_loading import LatentStatistics, read_latent_statistics

CPU: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
KINDS = {
    "spatial-x2": (Fraction(2), False),
    "spatial-x1.5": (Fraction(3, 2), False),
    "temporal-x2": (Fraction(1), True),
}


@pytest.fixture(scope="module")
def vae_statistics(golden: Goldens) -> LatentStatistics:
    """Latent statistics of the VAE, which is not loaded."""
    file = open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors"))
    return read_latent_statistics(components(file)["video_vae"])


def load(kind: str, golden: Goldens) -> LatentUpsampler:
    file = open_checkpoint(golden.path(f"latent_upscale_models/tiny-{kind}.safetensors"))
    return load_upsampler(components(file)["latent_upsampler"], **CPU)


def smooth(frames: int, rows: int, cols: int) -> Tensor:
    noise = torch.randn((1, 8, 2, 5, 5), generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size=(frames, rows, cols), mode="trilinear", align_corners=True)


@pytest.mark.parametrize("kind", KINDS)
def test_against_the_reference(
    kind: str, golden: Goldens, vae_statistics: LatentStatistics
) -> None:
    case = golden(f"upsample.tiny-{kind}")
    upsampler = load(kind, golden)
    assert (upsampler.factor, upsampler.temporal) == KINDS[kind]
    latents = case.inputs["latent"]
    larger = upsample(latents, upsampler, vae_statistics)
    assert tuple(larger.shape[2:]) == upsampler.output_size(*latents.shape[2:])
    case.check("latent", larger)


@pytest.mark.parametrize(("rows", "cols", "size"), [(5, 7, (8, 11)), (4, 9, (6, 14))])
def test_odd_sides_round_up_at_x1_5(
    rows: int, cols: int, size: tuple[int, int], golden: Goldens, vae_statistics: LatentStatistics
) -> None:
    upsampler = load("spatial-x1.5", golden)
    assert upsample(smooth(2, rows, cols), upsampler, vae_statistics).shape[3:] == size
    assert upsampler.output_size(2, rows, cols) == (2, *size)


def test_adain_sets_mean_and_standard_deviation(
    golden: Goldens, vae_statistics: LatentStatistics
) -> None:
    latents, upsampler = smooth(3, 6, 6), load("spatial-x2", golden)
    plain = upsample(latents, upsampler, vae_statistics)
    full = upsample(latents, upsampler, vae_statistics, adain=1.0)
    for got, want in zip(
        torch.std_mean(full, (2, 3, 4)), torch.std_mean(latents, (2, 3, 4)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    half = upsample(latents, upsampler, vae_statistics, adain=0.5)
    torch.testing.assert_close(half, (plain + full) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_tiled_upsampling_is_complete_but_not_exact(
    kind: str, golden: Goldens, vae_statistics: LatentStatistics
) -> None:
    """The error is .22-.32 of the deviation here: GroupNorm sees different content in each tile."""
    upsampler, latents = load(kind, golden), smooth(2, 13, 20)
    want = upsample(latents, upsampler, vae_statistics)
    got = upsample(latents, upsampler, vae_statistics, tile=12)
    assert got.shape == want.shape
    assert 1e-3 < float((got - want).square().mean().sqrt() / want.std()) < 0.5
    assert torch.equal(upsample(latents, upsampler, vae_statistics, tile=20), want)


def test_wrong_channels_and_tile_sizes_are_rejected(
    golden: Goldens, vae_statistics: LatentStatistics
) -> None:
    upsampler = load("spatial-x2", golden)
    with pytest.raises(RequestError, match="needs 8"):
        upsample(torch.zeros(1, 4, 2, 4, 4), upsampler, vae_statistics)
    for tile in (4, 10):
        with pytest.raises(RequestError, match="multiple of 4"):
            upsample(smooth(1, 13, 13), upsampler, vae_statistics, tile=tile)


def test_without_header_and_with_a_wrong_one(tmp_path: Path, golden: Goldens) -> None:
    path = golden.path("latent_upscale_models/tiny-spatial-x1.5.safetensors")
    part = components(open_checkpoint(path))["latent_upsampler"]
    tensors = {key: part.read(key).clone() for key in part.names}
    bare = tmp_path / "bare.safetensors"
    save_file(tensors, bare)
    assert load_upsampler(
        components(open_checkpoint(bare))["latent_upsampler"], **CPU
    ).factor == Fraction(3, 2)
    wrong = tmp_path / "wrong.safetensors"
    save_file(tensors, wrong, {"config": json.dumps(dict(part.config) | {"mid_channels": 64})})
    with pytest.raises(UnknownLayout, match=r"mid_channels 32 in its tensors, 64 in its header"):
        load_upsampler(components(open_checkpoint(wrong))["latent_upsampler"], **CPU)
    del tensors["final_conv.bias"]
    save_file(tensors, bare)
    with pytest.raises(UnknownLayout, match=r"1 missing \(final_conv.bias\)"):
        load_upsampler(components(open_checkpoint(bare))["latent_upsampler"], **CPU)
