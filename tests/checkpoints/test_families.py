"""Model sets of LTX-2.5: alone, beside LTX-2.3, and wrong mixes, named before anything loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from helpers.goldens import GOLDEN, GOLDEN_2_5
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import header_contradictions, vae_contradictions
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.families import (
    FAMILIES,
    component_family,
    decoder_kind,
    text_encoder_architecture,
)
from latent_ladder.checkpoints.search_paths import EMBEDDED
from latent_ladder.checkpoints.selection import scan, select_available, select_models
from latent_ladder.errors import CheckpointNotFound, UnknownLayout
from latent_ladder.models.transformer.config import TransformerConfig

TRANSFORMER = "diffusion_models/tiny-ltx-2.5-dev-transformer.safetensors"
ENCODER = "text_encoders/tiny-gemma4-with-proj-ltx-2.5.safetensors"
CONV, DIFFUSION = (f"vae/tiny-ltx-2.5-video-vae{end}.safetensors" for end in ("-conv", ""))
SOUND = "vae/tiny-ltx-2.5-audio-vae.safetensors"
OLDER, OLDER_ENCODER = (
    GOLDEN / "checkpoints/tiny-ltx-2.3.safetensors",
    GOLDEN / "text_encoders/tiny-gemma-3.safetensors",
)


def folder_with(folder: Path, *files: str | Path) -> Path:
    """A model folder with links to files of the goldens of LTX-2.5 or other files."""
    for file in files:
        source = GOLDEN_2_5 / file if isinstance(file, str) else file
        target = folder / source.parent.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(source)
    return folder


def rewritten(
    source: Path,
    target: Path,
    header: Mapping[str, str | None] | None = None,
    drop: tuple[str, ...] = (),
) -> Path:
    """A copy of a model file with other metadata or without some tensors."""
    with safe_open(source, "pt") as opened:
        metadata = {**(opened.metadata() or {}), **(header or {})}
        names = set(opened.keys())
        tensors = {k: opened.get_tensor(k) for k in names if not k.startswith(drop or "-")}
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, {k: v for k, v in metadata.items() if v is not None})
    return target


def part(path: str, role: str) -> Component:
    return components(open_checkpoint(GOLDEN_2_5 / path))[role]


def test_a_set_of_split_files(tmp_path: Path) -> None:
    models = select_models(
        scan([folder_with(tmp_path, TRANSFORMER, ENCODER, CONV, DIFFUSION, SOUND)])
    )
    assert models.family == "2.5"
    assert models.has_audio
    assert text_encoder_architecture(models.text_encoder) == "gemma4"
    assert models.text_projection.file.path == models.text_encoder.file.path
    assert decoder_kind(models.video_vae) == "conv"
    assert set(models.video_decoders) == {"conv", "diffusion"}
    assert models.notes == ()


def test_the_diffusion_decoder_may_be_the_only_one(tmp_path: Path) -> None:
    models = select_models(scan([folder_with(tmp_path, TRANSFORMER, ENCODER, DIFFUSION)]))
    assert decoder_kind(models.decoding_vae) == "diffusion"


@pytest.mark.parametrize("wanted", ["2.3", "2.5"])
def test_both_families_in_one_folder(tmp_path: Path, wanted: str) -> None:
    library = scan([folder_with(tmp_path, TRANSFORMER, ENCODER, CONV, SOUND, OLDER, OLDER_ENCODER)])
    name = OLDER.name if wanted == "2.3" else Path(TRANSFORMER).name
    models = select_models(library, {"transformer": name})
    roles = ("text_encoder", "text_projection", "connectors", "video_vae", "audio_vae")
    names = {getattr(models, role).file.path.name for role in roles}
    assert models.family == wanted
    assert all(("2.5" in n or "gemma4" in n) == (wanted == "2.5") for n in names)


def test_an_incomplete_set_gives_way_to_a_complete_one(tmp_path: Path) -> None:
    files = (TRANSFORMER, ENCODER, CONV, SOUND, OLDER)  # LTX-2.3 without its Gemma 3
    models = select_models(scan([folder_with(tmp_path, *files)]))
    assert models.family == "2.5"
    assert models.notes == (
        "tiny-ltx-2.3.safetensors (LTX-2.3) is not used: no text encoder fits it "
        "(tiny-gemma4-with-proj-ltx-2.5.safetensors: it is Gemma 4, LTX-2.3 needs Gemma 3 12B); "
        "tiny-ltx-2.5-dev-transformer.safetensors (LTX-2.5) is complete",
    )


WRONG: Mapping[str, tuple[tuple[str | Path, ...], str]] = {
    "Gemma 3 for LTX-2.5": (
        (TRANSFORMER, OLDER_ENCODER, CONV),
        r"no text encoder .*it is Gemma 3, LTX-2\.5 needs LTX's own Gemma 4 12B",
    ),
    "Gemma 4 for LTX-2.3": (
        (OLDER, ENCODER),
        r"no text encoder .*it is Gemma 4, LTX-2\.3 needs Gemma 3 12B",
    ),
    "the VAE of LTX-2.0": (
        (TRANSFORMER, ENCODER, GOLDEN / "checkpoints/tiny-ltx-2.0.safetensors"),
        r"no video VAE .*it is the video VAE of LTX-2\.0, expected that of LTX-2\.5",
    ),
}


@pytest.mark.parametrize("mix", WRONG)
def test_wrong_mixes_are_named(tmp_path: Path, mix: str) -> None:
    files, message = WRONG[mix]
    first = files[0]
    name = first.name if isinstance(first, Path) else Path(first).name
    with pytest.raises(CheckpointNotFound, match=message):
        select_models(scan([folder_with(tmp_path, *files)]), {"transformer": name})


def test_a_stock_gemma_4_is_refused(tmp_path: Path) -> None:
    """Another fine-tuning of the same architecture: its states would be garbage to the model."""
    config = json.loads(open_checkpoint(GOLDEN_2_5 / ENCODER).metadata["gemma_config"])
    config.pop("gemma_version")
    header = {"gemma_config": json.dumps(config)}
    folder_with(tmp_path, TRANSFORMER, CONV)
    stock = tmp_path / "text_encoders/gemma-4-12b.safetensors"
    rewritten(GOLDEN_2_5 / ENCODER, stock, header, ("text_embedding_projection.",))
    with pytest.raises(CheckpointNotFound, match="a stock Gemma 4, without the version tag"):
        select_models(scan([tmp_path]))


def test_another_version_of_ltxs_gemma_is_refused(tmp_path: Path) -> None:
    folder_with(tmp_path, ENCODER, CONV)
    source = json.dumps({"ltx_version": "2.6.0", "gemma_version": "gemma4-12b-ltx-v2"})
    target = tmp_path / "diffusion_models/t.safetensors"
    rewritten(GOLDEN_2_5 / TRANSFORMER, target, {"gemma_source_checkpoint": source})
    with pytest.raises(
        CheckpointNotFound, match="it is gemma4-12b-ltx-v1, the transformer needs gemma4-12b-ltx-v2"
    ):
        select_models(scan([tmp_path]))


def test_a_projection_of_another_family_is_not_taken(tmp_path: Path) -> None:
    """The projections of LTX-2.3 and LTX-2.5 have the same shapes."""
    library = scan([folder_with(tmp_path, TRANSFORMER, OLDER, OLDER_ENCODER)])
    choice = select_available(library, {"transformer": Path(TRANSFORMER).name})
    assert "text_projection" not in choice.parts
    with pytest.raises(UnknownLayout, match="as text encoder: it is Gemma 3"):
        select_models(
            library, {"transformer": Path(TRANSFORMER).name, "text_encoder": OLDER_ENCODER.name}
        )


def test_families_of_components() -> None:
    assert component_family(part(TRANSFORMER, "transformer")) == "2.5"
    assert component_family(part(ENCODER, "text_encoder")) == "2.5"
    assert component_family(part(ENCODER, "text_projection")) == "2.5"
    assert component_family(part(CONV, "video_vae")) == "2.5"
    assert component_family(part(DIFFUSION, "video_vae")) == "2.5"
    upscaler = "latent_upscale_models/tiny-ltx-2.5-latent-spatial-upscaler-x2.safetensors"
    assert component_family(part(upscaler, "latent_upsampler")) == "2.5"
    assert FAMILIES["2.5"].latent_space == FAMILIES["2.3"].latent_space
    assert [family.image_crf for family in FAMILIES.values()] == [33, 33, 18]


def test_null_sections_of_a_header_are_absent() -> None:
    """The transformer's header has ``vae: null``: no VAE is in the file."""
    assert set(components(open_checkpoint(GOLDEN_2_5 / TRANSFORMER))) == {
        "transformer",
        "connectors",
    }


