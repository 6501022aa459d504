"""Write the shipped files of the pocket model from the training state, in ComfyUI's folder layout.

    python training/pocket/export.py

Every part falls back to its untrained (or solved) form, so a complete set can be written at any
time. Files are replaced atomically; weights are bf16, tables and statistics float32.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import dit
import sound_nets
import torch
import upsampler
import vae as video_vae
import worlds
from safetensors.torch import save_file
from state import CHECKPOINT, LORA, MODELS, RUNS, TEXT_ENCODER, UPSAMPLER, log, prepare, read
from torch import Tensor

world, vae_train = worlds.module("world"), worlds.module("vae_train")

LORA_STATE = RUNS / "lora.pt"
VERSION = {"model_version": "2.3.0", "preset": "pocket"}


def _stored(value: Tensor, exact: bool = False) -> Tensor:
    return value.detach().to("cpu", torch.float32 if exact else torch.bfloat16).contiguous()


def vae_tensors() -> dict[str, Tensor]:
    """`vae.*` of the checkpoint."""
    state = vae_train.load().state_dict()
    return {
        video_vae.original_name(n): _stored(v, n in video_vae.STATISTICS) for n, v in state.items()
    }


def transformer_tensors(trainee: dit.Trainee) -> dict[str, Tensor]:
    """`model.diffusion_model.*` without connectors."""
    return {
        f"model.diffusion_model.{n}": _stored(v, "scale_shift_table" in n)
        for n, v in trainee.net.state_dict().items()
    }


def lora_tensors(trainee: dit.Trainee, rank: int = 16) -> dict[str, Tensor]:
    """The distilled LoRA; one that changes nothing where none is trained."""
    if LORA_STATE.exists():
        return {n: _stored(v) for n, v in read(LORA_STATE)["lora"].items()}
    out = {}
    for name, module in trainee.net.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2:
            r = min(rank, *weight.shape)
            out[f"diffusion_model.{name}.lora_A.weight"] = _stored(torch.zeros(r, weight.shape[1]))
            out[f"diffusion_model.{name}.lora_B.weight"] = _stored(torch.zeros(weight.shape[0], r))
    return out


def header_config() -> dict[str, Any]:
    """The header `config` of the checkpoint."""
    return {
        "transformer": dit.config(),
        "vae": video_vae.config(),
        "audio_vae": sound_nets.audio_vae_config(),
        "vocoder": sound_nets.vocoder_config(),
        "scheduler": {
            "_class_name": "RectifiedFlowScheduler",
            "num_train_timesteps": 1000,
            "shifting": None,
            "base_resolution": None,
            "sampler": "LinearQuadratic",
        },
    }


def write(tensors: dict[str, Tensor], metadata: dict[str, str], name: str, folder: Path) -> int:
    """Write one file atomically; bytes written."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    save_file(tensors, fresh, metadata=metadata)
    fresh.replace(path)
    return path.stat().st_size


def export(folder: Path = MODELS) -> dict[str, int]:
    """Write all four files; sizes in bytes by name."""
    trainee = dit.trained()
    audio_vae, vocoder = sound_nets.load()
    tower = trainee.tower
    checkpoint = (
        transformer_tensors(trainee)
        | tower.connector_tensors()
        | tower.projection_tensors()
        | vae_tensors()
        | sound_nets.audio_vae_tensors(audio_vae)
        | sound_nets.vocoder_tensors(vocoder)
    )
    zoom = upsampler.trained().state_dict()
    words = {"text_length": str(tower.length), "known_words": json.dumps(list(world.VOCABULARY))}
    sizes = {
        CHECKPOINT: write(
            checkpoint, {"config": json.dumps(header_config()), **VERSION}, CHECKPOINT, folder
        ),
        LORA: write(lora_tensors(trainee), {"format": "pt", **VERSION}, LORA, folder),
        UPSAMPLER: write(
            {n: _stored(v) for n, v in zoom.items()},
            {"config": json.dumps(upsampler.config())},
            UPSAMPLER,
            folder,
        ),
        TEXT_ENCODER: write(
            tower.text_encoder_tensors(),
            words | tower.text_encoder_metadata(),
            TEXT_ENCODER,
            folder,
        ),
    }
    log(
        "export",
        total_mb=sum(sizes.values()) / 1e6,
        **{k.split("/")[0]: v for k, v in sizes.items()},
    )
    return sizes


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=MODELS)
    prepare()
    export(parser.parse_args().folder)


if __name__ == "__main__":
    main()
