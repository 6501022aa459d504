"""The loop around a sampler: noise and seeds, masks, packing, and errors."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from helpers.goldens import Goldens
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from latent_ladder.errors import Cancelled, LadderError, RequestError
from latent_ladder.latents.tokens import (
    audio_to_tokens,
    tokens_to_audio,
    tokens_to_video,
    video_to_tokens,
)
from latent_ladder.sampling.denoise import (
    LatentState,
    Noises,
    NoiseShapes,
    Packing,
    SamplingPlan,
    draw_noise,
    noise_source,
    sample,
    standardise_noise,
)
from latent_ladder.sampling.samplers import SAMPLERS, Prediction, SamplerOptions
from latent_ladder.sampling.schedules import DISTILLED_STAGE_2, ltx

VIDEO, AUDIO = (1, 8, 3, 2, 4), (1, 2, 5, 6)
sizes = st.integers(1, 5)


@given(sizes, sizes, sizes, sizes, sizes)
def test_video_tokens_are_pixels_in_order(b: int, c: int, f: int, h: int, w: int) -> None:
    latents = torch.arange(b * c * f * h * w).reshape(b, c, f, h, w)
    tokens = video_to_tokens(latents)
    assert tokens.shape == (b, f * h * w, c)
    assert torch.equal(tokens[0, (f - 1) * h * w + (h - 1) * w], latents[0, :, f - 1, h - 1, 0])
    assert torch.equal(tokens_to_video(tokens, f, h, w), latents)
    longer = torch.cat([tokens, tokens], dim=1)
    assert torch.equal(tokens_to_video(longer, f, h, w), latents)


@given(sizes, sizes, sizes, sizes)
def test_audio_tokens_are_channel_major(b: int, c: int, t: int, m: int) -> None:
    latents = torch.arange(b * c * t * m).reshape(b, c, t, m)
    tokens = audio_to_tokens(latents)
    assert tokens.shape == (b, t, c * m)
    assert torch.equal(tokens[0, t - 1, :m], latents[0, 0, t - 1])
    assert torch.equal(tokens_to_audio(tokens, c), latents)


def test_tokens_that_do_not_fit_are_errors() -> None:
    with pytest.raises(ValueError, match="5 video tokens"):
        tokens_to_video(torch.zeros(1, 5, 8), 3, 2, 4)
    with pytest.raises(ValueError, match="not a multiple of 5"):
        tokens_to_audio(torch.zeros(1, 5, 12), 5)


def test_ltx_noise_is_the_official_one(golden: Goldens) -> None:
    case = golden("noise.seed")
    video, audio = draw_noise(case.params["seed"], (1, 8, 5, 4, 6), (1, 2, 34, 16), "ltx")
    assert video is not None
    assert audio is not None
    case.check("video", video[:, :8])
    case.check("audio", audio[:, :8])


def test_comfyui_noise_is_one_generator_over_latents() -> None:
    video, audio = draw_noise(7, VIDEO, AUDIO, "comfyui")
    torch.manual_seed(7)
    want_video, want_audio = torch.randn(VIDEO), torch.randn(AUDIO)
    assert video is not None
    assert audio is not None
    assert torch.equal(tokens_to_video(video, 3, 2, 4), want_video)
    assert torch.equal(tokens_to_audio(audio, 2), want_audio)
    only, none = draw_noise(7, VIDEO, None, "comfyui")
    assert none is None
    assert only is not None
    assert torch.equal(only, video)


def test_comfyui_step_noise_covers_the_packed_latent() -> None:
    noise = noise_source(7, VIDEO, AUDIO, "comfyui")
    generator = torch.Generator().manual_seed(8)
    packing = Packing((24, 8), (5, 12))
    for step in range(2):
        flat = torch.randn(1, 1, 192 + 60, generator=generator)
        video, audio = packing.unpack(noise(step, "step"))
        assert video is not None
        assert audio is not None
        assert torch.equal(tokens_to_video(video, 3, 2, 4).flatten(), flat[0, 0, :192])
        assert torch.equal(tokens_to_audio(audio, 2).flatten(), flat[0, 0, 192:])


def test_ltx_step_noise_is_in_tokens() -> None:
    noise = noise_source(7, VIDEO, AUDIO, "ltx", extra_video_tokens=3)
    generator = torch.Generator().manual_seed(10007)
    want = [torch.randn(s, generator=generator) for s in [(1, 27, 8), (1, 5, 12)] * 2]
    for step in range(2):
        packed = torch.cat([t.flatten(1) for t in want[2 * step : 2 * step + 2]], dim=1)
        assert torch.equal(noise(step, "step"), packed)


@pytest.mark.parametrize("order", ["comfyui", "ltx"])
def test_noise_shapes_with_appended_tokens(order: Any) -> None:
    for extra in (0, 8, 3):
        video, _ = draw_noise(1, VIDEO, AUDIO, order, extra)
        assert video is not None
        assert video.shape == (1, 24 + extra, 8)
        packed = noise_source(1, VIDEO, AUDIO, order, extra_video_tokens=extra)(0, "step")
        assert packed.shape == (1, (24 + extra) * 8 + 60)
    plain, _ = draw_noise(1, VIDEO, AUDIO, "ltx")
    more, _ = draw_noise(1, VIDEO, AUDIO, "ltx", 8)
    assert plain is not None
    assert more is not None
    assert torch.equal(more[:, :24], plain)


@given(st.integers(0, 2**64 - 1), st.sampled_from(["comfyui", "ltx"]))
def test_no_two_noises_of_a_run_are_alike(seed: int, order: Any) -> None:
    noises = Noises.from_seed(seed, NoiseShapes(VIDEO, AUDIO), "res_2s", order=order)
    start = Packing((24, 8), (5, 12)).pack(noises.video, noises.audio)
    streams = [start, *(noises.source(i, kind) for i in range(2) for kind in ("substep", "step"))]
    similar = torch.corrcoef(torch.cat(streams)) - torch.eye(5)
    assert similar.abs().max() < 0.35
    again = noise_source(seed, VIDEO, AUDIO, order, standardise=True)
    assert torch.equal(again(0, "substep"), streams[1])


def test_runs_of_one_clip_share_the_official_generator() -> None:
    """Stage 2 goes on where stage 1 ended; in ComfyUI's order every run starts anew."""
    first, second = NoiseShapes(VIDEO, AUDIO, 3), NoiseShapes((1, 8, 3, 4, 8), AUDIO)
    generator = torch.Generator().manual_seed(11)
    want = [torch.randn(s, generator=generator) for s in ((1, 27, 8), (1, 5, 12), (1, 96, 8))]
    noises = Noises.from_seed(11, second, "euler", order="ltx", earlier=[first])
    assert noises.video is not None
    assert torch.equal(noises.video, want[2])
    alone = Noises.from_seed(11, second, "euler")
    again = Noises.from_seed(11, second, "euler", earlier=[first])
    assert alone.video is not None
    assert again.video is not None
    assert torch.equal(alone.video, again.video)


