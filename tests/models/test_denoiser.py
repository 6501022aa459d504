"""Guided sampling of both streams against the reference; skipped steps and shared passes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from torch.utils.hooks import RemovableHandle

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.latents.tokens import tokens_to_audio, tokens_to_video, video_to_tokens
from latent_ladder.models.lora.attach import temporary_loras
from latent_ladder.models.transformer.denoiser import Denoiser, DenoiserStream
from latent_ladder.models.transformer.model import Transformer, load_transformer
from latent_ladder.models.transformer.rope_tables import audio_positions, video_positions
from latent_ladder.sampling.denoise import LatentState, Noises, SamplingPlan, sample
from latent_ladder.sampling.guiders import Guidance
from latent_ladder.sampling.samplers import SamplerOptions

VIDEO, AUDIO = (120, 8), (34, 32)
ATOL = 1e-4


@pytest.fixture(scope="module")
def model(golden: Goldens) -> Transformer:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    return load_transformer(components(open_checkpoint(path))["transformer"])


@pytest.fixture(scope="module")
def texts(golden: Goldens) -> list[dict[str, torch.Tensor]]:
    return [golden(f"text.context.p{i}").outputs for i in (0, 1)]


def guidance(case: GoldenCase, stream: str) -> Guidance:
    p = case.params.get(stream)
    if p is None:
        return Guidance()
    return Guidance(
        cfg=p["cfg_scale"],
        stg=p["stg_scale"],
        modality=p["modality_scale"],
        rescale=p["rescale_scale"],
        stg_blocks=tuple(p["stg_blocks"]),
    )


def make_streams(
    texts: list[dict[str, torch.Tensor]],
    states: Sequence[LatentState],
    positions: torch.Tensor | None = None,
    **guides: Guidance,
) -> list[DenoiserStream]:
    """Video and audio stream of the tiny stage with their ``states``."""
    if positions is None:
        positions = video_positions(5, 4, 6, 24)
    pairs = (("video", positions, states[0]), ("audio", audio_positions(34), states[1]))
    return [
        DenoiserStream(
            where,
            texts[0][name],
            texts[1][name],
            mask=state.mask,
            guidance=guides.get(name, Guidance()),
        )
        for name, where, state in pairs
    ]


def noises(golden: Goldens, case: GoldenCase) -> Noises:
    """Initial noise of a case, and its sampler's step noise in order."""
    count = sum(name.startswith("noise") for name in case.inputs)
    drawn = iter(case.inputs[f"noise{k}"].flatten(1) for k in range(count))
    return Noises(
        case.inputs["video_noise"],
        case.inputs.get("audio_noise", golden("stage1.guided_t2v").inputs["audio_noise"]),
        lambda step, kind: torch.cat([next(drawn), next(drawn)], 1),
    )


def check(
    case: GoldenCase,
    video: torch.Tensor | None,
    audio: torch.Tensor | None,
    size: tuple[int, int, int] = (5, 4, 6),
) -> None:
    assert video is not None
    assert audio is not None
    count = size[0] * size[1] * size[2]
    case.check("video_latent", tokens_to_video(video[:, :count], *size), rtol=0, atol=ATOL)
    case.check("audio_latent", tokens_to_audio(audio, 2), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("name", "sampler", "options", "max_passes"),
    [
        ("stage1.guided_t2v", "euler", SamplerOptions(), None),
        ("stage1.guided_t2v", "euler", SamplerOptions(), 1),
        ("stage1.guided_i2v", "euler", SamplerOptions(), None),
        ("stage1.guided_i2v", "euler", SamplerOptions(), 3),
        ("stage1.distilled_euler", "euler", SamplerOptions(), None),
        ("stage1.ancestral", "euler_ancestral", SamplerOptions(eta=1.0), None),
        ("stage1.res2s", "res_2s", SamplerOptions(), None),
        ("stage1.gradient_estimation", "gradient_estimation", SamplerOptions(gamma=2.0), None),
    ],
)
def test_reference_loops(
    golden: Goldens,
    model: Transformer,
    texts: list[dict[str, torch.Tensor]],
    name: str,
    sampler: str,
    options: SamplerOptions,
    max_passes: int | None,
) -> None:
    case = golden(name)
    video, audio, positions = LatentState.empty(*VIDEO), LatentState.empty(*AUDIO), None
    if "first_frame" in case.inputs:
        first, keyframe = (video_to_tokens(case.inputs[n]) for n in ("first_frame", "keyframe"))
        video = video.with_content(0, first).with_appended(keyframe, 0.8)
        positions = golden("conditioning.i2v_keyframe").outputs["positions"]
    guides = {stream: guidance(case, stream) for stream in ("video", "audio")}
    denoiser = Denoiser(
        model, *make_streams(texts, (video, audio), positions, **guides), max_passes=max_passes
    )
    plan = SamplingPlan(case.inputs["sigmas"].tolist(), sampler, options)
    check(case, *sample(denoiser, video, audio, noises(golden, case), plan))


