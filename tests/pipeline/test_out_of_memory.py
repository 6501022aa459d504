"""Out-of-memory: memory is freed, the next fallback used, a warning given, the clip unchanged.

The allocator's own exception is raised at the places where a real card raises it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from latent_ladder import Request
from latent_ladder.checkpoints.scan import Library
from latent_ladder.checkpoints.selection import EMBEDDED, scan, select_models
from latent_ladder.errors import MemoryBudgetError
from latent_ladder.media.video_reader import read_frames
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.memory.oom import is_out_of_memory
from latent_ladder.memory.planner import GIB
from latent_ladder.models.video_vae.vae import decode_video
from latent_ladder.pipeline.events import Warned
from latent_ladder.pipeline.run import Result, RunOptions, execute, prepare
from latent_ladder.pipeline.stages import decoding, denoising
from latent_ladder.sampling.denoise import sample
from latent_ladder.storage.artifact_store import Store

pytestmark = pytest.mark.slow

FIELDS = {
    "prompt": "a red ball rolls to the right",
    "seed": 7,
    "width": 128,
    "height": 128,
    "frames": 9,
    "fps": "24",
    "stages": [
        {"kind": "base", "schedule": {"steps": 2}, "guidance": {"video": {"cfg": 3.0}}},
        {"kind": "upsample"},
        {
            "kind": "refine",
            "sigmas": [0.9, 0.5, 0.0],
            "loras": [{"role": "distilled", "strength": 1.0}],
        },
    ],
}


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([EMBEDDED])


def make(
    library: Library,
    folder: Path,
    name: str,
    store: Store | None = None,
    side: int = 128,
    frames: int = 9,
    **memory: Any,
) -> Result:
    options = MemoryOptions(**memory)
    fields = {**FIELDS, "width": side, "height": side, "frames": frames}
    store = store or Store(folder / f"store-{name}")
    prepared = prepare(Request.from_dict(fields), library, store, options, "cpu")
    return execute(prepared, folder / f"{name}.mp4", RunOptions(device="cpu", memory=options))


def pixels(result: Result) -> bytes:
    return b"".join(frame.tobytes() for frame in read_frames(result.output))


def memory_of(result: Result) -> dict[str, str]:
    return {stage.stage: stage.memory for stage in result.stages}


@pytest.fixture(scope="module")
def whole(library: Library, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return make(library, tmp_path_factory.mktemp("whole"), "whole")


class Failing:
    """Raises ``error`` at the first ``times`` calls, then calls ``real``."""

    def __init__(self, real: Callable[..., Any], times: int, error: Exception) -> None:
        self.real, self.left, self.error, self.calls = real, times, error, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.left:
            self.left -= 1
            raise self.error
        return self.real(*args, **kwargs)


OUT = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_blocks_from_disk_give_the_same_clip(
    whole: Result, library: Library, tmp_path: Path
) -> None:
    streamed = make(library, tmp_path, "disk", offload="disk")
    assert "the others from disk" in memory_of(streamed)["base"]
    assert memory_of(whole)["base"] == "resident"
    assert pixels(streamed) == pixels(whole)


@pytest.mark.parametrize("times", [1, 3])
def test_a_stage_that_runs_out_goes_down_the_ladder(
    whole: Result, library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    failing = Failing(sample, times, OUT)
    monkeypatch.setattr(denoising, "sample", failing)
    result = make(library, tmp_path, "out")
    assert failing.calls == times + 2, "base again and again, then refine"
    said = [w.message for w in result.warnings if w.code == "out_of_memory"]
    assert len(said) == times
    assert all(text.startswith("base ran out of memory (") for text in said)
    assert memory_of(result)["base"] != memory_of(whole)["base"]
    assert memory_of(result)["refine"] == memory_of(whole)["refine"]
    kept = json.loads(json.dumps(result.to_dict()))["stages"]
    assert next(s for s in kept if s["stage"] == "base")["memory"] == memory_of(result)["base"]


def test_the_bottom_of_the_ladder_is_an_error_and_loses_nothing(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = sample, []

    def only_base(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > 1:
            raise OUT
        return real(*args, **kwargs)

    store = Store(tmp_path / "store")
    monkeypatch.setattr(denoising, "sample", only_base)
    with pytest.raises(MemoryBudgetError, match="refine"):
        make(library, tmp_path, "bottom", store)
    assert len(calls) > 3
    monkeypatch.setattr(denoising, "sample", real)
    result = make(library, tmp_path, "bottom", store)
    assert {s.stage: s.reused for s in result.stages}["base"], "what was done is kept"


@pytest.mark.parametrize("asked", [{}, {"grid": [2, 2]}], ids=["whole", "grid"])
def test_decoding_that_runs_out_uses_smaller_tiles_and_says_so(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    monkeypatch.setitem(FIELDS, "decode", asked)
    failing = Failing(decode_video, 1, RuntimeError("CUDA out of memory"))
    monkeypatch.setattr(decoding, "decode_video", failing)
    result = make(library, tmp_path, "tiles", side=192)
    assert "tiles of" in memory_of(result)["decode and write"]
    assert any("decode ran out of memory" in w.message for w in result.warnings)
    assert result.frames == 9


def test_smaller_tiles_are_not_used_where_the_picture_must_not_change(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "decode_video", Failing(decode_video, 9, OUT))
    with pytest.raises(MemoryBudgetError, match="decode"):
        make(library, tmp_path, "same", changes=frozenset())
    assert not (tmp_path / "same.mp4").exists()


def test_other_failures_are_not_taken_for_a_lack_of_memory(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("device-side assert triggered")
    assert not is_out_of_memory(error)
    monkeypatch.setattr(denoising, "sample", Failing(sample, 1, error))
    with pytest.raises(RuntimeError, match="device-side"):
        make(library, tmp_path, "other")


def test_a_budget_that_nothing_fits_is_refused_before_anything_is_loaded(
    library: Library, tmp_path: Path
) -> None:
    events: list[Warned] = []
    with pytest.raises(MemoryBudgetError, match=r"needs .* MiB .* the budget is .* KiB"):
        make(library, tmp_path, "tiny", vram=1e6 / GIB, changes=frozenset())
    assert not events
    assert not (tmp_path / "store-tiny").exists() or not any(
        (tmp_path / "store-tiny").rglob("*.safetensors")
    )


def test_a_budget_below_the_decoders_need_is_met_with_tiles_and_said(
    library: Library, tmp_path: Path
) -> None:
    """512 x 512 takes 127 MiB at once, 95 in tiles of 256 px."""
    result = make(library, tmp_path, "tiled", side=512, frames=1, vram=97 / 1024)
    assert memory_of(result)["decode and write"] == "resident, tiles of 256 px"
    assert any("decoded in tiles of 256 px to fit" in w.message for w in result.warnings)
    at_once = make(
        library, tmp_path, "at-once", Store(tmp_path / "store-tiled"), side=512, frames=1
    )
    assert all(s.reused for s in at_once.stages[:-1]), "only the decoding differs"
    one, other = (next(iter(read_frames(r.output))).astype(int) for r in (result, at_once))
    difference = abs(one - other)
    assert difference.mean() < 2 < difference.max(), "tiles change a little, near their edges"


def test_a_budget_that_tiles_cannot_meet_is_refused_with_what_it_takes(
    library: Library, tmp_path: Path
) -> None:
    with pytest.raises(MemoryBudgetError, match=r"decode at 512x512x1 needs 78.* 70.0 MiB"):
        make(library, tmp_path, "less", side=512, frames=1, vram=70 / 1024)


COPIES = 38
"""Copies of the pocket's 6 blocks: a third of this transformer is larger than the decoder."""


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The pocket model with 228 blocks; the added ones change little."""
    folder = tmp_path_factory.mktemp("deep")
    shutil.copytree(EMBEDDED, folder, dirs_exist_ok=True)
    (path,) = (folder / "checkpoints").iterdir()
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(path)
    blocks = "model.diffusion_model.transformer_blocks."
    for name in [n for n in tensors if n.startswith(blocks)]:
        number, _, rest = name.removeprefix(blocks).partition(".")
        quiet = rest.endswith(("to_out.0.weight", "to_out.0.bias", "net.2.weight", "net.2.bias"))
        added = tensors[name] * (0.02 if quiet else 1.0)
        for copy in range(1, COPIES):
            tensors[f"{blocks}{int(number) + 6 * copy}.{rest}"] = added.clone()
    config = json.loads(metadata["config"])
    config["transformer"]["num_layers"] = 6 * COPIES
    save_file(tensors, path, {**metadata, "config": json.dumps(config)})
    return scan([folder])


def test_a_third_of_the_model_as_budget_gives_the_same_clip(deep: Library, tmp_path: Path) -> None:
    whole = make(deep, tmp_path, "whole", side=64)
    third = select_models(deep).transformer.nbytes / 3
    small = make(deep, tmp_path, "third", side=64, vram=third / GIB)
    assert memory_of(whole)["base"] == memory_of(whole)["refine"] == "resident"
    for stage in ("base", "refine"):
        assert "blocks resident, the others from disk" in memory_of(small)[stage]
    assert "tiles" not in memory_of(small)["decode and write"]
    assert pixels(small) == pixels(whole)
