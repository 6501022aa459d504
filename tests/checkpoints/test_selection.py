"""Detection of roles, selection of files that fit together, and errors for those that do not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers import checkpoint_layouts as layouts
from helpers import model_folders, true_size
from helpers.goldens import Goldens
from safetensors.torch import load_file, save_file

from latent_ladder.checkpoints.catalog import (
    FILES,
    PRECISIONS,
    SINGLE_FILE,
    format_gb,
    select_file_set,
    suggest_file,
)
from latent_ladder.checkpoints.compatibility import TransformerRequirements, match_lora
from latent_ladder.checkpoints.misplaced import find_misplaced
from latent_ladder.checkpoints.search_paths import EMBEDDED
from latent_ladder.checkpoints.selection import find_by_name, scan, select_available, select_models
from latent_ladder.errors import CheckpointNotFound, UnknownLayout, UnsupportedQuantization

FILES_ANYWHERE = {
    "a.safetensors": "checkpoints/tiny-ltx-2.3.safetensors",
    "wrong/place/b.safetensors": "text_encoders/tiny-gemma-3.safetensors",
    "checkpoints/c.safetensors": "latent_upscale_models/tiny-spatial-x2.safetensors",
    "loras/sub/some-distilled.safetensors": "loras/tiny-distilled-lora.safetensors",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All files of a set, with meaningless names and folders."""
    for name, source in FILES_ANYWHERE.items():
        model_folders.copy(tmp_path, name, source)
    return tmp_path


def test_roles_come_from_content_not_from_names_or_folders(folder: Path) -> None:
    models = select_models(scan([folder]))
    assert models.family == "2.3"
    assert models.text_encoder.file.path.name == "b.safetensors"
    assert models.upsamplers[("spatial", Fraction(2))].file.path.name == "c.safetensors"
    assert set(models.loras) == {
        "loras/sub/some-distilled.safetensors",
        "some-distilled.safetensors",
        "distilled_lora",
    }
    assert models.has_audio
    assert models.notes == ()


def test_split_files_form_a_set(tmp_path: Path) -> None:
    models = select_models(scan([model_folders.split(tmp_path)]))
    names = {
        role: getattr(models, role).file.path.name
        for role in ("transformer", "connectors", "text_projection", "video_vae", "vocoder")
    }
    assert names == {
        "transformer": "tiny-dev-transformer.safetensors",
        "connectors": "tiny-dev-connectors.safetensors",
        "text_projection": "tiny-dev-connectors.safetensors",
        "video_vae": "tiny-video-vae.safetensors",
        "vocoder": "tiny-audio-vae.safetensors",
    }
    assert models.has_distilled_lora
    assert models.has_audio


def test_a_gguf_transformer_takes_the_split_files(tmp_path: Path) -> None:
    model_folders.split(tmp_path)
    source = tmp_path / "diffusion_models/tiny-dev-transformer.safetensors"
    tensors = [
        true_size.Stored(name.removeprefix(model_folders.TRANSFORMER), tuple(t.shape), "BF16")
        for name, t in load_file(source).items()
    ]
    source.unlink()
    kv = {"general.architecture": "ltxv"}
    true_size.write_gguf(tmp_path / "unet/tiny-dev.gguf", tensors, kv)
    models = select_models(scan([tmp_path]))
    assert models.transformer.file.path.name == "tiny-dev.gguf"
    assert models.video_vae.file.path.name == "tiny-video-vae.safetensors"


def test_unrelated_files_are_ignored_and_damaged_ones_listed(folder: Path) -> None:
    model_folders.unrelated(folder / "checkpoints/sdxl.safetensors")
    (folder / "broken.safetensors").write_bytes(b"<html>")
    cut = folder / "cut.safetensors"
    cut.write_bytes((folder / "a.safetensors").read_bytes()[:-1000])
    (folder / "dangling.safetensors").symlink_to("nowhere")
    library = scan([folder])
    listed = {path.name: why for path, why in library.unreadable}
    assert set(listed) == {"broken.safetensors", "cut.safetensors", "dangling.safetensors"}
    assert "1,000 bytes are missing" in listed["cut.safetensors"]
    assert [path.name for path, _ in library.ignored] == ["sdxl.safetensors"]
    assert select_models(library).family == "2.3"


