"""Whole commands on a pretended GPU give the numbers of the CPU, whatever is offloaded.

Both runs compute in float32. Kernels and chunks of the CPU are not those of a GPU, so numbers
differ by rounding. In bfloat16, in which GPUs compute, one clip is compared up to its latents: the
decoder of random weights enlarges what bfloat16 rounds; that it computes the same, float32 shows.

With ``LADDER_TESTS_ON_CARD=1`` the card is not pretended: the same commands run on the GPU of this
machine, and tests that need the journal of a pretended one are left out.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.command_line import TINY
from helpers.tiny_clips import GOLDEN
from helpers.workflow_graphs import ONE_STAGE, graph
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from latent_ladder.cli.app import app
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.models import device
from latent_ladder.pipeline import events
from latent_ladder.storage.artifact_store import Store
from pretended import guard, twin
from pretended.standins import Card, Machine

ON_CARD = bool(os.environ.get("LADDER_TESTS_ON_CARD"))
REASON = None if ON_CARD else guard.reason_against()
needs_journal = pytest.mark.skipif(ON_CARD, reason="asks what a pretended card noted")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

MAKE = ("make", "a red ball rolls to the right", "--seed", "7", *TINY, "--size", "64x64")
STEPS = ("--set", "base.steps=2", "--set", "refine.steps=1")
SHORT = ("--frames", "9", *STEPS)
CLIP = (*MAKE, *SHORT)
ATOL = 1e-3
"""Most that artefacts may differ in float32."""
SHORTAGE_AFTER = 30
"""Allocations of a stage before the one that fails."""
PIXELS = 0.5
"""Most that frames may differ on average, of 255."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a picture, a sound, a video and an IC-LoRA."""
    folder = tmp_path_factory.mktemp("runs") / "inputs"
    folder.mkdir()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(folder / "a.png")
    pixels = np.arange(9, dtype=np.uint8)[:, None, None, None] * 20 + np.zeros((1, 64, 64, 3), "u1")
    tone = np.sin(np.arange(18000) / 25).astype(np.float32) * 0.3
    sound = (np.stack([tone, tone]), 48000)
    write_video(folder / "v.mp4", [pixels], VideoSpec((64, 64), Fraction(24)), audio=sound)
    with safe_open(GOLDEN / "loras" / "tiny-distilled-lora.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        facts = {**(opened.metadata() or {}), "reference_downscale_factor": "2"}
    (folder / "loras").mkdir()
    save_file(tensors, folder / "loras" / "my-ic-lora.safetensors", facts)
    (folder / "graph.json").write_text(json.dumps(graph(ONE_STAGE).to_api()))
    return folder


def _fill(word: str, places: Mapping[str, Path]) -> str:
    for name, path in places.items():
        word = word.replace(name, str(path))
    return word


def run(folder: Path, name: str, words: tuple[str, ...]) -> Path:
    """Run ``ladder`` in this process on a device; returns the folder of its results."""
    work = folder / name
    work.mkdir(exist_ok=True)
    places = {"{in}": folder / "inputs", "{work}": work}
    filled = [_fill(word, places) for word in words]
    tail = ["--device", name, "--store", str(work / "store"), "-o"]
    folders = ("draft", "sweep", "workflow")
    special = {"refine": "refined.mp4", **dict.fromkeys(folders, "out")}
    target = special.get(words[0], "out/%05d.png")
    done = CliRunner().invoke(app, [*filled, *tail, str(work / target)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output + done.stderr
    return work


def compare(work: Path, cpu: Path, atol: float = ATOL, frames: bool = True) -> int:
    """Compare the artefacts and pictures of two runs; returns the number of artefacts compared.

    Clips are written as pictures: H.264 enlarges the last bit of a frame of noise.
    """
    found, expected = Store(work / "store"), Store(cpu / "store")
    keys = {entry.key for entry in found.entries()}
    assert keys == {entry.key for entry in expected.entries()}
    for key in sorted(keys):
        made, wanted = found.get(key), expected.get(key)
        assert made is not None and wanted is not None
        tensors = wanted.load()
        for name, tensor in made.load().items():
            torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=atol, msg=name)
    files = sorted(work.rglob("*.png"))
    assert len(files) == len(sorted(cpu.rglob("*.png")))
    # a live preview shows the step at which it was due, by the clock
    for file in (f for f in files if frames and f.name != "live.png"):
        one, other = (np.asarray(Image.open(f), int) for f in (file, cpu / file.relative_to(work)))
        assert np.abs(one - other).mean() < PIXELS, file.name
    return len(keys)


class Runs:
    """Commands run on the CPU, each once, and on pretended cards."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[tuple[str, ...], ...], Path] = {}

    def on_cpu(self, *commands: tuple[str, ...]) -> Path:
        """Folder of the results of commands that follow each other."""
        if commands not in self._made:
            folder = Path(tempfile.mkdtemp(dir=self._folder))
            (folder / "inputs").symlink_to(self._folder / "inputs")
            for command in commands:
                made = run(folder, "cpu", command)
            self._made[commands] = made
        return self._made[commands]

    def compare(
        self,
        folder: Path,
        *commands: tuple[str, ...],
        least: int = 3,
        device: str = "cuda",
        extra: tuple[str, ...] = (),
        fails_in: tuple[str, ...] = (),
        **limits: Any,
    ) -> twin.Log:
        """Run commands on a card too and compare; returns the journal of the card."""
        cpu = self.on_cpu(*commands)
        (folder / "inputs").symlink_to(self._folder / "inputs")
        if ON_CARD:
            for command in commands:
                work = run(folder, device, (*command, *extra))
            assert torch.cuda.max_memory_allocated() > 0
            assert compare(work, cpu, **limits) >= least
            return twin.Log(Machine())
        with twin.pretend(Machine([Card(), Card()])) as log, _stages(log):
            log.machine.on_memory.append(_Shortage(log, fails_in))
            for command in commands:
                work = run(folder, device, (*command, *extra))
        assert compare(work, cpu, **limits) >= least
        assert not log.in_blocks, f"waits inside a block: {dict(log.in_blocks)}"
        assert sum(log.launches.values()) > 100
        return log


@pytest.fixture(scope="module")
def runs(inputs: Path) -> Runs:
    """The commands that were run, for all tests."""
    return Runs(inputs.parent)


@pytest.fixture
def compared(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., twin.Log]:
    """Function that runs a command on CPU and card, both in float32, and compares."""
    monkeypatch.setattr(device, "compute_dtype", lambda _: torch.float32)

    def both(*words: str, **options: Any) -> twin.Log:
        return runs.compare(tmp_path, words, **options)

    return both


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


class _Shortage:
    """Listener of a machine: one allocation in each of the named stages fails."""

    def __init__(self, log: twin.Log, stages: tuple[str, ...]) -> None:
        self._log, self._left, self._count = log, list(stages), 0

    def __call__(self, _: int) -> None:
        if not self._left or self._log.stage != self._left[0]:
            return
        self._count += 1
        if self._count == SHORTAGE_AFTER:
            self._count = 0
            self._log.machine.failed.append(self._left.pop(0))
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")


class _stages:
    """Names the stage of a journal after the event that announces it."""

    def __init__(self, log: twin.Log) -> None:
        self._log, self._patch = log, pytest.MonkeyPatch()

    def __enter__(self) -> None:
        log, real = self._log, events.StageStarted.__init__

        def started(event: Any, *args: Any, **kwargs: Any) -> None:
            real(event, *args, **kwargs)
            log.stage = event.stage

        self._patch.setattr(events.StageStarted, "__init__", started)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


Compared = Callable[..., twin.Log]
GUIDED = (*CLIP, "--set", "base.guidance.video.cfg=3")


@pytest.mark.parametrize("offload", ["none", "stream", "disk"])
def test_a_clip_with_any_offload(compared: Compared, offload: str) -> None:
    """Guided base stage, upsampling, a refine stage with a LoRA, sound, decoding and metrics."""
    log = compared(*GUIDED, extra=("--offload", offload))
    pinned = sum(n for (_, kind, _), n in log.copies.items() if kind == "to device, pinned")
    assert ON_CARD or (pinned > 0) == (offload != "none")


@needs_journal
@pytest.mark.long
def test_a_clip_on_the_second_card(compared: Compared) -> None:
    log = compared(*GUIDED, device="cuda:1")
    assert log.machine.cards[0].peak == 0
    assert log.machine.cards[1].peak > 0


@needs_journal
def test_a_card_that_runs_out_of_memory_while_upsampling(compared: Compared) -> None:
    """The transformer is unloaded and the stage made again: the same clip."""
    log = compared(*GUIDED, fails_in=("upsample",))
    assert log.machine.failed == ["upsample"]


def test_bfloat16_gives_the_latents_of_the_cpu(
    tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "compute_dtype", lambda _: torch.bfloat16)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "inputs").symlink_to(inputs)
    (tmp_path / "card").mkdir()
    Runs(tmp_path / "runs").compare(tmp_path / "card", GUIDED, atol=2e-5, frames=False)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ("--image", "{in}/a.png", "--image", "{in}/a.png:last", "--audio-in", "{in}/v.mp4",
             "--preview"), id="keyframes, audio-in, live preview",
        ),
        pytest.param(("--video", "{in}/v.mp4", "--denoise", "0.6"), id="v2v"),
        pytest.param(("--video", "{in}/v.mp4", "--region", "0.1-0.3"), id="retake",
                     marks=pytest.mark.long),
        pytest.param(("--video", "{in}/v.mp4", "--extend", "0.34s"), id="extend",
                     marks=pytest.mark.long),
    ],
)  # fmt: skip
def test_inputs(compared: Compared, words: tuple[str, ...]) -> None:
    frames = () if "--extend" in words else ("--frames", "9")
    compared(*MAKE, *frames, *STEPS, *words)


@pytest.mark.long
def test_an_ic_lora(compared: Compared) -> None:
    loras = '[{name="my-ic-lora.safetensors"}]'
    words = ("--models", "{in}", "--video", "{in}/v.mp4", "--mode", "reference")
    compared(*CLIP, *words, "--set", f"base.loras={loras}")


def test_long_windows(compared: Compared) -> None:
    windows = "windows={frames=17,overlap_frames=8}"
    compared(*MAKE, "--frames", "25", *STEPS, "--set", windows)


@pytest.mark.long
def test_a_tiled_refine(compared: Compared) -> None:
    tiles = "refine.tiles={px=64,overlap_px=32}"
    compared(*CLIP, "--size", "128x128", "--set", tiles)


def test_a_workflow(compared: Compared) -> None:
    compared("workflow", "run", "{in}/graph.json", least=1)


@pytest.mark.long
@pytest.mark.usefixtures("compared")
def test_drafts_and_a_refined_one(runs: Runs, tmp_path: Path) -> None:
    draft = ("draft", *CLIP[1:], "--seeds", "2", "--yes")
    runs.compare(tmp_path, draft, ("refine", "last:1", *TINY[:2]))


@pytest.mark.long
def test_a_sweep(compared: Compared) -> None:
    compared("sweep", *CLIP[1:], "--set", "base.guidance.video.cfg=1,3", "--yes")


def test_upscaling_a_video(compared: Compared) -> None:
    tiny = (*TINY[:2], *TINY[4:], "--set", f"models.checkpoint={TINY[3]}")
    compared("upscale", "{in}/v.mp4", "--seed", "7", *tiny, "--set", "refine.steps=1", least=1)


@needs_journal
def test_waits_and_pageable_copies_of_each_stage_are_known(compared: Compared) -> None:
    """Weights and constants are copied once; nothing waits per block, once per step at most."""
    log = compared(*GUIDED, extra=("--offload", "stream"))
    found: dict[str, set[str]] = {}
    for stage, reason, place in log.syncs:
        short = reason.removeprefix("copy ").removesuffix(", pageable")
        found.setdefault(stage, set()).add(f"{place.partition(':')[0]}: {short}")
    assert found == WAITS
    copies = {(stage, place) for stage, kind, place in log.copies if kind.endswith("pageable")}
    assert copies <= {(stage, place) for stage, _, place in log.syncs}
    steps = sum(n for (stage, reason, place), n in log.syncs.items()
                if stage == "base" and "predict" in place)  # fmt: skip
    assert steps <= 2


WAITS: dict[str, set[str]] = {
    "prompt": {
        "models/text_encoder/connectors.py: to device",
        "models/text_encoder/gemma.py: to device",
        "models/weights/loading.py: to device",
        "storage/artifact_store.py: to host",
    },
    "negative prompt": {
        "storage/artifact_store.py: to host",
    },
    "base": {
        "models/accelerator.py: synchronize",
        "models/text_encoder/conditioning.py: to device",
        "models/transformer/noise_levels.py: aten::nonzero",
        "models/transformer/noise_levels.py: aten::unique_dim",
        "models/transformer/noise_levels.py: to device",
        "models/transformer/noise_levels.py: tolist",
        "models/transformer/rope_tables.py: to device",
        "models/weights/block_placement.py: to device",
        "models/weights/loading.py: to device",
        "pipeline/start_state.py: aten::_local_scalar_dense",
        "pipeline/temporal_windows.py: to device",
        "pipeline/temporal_windows.py: to host",
        "sampling/denoise.py: aten::_local_scalar_dense",
        "sampling/denoise.py: to device",
    },
    "upsample": {
        "models/latent_upsampler/upsample.py: to device",
        "models/weights/loading.py: to device",
        "pipeline/stages/latent_upsampling.py: to device",
        "pipeline/temporal_windows.py: to host",
    },
    "refine": {
        "models/accelerator.py: synchronize",
        "models/lora/build.py: to device",
        "models/lora/build.py: tolist",
        "models/text_encoder/conditioning.py: to device",
        "models/transformer/noise_levels.py: aten::nonzero",
        "models/transformer/noise_levels.py: aten::unique_dim",
        "models/transformer/noise_levels.py: to device",
        "models/transformer/noise_levels.py: tolist",
        "models/transformer/rope_tables.py: to device",
        "pipeline/start_state.py: aten::_local_scalar_dense",
        "pipeline/temporal_windows.py: to device",
        "pipeline/temporal_windows.py: to host",
        "sampling/denoise.py: aten::_local_scalar_dense",
        "sampling/denoise.py: to device",
    },
    "sound": {
        "models/audio_vae/vae.py: to device",
        "models/audio_vae/vae.py: to host",
        "models/audio_vae/vocoder.py: to device",
        "models/vae_loading.py: to device",
        "models/weights/loading.py: to device",
    },
    "decode and write": {
        "models/host_frames.py: Event.synchronize",
        "models/vae_loading.py: to device",
        "models/weights/loading.py: to device",
        "pipeline/stages/decoding.py: to device",
    },
}
"""Waits of the host by stage: module and reason; pageable copies are "to device" and "to host"."""
