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


DEVICE = os.environ.get("POCKET_DEVICE", "cpu")
"""Device of a training run, such as `cuda`."""


def prepare(threads: int = 1) -> None:
    """Set the number of threads, and POCKET_DEVICE as the device of all new tensors."""
    torch.set_num_threads(threads)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)


def generator(seed: int) -> torch.Generator:
    """A random generator with this seed, on `DEVICE`."""
    return torch.Generator(DEVICE).manual_seed(seed)


def read(path: Path) -> Any:
    """Load a file that `save` wrote, to `DEVICE`."""
    return torch.load(path, weights_only=True, map_location=DEVICE)


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