# --- preference ----------------------------------------------------------------------------------


def test_real_models_come_before_the_pocket(folder: Path) -> None:
    models = select_models(scan([EMBEDDED, folder]))
    assert models.transformer.file.path.name == "a.safetensors"


def test_family_2_3_comes_before_2_0(folder: Path) -> None:
    model_folders.copy(folder, "0.safetensors", "checkpoints/tiny-ltx-2.0.safetensors")
    assert select_available(scan([folder])).family == "2.3"


def test_more_bits_are_preferred_and_the_user_decides(tmp_path: Path) -> None:
    for name in ("Q8_0.gguf", "fp8.safetensors", "nvfp4.safetensors"):
        model_folders.copy(tmp_path, f"a/tiny-ltx-2.3-{name}", f"quantized/tiny-ltx-2.3-{name}")
    library = scan([tmp_path])
    found = [f"tiny-ltx-2.3-{x}" for x in ("fp8.safetensors", "nvfp4.safetensors", "Q8_0.gguf")]
    for name in found:
        assert select_available(library).parts["transformer"].file.path.name == name
        chosen = select_available(library, {"transformer": "tiny-ltx-2.3-Q8_0.gguf"})
        assert chosen.parts["transformer"].file.container == "gguf"
        kept = [f for f in library.of("transformer") if f.path.name != name]
        assert isinstance(library.found, dict)
        library.found["transformer"] = tuple(kept)
        if len(kept) == 1:
            break


def test_of_two_that_fit_the_one_of_the_same_training_variant_is_selected(tmp_path: Path) -> None:
    model_folders.split(tmp_path)
    connectors = tmp_path / "text_encoders/tiny-dev-connectors.safetensors"
    other = tmp_path / "text_encoders/tiny-distilled-connectors.safetensors"
    other.write_bytes(connectors.read_bytes())
    connectors.rename(tmp_path / "text_encoders/z-dev.safetensors")
    models = select_models(scan([tmp_path]))
    assert models.connectors.file.path.name == "z-dev.safetensors"
    assert models.notes == ()


def test_dev_connectors_with_a_distilled_transformer_give_a_warning(tmp_path: Path) -> None:
    model_folders.split(tmp_path)
    transformer = tmp_path / "diffusion_models/tiny-dev-transformer.safetensors"
    transformer.rename(transformer.with_name("tiny-distilled-1.1.safetensors"))
    note = select_models(scan([tmp_path])).notes[0]
    assert re.match(r"tiny-dev-connectors\S+ \(text projection\) belongs to the dev model", note)


# --- files that do not fit
# ---------------------------------------------------------------------------


def reason(folder: Path, role: str) -> str:
    return "; ".join(select_available(scan([folder])).rejected[role])


def test_a_named_file_that_does_not_fit_is_refused(folder: Path) -> None:
    model_folders.copy(folder, "z.safetensors", "checkpoints/tiny-ltx-2.0.safetensors")
    with pytest.raises(UnknownLayout, match=r"does not fit a\.safetensors as text projection: n"):
        select_models(scan([folder]), {"text_projection": "z.safetensors"})


def test_a_lora_of_2_0_is_rejected_for_2_3(folder: Path) -> None:
    lora = folder / "loras/sub/some-distilled.safetensors"
    save_file(load_file(lora), lora, {"model_version": "2.0.1"})
    models = select_models(scan([folder]))
    assert not models.has_distilled_lora
    wrong = "some-distilled.safetensors: it is a LoRA for LTX-2.0, the transformer is LTX-2.3"
    assert models.rejected["distilled_lora"] == (wrong,)
    named = select_models(scan([folder]), {"distilled_lora": "some-distilled.safetensors"})
    assert named.has_distilled_lora
    assert "LoRA for LTX-2.0" in named.notes[0]


