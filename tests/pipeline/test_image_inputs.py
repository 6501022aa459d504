"""Images as inputs: read, compressed, fitted, fixed at their frames; keys depend on content."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.goldens import Goldens
from helpers.tiny_clips import GOLDEN, load_artefact, make, request_with, reused
from PIL import Image as Pictures

from latent_ladder import Request
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import scan
from latent_ladder.cli.commands.flags import InputFlags
from latent_ladder.errors import MediaError, RequestError
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.tokens import video_to_tokens
from latent_ladder.media.image_input import check_image, compress_like_video, load_image
from latent_ladder.media.image_resize import fit_image
from latent_ladder.pipeline.run import prepare
from latent_ladder.pipeline.start_state import apply_images, plain_start
from latent_ladder.request.files import request_of_clip
from latent_ladder.request.overrides import apply_sets
from latent_ladder.sampling.denoise import LatentState
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([GOLDEN])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    return drawn(tmp_path / "photo.png", (96, 64))


def drawn(path: Path, size: tuple[int, int], **options: Any) -> Path:
    """A picture of gradients with a disc, nothing like noise."""
    y, x = np.mgrid[: size[1], : size[0]] / max(size)
    disc = (x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.02
    rgb = np.stack([x, y, disc], -1).clip(0, 1) * 255
    Pictures.fromarray(rgb.astype(np.uint8)).save(path, **options)
    return path


# --- pictures -----------------------------------------------------------------------------------


def test_a_turned_photo_is_upright(tmp_path: Path) -> None:
    exif = Pictures.Exif()
    exif[0x0112] = 6
    turned = load_image(drawn(tmp_path / "a.jpg", (96, 64), exif=exif, quality=95))
    assert turned.shape == (96, 64, 3)
    plain = load_image(drawn(tmp_path / "b.jpg", (96, 64), quality=95))
    assert np.abs(turned.astype(int) - np.rot90(plain, -1)).mean() < 1


def test_transparency_lies_on_black_and_is_said(tmp_path: Path) -> None:
    Pictures.new("RGBA", (8, 8), (200, 100, 50, 128)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0, 0].tolist() == [100, 50, 25]
    assert "black" in check_image(tmp_path / "a.png").notes[0]


def test_sixteen_bits_are_rounded_not_clipped(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Pictures.fromarray(deep).save(tmp_path / "a.png")
    got = load_image(tmp_path / "a.png")[..., 0]
    assert np.array_equal(got, np.round(deep / 257).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Pictures.new("RGB", (10, 6), (255, 255, 255)).convert(mode).save(tmp_path / f"a.{suffix}")
    pixels = load_image(tmp_path / f"a.{suffix}")
    assert pixels.shape == (6, 10, 3)
    assert pixels.min() >= 250
    if mode == "CMYK":
        assert check_image(tmp_path / "a.tif").notes == ("is CMYK, converted to sRGB",)


def test_of_an_animation_the_first_frame_counts_and_it_is_said(tmp_path: Path) -> None:
    frames = [Pictures.new("RGB", (8, 8), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]
    assert "animation of 2 frames" in check_image(tmp_path / "a.gif").notes[0]


def test_what_is_no_picture_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "a.heic").write_bytes(b"x")
    whole = drawn(tmp_path / "whole.png", (64, 64)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    wrong = {
        "missing.png": "does not exist",
        "empty.png": "0 bytes",
        "text.png": "cannot be read",
        "a.heic": "HEIC",
        "cut.png": "cannot be read",
    }
    for name, message in wrong.items():
        with pytest.raises(MediaError, match=message):
            check_image(tmp_path / name)
    monkeypatch.setattr("latent_ladder.media.image_files.MAX_PIXELS", 1000)
    with pytest.raises(MediaError, match="expected at most 1,000 in all"):
        check_image(tmp_path / "whole.png")


def test_cover_cuts_and_letterbox_shows_all() -> None:
    pixels = np.full((50, 200, 3), 255, np.uint8)
    pixels[:, :10] = 0
    cover = fit_image(pixels, (64, 64), (64, 64), "cover")
    assert cover.shape == (64, 64, 3)
    assert cover.min() == 255  # the dark edge is outside
    boxed = fit_image(pixels, (96, 96), (80, 64), "letterbox")
    rows = np.flatnonzero(boxed.max((1, 2)))
    columns = np.flatnonzero(boxed.max((0, 2)))
    assert (len(rows), rows[0]) == (20, 38)
    assert columns[-1] - 8 < 80


def test_each_recipe_resizes_in_its_own_way(tmp_path: Path) -> None:
    """Lightricks' pipelines round the size up and crop after; ComfyUI crops before."""
    pixels = load_image(drawn(tmp_path / "a.png", (197, 120)))
    planes = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    bilinear = torch.nn.functional.interpolate
    whole = bilinear(planes, (64, 106), mode="bilinear")[..., 21:85]  # 197 * 64 / 120 = 105.07
    cut = bilinear(planes[..., 38:159], (64, 64), mode="bilinear")  # 120 of 197 columns, rounded
    for name, want in (("ltx", whole), ("comfyui", cut)):
        fitted = fit_image(pixels, (64, 64), (64, 64), resize=name)
        assert fitted.dtype == np.float32
        np.testing.assert_allclose(fitted, want[0].permute(1, 2, 0).numpy(), atol=1e-4)
    smooth = fit_image(pixels, (64, 64), (64, 64))
    assert smooth.dtype == np.uint8
    stripes = np.zeros((64, 512, 3), np.uint8)
    stripes[:, ::2] = 255  # every second column: grey, if pixels are averaged
    for name, spread in (("antialiased", 12), ("ltx", 128)):
        fitted = fit_image(stripes, (96, 96), (96, 12), "letterbox", resize=name)[44:52]
        assert np.abs(fitted[:, 8:-8].astype(float) - 127.5).max() <= spread, name


