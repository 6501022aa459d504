"""Whole runs of LTX-2.5 on the tiny models of the goldens: stages, both decoders, keyframes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import GOLDEN_2_5, Goldens
from helpers.tiny_clips import frames, library_2_5, load_artefact, make, reused

from latent_ladder.checkpoints.selection import Library, scan
from latent_ladder.errors import CheckpointNotFound, RequestError
from latent_ladder.memory.planner import Budget
from latent_ladder.models.device import choose_runtime
from latent_ladder.pipeline.model_runner import ModelRunner
from latent_ladder.pipeline.plan import make_plan
from latent_ladder.pipeline.preparation import policy_of
from latent_ladder.pipeline.run import prepare
from latent_ladder.pipeline.stage_noise import earlier_noise, noise_shapes
from latent_ladder.pipeline.stages.decoding import DecodeJob, official_generator
from latent_ladder.pipeline.video_decoder import with_decoder
from latent_ladder.request.model import Request
from latent_ladder.sampling.denoise import Noises
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """All files of the goldens; the text encoder has their context length."""
    return library_2_5(tmp_path_factory.mktemp("models"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def distilled(golden: Goldens, base: dict[str, Any] | None = None, **changes: Any) -> Request:
    """The request of the official distilled pipeline's cases."""
    case = golden("pipeline.distilled.t2v.stage1")
    loras = [{"role": "distilled", "strength": 1.0}]
    return Request.from_dict(
        {
            "prompt": golden("text.tokens.p0").params["prompt"],
            "seed": case.params["seed"], "width": 128, "height": 64, "frames": 25, "fps": "24",
            "noise_order": "ltx", "mask_convention": "ltx",
            "stages": [
                {"kind": "base", "sampler": "euler_ancestral", "loras": loras,
                 "sigmas": [round(s, 6) for s in case.inputs["sigmas"].tolist()], **(base or {})},
                {"kind": "upsample"},
                {"kind": "refine", "sigmas": [0.909375, 0.725, 0.421875, 0.0], "loras": loras},
            ],
            **changes,
        }
    )  # fmt: skip


def stored(store: Store, request: Request, library: Library, name: str) -> dict[str, torch.Tensor]:
    """The artefact of a stage of a request."""
    plan = prepare(request, library, store, device="cpu").plan
    return load_artefact(store, next(s.key for s in plan.stages if s.name == name))


@pytest.mark.slow
def test_a_clip_with_both_decoders(
    golden_2_5: Goldens, library: Library, store: Store, tmp_path: Path
) -> None:
    """Text to stage 1 equal the official pipeline; another decoder only decodes again."""
    request = distilled(golden_2_5)
    make(request, library, store, tmp_path / "conv.mp4")
    case = golden_2_5("pipeline.distilled.t2v.stage1")
    base = stored(store, request, library, "base")
    case.check("video_latent", base["video"])
    case.check("audio_latent", base["audio"])
    case, refined = (
        golden_2_5("pipeline.distilled.t2v.stage2"),
        stored(store, request, library, "refine"),
    )
    case.check("video_latent", refined["video"])
    case.check("audio_latent", refined["audio"])
    other = distilled(golden_2_5, decode={"decoder": "diffusion"})
    result, _ = make(other, library, store, tmp_path / "diffusion.mp4")
    assert {name for name, done in reused(result).items() if not done} <= {"decode and write"}
    assert frames(tmp_path / "diffusion.mp4") != frames(tmp_path / "conv.mp4")
    make(other, library, store, tmp_path / "again.mp4")
    assert frames(tmp_path / "again.mp4") == frames(tmp_path / "diffusion.mp4")


@pytest.mark.slow
def test_generated_keyframes(
    golden_2_5: Goldens, library: Library, store: Store, tmp_path: Path
) -> None:
    """They change the clip, are kept beside it, and are no part of it."""
    request = distilled(golden_2_5, {"generated_keyframes": 2}, audio="none")
    make(request, library, store, tmp_path / "a.mp4")
    made = stored(store, request, library, "base")
    assert made["video"].shape == (1, 8, 4, 1, 2)
    assert made["keyframes"].shape == (1, 8, 2, 1, 2)
    assert made["keyframes"].isfinite().all()


@pytest.mark.parametrize(("name", "slots"), [("t2v", 0), ("i2v_slots", 1)])
def test_official_noise_of_stage_2(
    golden_2_5: Goldens, library: Library, store: Store, name: str, slots: int
) -> None:
    """It goes on where the noise of stage 1 ended, generated keyframes included."""
    request = distilled(golden_2_5, {"generated_keyframes": slots})
    plan = prepare(request, library, store, device="cpu").plan
    stages = {stage.name: stage for stage in plan.stages}
    for number, stage in ((1, stages["base"]), (2, stages["refine"])):
        shapes = noise_shapes(plan, stage, stage.windows[0])
        earlier = earlier_noise(plan, stage.position)
        noises = Noises.from_seed(10, shapes, "euler", order="ltx", earlier=earlier)
        assert noises.video is not None
        assert noises.audio is not None
        case = golden_2_5(f"pipeline.distilled.{name}.stage{number}")
        assert torch.equal(noises.video, case.inputs["video_noise"])
        assert torch.equal(noises.audio, case.inputs["audio_noise"])
    order = golden_2_5("noise.seed_order")
    if not slots:
        assert noises.video is not None
        order.check("stage2_video", noises.video[:, : order.outputs["stage2_video"].shape[1]])


