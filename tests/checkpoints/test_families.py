"""Model sets of LTX-2.5: alone, beside LTX-2.3, and wrong mixes, named before anything loads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.goldens import GOLDEN, GOLDEN_2_5
from safetensors import safe_open
from safetensors.torch import save_file

from latent_ladder.checkpoints import catalog
from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import header_contradictions, vae_contradictions
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.families import (
    FAMILIES,
    component_family,
    decoder_kind,
    lora_families,
    lora_family,
    text_encoder_architecture,
)
from latent_ladder.checkpoints.in_context_loras import in_context_notes, reference_factors
from latent_ladder.checkpoints.search_paths import EMBEDDED
from latent_ladder.checkpoints.selection import scan, select_available, select_models
from latent_ladder.errors import (
    CheckpointError,
    CheckpointNotFound,
    RequestError,
    UnknownLayout,
)
from latent_ladder.models.transformer.config import TransformerConfig
from latent_ladder.pipeline.plan import make_plan
from latent_ladder.pipeline.run import default_preset, prepare
from latent_ladder.request.model import Request
from latent_ladder.request.presets import read_preset
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.file_hashes import hash_file

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
    files = (TRANSFORMER, CONV, SOUND, OLDER, OLDER_ENCODER)  # LTX-2.5 without its Gemma 4
    models = select_models(scan([folder_with(tmp_path, *files)]))
    assert models.family == "2.3"
    (note,) = models.notes
    assert note.startswith(
        "tiny-ltx-2.5-dev-transformer.safetensors (LTX-2.5) is not used: no text encoder and no "
        "text projection fits it (tiny-gemma-3.safetensors: it is Gemma 3, LTX-2.5 needs LTX's own "
        "Gemma 4 12B"
    )
    assert note.endswith("tiny-ltx-2.3.safetensors (LTX-2.3) is complete")


def test_the_newest_family_comes_first_and_presets_choose_theirs(tmp_path: Path) -> None:
    files = (TRANSFORMER, ENCODER, CONV, SOUND, OLDER, OLDER_ENCODER)
    library = scan([folder_with(tmp_path, *files)])
    wanted = {"": "2.5", "distilled": "2.3", "ltx-2.5-distilled": "2.5", "hq": "2.3"}
    assert {name: select_models(library, preset=name).family for name in wanted} == wanted
    assert default_preset(library) == "ltx-2.5-one-stage"  # dev, without the distilled LoRA


LORA = "loras/tiny-ltx-2.5-distilled-lora.safetensors"


@pytest.mark.parametrize(
    ("name", "lora", "preset"),
    [
        ("ltx-2.5-22b-distilled-transformer-bf16", True, "ltx-2.5-distilled"),
        ("ltx-2.5-22b-dev-transformer-bf16", True, "ltx-2.5-distilled-lora"),
        ("ltx-2.5-22b-dev-transformer-bf16", False, "ltx-2.5-one-stage"),
    ],
)
def test_the_default_preset_follows_training(
    tmp_path: Path, name: str, lora: bool, preset: str
) -> None:
    folder_with(tmp_path, ENCODER, CONV, SOUND, *([LORA] if lora else []))
    copied = tmp_path / f"diffusion_models/{name}.safetensors"
    copied.parent.mkdir()
    copied.symlink_to(GOLDEN_2_5 / TRANSFORMER)
    assert default_preset(scan([tmp_path])) == preset


def test_a_transformer_that_may_be_dev_or_distilled_is_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name decides, else its hash, if it was hashed before; nothing is guessed."""
    folder_with(tmp_path, ENCODER, CONV, SOUND, LORA)
    renamed = tmp_path / "diffusion_models/mine.safetensors"
    renamed.parent.mkdir()
    renamed.write_bytes((GOLDEN_2_5 / TRANSFORMER).read_bytes())
    library = scan([tmp_path])
    with pytest.raises(CheckpointError, match="may be the dev or the distilled") as raised:
        default_preset(library)
    assert "--preset ltx-2.5-distilled or --preset ltx-2.5-distilled-lora" in str(raised.value.hint)
    size, digest = renamed.stat().st_size, hash_file(renamed, "sha256")
    rows = {f.variant: f for f in catalog.FILES if f.family == "2.5" and "transformer" in f.roles}
    for variant, preset in (("distilled", "ltx-2.5-distilled"), ("dev", "ltx-2.5-distilled-lora")):
        published = replace(rows[variant], bytes=size, sha256=digest[:8])
        monkeypatch.setattr(catalog, "FILES", (published,))
        library.selections.clear()
        assert default_preset(library) == preset