def test_a_header_that_contradicts_its_tensors_is_said(tmp_path: Path) -> None:
    """Tensors decide, as in ComfyUI; the mark of keyframes follows its tensor."""
    source = GOLDEN_2_5 / TRANSFORMER
    config = json.loads(open_checkpoint(source).metadata["config"])
    config["transformer"] |= {"ff_bias": True, "use_keyframes_abs_pos_embedding": False}
    target = folder_with(tmp_path, ENCODER, CONV) / "diffusion_models/t.safetensors"
    rewritten(source, target, {"config": json.dumps(config)})
    found = components(open_checkpoint(target))["transformer"]
    read = TransformerConfig.from_component(found)
    assert (read.video.ff_bias, read.keyframe_embedding) == (False, True)
    notes = select_models(scan([tmp_path])).notes
    assert notes == header_contradictions(found)
    assert "ff_bias = true, but its tensors are missing" in notes[0]
    assert "use_keyframes_abs_pos_embedding = false, but its tensors are there" in notes[1]


def test_multipliers_of_a_video_vae_that_contradict_its_tensors_are_said(tmp_path: Path) -> None:
    """Official code builds the network from them; the pocket model's were once exchanged."""
    source = GOLDEN_2_5 / CONV
    config = json.loads(open_checkpoint(source).metadata["config"])
    blocks = config["vae"]["encoder_blocks"]
    multipliers = [options for name, options in blocks if name.startswith("compress_")]
    multipliers[1]["multiplier"], multipliers[2]["multiplier"] = 1, 2
    folder = folder_with(tmp_path, TRANSFORMER, ENCODER)
    target = folder / "vae/v.safetensors"
    rewritten(source, target, {"config": json.dumps(config)})
    (note,) = vae_contradictions(components(open_checkpoint(target))["video_vae"])
    assert "[2, 1, 2, 1] of the video encoder, its tensors have [2, 2, 1, 1]" in note
    assert note in select_models(scan([tmp_path])).notes
    pocket = next(EMBEDDED.glob("checkpoints/*.safetensors"))
    for file in (source, pocket):
        assert not vae_contradictions(components(open_checkpoint(file))["video_vae"])


