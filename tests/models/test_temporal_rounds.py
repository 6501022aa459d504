"""Keyframes-first runs (DFR) of LTX-2.5 against the official pipeline, tile by tile."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.latents.keyframe_segments import SegmentTile, keyframe_canvas, segment_tiles
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.tokens import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.models.latent_upsampler.upsample import load_upsampler, upsample
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions
from latent_ladder.models.vae_loading import read_latent_statistics
from latent_ladder.pipeline.start_state import (
    StartState,
    append_guide,
    append_slots,
    plain_start,
    reference_positions,
)
from latent_ladder.pipeline.temporal_rounds import (
    at_double_rate,
    join_tiles,
    keyframes_after_round,
    latent_frames_of,
    tile_noises,
    tile_start,
)
from latent_ladder.sampling.denoise import LatentState, Noises, SamplingPlan, sample
from latent_ladder.sampling.samplers import SamplerOptions

DISTILLED = "loras/tiny-ltx-2.5-distilled-lora.safetensors"
DETAILING = "loras/tiny-ltx-2.5-ic-lora-pixel-spatial-upscaler-x2.safetensors"
TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


def part(golden: Goldens, path: str, role: str) -> Component:
    return components(open_checkpoint(golden.path(path)))[role]


def enlarge(golden: Goldens, latents: Tensor, kind: str) -> Tensor:
    path = f"latent_upscale_models/tiny-ltx-2.5-latent-{kind}-upscaler-x2.safetensors"
    network = load_upsampler(
        part(golden, path, "latent_upsampler"), device="cpu", dtype=torch.float32
    )
    vae = part(golden, "vae/tiny-ltx-2.5-video-vae.safetensors", "video_vae")
    return upsample(latents, network, read_latent_statistics(vae))


def run(
    model: Transformer,
    case: GoldenCase,
    start: StartState,
    noises: Noises,
    sampler: str = "euler",
) -> dict[str, Tensor]:
    """Latents of a stage, its start and its results compared with the reference."""
    i, clean = case.inputs, case.outputs
    case.check("positions", start.positions)
    case.check("keyframes_mask", start.keyframe_mask.reshape(clean["keyframes_mask"].shape))
    case.check("denoise_mask", start.video.mask.reshape(clean["denoise_mask"].shape))
    sound = None
    if start.audio is not None:
        positions = audio_positions(start.audio.tokens.shape[1])
        sound = DenoiserStream(positions, i["audio_context"])
    mask, marks = start.video_mask, start.keyframe_mask
    picture = DenoiserStream(start.positions, i["video_context"], mask=mask, keyframe_mask=marks)
    plan = SamplingPlan(i["sigmas"].tolist(), sampler, SamplerOptions(eta=case.params.get("eta")))
    video, audio = sample(Denoiser(model, picture, sound), start.video, start.audio, noises, plan)
    assert video is not None
    assert start.slots is not None
    grid = clean["video_latent"].shape[2:]
    slots = video[:, start.slots]
    found = {
        "video_latent": tokens_to_video(video, *grid),
        "generated_keyframes": tokens_to_video(
            slots, slots.shape[1] // (grid[1] * grid[2]), *grid[1:]
        ),
    }
    if audio is not None:
        found["audio_latent"] = tokens_to_audio(audio, 2)
    for name, got in found.items():
        case.check(name, got, **TIGHT)
    return found


def size(case: GoldenCase, width: int) -> Resolution:
    fps = Fraction(case.params["conditioning_fps"])
    sound = case.inputs.get("audio_noise")
    length = 0 if sound is None else sound.shape[1]
    return Resolution(width, width // 2, case.params["frames"], fps, length)


def recorded(case: GoldenCase) -> Noises:
    return Noises(case.inputs["video_noise"], case.inputs["audio_noise"])


@pytest.mark.slow
def test_official_run(golden_2_5: Goldens) -> None:
    """Both stages, both tiles of one round, and the joined clip equal the official pipeline."""
    path = "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors"
    model = load_transformer(part(golden_2_5, path, "transformer"))
    first, second = (golden_2_5(f"pipeline.dfr.stage{n}") for n in (1, 2))
    canvas = keyframe_canvas(first.params["requested_frames"])
    assert canvas.frames == first.params["canvas"]
    loras = [(part(golden_2_5, DISTILLED, "lora"), 1.0)]
    small, large = size(first, 64), size(second, 128)
    start = plain_start(
        LatentState.empty(small.video_tokens, 8), LatentState.empty(small.audio_latents, 32), small
    )
    with temporary_loras(model, loras):
        made = run(model, first, append_slots(start, canvas.keyframes, small), recorded(first))
        larger, slots = (
            enlarge(golden_2_5, made[name], "spatial")
            for name in ("video_latent", "generated_keyframes")
        )
        sound = LatentState.of(audio_to_tokens(made["audio_latent"]))
        start = plain_start(LatentState.of(video_to_tokens(larger)), sound, large)
        start = append_slots(start, canvas.keyframes, large, slots)
        grid = (small.latent_frames, small.latent_height, small.latent_width)
        reference = video_to_tokens(made["video_latent"])
        start = append_guide(start, reference, reference_positions(grid, large, 2), 1.0)
        with temporary_loras(model, [*loras, (part(golden_2_5, DETAILING, "lora"), 1.0)]):
            made = run(model, second, start, recorded(second))
        rounds(golden_2_5, model, made)


def rounds(golden: Goldens, model: Transformer, made: dict[str, Tensor]) -> None:
    """One round after stage 2, whose start noise continues that of both stages."""
    first = golden("pipeline.dfr.stage1")
    seed = first.params["seed"]
    generator = torch.Generator().manual_seed(seed)
    for number in (1, 2):
        for stream in ("video", "audio"):
            noise = golden(f"pipeline.dfr.stage{number}").inputs[f"{stream}_noise"]
            assert torch.equal(torch.randn(noise.shape, generator=generator), noise)
    canvas = keyframe_canvas(first.params["requested_frames"])
    known = at_double_rate(
        {f: made["generated_keyframes"][:, :, n : n + 1] for n, f in enumerate(canvas.keyframes)}
    )
    video = enlarge(golden, made["video_latent"], "temporal")
    resolution = Resolution(128, 64, canvas.frames_after(1), Fraction(48), 0)
    parts: list[tuple[SegmentTile, Tensor]] = []
    keyframes: list[tuple[SegmentTile, Tensor]] = []
    for tile in segment_tiles(canvas, 1):
        case = golden(f"pipeline.dfr.round1.tile{tile.number}")
        noise = case.inputs["video_noise"]
        assert torch.equal(torch.randn(noise.shape, generator=generator), noise)
        noises = tile_noises(seed, 1, tile, noise)
        for n in range(3):
            step = case.inputs[f"step{n}_video_noise"].flatten(1)
            assert torch.equal(noises.source(n, "step"), step)
        start = tile_start(video, known, tile, resolution)
        noises = tile_noises(seed, 1, tile, noise)
        found = run(model, case, start, noises, "euler_ancestral")
        parts.append((tile, found["video_latent"]))
        keyframes.append((tile, found["generated_keyframes"]))
    final = golden("pipeline.dfr.final")
    joined = join_tiles(parts)
    assert joined.shape[2] == resolution.latent_frames
    final.check("video_latent", joined[:, :, : latent_frames_of(final.params["frames"])], **TIGHT)
    after = keyframes_after_round(known, keyframes)
    assert sorted(after) == [24, 48, 72, 96]
    assert torch.equal(after[24], keyframes[0][1][:, :, :1])
    assert torch.equal(after[48], known[48])
