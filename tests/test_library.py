"""Which file plays which role."""

from __future__ import annotations

import shutil
from fractions import Fraction

import pytest
import torch
from safetensors.torch import load_file, save_file

from latent_ladder.checkpoints.library import EMBEDDED, model_folders, scan, select
from latent_ladder.errors import CheckpointNotFound, UnknownLayout, UnsupportedQuantization

FILES = {
    "a.safetensors": "checkpoints/tiny-ltx-2.3.safetensors",
    "wrong/place/b.safetensors": "text_encoders/tiny-gemma-3.safetensors",
    "checkpoints/c.safetensors": "latent_upscale_models/tiny-spatial-x2.safetensors",
    "loras/sub/some-distilled.safetensors": "loras/tiny-distilled-lora.safetensors",
}


@pytest.fixture
def folder(tmp_path, golden):
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(golden.path(source), tmp_path / name)
    return tmp_path


def test_roles_come_from_content_not_from_names_or_folders(folder):
    models = select(scan([folder]))
    assert models.family == "2.3"
    assert models.text_encoder.file.path.name == "b.safetensors"
    assert models.upsamplers[("spatial", Fraction(2))].file.path.name == "c.safetensors"
    assert set(models.loras) == {
        "loras/sub/some-distilled.safetensors",
        "some-distilled.safetensors",
        "distilled_lora",
    }
    assert models.has_audio


def test_a_missing_part_is_named_with_file_folder_and_publisher(folder):
    (folder / "wrong/place/b.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match="no text encoder found") as raised:
        select(scan([folder]))
    for word in ("gemma_3_12B_it", "text_encoders", "Comfy-Org/ltx-2"):
        assert word in raised.value.hint


def test_nothing_at_all(tmp_path):
    with pytest.raises(CheckpointNotFound, match="no transformer found"):
        select(scan([tmp_path]))


def test_quantised_weights_are_refused_by_name(folder, golden):
    path = folder / "checkpoints" / "fp8.safetensors"
    tensors = load_file(folder / "a.safetensors")
    name = "model.diffusion_model.transformer_blocks.0.attn1.to_q.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, path)
    with pytest.raises(UnsupportedQuantization, match=r"attn1\.to_q\.weight is stored as F8_E4M3"):
        select(scan([folder]), {"checkpoint": "fp8.safetensors"})


def test_parts_of_another_width_are_not_taken(folder, golden):
    chosen = {"transformer": str(golden.path("quantized/tiny-ltx-2.3-fp8.safetensors"))}
    with pytest.raises(CheckpointNotFound, match="none fits"):
        select(scan([folder]), chosen)


def test_a_named_file_that_does_not_fit_is_refused(folder, golden):
    shutil.copy(golden.path("checkpoints/tiny-ltx-2.0.safetensors"), folder / "z.safetensors")
    with pytest.raises(UnknownLayout, match="does not fit"):
        select(scan([folder]), {"text_projection": "z.safetensors"})


def test_unknown_name_lists_the_known(folder):
    with pytest.raises(CheckpointNotFound, match=r"known: a\.safetensors"):
        select(scan([folder]), {"checkpoint": "nope.safetensors"})


def test_unreadable_files_are_reported_not_fatal(folder):
    (folder / "broken.safetensors").write_bytes(b"<html>")
    library = scan([folder])
    assert [path.name for path, _ in library.unreadable] == ["broken.safetensors"]
    assert select(library).family == "2.3"


def test_the_users_folders_come_before_the_embedded_one(folder, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    folders = model_folders([folder], {"LADDER_MODELS": str(folder / "loras")})
    assert folders == (folder.resolve(), (folder / "loras").resolve(), EMBEDDED.resolve())


def test_a_named_folder_must_exist():
    with pytest.raises(CheckpointNotFound, match="does not exist"):
        model_folders(["/nowhere/models"], {})
