"""Video VAE against the reference, and tiled decoding against the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import checkpoint_layouts as layouts
from helpers.goldens import Goldens
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.errors import MediaError, RequestError, UnknownLayout
from latent_ladder.latents.comfyui_tiling import split_evenly
from latent_ladder.latents.tiling import (
    TilePlan,
    TileSize,
    Tiling,
    plan_tiles,
    spatial_spans,
    temporal_spans,
)
from latent_ladder.models.network_configs import CHUNK_VALUES, VideoVaeConfig
from latent_ladder.models.video_vae import causal_layers
from latent_ladder.models.video_vae.networks import VideoDecoder, pack_kernels
from latent_ladder.models.video_vae.vae import VideoVae, decode_bands, decode_video, load_video_vae

CPU: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
Load = Callable[[str], VideoVae]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def load(golden: Goldens) -> Load:
    loaded: dict[str, VideoVae] = {}

    def get(family: str) -> VideoVae:
        if family not in loaded:
            path = golden.path(f"checkpoints/tiny-ltx-{family}.safetensors")
            loaded[family] = load_video_vae(components(open_checkpoint(path))["video_vae"], **CPU)
        return loaded[family]

    return get


def whole(latents: Tensor, vae: VideoVae, tiles: TilePlan | Tiling | None = None) -> Tensor:
    """Decode all frames (1, 3, F, H, W), about -1..1."""
    return torch.cat([band.clone() for band in decode_bands(latents, vae, tiles)], dim=1)[None]


def smooth(channels: int, frames: int, rows: int, cols: int, seed: int = 0) -> Tensor:
    """Latents that change slowly over space and time, as those of a real clip do."""
    noise = torch.randn((1, channels, 3, 3, 3), generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, size=(frames, rows, cols), mode="trilinear", align_corners=True)


# --- against the reference ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "inputs", "family"),
    [("vae.encode", "vae.encode", "2.3"), ("ltx20.vae_encode", "vae.encode", "2.0")],
)
def test_encode(case: str, inputs: str, family: str, golden: Goldens, load: Load) -> None:
    frames = golden(inputs).inputs["frames_u8"][0].permute(1, 2, 3, 0).numpy()
    want = golden(case)
    want.check("latent", load(family).encode(frames))
    if "first_frame_latent" in want.outputs:
        want.check("first_frame_latent", load(family).encode(frames[:1]))


@pytest.mark.parametrize(("case", "family"), [("vae.decode", "2.3"), ("ltx20.vae_decode", "2.0")])
def test_decode(case: str, family: str, golden: Goldens, load: Load) -> None:
    want = golden(case)
    got = whole(golden("vae.decode").inputs["latent"], load(family))
    assert list(got.shape) == want.params["shape"]
    check_all(want, got)


def test_decode_in_the_references_tiles(golden: Goldens, load: Load) -> None:
    want = golden("vae.decode_tiled")
    plan = TilePlan(temporal_spans(5, 3, 1), spatial_spans(4, 3, 1), spatial_spans(5, 3, 2))
    assert plan.count == 12
    got = whole(want.inputs["latent"], load("2.3"), plan)
    assert list(got.shape) == want.params["shape"]
    check_all(want, got)


def check_all(case: Any, got: Tensor) -> None:
    """Sampled values, and statistics over every value of the output."""
    step = case.params["stride"]
    case.check("samples", got[..., ::step, ::step])
    case.check("frame_channel_mean", like(case, "frame_channel_mean", got.mean((3, 4))))
    case.check("frame_channel_std", like(case, "frame_channel_std", got.std((3, 4))), rtol=2e-3)
    case.check("row_mean", got.mean((0, 1, 2, 4)))
    case.check("col_mean", got.mean((0, 1, 2, 3)))


def like(case: Any, name: str, values: Tensor) -> Tensor:
    """Transpose to the reference's order of frames and channels."""
    shape = case.outputs[name].shape
    return values[0].T if values.shape[1:] == shape[::-1] else values.reshape(shape)


# --- streaming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        None,
        plan_tiles(9, 3, 4, TileSize(3, 2, 3, overlap_frames=1, overlap=1)),
        split_evenly((9, 3, 4), 2, 2, 2),
    ],
    ids=["whole", "one after the other", "side by side"],
)
def test_first_frames_come_before_later_latents_are_decoded(
    plan: TilePlan | Tiling | None, load: Load
) -> None:
    vae, latents = load("2.3"), smooth(8, 9, 3, 4)
    assert vae.decoder is not None
    made: list[int] = []
    hook = vae.decoder.conv_out.register_forward_hook(lambda m, args, out: made.append(len(out)))
    try:
        stream = decode_video(latents, vae, plan)
        assert made == []
        first = next(stream)
        early = sum(made)
        chunks = [first, *stream]
    finally:
        hook.remove()
    assert 0 < early < sum(made) / 2
    assert all(len(chunk) <= 8 and chunk.dtype == np.uint8 for chunk in chunks)
    frames = np.concatenate(chunks)
    assert frames.shape == (65, 96, 128, 3)
    pixels = (whole(latents, vae, plan)[0] + 1) * 127.5
    want = pixels.round().clamp(0, 255).permute(1, 2, 3, 0).numpy()
    np.testing.assert_array_equal(frames, want)


