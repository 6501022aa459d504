"""Paths of the training state and of the shipped files; logging and atomic writes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

RUNS = Path(os.environ.get("POCKET_RUNS", Path(__file__).parent / "runs"))
PARTS = RUNS / "parts"
MODELS = Path(__file__).parents[2] / "src" / "latent_ladder" / "pocket" / "models"
CHECKPOINT = "checkpoints/pocket-ltx-2.3.safetensors"
LORA = "loras/pocket-distilled-lora.safetensors"
UPSAMPLER = "latent_upscale_models/pocket-spatial-x2.safetensors"
TEXT_ENCODER = "text_encoders/pocket-gemma-3.safetensors"


def log(stage: str, **values: Any) -> None:
    """Append one JSON line to runs/progress.jsonl and print it."""
    line = {"time": time.strftime("%H:%M:%S", time.gmtime()), "stage": stage, **values}
    line = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / "progress.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def save(state: dict[Any, Any], path: Path) -> None:
    """Write `state` with torch.save, atomically; creates the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    torch.save(state, temporary)
    temporary.replace(path)