def test_x0_of_every_step(
    golden: Goldens, model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    case, seen = golden("stage1.guided_t2v"), []
    video, audio = LatentState.empty(*VIDEO), LatentState.empty(*AUDIO)
    guides = {stream: guidance(case, stream) for stream in ("video", "audio")}
    denoiser = Denoiser(model, *make_streams(texts, (video, audio), None, **guides))
    plan = SamplingPlan(case.inputs["sigmas"].tolist())
    sample(
        denoiser, video, audio, noises(golden, case), plan, lambda i, x, x0: seen.append(x0.clone())
    )
    steps = denoiser.packing.unpack(torch.cat(seen))
    for name, got in zip(("video_x0", "audio_x0"), steps, strict=True):
        case.check(name, got, rtol=0, atol=ATOL)


def test_refinement_with_lora(
    golden: Goldens, model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    case = golden("stage2.refine")
    video = LatentState.of(video_to_tokens(golden("upsample.tiny-spatial-x2").outputs["latent"]))
    latent = golden("stage1.guided_t2v").outputs["audio_latent"]
    audio = LatentState.of(latent.transpose(1, 2).flatten(2))
    positions = case.inputs["video_positions"]
    adapter = components(open_checkpoint(golden.path("loras/tiny-distilled-lora.safetensors")))
    denoiser = Denoiser(model, *make_streams(texts, (video, audio), positions))
    plan = SamplingPlan(case.inputs["sigmas"].tolist())
    start = Noises(case.inputs["video_noise"], case.inputs["audio_noise"])
    with temporary_loras(model, [(adapter["lora"], 1.0)]):
        check(case, *sample(denoiser, video, audio, start, plan), size=(5, 8, 12))


def random_latents(batch: int = 1) -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randn(batch, sum(a * b for a, b in (VIDEO, AUDIO)))


def full_streams(texts: list[dict[str, torch.Tensor]], **guides: Guidance) -> list[DenoiserStream]:
    states = LatentState.empty(*VIDEO), LatentState.empty(*AUDIO)
    return make_streams(texts, states, None, **guides)


Forward = tuple[bool | None, bool | None, int]
"""Enabled streams and number of passes of a forward."""


def record_forwards(model: Transformer, calls: list[Forward]) -> RemovableHandle:
    """Record the enabled streams and the number of passes of each forward."""

    def note(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        video, audio = (None if s is None else s.enabled for s in args[:2])
        calls.append((video, audio, len(args[2])))

    return model.register_forward_pre_hook(note)


def test_skipped_steps_reuse_or_disable(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    """If both streams skip, there is no forward; if one skips, it is not updated."""
    calls: list[Forward] = []
    hook = record_forwards(model, calls)
    all_steps, every_third = Guidance(cfg=2.0), Guidance(cfg=2.0, skip_step=2)
    denoiser = Denoiser(model, *full_streams(texts, video=every_third, audio=all_steps))
    x = random_latents()
    first, second = (denoiser(x, 0.5, step).denoised for step in (0, 1))
    assert calls == [(True, True, 2), (False, True, 2)]
    split = VIDEO[0] * VIDEO[1]
    assert torch.equal(first[:, :split], second[:, :split])
    assert not torch.equal(first[:, split:], second[:, split:])

    both = Denoiser(model, *full_streams(texts, video=every_third, audio=every_third))
    calls.clear()
    predictions = [both(x, 0.5, step) for step in range(4)]
    hook.remove()
    assert calls == [(True, True, 2)] * 2
    assert torch.equal(predictions[0].denoised, predictions[2].denoised)


def test_passes_follow_guidance_and_sigma(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    calls: list[Forward] = []
    hook = record_forwards(model, calls)
    late = Guidance(cfg=3.0, stg=1.0, modality=2.0, stg_blocks=(1,), sigma_high=0.6)
    denoiser = Denoiser(model, *full_streams(texts, video=late))
    for sigma in (0.9, 0.5):
        denoiser(random_latents(), sigma, 0)
    assert [passes for *_, passes in calls] == [1, 4]
    calls.clear()
    capped = Denoiser(model, *full_streams(texts, video=late), max_passes=3)
    capped(random_latents(), 0.5, 0)
    hook.remove()
    assert [passes for *_, passes in calls] == [3, 1]


def test_forced_uncond_is_the_negative_prompt(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    x = random_latents()
    denoised, uncond = Denoiser(model, *full_streams(texts), force_uncond=True)(x, 0.5, 0)
    swapped = Denoiser(model, *full_streams(texts[::-1]))(x, 0.5, 0)
    plain = Denoiser(model, *full_streams(texts))(x, 0.5, 0)
    assert plain.uncond is None
    torch.testing.assert_close(uncond, swapped.denoised, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoised, plain.denoised, rtol=0, atol=1e-5)


def test_batch_equals_items(model: Transformer, texts: list[dict[str, torch.Tensor]]) -> None:
    guide = Guidance(cfg=3.0, stg=1.0, modality=2.0, rescale=0.7, stg_blocks=(1,))
    x = random_latents(batch=2)
    together = Denoiser(model, *full_streams(texts, video=guide, audio=guide))(x, 0.5, 0).denoised
    for b in range(2):
        alone = Denoiser(model, *full_streams(texts, video=guide, audio=guide))(
            x[b : b + 1], 0.5, 0
        )
        torch.testing.assert_close(together[b : b + 1], alone.denoised, rtol=0, atol=2e-5)


def test_one_stream_alone(model: Transformer, texts: list[dict[str, torch.Tensor]]) -> None:
    """Modality guidance has no effect without the other stream."""
    calls: list[Forward] = []
    hook = record_forwards(model, calls)
    video, _ = full_streams(texts, video=Guidance(cfg=2.0, modality=3.0))
    denoiser = Denoiser(model, video, None)
    x = random_latents()[:, : VIDEO[0] * VIDEO[1]]
    assert denoiser(x, 0.5, 0).denoised.shape == x.shape
    hook.remove()
    assert calls == [(True, None, 2)]


def test_frozen_audio_is_unchanged_and_conditions_the_video(
    golden: Goldens, model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    """The x0 of a frozen stream is its input, and its sigma is zero."""
    case = golden("dit.audio_frozen")
    video, audio = full_streams(texts)
    frozen = DenoiserStream(audio.positions, audio.positive, frozen=True)
    denoiser = Denoiser(model, video, frozen)
    given = case.inputs["video_tokens"], case.inputs["audio_tokens"]
    x0 = denoiser.packing.unpack(
        denoiser(denoiser.packing.pack(*given), case.inputs["sigma"].item(), 0).denoised
    )
    case.check("video_x0", x0[0], rtol=0, atol=ATOL)
    assert x0[1] is not None
    assert torch.equal(x0[1], given[1])


def test_missing_negative_prompt_is_reported(
    model: Transformer, texts: list[dict[str, torch.Tensor]]
) -> None:
    video, _ = full_streams(texts, video=Guidance(cfg=2.0))
    alone = DenoiserStream(video.positions, video.positive, guidance=video.guidance)
    with pytest.raises(ValueError, match="negative prompt"):
        Denoiser(model, alone, None)(random_latents()[:, : VIDEO[0] * VIDEO[1]], 0.5, 0)
