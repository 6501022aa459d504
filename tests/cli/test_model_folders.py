"""Folders as people have them: `doctor`, `plan` and `make` with --models and nothing else.

Only the size of the clip is named, to be quick.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from helpers import gemma_files, model_folders
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from latent_ladder.cli.app import build_app
from latent_ladder.errors import LadderError

SMALL = ("--size", "64x64", "--frames", "9")
Q8_0 = GGMLQuantizationType.Q8_0
TRANSFORMER = "diffusion_models/tiny-dev-transformer.safetensors"
GEMMA = "text_encoders/tiny-gemma.safetensors"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No model folder, config file or store of the machine that runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("LADDER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("LADDER_STORE", str(home / "store"))


def beside(folder: Path) -> Path:
    """A place for what is made on the way."""
    place = folder.with_name("made")
    place.mkdir()
    return place


def single(folder: Path) -> Path:
    return model_folders.single(folder)


def split(folder: Path) -> Path:
    return model_folders.split(folder)


def gguf(folder: Path) -> Path:
    """A Q8_0 transformer, the other parts in files, a GGUF Gemma."""
    model_folders.split(folder)
    tensors, header = gemma_files.golden_tensors(folder / TRANSFORMER)
    (folder / "unet").mkdir()
    writer = GGUFWriter(folder / "unet/tiny-dev-Q8_0.gguf", "ltxv")
    writer.add_string("config", header["config"])
    for name, tensor in tensors.items():
        bare, numbers = name.removeprefix(model_folders.TRANSFORMER), tensor.float().numpy()
        packed = quantize(numbers, Q8_0) if is_matrix(name, tensor) else numbers
        writer.add_tensor(bare, packed, raw_dtype=Q8_0 if is_matrix(name, tensor) else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / TRANSFORMER).unlink()
    made, _ = gemma_files.gguf_gemma(folder / GEMMA, beside(folder), Q8_0)
    (folder / GEMMA).unlink()
    made.rename(folder / "text_encoders/gemma-Q8_0.gguf")
    return folder


def fp8(folder: Path) -> Path:
    """A checkpoint in scaled fp8 and a Gemma in fp4."""
    model_folders.single(folder)
    path = folder / "checkpoints/tiny-dev.safetensors"
    tensors, header = gemma_files.golden_tensors(path)
    for name in [n for n, t in tensors.items() if is_matrix(n, t)]:
        for part, value in gemma_files.fp8(tensors.pop(name)).tensors.items():
            tensors[f"{name.removesuffix('.weight')}.{part}"] = value
    save_file(tensors, path, header)
    stored, _ = gemma_files.quantized_files(folder / GEMMA, beside(folder), gemma_files.nvfp4)
    (folder / GEMMA).unlink()
    stored.rename(folder / "text_encoders/gemma_fp4_mixed.safetensors")
    return folder


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether it is the weight of one of the transformer's Linears."""
    inside = name.startswith(model_folders.TRANSFORMER) and "connector" not in name
    return inside and name.endswith(".weight") and tensor.dim() == 2 and tensor.shape[1] % 32 == 0


def sharded(folder: Path) -> Path:
    """Gemma as a Hugging Face folder."""
    model_folders.single(folder)
    place = folder / "text_encoders/gemma-3"
    place.mkdir()
    gemma_files.hugging_face_folder(folder / GEMMA, place, "model.")
    (folder / GEMMA).unlink()
    return folder


LAYOUTS: dict[Callable[[Path], Path], tuple[str, str]] = {
    single: ("bf16", "bf16"),
    split: ("bf16", "bf16"),
    gguf: ("q8_0", "q8_0"),
    fp8: ("fp8", "nvfp4"),
    sharded: ("bf16", "bf16"),
}
"""How a folder is made -> the precision of its transformer and of its text encoder."""


def ladder(*words: object) -> dict:
    done = CliRunner().invoke(build_app(), [*map(str, words), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("made", LAYOUTS, ids=lambda made: made.__name__)
def test_models_is_all_that_has_to_be_said(made, tmp_path):
    folder = made(tmp_path / "models")
    found = ladder("doctor", "--models", folder)
    assert (found["runnable"], found["only_pocket"], found["damaged"]) == (True, False, [])
    chosen = {row["role"]: row["precision"] for row in found["models"] if row["chosen"]}
    assert (chosen["transformer"], chosen["text_encoder"]) == LAYOUTS[made]
    planned = ladder("plan", "a red ball", "--models", folder, *SMALL)
    assert all(str(folder) in model["file"] for model in planned["models"])
    clip = ladder("make", "a red ball", "--models", folder, *SMALL, "-o", "clip.mp4")
    assert (clip["width"], clip["height"], clip["frames"]) == (64, 64, 9)
    assert [s["stage"] for s in clip["stages"]][-2:] == ["sound", "decode and write"]
    assert Path("clip.mp4").stat().st_size > 1000


def test_a_second_clip_of_a_prompt_does_not_read_the_text_encoder(tmp_path):
    folder = single(tmp_path / "models")
    words = ("make", "a red ball", "--models", folder, *SMALL, "--no-audio")
    ladder(*words, "--seed", 1, "-o", "1.mp4")
    clip = ladder(*words, "--seed", 2, "-o", "2.mp4")
    assert {s["stage"]: s["reused"] for s in clip["stages"]}["prompt"]
    assert Path("1.mp4").read_bytes() != Path("2.mp4").read_bytes()


def test_precision_fp8_is_another_clip_and_says_how_it_is_held(tmp_path):
    folder = single(tmp_path / "models")
    words = ("make", "a red ball", "--models", folder, *SMALL, "--no-audio")
    plain = ladder(*words, "-o", "1.mp4")
    coarse = ladder(*words, "--precision", "fp8", "-o", "2.mp4")
    assert coarse["request"]["models"]["precision"] == "fp8"
    keys = [{s["stage"]: s["key"] for s in clip["stages"]}["base"] for clip in (plain, coarse)]
    assert keys[0] != keys[1]
    assert Path("1.mp4").read_bytes() != Path("2.mp4").read_bytes()


def test_without_its_upscaler_a_run_says_where_to_get_it(tmp_path):
    folder = single(tmp_path / "models")
    (folder / "latent_upscale_models/x2.safetensors").unlink()
    with pytest.raises(LadderError) as raised:
        ladder("make", "a red ball", "--models", folder, *SMALL, "-o", "clip.mp4")
    said = f"{raised.value.message} {raised.value.hint}"
    for word in ("latent upsampler", "huggingface.co/", "latent_upscale_models/", " GB"):
        assert word in said.replace("GiB", "GB").replace("MiB", "GB")


def test_a_lora_of_2_0_is_named_before_anything_runs(tmp_path):
    folder = single(tmp_path / "models")
    lora = folder / "loras/tiny-distilled-lora.safetensors"
    save_file(load_file(lora), lora, {"model_version": "2.0.0"})
    with pytest.raises(LadderError) as raised:
        ladder("make", "a ball", "--models", folder, "--preset", "distilled-lora", *SMALL)
    assert "LoRA for LTX-2.0, the transformer is LTX-2.3" in raised.value.message