def test_a_lora_of_2_0_is_detected_by_its_modules(folder: Path) -> None:
    lora = folder / "loras/sub/some-distilled.safetensors"
    tensors = {name: t for name, t in load_file(lora).items() if "gate_logits" not in name}
    tensors["diffusion_model.caption_projection.linear_1.lora_A.weight"] = torch.zeros(4, 8)
    save_file(tensors, lora)
    assert "LoRA for LTX-2.0" in reason(folder, "distilled_lora")


def test_a_lora_of_another_width_is_rejected_with_its_first_module(
    folder: Path, golden: Goldens
) -> None:
    lora = folder / "loras/sub/some-distilled.safetensors"
    tensors = load_file(lora)
    name = "diffusion_model.transformer_blocks.0.attn1.to_k.lora_A.weight"
    tensors[name] = torch.zeros(tensors[name].shape[0], 48)
    save_file(tensors, lora)
    assert reason(folder, "distilled_lora").endswith(
        "transformer_blocks.0.attn1.to_k needs 64 x 64, found 64 x 48"
    )


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "transformer."])
def test_loras_match_with_any_prefix_and_with_kohya_names(folder: Path, prefix: str) -> None:
    lora = folder / "loras/sub/some-distilled.safetensors"
    tensors = load_file(lora)
    bare = {name.removeprefix("diffusion_model."): t for name, t in tensors.items()}
    kohya = {_kohya(name): t for name, t in bare.items()}
    for renamed in ({prefix + name: t for name, t in bare.items()}, kohya):
        save_file(renamed, lora)
        library = scan([folder])
        (found,) = library.of("lora")
        requirements = TransformerRequirements(library.of("transformer")[0].component)
        match = match_lora(found.component, requirements)
        assert (match.matched, match.conflict) == (match.total, None)
        assert match.total > 50


def _kohya(name: str) -> str:
    module, _, part = name.partition(".lora_")
    part = {"A.weight": "down.weight", "B.weight": "up.weight"}[part]
    return f"lora_unet_{module.replace('.', '_')}.lora_{part}"


