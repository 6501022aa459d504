"""Graphs run on the embedded pocket model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.workflow_graphs import LATENTS, MODELS, ONE_STAGE, SAMPLING, Nodes, engine, graph
from PIL import Image

from latent_ladder.comfyui.executor import execute, find_unsupported, without_unsupported
from latent_ladder.comfyui.graph import Graph
from latent_ladder.comfyui.nodes import decoding
from latent_ladder.comfyui.nodes import denoise as denoising
from latent_ladder.comfyui.nodes.latents import parse_latent
from latent_ladder.comfyui.runtime.events import (
    GraphEvent,
    NodeDone,
    NodePreview,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarned,
)
from latent_ladder.comfyui.runtime.values import Latent
from latent_ladder.errors import Cancelled, MemoryBudgetError, WorkflowError
from latent_ladder.media.video_reader import probe, read_frames, read_metadata
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.models.video_vae.vae import decode_bands as real_decode_bands
from latent_ladder.pipeline.run_options import Cancel
from latent_ladder.sampling.denoise import sample as real_sample

pytestmark = pytest.mark.slow


def run_and_load(folder: Path, nodes: Nodes, *outputs: str) -> list[Latent]:
    """Run a graph and return ``outputs`` (each ``"node slot"``) as latents."""
    all_nodes = dict(nodes)
    for i, output in enumerate(outputs):
        name, _, slot = output.rpartition(" ")
        link = [name, int(slot)]
        all_nodes[f"keep{i}"] = ("SaveLatent", {"samples": link, "filename_prefix": f"l{i}"})
    work = engine(folder)
    shown = execute(graph(all_nodes), work)
    files = [shown[f"keep{i}"]["latents"][0]["filename"] for i in range(len(outputs))]
    return [parse_latent((work.folders.output / name).read_bytes()) for name in files]


def video(latent: Latent) -> torch.Tensor:
    assert latent.video is not None
    return latent.video


def started_nodes(events: list[GraphEvent]) -> set[str]:
    return {event.node for event in events if isinstance(event, NodeStarted)}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, list[GraphEvent]]]:
    """Run the one-stage graph once; return its folder and the events of the run."""
    folder = tmp_path_factory.mktemp("graph")
    events: list[GraphEvent] = []
    execute(graph(ONE_STAGE), engine(folder), on_event=events.append, metadata=None)
    yield folder, events


def test_a_clip_has_comfyuis_name_and_contains_its_graph(
    first: tuple[Path, list[GraphEvent]],
) -> None:
    folder, events = first
    clip = folder / "output/video/clip_00001_.mp4"
    info = probe(clip)
    assert (info.width, info.height, info.frames) == (64, 64, 9)
    assert info.audio_duration_s == pytest.approx(9 / 24, abs=1e-4)
    assert json.loads(read_metadata(clip)["prompt"]) == graph(ONE_STAGE).to_api()
    steps = [e for e in events if isinstance(e, NodeProgress) and e.node == "sampled"]
    assert [(e.value, e.total) for e in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    (done,) = (e for e in events if isinstance(e, NodeDone) and e.node == "save")
    entry = {"filename": clip.name, "subfolder": "video", "type": "output"}
    assert done.ui == {"images": [entry], "animated": [True]}


def test_a_changed_input_recomputes_only_dependent_nodes(
    first: tuple[Path, list[GraphEvent]],
) -> None:
    folder, _ = first
    nodes = {**ONE_STAGE, "save": ("SaveVideo", {**ONE_STAGE["save"][1], "filename_prefix": "b"})}
    events: list[GraphEvent] = []
    execute(graph(nodes), engine(folder), on_event=events.append)  # another engine, the same store
    assert not started_nodes(events) & {"sampled", "prompt", "clip", "noise", "both", "sound"}
    assert started_nodes(events) >= {"save", "frames"}
    (cached,) = (e for e in events if isinstance(e, NodesCached))
    assert {"sampled", "sound"} <= set(cached.nodes)
    old, new = (list(read_frames(folder / "output" / n)) for n in
                ("video/clip_00001_.mp4", "b_00001_.mp4"))  # fmt: skip
    assert np.array_equal(np.stack(old), np.stack(new))


def test_an_unchanged_graph_is_not_run_again(tmp_path: Path) -> None:
    nodes: Nodes = {
        "made": ("EmptyImage", {"width": 8, "height": 6, "batch_size": 2, "color": 0xFF8000}),
        "save": ("SaveImage", {"images": ["made", 0], "filename_prefix": "a"}),
    }
    work, events = engine(tmp_path), list[GraphEvent]()
    before = execute(graph(nodes), work)
    assert execute(graph(nodes), work, on_event=events.append) == before
    assert not started_nodes(events)
    (work.folders.output / "a_00002_.png").unlink()
    again = execute(graph(nodes), work, on_event=events.append)
    assert [e["filename"] for e in again["save"]["images"]] == ["a_00002_.png", "a_00003_.png"]


def test_keys_depend_on_values_not_on_their_source(
    first: tuple[Path, list[GraphEvent]],
) -> None:
    folder, _ = first
    nodes = {
        **ONE_STAGE,
        "seed": ("PrimitiveInt", {"value": 3}),
        "sum": ("ComfyMathExpression", {"expression": "a * 2 + 1", "values.a": ["seed", 0]}),
        "noise": ("RandomNoise", {"noise_seed": ["sum", 1]}),
    }
    events: list[GraphEvent] = []
    execute(graph(nodes), engine(folder), on_event=events.append)
    assert "sampled" not in started_nodes(events)


def test_a_split_schedule_gives_the_same_latents(tmp_path: Path) -> None:
    parts: Nodes = {
        **MODELS,
        **LATENTS,
        **SAMPLING,
        "cut": ("SplitSigmas", {"sigmas": ["sigmas", 0], "step": 2}),
        "none": ("DisableNoise", {}),
        "first": ("SamplerCustomAdvanced", {**SAMPLING["sampled"][1], "sigmas": ["cut", 0]}),
        "second": (
            "SamplerCustomAdvanced",
            {
                **SAMPLING["sampled"][1],
                "sigmas": ["cut", 1],
                "noise": ["none", 0],
                "latent_image": ["first", 0],
            },
        ),
    }
    whole, two, half, estimate = run_and_load(
        tmp_path, parts, "sampled 0", "second 0", "first 0", "first 1"
    )
    torch.testing.assert_close(video(two), video(whole), rtol=1e-3, atol=1e-3)
    assert whole.audio is not None and two.audio is not None
    torch.testing.assert_close(two.audio, whole.audio, rtol=1e-3, atol=1e-3)
    # the output still contains the noise of the remaining steps, the estimate does not
    assert (video(half) - video(estimate)).abs().mean() > 0.1


def test_masked_frames_are_preserved_and_an_empty_schedule_changes_nothing(tmp_path: Path) -> None:
    nodes: Nodes = {
        **MODELS,
        **LATENTS,
        **SAMPLING,
        "image": ("EmptyImage", {"width": 100, "height": 64, "batch_size": 1, "color": 0x2040FF}),
        "with image": (
            "LTXVImgToVideoInplace",
            {"vae": ["model", 2], "image": ["image", 0], "latent": ["video", 0], "strength": 1.0},
        ),
        "both": (
            "LTXVConcatAVLatent",
            {"video_latent": ["with image", 0], "audio_latent": ["audio", 0]},
        ),
        "no sigmas": ("BasicScheduler", {
            "model": ["model", 0], "scheduler": "simple", "steps": 4, "denoise": 0.0}),
        "skipped": (
            "SamplerCustomAdvanced", {**SAMPLING["sampled"][1], "sigmas": ["no sigmas", 0]}),
    }  # fmt: skip
    start, end, same = run_and_load(tmp_path, nodes, "both 0", "sampled 0", "skipped 0")
    assert start.video_mask is not None and start.audio_mask is not None
    assert start.video_mask.mean() == 0.5 and start.audio_mask.mean() == 1
    torch.testing.assert_close(video(end)[:, :, :1], video(start)[:, :, :1])
    assert (video(end)[:, :, 1:] - video(start)[:, :, 1:]).abs().mean() > 0.1
    assert torch.equal(video(same), video(start))


def test_guides_are_appended_for_sampling_and_cropped(tmp_path: Path) -> None:
    nodes: Nodes = {
        **MODELS,
        **LATENTS,
        "image": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 1, "color": 0x2040FF}),
        "guided": (
            "LTXVAddGuide",
            {
                "positive": ["conditioning", 0], "negative": ["conditioning", 1],
                "vae": ["model", 2],
                "latent": ["video", 0], "image": ["image", 0], "frame_idx": -1, "strength": 0.7,
            },
        ),
        **SAMPLING,
        "guider": (
            "CFGGuider",
            {
                "model": ["model", 0], "positive": ["guided", 0], "negative": ["guided", 1],
                "cfg": 1.0,
            },
        ),
        "both": (
            "LTXVConcatAVLatent",
            {"video_latent": ["guided", 2], "audio_latent": ["audio", 0]},
        ),
        "cut": (
            "LTXVCropGuides",
            {"positive": ["guided", 0], "negative": ["guided", 1], "latent": ["parts", 0]},
        ),
    }  # fmt: skip
    with_guide, end, cut = run_and_load(tmp_path, nodes, "guided 2", "sampled 0", "cut 2")
    assert video(with_guide).shape[2] == 3 and video(cut).shape[2] == 2
    mask = with_guide.full_video_mask()[0, 0, :, 0, 0]
    torch.testing.assert_close(mask, torch.tensor([1.0, 1.0, 0.3]))
    assert torch.equal(video(cut), video(end)[:, :, :2])


def test_smaller_references_use_fewer_tokens_on_the_same_grid(tmp_path: Path) -> None:
    reference = {
        "positive": ["conditioning", 0], "negative": ["conditioning", 1], "vae": ["model", 2],
        "latent": ["video", 0], "image": ["image", 0], "latent_downscale_factor": 2.0,
    }  # fmt: skip
    nodes: Nodes = {
        **MODELS,
        **LATENTS,
        **SAMPLING,
        "image": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 9, "color": 0x2040FF}),
        "guided": ("LTXAddVideoICLoRAGuide", reference),
        "guider": (
            "CFGGuider",
            {
                "model": ["model", 0], "positive": ["guided", 0], "negative": ["guided", 1],
                "cfg": 1.0,
            },
        ),
        "both": (
            "LTXVConcatAVLatent",
            {"video_latent": ["guided", 2], "audio_latent": ["audio", 0]},
        ),
        "ancestral": ("KSamplerSelect", {"sampler_name": "euler_ancestral"}),
        "sampled": (
            "SamplerCustomAdvanced", {**SAMPLING["sampled"][1], "sampler": ["ancestral", 0]}),
    }  # fmt: skip
    start, end = run_and_load(tmp_path, nodes, "guided 2", "sampled 0")
    assert video(start).shape[2:] == (4, 2, 2)
    guide = video(start)[:, :, 2:]
    assert guide[..., ::2, ::2].abs().min() > 0 and guide[..., 1:, :].abs().max() == 0
    assert start.full_video_mask()[0, 0, 2].tolist() == [[0, 1], [1, 1]]
    # positions without a token are unchanged; guide tokens are preserved
    torch.testing.assert_close(video(end)[:, :, 2:], guide)
    assert torch.isfinite(video(end)).all() and video(end)[:, :, :2].std() > 0.1


def test_an_unselected_branch_does_not_run(tmp_path: Path) -> None:
    nodes: Nodes = {
        "on": ("PrimitiveBoolean", {"value": False}),
        "text": ("PrimitiveString", {"value": "unchanged"}),
        "clip": MODELS["clip"],
        "better": ("LTXVPromptEnhancer", {"clip": ["clip", 0], "prompt": ["text", 0]}),
        "chosen": (
            "ComfySwitchNode",
            {"switch": ["on", 0], "on_false": ["text", 0], "on_true": ["better", 0]},
        ),
        "shown": ("PreviewAny", {"source": ["chosen", 0]}),
    }
    shown = execute(graph(nodes), engine(tmp_path))
    assert shown["shown"] == {"text": ["unchanged"]}
    nodes["on"] = ("PrimitiveBoolean", {"value": True})
    with pytest.raises(WorkflowError, match="better") as caught:
        execute(graph(nodes), engine(tmp_path))
    assert caught.value.node_id == "better"


def test_a_prompt_passes_through_unchanged_with_a_warning(tmp_path: Path) -> None:
    nodes: Nodes = {
        "text": ("PrimitiveString", {"value": "a red ball"}),
        "clip": ("CLIPLoader", {"clip_name": "not here.safetensors", "type": "ltxv"}),
        "better": ("TextGenerateLTX2Prompt", {"clip": ["clip", 0], "prompt": ["text", 0]}),
        "shown": ("PreviewAny", {"source": ["better", 0]}),
    }
    events: list[GraphEvent] = []
    shown = execute(graph(nodes), engine(tmp_path), on_event=events.append)
    assert shown["shown"] == {"text": ["a red ball"]}
    assert [e.code for e in events if isinstance(e, NodeWarned)] == ["prompt_as_written"]
    nodes["text"] = ("PrimitiveString", {"value": " "})
    with pytest.raises(WorkflowError, match="prompt is empty"):
        execute(graph(nodes), engine(tmp_path))


def test_a_switch_decided_at_run_time_computes_one_branch(tmp_path: Path) -> None:
    nodes: Nodes = {
        "image": ("EmptyImage", {"width": 8, "height": 6, "batch_size": 1, "color": 255}),
        "size": ("GetImageSize", {"image": ["image", 0]}),
        "wide": ("ComfyMathExpression", {"expression": "a > b", "values.a": ["size", 0],
                                         "values.b": ["size", 1]}),
        "tall": ("LoadImage", {"image": "not there.png"}),
        "chosen": (
            "ComfySwitchNode",
            {"switch": ["wide", 2], "on_true": ["image", 0], "on_false": ["tall", 0]},
        ),
        "save": ("SaveImage", {"images": ["chosen", 0], "filename_prefix": "a"}),
    }  # fmt: skip
    events: list[GraphEvent] = []
    execute(graph(nodes), engine(tmp_path), on_event=events.append)
    assert "tall" not in started_nodes(events) and {"wide", "size", "chosen"} <= started_nodes(
        events
    )


def test_nothing_runs_if_a_node_is_unsupported(tmp_path: Path) -> None:
    nodes: Nodes = {
        "image": ("EmptyImage", {"width": 8, "height": 8, "batch_size": 1, "color": 0}),
        "good": ("SaveImage", {"images": ["image", 0], "filename_prefix": "good"}),
        "pose": ("DWPreprocessor", {"image": ["image", 0]}),
        "bad": ("SaveImage", {"images": ["pose", 0], "filename_prefix": "bad"}),
        "alien": ("NeverHeardOf", {"image": ["image", 0]}),
    }
    built = graph(nodes)
    work, events = engine(tmp_path), list[GraphEvent]()
    with pytest.raises(WorkflowError, match=r"pose \(DWPreprocessor"):
        execute(built, work, on_event=events.append)
    assert not events and not any(work.folders.output.iterdir())
    assert [each.node.id for each in find_unsupported(built)] == ["pose"]
    assert without_unsupported(built) == ("good",)
    execute(built, work, wanted=["good"])
    assert [path.name for path in work.folders.output.iterdir()] == ["good_00001_.png"]


def test_unsupported_samplers_are_reported_before_anything_runs(tmp_path: Path) -> None:
    nodes = {**ONE_STAGE, "euler": ("KSamplerSelect", {"sampler_name": "uni_pc"})}
    events: list[GraphEvent] = []
    with pytest.raises(WorkflowError, match="uni_pc"):
        execute(graph(nodes), engine(tmp_path), on_event=events.append)
    assert not events


def test_errors_name_the_node(tmp_path: Path) -> None:
    nodes: Nodes = {
        "image": ("EmptyImage", {"width": 8, "height": 8, "batch_size": 1, "color": 0}),
        "save": ("SaveImage", {"images": ["image", 0], "filename_prefix": "../../out"}),
    }
    with pytest.raises(WorkflowError, match=r"node save \(SaveImage .*leads out"):
        execute(graph(nodes), engine(tmp_path))
    nodes["save"] = ("SaveVideo", {"video": ["image", 0], "filename_prefix": "a"})
    with pytest.raises(WorkflowError, match="video is IMAGE, expected VIDEO"):
        execute(graph(nodes), engine(tmp_path))
    nodes = {"load": ("LoadImage", {"image": "missing.png"}),
             "save": ("PreviewImage", {"images": ["load", 0]})}  # fmt: skip
    with pytest.raises(WorkflowError, match="no file missing"):
        execute(graph(nodes), engine(tmp_path))
    with pytest.raises(WorkflowError, match="no output"):
        execute(Graph({}), engine(tmp_path))


def test_a_run_stops_between_steps_and_resumes_from_the_store(tmp_path: Path) -> None:
    cancel, events = Cancel(), list[GraphEvent]()

    def stop(event: GraphEvent) -> None:
        events.append(event)
        if isinstance(event, NodeProgress) and event.node == "sampled" and event.value == 2:
            cancel.request()

    with pytest.raises(Cancelled):
        execute(graph(ONE_STAGE), engine(tmp_path), on_event=stop, cancel=cancel)
    assert not any(isinstance(e, NodeDone) and e.node == "sampled" for e in events)
    record = engine(tmp_path).store.runs.find("last")
    assert record.status == "cancelled" and record.kind == "workflow"


def test_truncated_sizes_are_warned_about(tmp_path: Path) -> None:
    nodes: Nodes = {
        **MODELS,
        "video": ("EmptyLTXVLatentVideo", {"width": 80, "height": 64, "length": 12}),
    }
    nodes["keep"] = ("SaveLatent", {"samples": ["video", 0], "filename_prefix": "l"})
    events: list[GraphEvent] = []
    execute(graph(nodes), engine(tmp_path), on_event=events.append)
    warnings = {e.code: e.message for e in events if isinstance(e, NodeWarned)}
    assert warnings == {
        "size_truncated": "80x64 is truncated to 64x64",
        "length_truncated": "12 frames are truncated to 9",
    }


def test_a_video_without_sound_is_saved_without_sound(tmp_path: Path) -> None:
    made: Nodes = {
        "made": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 9, "color": 255}),
        "clip": ("CreateVideo", {"images": ["made", 0], "fps": 24.0}),
        "save": ("SaveVideo", {"video": ["clip", 0], "filename_prefix": "silent"}),
    }
    work = engine(tmp_path)
    name = execute(graph(made), work)["save"]["images"][0]["filename"]
    (tmp_path / "input").mkdir(exist_ok=True)
    (work.folders.output / name).rename(work.folders.input / "silent.mp4")
    again: Nodes = {
        "load": ("LoadVideo", {"file": "silent.mp4"}),
        "parts": ("GetVideoComponents", {"video": ["load", 0]}),
        "clip": (
            "CreateVideo",
            {"images": ["parts", 0], "audio": ["parts", 1], "fps": ["parts", 2]},
        ),
        "save": ("SaveVideo", {"video": ["clip", 0], "filename_prefix": "again"}),
    }
    name = execute(graph(again), work)["save"]["images"][0]["filename"]
    found = probe(work.folders.output / name)
    assert (found.frames, found.audio_duration_s) == (9, None)


def test_an_animated_bomb_is_refused_in_words(tmp_path: Path) -> None:
    from PIL import Image

    work = engine(tmp_path)
    work.folders.input.mkdir(exist_ok=True)
    frames = [Image.new("L", (4000, 4000), n) for n in range(8)]
    frames[0].save(work.folders.input / "a.gif", save_all=True, append_images=frames[1:])
    nodes: Nodes = {
        "load": ("LoadImage", {"image": "a.gif"}),
        "save": ("PreviewImage", {"images": ["load", 0]}),
    }
    with pytest.raises(WorkflowError, match="4000x4000 pixels in 8 frames, expected at most"):
        execute(graph(nodes), work)


KILLED = """
import sys, time
from pathlib import Path
from latent_ladder.comfyui.executor import execute
from latent_ladder.comfyui.runtime.events import NodeProgress
from helpers.workflow_graphs import engine, graph
def pause(event):
    if isinstance(event, NodeProgress) and event.node == "save" and event.value >= 8:
        print("writing", flush=True)
        time.sleep(60)