def test_a_stage_with_its_own_seed_has_its_own_generator(
    golden_2_5: Goldens, library: Library, store: Store
) -> None:
    request = distilled(golden_2_5)
    base, upsample, refine = request.stages
    own = refine.model_copy(update={"seed": 5})
    plans = [
        prepare(request.model_copy(update={"stages": (base, upsample, *last)}), library, store,
                device="cpu").plan
        for last in ([refine, refine], [own, refine])
    ]  # fmt: skip
    assert [len(earlier_noise(plans[0], n)) for n in (0, 2, 3, None)] == [0, 1, 2, 3]
    assert [len(earlier_noise(plans[1], n)) for n in (0, 2, 3, None)] == [0, 0, 1, 2]


def test_official_noise_of_the_pixels(golden_2_5: Goldens, library: Library, store: Store) -> None:
    """Stage 1, stage 2, then pixels: one generator in the order of the official pipeline."""
    case, request = golden_2_5("noise.seed_order"), distilled(golden_2_5)
    prepared = prepare(request, library, store, device="cpu")
    memory = prepared.memory
    runner = ModelRunner(choose_runtime("cpu"), memory.budget, policy_of(request, prepared.options))
    generator = official_generator(DecodeJob(prepared.plan, runner, memory.of("decode")))
    pixels = torch.randn(1, 3, 25, 64, 128, generator=generator)
    case.check("decoder_pixels", pixels[..., :1, :8])


@pytest.mark.parametrize(
    ("budget", "kind"),
    [(Budget("cpu", 2**36, 2**36), "conv"), (Budget("cuda", 11 * 2**30, 2**36), "conv"),
     (Budget("cuda", 22 * 2**30, 2**36), "diffusion")],
)  # fmt: skip
def test_the_default_decoder_follows_the_device(
    golden_2_5: Goldens, library: Library, store: Store, budget: Budget, kind: str
) -> None:
    request = distilled(golden_2_5)
    models = prepare(request, library, store, device="cpu").plan.models
    chosen = with_decoder(models, request, lambda: budget)
    assert chosen.decoding_vae is models.video_decoders[kind]  # type: ignore[index]


def test_a_decoder_that_is_not_there_is_named(
    golden_2_5: Goldens, library: Library, store: Store, tmp_path: Path
) -> None:
    conv = {"video_vae": "tiny-ltx-2.5-video-vae-conv.safetensors"}
    request = distilled(golden_2_5, models=conv, decode={"decoder": "diffusion"})
    with pytest.raises(CheckpointNotFound, match=r"decode\.decoder=diffusion needs one with that"):
        prepare(request, library, store, device="cpu")
    request = distilled(golden_2_5, decode={"decoder": "diffusion", "grid": [2, 1]})
    with pytest.raises(RequestError, match="has no grid"):
        prepare(request, library, store, device="cpu")


def test_keyframes_need_a_transformer_with_the_mark(golden_2_5: Goldens, store: Store) -> None:
    older = scan([GOLDEN_2_5.parent / "golden"])
    request = distilled(golden_2_5, {"generated_keyframes": 2}, audio="none")
    request = request.model_copy(
        update={
            "models": request.models.model_copy(update={"checkpoint": "tiny-ltx-2.3.safetensors"})
        }
    )
    with pytest.raises(RequestError, match=r"has no mark of keyframes, only LTX-2\.5 has"):
        prepare(request, older, store, device="cpu")


def test_the_keys_of_both_decoders_differ(
    golden_2_5: Goldens, library: Library, store: Store
) -> None:
    plans = [
        prepare(distilled(golden_2_5, decode={"decoder": kind}), library, store, device="cpu").plan
        for kind in ("conv", "diffusion")
    ]
    assert plans[0].run_key != plans[1].run_key
    assert [s.key for s in plans[0].stages] == [s.key for s in plans[1].stages]
    other = make_plan(plans[1].request.model_copy(update={"seed": 11}), plans[1].models, library)
    assert other.run_key != plans[1].run_key


def test_the_preset_is_the_official_recipe(
    golden_2_5: Goldens, library: Library, store: Store
) -> None:
    """Its stages have the keys of those that are compared with the goldens, so the same results."""
    fields = {
        name: value
        for name, value in distilled(golden_2_5).to_dict().items()
        if name in ("prompt", "seed", "width", "height", "frames", "fps")
    }
    by_preset = Request.from_preset("ltx-2.5-distilled-lora", **fields)
    keys = [
        {
            stage.name: stage.key
            for stage in prepare(request, library, store, device="cpu").plan.stages
        }
        for request in (distilled(golden_2_5), by_preset)
    ]
    assert keys[0] == keys[1]
    distilled_file = Request.from_preset("ltx-2.5-distilled", **fields)
    stages = [s.model_dump(exclude={"loras"}) for s in distilled_file.stages]
    assert stages == [s.model_dump(exclude={"loras"}) for s in by_preset.stages]
