"""Upscaling: exact sizes, no seams, constant memory, no code run from pickles."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latent_ladder.checkpoints.misplaced import find_misplaced
from latent_ladder.checkpoints.selection import EMBEDDED, scan
from latent_ladder.errors import CheckpointNotFound, LadderError, RequestError, UnknownLayout
from latent_ladder.models.video_vae.vae import decode_video, load_video_vae
from latent_ladder.request.model import Request
from latent_ladder.request.stages import UpscaleStage
from latent_ladder.upscale import model_upscaler
from latent_ladder.upscale.lanczos import lanczos_resize
from latent_ladder.upscale.model_upscaler import UpscalingNetwork, load_network
from latent_ladder.upscale.srvgg import CompactNetwork, CompactShape, compact_shape, load_compact
from latent_ladder.upscale.stream import load_upscaler, upscale_frames
from latent_ladder.upscale.tiles import TiledNetwork
from latent_ladder.upscale.upscale_plan import crop_to_aspect, plan_upscale

CPU = torch.device("cpu")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models/ folder with a compact network in three layouts, and other files."""
    folder = tmp_path / "upscale_models"
    folder.mkdir()
    torch.manual_seed(0)
    state = CompactNetwork(CompactShape(8, 1, 4)).state_dict()
    save_file(state, folder / "plain.safetensors")
    torch.save({"params_ema": state}, folder / "wrapped.pth")
    torch.save({f"module.{name}": value for name, value in state.items()}, folder / "module.pt")
    save_file({"a.weight": torch.zeros(3)}, folder / "other.safetensors")
    torch.save({"params": MaliciousObject(tmp_path / "ran")}, folder / "malicious.pth")
    (folder / "text.pth").write_text("hello")
    return tmp_path


class MaliciousObject:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def enlarge(name: str, folder: Path, frames: torch.Tensor, **target: Any) -> list[torch.Tensor]:
    height, width = frames.shape[-2:]
    stage = UpscaleStage(name=name, **target)
    plan = plan_upscale(stage, (width, height), scan([folder]))
    loaded = load_upscaler(plan, device=CPU, dtype=torch.float32)
    return list(upscale_frames(iter([frames]), plan, loaded))


# --- Lanczos ---


@pytest.mark.parametrize("size", [(140, 100), (35, 25), (97, 131), (70, 200)])
def test_lanczos_matches_pillow(size: tuple[int, int]) -> None:
    x = torch.rand(1, 1, 50, 70)
    expected = Image.fromarray(x[0, 0].numpy()).resize(size, Image.Resampling.LANCZOS)
    assert np.abs(lanczos_resize(x, size)[0, 0].numpy() - np.asarray(expected)).max() < 1e-5


def test_lanczos_keeps_uniform_frames_and_frames_of_the_target_size() -> None:
    flat = torch.full((2, 3, 30, 41), 0.3)
    torch.testing.assert_close(lanczos_resize(flat, (100, 77)), torch.full((2, 3, 77, 100), 0.3))
    assert lanczos_resize(flat, (41, 30)) is flat


# --- sizes ---


def test_the_target_is_exact_and_keeps_the_aspect_by_cropping() -> None:
    crop = crop_to_aspect((960, 544), (3840, 2160))
    assert (crop.width, crop.height, crop.left, crop.top) == (960, 540, 0, 2)
    frames = torch.zeros(1, 3, 544, 960)
    frames[..., 2:542, :] = 1  # the cropped rows are black
    plan = plan_upscale(UpscaleStage(name="lanczos", width=1920, height=1080), (960, 544), scan([]))
    (out,) = upscale_frames(iter([frames]), plan, lambda x: x)
    assert out.shape == (1, 3, 1080, 1920)
    assert out.min() > 1 - 1e-5


BASE = {"prompt": "x", "width": 64, "height": 64, "frames": 9}


def request(*stages: dict[str, object]) -> Request:
    base = {"kind": "base", "sigmas": [1.0, 0.0]}
    return Request.from_dict({**BASE, "stages": [base, *stages]})