def test_official_res_2s_has_fixed_step_noise_in_float64() -> None:
    """Seeds -1 and 9999 of LTX-2's loop, the same for every seed of a clip and every stage."""
    shapes = NoiseShapes(VIDEO, AUDIO)
    for kind, fixed in (("step", -1), ("substep", 9999)):
        generator = torch.Generator().manual_seed(fixed)
        draws = [
            torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape in [(1, 24, 8), (1, 5, 12)] * 2
        ]
        want = [standardise_noise(t).flatten(1) for t in draws]
        for seed in (1, 2):
            noises = Noises.from_seed(seed, shapes, "res_2s", order="ltx")
            for step in range(2):
                packed = torch.cat(want[2 * step : 2 * step + 2], dim=1)
                assert torch.equal(noises.source(step, kind), packed)
    window = Noises.from_seed(1, shapes, "res_2s", order="ltx", window=1)
    assert not torch.equal(window.source(0, "step"), torch.cat(want[:2], dim=1))


def test_standardised_noise_is_standard_per_stream() -> None:
    noise = noise_source(3, VIDEO, AUDIO, "ltx", standardise=True)(0, "step")
    for part in Packing((24, 8), (5, 12)).unpack(noise):
        assert part is not None
        assert float(part.mean()) == pytest.approx(0, abs=1e-6)
        assert float(part.std()) == pytest.approx(1, abs=1e-5)


def test_a_noise_source_is_for_one_run() -> None:
    noise = noise_source(3, VIDEO, None)
    noise(0, "step")
    with pytest.raises(ValueError, match="one run"):
        noise(0, "step")


@given(sizes, sizes, sizes, sizes, st.sampled_from(["both", "video", "audio"]))
def test_packing_round_trips(n: int, c: int, t: int, d: int, which: str) -> None:
    video = None if which == "audio" else torch.randn(2, n, c)
    audio = None if which == "video" else torch.randn(2, t, d)
    states = [None if s is None else LatentState.of(s) for s in (video, audio)]
    packing = Packing.of(*states)
    x = packing.pack(video, audio)
    assert x.shape == (2, (n * c if video is not None else 0) + (t * d if audio is not None else 0))
    for got, want in zip(packing.unpack(x), (video, audio), strict=True):
        assert (got is None) == (want is None)
        if got is not None and want is not None:
            assert torch.equal(got, want)


