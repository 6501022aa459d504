"""Automatic duration: the model predicts the length of a clip from its prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import model_folders
from helpers.goldens import Goldens
from helpers.model_folders import GOLDEN

from latent_ladder.checkpoints.selection import Library, scan
from latent_ladder.cli.commands.flag_values import parse_duration
from latent_ladder.errors import CheckpointNotFound, RequestError
from latent_ladder.latents.shapes import clip_frames
from latent_ladder.pipeline.predicted_length import predict_length
from latent_ladder.pipeline.preparation import Prepared, prepare
from latent_ladder.request.model import Request, override
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.artifact_store import Store


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return scan([model_folders.newest(tmp_path_factory.mktemp("models"))])


def automatic(prompt: str, **limits: float) -> Request:
    size = {"prompt": prompt, "width": 64, "height": 64, "auto_duration": limits}
    return Request.from_dict(override(read_preset("ltx-2.5-distilled-lora").fields, size))


def test_the_length_follows_from_the_prompt(
    golden_2_5: Goldens, library: Library, tmp_path: Path
) -> None:
    """Planned for the longest, then predicted; the run finds the encoded prompt in the store."""
    prompt, store = golden_2_5("text.tokens.p0").params["prompt"], Store(tmp_path)
    request = automatic(prompt, min_s=0.3, max_s=12.0)
    assert request.frames == 281  # the 8k + 1 below 12 s at 24 fps
    assert Request.from_toml(request.to_toml()) == request
    first = prepare(request, library, store, device="cpu")
    assert _warning(first).endswith("planned for the longest, 11.71 s")
    seconds = float(golden_2_5("duration.seconds").outputs["both"].reshape(-1)[0])
    found = predict_length(first)
    expected = clip_frames(seconds, 24, 0.3, 12.0)
    assert (found.request.frames, found.request.auto_duration) == (expected, None)
    assert f"the model suggests {seconds:.2f} s" in _warning(found)
    assert next(s for s in found.plan.stages if s.kind == "prompt").stored
    again = predict_length(prepare(request, library, store, device="cpu"))
    assert again.request == found.request
    shorter = predict_length(
        prepare(automatic(prompt, min_s=0.1, max_s=0.4), library, store, device="cpu")
    )
    assert shorter.request.frames == 9


def _warning(prepared: Prepared) -> str:
    (found,) = (w.message for w in prepared.warnings if w.code == "auto_duration")
    return found


def test_what_is_missing_is_said_before_anything_loads(tmp_path: Path, library: Library) -> None:
    store, request = Store(tmp_path / "store"), automatic("a red ball")
    without = tmp_path / "models"
    model_folders.newest(without)
    next(without.glob("model_patches/*")).unlink()
    with pytest.raises(CheckpointNotFound, match="no duration head found") as raised:
        prepare(request, scan([without]), store, device="cpu")
    assert "ltx-2.5-duration-head-bf16.safetensors (0.004 GB" in (raised.value.hint or "")
    older = override(request.to_dict(), {"preset": "distilled-lora"})
    older["models"] = {"checkpoint": "tiny-ltx-2.3.safetensors"}
    with pytest.raises(RequestError, match=r"needs LTX-2\.5, the transformer is LTX-2\.3"):
        prepare(Request.from_dict(older), scan([GOLDEN]), store, device="cpu")


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("4.5", {"duration_s": 4.5}),
        ("auto", {"auto_duration": {}}),
        ("auto:2-10", {"auto_duration": {"min_s": 2.0, "max_s": 10.0}}),
        ("auto:2s-10s", {"auto_duration": {"min_s": 2.0, "max_s": 10.0}}),
        (None, {}),
    ],
)
def test_the_flag(text: str | None, fields: dict[str, Any]) -> None:
    assert parse_duration(text) == fields


def test_a_flag_with_one_limit_is_refused() -> None:
    with pytest.raises(RequestError, match="no shortest and longest") as raised:
        parse_duration("auto:5")
    assert raised.value.hint == "use --duration auto:2-10"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 25}, "by auto_duration and frames at once"),
        ({"duration_s": 2.0}, "by auto_duration and duration_s at once"),
        ({"auto_duration": {"min_s": 9.0, "max_s": 2.0}}, "min_s=9 is above max_s=2"),
    ],
)
def test_lengths_that_exclude_each_other(changes: dict[str, Any], message: str) -> None:
    fields = automatic("a red ball").to_dict()
    with pytest.raises(RequestError, match=message):
        Request.from_dict(fields | changes)


def test_a_given_length_replaces_an_automatic_one_and_the_reverse() -> None:
    fields = automatic("a red ball").to_dict()
    assert Request.from_dict(override(fields, {"frames": 25})).auto_duration is None
    assert Request.from_dict(override(fields, {"duration_s": 2.0})).frames == 49
    slower = Request.from_dict(override(fields, {"fps": "12"}))
    assert (slower.auto_duration is not None, slower.frames) == (True, 233)
