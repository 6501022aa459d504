"""Sparse model files with the names, shapes, dtypes and sizes of the published LTX-2.3 22B.

Each file has a real header and a hole in place of the data, which reads as zeros and needs hardly
any disk space.

    python tests/helpers/true_size.py FOLDER     # a models/ folder of 200 GB that needs 3 MB
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from helpers import checkpoint_layouts as layouts
from helpers.checkpoint_layouts import Shape

BYTES = {"BF16": 2, "F32": 4, "F16": 2, "F8_E4M3": 1, "U8": 1, "F8_E8M0": 1, "I8": 1}
GGML = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144),
        "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "BF16": (30, 1, 2)}  # fmt: skip
"""Name -> (number in the format, values of a block, bytes of a block)."""


class Stored(NamedTuple):
    """One tensor of a file."""

    name: str
    shape: Shape
    dtype: str


TRANSFORMER_CONFIG: Mapping[str, Any] = {
    "_class_name": "AVTransformer3DModel",
    "num_layers": 48,
    "num_attention_heads": 32,
    "attention_head_dim": 128,
    "in_channels": 128,
    "out_channels": 128,
    "cross_attention_dim": 4096,
    "caption_channels": 3840,
    "audio_num_attention_heads": 32,
    "audio_attention_head_dim": 64,
    "audio_out_channels": 128,
    "audio_cross_attention_dim": 2048,
    "norm_eps": 1e-06,
    "qk_norm": "rms_norm",
    "rope_type": "split",
    "positional_embedding_theta": 10000.0,
    "positional_embedding_max_pos": [20, 2048, 2048],
    "audio_positional_embedding_max_pos": [20],
    "frequencies_precision": "float64",
    "timestep_scale_multiplier": 1000,
    "av_ca_timestep_scale_multiplier": 1000.0,
    "use_middle_indices_grid": True,
    "causal_temporal_positioning": True,
    "apply_gated_attention": True,
    "cross_attention_adaln": True,
    "av_cross_ada_norm": True,
    "connector_num_attention_heads": 32,
    "connector_attention_head_dim": 128,
    "audio_connector_num_attention_heads": 32,
    "audio_connector_attention_head_dim": 64,
    "connector_num_layers": 8,
    "connector_num_learnable_registers": 128,
    "connector_positional_embedding_max_pos": [4096],
    "connector_apply_gated_attention": True,
    "caption_proj_before_connector": True,
    "text_encoder_norm_type": "per_token_rms",
}
CONFIG: Mapping[str, Any] = {
    "transformer": TRANSFORMER_CONFIG,
    "vae": layouts.VAE_CONFIG,
    "audio_vae": layouts.AUDIO_CONFIG,
    "vocoder": layouts.VOCODER_CONFIG,
}


def gemma(prefix: str = "model.") -> Iterator[tuple[str, Shape]]:
    """Gemma 3 12B without its vision tower."""
    hidden, inner = 3840, 15360
    yield f"{prefix}embed_tokens.weight", (262208, hidden)
    for i in range(48):
        layer = f"{prefix}layers.{i}."
        for name, rows in (("q_proj", 4096), ("k_proj", 2048), ("v_proj", 2048)):
            yield f"{layer}self_attn.{name}.weight", (rows, hidden)
        yield f"{layer}self_attn.o_proj.weight", (hidden, 4096)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}self_attn.{name}.weight", (256,)
        for name in ("gate_proj", "up_proj"):
            yield f"{layer}mlp.{name}.weight", (inner, hidden)
        yield f"{layer}mlp.down_proj.weight", (hidden, inner)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{layer}{name}_layernorm.weight", (hidden,)
    yield f"{prefix}norm.weight", (hidden,)


def whole() -> Iterator[tuple[str, Shape]]:
    """The single-file checkpoint: 5947 tensors."""
    for prefix, part in layouts.REAL.items():
        for name, shape in part():
            yield prefix + name, shape


def bf16(tensors: Iterable[tuple[str, Shape]]) -> Iterator[Stored]:
    """All tensors in bf16, except the modulation tables and statistics."""
    for name, shape in tensors:
        wide = "scale_shift_table" in name or "per_channel_statistics" in name
        yield Stored(name, shape, "F32" if wide else "BF16")


def _quantised(name: str, shape: Shape, blocks: range) -> bool:
    inside = "transformer_blocks." in name and "connector" not in name
    if not (inside and name.endswith(".weight") and len(shape) == 2):
        return False
    return int(name.split("transformer_blocks.")[1].split(".")[0]) in blocks


def fp8(tensors: Iterable[tuple[str, Shape]], blocks: range = range(44)) -> Iterator[Stored]:
    """Scaled fp8 with input scales in the Linears of most blocks, gates included."""
    for name, shape, dtype in bf16(tensors):
        if not _quantised(name, shape, blocks):
            yield Stored(name, shape, dtype)
            continue
        yield Stored(name, shape, "F8_E4M3")
        for scale in ("weight_scale", "input_scale"):
            yield Stored(f"{name.removesuffix('weight')}{scale}", (), "F32")


def nvfp4(tensors: Iterable[tuple[str, Shape]]) -> Iterator[Stored]:
    """The Linears of 44 blocks but gates in NVFP4, the rest in bf16: 21.7 GB, as published."""
    for name, shape, dtype in bf16(tensors):
        layer = name.removesuffix(".weight")
        if "to_gate_logits" in name or not _quantised(name, shape, range(44)):
            yield Stored(name, shape, dtype)
            continue
        rows, columns = shape
        yield Stored(name, (rows, columns // 2), "U8")
        scales = -(-rows // 128) * 128, -(-columns // 64) * 4  # whole tiles of 128 x 4 scales
        yield Stored(f"{layer}.weight_scale", scales, "F8_E4M3")
        for scale in ("weight_scale_2", "input_scale"):
            yield Stored(f"{layer}.{scale}", (), "F32")


def nvfp4_metadata(tensors: Iterable[Stored]) -> dict[str, str]:
    """The header entry with the quantised layers."""
    layers = {
        t.name.removesuffix(".weight"): {"format": "nvfp4"} for t in tensors if t.dtype == "U8"
    }
    body = {"format_version": "1.0", "layers": layers}
    return {"_quantization_metadata": json.dumps(body)}


def q4_k(tensors: Iterable[tuple[str, Shape]], medium: bool = True) -> Iterator[Stored]:
    """The mixes Q4_K_M and Q4_K_S of llama.cpp's converter."""
    kept = ("adaln_single.", "patchify_proj.", "proj_out.", "scale_shift_table")
    for name, shape in tensors:
        if len(shape) < 2 or "scale_shift_table" in name:
            dtype = "F32"
        elif any(part in name for part in kept):
            dtype = "BF16"
        elif ".ff.net.2" in name:
            dtype = "Q6_K" if medium else "Q5_K"
        elif name.endswith(".to_v.weight"):
            early = int(name.split("transformer_blocks.")[1].split(".")[0]) == 0
            dtype = "Q6_K" if medium else "Q5_K" if early else "Q4_K"
        else:
            dtype = "Q4_K"
        yield Stored(name, shape, dtype)


