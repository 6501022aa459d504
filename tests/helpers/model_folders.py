"""Model folders in ComfyUI's layout, made of the small golden files."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

GOLDEN = Path(__file__).parents[1] / "golden"
GOLDEN_2_5 = Path(__file__).parents[1] / "golden-2.5"
ENCODER_2_5 = "text_encoders/tiny-gemma4-with-proj-ltx-2.5.safetensors"
TRANSFORMER = "model.diffusion_model."
CONNECTORS = tuple(f"{TRANSFORMER}{stream}_embeddings_connector." for stream in ("video", "audio"))

SINGLE = {
    "checkpoints/tiny-dev.safetensors": "checkpoints/tiny-ltx-2.3.safetensors",
    "text_encoders/tiny-gemma.safetensors": "text_encoders/tiny-gemma-3.safetensors",
    "latent_upscale_models/x2.safetensors": "latent_upscale_models/tiny-spatial-x2.safetensors",
    "loras/tiny-distilled-lora.safetensors": "loras/tiny-distilled-lora.safetensors",
}
SPLIT = {
    "diffusion_models/tiny-dev-transformer.safetensors": (TRANSFORMER,),
    "text_encoders/tiny-dev-connectors.safetensors": (*CONNECTORS, "text_embedding_projection."),
    "vae/tiny-video-vae.safetensors": ("vae.",),
    "vae/tiny-audio-vae.safetensors": ("audio_vae.", "vocoder."),
}
"""File -> prefixes of its tensors in the all-in-one checkpoint."""


def copy(folder: Path, name: str, source: str) -> Path:
    """Copy a golden file to another name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / source, path)
    return path


def single(folder: Path) -> Path:
    """Write an all-in-one checkpoint, a text encoder, an upsampler and a LoRA."""
    for name, source in SINGLE.items():
        copy(folder, name, source)
    return folder


def split(folder: Path, source: str = "checkpoints/tiny-ltx-2.3.safetensors") -> Path:
    """Write the same model with one file per component; the video VAE without a prefix."""
    single(folder)
    (folder / "checkpoints/tiny-dev.safetensors").unlink()
    (folder / "checkpoints").rmdir()
    for name, prefixes in SPLIT.items():
        write_part(folder / name, source, prefixes)
    return folder