def make_decoder(vae: VideoVae, **changes: Any) -> VideoDecoder:
    """Decoder with the weights of ``vae`` and a changed configuration."""
    assert vae.decoder is not None
    assert isinstance(vae.config, VideoVaeConfig)
    other = VideoDecoder(replace(vae.config, **changes)).eval().requires_grad_(False)
    other.load_state_dict(vae.decoder.state_dict())
    return pack_kernels(other)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("family", ["2.3", "2.0"])
def test_chunks_equal_the_whole(
    family: str, causal: bool, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of one frame at every level equal one chunk of all frames."""
    decoder, latents = make_decoder(load(family), causal=causal), smooth(8, 4, 2, 3)
    monkeypatch.setitem(CHUNK_VALUES, "cpu", 1 << 30)
    want = list(decoder.stream(latents))
    monkeypatch.setitem(CHUNK_VALUES, "cpu", 1)
    got = list(decoder.stream(latents))
    assert len(want) == 1 < 20 < len(got)
    torch.testing.assert_close(torch.cat(got), want[0], rtol=1e-5, atol=1e-4)


def test_2d_and_3d_convolution_agree(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPUs use a 2D convolution over stacked frames, accelerators a 3D convolution."""
    decoder, latents = make_decoder(load("2.0")), smooth(8, 2, 2, 2)
    want = decoder(latents)
    monkeypatch.setattr(causal_layers, "_convolve_2d", causal_layers._convolve_3d)
    torch.testing.assert_close(decoder(latents), want, rtol=1e-5, atol=1e-4)


def test_frames_are_encoded_in_chunks_of_any_length(load: Load) -> None:
    vae = load("2.3")
    assert vae.encoder is not None
    frames = torch.rand((17, 3, 32, 64), generator=torch.Generator().manual_seed(2))
    want = torch.cat(list(vae.encoder.stream([frames])))
    for length in (1, 3, 8):
        got = torch.cat(list(vae.encoder.stream(frames.split(length))))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_bfloat16_stays_close(load: Load, golden: Goldens) -> None:
    part = components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))
    vae = load_video_vae(part["video_vae"], device="cpu", dtype=torch.bfloat16)
    latents = smooth(8, 2, 2, 2)
    assert vae.decoder is not None
    assert vae.decoder(latents.bfloat16()).dtype == torch.bfloat16
    assert errors(whole(latents, vae), whole(latents, load("2.3")))[0] < 0.1


def test_wrong_tile_plans_are_rejected(load: Load) -> None:
    vae = load("2.3")
    with pytest.raises(RequestError, match="do not fit"):
        decode_video(torch.zeros(1, 8, 2, 2, 2), vae, plan_tiles(2, 2, 3, TileSize(9, 9, 9)))
    with pytest.raises(RequestError, match="do not fit"):
        decode_video(torch.zeros(1, 8, 2, 2, 2), vae, split_evenly((2, 2, 3), 1, 2, 1))
    with pytest.raises(RequestError, match="do not fit"):
        decode_video(torch.zeros(1, 4, 2, 2, 2), vae)


