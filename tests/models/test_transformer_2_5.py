"""Transformer of LTX-2.5 against the reference: keyframes, slots, LoRAs, whole runs."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers.goldens import GoldenCase, Goldens
from helpers.transformer_inputs import inputs_of, linear
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.latents.shapes import Resolution
from latent_ladder.latents.slot_frames import slot_frames
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
from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.rope_tables import audio_positions
from latent_ladder.models.transformer.streams import prepare_stream
from latent_ladder.models.vae_loading import read_latent_statistics
from latent_ladder.models.weights.linear import LowRank
from latent_ladder.pipeline.start_state import (
    StartState,
    append_slots,
    apply_images,
    apply_inputs,
    plain_start,
)
from latent_ladder.request.model import Request
from latent_ladder.sampling.denoise import (
    LatentState,
    Noises,
    SamplingPlan,
    draw_noise,
    noise_source,
    sample,
)
from latent_ladder.sampling.samplers import SamplerOptions

TIGHT: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
DISTILLED = "loras/tiny-ltx-2.5-distilled-lora.safetensors"
DETAILING = "loras/tiny-ltx-2.5-ic-lora-pixel-spatial-upscaler-x2.safetensors"
RESOLUTION = Resolution(128, 96, 25, Fraction(24), 26)


def request_with(stage: dict[str, Any] | None = None, **fields: Any) -> Request:
    """A request of the size of the conditioning cases."""
    base = {"kind": "base", "sigmas": [1, 0], **(stage or {})}
    return Request.from_dict(
        {"prompt": "a", "width": 128, "height": 96, "frames": 25, "fps": 24, "audio": "none",
         "stages": [base], **fields}
    )  # fmt: skip


def part(golden: Goldens, path: str, role: str) -> Component:
    return components(open_checkpoint(golden.path(path)))[role]


@pytest.fixture(scope="module")
def model(golden_2_5: Goldens) -> Transformer:
    path = "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors"
    return load_transformer(part(golden_2_5, path, "transformer"))


# --- one forward ----------------------------------------------------------------------------------

STG = PassSpec(stg_video=frozenset({1}), stg_audio=frozenset({1}))
CASES = {
    "t2v": PassSpec(), "t2v_unmarked": PassSpec(), "i2v": PassSpec(), "slots": PassSpec(),
    "i2v_slots": PassSpec(), "slots_reference": PassSpec(), "stg": STG,
    "isolated": PassSpec(isolated=True), "video_only": PassSpec(), "audio_only": PassSpec(),
    "audio_frozen": PassSpec(),
}  # fmt: skip


def forward(model: Transformer, case: GoldenCase, spec: PassSpec) -> None:
    """Assert that a forward gives the velocities of a case."""
    case.params.setdefault("audio_enabled", True)
    if "audio_timesteps" in case.inputs and not case.inputs["audio_timesteps"].any():
        case.inputs["audio_sigma"] = torch.zeros_like(case.inputs["sigma"])  # a frozen sound
    with torch.no_grad():
        video, audio = model(*inputs_of(model.config, case), [spec])
    for name, got in (("video_velocity", video), ("audio_velocity", audio)):
        if name in case.outputs:
            case.check(name, got, **TIGHT)


@pytest.mark.parametrize("name", CASES)
def test_forward(golden_2_5: Goldens, model: Transformer, name: str) -> None:
    forward(model, golden_2_5(f"dit.{name}"), CASES[name])


@pytest.mark.parametrize(
    ("name", "files"), [("lora_1.0", [DISTILLED]), ("lora_detailing", [DISTILLED, DETAILING])]
)
def test_forward_with_loras(
    golden_2_5: Goldens, model: Transformer, name: str, files: list[str]
) -> None:
    loras = [(part(golden_2_5, file, "lora"), 1.0) for file in files]
    with temporary_loras(model, loras) as report:
        forward(model, golden_2_5(f"dit.{name}"), PassSpec())
    assert report.complete


def test_fused_weights(golden_2_5: Goldens, model: Transformer) -> None:
    case = golden_2_5("lora.fused_0.5")
    with temporary_loras(model, [(part(golden_2_5, DISTILLED, "lora"), 0.5)]):
        for weight in case.params["modules"]:
            layer = linear(model, weight.removesuffix(".weight"))
            (branch,) = layer.branches
            assert isinstance(branch, LowRank)
            fused = layer.weight + branch.strength * branch.up @ branch.down
            case.check(weight.replace(".", "_"), fused)


def test_a_video_without_its_mask_is_refused(golden_2_5: Goldens, model: Transformer) -> None:
    i = golden_2_5("dit.t2v").inputs
    with pytest.raises(ValueError, match="marks keyframes"):
        prepare_stream(model.config, i["video_positions"], i["video_context"])


# --- conditioning ---------------------------------------------------------------------------------


def plain(golden: Goldens) -> StartState:
    """The start with the initial latent of all conditioning cases."""
    latent = golden("conditioning.i2v").inputs["initial_latent"]
    return plain_start(LatentState.of(video_to_tokens(latent)), None, RESOLUTION)


def check_start(case: GoldenCase, start: StartState) -> None:
    state, sigma, noise = start.video, case.params["noise_scale"], case.inputs["noise"]
    noised = torch.lerp(state.tokens, noise, sigma)
    case.check("tokens", noised * state.mask + state.clean * (1 - state.mask))
    kept = state.mask < 1  # the content of other tokens is never used
    torch.testing.assert_close(state.clean * kept, case.outputs["clean"] * kept)
    case.check("denoise_mask", state.mask.reshape(case.outputs["denoise_mask"].shape))
    case.check("positions", start.positions)
    mask = case.outputs["keyframes_mask"]
    case.check("keyframes_mask", start.keyframe_mask.reshape(mask.shape))
    assert start.positions.shape[2] == case.params["tokens"]
    assert start.extra == case.params["tokens"] - case.params["target_tokens"]


def test_images(golden_2_5: Goldens) -> None:
    case = golden_2_5("conditioning.i2v")
    images = [
        {"file": "a", "strength": 0.9},
        {"file": "b", "frame": case.params["last_index"], "strength": 0.8},
    ]
    request = request_with(images=images)
    latents = {"image.0": case.inputs["first_frame"], "image.1": case.inputs["last_frame"]}
    check_start(case, apply_images(plain(golden_2_5), latents, request, RESOLUTION))


def test_slots(golden_2_5: Goldens) -> None:
    case = golden_2_5("conditioning.slots")
    check_start(case, append_slots(plain(golden_2_5), case.params["slots"], RESOLUTION))


def test_images_and_slots(golden_2_5: Goldens) -> None:
    case = golden_2_5("conditioning.i2v_slots")
    images = [
        {"file": "a"},
        {"file": "b", "frame": case.params["keyframe_index"],
         "strength": case.params["keyframe_strength"]},
    ]  # fmt: skip
    request = request_with(images=images)
    latents = {"image.0": case.inputs["first_frame"], "image.1": case.inputs["keyframe"]}
    start = apply_images(plain(golden_2_5), latents, request, RESOLUTION)
    slots, first = case.params["slots"], case.inputs["initial_keyframes"]
    start = append_slots(start, slots, RESOLUTION, first)
    check_start(case, start)
    read_back = golden_2_5("conditioning.slots_read_back")
    assert start.slots is not None
    assert start.slots.start == read_back.params["first_token"]


def test_slots_come_before_a_reference(golden_2_5: Goldens) -> None:
    case = golden_2_5("conditioning.slots_reference")
    request = request_with({"generated_keyframes": 2}, video={"file": "a", "mode": "reference"})
    latents = {"video_in": case.inputs["reference"]}
    factor = case.params["reference_downscale"]
    start = apply_inputs(plain(golden_2_5), latents, request, RESOLUTION, 2, factor)
    assert start.slots is not None
    tokens = start.video.tokens.clone()
    tokens[:, start.slots] = video_to_tokens(case.inputs["initial_keyframes"])
    check_start(case, replace(start, video=replace(start.video, tokens=tokens)))


def test_slot_frames(golden_2_5: Goldens) -> None:
    for count, frames, want in golden_2_5("conditioning.slot_positions").params["rows"]:
        assert list(slot_frames(count, frames)) == want


# --- whole runs -----------------------------------------------------------------------------------


def recorded_noises(case: GoldenCase) -> Noises:
    """The noise of the start and of each step of a pipeline case."""
    i = case.inputs

    def noise(step: int, _: str) -> Tensor:
        return torch.cat([i[f"step{step}_{s}_noise"].flatten(1) for s in ("video", "audio")], 1)

    return Noises(i["video_noise"], i["audio_noise"], noise)


def run_stage(
    model: Transformer, case: GoldenCase, start: StartState, sampler: str = "euler"
) -> tuple[Tensor, Tensor]:
    """Video and audio tokens of a pipeline case, its start compared with the reference."""
    i = case.inputs
    case.check("positions", start.positions)
    mask = case.outputs["keyframes_mask"]
    case.check("keyframes_mask", start.keyframe_mask.reshape(mask.shape))
    assert start.audio is not None
    denoiser = Denoiser(
        model,
        DenoiserStream(
            start.positions,
            i["video_context"],
            mask=start.video_mask,
            keyframe_mask=start.keyframe_mask,
        ),
        DenoiserStream(audio_positions(start.audio.tokens.shape[1]), i["audio_context"]),
    )
    plan = SamplingPlan(i["sigmas"].tolist(), sampler, SamplerOptions())
    video, audio = sample(denoiser, start.video, start.audio, recorded_noises(case), plan)
    assert video is not None
    assert audio is not None
    case.check("video_latent", tokens_to_video(video, *case.outputs["video_latent"].shape[2:]))
    case.check("audio_latent", tokens_to_audio(audio, 2))
    return video, audio


SMALL, LARGE = (Resolution(n, n // 2, 25, Fraction(24), 26) for n in (64, 128))


@pytest.mark.parametrize("kind", ["t2v", "i2v_slots"])
def test_distilled_run(golden_2_5: Goldens, model: Transformer, kind: str) -> None:
    """Two stages with the distilled LoRA: latents after each stage equal the official ones."""
    first, second = (golden_2_5(f"pipeline.distilled.{kind}.stage{n}") for n in (1, 2))
    statistics = read_latent_statistics(
        part(golden_2_5, "vae/tiny-ltx-2.5-video-vae.safetensors", "video_vae")
    )
    upsampler = load_upsampler(
        part(
            golden_2_5,
            "latent_upscale_models/tiny-ltx-2.5-latent-spatial-upscaler-x2.safetensors",
            "latent_upsampler",
        ),
        device="cpu",
        dtype=torch.float32,
    )
    start = plain_start(LatentState.empty(8, 8), LatentState.empty(26, 32), SMALL)
    start = with_image(start, first)
    if first.params["slots"]:
        start = append_slots(start, first.params["slots"], SMALL)
    with temporary_loras(model, [(part(golden_2_5, DISTILLED, "lora"), 1.0)]):
        video, audio = run_stage(model, first, start, "euler_ancestral")
        if start.slots is not None:
            made = tokens_to_video(video[:, start.slots], len(first.params["slots"]), 1, 2)
            first.check("generated_keyframes", made)
        larger = upsample(tokens_to_video(video, 4, 1, 2), upsampler, statistics)
        start = plain_start(
            LatentState.of(video_to_tokens(larger)),
            LatentState.of(audio_to_tokens(tokens_to_audio(audio, 2))),
            LARGE,
        )
        run_stage(model, second, with_image(start, second))


def with_image(start: StartState, case: GoldenCase) -> StartState:
    if "first_frame" not in case.inputs:
        return start
    content = video_to_tokens(case.inputs["first_frame"])
    return StartState(
        start.video.with_content(0, content), start.audio, start.positions, start.audio_positions
    )


def test_noise_of_the_seed(golden_2_5: Goldens) -> None:
    """Stage 1 and the steps of its ancestral sampler, from the seed alone."""
    case, run = (golden_2_5(n) for n in ("noise.seed_order", "pipeline.distilled.t2v.stage1"))
    seed = case.params["seed"]
    shapes = ((1, 8, 4, 1, 2), (1, 2, 26, 16))
    video, audio = draw_noise(seed, *shapes, order="ltx")
    assert video is not None
    assert audio is not None
    run.check("start_tokens", video, rtol=0, atol=0)
    assert torch.equal(audio, run.inputs["audio_noise"])
    step = noise_source(seed, *shapes, order="ltx")(0, "step")
    stored = [run.inputs[f"step0_{s}_noise"].flatten(1) for s in ("video", "audio")]
    assert torch.equal(step, torch.cat(stored, 1))
