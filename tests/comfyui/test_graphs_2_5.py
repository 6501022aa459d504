"""Graphs with files of LTX-2.5: the diffusion decoder, and text encoders that do not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.goldens import GOLDEN, GOLDEN_2_5
from helpers.workflow_graphs import engine

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.comfyui.nodes.decoding import DecodedClip
from latent_ladder.comfyui.runtime.engine import check_text_encoder
from latent_ladder.comfyui.runtime.values import VideoVaeFile
from latent_ladder.errors import WorkflowError
from latent_ladder.latents.comfyui_tiling import feather_tiles
from latent_ladder.models.video_vae.diffusion_vae import DiffusionOptions
from latent_ladder.models.video_vae.pixel_noise import CanvasNoise
from latent_ladder.models.video_vae.vae import decode_bands, load_video_vae

ENCODER = GOLDEN_2_5 / "text_encoders/tiny-gemma4-with-proj-ltx-2.5.safetensors"
TRANSFORMER = GOLDEN_2_5 / "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors"


def part(path: Path, role: str) -> Component:
    return components(open_checkpoint(path))[role]


def test_text_encoders_of_another_family_are_refused() -> None:
    """Their states have the same size at full scale, so nothing else would notice."""
    projection = part(ENCODER, "text_projection")
    check_text_encoder(part(ENCODER, "text_encoder"), projection, part(TRANSFORMER, "transformer"))
    older = part(GOLDEN / "text_encoders/tiny-gemma-3.safetensors", "text_encoder")
    with pytest.raises(WorkflowError, match=r"it is Gemma 3, LTX-2\.5 needs LTX's own Gemma 4"):
        check_text_encoder(older, projection, part(TRANSFORMER, "transformer"))
    checkpoint = GOLDEN / "checkpoints/tiny-ltx-2.3.safetensors"
    with pytest.raises(WorkflowError, match=r"it is Gemma 4, LTX-2\.3 needs Gemma 3"):
        check_text_encoder(
            part(ENCODER, "text_encoder"),
            part(checkpoint, "text_projection"),
            part(checkpoint, "transformer"),
        )


def test_the_diffusion_decoder_of_a_graph_has_the_noise_of_comfyui(tmp_path: Path) -> None:
    """Seed 0 whatever the graph's seed; tiles that a node asks for are not needed."""
    vae = part(GOLDEN_2_5 / "vae/tiny-ltx-2.5-video-vae.safetensors", "video_vae")
    latents = torch.randn(1, 8, 2, 3, 3, generator=torch.Generator().manual_seed(1))
    clip = DecodedClip(
        engine(tmp_path),
        VideoVaeFile(vae),
        latents,
        lambda grid: feather_tiles(grid, (2, 2), (1, 1)),
    )
    got = torch.cat(list(clip.images().pixels()))
    loaded = load_video_vae(vae, device="cpu", dtype=torch.float32, parts=("decoder",))
    noise = CanvasNoise(torch.Generator().manual_seed(0))
    loaded = replace(loaded, diffusion=DiffusionOptions(noise=noise))
    want = torch.cat([band.clone() for band in decode_bands(latents, loaded)], 1)
    torch.testing.assert_close(got, want.add(1).div(2).clamp(0, 1).transpose(0, 1))
