"""Pixel diffusion decoder against the reference, streamed, tiled and with frames in RAM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.models.vae_loading import LatentStatistics, read_latent_statistics
from latent_ladder.models.video_vae import diffusion_blocks
from latent_ladder.models.video_vae.diffusion_blocks import FrameWindow
from latent_ladder.models.video_vae.diffusion_decoder import (
    DecodeSettings,
    DiffusionDecoder,
    decode_whole,
    load_diffusion_decoder,
)
from latent_ladder.models.video_vae.frame_stream import StreamPlace

TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
CPU = torch.device("cpu")
HERE = StreamPlace(CPU, CPU)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def vae(golden_2_5: Goldens) -> Component:
    path = golden_2_5.path("vae/tiny-ltx-2.5-video-vae.safetensors")
    return components(open_checkpoint(path))["video_vae"]


@pytest.fixture(scope="module")
def decoder(vae: Component) -> DiffusionDecoder:
    return load_diffusion_decoder(vae, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def statistics(vae: Component) -> LatentStatistics:
    return read_latent_statistics(vae)


def noise_of(case: GoldenCase, name: str = "noise_x32") -> Tensor:
    """Noise (3, F, H, W) of a case."""
    return case.inputs[name][0].float() / 32


def un_normalise(statistics: LatentStatistics, latents: Tensor) -> Tensor:
    mean, std = (t[:, None, None, None] for t in (statistics.mean, statistics.std))
    return latents.float() * std + mean


def decode(
    case: GoldenCase, decoder: DiffusionDecoder, statistics: LatentStatistics, steps: int = 1
) -> Tensor:
    """All frames (1, 3, F, H, W) of a case, untiled."""
    noise = noise_of(case)
    chunks = decode_whole(
        decoder,
        case.inputs["latent"],
        lambda z: un_normalise(statistics, z),
        lambda first, stop: noise[:, first:stop],
        DecodeSettings(HERE, steps),
    )
    return torch.cat(list(chunks)).transpose(0, 1)[None]


def check_all(case: GoldenCase, got: Tensor) -> None:
    """Sampled values, and statistics over every value of the output."""
    assert list(got.shape) == case.params["shape"]
    step = case.params["stride"]
    case.check("samples", got[..., ::step, ::step], **TIGHT)
    case.check("frame_channel_mean", got.mean((3, 4))[0], **TIGHT)
    case.check("frame_channel_std", got.std((3, 4))[0])
    case.check("row_mean", got.mean((0, 1, 2, 4)), **TIGHT)
    case.check("col_mean", got.mean((0, 1, 2, 3)), **TIGHT)


def test_stages(
    golden_2_5: Goldens, decoder: DiffusionDecoder, statistics: LatentStatistics
) -> None:
    case = golden_2_5("diffvae.stages")
    with torch.no_grad():
        padded, _ = decoder.pad(case.inputs["latent"])
        stream, size = decoder.early_stages(un_normalise(statistics, padded), HERE)
        features = torch.cat([frames.x for frames in stream])
        case.check("stage4_in", features[:, ::2, ::2][None], **TIGHT)
        stream, _ = decoder.early_stages(un_normalise(statistics, padded), HERE)
        context = torch.cat([f.x for f in decoder.stage(3, stream, size, HERE)])
        want = case.outputs["context"]
        case.check("context", context[: want.shape[1], ::3, ::3][None], **TIGHT)
        x = case.inputs["block0_in"][0]
        block = decoder.det_stages[0][0]  # type: ignore[index]
        after = block(FrameWindow(list(x), 0, 0, len(x)), tuple(x.shape[:3]), None, CPU)
        case.check("block0_out", after[None], **TIGHT)


def test_modulation(golden_2_5: Goldens, decoder: DiffusionDecoder) -> None:
    case = golden_2_5("diffvae.modulation")
    embeddings = [decoder.t_embedder(t) for t in case.params["t"]]
    case.check("t_emb", torch.stack(embeddings), **TIGHT)
    case.check("chunks", torch.stack([decoder.shared_adaln(e) for e in embeddings]), **TIGHT)


@pytest.mark.parametrize(
    ("name", "steps", "predicts"),
    [
        ("diffvae.decode", 1, "x0"),
        ("diffvae.decode_one_frame", 1, "x0"),
        ("diffvae.decode_x0_3_steps", 3, "x0"),
        ("diffvae.decode_v_2_steps", 2, "v"),
        ("pipeline.distilled.t2v.decode", 1, "x0"),
    ],
)
def test_decode(
    golden_2_5: Goldens,
    decoder: DiffusionDecoder,
    statistics: LatentStatistics,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    steps: int,
    predicts: Any,
) -> None:
    monkeypatch.setattr(decoder, "config", replace(decoder.config, predicts=predicts))
    case = golden_2_5(name)
    check_all(case, decode(case, decoder, statistics, steps))


def test_bands_do_not_change_the_picture(
    golden_2_5: Goldens,
    decoder: DiffusionDecoder,
    statistics: LatentStatistics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(diffusion_blocks.BAND_VALUES, "cpu", 1)
    case = golden_2_5("diffvae.decode")
    check_all(case, decode(case, decoder, statistics))