nodes = {
    "made": ("EmptyImage", {"width": 64, "height": 64, "batch_size": 400, "color": 255}),
    "clip": ("CreateVideo", {"images": ["made", 0], "fps": 24.0}),
    "save": ("SaveVideo", {"video": ["clip", 0], "filename_prefix": "k"}),
}
execute(graph(nodes), engine(Path(sys.argv[1])), on_event=pause)
"""


def test_a_killed_run_leaves_no_partial_clip(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    here = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    names = [path.name for path in (tmp_path / "output").iterdir()]
    assert names and all(name.startswith(".part-") for name in names)


LOOP: Nodes = {
    **MODELS,
    "video": ("EmptyLTXVLatentVideo", {"width": 96, "height": 64, "length": 57}),
    "euler": SAMPLING["euler"],
    "noise": SAMPLING["noise"],
    "sigmas": ("ManualSigmas", {"sigmas": "1.0, 0.7, 0.0"}),
    "stg": (
        "STGGuiderAdvanced",
        {
            "model": ["model", 0],
            "positive": ["conditioning", 0],
            "negative": ["conditioning", 1],
            "sigmas": "1.0, 0.8",
            "cfg_values": "3, 1",
            "stg_scale_values": "1, 0",
            "stg_rescale_values": "0.5, 0",
            "stg_layers_indices": "[2], []",
        },
    ),
    "image": ("EmptyImage", {"width": 96, "height": 64, "batch_size": 2, "color": 0x2040FF}),
    "loop": (
        "LTXVLoopingSampler",
        {
            "model": ["model", 0],
            "vae": ["model", 2],
            "noise": ["noise", 0],
            "sampler": ["euler", 0],
            "sigmas": ["sigmas", 0],
            "guider": ["stg", 0],
            "latents": ["video", 0],
            "temporal_tile_size": 32,
            "temporal_overlap": 16,
            "horizontal_tiles": 2,
            "spatial_overlap": 1,
            "optional_cond_images": ["image", 0],
            "optional_cond_image_indices": "0, 40",
            "adain_factor": 0.2,
        },
    ),
}


def test_long_clips_are_sampled_in_spans_and_tiles(tmp_path: Path) -> None:
    (long,) = run_and_load(tmp_path, LOOP, "loop 0")
    assert video(long).shape[2:] == (8, 2, 3)
    assert torch.isfinite(video(long)).all() and video(long).std() > 0.1
    # an image at frame 0 is preserved
    flat = {**LOOP["loop"][1], "horizontal_tiles": 1, "optional_cond_image_indices": "0, 8"}
    alone: Nodes = {
        **LOOP,
        "loop": ("LTXVLoopingSampler", flat),
        "start": ("VAEEncode", {"pixels": ["image", 0], "vae": ["model", 2]}),
    }
    result, start = run_and_load(tmp_path / "flat", alone, "loop 0", "start 0")
    difference = video(result)[:, :, 0] - video(start)[:, :, 0]
    assert difference.abs().mean() < 0.2 * video(start).std()


def test_reference_voices_and_audio_only_models_are_sampled(tmp_path: Path) -> None:
    sampler, inputs = SAMPLING["sampled"]
    nodes: Nodes = {
        **MODELS,
        **LATENTS,
        **SAMPLING,
        "tone": ("EmptyAudio", {"duration": 0.4, "sample_rate": 16000, "channels": 2}),
        "voice": (
            "LTXVReferenceAudio",
            {
                "model": ["model", 0],
                "positive": ["conditioning", 0],
                "negative": ["conditioning", 1],
                "reference_audio": ["tone", 0],
                "audio_vae": ["audio vae", 0],
                "identity_guidance_scale": 2.0,
            },
        ),
        "guider": (
            "CFGGuider",
            {
                "model": ["voice", 0],
                "positive": ["voice", 1],
                "negative": ["voice", 2],
                "cfg": 1.0,
            },
        ),
        "audio model": ("LTXVAudioOnlyModel", {"model": ["model", 0]}),
        "audio guider": ("CFGGuider", {**SAMPLING["guider"][1], "model": ["audio model", 0]}),
        "alone": (sampler, {**inputs, "guider": ["audio guider", 0]}),
        "plain guider": SAMPLING["guider"],
        "plain": (sampler, {**inputs, "guider": ["plain guider", 0]}),
    }  # fmt: skip
    voice, alone, plain = run_and_load(tmp_path, nodes, "sampled 0", "alone 0", "plain 0")
    assert voice.audio is not None and alone.audio is not None and plain.audio is not None
    assert voice.audio.shape == alone.audio.shape == plain.audio.shape
    assert torch.equal(video(alone), torch.zeros_like(video(alone)))
    for one in (voice.audio, alone.audio):
        assert torch.isfinite(one).all() and (one - plain.audio).abs().mean() > 1e-3


def test_previews_are_emitted_during_sampling(
    first: tuple[Path, list[GraphEvent]],
) -> None:
    folder, plain = first
    assert not any(isinstance(event, NodePreview) for event in plain)
    work, events = engine(folder), list[GraphEvent]()
    work.previews = True
    nodes = {**ONE_STAGE, "noise": ("RandomNoise", {"noise_seed": 8})}
    execute(graph(nodes), work, wanted=["save"], on_event=events.append)
    shown = [event for event in events if isinstance(event, NodePreview)]
    assert shown and {event.node for event in shown} == {"sampled"}
    with Image.open(BytesIO(shown[0].picture)) as image:
        assert image.format == shown[0].format and min(image.size) >= 64


def test_a_streamed_transformer_gives_the_same_latents(tmp_path: Path) -> None:
    nodes: Nodes = {**MODELS, **LATENTS, **SAMPLING}
    nodes["keep"] = ("SaveLatent", {"samples": ["sampled", 0], "filename_prefix": "l"})
    found = []
    for name, memory in (("all", MemoryOptions()), ("few", MemoryOptions(vram=0.012))):
        work = engine(tmp_path / name)
        work.memory = memory
        execute(graph(nodes), work)
        found.append(parse_latent((work.folders.output / "l_00001_.latent").read_bytes()))
    assert torch.equal(video(found[0]), video(found[1]))
    work = engine(tmp_path / "none")
    work.memory = MemoryOptions(vram=0.001)
    with pytest.raises(MemoryBudgetError, match="node sampled"):
        execute(graph(nodes), work)


def test_out_of_memory_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The allocator's exception is raised at the places where a real device raises it."""
    failures = ["sampling", "decoding"]

    def sample(*args: Any, **more: Any) -> Any:
        if "sampling" in failures:
            failures.remove("sampling")
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real_sample(*args, **more)

    def bands(*args: Any) -> Iterator[torch.Tensor]:
        for band in real_decode_bands(*args):
            if "decoding" in failures:
                failures.remove("decoding")
                raise torch.OutOfMemoryError("CUDA out of memory")
            yield band

    monkeypatch.setattr(denoising, "sample", sample)
    monkeypatch.setattr(decoding, "decode_bands", bands)
    events: list[GraphEvent] = []
    execute(graph(ONE_STAGE), engine(tmp_path), on_event=events.append)
    nodes = [e.node for e in events if isinstance(e, NodeWarned) and e.code == "out_of_memory"]
    assert nodes == ["sampled", "save"] and not failures
    assert probe(tmp_path / "output/video/clip_00001_.mp4").frames == 9
