"""Whole runs against the official implementation: transformer, guidance, sampler, masks, LoRA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.latents.tokens import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.sampling.denoise import LatentState, Noises, NoiseShapes, SamplingPlan, sample
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.samplers import SAMPLERS, SamplerOptions

LOOP: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
"""Tolerance for a loop with float32 angles (goldens' README); the cases' own is 5e-3."""


@pytest.fixture(scope="module")
def transformer(golden: Goldens) -> Transformer:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return load_transformer(components(open_checkpoint(path))["transformer"])


def guidance(params: dict[str, Any]) -> Guidance:
    return Guidance(
        cfg=params["cfg_scale"],
        stg=params["stg_scale"],
        modality=params["modality_scale"],
        rescale=params["rescale_scale"],
        stg_blocks=tuple(params["stg_blocks"]),
    )


def streams(case: Any, i: dict[str, Tensor]) -> tuple[DenoiserStream, DenoiserStream]:
    """Both streams of a case with its contexts and guidance."""
    video, audio = (
        DenoiserStream(
            i[f"{name}_positions"],
            i[f"{name}_context"],
            i.get(f"negative_{name}_context"),
            guidance=guidance(case.params[name]) if name in case.params else Guidance(),
        )
        for name in ("video", "audio")
    )
    return video, audio


def check(case: Any, video: Tensor | None, audio: Tensor | None, tolerance: Any = LOOP) -> None:
    assert video is not None
    assert audio is not None
    shape = case.outputs["video_latent"].shape
    case.check("video_latent", tokens_to_video(video, *shape[2:]), **tolerance)
    case.check("audio_latent", tokens_to_audio(audio, 2), **tolerance)


def empty() -> tuple[LatentState, LatentState]:
    return LatentState.empty(120, 8), LatentState.empty(34, 32)


def recorded_noise(case: Any) -> Any:
    """Step noise of the goldens in order: (substep video, audio,) step video, audio per step."""
    noise = (case.inputs[f"noise{k}"] for k in range(case.params.get("draws", 6)))
    return lambda step, kind: torch.cat([next(noise).flatten(1) for _ in range(2)], dim=1)


@pytest.mark.parametrize("max_passes", [None, 1])
def test_guided_euler(golden: Goldens, transformer: Transformer, max_passes: int | None) -> None:
    case = golden("stage1.guided_t2v")
    i = case.inputs
    model = Denoiser(transformer, *streams(case, i), max_passes=max_passes)
    noises = Noises(i["video_noise"], i["audio_noise"])
    x0: list[Tensor] = []
    video, audio = sample(
        model,
        *empty(),
        noises,
        SamplingPlan(i["sigmas"].tolist()),
        on_step=lambda step, x, denoised: x0.append(denoised),
    )
    check(case, video, audio)
    for k, denoised in enumerate(x0):
        v, a = model.packing.unpack(denoised)
        torch.testing.assert_close(v, case.outputs["video_x0"][k : k + 1], **LOOP)
        torch.testing.assert_close(a, case.outputs["audio_x0"][k : k + 1], **LOOP)


def test_guided_euler_with_conditioning_frames(golden: Goldens, transformer: Transformer) -> None:
    case, keyframe_case = golden("stage1.guided_i2v"), golden("conditioning.i2v_keyframe")
    i = case.inputs | {
        "video_positions": keyframe_case.outputs["positions"],
        "audio_positions": golden("positions.audio").outputs["positions"],
    }
    state, audio_state = empty()
    state = state.with_content(0, video_to_tokens(i["first_frame"]))
    state = state.with_appended(video_to_tokens(i["keyframe"]), 0.8)
    video, audio = streams(case, i)
    video = DenoiserStream(
        video.positions, video.positive, video.negative, state.mask, guidance=video.guidance
    )
    noises = Noises(i["video_noise"], i["audio_noise"])
    plan = SamplingPlan(i["sigmas"].tolist())
    check(case, *sample(Denoiser(transformer, video, audio), state, audio_state, noises, plan))


@pytest.mark.parametrize(
    ("name", "sampler", "options"),
    [
        ("distilled_euler", "euler", SamplerOptions()),
        ("ancestral", "euler_ancestral", SamplerOptions(eta=1.0, s_noise=1.0)),
        ("gradient_estimation", "gradient_estimation", SamplerOptions(gamma=2.0)),
        ("res2s", "res_2s", SamplerOptions(eta=0.5)),
    ],
)
def test_samplers_on_the_model(
    golden: Goldens, transformer: Transformer, name: str, sampler: str, options: SamplerOptions
) -> None:
    case = golden(f"stage1.{name}")
    i = case.inputs
    model = Denoiser(transformer, *streams(case, i))
    noises = Noises(i["video_noise"], i["audio_noise"], recorded_noise(case))
    check(
        case, *sample(model, *empty(), noises, SamplingPlan(i["sigmas"].tolist(), sampler, options))
    )


def test_refinement_with_lora(golden: Goldens, transformer: Transformer) -> None:
    case = golden("stage2.refine")
    i = case.inputs
    path = golden.path("loras/tiny-distilled-lora.safetensors")
    adapter = components(open_checkpoint(path))["lora"]
    states = (
        LatentState.of(video_to_tokens(i["video_initial"])),
        LatentState.of(audio_to_tokens(i["audio_initial"])),
    )
    noises = Noises(i["video_noise"], i["audio_noise"])
    with temporary_loras(transformer, [(adapter, case.params["lora_strength"])]):
        model = Denoiser(transformer, *streams(case, i))
        check(case, *sample(model, *states, noises, SamplingPlan(i["sigmas"].tolist())))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_the_model(golden: Goldens, transformer: Transformer, name: str) -> None:
    case = golden("stage1.guided_t2v")
    spec = SAMPLERS[name]
    model = Denoiser(transformer, *streams(case, case.inputs), force_uncond=spec.needs_uncond)
    noises = Noises.from_seed(1, NoiseShapes((1, 8, 5, 4, 6), (1, 2, 34, 16)), name)
    video, audio = sample(model, *empty(), noises, SamplingPlan((1.0, 0.7, 0.0), name))
    assert video is not None
    assert audio is not None
    assert video.isfinite().all()
    assert audio.isfinite().all()
