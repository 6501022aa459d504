"""Gemma in every stored form gives the hidden states of its dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from helpers.gemma_files import (
    Quantized,
    fp8,
    gguf_gemma,
    golden_tensors,
    hugging_face_folder,
    load,
    nvfp4,
    quantized_files,
    quantized_pair,
)
from helpers.goldens import Goldens
from safetensors.torch import save_file
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components, find_unused_tensors
from latent_ladder.errors import UnknownLayout, UnsupportedQuantization
from latent_ladder.models.text_encoder.connectors import load_connector, project_features
from latent_ladder.models.text_encoder.gemma import compute_hidden_states
from latent_ladder.models.text_encoder.gemma_config import RopeParameters, read_gemma_config
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer

IDS = [[2, *range(4, 60, 3)], [2, 300, 5, 17]]
Q8_0, F16, BF16 = (getattr(gguf.GGMLQuantizationType, n) for n in ("Q8_0", "F16", "BF16"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LADDER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def source(golden: Goldens) -> Path:
    path: Path = golden.path("text_encoders/tiny-gemma-3.safetensors")
    return path


def states(part: Component) -> list[Tensor]:
    return compute_hidden_states(IDS, part, device="cpu", dtype=torch.float32)


def same(one: Component, other: Component) -> bool:
    pairs = zip(states(one), states(other), strict=True)
    return all(torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs)


def old_fp8(weight: Tensor) -> Quantized:
    return fp8(weight, "scale_weight")


def awq(weight: Tensor) -> Quantized:
    """nvfp4 with an input scale per channel (AWQ)."""
    scale = 1 + torch.arange(weight.shape[1]) % 3 / 4
    made = nvfp4(weight.float() / scale)
    return Quantized({**made.tensors, "pre_quant_scale": scale}, made.numbers * scale, made.marker)


def every_weight(name: str) -> bool:
    return "proj" in name or "embed" in name


@pytest.mark.parametrize(
    ("quantize", "markers", "label"),
    [
        (fp8, "tensors", "fp8"),
        (fp8, "none", "fp8"),
        (old_fp8, "none", "fp8"),
        (nvfp4, "tensors", "nvfp4"),
        (nvfp4, "header", "nvfp4"),
        (nvfp4, "none", "nvfp4"),
        (awq, "tensors", "nvfp4"),
    ],
)
def test_quantised_gemma(
    source: Path, tmp_path: Path, quantize: Callable[[Tensor], Quantized], markers: str, label: str
) -> None:
    stored, plain = quantized_pair(source, tmp_path, quantize, markers=markers)
    assert stored.precision == label
    assert set(stored.names) == set(plain.names)
    assert stored.shapes() == plain.shapes()
    assert stored.nbytes < plain.nbytes
    assert find_unused_tensors(stored.file) == []
    assert same(stored, plain)


def test_quantised_embeddings_are_gathered(source: Path, tmp_path: Path) -> None:
    stored, plain = quantized_pair(source, tmp_path, fp8, chosen=every_weight)
    assert stored.stored_tensor("embed_tokens.weight").format == "fp8_e4m3"
    assert same(stored, plain)


@pytest.mark.parametrize(("kind", "label"), [(F16, "f16"), (BF16, "bf16"), (Q8_0, "q8_0")])
def test_gguf_gemma(source: Path, tmp_path: Path, kind: Any, label: str) -> None:
    path, plain = gguf_gemma(source, tmp_path, kind)
    stored = load(path)
    assert (stored.precision, stored.norm_offset, plain.norm_offset) == (label, 1.0, 0.0)
    assert set(stored.names) == set(plain.names) - {"spiece_model"}
    assert read_gemma_config(stored) == read_gemma_config(plain)
    assert find_unused_tensors(stored.file) == []
    assert same(stored, plain)


def test_gguf_gemma_matches_the_reference_states(
    golden: Goldens, source: Path, tmp_path: Path
) -> None:
    """Without RoPE metadata, layers with full attention divide positions by 8."""
    path, _ = gguf_gemma(source, tmp_path, BF16, factor=None)
    part, case = load(path), golden("text.hidden.p0")
    ids = load_tokenizer(part).tokenize(golden("text.tokens.p0").params["prompt"], 128).ids
    assert read_gemma_config(part).layers[5].rope == RopeParameters(1e6, 8.0)
    (hidden,) = compute_hidden_states([ids], part, device="cpu", dtype=torch.float32)
    case.check("hidden", hidden)
    unscaled = replace(part, config={**part.config, "rope_scaling": {"factor": 1.0}})
    (wrong,) = compute_hidden_states([ids], unscaled, device="cpu", dtype=torch.float32)
    # The last of the six layers is the one with full attention.
    torch.testing.assert_close(wrong[:-1], hidden[:-1])
    assert (wrong[-1] - hidden[-1]).abs().max() > 100 * case.atol


@pytest.mark.parametrize("wrap", ["language_model.model.", "model.language_model.", "model."])
def test_folder_saved_by_transformers(source: Path, tmp_path: Path, wrap: str) -> None:
    folder = hugging_face_folder(source, tmp_path, wrap)
    for path in (folder, folder / "model.safetensors.index.json"):
        part = load(path)
        assert read_gemma_config(part) == read_gemma_config(load(source))
        assert find_unused_tensors(part.file) == []
    assert all(map(torch.equal, states(part), states(load(source))))
    assert load_tokenizer(part).tokenize("a fox", 9) == load_tokenizer(load(source)).tokenize(
        "a fox", 9
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "qwen3"])
def test_gguf_of_another_model_is_reported(source: Path, tmp_path: Path, architecture: str) -> None:
    path, _ = gguf_gemma(source, tmp_path, F16, architecture=architecture)
    with pytest.raises(UnknownLayout, match=f"GGUF file of the architecture '{architecture}'"):
        components(open_checkpoint(path))


def text_part(name: str) -> bool:
    return "aggregate_embed" in name or ("embeddings_connector" in name and "norm" not in name)


@pytest.mark.parametrize("quantize", [fp8, nvfp4])
def test_quantised_projection_and_connectors(
    golden: Goldens, tmp_path: Path, quantize: Callable[[Tensor], Quantized]
) -> None:
    path = golden.path("checkpoints/tiny-ltx-2.3.safetensors")
    hidden = golden("text.hidden.p1").outputs["hidden"]
    contexts = []
    for file in quantized_files(path, tmp_path, quantize, chosen=text_part):
        parts = components(open_checkpoint(file))
        (features,) = project_features([hidden], parts["text_projection"])
        for stream in ("video", "audio"):
            connector = load_connector(
                parts["connectors"], stream, device="cpu", dtype=torch.float32
            )
            contexts.append(connector(features[stream], 128))
    for one, other in zip(contexts[:2], contexts[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_unknown_format_is_rejected_when_read(source: Path, tmp_path: Path) -> None:
    def strange(weight: Tensor) -> Quantized:
        made = fp8(weight)
        return Quantized(made.tensors, made.numbers, {"format": "svdquant_w4a4"})

    stored, _ = quantized_pair(
        source, tmp_path, strange, chosen=lambda name: name.endswith("layers.4.mlp.up_proj.weight")
    )
    with pytest.raises(UnsupportedQuantization, match=r"4\.mlp\.up_proj.* svdquant_w4a4.* known"):
        states(stored)


def test_vocabulary_of_another_model_is_rejected(source: Path, tmp_path: Path) -> None:
    tensors, header = golden_tensors(source)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:50].clone()
    save_file(tensors, tmp_path / "short.safetensors", header)
    with pytest.raises(UnknownLayout, match="token id 300, but there are 50 embeddings"):
        states(load(tmp_path / "short.safetensors"))
