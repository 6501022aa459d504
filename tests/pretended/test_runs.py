"""Whole commands on a pretended GPU give the numbers of the CPU, whatever is offloaded.

Both runs compute in bfloat16, so stored latents are the same bits. Decoders take another way on the
CPU: the sound, in float32, may differ in its last bits, and the frames by what bfloat16 rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
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
from latent_ladder.media.video_reader import read_frames
from latent_ladder.media.video_writer import VideoSpec, write_video
from latent_ladder.models import device
from latent_ladder.pipeline import events
from latent_ladder.storage.artifact_store import Store
from pretended import guard, twin
from pretended.standins import Card, Machine

REASON = guard.reason_against()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(REASON is not None, reason=str(REASON))]

MAKE = ("make", "a red ball rolls to the right", "--seed", "7", *TINY, "--size", "64x64")
ROUNDED = 16
"""Mean difference of pixel values, of 255, that the untrained decoder makes of its rounding; the
same networks in float32 are compared by :func:`test_decoders_in_float32`."""
SHORT = ("--frames", "9", "--set", "base.steps=2")
CLIP = (*MAKE, *SHORT)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a picture, a sound, a video and an IC-LoRA."""
    folder = tmp_path_factory.mktemp("inputs")
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


def run(folder: Path, name: str, words: tuple[str, ...]) -> Path:
    """Run ``ladder`` in this process on a device; returns the folder of its results."""
    work = folder / name
    work.mkdir(exist_ok=True)
    filled = [word.replace("{in}", str(folder / "inputs")) for word in words]
    tail = ["--device", name, "--store", str(work / "store"), "-o"]
    target = "out" if words[0] in ("draft", "sweep", "workflow") else "out.mp4"
    done = CliRunner().invoke(app, [*filled, *tail, str(work / target)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return work


def compare(work: Path, cpu: Path, atol: float) -> int:
    """Compare the artefacts and frames of two runs; returns the number of artefacts compared."""
    found, expected = Store(work / "store"), Store(cpu / "store")
    keys = {entry.key for entry in found.entries()}
    assert keys == {entry.key for entry in expected.entries()}
    for key in sorted(keys):
        one, other = found.get(key), expected.get(key)
        assert one is not None and other is not None
        tensors = other.load()
        for name, tensor in one.load().items():
            torch.testing.assert_close(tensor, tensors[name], rtol=0, atol=atol, msg=name)
    for file in sorted(work.rglob("*.mp4")):
        frames = zip(read_frames(file), read_frames(cpu / file.relative_to(work)), strict=True)
        for frame, wanted in frames:
            difference = np.abs(frame.astype(int) - wanted.astype(int))
            assert difference.mean() < ROUNDED, file.name
    return len(keys)


@pytest.fixture
def compared(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., twin.Log]:
    """Function that runs a command on CPU and card and compares; returns the card's journal."""
    monkeypatch.setattr(device, "compute_dtype", lambda _: torch.bfloat16)
    (tmp_path / "inputs").symlink_to(inputs)

    def both(
        *words: str, least: int = 3, name: str = "cuda", extra: Any = (), atol: float = 2e-5
    ) -> twin.Log:
        cpu = run(tmp_path, "cpu", words)
        with twin.pretend(Machine([Card(), Card()])) as log, _stages(log):
            work = run(tmp_path, name, (*words, *extra))
        assert compare(work, cpu, atol) >= least
        assert not log.in_blocks, f"waits inside a block: {dict(log.in_blocks)}"
        assert sum(log.launches.values()) > 100
        return log

    return both


@pytest.fixture(autouse=True)
def _no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


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


@pytest.mark.parametrize("offload", ["none", "stream", "disk"])
def test_a_clip_with_any_offload(compared: Compared, offload: str) -> None:
    log = compared(*CLIP, "--set", "base.guidance.video.cfg=3", extra=("--offload", offload))
    pinned = sum(n for (_, kind, _), n in log.copies.items() if kind == "to device, pinned")
    assert (pinned > 0) == (offload != "none")


def test_a_clip_on_the_second_card(compared: Compared) -> None:
    log = compared(*CLIP, name="cuda:1")
    assert log.machine.cards[0].peak == 0
    assert log.machine.cards[1].peak > 0


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("--image", "{in}/a.png"), id="image"),
        pytest.param(("--image", "{in}/a.png", "--image", "{in}/a.png:last"), id="keyframes"),
        pytest.param(("--audio-in", "{in}/v.mp4"), id="audio-in"),
        pytest.param(("--video", "{in}/v.mp4", "--denoise", "0.6"), id="v2v"),
        pytest.param(("--video", "{in}/v.mp4", "--region", "0.1-0.3"), id="retake"),
        pytest.param(("--video", "{in}/v.mp4", "--extend", "0.34s"), id="extend"),
        pytest.param(("--preview", "{in}/../p.png"), id="live preview"),
    ],
)
def test_inputs(compared: Compared, words: tuple[str, ...]) -> None:
    is_longer = "--extend" in words  # encoded in other chunks than on the CPU
    frames = () if is_longer else ("--frames", "9")
    atol = 0.1 if is_longer else 2e-5
    compared(*MAKE, *frames, "--set", "base.steps=2", *words, atol=atol)


