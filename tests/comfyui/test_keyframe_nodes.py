"""Nodes of LTX-2.5: generated keyframes, frozen latents, durations, the size of a clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import GOLDEN_2_5, Goldens
from helpers.workflow_graphs import engine
from helpers.workflow_nodes import first_output, run_node

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.comfyui.nodes.keyframes import occupied_frames, rescaled_places, spaced_places
from latent_ladder.comfyui.runtime.engine import Engine
from latent_ladder.comfyui.runtime.values import (
    Conditioning,
    DurationHeadFile,
    Latent,
    Model,
    TextEncoderFiles,
)
from latent_ladder.errors import WorkflowError
from latent_ladder.models.text_encoder.conditioning import Conditioning as Context

ENCODER = GOLDEN_2_5 / "text_encoders/tiny-gemma4-with-proj-ltx-2.5.safetensors"
HEAD = GOLDEN_2_5 / "model_patches/tiny-ltx-2.5-duration-head.safetensors"
TRANSFORMER = GOLDEN_2_5 / "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return engine(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(scope="module")
def prompt() -> Conditioning:
    parts = components(open_checkpoint(ENCODER))
    clip = TextEncoderFiles(parts["text_encoder"], parts["text_projection"], None)
    return Conditioning(clip, "a ball")


def added(work: Engine, prompt: Conditioning, latent: Latent, **inputs: Any) -> list[Any]:
    given = {"positive": prompt, "negative": prompt, "latent": latent, "vae": None} | inputs
    return list(run_node(work, "LTXVAddGeneratedKeyframes", **given)[0])


def test_keyframes_are_generated_and_separated(work: Engine, prompt: Conditioning) -> None:
    """Twice a second at free places; back out they know their frames, and the clip is as before."""
    video = torch.randn(1, 8, 7, 2, 3)
    mask = torch.ones(1, 1, 7, 1, 1)
    mask[:, :, 0] = 0
    positive, negative, latent = added(
        work, prompt, Latent(video, video_mask=mask), interval_frames=12
    )
    assert positive.generated_keyframes == negative.generated_keyframes == (12, 24, 36, 48)
    assert latent.video.shape == (1, 8, 11, 2, 3)
    assert torch.equal(latent.full_video_mask()[:, :, 7:], torch.ones(1, 1, 4, 2, 3))
    times = positive.guides[0].positions[0, 0]
    assert times.unique(dim=0).tolist() == [[12, 13], [24, 25], [36, 37], [48, 49]]
    outputs = run_node(
        work, "LTXVSeparateGeneratedKeyframes",
        positive=positive, negative=negative, latent=latent,
    )[0]  # fmt: skip
    assert outputs[0].guides == outputs[1].guides == ()
    assert torch.equal(outputs[2].video, video)
    assert outputs[3].video.shape == (1, 8, 4, 2, 3)
    assert outputs[3].keyframe_places.tolist() == [49, 12, 24, 36, 48]
    restored = Latent.from_tensors(outputs[3].tensors()).keyframe_places
    assert restored is not None
    assert torch.equal(restored, outputs[3].keyframe_places)


def test_keyframes_become_guides_of_a_longer_clip(work: Engine, prompt: Conditioning) -> None:
    keyframes = Latent(torch.randn(1, 8, 2, 2, 3), keyframe_places=torch.tensor([25, 12, 24]))
    clip = Latent(torch.zeros(1, 8, 7, 2, 3))
    given = {"positive": prompt, "negative": prompt, "vae": None, "keyframes": keyframes}
    outputs = run_node(work, "LTXVGeneratedKeyframesToGuides", latent=clip, **given)[0]
    starts = [guide.positions[0, 0, 0, 0].item() for guide in outputs[0].guides]
    assert starts == [24, 48]
    assert keyframes.video is not None
    assert torch.equal(outputs[2].video[:, :, 7:], keyframes.video)
    assert not outputs[2].full_video_mask()[:, :, 7:].any()
    assert not outputs[0].generated_keyframes
    for changes, message in (
        ({"keyframes": Latent(keyframes.video)}, "do not say their frames"),
        ({"keyframes": Latent(torch.zeros(1, 8, 2, 4, 6),
                              keyframe_places=torch.tensor([25, 12, 24]))}, "6x4 latents"),
        ({"override_frame_indices": "12"}, "2 keyframes for 1 frames"),
    ):  # fmt: skip
        with pytest.raises(WorkflowError, match=message):
            run_node(work, "LTXVGeneratedKeyframesToGuides", latent=clip, **{**given, **changes})


def test_keyframes_start_from_what_is_connected(work: Engine, prompt: Conditioning) -> None:
    clip = Latent(torch.zeros(1, 8, 4, 2, 3))
    movie = Latent(torch.randn(1, 8, 4, 2, 3))
    latent = added(work, prompt, clip, keyframes=movie, frame_indices="8, 24")[2]
    assert movie.video is not None
    assert torch.equal(latent.video[:, :, 4:], movie.video[:, :, [1, 3]])
    two = Latent(torch.randn(1, 8, 1, 2, 3), keyframe_places=torch.tensor([25, 9]))
    latent = added(work, prompt, clip, keyframes=two, frame_indices="8 24")[2]
    assert two.video is not None
    assert torch.equal(latent.video[:, :, 4], two.video[:, :, 0])
    assert not latent.video[:, :, 5].any()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"frame_indices": "12, x"}, "not a list of frames"),
        ({"frame_indices": "0"}, "between 1 and 24"),
        ({"frame_indices": "12 12"}, "must differ"),
        ({"latent": Latent(audio=torch.zeros(1, 2, 4, 16))}, "need a video latent"),
        ({"latent": Latent(torch.ones(1, 8, 4, 2, 3)), "frame_indices": "8"}, "already hold"),
    ],
)
def test_impossible_keyframes_are_refused(
    work: Engine, prompt: Conditioning, inputs: dict[str, Any], message: str
) -> None:
    clip = inputs.pop("latent", Latent(torch.zeros(1, 8, 4, 2, 3)))
    with pytest.raises(WorkflowError, match=message):
        added(work, prompt, clip, **inputs)


def test_places_of_keyframes(prompt: Conditioning) -> None:
    assert spaced_places(121, 24) == [24, 48, 72, 96, 120]
    assert spaced_places(9, 24) == [8]
    assert rescaled_places([24, 48], 49, 97) == [48, 96]
    content = torch.zeros(1, 8, 4, 2, 3)
    content[:, :, 3] = 1
    assert occupied_frames(Latent(content), prompt) == {24}


def test_a_frozen_latent_is_not_sampled(work: Engine) -> None:
    video = first_output(work, "LTXVFreezeLatent", latent=Latent(torch.ones(1, 8, 3, 2, 2)))
    assert not video.full_video_mask().any()
    audio = first_output(work, "LTXVFreezeLatent", latent=Latent(audio=torch.ones(1, 2, 5, 16)))
    assert audio.audio_mask.shape == (1, 1, 5, 1)
    both = Latent(torch.ones(1, 8, 3, 2, 2), torch.ones(1, 2, 5, 16))
    with pytest.raises(WorkflowError, match="picture and sound"):
        run_node(work, "LTXVFreezeLatent", latent=both)


def test_the_duration_of_a_prompt(
    golden_2_5: Goldens,
    work: Engine,
    prompt: Conditioning,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The head reads what the connectors make of the prompt."""
    case = golden_2_5("duration.seconds")
    context = Context(
        golden_2_5("text.context.p0").outputs["video"],
        golden_2_5("text.context.p0").outputs["audio"],
    )
    monkeypatch.setattr(Engine, "contexts", lambda *_: [context])
    head = DurationHeadFile(components(open_checkpoint(HEAD))["duration_head"])
    model = Model(components(open_checkpoint(TRANSFORMER))["transformer"])
    given = {"model": model, "positive": prompt, "duration_head": head}
    frames, seconds = run_node(work, "LTXVDurationPredictor", **given)[0]
    wanted = {float(t) for t in torch.cat([t.flatten() for t in case.outputs.values()])}
    assert min(abs(seconds - want) for want in wanted) < 1e-3
    assert frames % 8 == 1
    limited = run_node(work, "LTXVDurationPredictor", max_seconds=0.75, min_seconds=0.5, **given)
    assert limited[0][0] == 17


def test_the_size_of_a_shape(work: Engine) -> None:
    given = {"aspect_ratio": "16:9 (Widescreen)", "megapixels": 0.9, "multiple": 32}
    assert list(run_node(work, "ResolutionSelector", **given)[0]) == [1280, 736]
    assert list(run_node(work, "ResolutionSelector")[0]) == [1024, 1024]


def test_a_duration_head_is_loaded_by_its_name(tmp_path: Path) -> None:
    made = engine(tmp_path)
    with pytest.raises(Exception, match=r"nothing\.safetensors"):
        run_node(made, "ModelPatchLoader", name="nothing.safetensors")