def test_packing_another_shape_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        Packing((24, 8), None).pack(torch.zeros(1, 24, 9), None)
    with pytest.raises(ValueError, match="does not fit"):
        Packing((24, 8), (5, 12)).pack(torch.zeros(1, 24, 8), None)


def keyframe_case(golden: Goldens) -> tuple[Any, LatentState]:
    """The golden's clip: a first frame at strength 1 and an appended keyframe at 0.8."""
    case = golden("conditioning.i2v_keyframe")
    tokens = {n: video_to_tokens(case.inputs[n]) for n in case.inputs if n != "noise"}
    state = LatentState.of(tokens["initial_latent"]).with_content(0, tokens["first_frame"])
    return case, state.with_appended(tokens["keyframe"], 0.8)


def test_noise_with_preserved_frames_is_the_official_one(golden: Goldens) -> None:
    case, state = keyframe_case(golden)
    case.check("denoise_mask", state.mask)
    content = state.mask < 1  # elsewhere clean is never used: the mask is 1
    got = torch.where(content, state.clean, case.outputs["clean"])
    case.check("clean", got)
    seen = seen_by_the_model(state, case.inputs["noise"], case.params["noise_scale"], "ltx")[0]
    case.check("tokens", seen)


def seen_by_the_model(
    state: LatentState, noise: Tensor, sigma: float, masks: Any, x0: float = 0.0
) -> list[Tensor]:
    """Input tokens of the model at each evaluation of two Euler steps."""
    seen = []

    def model(x: Tensor, sigma: float, step: int) -> Prediction:
        seen.append(x.reshape_as(state.tokens))
        return Prediction(torch.full_like(x, x0))

    plan = SamplingPlan((sigma, sigma / 2, 0.0), masks=masks)
    end, _ = sample(model, state, None, Noises(noise, None), plan)
    assert end is not None
    return [*seen, end]


def test_a_half_mask_of_ltx() -> None:
    ones = torch.ones(1, 3, 2)
    state = LatentState.of(2 * ones).with_content(0, 5 * ones[:, :1], 1.0)
    state = state.with_content(1, 5 * ones[:, :1], 0.75)
    # tokens: preserved, a quarter generated, generated; s = 0.8, noise 1, every prediction 0
    seen = [s[0, :, 0].tolist() for s in seen_by_the_model(state, ones, 0.8, "ltx")]
    noised = 0.2 * 2 + 0.8 * 1
    d = 0.75 * 5  # the prediction after blending
    start = 0.25 * noised + 0.75 * 5
    assert seen[0] == pytest.approx([5, start, noised])
    assert seen[1] == pytest.approx([5, (start + d) / 2, noised / 2])
    assert seen[2] == pytest.approx([5, d, 0], abs=1e-6)


def test_a_half_mask_of_comfyui() -> None:
    """Its loop written out: x is never blended itself, and x0 = seen - sigma v, sigma a scalar."""
    clean, mask, noise = 5.0, torch.tensor([0.0, 0.25, 0.6, 1.0]), torch.tensor(1.0)
    sigmas = (0.8, 0.5, 0.2, 0.0)

    def velocity(x: Tensor) -> Tensor:
        return 0.3 * x - 1.0

    x = 0.2 * clean + 0.8 * noise.expand(4)
    for s, n in pairwise(sigmas):
        seen = x * mask + clean * (1 - mask)
        d = (seen - s * velocity(seen)) * mask + clean * (1 - mask)
        x = x + (x - d) / s * (n - s)

    def model(x: Tensor, sigma: float, step: int) -> Prediction:
        return Prediction(x - mask * sigma * velocity(x))

    column = torch.full((1, 4, 1), clean)
    state = LatentState(column, column, mask.reshape(1, 4, 1))
    plan = SamplingPlan(sigmas, masks="comfyui")
    got, _ = sample(model, state, None, Noises(torch.ones(1, 4, 1), None), plan)
    assert got is not None
    torch.testing.assert_close(got.flatten(), x)


