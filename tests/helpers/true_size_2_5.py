"""Sparse model files with the names, shapes, dtypes and sizes of the published LTX-2.5.

Each file has a real header and a hole in place of its data. Sizes are those of the published files
up to their headers; the eleven multimodal tensors of the text encoder, which nothing reads, are one
tensor here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from helpers import checkpoint_layouts as layouts
from helpers.checkpoint_layouts import Shape
from helpers.model_folders import ENCODER_2_5, GOLDEN_2_5
from helpers.true_size import TRANSFORMER_CONFIG, Stored, bf16, write_safetensors

VERSION = "2.5.0"
GEMMA_VERSION = "gemma4-12b-ltx-v1"
PREFIX = "model.diffusion_model."
TRANSFORMERS = {
    "bf16": "bf16", "int8": "comfy-int8-convrot", "nvfp4": "nvfp4",
}  # fmt: skip
"""Weight format -> end of the file name."""
SPARED = range(0, 48, 8)
"""Six blocks that NVFP4 leaves in bf16; which ones is not known."""
CHANNELS, DEPTHS = (2048, 1024, 512, 512, 256), (4, 6, 4, 2, 8)
UPSAMPLES = (((1, 2, 2), 2), ((2, 1, 1), 2), ((2, 2, 2), 1), ((2, 2, 2), 2))
OTHER_BYTES = 104_864_000
"""Bytes of the multimodal tensors, about."""


def transformer() -> Iterator[tuple[str, Shape]]:
    """4091 tensors: those of LTX-2.3 without the biases of the video FFN, and the mark."""
    for name, shape in layouts.transformer():
        if not (".ff.net." in name and name.endswith(".bias")):
            yield name, shape
    yield "keyframes_abs_pos_embedding", (1, 4096)


def whole_transformer() -> Iterator[tuple[str, Shape]]:
    """The transformer file: transformer and connectors with their prefix."""
    for part in (transformer, layouts.connectors):
        for name, shape in part():
            yield PREFIX + name, shape


def gemma_4() -> Iterator[tuple[str, Shape]]:
    """The 666 tensors of the text tower of Gemma 4 12B."""
    hidden, inner = 3840, 15360
    yield "model.embed_tokens.weight", (262144, hidden)
    for i in range(48):
        layer, full = f"model.layers.{i}.", i % 6 == 5
        width, keys, head = (8192, 512, 512) if full else (4096, 2048, 256)
        yield f"{layer}self_attn.q_proj.weight", (width, hidden)
        for name in ("k_proj",) if full else ("k_proj", "v_proj"):
            yield f"{layer}self_attn.{name}.weight", (keys, hidden)
        yield f"{layer}self_attn.o_proj.weight", (hidden, width)
        for name in ("q_norm", "k_norm"):
            yield f"{layer}self_attn.{name}.weight", (head,)
        for name in ("gate_proj", "up_proj"):
            yield f"{layer}mlp.{name}.weight", (inner, hidden)
        yield f"{layer}mlp.down_proj.weight", (hidden, inner)
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield f"{layer}{name}_layernorm.weight", (hidden,)
        yield f"{layer}layer_scalar", (1,)
    yield "model.norm.weight", (hidden,)


def block(path: str, width: int) -> Iterator[tuple[str, Shape]]:
    """A block of the diffusion decoder."""
    inner = -(-4 * width // 16) * 16
    for n in "12":
        yield f"{path}.norm{n}.weight", (width,)
    yield from layouts.layer(f"{path}.attn.qkv", 3 * width, width)
    for name in ("q_norm", "k_norm"):
        yield f"{path}.attn.{name}.weight", (64,)
    yield from layouts.layer(f"{path}.attn.proj", width, width)
    for name in ("w_gate", "w_up"):
        yield f"{path}.mlp.{name}.weight", (inner, width)
    yield f"{path}.mlp.w_down.weight", (width, inner)


def diffusion_vae() -> Iterator[tuple[str, Shape]]:
    """Encoder, statistics and the 310 tensors of the pixel diffusion decoder."""
    for name, shape in layouts.video_vae():
        if not name.startswith("decoder."):
            yield name, shape
    last = CHANNELS[-1]
    yield "decoder.type_emb", (128,)
    yield from layouts.layer("decoder.conv_in", CHANNELS[0], 128)
    for stage, (width, depth) in enumerate(zip(CHANNELS[:-1], DEPTHS[:-1], strict=True)):
        for i in range(depth):
            yield from block(f"decoder.det_stages.{stage}.{i}", width)
    for i, (stride, reduction) in enumerate(UPSAMPLES):
        rows = CHANNELS[i] * stride[0] * stride[1] * stride[2] // reduction
        yield from layouts.layer(f"decoder.upsamples.{i}.proj", rows, CHANNELS[i])
    yield from layouts.layer("decoder.t_embedder.mlp.0", 384, 256)
    yield from layouts.layer("decoder.t_embedder.mlp.2", 384, 384)
    yield from layouts.layer("decoder.shared_adaln.proj", 7 * last, 384)
    yield from layouts.layer("decoder.conv_in_x_t", last, 48)
    for i in range(DEPTHS[-1]):
        yield from block(f"decoder.diff_blocks.{i}", last)
        yield from layouts.layer(f"decoder.diff_blocks.{i}.context_proj", last, last)
        yield f"decoder.diff_blocks.{i}.scale_shift_table", (7, last)
    yield "decoder.norm_out.weight", (last,)
    yield from layouts.layer("decoder.conv_out", 48, last)


def duration_head() -> Iterator[tuple[str, Shape]]:
    """The 15 tensors of the duration head."""
    path = "duration_head"
    for stream, width in (("video", 4096), ("audio", 2048)):
        yield from layouts.layer(f"{path}.{stream}_input_proj", 256, width)
        yield f"{path}.{stream}_modality_emb", (256,)
    pooler = f"{path}.attention_pooler"
    yield f"{pooler}.query_tokens", (1, 256)
    yield f"{pooler}.cross_attn.in_proj_weight", (768, 256)
    yield f"{pooler}.cross_attn.in_proj_bias", (768,)
    yield from layouts.layer(f"{pooler}.cross_attn.out_proj", 256, 256)
    yield from layouts.layer(f"{path}.mlp_hidden", 256, 256)
    yield from layouts.layer(f"{path}.mlp_out", 1, 256)


def lora(rank: int = 450) -> Iterator[Stored]:
    """The distilled LoRA: a pair for each of 1660 Linears."""
    for name, shape in transformer():
        if name.endswith(".weight") and len(shape) == 2:
            module, width = f"diffusion_model.{name.removesuffix('.weight')}", min(rank, *shape)
            yield Stored(f"{module}.lora_A.weight", (width, shape[1]), "BF16")
            yield Stored(f"{module}.lora_B.weight", (shape[0], width), "BF16")


def _is_quantised(name: str, shape: Shape) -> bool:
    inside = "_blocks." in name or name.startswith("model.layers.")
    return inside and len(shape) == 2 and name.endswith(".weight") and "to_gate_logits" not in name


def int8(tensors: Iterable[tuple[str, Shape]]) -> tuple[list[Stored], dict[str, bytes]]:
    """Linears of all blocks in rotated int8 with a scale per row, the rest in bf16; and markers."""
    stored: list[Stored] = []
    markers: dict[str, bytes] = {}
    marker = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}
    for name, shape, dtype in bf16(tensors):
        if not _is_quantised(name, shape):
            stored.append(Stored(name, shape, dtype))
            continue
        layer = name.removesuffix(".weight")
        stored += [
            Stored(name, shape, "I8"), Stored(f"{layer}.weight_scale", (shape[0], 1), "F32"),
        ]  # fmt: skip
        markers[f"{layer}.comfy_quant"] = json.dumps(marker).encode()
    return stored, markers


def nvfp4(tensors: Iterable[tuple[str, Shape]]) -> tuple[list[Stored], dict[str, bytes]]:
    """Linears of 42 blocks of the transformer in NVFP4, the rest in bf16; and markers."""
    stored: list[Stored] = []
    markers: dict[str, bytes] = {}
    for name, shape, dtype in bf16(tensors):
        number = name.partition(".transformer_blocks.")[2].partition(".")[0]
        spared = not number or int(number) in SPARED or "connector" in name
        if spared or not _is_quantised(name, shape):
            stored.append(Stored(name, shape, dtype))
            continue
        layer, (rows, columns) = name.removesuffix(".weight"), shape
        stored += [
            Stored(name, (rows, columns // 2), "U8"),
            Stored(f"{layer}.weight_scale", (rows, columns // 16), "F8_E4M3"),
            Stored(f"{layer}.weight_scale_2", (), "F32"),
        ]
        markers[f"{layer}.comfy_quant"] = b'{"format": "nvfp4"}'
    return stored, markers


def header(config: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a header."""
    return {"config": json.dumps(config), "model_version": VERSION}


