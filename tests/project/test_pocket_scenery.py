"""The second world of the pocket's training: its pictures, captions, sound, judge and stages.

Only what the `dev` extra can import; the training loops have `scenery_train.py rehearse`.
"""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import components
from latent_ladder.models.video_vae.taehv import load_tiny_decoder

sys.path.insert(0, str(Path(__file__).parents[2] / "training" / "pocket"))

import measures
import scenery
import scenery_cache
import scenery_captions
import scenery_judge
import scenery_preview
import scenery_sound
import scenery_train
import scenery_world
import vae
from scenery_render import render


def _scenes(count: int, seconds: float = 1.0, seed: int = 3) -> list[scenery.Scene]:
    """Scenes of which the first twelve show every ground at every time of day."""
    rng = random.Random(seed)
    out = []
    for i in range(count):
        scene = scenery.random_scene(rng, seconds)
        time = scenery.TIMES[i // 4 % 3]
        weather = scene.weather if scene.weather != "aurora" or time == "night" else "clear"
        ground = scenery.GROUNDS[i % 4]
        out.append(dataclasses.replace(scene, ground=ground, time=time, weather=weather))
    return out


def _with(scene: scenery.Scene, **values: Any) -> scenery.Scene:
    return dataclasses.replace(scene, first=dataclasses.replace(scene.first, **values))


@pytest.mark.parametrize("scene", _scenes(12), ids=lambda s: f"{s.ground}-{s.time}")
def test_a_window_of_a_picture_is_that_part_of_the_whole(scene: scenery.Scene) -> None:
    whole = render([scene], 2, (64, 112), first_frame=9)[0]
    part = render([scene], 1, (64, 112), first_frame=10, crop=(16, 40, 32, 48))[0, 0]
    wanted = whole[1, 16:48, 40:88]
    assert (part.int() - wanted.int()).abs().max() <= 1  # rounding
    assert wanted.float().std() > 3  # there is something to see


@pytest.mark.parametrize("scene", _scenes(12), ids=lambda s: f"{s.ground}-{s.time}")
def test_the_small_picture_is_the_reduced_large_one(scene: scenery.Scene) -> None:
    large, small = (render([scene], 1, size, first_frame=12)[0].float() for size in (512, 256))
    reduced = torch.nn.functional.interpolate(large.permute(0, 3, 1, 2), 256, mode="area")
    error = reduced.permute(0, 2, 3, 1) - small
    assert error.square().mean().sqrt() < 5  # of 255
    assert error.mean().abs() < 0.5


@pytest.mark.parametrize("shape", scenery.SHAPES)
def test_only_the_large_picture_shows_a_weave(shape: str) -> None:
    scene = _with(_scenes(1)[0], shape=shape, motion="still", finish="matte", x=0.0)
    seen = {}
    for size in (256, 512):
        plain, woven = (
            render([_with(scene, texture=t)], 1, size)[0].float() for t in ("plain", "woven")
        )
        seen[size] = float((woven - plain).square().mean().sqrt())
    assert seen[512] > 1.5 * seen[256]
    assert seen[512] > 1


@pytest.mark.parametrize("motion", scenery.MOTIONS)
@pytest.mark.parametrize("camera", scenery.CAMERAS)
def test_an_object_is_where_its_trajectory_says(motion: str, camera: str) -> None:
    rng = random.Random(f"{motion}/{camera}")
    body = scenery.random_body(rng, motion, 2.0, False, scenery.PANS[camera])
    body = dataclasses.replace(body, shape="ball", color="red", texture="plain", finish="matte")
    scene = scenery.Scene("grass", "day", "clear", camera, body)
    frames = torch.arange(0, 49, 12)
    red = render([scene], 5, 96, fps=2)[0].float()
    found = (red[..., 0] - red[..., 1:].amax(-1) > 45).float()
    x, _, _ = scenery.trajectory(body, frames / 24)
    want = x - scenery.camera_path(scene, frames / 24)
    axis = (torch.arange(96) + 0.5) / 48 - 1
    columns = found.sum(1)
    centre = (columns @ axis) / columns.sum(1)
    inside = want.abs() < 0.6  # wholly in the picture
    assert inside.any()
    assert (centre - want)[inside].abs().max() < 0.12  # the lit side is redder


@pytest.mark.parametrize("motion", scenery.MOTIONS)
def test_five_seconds_keep_moving_and_stay_in_the_picture(motion: str) -> None:
    rng = random.Random(motion)
    scenes = [s for s in (scenery.random_scene(rng, 5.0) for _ in range(120))
              if s.first.motion == motion][:6]  # fmt: skip
    t = torch.linspace(0, 5, 21)
    for scene in scenes:
        x, y, radius = scenery.trajectory(scene.first, t)
        assert (x - scenery.camera_path(scene, t)).abs().max() < 1.0
        assert (y - radius > -1).all()
        assert (y < 0.75).all()
    clip = render(scenes[:2], 6, 48, fps=1).float()
    changes = clip.diff(dim=1).square().mean((2, 3, 4)).sqrt()
    assert (changes > 0.4).all()  # of 255: clouds, light and water go on, too


def test_captions_stay_within_their_vocabulary_and_name_what_is_seen() -> None:
    rng = random.Random(0)
    capitals = named = 0
    for _ in range(500):
        scene = scenery.random_scene(rng)
        text = scenery_captions.caption(scene, rng)
        words = set(re.findall(r"[a-z]+", text.lower()))
        assert words <= set(scenery_captions.VOCABULARY)
        assert any(w in text.lower() for w in scenery_captions.SHAPE_WORDS[scene.first.shape])
        assert any(w in text.lower() for w in scenery_captions.COLOR_WORDS[scene.first.color])
        assert re.search(r"\s[.,]|,\.|\s\s|{", text) is None
        capitals += text.isupper()
        labels = scenery_captions.attributes(scene)
        named += all(scenery_captions.is_mentioned(n, labels[n], text) for n in ("ground", "time"))
    assert 5 <= capitals <= 45
    assert named > 300


def test_a_caption_never_names_another_ground_or_time() -> None:
    rng = random.Random(1)
    for _ in range(300):
        scene = scenery.random_scene(rng)
        text = scenery_captions.caption(scene, rng)
        for attribute in ("ground", "time"):
            own = getattr(scene, attribute)
            for other in scenery_world.LABELS[attribute]:
                if other != own:
                    words = scenery_captions.MENTION_WORDS[attribute][other]
                    hidden = text.lower().replace("northern lights", "").replace("light", "")
                    assert not any(re.search(rf"\b{w}\b", hidden) for w in words), (text, other)


def test_labels_are_those_of_the_scenes() -> None:
    for scene in _scenes(30):
        for name, value in scenery_captions.attributes(scene).items():
            assert value in scenery_world.LABELS[name]


@pytest.mark.parametrize("index", [0, 2, 3])
def test_the_judge_recognises_every_attribute_of_a_real_clip(index: int) -> None:
    scene = scenery_judge.held_out(4)[0][index]
    assert all(scenery_judge.judge(render([scene], 25, 256)[0], scene).values())


@pytest.mark.parametrize(
    ("attribute", "other"),
    [("shape", "star"), ("color", "green"), ("motion", "up"), ("ground", "water"),
     ("time", "night")],
)  # fmt: skip
def test_the_judge_denies_what_a_clip_does_not_show(attribute: str, other: str) -> None:
    scene = scenery_world.example_scene()
    clip = render([scene], 25, 128)[0]
    claimed = scenery_judge.replace_attribute(scene, attribute, other)
    assert not scenery_judge.judge(clip, claimed)[attribute]


def test_the_tracker_follows_a_real_clip() -> None:
    scene = scenery_world.example_scene()
    times = torch.arange(0, 25, 12)
    found = scenery_judge.track(render([scene], 25, 128)[0][times], scene)
    x, y, radius = scenery.trajectory(scene.first, times / 24)
    assert (found - torch.stack([x, y, radius], 1)).abs().max() < 0.08


def test_sound_follows_what_is_seen() -> None:
    scene = scenery_world.example_scene()
    wave = scenery_sound.waveform(scene, 49, 24)
    assert wave.shape == (2, 98_000)
    assert 0.02 < float(wave.abs().max()) <= 1
    energy = wave.unflatten(1, (10, -1)).square().mean(-1)
    side = energy[1] / energy.sum(0)
    assert side[-1] > side[0] + 0.2  # the ball rolls to the right
    body = dataclasses.replace(scene.first, motion="up")
    weights = scenery_sound.controls(dataclasses.replace(scene, first=body), 100)
    loudest = weights[: len(scenery_sound.FUNDAMENTALS)].argmax(0)
    assert loudest[-10:].float().mean() > loudest[:10].float().mean()


def test_an_impact_on_water_is_a_drop_and_on_wood_a_knock() -> None:
    scene = _with(scenery_world.example_scene(), motion="bounce")
    first = len(scenery_sound.PARTIALS) + len(scenery_sound.WINDS)
    for ground, rows in (("wood", slice(first, first + 5)), ("water", slice(first + 5, None))):
        hit = dataclasses.replace(scene, ground=ground)
        weights = scenery_sound.controls(hit, 120)[: scenery_sound.ROWS]
        assert bool(weights[rows].any())
        assert int(weights[first:].any(1).sum()) == (5 if ground == "wood" else 8)


def test_scenes_of_the_cache_are_the_same_at_both_sizes_and_survive_storage() -> None:
    for scene in scenery_cache.shard_scenes(7, 1, 20):
        assert scenery_cache.unpack(scenery_cache.pack(scene)) == scene
    kinds = {scenery_cache.shard_kind(256, n) for n in range(8)}
    assert {k[2] for k in kinds} == {25, 121}
    assert any(k[0] > k[1] for k in kinds)
    assert any(k[0] < k[1] for k in kinds)
    for number in range(8):
        small, large = (scenery_cache.shard_kind(size, number) for size in (256, 512))
        assert (2 * small[0], 2 * small[1]) == large[:2]


def test_ringing_is_a_halo_and_a_shift_of_colour_is_not() -> None:
    clip = render([scenery_world.example_scene()], 1, 256)[0]
    luma = clip.float().mean(-1)[0]
    spectrum = torch.fft.rfft2(luma)
    spectrum[:, 22:], spectrum[22:-22] = 0, 0
    ringing = (clip.float() + (torch.fft.irfft2(spectrum) - luma)[..., None]).clamp(0, 255)
    assert measures.halo(clip, clip) == 0
    assert measures.halo(ringing.to(torch.uint8), clip) > 0.01
    assert measures.halo((clip.float() * 0.99).to(torch.uint8), clip) < 0.01


def test_training_goes_on_where_its_time_was_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sum(stage.share for stage in scenery_train.STAGES) == pytest.approx(1)
    calls: list[tuple[str, float]] = []

    def run(self: object, stage: scenery_train.Stage, seconds: float, limit: float | None = None
            ) -> bool:  # fmt: skip
        calls.append((stage.name, seconds))
        return True

    monkeypatch.setattr(scenery_train.Setting, "run", run)
    setting = scenery_train.Setting(tmp_path, "cpu", 2, dry=False)
    assert not scenery_train.train(setting, total=100, minutes=1)  # no clock runs here
    assert calls[-1][0] == "text"
    assert 40 < calls[-1][1] < 50
    assert scenery_train.train(setting, total=100, minutes=1000)
    names = [name for name, _ in calls]
    assert names.count("text_fresh") == 1
    assert names.count("text") == 2
    seconds = sum(s for name, s in calls if name == "text")
    assert seconds == pytest.approx(100 * 60 * 0.04, abs=1)
    done = len(calls)
    assert scenery_train.train(setting, total=100, minutes=1000)
    assert len(calls) == done


@pytest.mark.parametrize("stage", scenery_train.STAGES, ids=lambda s: s.name)
def test_every_stage_is_a_script_that_exists(stage: scenery_train.Stage) -> None:
    for device in ("cpu", "cuda"):
        setting = scenery_train.Setting(Path("runs"), device, 2, dry=True)
        line = setting.command_line(stage, 4.0)
        assert Path(line[1]).is_file()
        assert ("--seconds" in line) == bool(stage.share)
        assert "{" not in " ".join(line)


def test_the_product_reads_the_preview_decoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = scenery_preview.build().eval()
    save_file(scenery_preview.tensors(net), tmp_path / "tiny.safetensors")
    part = components(open_checkpoint(tmp_path / "tiny.safetensors"))["preview_vae"]
    read = load_tiny_decoder(part, device="cpu", dtype=torch.float32)
    latents = torch.randn(1, vae.LATENT_CHANNELS, 3, 2, 2)
    with torch.no_grad():
        wanted = scenery_preview.decode(net.half().float(), latents)
    assert wanted.shape == (1, 3, 17, 64, 64)
    got = torch.from_numpy(np.concatenate(list(read.stream(latents))))
    error = got.permute(3, 0, 1, 2).float() / 255 - wanted[0].clamp(0, 1)
    assert error.abs().max() < 0.01