def test_the_distilled_lora_is_not_added_twice(tmp_path: Path) -> None:
    folder_with(tmp_path, ENCODER, CONV, SOUND, LORA)
    path = tmp_path / "diffusion_models/ltx-2.5-22b-distilled-transformer-bf16.safetensors"
    path.parent.mkdir()
    path.symlink_to(GOLDEN_2_5 / TRANSFORMER)
    library = scan([tmp_path])
    models = select_models(library)
    role = clip_with("ltx-2.5-distilled-lora")
    with pytest.raises(RequestError, match="is distilled already") as raised:
        make_plan(role, models, library)
    assert "--preset ltx-2.5-distilled," in str(raised.value.hint)
    named = clip_with("ltx-2.5-distilled-single", loras=[{"name": Path(LORA).name}])
    notes = make_plan(named, models, library).notes
    assert any("distilled already" in note for note in notes)


def test_loras_of_an_older_family_are_named_and_not_taken(tmp_path: Path) -> None:
    """They load without an error, because all their modules exist: said, never silent."""
    folder_with(tmp_path, TRANSFORMER, ENCODER, CONV, SOUND)
    older = tmp_path / "loras/ltx-2.3-style.safetensors"
    distilled = tmp_path / "loras/ltx-2.3-22b-distilled-lora-384.safetensors"
    for target in (older, distilled):
        rewritten(GOLDEN_2_5 / LORA, target, {"model_version": "2.3.0"})
    library = scan([tmp_path])
    models = select_models(library)
    assert models.loras == {}
    (why,) = models.rejected["distilled_lora"]
    assert why.endswith("it is a LoRA for LTX-2.3, the transformer is LTX-2.5")
    request = clip_with("ltx-2.5-one-stage", loras=[{"name": older.name}])
    notes = make_plan(request, models, library).notes
    assert any("ltx-2.3-style" in n and "works poorly" in n for n in notes)
    with pytest.raises(CheckpointNotFound, match=r"LoRA for LTX-2\.3"):
        make_plan(clip_with("ltx-2.5-distilled-lora"), models, library)


def test_a_lora_without_header_may_be_for_both_families(tmp_path: Path) -> None:
    plain = rewritten(GOLDEN_2_5 / LORA, tmp_path / "style.safetensors", {"model_version": None})
    named = rewritten(plain, tmp_path / "ltx-2.3-style.safetensors")
    found = [components(open_checkpoint(path))["lora"] for path in (plain, named)]
    assert [lora_families(lora) for lora in found] == [("2.3", "2.5"), ("2.3",)]
    assert [lora_family(lora) for lora in found] == [None, "2.3"]


IC_LORA = "loras/tiny-ltx-2.5-ic-lora-pixel-spatial-upscaler-x2.safetensors"


def test_in_context_loras_are_known_by_their_header(tmp_path: Path) -> None:
    lora = part(IC_LORA, "lora")
    assert reference_factors(lora) == {"smaller": 2, "slower": 1}
    (note,) = in_context_notes(lora, has_reference=False)
    assert "--mode reference" in note
    assert list(in_context_notes(lora, has_reference=True)) == []
    header = {"reference_downscale_factor": None, "reference_temporal_scale_factor": "2",
              "hdr_transform": "logc3"}  # fmt: skip
    other = rewritten(GOLDEN_2_5 / IC_LORA, tmp_path / "hdr.safetensors", header)
    lora = components(open_checkpoint(other))["lora"]
    assert reference_factors(lora) == {"smaller": 1, "slower": 2}
    (note,) = in_context_notes(lora, has_reference=True)
    assert "encoded with logc3" in note
    assert list(in_context_notes(part(LORA, "lora"), has_reference=False)) == []


def test_presets_of_another_family_are_refused_or_warned_about(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    older = scan([folder_with(tmp_path / "older", OLDER, OLDER_ENCODER, ENCODER)])
    request = Request.from_preset("ltx-2.5-distilled-single", prompt="a red ball")
    with pytest.raises(CheckpointNotFound, match=r"needs LTX-2\.5; missing: transformer") as raised:
        prepare(request, older, store, device="cpu")
    assert "`ladder models get ltx-2.5`" in str(raised.value.hint)
    newest = scan([folder_with(tmp_path / "new", TRANSFORMER, ENCODER, CONV, SOUND)])
    request = Request.from_preset("distilled-single", prompt="a red ball", width=64, height=64)
    warnings = [w.message for w in prepare(request, newest, store, device="cpu").warnings]
    assert any("made for LTX-2.3, the transformer is LTX-2.5" in text for text in warnings)


def clip_with(preset: str, **base: Any) -> Request:
    """A small clip of a preset, with changes of its base stage."""
    fields = read_preset(preset).fields
    first, *others = fields["stages"]
    small = {"prompt": "a red ball", "width": 128, "height": 64, "frames": 9}
    return Request.from_dict({**fields, **small, "stages": [{**first, **base}, *others]})


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