def gemma(hidden: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Gemma 3 of another size."""
    for name, shape in true_size.gemma():
        shape = tuple(hidden if side == 3840 else side for side in shape)
        if ".layers." not in name:
            yield name, shape
        elif ".layers.0." in name:
            for number in range(layers):
                yield name.replace(".0.", f".{number}."), shape


@pytest.fixture
def real_gguf(tmp_path: Path) -> Path:
    """The 22B model as GGUF with its split files: true names, shapes and sizes, without data."""
    true_size.checkpoint(tmp_path, "q4_k_m")
    true_size.split(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("size", "hidden", "layers"), [("4b", 2560, 34), ("27b", 5376, 62)])
def test_a_gemma_of_another_size_is_rejected_with_its_size(
    real_gguf: Path, size: str, hidden: int, layers: int
) -> None:
    path = real_gguf / f"text_encoders/gemma-3-{size}.safetensors"
    true_size.write_safetensors(path, true_size.bf16(gemma(hidden, layers)))
    with pytest.raises(CheckpointNotFound) as raised:
        select_models(scan([real_gguf]))
    assert raised.value.message == (
        f"no text encoder found: none fits ltx-2.3-22b-dev-q4_k_m.gguf: gemma-3-{size}.safetensors:"
        f" needs hidden 3840 and 48 layers (Gemma 3 12B), found {hidden} and {layers}"
    )


def test_the_x2_upscaler_of_2_0_is_rejected_for_2_3(real_gguf: Path) -> None:
    tensors = dict(layouts.upsampler(1024, "x2"))
    tensors["upsampler.conv.weight"] = tensors.pop("upsampler.0.weight")
    tensors["upsampler.conv.bias"] = tensors.pop("upsampler.0.bias")
    path = real_gguf / "latent_upscale_models/old.safetensors"
    true_size.write_safetensors(path, true_size.bf16(tensors.items()))
    chosen = select_available(scan([real_gguf]))
    assert not chosen.upsamplers
    assert "x2 upscaler of LTX-2.0" in chosen.rejected["latent_upsampler"][0]


def test_an_upscaler_of_another_width_is_rejected(folder: Path) -> None:
    pocket = EMBEDDED / "latent_upscale_models/pocket-spatial-x2.safetensors"
    (folder / "checkpoints/c.safetensors").write_bytes(pocket.read_bytes())
    assert reason(folder, "latent_upsampler") == (
        "c.safetensors: needs latent channels 8, found 64"
    )


def test_the_video_vae_of_2_0_is_rejected_for_2_3(tmp_path: Path) -> None:
    model_folders.split(tmp_path)
    old = "checkpoints/tiny-ltx-2.0.safetensors"
    model_folders.write_part(tmp_path / "vae/tiny-video-vae.safetensors", old, ("vae.",))
    with pytest.raises(CheckpointNotFound, match=r"it is the video VAE of LTX-2\.0") as raised:
        select_models(scan([tmp_path]))
    assert "LTX23_video_vae_bf16.safetensors (1.45 GB" in str(raised.value.hint)


def test_a_lora_given_as_checkpoint_and_the_reverse_are_errors(folder: Path) -> None:
    library = scan([folder])
    lora = "some-distilled.safetensors"
    with pytest.raises(CheckpointNotFound, match="it is a LoRA, not a checkpoint") as raised:
        select_models(library, {"checkpoint": lora})
    assert raised.value.hint == f"use --set models.distilled_lora={lora}"
    with pytest.raises(
        CheckpointNotFound, match=r"a\.safetensors contains no LoRA: it contains tr"
    ):
        select_models(library, {"distilled_lora": str(folder / "a.safetensors")})


def test_unknown_formats_are_refused_by_selection_and_not_by_scan(folder: Path) -> None:
    tensors = load_file(folder / "a.safetensors")
    layer = "model.diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(torch.uint8)
    metadata = {"format_version": "1.0", "layers": {layer: {"format": "int3_magic"}}}
    save_file(tensors, folder / "a.safetensors", {"_quantization_metadata": json.dumps(metadata)})
    library = scan([folder])
    assert not library.unreadable
    with pytest.raises(UnsupportedQuantization, match=r"attn1\.to_q\.weight.*int3_magic"):
        select_models(library)


def test_error_for_an_unknown_name_lists_the_known_ones(folder: Path) -> None:
    with pytest.raises(CheckpointNotFound, match=r"known: a\.safetensors"):
        select_models(scan([folder]), {"checkpoint": "nope.safetensors"})


def test_names_are_those_of_comfyui(folder: Path) -> None:
    library = scan([folder])
    for name in ("sub/some-distilled.safetensors", r"sub\some-distilled.safetensors"):
        assert find_by_name(library, name, "lora").path.parent.name == "sub"


# --- missing files -----------------------------------------------------------------------------

MISSING_FILES = {
    "diffusion_models/tiny-dev-transformer.safetensors": (
        "no transformer found",
        r"ltx-2\.3-22b-dev-fp8\.safetensors \(29\.1 GB, huggingface\.co/Lightricks/LTX-2\.3-fp8\) "
        r"into models/checkpoints/",
    ),
    "text_encoders/tiny-gemma.safetensors": (
        "no text encoder found",
        r"gemma_3_12B_it\.safetensors \(24\.4 GB, huggingface\.co/Comfy-Org/ltx-2\) "
        r"into models/text_encoders/",
    ),
    "vae/tiny-video-vae.safetensors": (
        "no video VAE found",
        r"LTX23_video_vae_bf16\.safetensors \(1\.45 GB, huggingface\.co/Kijai/LTX2\.3_comfy\) "
        r"into models/vae/",
    ),
}


@pytest.mark.parametrize("missing", MISSING_FILES)
def test_error_for_a_missing_file_has_name_size_page_and_folder(
    tmp_path: Path, missing: str
) -> None:
    (model_folders.split(tmp_path) / missing).unlink()
    message, hint = MISSING_FILES[missing]
    with pytest.raises(CheckpointNotFound, match=message) as raised:
        select_models(scan([tmp_path]))
    wanted = f"put {hint}, or run `ladder models get ltx-2.3`"
    assert re.fullmatch(wanted, str(raised.value.hint)), raised.value.hint


def test_an_empty_folder_has_no_transformer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFound, match="no transformer found: searched"):
        select_models(scan([tmp_path]))


@pytest.mark.slow
def test_a_transformer_of_an_unknown_family_is_an_error(folder: Path) -> None:
    tensors = load_file(folder / "a.safetensors")
    kept = {n: t for n, t in tensors.items() if "audio_patchify_proj" not in n}
    save_file(kept, folder / "a.safetensors")
    with pytest.raises(CheckpointNotFound, match=r"a\.safetensors is of an unknown family"):
        select_models(scan([folder]))


def test_every_published_set_has_every_role_once() -> None:
    for precision in PRECISIONS:
        files = select_file_set(precision, "dev")
        roles = [role for file in files for role in file.roles]
        wanted = {*SINGLE_FILE, "text_encoder", "latent_upsampler", "distilled_lora"}
        assert (len(roles), set(roles)) == (len(set(roles)), wanted)
    with pytest.raises(KeyError):
        select_file_set("nvfp4", "distilled")


def test_published_files_are_unique_and_have_sizes() -> None:
    assert len({(f.repository, f.path) for f in FILES}) == len(FILES)
    assert all(f.bytes > 10**8 or f.roles == ("duration_head",) for f in FILES)
    assert format_gb(995_743_560) == "0.996 GB"
    x15 = suggest_file("latent_upsampler", upsampling=("spatial", Fraction(3, 2)))
    assert x15 is not None
    assert x15.name == "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors"


def test_error_for_a_missing_component_has_the_files_that_do_not_fit(folder: Path) -> None:
    pocket = EMBEDDED / "latent_upscale_models/pocket-spatial-x2.safetensors"
    (folder / "checkpoints/c.safetensors").write_bytes(pocket.read_bytes())
    models = select_models(scan([folder]))
    error = models.missing_error("latent_upsampler", "none is x1.5", ("spatial", Fraction(3, 2)))
    assert error.message.endswith("none is x1.5; c.safetensors: needs latent channels 8, found 64")
    assert "ltx-2.3-spatial-upscaler-x1.5-1.0.safetensors (1.09 GB" in str(error.hint)


# --- misplaced -----------------------------------------------------------------------------------


def test_files_that_comfyui_does_not_list_are_found(tmp_path: Path) -> None:
    model_folders.single(tmp_path)
    assert find_misplaced(scan([tmp_path])) == ()
    upscaler = tmp_path / "latent_upscale_models/x2.safetensors"
    (tmp_path / "upscale_models").mkdir()
    upscaler.rename(tmp_path / "upscale_models/x2.safetensors")
    gguf = "quantized/tiny-ltx-2.3-Q8_0.gguf"
    model_folders.copy(tmp_path, "checkpoints/q8.gguf", gguf)
    model_folders.copy(tmp_path, "unet/q8-copy.gguf", gguf)
    (tmp_path / "mine").mkdir()
    (tmp_path / "loras/tiny-distilled-lora.safetensors").rename(tmp_path / "mine/l.safetensors")
    wrong = {(m.path.name, m.category, m.expected) for m in find_misplaced(scan([tmp_path]))}
    assert wrong == {
        ("x2.safetensors", "upscale_models", "latent_upscale_models"),
        ("q8.gguf", "checkpoints", "diffusion_models"),
    }