def q8_0(tensors: Iterable[tuple[str, Shape]]) -> Iterator[Stored]:
    """All Linears of llama.cpp's Q8_0, the tensors that Q4_K keeps as there."""
    for stored in q4_k(tensors):
        yield stored if stored.dtype in ("F32", "BF16") else stored._replace(dtype="Q8_0")


def lora(rank: int = 384) -> Iterator[Stored]:
    """The distilled LoRA: a pair for each of 1660 Linears."""
    for name, shape in layouts.transformer():
        if name.endswith(".weight") and len(shape) == 2:
            module = f"diffusion_model.{name.removesuffix('.weight')}"
            width = min(rank, *shape)
            yield Stored(f"{module}.lora_A.weight", (width, shape[1]), "BF16")
            yield Stored(f"{module}.lora_B.weight", (shape[0], width), "BF16")


RESIZED_LORA = "ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16"


def resized_lora() -> Iterator[Stored]:
    """The distilled LoRA with a rank of its own for each module, 111 on average."""
    pairs = list(lora())
    for number, (down, up) in enumerate(zip(pairs[::2], pairs[1::2], strict=True)):
        rank = min(down.shape[0], 47 + 32 * (number % 5))
        yield down._replace(shape=(rank, down.shape[1]))
        yield up._replace(shape=(up.shape[0], rank))