def write_transformer(folder: Path, variant: str = "distilled", precision: str = "bf16") -> Path:
    """Write a transformer with its connectors."""
    forms = {"int8": int8, "nvfp4": nvfp4}
    tensors, markers = list(bf16(whole_transformer())), dict[str, bytes]()
    if precision in forms:
        tensors, markers = forms[precision](whole_transformer())
    changes = {
        "ff_bias": False, "use_keyframes_abs_pos_embedding": True,
        "text_encoder_norm_type": "PER_TOKEN_RMS",
    }  # fmt: skip
    config = {
        "transformer": {**TRANSFORMER_CONFIG, **changes},
        "vae": None, "audio_vae": None, "vocoder": None,
    }  # fmt: skip
    source = {"ltx_version": VERSION, "gemma_version": GEMMA_VERSION}
    metadata = header(config) | {"gemma_source_checkpoint": json.dumps(source)}
    name = f"ltx-2.5-22b-{variant}-transformer-{TRANSFORMERS[precision]}.safetensors"
    return write_safetensors(folder / "diffusion_models" / name, tensors, metadata, markers)


def write_text_encoder(folder: Path, precision: str = "bf16") -> Path:
    """Write the text encoder with projection and a small, real vocabulary."""
    with safe_open(GOLDEN_2_5 / ENCODER_2_5, "pt") as opened:
        config = json.loads(opened.metadata()["gemma_config"])
        names = [n for n in sorted(opened.keys()) if n.startswith(("tokenizer_json", "hf_asset"))]
        assets = {name: bytes(opened.get_tensor(name).numpy()) for name in names}
    config["text_config"] |= {
        "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 1,
        "head_dim": 256, "global_head_dim": 512, "sliding_window": 1024, "vocab_size": 262144,
        "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(48)],
    }  # fmt: skip
    markers: dict[str, bytes] = {}
    tensors = list(bf16(gemma_4()))
    if precision == "int8":
        tensors, markers = int8(gemma_4())
    projection = ((f"text_embedding_projection.{n}", s) for n, s in layouts.projection())
    tensors += [*bf16(projection), Stored("vision_model.all", (OTHER_BYTES // 2,), "BF16")]
    assets["tokenizer_json"] = assets["tokenizer_json"].ljust(32_169_626)
    end = "bf16" if precision == "bf16" else "comfy-int8-convrot"
    path = folder / f"text_encoders/gemma4-12b-with-proj-ltx-2.5-{end}.safetensors"
    return write_safetensors(path, tensors, {"gemma_config": json.dumps(config)}, markers | assets)


def write_others(folder: Path) -> None:
    """Write both video VAEs, sound, upscalers, duration head and the distilled LoRA."""
    encoder = {"dims": 3, "in_channels": 3, "out_channels": 128, "patch_size": 4,
               "blocks": layouts.VAE_CONFIG["encoder_blocks"], "latent_log_var": "constant",
               "norm_layer": "pixel_norm", "spatial_padding_mode": "zeros"}  # fmt: skip
    decoder = {
        "_class_name": "NADiffusionDecoder", "in_channels": 128, "out_channels": 3,
        "patch_size": 4, "head_dim": 64, "stage_channels": CHANNELS, "stage_depths": DEPTHS,
        "stage_kernels": [[3, 7, 7], [3, 7, 7], [3, 5, 5], [3, 5, 5], [11, 11, 11]],
        "stage5_kernel": [11, 11, 11], "upsamples": UPSAMPLES, "resampler_kind": "linear",
        "t_emb_dim": 384, "timestep_scale_multiplier": 1000, "default_num_inference_steps": 1,
    }  # fmt: skip
    diffusion = {"_class_name": "CausalDiffusionVAE", "dims": 3, "model_output_type": "x0",
                 "encoder": encoder, "decoder": decoder}  # fmt: skip
    conv = {"_class_name": "CausalVideoAutoencoder", **layouts.VAE_CONFIG}
    sound = [*((f"audio_vae.{n}", s) for n, s in layouts.audio_vae()),
             *((f"vocoder.{n}", s) for n, s in layouts.vocoder())]  # fmt: skip
    sound_config = {"audio_vae": layouts.AUDIO_CONFIG, "vocoder": layouts.VOCODER_CONFIG}
    upscaler = {"_class_name": "LatentUpsampler", "in_channels": 128, "num_blocks_per_stage": 4,
                "dims": 3, "rational_resampler": False}  # fmt: skip
    up = "latent_upscale_models/ltx-2.5-latent-"
    widths = {"cross_attention_dim": 4096, "audio_cross_attention_dim": 2048}
    files: dict[str, tuple[Iterable[Stored], dict[str, str]]] = {
        "vae/ltx-2.5-video-vae-bf16": (bf16(diffusion_vae()), header({"vae": diffusion})),
        "vae/ltx-2.5-video-vae-conv-bf16": (bf16(layouts.video_vae()), header({"vae": conv})),
        "vae/ltx-2.5-audio-vae-bf16": (bf16(sound), header(sound_config)),
        f"{up}spatial-upscaler-x2-bf16-1.0": (
            bf16(layouts.upsampler(1024, "x2")),
            header({**upscaler, "mid_channels": 1024, "spatial_scale": 2.0,
                    "spatial_upsample": True, "temporal_upsample": False}),
        ),
        f"{up}temporal-upscaler-x2-bf16-1.0": (
            bf16(layouts.upsampler(512, "temporal")),
            header({**upscaler, "mid_channels": 512,
                    "spatial_upsample": False, "temporal_upsample": True}),
        ),
        "model_patches/ltx-2.5-duration-head-bf16": (
            bf16(duration_head()), header({"transformer": widths}),
        ),
        "loras/ltx-2.5-22b-distilled-lora-450-bf16": (
            lora(), {"model_version": VERSION, "lora_rank": "450", "lora_alpha": "450"},
        ),
    }  # fmt: skip
    for name, (tensors, metadata) in files.items():
        write_safetensors(folder / f"{name}.safetensors", tensors, metadata)
