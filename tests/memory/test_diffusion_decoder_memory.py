"""Memory plan of LTX-2.5's diffusion decoder: exact on every card, with frames in RAM if needed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.goldens import GOLDEN_2_5

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.errors import MemoryBudgetError
from latent_ladder.memory.model_sizes import LTX_2_3, sizes_of
from latent_ladder.memory.planner import GIB, Budget, Policy, plan_fallback, plan_memory
from latent_ladder.models.diffusion_decoder_config import (
    PUBLISHED_KERNELS,
    DiffusionDecoderConfig,
    diffusion_decoder_config,
    held_values,
)
from latent_ladder.models.video_vae.diffusion_decoder import DiffusionDecoder
from latent_ladder.models.weights.loading import EmptyOnMeta
from latent_ladder.request.model import Request

PUBLISHED = DiffusionDecoderConfig(
    latent_channels=128,
    patch=4,
    head_dim=64,
    channels=(2048, 1024, 512, 512, 256),
    depths=(4, 6, 4, 2, 8),
    inner=(8192, 4096, 2048, 2048, 1024),
    kernels=PUBLISHED_KERNELS,
    strides=((1, 2, 2), (2, 1, 1), (2, 2, 2), (2, 2, 2)),
    time_dim=384,
    frequency_dim=256,
)
LTX_2_5 = replace(LTX_2_3, diffusion_decoder=PUBLISHED)
SIZES = {"720p": (1280, 704), "1080p": (1920, 1088)}


def request(name: str, frames: int = 121) -> Request:
    width, height = SIZES[name]
    return Request.from_preset("distilled", prompt="a", width=width, height=height, frames=frames)


def card(gib: float, ram: float = 64) -> Budget:
    return Budget("cuda", int(gib * GIB), int(ram * GIB))


@pytest.mark.parametrize(
    ("name", "gib", "in_ram"),
    [("720p", 12, True), ("720p", 16, False), ("720p", 24, False), ("720p", 80, False),
     ("1080p", 12, True), ("1080p", 16, True), ("1080p", 24, False), ("1080p", 80, False)],
)  # fmt: skip
def test_cards(name: str, gib: float, in_ram: bool) -> None:
    """No card needs tiles, which would change the picture."""
    decode = plan_memory(request(name), LTX_2_5, card(gib - 0.5)).of("decode")
    assert decode.offload_plan.frames_in_ram == in_ram
    assert decode.offload_plan.tile_px is None
    assert decode.peak_bytes <= (gib - 0.5) * GIB
    assert (decode.pinned_bytes > 5 * GIB) == in_ram


def test_after_out_of_memory_the_frames_go_to_ram() -> None:
    first = plan_memory(request("1080p"), LTX_2_5, card(40)).of("decode")
    assert "RAM" not in str(first.offload_plan)
    options = (request("1080p"), LTX_2_5, card(40), Policy())
    second = plan_fallback(first, *options)
    assert "frames of the decoder in RAM" in str(second.offload_plan)
    with pytest.raises(MemoryBudgetError):
        plan_fallback(second, *options)


def test_memory_hardly_grows_with_the_length() -> None:
    short, long = (held_values(PUBLISHED, (1 + n // 8, 22, 40)) for n in (120, 1200))
    assert long < 1.1 * short


def test_sizes_of_the_file() -> None:
    file = open_checkpoint(GOLDEN_2_5 / "vae/tiny-ltx-2.5-video-vae.safetensors")
    vae = components(file)["video_vae"]
    transformer = components(
        open_checkpoint(GOLDEN_2_5 / "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors")
    )["transformer"]
    sizes = sizes_of({"transformer": transformer, "video_vae": vae})
    assert sizes.diffusion_decoder == diffusion_decoder_config(vae.shapes(), vae.config)
    assert sizes.diffusion_decoder is not None
    assert sizes.diffusion_decoder.spatial_scale == 32
    assert sizes.diffusion_decoder.temporal_scale == 8


def test_the_published_decoder_has_the_published_number_of_weights() -> None:
    with EmptyOnMeta(), torch.device("meta"):
        state = DiffusionDecoder(PUBLISHED).state_dict()
    assert sum(tensor.numel() for tensor in state.values()) == 417_133_616
    assert len(state) + 1 == 310  # and type_emb, which nothing uses
