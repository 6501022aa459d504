"""The tiny Gemma of the golden files in the storage formats of published files.

The quantisers are for tests only; their accuracy does not matter, because tests compare with the
dequantised numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@dataclass(frozen=True)
class Quantized:
    """A quantised weight: its stored tensors by the end of their names, and the decoded numbers."""

    tensors: Mapping[str, Tensor]
    numbers: Tensor
    marker: Mapping[str, Any] | None = field(default=None)


def fp8(weight: Tensor, scale_name: str = "weight_scale") -> Quantized:
    """One scale for the whole weight."""
    scale = weight.float().abs().max() / 448
    q = (weight.float() / scale).to(torch.float8_e4m3fn)
    scales = {scale_name: scale, "input_scale": torch.tensor(0.5)}
    return Quantized({"weight": q, **scales}, q.float() * scale, {"format": "float8_e4m3fn"})


def nvfp4(weight: Tensor) -> Quantized:
    """Blocks of 16 with fp8 scales in cuBLAS's order, and one scale over them."""
    rows, columns = weight.shape
    blocks = weight.float().reshape(rows, columns // 16, 16)
    over = blocks.abs().max() / (448 * 6)
    scales = (blocks.abs().amax(-1) / 6 / over).to(torch.float8_e4m3fn)
    step = (scales.float() * over)[..., None]
    magnitude = (blocks / step.clamp_min(1e-30)).abs()
    codes = (magnitude[..., None] - E2M1).abs().argmin(-1)
    numbers = E2M1[codes] * blocks.sign() * step
    nibbles = (codes | (blocks < 0).long() << 3).reshape(rows, columns)
    packed = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).to(torch.uint8)
    tensors = {"weight": packed, "weight_scale": swizzled(scales), "weight_scale_2": over}
    return Quantized(tensors, numbers.reshape(rows, columns), {"format": "nvfp4"})


def swizzled(scales: Tensor) -> Tensor:
    """Block scales in tiles of 128 x 4, row r of a tile at (r % 32, r // 32); one by one."""
    rows, columns = scales.shape
    tall, wide = -(-rows // 128) * 128, -(-columns // 4) * 4
    flat = torch.zeros(tall * wide, dtype=torch.uint8)
    codes = scales.view(torch.uint8)
    for r in range(rows):
        for c in range(columns):
            tile = (r // 128) * (wide // 4) + c // 4
            flat[tile * 512 + (r % 32) * 16 + (r % 128 // 32) * 4 + c % 4] = codes[r, c]
    return flat.reshape(tall, wide).view(torch.float8_e4m3fn)


def golden_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of the tiny Gemma."""
    with safe_open(path, "pt") as opened:
        return {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata()  # noqa: SIM118


def load(path: Path) -> Component:
    """The text encoder in a file or folder."""
    return components(open_checkpoint(path))["text_encoder"]


def quantized_files(
    source: Path,
    folder: Path,
    quantize: Callable[[Tensor], Quantized],
    *,
    markers: str = "tensors",
    chosen: Callable[[str], bool] = lambda name: "proj" in name,
) -> tuple[Path, Path]:
    """Write a file with some weights quantised, and one with their dequantised numbers.

    ``markers``: ``tensors`` (comfy_quant), ``header`` (_quantization_metadata) or ``none``.
    """
    tensors, header = golden_tensors(source)
    plain, stored, layers = dict(tensors), dict(tensors), {}
    for name in [n for n in tensors if n.endswith(".weight") and chosen(n)]:
        layer = name.removesuffix(".weight")
        made = quantize(tensors[name])
        del stored[name]
        stored |= {f"{layer}.{part}": t.contiguous() for part, t in made.tensors.items()}
        plain[name] = made.numbers.contiguous()
        layers[layer] = made.marker
        if markers == "tensors":
            says = list(json.dumps(made.marker).encode())
            stored[f"{layer}.comfy_quant"] = torch.tensor(says, dtype=torch.uint8)
    extra = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    save_file(
        stored, folder / "stored.safetensors", header | (extra if markers == "header" else {})
    )
    save_file(plain, folder / "plain.safetensors", header)
    return folder / "stored.safetensors", folder / "plain.safetensors"


def quantized_pair(*args: Any, **options: Any) -> tuple[Component, Component]:
    """:func:`quantized_files` of a text encoder."""
    stored, plain = quantized_files(*args, **options)
    return load(stored), load(plain)


LLAMA_CPP = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """The name of one of the tiny Gemma's weights in llama.cpp."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, number, rest = name.split(".", 3)
    return f"blk.{number}.{LLAMA_CPP[rest.removesuffix('.weight')]}.weight"


def gguf_gemma(
    source: Path,
    folder: Path,
    kind: gguf.GGMLQuantizationType,
    *,
    factor: float | None = 8.0,
    architecture: str = "gemma3",
) -> tuple[Path, Component]:
    """Write the tiny Gemma as a GGUF file, and as safetensors with the dequantised numbers."""
    tensors, header = golden_tensors(source)
    writer = gguf.GGUFWriter(folder / "gemma.gguf", architecture)
    writer.add_sliding_window(24)
    if factor is not None:
        writer.add_rope_scaling_factor(factor)
    add_vocabulary(writer, bytes(tensors["spiece_model"].numpy().tobytes()))
    plain = dict(tensors)
    for name, weight in tensors.items():
        if name == "spiece_model":
            continue
        numbers = weight.float().numpy()
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), numbers + 1)
            continue
        data = gguf.quantize(numbers, kind)
        shape = data.shape if kind == gguf.GGMLQuantizationType.Q8_0 else None
        writer.add_tensor(gguf_name(name), data, raw_shape=shape, raw_dtype=kind)
        plain[name] = torch.from_numpy(gguf.dequantize(data, kind).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(plain, folder / "plain.safetensors", header)
    return folder / "gemma.gguf", load(folder / "plain.safetensors")


def add_vocabulary(writer: gguf.GGUFWriter, model: bytes) -> None:
    """Add pieces, scores and types of a SentencePiece model like llama.cpp's converter."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_proto=model)
    ids = range(processor.get_piece_size())
    tests = ((2, processor.is_unknown), (3, processor.is_control), (6, processor.is_byte))
    writer.add_tokenizer_model("llama")
    writer.add_token_list([processor.id_to_piece(i) for i in ids])
    writer.add_token_scores([processor.get_score(i) for i in ids])
    writer.add_token_types([next((t for t, test in tests if test(i)), 1) for i in ids])
    writer.add_bos_token_id(processor.bos_id())
    writer.add_eos_token_id(processor.eos_id())
    writer.add_unk_token_id(processor.unk_id())
    writer.add_pad_token_id(processor.pad_id())


def hugging_face_folder(source: Path, folder: Path, wrap: str) -> Path:
    """Write two shards, an index, ``config.json`` and ``tokenizer.model``; adds vision tensors."""
    tensors, header = golden_tensors(source)
    spelled = {
        wrap + name.removeprefix("model."): t
        for name, t in tensors.items()
        if name != "spiece_model"
    }
    spelled["vision_tower.vision_model.encoder.layers.0.layer_norm1.weight"] = torch.ones(4)
    spelled["multi_modal_projector.mm_soft_emb_norm.weight"] = torch.ones(4)
    names = sorted(spelled)
    place: dict[str, str] = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({n: spelled[n] for n in part}, folder / file, {"format": "pt"})
        place |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": place}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads(header["gemma_config"])
    config.setdefault("model_type", "gemma3")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(np.asarray(tensors["spiece_model"]).tobytes())
    return folder