# --- tiles against the whole ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> VideoVae:
    """A random VAE of pocket widths, from a split file without a header."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, shape in layouts.video_vae(**layouts.POCKET_VIDEO):
        fan_in = int(np.prod(shape[1:])) or 1
        tensors[name] = torch.randn(shape, generator=generator) / fan_in**0.5
    tensors["per_channel_statistics.std-of-means"] = torch.ones(64)
    tensors["per_channel_statistics.mean-of-means"] = torch.zeros(64)
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(tensors, path)
    return load_video_vae(components(open_checkpoint(path))["video_vae"], **CPU)


def test_pocket_widths(pocket: VideoVae) -> None:
    assert isinstance(pocket.config, VideoVaeConfig)
    assert pocket.config.widths == (160, 80, 80, 40, 20)
    assert (pocket.latent_channels, pocket.config.padding) == (64, "zeros")
    latents = pocket.encode(np.zeros((1, 64, 32, 3), np.uint8))
    assert latents.shape == (1, 64, 1, 2, 1)


def errors(got: Tensor, want: Tensor) -> tuple[float, float]:
    """Root mean square and largest difference, relative to the deviation of ``want``."""
    difference = (got - want) / want.std()
    return float(difference.square().mean().sqrt()), float(difference.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "rms", "worst"),
    [
        # Measured on these random weights: .076 and .62, .027 and .24, .021 and .19. The network
        # sees about 6 latents to each side, so only a larger overlap brings tiles nearer.
        (TileSize(10, 6, 6, overlap=2), 0.10, 0.9),
        (TileSize(10, 8, 8, overlap=4), 0.04, 0.4),
        (TileSize(4, 20, 20, overlap_frames=2), 0.03, 0.3),
    ],
)
def test_tiles_stay_close_to_the_whole(
    size: TileSize, rms: float, worst: float, pocket: VideoVae
) -> None:
    frames, side = (7, 2) if size.frames < 7 else (1, 12)
    latents = smooth(64, frames, side, side)
    plan = plan_tiles(frames, side, side, size)
    assert plan.count > 1
    want = whole(latents, pocket)
    got_rms, got_worst = errors(whole(latents, pocket, plan), want)
    assert got_rms < rms
    assert got_worst < worst


def test_frames_are_not_shifted_after_a_seam(pocket: VideoVae) -> None:
    """Each frame is nearest to the same frame of the whole decode, on both sides of a seam."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn((1, 64, 9, 2, 2), generator=generator)
    want = whole(latents, pocket)[0]
    got = whole(latents, pocket, plan_tiles(9, 2, 2, TileSize(4, 4, 4, overlap_frames=2)))[0]
    distance = torch.cdist(got.transpose(0, 1).flatten(1), want.transpose(0, 1).flatten(1))
    assert distance.argmin(1).tolist() == list(range(65))


def test_one_tile_is_exact(load: Load) -> None:
    latents = smooth(8, 3, 2, 3)
    plan = plan_tiles(3, 2, 3, TileSize(10, 24, 24))
    assert torch.equal(whole(latents, load("2.3"), plan), whole(latents, load("2.3")))


def test_long_clips_are_encoded_in_tiles(pocket: VideoVae) -> None:
    """Later spans start with a single frame and drop it; earlier frames are not seen."""
    frames = np.random.default_rng(0).integers(0, 256, (73, 32, 64, 3), dtype=np.uint8)
    want = pocket.encode(frames)
    assert want.shape == (1, 64, 10, 1, 2)
    plan = plan_tiles(10, 1, 2, TileSize(6, 2, 2, overlap_frames=3))
    got = pocket.encode(frames, plan)
    assert errors(got, want)[0] < 0.05
    before_the_seam = plan.frames[1].start + 1
    torch.testing.assert_close(got[:, :, :before_the_seam], want[:, :, :before_the_seam])


# --- errors and loading ---------------------------------------------------------------------------


def test_frames_after_the_last_group_are_ignored(load: Load) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    assert torch.equal(load("2.3").encode(frames), load("2.3").encode(frames[:9]))


def test_invalid_frames_are_rejected(load: Load) -> None:
    vae = load("2.3")
    with pytest.raises(MediaError, match="multiples of 32") as caught:
        vae.encode(np.zeros((9, 65, 100, 3), np.uint8))
    assert caught.value.hint == "resize them to 96x64"
    for bad in (np.zeros((9, 64, 64, 4), np.uint8), np.zeros((0, 64, 64, 3), np.uint8)):
        with pytest.raises(MediaError, match=r"expected \(F, H, W, 3\)"):
            vae.encode(bad)
    with pytest.raises(MediaError, match="float64"):
        vae.encode(np.zeros((9, 64, 64, 3)))


def test_statistics_invert(load: Load) -> None:
    latents = smooth(8, 2, 2, 2)
    torch.testing.assert_close(load("2.3").normalise(load("2.3").un_normalise(latents)), latents)


def test_file_with_only_a_decoder(tmp_path: Path, golden: Goldens) -> None:
    """A file without encoder decodes, and encoding reports the missing encoder."""
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    file = open_checkpoint(path)
    part = components(file)["video_vae"]
    kept = {key: part.read(key).clone() for key in part.names if not key.startswith("encoder.")}
    save_file(kept, tmp_path / "d.safetensors", {"config": json.dumps({"vae": dict(part.config)})})
    alone = components(open_checkpoint(tmp_path / "d.safetensors"))["video_vae"]
    vae = load_video_vae(alone, **CPU, parts=("decoder",))
    case = golden("vae.decode")
    case.check("samples", whole(case.inputs["latent"], vae)[..., ::5, ::5])
    with pytest.raises(UnknownLayout, match=r"tensor encoder\.conv_in"):
        load_video_vae(alone, **CPU)
    with pytest.raises(ValueError, match="without its encoder"):
        vae.encode(np.zeros((1, 32, 32, 3), np.uint8))
