"""Pixel diffusion decoder against the reference, streamed, tiled and with frames in RAM."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.latents.tiling import PixelTileSize
from latent_ladder.models.diffusion_decoder_config import Size
from latent_ladder.models.vae_loading import LatentStatistics, read_latent_statistics
from latent_ladder.models.video_vae import diffusion_blocks, window_attention
from latent_ladder.models.video_vae.diffusion_blocks import FrameWindow
from latent_ladder.models.video_vae.diffusion_decoder import (
    GATES,
    DecodeSettings,
    DiffusionDecoder,
    decode_whole,
    load_diffusion_decoder,
)
from latent_ladder.models.video_vae.diffusion_tiles import (
    plan_diffusion_tiles,
)
from latent_ladder.models.video_vae.diffusion_vae import DiffusionOptions
from latent_ladder.models.video_vae.frame_stream import StreamPlace
from latent_ladder.models.video_vae.pixel_noise import CanvasNoise, PositionNoise, ReadNoise
from latent_ladder.models.video_vae.vae import VideoVae, decode_bands, load_video_vae

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


TILES = PixelTileSize(frames=16, rows=64, overlap_frames=8, overlap=32)


class RecordedTileNoise:
    """The noise of each tile of a golden case, in the order of the reference."""

    def __init__(self, case: GoldenCase) -> None:
        names = ["noise_x32", *(f"noise{n}_x32" for n in range(1, 6))]
        self._tiles = iter([noise_of(case, name) for name in names])

    def reader(self, first: Size, count: Size, canvas: Size) -> ReadNoise:
        noise = next(self._tiles)
        assert noise.shape[1:] == count
        return lambda start, stop: noise[:, start:stop]


def open_vae(vae: Component, **options: Any) -> VideoVae:
    loaded = load_video_vae(vae, device="cpu", dtype=torch.float32, parts=("decoder",))
    return replace(loaded, diffusion=DiffusionOptions(**options))


def all_bands(latents: Tensor, vae: VideoVae) -> Tensor:
    return torch.cat([band.clone() for band in decode_bands(latents, vae)], 1)[None]


def test_official_tiles(golden_2_5: Goldens, vae: Component) -> None:
    """Three spans of time and two of rows, each tile with the noise that it draws itself."""
    case = golden_2_5("diffvae.decode_tiled")
    loaded = open_vae(vae, tiles=TILES, noise=RecordedTileNoise(case))
    bands = [band.clone() for band in decode_bands(case.inputs["latent"], loaded)]
    assert [band.shape[1] for band in bands] == case.params["chunk_frames"]
    check_all(case, torch.cat(bands, 1)[None])


def test_official_tiles_of_several_steps(
    golden_2_5: Goldens, vae: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = golden_2_5("diffvae.decode_v_2_steps_tiled")
    canvas = CanvasNoise(torch.Generator(), [noise_of(case)])
    loaded = open_vae(vae, tiles=TILES, noise=canvas, steps=2)
    assert isinstance(loaded.decoder, DiffusionDecoder)
    loaded.decoder.config = replace(loaded.decoder.config, predicts="v")
    check_all(case, all_bands(case.inputs["latent"], loaded))


def test_tiles_of_the_reference(decoder: DiffusionDecoder, golden_2_5: Goldens) -> None:
    tiling = plan_diffusion_tiles(decoder.config, (4, 3, 3), TILES)
    wanted = golden_2_5("diffvae.decode_tiled").params["tiles"]
    for spans, axis in ((tiling.frames, "frames"), (tiling.rows, "height")):
        for span, want in zip(spans, wanted[axis], strict=True):
            assert [span.start, span.stop] == want["stage4"]
            assert [span.first, span.first + len(span.weights)] == want["pixel"]
            assert span.weights == pytest.approx(want["mask"], abs=1e-5)


@pytest.mark.parametrize(("name", "limit"), [("BAND_VALUES", 1), ("ATTENTION_VALUES", 1)])
def test_memory_does_not_change_the_picture(
    golden_2_5: Goldens, vae: Component, monkeypatch: pytest.MonkeyPatch, name: str, limit: int
) -> None:
    """Position noise: the same picture in other bands, and in tiles away from their borders."""
    latents = golden_2_5("diffvae.decode_tiled").inputs["latent"]
    want = all_bands(latents, open_vae(vae, noise=PositionNoise(3)))
    module = diffusion_blocks if name == "BAND_VALUES" else window_attention
    monkeypatch.setitem(getattr(module, name), "cpu", limit)
    got = all_bands(latents, open_vae(vae, noise=PositionNoise(3)))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    other = all_bands(latents, open_vae(vae, noise=PositionNoise(4)))
    assert (other - want).abs().max() > 0.01


def test_noise_by_position_is_the_same_in_every_part() -> None:
    noise, canvas = PositionNoise(7), (17, 200, 150)
    whole = noise.reader((0, 0, 0), canvas, canvas)(0, 17)
    read = noise.reader((5, 120, 3), (9, 40, 140), canvas)
    part = torch.cat([read(0, 4), read(4, 9)], 1)
    assert torch.equal(part, whole[:, 5:14, 120:160, 3:143])
    assert whole.mean().abs() < 0.01
    assert whole.std() == pytest.approx(1, abs=0.01)


def test_the_file_is_loaded_with_its_encoder(golden_2_5: Goldens, vae: Component) -> None:
    case = golden_2_5("vae.encode")
    conv = golden_2_5.path("vae/tiny-ltx-2.5-video-vae-conv.safetensors")
    frames = case.inputs["frames_u8"][0].permute(1, 2, 3, 0).numpy()
    for component in (vae, components(open_checkpoint(conv))["video_vae"]):
        loaded = load_video_vae(component, device="cpu", dtype=torch.float32)
        case.check("latent", loaded.encode(frames), **TIGHT)
        case.check("first_frame_latent", loaded.encode(frames[:1]), **TIGHT)
        assert loaded.config.spatial_scale == 32
        assert loaded.config.temporal_scale == 8


def test_the_convolutional_decoder(golden_2_5: Goldens) -> None:
    case = golden_2_5("vae.decode_conv")
    path = golden_2_5.path("vae/tiny-ltx-2.5-video-vae-conv.safetensors")
    loaded = load_video_vae(
        components(open_checkpoint(path))["video_vae"], device="cpu", dtype=torch.float32
    )
    check_all(case, all_bands(case.inputs["latent"], loaded))


def test_gates_are_folded(golden_2_5: Goldens, tmp_path: Path, vae: Component) -> None:
    """A file with gates of 0.5 and weights twice as large is the same decoder."""
    with safe_open(vae.file.path, "pt") as opened:
        names = set(opened.keys())
        tensors = {name: opened.get_tensor(name) for name in names}
    for block in {name.rsplit(".", 2)[0] for name in names if name.endswith("norm1.weight")}:
        for gate, layer in GATES.items():
            for part in ("weight", "bias"):
                name = f"{block}.{layer}.{part}"
                if name in tensors:
                    tensors[name] = tensors[name] * 2
                    width = len(tensors[name])
                    tensors[f"{block}.{gate}"] = torch.full((width,), 0.5, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "vae.safetensors", vae.file.metadata)
    gated = load_diffusion_decoder(
        components(open_checkpoint(tmp_path / "vae.safetensors"))["video_vae"],
        device="cpu",
        dtype=torch.float32,
    )
    plain = load_diffusion_decoder(vae, device="cpu", dtype=torch.float32)
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, gated.state_dict()[name]), name
