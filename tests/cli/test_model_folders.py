"""Model folders of usual layouts: `doctor`, `plan` and `make` need no option but --models.

A small size is set, for speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from helpers import gemma_files, model_folders
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from latent_ladder.cli.app import build_app
from latent_ladder.errors import LadderError

pytestmark = pytest.mark.slow

SMALL = ("--size", "64x64", "--frames", "9")
Q8_0 = GGMLQuantizationType.Q8_0
TRANSFORMER = "diffusion_models/tiny-dev-transformer.safetensors"
GEMMA = "text_encoders/tiny-gemma.safetensors"


@pytest.fixture(autouse=True)
def isolate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide model folders, config file and store of the machine that runs the tests."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("LADDER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home))
    monkeypatch.setenv("LADDER_STORE", str(home / "store"))


def make_work_folder(folder: Path) -> Path:
    """A folder for intermediate files, next to ``folder``."""
    work_folder = folder.with_name("work")
    work_folder.mkdir()
    return work_folder


def build_single(folder: Path) -> Path:
    """One checkpoint file with all components."""
    return model_folders.single(folder)


def build_split(folder: Path) -> Path:
    """One file per component."""
    return model_folders.split(folder)


def build_newest(folder: Path) -> Path:
    """LTX-2.5, one file per component."""
    return model_folders.newest(folder)


def build_mixed(folder: Path) -> Path:
    """LTX-2.5 beside LTX-2.3 in one folder."""
    return model_folders.newest(model_folders.single(folder))


def build_pocket_as_newest(folder: Path) -> Path:
    """The pocket model in the layout of LTX-2.5, with a random text encoder."""
    return model_folders.pocket_as_newest(folder)


def build_gguf(folder: Path) -> Path:
    """A Q8_0 transformer and a Q8_0 Gemma in GGUF files, the other components in files."""
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
    made, _ = gemma_files.gguf_gemma(folder / GEMMA, make_work_folder(folder), Q8_0)
    (folder / GEMMA).unlink()
    made.rename(folder / "text_encoders/gemma-Q8_0.gguf")
    return folder


def build_fp8(folder: Path) -> Path:
    """A checkpoint in scaled fp8 and a Gemma in fp4."""
    model_folders.single(folder)
    path = folder / "checkpoints/tiny-dev.safetensors"
    tensors, header = gemma_files.golden_tensors(path)
    for name in [n for n, t in tensors.items() if is_matrix(n, t)]:
        for part, value in gemma_files.fp8(tensors.pop(name)).tensors.items():
            tensors[f"{name.removesuffix('.weight')}.{part}"] = value
    save_file(tensors, path, header)
    stored, _ = gemma_files.quantized_files(
        folder / GEMMA, make_work_folder(folder), gemma_files.nvfp4
    )
    (folder / GEMMA).unlink()
    stored.rename(folder / "text_encoders/gemma_fp4_mixed.safetensors")
    return folder


def is_matrix(name: str, tensor: Tensor) -> bool:
    """True for the weight of a linear layer of the transformer."""
    inside = name.startswith(model_folders.TRANSFORMER) and "connector" not in name
    return inside and name.endswith(".weight") and tensor.dim() == 2 and tensor.shape[1] % 32 == 0


def build_sharded(folder: Path) -> Path:
    """Gemma as a Hugging Face folder."""
    model_folders.single(folder)
    shards = folder / "text_encoders/gemma-3"
    shards.mkdir()
    gemma_files.hugging_face_folder(folder / GEMMA, shards, "model.")
    (folder / GEMMA).unlink()
    return folder


LAYOUTS: dict[Callable[[Path], Path], tuple[str, str]] = {
    build_single: ("bf16", "bf16"),
    build_split: ("bf16", "bf16"),
    build_gguf: ("q8_0", "q8_0"),
    build_fp8: ("fp8", "nvfp4"),
    build_sharded: ("bf16", "bf16"),
    build_newest: ("bf16", "bf16"),
    build_mixed: ("bf16", "bf16"),
    build_pocket_as_newest: ("bf16", "bf16"),
}
"""Function that builds a folder -> precision of its transformer and of its text encoder."""


def ladder(*words: object) -> dict[str, Any]:
    done = CliRunner().invoke(build_app(), [*map(str, words), "--json"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    body: dict[str, Any] = json.loads(done.stdout)
    return body


@pytest.mark.parametrize("build", LAYOUTS, ids=lambda build: build.__name__)
def test_no_option_but_models_is_needed(build: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = build(tmp_path / "models")
    found = ladder("doctor", "--models", folder)
    assert (found["runnable"], found["only_pocket"], found["damaged"]) == (True, False, [])
    chosen = {row["role"]: row["precision"] for row in found["models"] if row["chosen"]}
    assert (chosen["transformer"], chosen["text_encoder"]) == LAYOUTS[build]
    planned = ladder("plan", "a red ball", "--models", folder, *SMALL)
    assert all(str(folder) in model["file"] for model in planned["models"])
    clip = ladder("make", "a red ball", "--models", folder, *SMALL, "-o", "clip.mp4")
    assert (clip["width"], clip["height"], clip["frames"]) == (64, 64, 9)
    assert [s["stage"] for s in clip["stages"]][-2:] == ["sound", "decode and write"]
    assert Path("clip.mp4").stat().st_size > 1000


def test_a_second_clip_of_a_prompt_does_not_read_the_text_encoder(tmp_path: Path) -> None:
    folder = build_single(tmp_path / "models")
    words = ("make", "a red ball", "--models", folder, *SMALL, "--no-audio")
    ladder(*words, "--seed", 1, "-o", "1.mp4")
    clip = ladder(*words, "--seed", 2, "-o", "2.mp4")
    assert {s["stage"]: s["reused"] for s in clip["stages"]}["prompt"]
    assert Path("1.mp4").read_bytes() != Path("2.mp4").read_bytes()


def test_precision_fp8_makes_another_clip_with_keys_of_its_own(tmp_path: Path) -> None:
    folder = build_single(tmp_path / "models")
    words = ("make", "a red ball", "--models", folder, *SMALL, "--no-audio")
    plain = ladder(*words, "-o", "1.mp4")
    coarse = ladder(*words, "--precision", "fp8", "-o", "2.mp4")
    assert coarse["request"]["models"]["precision"] == "fp8"
    keys = [{s["stage"]: s["key"] for s in clip["stages"]}["base"] for clip in (plain, coarse)]
    assert keys[0] != keys[1]
    assert Path("1.mp4").read_bytes() != Path("2.mp4").read_bytes()


def test_without_its_upsampler_a_run_fails_with_the_download_page(tmp_path: Path) -> None:
    folder = build_single(tmp_path / "models")
    (folder / "latent_upscale_models/x2.safetensors").unlink()
    with pytest.raises(LadderError) as raised:
        ladder("make", "a red ball", "--models", folder, *SMALL, "-o", "clip.mp4")
    text = f"{raised.value.message} {raised.value.hint}"
    for word in ("latent upsampler", "huggingface.co/", "latent_upscale_models/", " GB"):
        assert word in text.replace("GiB", "GB").replace("MiB", "GB")


def test_a_lora_for_2_0_is_reported_before_anything_runs(tmp_path: Path) -> None:
    folder = build_single(tmp_path / "models")
    lora = folder / "loras/tiny-distilled-lora.safetensors"
    save_file(load_file(lora), lora, {"model_version": "2.0.0"})
    with pytest.raises(LadderError) as raised:
        ladder("make", "a ball", "--models", folder, "--preset", "distilled-lora", *SMALL)
    assert "LoRA for LTX-2.0, the transformer is LTX-2.3" in raised.value.message
