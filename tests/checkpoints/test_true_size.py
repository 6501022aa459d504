"""LTX-2.3 22B at its real size, without its weights: every name, shape, dtype and byte count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import true_size

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, open_checkpoint
from latent_ladder.checkpoints.components import components, find_unused_tensors
from latent_ladder.checkpoints.families import detect_family
from latent_ladder.checkpoints.selection import scan, select_models
from latent_ladder.models.lora.attach import attach_loras
from latent_ladder.models.network_configs import (
    video_decoder_config,
    video_encoder_config,
)
from latent_ladder.models.transformer.config import TransformerConfig
from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.video_vae.networks import VideoDecoder, VideoEncoder
from latent_ladder.models.weights.loading import EmptyOnMeta
from latent_ladder.models.weights.quantized_tensor import read_stored

TENSORS = {
    "transformer": 4186,
    "connectors": 258,
    "text_projection": 4,
    "video_vae": 170,
    "audio_vae": 102,
    "vocoder": 1227,
}
PARAMETERS = {"transformer": 18_988_838_144, "connectors": 2_016_166_400}
SIZES = {  # decimal GB, as published
    "bf16": 46.1,
    "fp8": 29.1,
    "nvfp4": 21.7,
}
LABELS = {"bf16": "bf16", "fp8": "fp8", "nvfp4": "nvfp4", "q4_k_m": "q4_k", "q4_k_s": "q4_k"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    for precision in LABELS:
        true_size.checkpoint(path, precision)
    true_size.companions(path, "bf16")
    true_size.split(path)
    return path


def open_precision(folder: Path, precision: str) -> CheckpointFile:
    kind = "diffusion_models" if precision.startswith("q4") else "checkpoints"
    name = "ltx-2.3-22b-dev" + ("" if precision == "bf16" else f"-{precision}")
    (path,) = (p for p in (folder / kind).iterdir() if p.stem == name)
    return open_checkpoint(path)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "size"), SIZES.items())
def test_files_have_the_published_size_and_need_little_disk(
    folder: Path, precision: str, size: float
) -> None:
    path = open_precision(folder, precision).path
    assert path.stat().st_size / 1e9 == pytest.approx(size, abs=0.06)
    assert path.stat().st_blocks * 512 < 10e6


def test_each_of_5947_tensors_belongs_to_a_component(folder: Path) -> None:
    file = open_precision(folder, "bf16")
    found = components(file)
    assert {role: len(part.names) for role, part in found.items()} == TENSORS
    assert find_unused_tensors(file) == []
    for role, expected in PARAMETERS.items():
        shapes = found[role].shapes().values()
        assert sum(int(torch.tensor(s).prod()) for s in shapes) == expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", LABELS)
def test_the_transformer_is_the_same_network_in_every_precision(
    folder: Path, precision: str
) -> None:
    part = components(open_precision(folder, precision))["transformer"]
    assert (detect_family(part), part.precision) == ("2.3", LABELS[precision])
    with EmptyOnMeta():
        network = Transformer(TransformerConfig.from_component(part))
    wanted = {name: tuple(slot.shape) for name, slot in network.state_dict().items()}
    assert part.shapes() == wanted


@pytest.mark.slow
def test_the_video_vae_has_its_published_parameters(folder: Path) -> None:
    part = components(open_precision(folder, "bf16"))["video_vae"]
    with EmptyOnMeta():
        halves = [
            VideoEncoder(video_encoder_config(part.shapes(), part.config)),
            VideoDecoder(video_decoder_config(part.shapes(), part.config)),
        ]
    counts = [sum(p.numel() for p in half.parameters()) for half in halves]
    assert counts == [318_936_897, 407_169_072]


@pytest.mark.slow
def test_the_distilled_lora_fits_1660_of_1660_modules(folder: Path) -> None:
    with EmptyOnMeta():
        config = TransformerConfig.from_component(
            components(open_precision(folder, "fp8"))["transformer"]
        )
        network = Transformer(config)
    for name in ("ltx-2.3-22b-distilled-lora-384-1.1", true_size.RESIZED_LORA):
        lora = components(open_checkpoint(folder / f"loras/{name}.safetensors"))["lora"]
        (match,) = attach_loras(network, [(lora, 0.0)]).matches
        assert str(match).endswith("1660 of 1660 modules at strength 0")


@pytest.mark.slow
def test_the_newest_upscaler_and_the_published_lora_are_chosen(folder: Path) -> None:
    models = select_models(scan([folder]))
    names = {path.file.path.name for path in models.upsamplers.values()}
    assert "ltx-2.3-spatial-upscaler-x2-1.1.safetensors" in names
    assert "ltx-2.3-spatial-upscaler-x2-1.0.safetensors" not in names
    assert models.loras["distilled_lora"].file.path.stem == "ltx-2.3-22b-distilled-lora-384-1.1"
    assert f"{true_size.RESIZED_LORA}.safetensors" in models.loras


@pytest.mark.slow
@pytest.mark.parametrize("precision", LABELS)
def test_a_matrix_far_inside_every_file_is_read(folder: Path, precision: str) -> None:
    part = components(open_precision(folder, precision))["transformer"]
    key = "transformer_blocks.47.audio_attn1.to_q.weight"
    stored = read_stored(part, key)
    numbers = stored if isinstance(stored, torch.Tensor) else stored.dequantize(torch.float32)
    assert numbers.shape == (2048, 2048)
    assert not numbers.any(), "the data is a hole in a sparse file, which reads as zeros"


@pytest.mark.slow
@pytest.mark.parametrize("vram", [10, 24, 80])
def test_a_plan_of_the_real_model_needs_no_torch_and_fits_the_gpu(
    folder: Path, vram: int, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-c",
        "import sys; from latent_ladder.cli.app import main\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)",
        "plan", "A cat walks through a garden.", "--preset", "distilled", "--size", "1920x1080",
        "--models", str(folder), "--vram", str(vram), "--ram", "64", "--device", "cuda", "--json",
    ]  # fmt: skip
    env = os.environ | {"LADDER_STORE": str(tmp_path / "store")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False", "torch was imported"
    report = json.loads(done.stdout)
    assert report["memory"]["peak_bytes"] <= vram * 2**30
    refine = next(s for s in report["stages"] if s["stage"] == "refine")
    assert refine["flops"] / 1e15 == pytest.approx(5.14, rel=0.01)
    assert (refine["memory"] == "resident") == (vram == 80)
