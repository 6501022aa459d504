"""Previews: the fitted projection explains the pocket's decoder, the tiny decoder its layout."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.selection import EMBEDDED
from latent_ladder.cli.terminal_images import detect_protocol, encode_kitty, encode_sixel
from latent_ladder.errors import LadderError, RequestError
from latent_ladder.models.video_vae.taehv import load_tiny_decoder
from latent_ladder.models.video_vae.vae import load_video_vae
from latent_ladder.pipeline.latent_preview import (
    BLOCK_PX,
    LivePreview,
    Projection,
    find_tiny_decoder,
    fit,
    load_projection,
    png,
    preview_frames,
    sample_clip,
)
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def pocket() -> Component:
    [path] = (EMBEDDED / "checkpoints").glob("*.safetensors")
    return components(open_checkpoint(path))["video_vae"]


@pytest.fixture(scope="module")
def fitted(pocket: Component) -> Projection:
    return fit(pocket)


@pytest.mark.slow
def test_the_projection_explains_clips_it_has_not_seen(
    pocket: Component, fitted: Projection
) -> None:
    """R^2 of RGB blocks of 4x4 pixels over held-out clips, as the real decoder gives them."""
    vae = load_video_vae(pocket, device="cpu", dtype=torch.float32)
    off = spread = 0.0
    for seed in (1000, 1001):
        latents, frames = sample_clip(vae, seed)
        want = torch.nn.functional.avg_pool2d(frames, BLOCK_PX).permute(0, 2, 3, 1).numpy()
        got = np.concatenate(list(fitted.stream(latents))) / 127.5 - 1
        assert got.shape == want.shape
        off += float(((got - want) ** 2).sum())
        spread += float(((want - want.mean()) ** 2).sum())
    assert 1 - off / spread > 0.97


@pytest.mark.slow
def test_a_fit_is_kept_in_the_store_by_vae(
    pocket: Component, fitted: Projection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    monkeypatch.setattr("latent_ladder.pipeline.latent_preview.FIT_PX", 32)
    monkeypatch.setattr("latent_ladder.pipeline.latent_preview.FIT_FRAMES", 9)
    first = load_projection(pocket, store)
    assert len(list(store.entries())) == 1
    assert torch.equal(load_projection(pocket, store).rest, first.rest)
    assert len(list(store.entries())) == 1
    latents = torch.zeros(1, pocket.shape("per_channel_statistics.mean-of-means")[0], 2, 1, 3)
    assert preview_frames(latents, pocket, store=store).shape == (9, 8, 24, 3)
    assert preview_frames(latents, pocket, "full", store=store).shape == (9, 32, 96, 3)
    with pytest.raises(RequestError, match="unknown"):
        preview_frames(latents, pocket, "jpeg", store=store)


def test_a_strip_holds_frames_of_the_whole_clip(fitted: Projection) -> None:
    latents = torch.randn(1, len(fitted.rest) - 1, 7, 2, 3, generator=torch.Generator())
    frames = np.concatenate(list(fitted.stream(latents)))
    strip = fitted.strip(latents)
    assert strip.shape == (16, 4 * 24, 3)
    shown = np.split(strip, 4, axis=1)
    for picture, frame in zip(shown, (0, 16, 32, 48), strict=True):
        np.testing.assert_array_equal(picture, frames[frame])


def test_a_live_preview_keeps_its_distance(tmp_path: Path) -> None:
    zero = Projection(torch.zeros(3, 3 * 64), torch.zeros(3, 8 * 3 * 64))
    saved, asked = [], []

    def estimate() -> torch.Tensor:
        asked.append(1)
        return torch.zeros(1, 2, 1, 1, 1)

    live = LivePreview(tmp_path / "live.png", zero, lambda *at: saved.append(at))
    for step in (1, 2, 3):
        live.update("base", step, estimate)
    assert (saved, len(asked)) == ([("base", 1)], 1)
    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG")
    nowhere = LivePreview(tmp_path / "gone" / "x.png", zero, lambda *at: saved.append(at))
    nowhere.update("base", 1, estimate)
    assert len(saved) == 1


# --- the tiny decoder ----------------------------------------------------------------------------


def tiny_file(
    path: Path,
    channels: int = 8,
    widths: tuple[int, ...] = (16, 12, 8, 8),
    strides: tuple[int, ...] = (2, 2, 2),
    patch: int = 4,
) -> Component:
    """Random weights in the names and shapes of a TAEHV file."""
    generator = torch.Generator().manual_seed(1)
    shapes = {"decoder.1.weight": (widths[0], channels, 3, 3), "decoder.1.bias": (widths[0],)}
    for level, stride in enumerate(strides):
        width, after, at = widths[level], widths[level + 1], 3 + 6 * level
        for block in range(at, at + 3):
            for conv, inputs in ((0, 2 * width), (2, width), (4, width)):
                shapes[f"decoder.{block}.conv.{conv}.weight"] = (width, inputs, 3, 3)
                shapes[f"decoder.{block}.conv.{conv}.bias"] = (width,)
        shapes[f"decoder.{at + 4}.conv.weight"] = (width * stride, width, 1, 1)
        shapes[f"decoder.{at + 5}.weight"] = (after, width, 3, 3)
    shapes |= {"decoder.22.weight": (3 * patch**2, widths[-1], 3, 3)}
    shapes |= {"decoder.22.bias": (3 * patch**2,), "encoder.0.weight": (4, 48, 3, 3)}
    save_file({n: torch.randn(s, generator=generator) * 0.2 for n, s in shapes.items()}, path)
    return components(open_checkpoint(path))["preview_vae"]


@pytest.mark.parametrize("strides", [(2, 2, 2), (1, 2, 2)])
def test_the_tiny_decoder_streams_what_it_would_give_at_once(
    tmp_path: Path, strides: tuple[int, ...]
) -> None:
    component = tiny_file(tmp_path / "tae.safetensors", strides=strides)
    decoder = load_tiny_decoder(component, device="cpu", dtype=torch.float32)
    latents = torch.randn(1, 8, 3, 2, 3, generator=torch.Generator().manual_seed(2))
    got = np.concatenate(list(decoder.stream(latents)))
    group = strides[0] * strides[1] * strides[2]
    assert got.shape == (group * 2 + 1, 64, 96, 3)
    with torch.no_grad():
        whole = decoder._run_layers(latents[0].transpose(0, 1), {})
    pixels = torch.nn.functional.pixel_shuffle(whole, 4)[group - 1 :].clamp(0, 1) * 255
    want = pixels.round().permute(0, 2, 3, 1).numpy()
    # Convolutions of other batch sizes round differently, and random weights amplify it.
    assert (np.abs(got - want) > 1).mean() < 1e-3


def test_later_latents_do_not_change_earlier_frames(tmp_path: Path) -> None:
    component = tiny_file(tmp_path / "tae.safetensors")
    decoder = load_tiny_decoder(component, device="cpu", dtype=torch.float32)
    latents = torch.randn(1, 8, 3, 1, 1, generator=torch.Generator().manual_seed(2))
    other = latents.clone()
    other[:, :, 2] = 0
    a, b = (np.concatenate(list(decoder.stream(x))) for x in (latents, other))
    np.testing.assert_array_equal(a[:9], b[:9])
    assert (a[9:] != b[9:]).any()


def test_a_tiny_decoder_of_another_width_is_passed_over(tmp_path: Path, pocket: Component) -> None:
    channels = pocket.shape("per_channel_statistics.mean-of-means")[0]
    other = tiny_file(tmp_path / "a.safetensors", channels + 1)
    right = tiny_file(tmp_path / "b.safetensors", channels)
    assert find_tiny_decoder([other, right], pocket) is right
    assert find_tiny_decoder([other], pocket) is None
    latents = torch.zeros(1, channels, 2, 1, 1)
    store = Store(tmp_path / "store")
    assert preview_frames(latents, pocket, "tae", store=store, tiny=right).shape == (9, 32, 32, 3)
    with pytest.raises(LadderError, match="no preview decoder"):
        preview_frames(latents, pocket, "tae", store=store)


# --- in a terminal -------------------------------------------------------------------------------


def test_kitty_pictures_are_sent_in_chunks() -> None:
    text = encode_kitty(b"x" * 7000, rows=3)
    parts = text.split("\x1b\\")[:-1]
    assert all(p.startswith("\x1b_G") and len(p.split(";", 1)[1]) <= 4096 for p in parts)
    assert parts[0].startswith("\x1b_Ga=T,f=100,q=2,r=3,m=1;")
    assert [p.split(";")[0][-3:] for p in parts] == ["m=1", "m=1", "m=0"]


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm", "TERM": "xterm-256color"}, "kitty"),
        ({"TERM": "foot-extra"}, "sixel"),
        ({"TERM_PROGRAM": "iTerm.app", "TERM": "xterm-256color"}, "sixel"),
        ({"WT_SESSION": "1"}, "sixel"),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "1"}, None),
        ({"TERM": "foot", "STY": "1"}, None),
        ({}, None),
    ],
)
def test_terminals_that_show_pictures(environment: dict[str, str], shown: str | None) -> None:
    assert detect_protocol(environment) == shown


def test_sixels_hold_the_picture() -> None:
    """Decoded again by the rules of the manual: every pixel has its colour."""
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)
    squares = colours[np.add.outer(np.arange(32) // 8, np.arange(64) // 8) % 4]
    text = encode_sixel(png(squares), rows=2)
    shown = _decoded_sixels(text)
    assert shown.shape == (32, 64, 3)
    assert np.abs(shown.astype(int) - squares).max() <= 2


def _decoded_sixels(text: str) -> np.ndarray:
    found = re.fullmatch(r'\x1bPq"1;1;(\d+);(\d+)(.*)\x1b\\', text, re.DOTALL)
    assert found is not None
    width, height, body = int(found[1]), int(found[2]), found[3]
    out = np.zeros((height + 6, width, 3), np.uint8)
    palette: dict[int, list[int]] = {}
    colour, x, y = -1, 0, 0
    token = r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|([?-~])|(\$)|(-)"
    for part in re.finditer(token, body):
        if part[1] is not None:
            colour = int(part[1])
            if part[2] is not None:
                palette[colour] = [round(int(part[i]) * 2.55) for i in (2, 3, 4)]
        elif part[8]:
            x = 0
        elif part[9]:
            x, y = 0, y + 6
        else:
            bits, count = ord(part[6] or part[7]) - ord("?"), int(part[5] or 1)
            for row in (row for row in range(6) if bits >> row & 1):
                out[y + row, x : x + count] = palette[colour]
            x += count
    return out[:height]
