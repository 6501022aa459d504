"""Write quantised copies of the pocket model, each a complete model folder in ComfyUI's layout.

    python training/pocket/formats.py FOLDER            # FOLDER/fp8, FOLDER/q4_k and so on
    python training/pocket/formats.py FOLDER --formats fp8,q8_0

fp8, NVFP4, MXFP8 and int8 are safetensors as ComfyUI reads them, with the scales of each weight. To
cover both conventions, `comfy_quant` tensors mark fp8 layers and the header
(`_quantization_metadata`) marks the others. The rest are GGUF transformers, with the other networks
in separate files. They follow the rules of ComfyUI-GGUF's converter: small tensors and tables are
float32, embeddings and modulation bf16, and rows not divisible by the block size float16 (blocks of
the K types have 256 weights, so here only the wide side of the feed-forwards fits). Matrices of the
transformer blocks are quantised, gates are not.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gguf
import k_types
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from state import CHECKPOINT, LORA, MODELS, TEXT_ENCODER, UPSAMPLER
from torch import Tensor

Tensors = dict[str, Tensor]
E4M3_MAX, E2M1_MAX = 448.0, 6.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
NET = "model.diffusion_model."
MAX_FLOAT32_ELEMENTS = 1024  # larger GGUF tensors are not float32
BF16_NAME_PARTS = (
    "adaln_single.",
    "caption_projection.",
    "patchify_proj.",
    "proj_out.",
    "_connector.",
)
COMPANION_FILES = {  # next to a GGUF transformer: file -> prefixes of its tensors
    "vae/pocket-video-vae.safetensors": ("vae.",),
    "vae/pocket-audio-vae.safetensors": ("audio_vae.", "vocoder."),
    "text_encoders/pocket-text-projection.safetensors": ("text_embedding_projection.",),
}


def is_quantised(name: str, value: Tensor) -> bool:
    """True for matrices of the transformer's blocks, except gates."""
    inside = name.startswith(f"{NET}transformer_blocks.") and name.endswith(".weight")
    return inside and value.dim() == 2 and min(value.shape) >= 64


# ---------------------------------------------------------------------------- safetensors formats


def fp8(weight: Tensor) -> Tensors:
    """One scale per tensor: w = q * weight_scale."""
    scale = (weight.abs().amax() / E4M3_MAX).clamp(min=1e-12)
    marker = json.dumps({"format": "float8_e4m3fn"}).encode()
    return {
        "weight": (weight / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn),
        "weight_scale": scale.float(),
        "comfy_quant": torch.frombuffer(bytearray(marker), dtype=torch.uint8).clone(),
    }


def swizzle_scales(scales: Tensor) -> Tensor:
    """Block scales (R, C) padded and reordered to cuBLAS's 128 x 4 tiles, each 32 x 4 x 4."""
    rows, columns = scales.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 4) * 4)
    padded[:rows, :columns] = scales
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape)