def test_an_ic_lora(compared: Compared) -> None:
    loras = '[{name="my-ic-lora.safetensors"}]'
    words = ("--models", "{in}", "--video", "{in}/v.mp4", "--mode", "reference")
    compared(*CLIP, *words, "--set", f"base.loras={loras}")


def test_long_windows(compared: Compared) -> None:
    windows = "windows={frames=17,overlap_frames=8}"
    compared(*MAKE, "--frames", "25", "--set", "base.steps=2", "--set", windows)


def test_a_tiled_refine(compared: Compared) -> None:
    tiles = "refine.tiles={px=64,overlap_px=32}"
    compared(*CLIP, "--size", "128x128", "--set", tiles)


@pytest.mark.parametrize("name", ["Q8_0.gguf", "fp8.safetensors"])
@pytest.mark.parametrize("offload", ["none", "stream"])
def test_quantised_files(compared: Compared, name: str, offload: str) -> None:
    words = ("--set", f"models.transformer=tiny-ltx-2.3-{name}", "--set", "base.steps=2")
    alone = (*words, "--set", "refine.loras=[]")
    compared(*MAKE, "--frames", "9", *alone, extra=("--offload", offload))


def test_a_workflow(compared: Compared) -> None:
    compared("workflow", "run", "{in}/graph.json", least=1)


def test_drafts(compared: Compared) -> None:
    compared("draft", *CLIP[1:], "--seeds", "2", "--yes")


def test_a_sweep(compared: Compared) -> None:
    compared("sweep", *CLIP[1:], "--set", "base.guidance.video.cfg=1,3", "--yes")


def test_upscaling_a_video(compared: Compared) -> None:
    compared("upscale", "{in}/v.mp4", least=1)


def test_reruns_of_a_stage_alone(compared: Compared, tmp_path: Path) -> None:
    """Refining again from stored latents: other stages are reused on both devices."""
    compared(*CLIP)
    for name in ("cpu", "cuda"):
        (tmp_path / name / "out.mp4").unlink()
    compared(*CLIP, "--set", "refine.steps=1")


def test_decoders_in_float32(compared: Compared, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "compute_dtype", lambda _: torch.float32)
    monkeypatch.setitem(globals(), "ROUNDED", 0.5)
    compared(*CLIP, atol=1e-3)


def test_waits_of_a_sampling_stage_are_known(compared: Compared) -> None:
    """Weights and constants are copied once; nothing waits per block, little per step."""
    log = compared(*CLIP)
    places = {place for stage, _, place in log.syncs if stage == "base"}
    assert {place.partition(":")[0] for place in places} <= KNOWN_WAITS, places


KNOWN_WAITS = {
    "models/weights/loading.py", "models/lora/build.py", "models/text_encoder/conditioning.py",
    "pipeline/temporal_windows.py", "pipeline/start_state.py", "sampling/denoise.py",
    "models/transformer/noise_levels.py", "models/transformer/rope_tables.py",
    "storage/artifact_store.py", "models/transformer/model.py", "models/accelerator.py",
}  # fmt: skip
