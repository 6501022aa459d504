"""Limits of a model's training: windows, other worlds, presets for other weights, its own parts."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from latent_ladder.checkpoints.scan import Library, scan
from latent_ladder.checkpoints.search_paths import EMBEDDED
from latent_ladder.checkpoints.selection import select_models
from latent_ladder.diagnostics.training_range import (
    TrainingRange,
    named_objects,
    training_range,
    with_windows,
)
from latent_ladder.errors import CheckpointNotFound
from latent_ladder.models.text_encoder.tokenizer import fold_case, load_tokenizer, unknown_words
from latent_ladder.pipeline.run import Prepared, prepare
from latent_ladder.request.model import Request
from latent_ladder.storage.artifact_store import Store

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def library() -> Library:
    return scan([EMBEDDED])


def prepared(library: Library, tmp_path: Path, **fields: Any) -> Prepared:
    request = Request.from_preset("pocket", **{"prompt": "a red ball rolls", "seed": 1, **fields})
    return prepare(request, library, Store(tmp_path / "store"))


def codes(one: Prepared) -> list[str]:
    return [warning.code for warning in one.warnings]


def test_the_range_of_the_pocket_and_of_published_models(library: Library) -> None:
    limits = training_range(select_models(library))
    assert (limits.seconds, limits.edge_px) == (Fraction(25, 24), 512)
    tiny = select_models(scan([GOLDEN]), {"checkpoint": "tiny-ltx-2.3.safetensors"})
    assert training_range(tiny).world is None


def test_a_long_clip_is_made_in_windows_of_the_trained_length(
    library: Library, tmp_path: Path
) -> None:
    one = prepared(library, tmp_path, duration_s=5.0)
    windows = one.request.resolved.windows
    assert windows is not None and windows.frames == 25
    (said,) = (w.message for w in one.warnings if w.code == "windows")
    assert "trained on clips of 1.04 s" in said
    assert Request.from_dict(one.request.to_dict()) == one.request


def test_windows_start_at_20_s_for_published_models() -> None:
    request = Request.from_preset("distilled", prompt="a cat", duration_s=19.9)
    assert with_windows(request, TrainingRange()) is request
    off = Request.from_preset("pocket", prompt="a ball", duration_s=5.0, windows="off")
    assert with_windows(off, TrainingRange(Fraction(1))) is off


def test_one_piece_beyond_the_range_is_warned_of(library: Library, tmp_path: Path) -> None:
    assert "too_long" in codes(prepared(library, tmp_path, duration_s=5.0, windows="off"))
    assert "edge_long" in codes(prepared(library, tmp_path, width=1280, height=704))
    assert codes(prepared(library, tmp_path)) == []


@pytest.mark.parametrize(
    ("prompt", "code", "said"),
    [
        ("a red ball and a blue star move up", "several_objects", "a ball and a star"),
        ("two stars rise", "several_objects", "stars"),
        ("a red ball above a green ball", "several_objects", "a ball"),
        ("一个红球", "unknown_words", "一个红球"),
        ("a red ball 🎈 rises", "unknown_words", "🎈"),
        ("a red ball rises 12 times", "unknown_words", "12"),
        ("a Dragon flies", "unknown_words", "dragon"),
    ],
)
def test_prompts_outside_its_world_are_warned_of(
    library: Library, tmp_path: Path, prompt: str, code: str, said: str
) -> None:
    found = [
        w.message for w in prepared(library, tmp_path, prompt=prompt).warnings if w.code == code
    ]
    assert len(found) == 1 and said in found[0]


@pytest.mark.parametrize(
    ("prompt", "count"),
    [
        ("a red ball rolls. The ball is on a floor.", 1),
        ("In front of hills, a blue block moves left.", 1),
        ("the red star does not move", 1),
        ("balls roll", 2),
        ("a ball and another ball", 2),
    ],
)
def test_objects_that_a_prompt_introduces(prompt: str, count: int) -> None:
    assert len(named_objects(prompt, ("ball", "star", "block"))) == count


def test_input_pictures_are_warned_of(library: Library, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (512, 512)).save(tmp_path / "photo.png")
    one = prepared(library, tmp_path, images=[{"file": str(tmp_path / "photo.png")}])
    assert "outside_world" in codes(one)


def test_capitals_are_read_as_the_words_that_were_learned(library: Library, tmp_path: Path) -> None:
    encoder = select_models(library).text_encoder
    assert fold_case("A RED Ball", encoder) == "A red ball"
    assert fold_case("The star rises. It is Yellow.", encoder) == "The star rises. It is yellow."
    assert unknown_words("RED Ball", encoder) == ()
    encode = load_tokenizer(encoder).encode
    assert encode(fold_case("a RED ball", encoder)) == encode("a red ball")
    keys = [
        prepared(library, tmp_path, prompt=p).plan.stages[0].key
        for p in ("a RED Ball", "a red ball")
    ]
    assert keys[0] == keys[1]


def test_case_stays_where_the_words_are_not_listed() -> None:
    encoder = select_models(scan([GOLDEN]), {"checkpoint": "tiny-ltx-2.3.safetensors"}).text_encoder
    assert fold_case("A RED Ball", encoder) == "A RED Ball"


def test_presets_for_other_weights_refuse_the_pocket(library: Library, tmp_path: Path) -> None:
    request = Request.from_preset("balanced", prompt="a cat", seed=1)
    with pytest.raises(CheckpointNotFound) as caught:
        prepare(request, library, Store(tmp_path))
    assert caught.value.exit_code == 3
    for role in ("transformer", "text encoder", "latent upsampler"):
        assert role in caught.value.message
    assert "ladder models get ltx-2.3" in str(caught.value.hint)


def test_the_pockets_parts_stay_together(tmp_path: Path) -> None:
    """Another text encoder that would fit, and another transformer, lie in the user's folder."""
    users = tmp_path / "models"
    for folder, file in (("text_encoders", "pocket-gemma-3"), ("loras", "pocket-distilled-lora")):
        (users / folder).mkdir(parents=True)
        shutil.copy(EMBEDDED / folder / f"{file}.safetensors", users / folder / "mine.safetensors")
    shutil.copytree(GOLDEN / "checkpoints", users / "checkpoints")
    one = prepared(scan([users, EMBEDDED]), tmp_path)
    models = one.plan.models
    parts = (models.transformer, models.text_encoder, models.video_vae, *models.upsamplers.values())
    assert all(part.file.path.is_relative_to(EMBEDDED) for part in parts)
    assert models.loras["distilled_lora"].file.path.is_relative_to(EMBEDDED)
    (said,) = (w.message for w in one.warnings if w.code == "models")
    assert "mine.safetensors" in said and "not used" in said
