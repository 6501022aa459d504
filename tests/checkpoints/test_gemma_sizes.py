"""Settings of Gemma 3 that a file does not state: those of the published model of its size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.gemma_sizes import assumed_rope_factor, gemma_defaults
from latent_ladder.checkpoints.tensor_info import TensorInfo
from latent_ladder.models.text_encoder.gemma_config import read_gemma_config


def encoder(hidden: int, layers: int, config: Mapping[str, Any] | None = None) -> Component:
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (hidden,)}
    for n in range(layers):
        at = f"layers.{n}."
        shapes |= {
            f"{at}self_attn.q_norm.weight": (128,),
            f"{at}self_attn.q_proj.weight": (512, hidden),
            f"{at}self_attn.k_proj.weight": (128, hidden),
            f"{at}mlp.gate_proj.weight": (64, hidden),
        }
    infos = {name: TensorInfo(shape, "BF16") for name, shape in shapes.items()}
    file = CheckpointFile(Path("gemma.safetensors"), 0, {}, infos)
    return Component("text_encoder", file, {name: name for name in shapes}, config or {})


@pytest.mark.parametrize(
    ("hidden", "layers", "factor", "window", "scalar"),
    [
        (640, 18, 1, 512, 128),
        (1152, 26, 1, 512, 128),
        (2560, 34, 8, 1024, 128),
        (3840, 48, 8, 1024, 128),
        (5376, 62, 8, 1024, 168),
        (32, 6, 8, 1024, 128),
    ],
)
def test_a_file_that_states_nothing(
    hidden: int, layers: int, factor: int, window: int, scalar: int
) -> None:
    part = encoder(hidden, layers)
    config = read_gemma_config(part)
    sliding, full = config.layers[0], config.layers[5]
    assert (full.rope.factor, sliding.rope.factor) == (factor, 1)
    assert (sliding.window, full.scale) == (window, scalar**-0.5)
    said = assumed_rope_factor(part) or ""
    assert f"{factor} is assumed" in said
    assert gemma_defaults(part).size in said or "Gemma 3 12B, for 32 x 6" in said


@pytest.mark.parametrize("scaling", [{"factor": 2.0}, None])
def test_what_the_file_states_wins(scaling: dict[str, float] | None) -> None:
    part = encoder(3840, 48, {"rope_scaling": scaling, "sliding_window": 7})
    config = read_gemma_config(part)
    assert config.layers[5].rope.factor == (2.0 if scaling else 1.0)
    assert config.layers[0].window == 7
    assert assumed_rope_factor(part) is None