def test_a_header_may_ask_for_a_mark_that_is_not_there(tmp_path: Path) -> None:
    target = rewritten(
        GOLDEN_2_5 / TRANSFORMER,
        tmp_path / "t.safetensors",
        drop=("model.diffusion_model.keyframes_abs_pos_embedding",),
    )
    found = components(open_checkpoint(target))["transformer"]
    assert not TransformerConfig.from_component(found).keyframe_embedding
    assert "are missing" in header_contradictions(found)[0]


def test_names_of_transformers_are_read(tmp_path: Path) -> None:
    """The same text encoder with the names that the transformers library gives its tensors."""
    with safe_open(GOLDEN_2_5 / ENCODER, "pt") as opened:
        names = set(opened.keys())
        tensors: dict[str, torch.Tensor] = {k: opened.get_tensor(k) for k in names}
        metadata = opened.metadata()
    renamed = {
        k.replace("model.", "model.language_model.", 1)
        .replace("multi_modal_projector.", "model.embed_vision.")
        .replace("audio_projector.", "model.embed_audio."): v
        for k, v in tensors.items()
        if not k.startswith("vision_model.")
    }
    save_file(renamed, tmp_path / "e.safetensors", metadata)
    found = components(open_checkpoint(tmp_path / "e.safetensors"))
    assert set(found) == {"text_encoder", "text_projection"}
    assert set(found["text_encoder"].names) == set(part(ENCODER, "text_encoder").names)