def write_part(path: Path, source: str, prefixes: tuple[str, ...]) -> Path:
    """Write the tensors of a golden file with these prefixes; ``vae.`` itself is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_part(source, prefixes))
    return path


@cache
def _part(source: str, prefixes: tuple[str, ...]) -> bytes:
    tensors = {
        name.removeprefix("vae.") if prefixes == ("vae.",) else name: tensor
        for name, tensor in load_file(GOLDEN / source).items()
        if name.startswith(prefixes) and not _belongs_to_connectors(name, prefixes)
    }
    data: bytes = save(tensors, _metadata(source))
    return data


def _metadata(source: str) -> dict[str, str]:
    with safe_open(GOLDEN / source, "pt") as file:
        return dict(file.metadata())


def _belongs_to_connectors(name: str, prefixes: tuple[str, ...]) -> bool:
    return prefixes == (TRANSFORMER,) and name.startswith(CONNECTORS)


def shards(folder: Path, source: str = "text_encoders/tiny-gemma-3.safetensors") -> Path:
    """Write a golden file like Hugging Face writes large ones: two shards and an index."""
    tensors = load_file(GOLDEN / source)
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map: dict[str, str] = {}
    for number, half in enumerate(halves, 1):
        part = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in half}, folder / part, _metadata(source))
        weight_map |= dict.fromkeys(half, part)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def newest(folder: Path) -> Path:
    """Link all golden files of LTX-2.5; the text encoder has the context length of the goldens."""
    for source in GOLDEN_2_5.glob("*/*.safetensors"):
        target = folder / source.relative_to(GOLDEN_2_5)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source != GOLDEN_2_5 / ENCODER_2_5:
            target.symlink_to(source)
    with safe_open(GOLDEN_2_5 / ENCODER_2_5, "pt") as opened:
        names, metadata = set(opened.keys()), opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in names}
    save_file(tensors, folder / ENCODER_2_5, {**metadata, "text_length": "256"})
    return folder


POCKET = Path(__file__).parents[2] / "src/latent_ladder/pocket/models"


def pocket_as_newest(folder: Path) -> Path:
    """Write the pocket model's networks in the split layout of LTX-2.5.

    VAEs and upscaler are the same networks. The transformer loses the biases that LTX-2.5 lacks and
    gets a mark of zeros; the text encoder is a tiny random Gemma 4 with a random projection.
    """
    source = POCKET / "checkpoints/pocket-ltx-2.3.safetensors"
    tensors, config = load_file(source), _pocket_config(source)
    width = tensors[f"{TRANSFORMER}patchify_proj.weight"].shape[0]
    network = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(TRANSFORMER) and not (".ff.net." in name and _is_video_bias(name))
    }
    network[f"{TRANSFORMER}keyframes_abs_pos_embedding"] = torch.zeros(1, width)
    changes = {"ff_bias": False, "use_keyframes_abs_pos_embedding": True}
    source_of_text = {"ltx_version": "2.5.0", "gemma_version": "gemma4-12b-ltx-v1"}
    sections: dict[str, object] = {
        "transformer": {**config["transformer"], **changes},
        "vae": None,
    }
    _write_newest(
        folder / "diffusion_models/pocket-distilled-transformer.safetensors", network, sections,
        gemma_source_checkpoint=json.dumps(source_of_text),
    )  # fmt: skip
    video = {n.removeprefix("vae."): t for n, t in tensors.items() if n.startswith("vae.")}
    _write_newest(folder / "vae/pocket-video.safetensors", video, {"vae": config["vae"]})
    sound = {n: t for n, t in tensors.items() if n.startswith(("audio_vae.", "vocoder."))}
    sections = {name: config[name] for name in ("audio_vae", "vocoder")}
    _write_newest(folder / "vae/pocket-sound.safetensors", sound, sections)
    upscaler = "latent_upscale_models/pocket-spatial-x2.safetensors"
    (folder / upscaler).parent.mkdir(parents=True, exist_ok=True)
    (folder / upscaler).symlink_to(POCKET / upscaler)
    _write_tiny_encoder(folder / ENCODER_2_5, tensors)
    return folder


def _write_tiny_encoder(path: Path, pocket: dict[str, torch.Tensor]) -> None:
    """Write the golden Gemma 4 with a random projection to the width of the pocket's contexts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with safe_open(GOLDEN_2_5 / ENCODER_2_5, "pt") as opened:
        metadata = opened.metadata()
        encoder = {name: opened.get_tensor(name) for name in sorted(opened.keys())}
    generator = torch.Generator().manual_seed(1)
    for stream in ("video", "audio"):
        registers = pocket[f"{TRANSFORMER}{stream}_embeddings_connector.learnable_registers"]
        layer = f"text_embedding_projection.{stream}_aggregate_embed"
        features = encoder[f"{layer}.weight"].shape[1]
        shape = (registers.shape[1], features)
        encoder[f"{layer}.weight"] = torch.randn(shape, generator=generator) / features**0.5
        encoder[f"{layer}.bias"] = torch.zeros(shape[0])
    save_file(encoder, path, {**metadata, "text_length": "64"})


def _is_video_bias(name: str) -> bool:
    return name.endswith(".bias") and "connector" not in name


def _pocket_config(path: Path) -> dict[str, dict[str, object]]:
    with safe_open(path, "pt") as opened:
        config: dict[str, dict[str, object]] = json.loads(opened.metadata()["config"])
    return config


def _write_newest(
    path: Path, tensors: dict[str, torch.Tensor], config: dict[str, object], **header: str
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(config), "model_version": "2.5.0", **header}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)


def unrelated(path: Path) -> Path:
    """Write a valid file of another model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"first_stage_model.encoder.conv_in.weight": torch.zeros(4, 3)}, path)
    return path
