"""The cost model: published FLOPs, passes of the guidance, stored bytes."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from helpers.goldens import Goldens
from torch.utils.flop_counter import FlopCounterMode

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.latents.shapes import Resolution, audio_latents, parse_fps, video_tokens
from latent_ladder.latents.tiling import one_tile
from latent_ladder.memory.cost_model import (
    count_passes,
    estimate,
    forward_flops,
    transformer_activations,
)
from latent_ladder.memory.decode_cost import decode_activations, decode_flops
from latent_ladder.memory.model_sizes import LTX_2_3, DitSize, sizes_of
from latent_ladder.models.network_configs import video_decoder_config
from latent_ladder.models.video_vae.vae import decode_video, load_video_vae
from latent_ladder.request.model import Request
from latent_ladder.request.output import Decode
from latent_ladder.request.overrides import apply_sets
from latent_ladder.request.presets import read_preset

# width, height, frames, TFLOP per forward, linears, self-attention (published table)
TABLE = [
    (960, 544, 121, 275, 210, 52),
    (1920, 1088, 121, 1714, 841, 838),
    (640, 352, 121, 109, 91, 10),
    (1280, 704, 121, 537, 363, 156),
    (768, 512, 121, 199, 158, 30),
    (1536, 1024, 121, 1136, 633, 475),
    (1920, 1088, 241, 4844, 1630, 3145),
    (3840, 2176, 121, 16893, 3365, 13406),
]


@pytest.mark.parametrize(("width", "height", "frames", "total", "linears", "attention"), TABLE)
def test_flops_of_a_forward(
    width: int, height: int, frames: int, total: int, linears: int, attention: int
) -> None:
    sound = audio_latents(frames, parse_fps(24))
    flops = forward_flops(LTX_2_3.dit, video_tokens(width, height, frames), sound)
    assert flops.total / 1e12 == pytest.approx(total, rel=0.005)
    assert flops.linears / 1e12 == pytest.approx(linears, rel=0.005)
    assert flops.self_attention / 1e12 == pytest.approx(attention, rel=0.05)


def request(preset: str, *sets: str) -> Request:
    fields = read_preset(preset).fields | {"prompt": "A cat walks.", "seed": 1}
    return Request.from_dict(apply_sets(fields, sets))


@pytest.mark.parametrize(
    ("preset", "sets", "pflop"),
    [
        ("distilled", ("width=1920", "height=1088"), 7.34),
        ("distilled", ("width=1280", "height=704"), 2.48),
        ("ltx-pipelines", ("width=1920", "height=1088"), 38.2),
    ],
)
def test_flops_of_whole_jobs(preset: str, sets: tuple[str, ...], pflop: float) -> None:
    costs = estimate(request(preset, *sets), LTX_2_3)
    sampled = sum(cost.flops for cost in costs if cost.kind in ("base", "refine"))
    assert sampled / 1e15 == pytest.approx(pflop, rel=0.01)


def test_a_forward_without_sound_costs_slightly_less() -> None:
    both, silent = forward_flops(LTX_2_3.dit, 8160, 126), forward_flops(LTX_2_3.dit, 8160, 0)
    assert silent.self_attention == both.self_attention
    assert 0.8 * both.total < silent.total < both.total


@pytest.mark.parametrize(
    ("preset", "sets", "base", "refine"),
    [
        ("distilled", (), (1, 8), (1, 3)),
        ("ltx-pipelines", (), (4, 120), (1, 3)),
        ("hq", (), (3, 93), (1, 7)),  # 2 x 15 + 1 evaluations of 3 passes
        ("lightricks-workflow", (), (2, 16), (2, 6)),  # CFG++ at cfg 1
        ("conservative", (), (2, 40), (1, 10)),
        ("ltx-pipelines", ("base.guidance.video.skip_step=1",), (4, 120), (1, 3)),
        (
            "ltx-pipelines",
            ("base.guidance.video.skip_step=1", "base.guidance.audio.skip_step=1"),
            (4, 60),
            (1, 3),
        ),
        # guided in 5 of 20 steps: those from sigma 0.8 down
        ("conservative", ("base.guidance.video.sigma_high=0.8", "audio=none"), (2, 25), (1, 10)),
    ],
)
def test_passes_and_forwards(
    preset: str, sets: tuple[str, ...], base: tuple[int, int], refine: tuple[int, int]
) -> None:
    asked = request(preset, *sets)
    assert count_passes(asked, 0) == base
    assert count_passes(asked, 1) == (0, 0)
    assert count_passes(asked, 2) == refine


def test_stages_of_a_plan() -> None:
    costs = estimate(request("hq"), LTX_2_3)
    assert [c.name for c in costs] == ["prompt", "base", "upsample", "refine", "sound", "decode"]
    prompt, base, upsample, refine, _, decode = costs
    assert prompt.passes == 2
    assert base.lora_bytes == pytest.approx(7.6e9, rel=0.01)
    assert upsample.flops > 1e13
    assert refine.audio_tokens == base.audio_tokens > 0
    assert decode.flops == pytest.approx(6.24e14, rel=0.001), "counted"
    assert prompt.flops == pytest.approx(2 * 2.93e13, rel=0.01), "two whole contexts"


def test_more_rows_and_longer_chunks_need_more_memory() -> None:
    one = transformer_activations(LTX_2_3, 32_640, 126)
    assert transformer_activations(LTX_2_3, 32_640, 126, rows=4) > 1.3 * one
    assert transformer_activations(LTX_2_3, 32_640, 126, chunk_tokens=1024) < 0.8 * one


def test_decoding_in_smaller_tiles_needs_less_memory() -> None:
    asked = request("ltx-pipelines", "decode.tile_px=256", "decode.tile_frames=24")
    whole = decode_activations(asked.resolutions[-1], Decode(), LTX_2_3)
    small = decode_activations(asked.resolutions[-1], asked.decode, LTX_2_3)
    assert small < whole


def test_a_grid_needs_memory_for_overlaps_but_not_for_longer_clips() -> None:
    asked = request("lightricks-workflow")
    short, long = (
        Request.from_dict({**asked.to_dict(), "frames": n, "windows": "off"}) for n in (121, 481)
    )
    plain, grid, longer = (
        decode_activations(one.resolutions[-1], decode, LTX_2_3)
        for one, decode in ((short, Decode()), (short, short.decode), (long, short.decode))
    )
    assert grid == longer
    # 34 x 60 latents in tiles that share 6: 40 x 66 of them, and 8 frames of float32 RGB. A chunk
    # has three frames of a tile of 20 x 33, but only one of the whole picture.
    more = (40 * 66 - 34 * 60) * 32**2 * LTX_2_3.decoder_held * LTX_2_3.value_bytes
    frame = 16384 * LTX_2_3.value_bytes
    chunk, whole = (3 * 8.5 + 5.25) * 20 * 33 * frame, (8.5 + 5.25) * 34 * 60 * frame
    assert grid - plain == pytest.approx(more + 8 * 40 * 66 * 32**2 * 12 + chunk - whole, abs=2)


def test_activations_at_1080p_as_measured_elsewhere() -> None:
    """Other implementations report 2 to 3 GB at 32,640 tokens."""
    assert 1.5e9 < transformer_activations(LTX_2_3, 32_640, 126) < 3e9


def test_sizes_from_headers(golden: Goldens) -> None:
    parts = components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))
    upsampler = "latent_upscale_models/tiny-spatial-x2.safetensors"
    parts |= components(open_checkpoint(golden.path(upsampler)))
    sizes = sizes_of(parts, value_bytes=4)
    assert sizes.dit == DitSize(layers=2, video_dim=64, audio_dim=32, latent_channels=8)
    assert sizes.upsampler_channels == 32
    in_file = golden.path("checkpoints/tiny-ltx-2.3.safetensors").stat().st_size
    stored = sum(size for role, size in sizes.weights.items() if role != "latent_upsampler")
    assert 0.8 * in_file < stored < in_file
    assert next(c.name for c in estimate(request("pocket"), sizes)) == "prompt"


def clip(width: int, height: int, frames: int) -> Resolution:
    return Resolution(width, height, frames, Fraction(24), 0)


@pytest.mark.parametrize("asked", [{}, {"tile_px": 64}, {"tile_frames": 16, "overlap_frames": 8}])
def test_flops_of_decoding_are_those_counted(golden: Goldens, asked: dict[str, int]) -> None:
    parts = components(open_checkpoint(golden.path("checkpoints/tiny-ltx-2.3.safetensors")))
    vae, decode, size = parts["video_vae"], Decode.model_validate(asked), clip(96, 128, 33)
    sizes = replace(LTX_2_3, decoder=video_decoder_config(vae.shapes(), vae.config))
    loaded = load_video_vae(vae, device="cpu", dtype=torch.float32, parts=("decoder",))
    latents = torch.zeros(size.video_latent_shape(loaded.latent_channels))
    _, _, frames, rows, cols = latents.shape
    with FlopCounterMode(display=False) as counter:
        list(decode_video(latents, loaded, decode.tiles((frames, rows, cols))))
    counted = counter.get_total_flops()
    assert decode_flops(size, decode, sizes) == pytest.approx(counted, rel=0.02)


def test_a_clip_is_decoded_whole_where_no_tiles_are_asked_for() -> None:
    assert Decode().tiles((16, 34, 60)) == one_tile(16, 34, 60)
    assert Decode(noise="ltx", steps=2).tiles((16, 34, 60)) == one_tile(16, 34, 60)
    tiles = Decode(tile_px=512).tiles((16, 34, 60))
    assert len(tiles.rows) * len(tiles.cols) > 1


def test_large_frames_make_larger_chunks() -> None:
    """A chunk has one frame at least, which at 1440p is more than the usual chunk."""
    assert LTX_2_3.decoder is not None
    full, wide = (clip(*size, 121) for size in ((1920, 1088), (2560, 1440)))
    more = decode_activations(wide, Decode(), LTX_2_3) / decode_activations(full, Decode(), LTX_2_3)
    assert more > 1.7