def _count(shape: Shape) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def write_safetensors(
    path: Path,
    tensors: Iterable[Stored],
    metadata: Mapping[str, str] | None = None,
    content: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a safetensors file whose data is a hole, except the U8 tensors of ``content``."""
    header: dict[str, Any] = {"__metadata__": dict(metadata or {})}
    content, written, offset = content or {}, {}, 0
    for name, data in content.items():
        header[name] = {
            "dtype": "U8",
            "shape": [len(data)],
            "data_offsets": [offset, offset + len(data)],
        }
        written[offset] = data
        offset += len(data)
    for name, shape, dtype in tensors:
        end = offset + _count(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    _sparse(path, struct.pack("<Q", len(text)) + text, offset)
    with path.open("r+b") as file:
        for start, data in written.items():
            file.seek(8 + len(text) + start)
            file.write(data)
    return path


def write_gguf(path: Path, tensors: Iterable[Stored], kv: Mapping[str, str]) -> Path:
    """Write a GGUF file (version 3) whose data is a hole; values of ``kv`` are strings."""
    infos, offset, count = b"", 0, 0
    for name, shape, dtype in tensors:
        kind, values, size = GGML[dtype]
        dims = b"".join(struct.pack("<Q", side) for side in reversed(shape or (1,)))
        infos += _text(name) + struct.pack("<I", len(shape or (1,))) + dims
        infos += struct.pack("<IQ", kind, offset)
        offset += -(-_count(shape) // values * size // 32) * 32
        count += 1
    entries = b"".join(_text(k) + struct.pack("<I", 8) + _text(v) for k, v in kv.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, count, len(kv)) + entries + infos
    return _sparse(path, head + b"\0" * (-len(head) % 32), offset)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _sparse(path: Path, head: bytes, data: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + data)
    return path


def _header(config: Mapping[str, Any] = CONFIG) -> dict[str, str]:
    return {"config": json.dumps(config), "model_version": "2.3.0"}


def vocabulary() -> bytes:
    """A real, small SentencePiece model: that of the golden files."""
    data = (
        Path(__file__).parents[1] / "golden/text_encoders/tiny-gemma-3.safetensors"
    ).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    begin, end = json.loads(data[8 : 8 + length])["spiece_model"]["data_offsets"]
    return data[8 + length + begin : 8 + length + end]


def _gemma_fp8() -> Iterator[Stored]:
    for name, shape, dtype in bf16(gemma()):
        if not name.endswith("proj.weight"):
            yield Stored(name, shape, dtype)
            continue
        yield Stored(name, shape, "F8_E4M3")
        yield Stored(f"{name.removesuffix('weight')}weight_scale", (), "F32")


GGUF: Mapping[str, Callable[[Iterable[tuple[str, Shape]]], Iterator[Stored]]] = {
    "q8_0": q8_0, "q4_k_m": q4_k, "q4_k_s": partial(q4_k, medium=False),
}  # fmt: skip
"""Tensors of the transformer in GGUF files, by precision."""


def _first_blocks(tensors: Iterable[tuple[str, Shape]], blocks: int) -> Iterator[tuple[str, Shape]]:
    for name, shape in tensors:
        number = re.search(r"(?:^|\.)transformer_blocks\.(\d+)\.", name)
        if number is None or int(number[1]) < blocks:
            yield name, shape


def checkpoint(folder: Path, precision: str = "bf16", blocks: int = 48) -> Path:
    """Write the single file in bf16, fp8 or nvfp4, or the transformer in a form of ``GGUF``.

    Fewer ``blocks`` than 48 make a smaller model.
    """
    name = f"ltx-2.3-22b-dev{'' if precision == 'bf16' else '-' + precision}"
    if precision in GGUF:
        kv = {
            "general.architecture": "ltxv",
            "config": json.dumps({"transformer": {**TRANSFORMER_CONFIG, "num_layers": blocks}}),
        }
        stored = GGUF[precision](_first_blocks(layouts.transformer(), blocks))
        return write_gguf(folder / f"diffusion_models/{name}.gguf", stored, kv)
    forms: Mapping[str, Callable[[Iterable[tuple[str, Shape]]], Iterator[Stored]]] = {
        "bf16": bf16, "fp8": fp8, "nvfp4": nvfp4,
    }  # fmt: skip
    tensors = list(forms[precision](_first_blocks(whole(), blocks)))
    config = {**CONFIG, "transformer": {**TRANSFORMER_CONFIG, "num_layers": blocks}}
    metadata = _header(config) | (nvfp4_metadata(tensors) if precision == "nvfp4" else {})
    return write_safetensors(folder / f"checkpoints/{name}.safetensors", tensors, metadata)


def companions(folder: Path, text_encoder: str = "bf16", *, has_lora: bool = True) -> None:
    """Write text encoder, upsamplers and, unless told otherwise, the distilled LoRA."""
    tensors = bf16(gemma()) if text_encoder == "bf16" else _gemma_fp8()
    name = "gemma_3_12B_it" + ("" if text_encoder == "bf16" else "_fp8_scaled")
    path = folder / f"text_encoders/{name}.safetensors"
    write_safetensors(path, tensors, content={"spiece_model": vocabulary()})
    upscalers = {
        "spatial-upscaler-x2-1.0": (1024, "x2"),
        "spatial-upscaler-x2-1.1": (1024, "x2"),
        "spatial-upscaler-x1.5-1.0": (1024, "x1.5"),
        "temporal-upscaler-x2-1.0": (512, "temporal"),
    }
    for name, (mid, kind) in upscalers.items():
        path = folder / f"latent_upscale_models/ltx-2.3-{name}.safetensors"
        write_safetensors(path, bf16(layouts.upsampler(mid, kind)))
    if has_lora:
        path = folder / "loras/ltx-2.3-22b-distilled-lora-384-1.1.safetensors"
        write_safetensors(path, lora())
        write_safetensors(path.with_name(f"{RESIZED_LORA}.safetensors"), resized_lora())


def split(folder: Path) -> None:
    """Write the files that a GGUF transformer needs in addition, one per component."""
    parts: dict[str, tuple[Iterator[Stored], Mapping[str, Any]]] = {
        "vae/LTX23_video_vae_bf16": (bf16(layouts.video_vae()), {"vae": layouts.VAE_CONFIG}),
        "text_encoders/ltx-2.3-22b-dev_embeddings_connectors": (
            bf16([*layouts.connectors(),
                  *((f"text_embedding_projection.{n}", s) for n, s in layouts.projection())]),
            {"transformer": TRANSFORMER_CONFIG},
        ),
        "vae/LTX23_audio_vae_bf16": (
            bf16([*((f"audio_vae.{n}", s) for n, s in layouts.audio_vae()),
                  *((f"vocoder.{n}", s) for n, s in layouts.vocoder())]),
            {"audio_vae": layouts.AUDIO_CONFIG, "vocoder": layouts.VOCODER_CONFIG},
        ),
    }  # fmt: skip
    for name, (tensors, config) in parts.items():
        write_safetensors(folder / f"{name}.safetensors", tensors, _header(config))


def main() -> None:
    """Write all precisions into one models/ folder."""
    folder = Path(sys.argv[1])
    for precision in ("bf16", "fp8", "nvfp4", *GGUF):
        print(checkpoint(folder, precision))
    companions(folder, "bf16")
    companions(folder, "fp8")
    split(folder)


if __name__ == "__main__":
    main()