@pytest.mark.parametrize("masks", ["ltx", "comfyui"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_preserved_tokens_stay_and_the_rest_is_generated(name: str, masks: Any) -> None:
    state = LatentState.empty(24, 8).with_content(0, torch.full((1, 8, 8), 3.0))
    frozen = LatentState.of(torch.full((1, 5, 12), 0.25)).with_content(
        0, torch.full((1, 5, 12), 0.25)
    )

    def model(x: Tensor, sigma: float, step: int) -> Prediction:
        video, audio = Packing((24, 8), (5, 12)).unpack(x)
        assert video is not None
        assert audio is not None
        assert torch.allclose(video[:, :8], torch.tensor(3.0), atol=1e-5)
        assert torch.allclose(audio, torch.tensor(0.25), atol=1e-5)
        return Prediction(torch.full_like(x, -1.0), torch.full_like(x, -2.0))

    noises = Noises.from_seed(4, NoiseShapes(VIDEO, AUDIO), name, order="ltx")
    plan = SamplingPlan(ltx(5), name, masks=masks)
    video, audio = sample(model, state, frozen, noises, plan)
    assert video is not None
    assert audio is not None
    assert (video[:, :8] == 3).all()
    assert (audio == 0.25).all()
    torch.testing.assert_close(video[:, 8:], torch.full((1, 16, 8), -1.0))


def test_stage_two_starts_between_clip_and_noise(golden: Goldens) -> None:
    case = golden("stage2.refine")
    seen: list[Tensor] = []

    def model(x: Tensor, sigma: float, step: int) -> Prediction:
        seen.append(x)
        return Prediction(x)

    start = LatentState.of(video_to_tokens(case.inputs["video_initial"]))
    sound = LatentState.of(audio_to_tokens(case.inputs["audio_initial"]))
    noises = Noises(case.inputs["video_noise"], case.inputs["audio_noise"])
    sample(model, start, sound, noises, SamplingPlan(case.inputs["sigmas"].tolist()))
    video, audio = Packing.of(start, sound).unpack(seen[0])
    assert video is not None
    assert audio is not None
    case.check("video_start_tokens", video[:, :8], rtol=1e-6, atol=1e-6)
    case.check("audio_start_tokens", audio[:, :8], rtol=1e-6, atol=1e-6)


def shrink(x: Tensor, sigma: float, step: int) -> Prediction:
    return Prediction(0.5 * x, 0.4 * x)


def clip(model: Any, plan: SamplingPlan, seed: int = 4, on_step: Any = None) -> Tensor:
    noises = Noises.from_seed(seed, NoiseShapes(VIDEO, None), plan.sampler)
    video, audio = sample(model, LatentState.empty(24, 8), None, noises, plan, on_step)
    assert audio is None
    assert video is not None
    return video


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_seed_is_a_clip(name: str) -> None:
    plan = SamplingPlan(ltx(4), name)
    assert torch.equal(clip(shrink, plan), clip(shrink, plan))
    assert not torch.allclose(clip(shrink, plan), clip(shrink, plan, seed=5))


def test_progress_and_cancellation() -> None:
    steps: list[int] = []

    def stop(step: int, x: Tensor, denoised: Tensor) -> None:
        assert x.shape == denoised.shape == (1, 192)
        steps.append(step)
        if step == 2:
            raise Cancelled("stopped at step 3 of 5")

    plan = SamplingPlan(ltx(5))
    with pytest.raises(Cancelled):
        clip(shrink, plan, on_step=stop)
    assert steps == [0, 1, 2]
    assert clip(shrink, plan).isfinite().all()


def test_the_error_of_a_prediction_that_is_not_finite_names_the_step() -> None:
    def broken(x: Tensor, sigma: float, step: int) -> Prediction:
        bad = x * (math.nan if step == 1 else 1.0)
        return Prediction(bad)

    with pytest.raises(LadderError, match=r"step 2, sigma 0\.725") as e:
        clip(broken, SamplingPlan(DISTILLED_STAGE_2))
    assert "checkpoint" in (e.value.hint or "")


@pytest.mark.parametrize(
    "sigmas",
    [(), (1.0,), (1.0, 1.0, 0.0), (0.5, 0.7, 0.0), (1.2, 0.0), (1.0, -0.1), (math.nan, 0.0)],
)
def test_unusable_sigmas_are_errors(sigmas: tuple[float, ...]) -> None:
    with pytest.raises(RequestError, match="cannot be sampled"):
        clip(shrink, SamplingPlan(sigmas))


def test_sampling_in_two_parts() -> None:
    whole = clip(shrink, SamplingPlan((1.0, 0.6, 0.3, 0.0)))
    half = clip(shrink, SamplingPlan((1.0, 0.6)))
    # at the same sigma (1 - s) tokens + s noise gives x back when both are x
    noises = Noises(half, None)
    rest, _ = sample(shrink, LatentState.of(half), None, noises, SamplingPlan((0.6, 0.3, 0.0)))
    torch.testing.assert_close(rest, whole)


def test_half_precision_models_keep_a_float32_state() -> None:
    def half(x: Tensor, sigma: float, step: int) -> Prediction:
        assert x.dtype == torch.float32
        return Prediction((0.5 * x).bfloat16(), (0.5 * x).bfloat16())

    for name in SAMPLERS:
        assert clip(half, SamplingPlan(ltx(3), name)).dtype == torch.float32


def test_options_reach_the_sampler() -> None:
    plan = SamplingPlan(ltx(6), "euler_ancestral", SamplerOptions(eta=0.0))
    still = replace(plan, sampler="euler")
    torch.testing.assert_close(clip(shrink, plan), clip(shrink, still))