def test_an_upscale_stage_changes_the_clip_and_no_earlier_stage() -> None:
    plain, upscaled = request(), request({"kind": "upscale", "name": "lanczos", "factor": 1.5})
    assert upscaled.resolved.final_size == (96, 96)
    assert plain.resolved.final_size == (64, 64)
    assert upscaled.stage_fields(0) == plain.stage_fields(0)
    assert upscaled.clip_fields() != plain.clip_fields()
    assert Request.from_toml(upscaled.to_toml()) == upscaled
    assert request({"kind": "upscale", "name": "lanczos"}).resolved.final_size == (128, 128)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{"factor": 2.0, "width": 64, "height": 64}], "expected a factor, or width and height"),
        ([{"width": 128}], "expected a factor, or width and height"),
        ([{"width": 32, "height": 32}], "would shrink it"),
        ([{"width": 640, "height": 64}], "would distort or crop"),
        ([{"factor": 2.0}, {"factor": 2.0}], "stages follow it"),
        ([{"factor": 1.0}], "must be above 1"),
    ],
)
def test_impossible_targets_are_refused(stages: list[dict[str, object]], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        request(*({"kind": "upscale", "name": "lanczos", **stage} for stage in stages))
    assert caught.value.hint or "above 1" in message


# --- networks from files ---


@pytest.mark.parametrize("name", ["plain", "wrapped.pth", "module.pt"])
def test_every_layout_gives_the_same_network(models: Path, name: str) -> None:
    x = torch.rand(2, 3, 20, 24)
    (first,) = enlarge("plain.safetensors", models, x, factor=4.0)
    (out,) = enlarge(name, models, x, factor=4.0)
    assert out.shape == (2, 3, 80, 96)
    torch.testing.assert_close(out, first)
    (smaller,) = enlarge(name, models, x, factor=2.0)  # x4, then reduced to the target
    assert smaller.shape == (2, 3, 40, 48)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("malicious.pth", "can run any code"),
        ("text.pth", "text.pth"),
        ("other.safetensors", "not an upscaler|need spandrel"),
        ("nothing.pth", "no upscaler called nothing.pth found; known: lanczos, rtx"),
    ],
)
def test_files_that_are_not_upscalers_are_errors_and_run_no_code(
    models: Path, name: str, message: str
) -> None:
    with pytest.raises(LadderError, match=message) as caught:
        enlarge(name, models, torch.rand(1, 3, 8, 8))
    assert caught.value.hint
    assert not (models / "ran").exists()


def test_a_latent_upsampler_is_named_in_the_error() -> None:
    with pytest.raises(CheckpointNotFound, match="contains a latent upsampler"):
        plan_upscale(UpscaleStage(name="pocket-spatial-x2"), (64, 64), scan([EMBEDDED]))


def test_rtx_without_its_package_says_what_to_install() -> None:
    with pytest.raises(CheckpointNotFound, match="nvidia-vfx") as caught:
        plan_upscale(UpscaleStage(name="rtx"), (64, 64), scan([]))
    assert "lanczos" in str(caught.value.hint)


def test_without_spandrel_the_extra_is_named(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_upscaler, "import_spandrel", lambda: None)
    with pytest.raises(UnknownLayout, match="need spandrel") as caught:
        enlarge("other.safetensors", models, torch.rand(1, 3, 8, 8))
    assert "pip install 'latent-ladder[upscale]'" in str(caught.value.hint)
    enlarge(
        "plain.safetensors", models, torch.rand(1, 3, 8, 8)
    )  # the built-in network does not need it


def test_spandrel_loads_other_architectures(models: Path) -> None:
    spandrel = model_upscaler.import_spandrel()
    if spandrel is None:
        pytest.skip("spandrel is not installed")
    assert "torchvision.transforms.functional" not in sys.modules
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    net = RRDBNet(in_nc=3, out_nc=3, num_filters=8, num_blocks=1, scale=2)
    torch.save(net.state_dict(), models / "upscale_models/rrdb.pth")
    plan = plan_upscale(UpscaleStage(name="rrdb"), (24, 20), scan([models]))
    assert plan.model is not None
    network = load_network(plan.model, device=CPU, dtype=torch.float32)
    assert (network.architecture, network.scale) == ("ESRGAN", 2)
    assert TiledNetwork(network)(torch.rand(1, 3, 21, 24)).shape == (1, 3, 42, 48)


def test_the_shape_of_a_compact_network_is_read_from_its_weights() -> None:
    shape = CompactShape(16, 3, 2)
    state = CompactNetwork(shape).state_dict()
    assert compact_shape({name: tuple(value.shape) for name, value in state.items()}) == shape
    del state["body.1.weight"]
    assert load_compact(state, torch.float32) is None


def test_scan_lists_upscalers_where_comfyui_finds_them(models: Path) -> None:
    library = scan([models])
    names = {found.path.name for found in library.of("pixel_upscaler")}
    assert {"plain.safetensors", "wrapped.pth", "module.pt", "other.safetensors"} <= names
    assert find_misplaced(library) == ()
    ids = {found.component.id for found in library.of("pixel_upscaler")}
    assert len(ids) == len(names)


# --- tiles and memory ---


def test_tiles_cover_the_frame_without_seams() -> None:
    network = UpscalingNetwork(lambda x: x.repeat_interleave(2, -1).repeat_interleave(2, -2), 2, "")
    x = torch.rand(1, 3, 100, 75)
    tiled = TiledNetwork(network, tile_px=32, overlap_px=8)(x)
    torch.testing.assert_close(tiled, network.run(x))


