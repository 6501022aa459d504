"""Quantised copies of the pocket checkpoint, each a complete model folder in ComfyUI's layout.

    python training/pocket/formats.py FOLDER            # FOLDER/{fp8,nvfp4,q8_0,q4_k}
    python training/pocket/formats.py FOLDER --formats fp8,q8_0

fp8 and NVFP4 are safetensors as ComfyUI reads them: scales as siblings of the weight; fp8 layers
are marked by `comfy_quant` tensors, NVFP4 layers in the header (`_quantization_metadata`), so that
both conventions occur. Q8_0 and Q4_K are GGUF transformers with the other parts in files beside
them, quantised by the rules of ComfyUI-GGUF's converter: small tensors and tables float32,
embeddings and modulation bf16, rows that a block does not divide float16 (Q4_K takes 256, which
only the wide side of the feed-forwards has here). Matrices of the blocks are quantised, gates not.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
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
SMALL = 1024  # elements up to which a GGUF tensor stays float32
WHOLE = ("adaln_single.", "caption_projection.", "patchify_proj.", "proj_out.", "_connector.")
BESIDE = {  # files next to a GGUF transformer, by the prefixes of their tensors
    "vae/pocket-video-vae.safetensors": ("vae.",),
    "vae/pocket-audio-vae.safetensors": ("audio_vae.", "vocoder."),
    "text_encoders/pocket-text-projection.safetensors": ("text_embedding_projection.",),
}


def is_quantised(name: str, value: Tensor) -> bool:
    """Matrices of the transformer's blocks, without gates."""
    inside = name.startswith(f"{NET}transformer_blocks.") and name.endswith(".weight")
    return inside and value.dim() == 2 and min(value.shape) >= 64


# ------------------------------------------------------------------------------ safetensors kinds


def fp8(weight: Tensor) -> Tensors:
    """One scale per tensor: w = q * weight_scale."""
    scale = (weight.abs().amax() / E4M3_MAX).clamp(min=1e-12)
    marker = json.dumps({"format": "float8_e4m3fn"}).encode()
    return {
        "weight": (weight / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn),
        "weight_scale": scale.float(),
        "comfy_quant": torch.frombuffer(bytearray(marker), dtype=torch.uint8).clone(),
    }


