"""Write the pocket model's shipped files from the training state, in ComfyUI's folder layout.

    python training/pocket/export.py

Transformer, upsampler and LoRA may be untrained; text, audio and video VAE need their first stage.
Files are replaced atomically; weights are bf16, tables and statistics float32.
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


def _to_file_dtype(value: Tensor, exact: bool = False) -> Tensor:
    return value.detach().to("cpu", torch.float32 if exact else torch.bfloat16).contiguous()


def vae_tensors() -> dict[str, Tensor]:
    """Tensors `vae.*` of the checkpoint."""
    state = vae_train.load().state_dict()
    return {
        video_vae.original_name(n): _to_file_dtype(v, n in video_vae.STATISTICS)
        for n, v in state.items()
    }


def transformer_tensors(model: dit.PocketModel) -> dict[str, Tensor]:
    """Tensors `model.diffusion_model.*` of the checkpoint, without connectors."""
    return {
        f"model.diffusion_model.{n}": _to_file_dtype(v, "scale_shift_table" in n)
        for n, v in model.net.state_dict().items()
    }


def lora_tensors(model: dit.PocketModel, rank: int = 16) -> dict[str, Tensor]:
    """Tensors of the distilled LoRA; zeros if none is trained."""
    if LORA_STATE.exists():
        return {n: _to_file_dtype(v) for n, v in read(LORA_STATE)["lora"].items()}
    out = {}
    for name, module in model.net.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dim() == 2:
            r = min(rank, *weight.shape)
            out[f"diffusion_model.{name}.lora_A.weight"] = _to_file_dtype(
                torch.zeros(r, weight.shape[1])
            )
            out[f"diffusion_model.{name}.lora_B.weight"] = _to_file_dtype(
                torch.zeros(weight.shape[0], r)
            )
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
    """Write one file atomically; returns its size in bytes."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    save_file(tensors, temporary, metadata=metadata)
    temporary.replace(path)
    return path.stat().st_size


def export(folder: Path = MODELS) -> dict[str, int]:
    """Write all four files; returns their sizes in bytes by name."""
    model = dit.load_model()
    audio_vae, vocoder = sound_nets.load()
    tower = model.tower
    checkpoint = (
        transformer_tensors(model)
        | tower.connector_tensors()
        | tower.projection_tensors()
        | vae_tensors()
        | sound_nets.audio_vae_tensors(audio_vae)
        | sound_nets.vocoder_tensors(vocoder)
    )
    upsampler_state = upsampler.load_upsampler().state_dict()
    words = {"text_length": str(tower.length), "known_words": json.dumps(list(world.VOCABULARY))}
    sizes = {
        CHECKPOINT: write(
            checkpoint, {"config": json.dumps(header_config()), **VERSION}, CHECKPOINT, folder
        ),
        LORA: write(lora_tensors(model), {"format": "pt", **VERSION}, LORA, folder),
        UPSAMPLER: write(
            {n: _to_file_dtype(v) for n, v in upsampler_state.items()},
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