def test_tiles_of_a_network_with_a_receptive_field_differ_little() -> None:
    torch.manual_seed(0)
    net = CompactNetwork(CompactShape(8, 2, 2)).eval().requires_grad_(False)
    x = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 12), (96, 96), mode="bicubic")
    x = x.clamp(0, 1)
    network = UpscalingNetwork(net, 2, "Compact")
    whole = TiledNetwork(network, tile_px=512)(x)
    tiled = TiledNetwork(network, tile_px=48, overlap_px=16)(x)
    assert float((whole - tiled).abs().max()) < 0.02


def test_running_out_of_memory_halves_the_tiles() -> None:
    def fails_above_200_px(x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    tiled = TiledNetwork(UpscalingNetwork(fails_above_200_px, 1, ""))
    x = torch.rand(1, 3, 40, 600)
    torch.testing.assert_close(tiled(x), x)
    assert tiled.tile_px == 128
    with pytest.raises(torch.OutOfMemoryError):
        TiledNetwork(UpscalingNetwork(_always_out_of_memory, 1, ""))(x)


def _always_out_of_memory(_: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_odd_sides_are_padded_for_networks_that_need_it() -> None:
    def check_sides(x: torch.Tensor) -> torch.Tensor:
        assert x.shape[-1] % 8 == 0
        assert x.shape[-2] % 8 == 0
        assert min(x.shape[-2:]) >= 24
        return x

    x = torch.rand(1, 3, 13, 50)
    out = TiledNetwork(UpscalingNetwork(check_sides, 1, "", multiple=8, min_side=24))(x)
    torch.testing.assert_close(out, x)


def test_frames_are_read_only_when_needed() -> None:
    read = 0

    def decoder() -> Iterator[torch.Tensor]:
        nonlocal read
        for _ in range(100):
            read += 1
            yield torch.rand(4, 3, 16, 16)

    plan = plan_upscale(UpscaleStage(name="lanczos"), (16, 16), scan([]))
    stream = upscale_frames(decoder(), plan, lambda x: x)
    assert read == 0
    next(stream)
    assert read == 1
    assert 4 + sum(len(chunk) for chunk in stream) == 400


def test_the_peak_does_not_grow_with_the_frames() -> None:
    """Frames are numpy arrays, which tracemalloc counts; a leak of one chunk in ten would fail."""
    plan = plan_upscale(UpscaleStage(name="lanczos"), (64, 64), scan([]))

    def peak_memory(chunks: int) -> int:
        frames = (torch.from_numpy(np.zeros((8, 3, 64, 64), np.float32)) for _ in range(chunks))
        tracemalloc.start()
        for chunk in upscale_frames(frames, plan, lambda x: x):
            np.asarray(chunk).copy()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak_memory(2)
    assert peak_memory(40) < 1.3 * peak_memory(4)


def disc(size: int, frames: int) -> torch.Tensor:
    """(frames, size, size, 3) uint8: a disc as in the pocket model's clips, moving to the right."""
    at = (torch.arange(size) + 0.5) * 2 / size - 1
    x = at[None] + 0.2 - torch.arange(frames)[:, None] / 48
    distance = torch.hypot(x[:, None, :], at[None, :, None])
    soft = (0.5 + (0.42 - distance) * size / 3).clamp(0, 1)[..., None]
    inside, outside = torch.tensor([30.0, 72.0, 214.0]), torch.tensor([226.0, 196.0, 138.0])
    return (outside + soft * (inside - outside)).round().to(torch.uint8)


def test_the_pocket_upscaler_beats_lanczos_on_decoded_frames() -> None:
    library = scan([EMBEDDED])
    (found,) = library.of("pixel_upscaler")
    assert found.path.stat().st_size < 0.2e6
    network = load_network(found.component, device=CPU, dtype=torch.float32)
    assert (network.architecture, network.scale) == ("Compact", 2)
    (checkpoint,) = library.of("video_vae")
    vae = load_video_vae(checkpoint.component, device="cpu", dtype=torch.float32)
    decoded = np.concatenate(list(decode_video(vae.encode(disc(256, 9).numpy()), vae)))
    picked = [0, 4, 8]
    small = torch.from_numpy(decoded[picked]).permute(0, 3, 1, 2).float() / 255
    true = disc(512, 9)[picked].permute(0, 3, 1, 2).float() / 255
    ours = (TiledNetwork(network)(small) - true).square().mean()
    lanczos = (lanczos_resize(small, (512, 512)) - true).square().mean()
    assert ours < 0.97 * lanczos


def test_the_pocket_upscaler_is_found_by_its_name() -> None:
    frames = torch.rand(2, 3, 48, 64)
    (got,) = enlarge("pocket-compact-x2", EMBEDDED, frames, factor=2.0)
    assert got.shape == (2, 3, 96, 128)
    assert (got - lanczos_resize(frames, (128, 96)).clamp(0, 1)).abs().max() > 0.01