def swizzled(scales: Tensor) -> Tensor:
    """Block scales (R, C) in cuBLAS order: padded to 128 x 4 tiles, each 32 x 4 x 4 inside."""
    rows, columns = scales.shape
    padded = torch.zeros(-(-rows // 128) * 128, -(-columns // 4) * 4)
    padded[:rows, :columns] = scales
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.permute(0, 3, 2, 1, 4).reshape(padded.shape)


def nvfp4(weight: Tensor) -> Tensors:
    """Blocks of 16 along a row: w = e2m1(q) * weight_scale * weight_scale_2, high nibble first."""
    rows, columns = (-(-n // 16) * 16 for n in weight.shape)
    padded = torch.zeros(rows, columns)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    blocks = padded.unflatten(1, (-1, 16))
    whole = (weight.abs().amax() / (E4M3_MAX * E2M1_MAX)).clamp(min=1e-12)
    local = (blocks.abs().amax(-1) / E2M1_MAX / whole).clamp(max=E4M3_MAX)
    local = local.to(torch.float8_e4m3fn).float()
    x = blocks / (local * whole).clamp(min=1e-12)[..., None]
    codes = (x.abs()[..., None] - E2M1).abs().argmin(-1) + 8 * (x < 0)
    codes = codes.flatten(1)
    return {
        "weight": (codes[:, ::2] * 16 + codes[:, 1::2]).to(torch.uint8),
        "weight_scale": swizzled(local).to(torch.float8_e4m3fn),
        "weight_scale_2": whole.float(),
    }


def write_safetensors(
    kind: Callable[[Tensor], Tensors], marked_in_header: str, checkpoint: Path, folder: Path
) -> None:
    """The checkpoint with its blocks' matrices in `kind`; everything else as it is."""
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


def q4_k(rows: np.ndarray) -> np.ndarray:
    """Super-blocks of 256 float32: (R, C) -> bytes (R, C / 256 * 144). A value is d * scale * q -
    dmin * min with 4-bit q and 6-bit scale and min per 32."""
    x = rows.reshape(-1, 8, 32).astype(np.float32)
    low = np.minimum(x.min(-1), 0)
    step = (x.max(-1) - low) / 15
    d = (step.max(-1) / 63).astype(np.float16).astype(np.float32)
    d_min = ((-low).max(-1) / 63).astype(np.float16).astype(np.float32)
    scales = _six_bits(step, d)
    minima = _six_bits(-low, d_min)
    unit = d[:, None] * scales
    base = d_min[:, None] * minima
    q = (x + base[..., None]) / np.where(unit > 0, unit, 1)[..., None]
    q = np.clip(np.rint(np.where(unit[..., None] > 0, q, 0)), 0, 15).astype(np.uint8)
    pairs = q.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    halves = np.stack([d, d_min], 1).astype(np.float16).view(np.uint8)
    packed = np.concatenate([halves, _packed_scales(scales, minima), nibbles], axis=1)
    return packed.reshape(len(rows), -1)


def _six_bits(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    whole = np.rint(values / np.where(unit > 0, unit, 1)[:, None])
    return np.clip(whole, 0, 63).astype(np.uint8)


def _packed_scales(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Eight 6-bit scales and eight 6-bit minima in 12 bytes."""
    first, later = slice(0, 4), slice(4, 8)
    return np.concatenate(
        [
            scales[:, first] | (scales[:, later] >> 4) << 6,
            minima[:, first] | (minima[:, later] >> 4) << 6,
            (scales[:, later] & 15) | (minima[:, later] & 15) << 4,
        ],
        axis=1,
    )


def q8_0(rows: np.ndarray) -> np.ndarray:
    """Blocks of 32 (gguf-py's own)."""
    return gguf.quants.quantize(rows, gguf.GGMLQuantizationType.Q8_0)


_BLOCKS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "Q8_0": (32, q8_0),
    "Q4_K": (256, q4_k),
}


def stored(name: str, value: Tensor, block: str) -> tuple[np.ndarray, str]:
    """Array and GGUF type of a tensor of the transformer."""
    if value.dim() < 2 or value.numel() <= SMALL or "scale_shift_table" in name:
        return value.float().numpy(), "F32"
    if any(part in name for part in WHOLE) or value.dim() != 2:
        return value.to(torch.bfloat16).contiguous().view(torch.uint8).numpy(), "BF16"
    size, quantise = _BLOCKS[block]
    if value.shape[1] % size:
        return value.to(torch.float16).numpy(), "F16"
    return quantise(value.float().numpy()), block


def write_gguf(block: str, checkpoint: Path, folder: Path) -> None:
    """Transformer and connectors as GGUF; the other parts of the checkpoint beside it."""
    tensors, metadata = load_file(checkpoint), _metadata(checkpoint)
    path = folder / "diffusion_models" / f"pocket-ltx-2.3-{block}.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "ltxv")
    writer.add_quantization_version(2)
    for name, text in metadata.items():
        writer.add_string(name, text)
    for name, value in tensors.items():
        if name.startswith(NET):
            array, kind = stored(name, value, block)
            shape = list(value.shape)
            raw = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name.removeprefix(NET), array, raw_dtype=raw)
            if len(shape) > 2:
                writer.add_array(f"comfy.gguf.orig_shape.{name.removeprefix(NET)}", shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for file, prefixes in BESIDE.items():
        part = {n: v for n, v in tensors.items() if n.startswith(prefixes)}
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        save_file(part, target, metadata=metadata)


# ------------------------------------------------------------------------------------------ folders


def _metadata(checkpoint: Path) -> dict[str, str]:
    with safe_open(checkpoint, framework="pt") as file:
        return dict(file.metadata())


WRITERS: dict[str, Callable[[Path, Path], None]] = {
    "fp8": lambda source, folder: write_safetensors(fp8, "", source, folder),
    "nvfp4": lambda source, folder: write_safetensors(nvfp4, "nvfp4", source, folder),
    "q8_0": lambda source, folder: write_gguf("Q8_0", source, folder),
    "q4_k": lambda source, folder: write_gguf("Q4_K", source, folder),
}


def write(name: str, source: Path, folder: Path) -> int:
    """A complete model folder in one format; bytes of what replaces the checkpoint."""
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
    parser.add_argument("--models", type=Path, default=MODELS, help="the bf16 model folder")
    options = parser.parse_args()
    for name in options.formats.split(","):
        print(f"{name}: {write(name, options.models, options.folder / name) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