@pytest.mark.parametrize("size", [(97, 65), (34, 18), (64, 64)])
def test_compression_costs_detail_and_more_at_a_higher_rate(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    pixels = load_image(drawn(tmp_path / "a.png", size))
    noise = np.random.default_rng(0).normal(0, 20, pixels.shape)
    noisy = np.clip(pixels + noise, 0, 255).astype(np.uint8)
    assert compress_like_video(noisy, 0) is noisy
    even = noisy[: size[1] // 2 * 2, : size[0] // 2 * 2].astype(float)
    losses = [np.abs(compress_like_video(noisy, crf) - even).mean() for crf in (5, 18, 33)]
    assert losses == sorted(losses)
    assert 0 < losses[0] < losses[-1]


# --- requests -----------------------------------------------------------------------------------


def test_images_survive_toml_json_and_set() -> None:
    images = [{"file": "a.png"}, {"file": "b.png", "frame": -1, "strength": 0.5, "crf": 20}]
    request = request_with(images=images)
    assert Request.from_toml(request.to_toml()) == request
    assert Request.from_json(request.to_json()) == request
    table = apply_sets(request.to_dict(), ["images[1].strength=0.25", "images[0].fit=letterbox"])
    changed = Request.from_dict(table)
    assert (changed.images[1].strength, changed.images[0].fit) == (0.25, "letterbox")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([{"file": "a", "frame": 9}], "beyond the clip of 9"),
        ([{"file": "a", "frame": 8}, {"file": "b", "frame": -1}], "both for frame 8"),
        ([{"file": "a", "frame": -2}], "at least -1"),
        ([{"file": "a", "strength": 1.5}], "at most 1"),
        ([{"file": "a", "crf": 52}], "0 to 51"),
        ([{"file": ""}], "empty"),
        ([{"file": "a", "fit": "stretch"}], "unknown"),
    ],
)
def test_impossible_images_are_refused(images: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        request_with(images=images)


@pytest.mark.parametrize(
    ("text", "image"),
    [
        ("a.png", {"file": "a.png"}),
        ("a.png:8", {"file": "a.png", "frame": 8}),
        ("a.png:last:0.7", {"file": "a.png", "frame": -1, "strength": 0.7}),
        (r"C:\x\a.png", {"file": r"C:\x\a.png"}),
        (r"C:\x\a.png:4:.5", {"file": r"C:\x\a.png", "frame": 4, "strength": 0.5}),
    ],
)
def test_the_flag_splits_from_the_right(text: str, image: dict[str, Any]) -> None:
    assert InputFlags(images=[text]).to_fields() == {"images": [image]}


# --- fixed frames -------------------------------------------------------------------------------


def test_first_frame_and_keyframe_are_the_official_ones(golden: Goldens) -> None:
    case = golden("conditioning.i2v_keyframe")
    grid = case.inputs["initial_latent"].shape[2:]
    fps = Fraction(24)
    resolution = Resolution(grid[2] * 32, grid[1] * 32, 8 * (grid[0] - 1) + 1, fps, 0)
    images = [{"file": "a"}, {"file": "b", "frame": case.params["keyframe_index"], "strength": 0.8}]
    request = request_with(
        images=images, width=resolution.width, height=resolution.height, frames=resolution.frames,
        stages=[{"kind": "base", "schedule": {"steps": 2}}],
    )  # fmt: skip
    latents = {"image.0": case.inputs["first_frame"], "image.1": case.inputs["keyframe"]}
    initial = LatentState.of(video_to_tokens(case.inputs["initial_latent"]))
    start = apply_images(plain_start(initial, None, resolution), latents, request, resolution)
    case.check("positions", start.positions)
    case.check("denoise_mask", start.video.mask)
    assert start.extra == grid[1] * grid[2]
    assert start.video_mask is start.video.mask


def test_a_picture_beside_an_upsampler_of_time_keeps_its_second(golden: Goldens) -> None:
    resolution = Resolution(64, 64, 9, Fraction(12), 0)
    request = request_with(frames=17, images=[{"file": "a", "frame": 13}], stages=[
        {"kind": "base", "schedule": {"steps": 2}}, {"kind": "upsample", "axis": "temporal"},
    ])  # fmt: skip
    start = plain_start(LatentState.empty(8, 4), None, resolution)
    start = apply_images(start, {"image.0": torch.zeros(1, 4, 1, 2, 2)}, request, resolution)
    assert start.positions[0, 0, -1].tolist() == pytest.approx([13 / 24, 13 / 24 + 1 / 12])


# --- the whole path -----------------------------------------------------------------------------


@pytest.mark.slow
def test_images_are_encoded_at_every_size_and_dropped_before_decoding(
    photo: Path, library: Library, store: Store, tmp_path: Path
) -> None:
    end = drawn(tmp_path / "end.png", (50, 70))
    images = [{"file": str(photo)}, {"file": str(end), "frame": -1, "strength": 0.8}]
    request = request_with(images=images)
    result, _ = make(request, library, store, tmp_path / "a.mp4")
    names = [s.stage for s in result.stages]
    assert names[2:5] == ["images 32x32", "images 64x64", "base"]
    assert result.frames == 9
    assert request_of_clip(tmp_path / "a.mp4") == result.request
    said = " ".join(w.message for w in result.warnings)
    assert "photo.png (96x64) is cropped left and right" in said
    assert "end.png (50x70) is cropped above and below" in said
    keys = {s.stage: s.key for s in result.stages}
    base = load_artefact(store, keys["base"])["video"]
    first = load_artefact(store, keys["images 32x32"])["image.0"]
    assert base.shape[2] == 2  # guide tokens are gone
    assert torch.allclose(base[:, :, :1], first, atol=1e-6)
    refined = load_artefact(store, keys["refine"])["video"]
    at_64 = load_artefact(store, keys["images 64x64"])["image.0"]
    assert torch.allclose(refined[:, :, :1], at_64, atol=1e-6)


def test_the_content_of_a_picture_counts_and_not_its_name(
    photo: Path, library: Library, store: Store, tmp_path: Path
) -> None:
    def keys(path: Path, **image: Any) -> dict[str, str]:
        request = request_with(images=[{"file": str(path), **image}])
        return {s.name: s.key for s in prepare(request, library, store).plan.stages}

    before = keys(photo)
    copy = tmp_path / "copy.png"
    copy.write_bytes(photo.read_bytes())
    assert keys(copy) == before
    weaker = keys(photo, strength=0.5)
    assert weaker["images 32x32"] == before["images 32x32"]
    assert weaker["base"] != before["base"]
    drawn(copy, (96, 62))
    assert keys(copy)["images 32x32"] != before["images 32x32"]
    images = [{"file": str(photo)}]
    for changes in ({"image_resize": "ltx"}, {"image_crf": 18}):
        request = request_with(images=images, **changes)
        moved = {s.name: s.key for s in prepare(request, library, store).plan.stages}
        assert moved["images 32x32"] != before["images 32x32"]
    plain = {s.name: s.key for s in prepare(request_with(), library, store).plan.stages}
    none = keys(photo, strength=0.0)
    assert none == plain


@pytest.mark.slow
def test_a_run_with_images_is_reused(
    photo: Path, library: Library, store: Store, tmp_path: Path
) -> None:
    request = request_with(images=[{"file": str(photo), "frame": 4}])
    make(request, library, store, tmp_path / "a.mp4")
    again, _ = make(request, library, store, tmp_path / "b.mp4")
    assert all(was for name, was in reused(again).items() if name != "decode and write")


def test_a_missing_picture_is_found_before_anything_runs(
    library: Library, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(MediaError, match="does not exist"):
        prepare(request_with(images=[{"file": str(tmp_path / "no.png")}]), library, store)
    assert list(store.entries()) == []
