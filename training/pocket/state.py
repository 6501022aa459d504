"""Where training state and shipped files lie, and how state is written: atomically."""

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


def prepare(threads: int = 1) -> None:
    """Settings of a process that trains: threads, and POCKET_DEVICE for all new tensors."""
    torch.set_num_threads(threads)
    if DEVICE != "cpu":
        torch.set_default_device(DEVICE)


def generator(seed: int) -> torch.Generator:
    """Random numbers on the device."""
    return torch.Generator(DEVICE).manual_seed(seed)


def read(path: Path) -> Any:
    """What `save` wrote, on the device."""
    return torch.load(path, weights_only=True, map_location=DEVICE)


def log(stage: str, **values: Any) -> None:
    """Append one line to progress.jsonl and print it."""
    line = {"time": time.strftime("%H:%M:%S", time.gmtime()), "stage": stage, **values}
    line = {k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()}
    RUNS.mkdir(parents=True, exist_ok=True)
    with (RUNS / "progress.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def save(state: dict[Any, Any], path: Path) -> None:
    """torch.save, atomically; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)