def split_blocks(weight: Tensor, size: int) -> Tensor:
    """Pad (R, C) to multiples of `size` and split the rows into blocks: (R', C' / size, size)."""
    padded = torch.zeros([-(-n // size) * size for n in weight.shape])
    padded[: weight.shape[0], : weight.shape[1]] = weight
    return padded.unflatten(1, (-1, size))


def nvfp4(weight: Tensor) -> Tensors:
    """Blocks of 16 along a row: w = e2m1(q) * weight_scale * weight_scale_2, high nibble first."""
    blocks = split_blocks(weight, 16)
    global_scale = (weight.abs().amax() / (E4M3_MAX * E2M1_MAX)).clamp(min=1e-12)
    local = (blocks.abs().amax(-1) / E2M1_MAX / global_scale).clamp(max=E4M3_MAX)
    local = local.to(torch.float8_e4m3fn).float()
    x = blocks / (local * global_scale).clamp(min=1e-12)[..., None]
    codes = (x.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (x < 0)
    codes = codes.flatten(1)
    return {
        "weight": (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8),
        "weight_scale": swizzle_scales(local).to(torch.float8_e4m3fn),
        "weight_scale_2": global_scale.float(),
    }


def mxfp8(weight: Tensor) -> Tensors:
    """Blocks of 32 along a row: w = e4m3(q) * a power of two, stored as its exponent + 127."""
    blocks = split_blocks(weight, 32)
    exponent = (blocks.abs().amax(-1) / E4M3_MAX).clamp(min=2.0**-126).log2().ceil()
    return {
        "weight": (blocks / exponent.exp2()[..., None]).flatten(1).to(torch.float8_e4m3fn),
        "weight_scale": swizzle_scales(exponent + 127).to(torch.uint8),
    }


def int8(weight: Tensor) -> Tensors:
    """One scale per row: w = q * weight_scale."""
    scale = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    return {"weight": (weight / scale).round().to(torch.int8), "weight_scale": scale}


def write_safetensors(
    kind: Callable[[Tensor], Tensors], marked_in_header: str, checkpoint: Path, folder: Path
) -> None:
    """Write the checkpoint with quantised matrices and everything else unchanged.

    `kind` quantises a matrix; `marked_in_header` is the format name to write to the header, or "".
    """
    tensors, metadata = load_file(checkpoint), _metadata(checkpoint)
    out: Tensors = {}
    layers = {}
    for name, value in tensors.items():
        if not is_quantised(name, value):
            out[name] = value
            continue
        layer = name.removesuffix(".weight")
        layers[layer] = {"format": marked_in_header}
        out |= {f"{layer}.{part}": v.contiguous() for part, v in kind(value.float()).items()}
    if marked_in_header:
        header = {"format_version": "1.0", "layers": layers}
        metadata["_quantization_metadata"] = json.dumps(header)
    path = folder / "checkpoints" / f"pocket-ltx-2.3-{folder.name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(out, path, metadata=metadata)


# -------------------------------------------------------------------------------------------- GGUF


def _by_gguf(kind: str) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])


BLOCKS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    **{kind: (32, _by_gguf(kind)) for kind in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")},
    **{name.upper(): (256, encode) for name, encode in k_types.ENCODERS.items()},
}
"""GGUF type -> weights per block, and encoder: gguf-py's where it has one, else k_types.py's."""


def encode_tensor(name: str, value: Tensor, block: str) -> tuple[np.ndarray, str]:
    """Encoded array and GGUF type of a tensor of the transformer."""
    if value.dim() < 2 or value.numel() <= MAX_FLOAT32_ELEMENTS or "scale_shift_table" in name:
        return value.float().numpy(), "F32"
    if any(part in name for part in BF16_NAME_PARTS) or value.dim() != 2:
        return value.to(torch.bfloat16).contiguous().view(torch.uint8).numpy(), "BF16"
    size, quantise = BLOCKS[block]
    if value.shape[1] % size:
        return value.to(torch.float16).numpy(), "F16"
    return quantise(value.float().numpy()), block


def write_gguf(block: str, checkpoint: Path, folder: Path) -> None:
    """Write transformer and connectors as GGUF, and the other networks to separate files."""
    tensors, metadata = load_file(checkpoint), _metadata(checkpoint)
    path = folder / "diffusion_models" / f"pocket-ltx-2.3-{block}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_quantization_version(2)
    for name, text in metadata.items():
        writer.add_string(name, text)
    for name, value in tensors.items():
        if name.startswith(NET):
            array, kind = encode_tensor(name, value, block)
            shape = list(value.shape)
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name.removeprefix(NET), array, raw_dtype=raw)
            if len(shape) > 2:
                writer.add_array(f"comfy.gguf.orig_shape.{name.removeprefix(NET)}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for file, prefixes in COMPANION_FILES.items():
        part = {n: v for n, v in tensors.items() if n.startswith(prefixes)}
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(part, target, metadata=metadata)


# ------------------------------------------------------------------------------------------ folders


def _metadata(checkpoint: Path) -> dict[str, str]:
    with safe_open(checkpoint, framework="pt") as file:
        return dict(file.metadata())


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "fp8": partial(write_safetensors, fp8, ""),
    "nvfp4": partial(write_safetensors, nvfp4, "nvfp4"),
    "mxfp8": partial(write_safetensors, mxfp8, "mxfp8"),
    "int8": partial(write_safetensors, int8, "int8_tensorwise"),
    **{kind.lower(): partial(write_gguf, kind) for kind in BLOCKS},
}


def write(name: str, source: Path, folder: Path) -> int:
    """Write a model folder in one format; returns the size of what replaces the checkpoint."""
    shutil.rmtree(folder, ignore_errors=True)
    WRITERS[name](source / CHECKPOINT, folder)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    for other in (LORA, UPSAMPLER, TEXT_ENCODER):
        target = folder / other
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / other, target)
    return size


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--formats", default=",".join(WRITERS))
    parser.add_argument("--models", type=Path, default=MODELS, help="folder of the bf16 model")
    options = parser.parse_args()
    for name in options.formats.split(","):
        print(f"{name}: {write(name, options.models, options.folder / name) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
