"""Whole keyframes-first runs (DFR) of LTX-2.5: stages, sound, resume, wrong requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.goldens import GOLDEN_2_5, Goldens
from helpers.tiny_clips import library_2_5, load_artefact, make, reused

from latent_ladder.checkpoints.selection import Library, scan
from latent_ladder.errors import RequestError
from latent_ladder.media.video_reader import read_frames
from latent_ladder.pipeline.run import prepare
from latent_ladder.request.keyframes_first import keyframe_tokens
from latent_ladder.request.model import Request
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.artifact_store import Store

DETAILING = "tiny-ltx-2.5-ic-lora-pixel-spatial-upscaler-x2.safetensors"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """All files of the goldens; the text encoder has their context length."""
    return library_2_5(tmp_path_factory.mktemp("models"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def clip(golden: Goldens, **changes: Any) -> Request:
    """The preset at the size of the official run, with its detailing LoRA."""
    fields = read_preset("ltx-2.5-dfr").fields
    stages = [dict(stage) for stage in fields["stages"]]
    stages[2]["loras"] = [*stages[2]["loras"], {"name": DETAILING, "strength": 1.0}]
    size = {"width": 128, "height": 64, "frames": 81, "fps": "48", "seed": 7, "stages": stages}
    prompt = golden("text.tokens.p0").params["prompt"]
    return Request.from_dict({**fields, **size, "prompt": prompt, **changes})


def rounds(golden: Goldens, count: int) -> list[dict[str, Any]]:
    """The stages of :func:`clip` with a number of temporal rounds."""
    stages = clip(golden).to_dict()["stages"]
    return [*stages[:3], *stages[3:5] * count]


@pytest.mark.slow
def test_the_preset_is_the_official_run(
    golden_2_5: Goldens, library: Library, store: Store, tmp_path: Path
) -> None:
    """From the prompt to the joined clip: latents after each stage, noise from the seed alone."""
    request = clip(golden_2_5)
    make(request, library, store, tmp_path / "a.mp4")
    plan = prepare(request, library, store, device="cpu").plan
    found = {s.name: s.key for s in plan.stages}
    for case_name, stage in (("stage1", "base"), ("stage2", "refine[0]")):
        case, made = golden_2_5(f"pipeline.dfr.{case_name}"), load_artefact(store, found[stage])
        case.check("video_latent", made["video"])
        case.check("audio_latent", made["audio"])
        case.check("generated_keyframes", made["keyframes"])
    final, made = golden_2_5("pipeline.dfr.final"), load_artefact(store, found["refine[1]"])
    wanted = final.outputs["video_latent"].shape[2]
    final.check("video_latent", made["video"][:, :, :wanted])
    assert made["keyframes"].shape[2] == 4
    assert len(list(read_frames(tmp_path / "a.mp4"))) == 81
    sound = plan.sound
    assert sound is not None
    assert sound.inputs == (found["base"],)
    again, _ = make(request, library, store, tmp_path / "b.mp4")
    assert all(done for name, done in reused(again).items() if name != "decode and write")


@pytest.mark.slow
def test_two_rounds_and_a_stopped_run(
    golden_2_5: Goldens, library: Library, store: Store, tmp_path: Path
) -> None:
    """A run that has stages in the store goes on after them, with the noise of a whole run."""
    request = clip(golden_2_5, stages=rounds(golden_2_5, 2), frames=161, fps="96", audio="none")
    make(request, library, store, tmp_path / "a.mp4")
    plan = prepare(request, library, store, device="cpu").plan
    last = plan.latents
    whole = load_artefact(store, last.key)
    assert whole["video"].shape == (1, 8, 25, 2, 4)
    assert whole["keyframes"].shape[2] == 8
    other = Store(tmp_path / "other")
    shorter = clip(golden_2_5, frames=81, fps="48", audio="none")
    make(shorter, library, other, tmp_path / "b.mp4")
    result, _ = make(request, library, other, tmp_path / "c.mp4")
    assert reused(result)["base"]
    assert reused(result)["refine[1]"]
    assert not reused(result)["refine[2]"]
    assert load_artefact(other, last.key)["video"].equal(whole["video"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise_order": "comfyui"}, "need noise_order=ltx"),
        ({"images": [{"file": "a.png"}]}, "take no images yet"),
        ({"audio_in": "a.wav"}, "take no audio_in yet"),
        ({"windows": {"frames": 33}}, "no windows in time"),
    ],
)
def test_fields_that_do_not_fit(golden_2_5: Goldens, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as raised:
        clip(golden_2_5, **changes)
    assert message in str(raised.value)


def test_stages_in_another_order(golden_2_5: Goldens) -> None:
    stages = rounds(golden_2_5, 1)
    wrong = [stages[:2], stages[:4], [*stages[:3], stages[1], stages[4]], rounds(golden_2_5, 3)]
    for order in wrong:
        with pytest.raises(RequestError, match="stages of a keyframes-first clip are base"):
            clip(golden_2_5, stages=order, frames=193)
    even = [{**stages[0], "keyframes": "even"}, *stages[1:]]
    with pytest.raises(RequestError, match="the base stage generates none for segments"):
        clip(golden_2_5, stages=even)


def test_a_transformer_without_the_mark(golden_2_5: Goldens, store: Store) -> None:
    older = scan([GOLDEN_2_5.parent / "golden"])
    stages = clip(golden_2_5).to_dict()["stages"]
    stages[2]["loras"] = stages[2]["loras"][:1]
    models = {"checkpoint": "tiny-ltx-2.3.safetensors"}
    fields = clip(golden_2_5, models=models, stages=stages, audio="none").to_dict()
    del fields["preset"]
    request = Request.from_dict(fields)
    with pytest.raises(RequestError, match=r"has no mark of keyframes, only LTX-2\.5 has"):
        prepare(request, older, store, device="cpu")


def test_lengths_of_stages(golden_2_5: Goldens) -> None:
    """Stages have whole segments, sound that of the base's; the planner counts every token."""
    request = clip(golden_2_5)
    assert [r.frames for r in request.resolutions] == [49, 49, 49, 97, 97]
    assert {r.audio_latents for r in request.resolutions} == {51}
    tokens = [keyframe_tokens(request.stages, n, r) for n, r in enumerate(request.resolutions)]
    assert tokens == [(18,), (), (86,), (), (72, 136)]


def test_other_requests_keep_their_keys() -> None:
    """Fields that only keyframes-first clips use are no part of the keys of other stages."""
    request = Request.from_preset("ltx-2.5-distilled", prompt="a", seed=1)
    assert all("keyframes" not in request.stage_fields(n) for n in (0, 2))
