"""Tables that map tensor names to their role and to their original name in that component.

Layouts: the single file of LTX-2.0/2.3/2.5 (https://github.com/Lightricks/LTX-2), the split files
of ComfyUI's model folders, Gemma 3 and 4 with the names of ComfyUI, transformers and llama.cpp,
latent upsamplers, duration heads, tiny preview decoders, LoRAs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

ROLES = (
    "transformer",
    "connectors",
    "text_projection",
    "video_vae",
    "audio_vae",
    "vocoder",
    "text_encoder",
    "latent_upsampler",
    "duration_head",
    "preview_vae",
    "lora",
)


class TensorRole(NamedTuple):
    """The role of a tensor and its name in that component; ``None``: the tensor is not needed.

    The role ``vae`` is a VAE without a prefix, which may be the video or the audio VAE.
    """

    role: str | None
    key: str


_TRANSFORMER = ("model.diffusion_model.", "diffusion_model.")
_CONNECTORS = ("video_embeddings_connector.", "audio_embeddings_connector.")
_BARE_TRANSFORMER = (
    "transformer_blocks.",
    "patchify_proj.",
    "audio_patchify_proj.",
    "proj_out.",
    "audio_proj_out.",
    "adaln_single.",
    "audio_adaln_single.",
    "prompt_adaln_single.",
    "audio_prompt_adaln_single.",
    "av_ca_",
    "caption_projection.",
    "audio_caption_projection.",
    "scale_shift_table",
    "audio_scale_shift_table",
    "keyframes_abs_pos_embedding",
)
_GEMMA = ("model.", "language_model.model.", "model.language_model.")
_UPSAMPLER = (
    "initial_conv.",
    "initial_norm.",
    "res_blocks.",
    "upsampler.",
    "post_upsample_res_blocks.",
    "final_conv.",
)
_NOT_NEEDED = (
    "vision_model.",
    "vision_tower.",
    "model.vision_tower.",
    "multi_modal_projector.",
    "model.multi_modal_projector.",
    "audio_projector.",
    "model.vision_embedder.",
    "model.embed_vision.",
    "model.embed_audio.",
    "lm_head.",
    "language_model.lm_head.",
)

# Prefix -> role, and what replaces the prefix. The longest prefix wins.
_PREFIXES: Mapping[str, TensorRole] = {
    **{prefix: TensorRole("transformer", "") for prefix in _TRANSFORMER},
    **{part: TensorRole("transformer", part) for part in _BARE_TRANSFORMER},
    **{
        f"{prefix}{part}": TensorRole("connectors", part)
        for prefix in (*_TRANSFORMER, "")
        for part in _CONNECTORS
    },
    "text_embedding_projection.": TensorRole("text_projection", ""),
    **{
        f"{stream}aggregate_embed.": TensorRole("text_projection", f"{stream}aggregate_embed.")
        for stream in ("video_", "audio_", "")
    },
    "vae.": TensorRole("video_vae", ""),
    "audio_vae.": TensorRole("audio_vae", ""),
    "vocoder.": TensorRole("vocoder", ""),
    **{
        part: TensorRole("vae", part)
        for part in ("encoder.", "decoder.", "per_channel_statistics.")
    },
    **{
        f"{wrap}{part}": TensorRole("text_encoder", part)
        for wrap in _GEMMA
        for part in ("layers.", "embed_tokens.", "norm.")
    },
    **{
        part: TensorRole("text_encoder", part)
        for part in ("spiece_model", "tokenizer_json", "hf_asset__")
    },
    **{part: TensorRole("latent_upsampler", part) for part in _UPSAMPLER},
    **{
        f"{prefix}duration_head.": TensorRole("duration_head", "") for prefix in (*_TRANSFORMER, "")
    },
    **{part: TensorRole(None, part) for part in _NOT_NEEDED},
}
_PREFIXES_BY_FIRST_WORD: dict[str, list[str]] = {}
for _prefix in sorted(_PREFIXES, key=len, reverse=True):
    _PREFIXES_BY_FIRST_WORD.setdefault(_prefix[: _prefix.find(".") + 1], []).append(_prefix)
"""Prefixes by their first word with its dot; those without a dot under ""."""

# A vocoder without its outer prefix: its own generator is called vocoder as well.
_BARE_VOCODER = ("vocoder.", "bwe_generator.", "mel_stft.")


def assign_roles(names: Iterable[str]) -> dict[str, TensorRole]:
    """The role of every tensor name that has one."""
    names = list(names)
    bare_vocoder = any(name.startswith("bwe_generator.") for name in names)
    tiny = TINY_DECODER.issubset(names)
    found = {}
    for name in names:
        if bare_vocoder and name.startswith(_BARE_VOCODER):
            found[name] = TensorRole("vocoder", name)
        elif tiny and name.startswith(("encoder.", "decoder.")):
            found[name] = TensorRole("preview_vae", name)
        elif (assigned := _match_prefix(name)) is not None:
            found[name] = assigned
    return found


def _match_prefix(name: str) -> TensorRole | None:
    for prefix in (
        *_PREFIXES_BY_FIRST_WORD.get(name[: name.find(".") + 1], ()),
        *_PREFIXES_BY_FIRST_WORD[""],
    ):
        if name.startswith(prefix):
            assigned = _PREFIXES[prefix]
            return TensorRole(assigned.role, assigned.key + name[len(prefix) :])
    return None


TINY_DECODER = frozenset({"decoder.1.weight", "decoder.3.conv.0.weight", "decoder.22.bias"})
"""Tensors of every tiny video autoencoder (TAEHV, https://github.com/madebyollin/taehv):
first convolution, first memory block, last convolution."""

_VAE = r"(encoder|decoder)\.conv_in\.conv\.weight$|per_channel_statistics\.mean-of-means$"
_DIFFUSION_DECODER = r"decoder\.conv_in_x_t\.weight$"

SIGNATURES: Mapping[str, re.Pattern[str]] = {
    role: re.compile(pattern)
    for role, pattern in {
        "transformer": r"transformer_blocks\.\d+\.(attn1|audio_attn1|audio_ff)\.",
        "connectors": r"(video|audio)_embeddings_connector\.transformer_1d_blocks\.0\.",
        "text_projection": r"(video_|audio_)?aggregate_embed\.weight$",
        "video_vae": f"{_VAE}|{_DIFFUSION_DECODER}",
        "audio_vae": _VAE,
        "vocoder": r"(vocoder\.)?conv_pre\.weight$",
        "text_encoder": r"layers\.\d+\.pre_feedforward_layernorm\.weight$",
        "duration_head": r"attention_pooler\.query_tokens$",
        "latent_upsampler": r"post_upsample_res_blocks\.0\.conv2\.weight$",
        "preview_vae": r"decoder\.22\.bias$",
    }.items()
}
"""Role -> pattern of a tensor that only this role has; a file without it does not have the role."""

LORA_KEY = re.compile(
    r"\.(lora_(A|B|up|down)(\.\w+)?\.weight|lora_(A|B)|lokr_w\d\w*|hada_w\d_\w|diff|diff_b|"
    r"lora(_linear_layer)?\.(down|up)(\.weight)?|lora_(A|B|up|down)\.\w+|"
    r"oft_\w+(\.weight)?|boft_\w+|glora_\w+(\.weight)?|ia3_\w+(\.weight)?)$|"
    r"_lora\.(down|up)\.weight$",
    re.IGNORECASE,
)
"""Names of tensors of adapters, also of kinds that cannot be applied."""

_FULL_TRANSFORMER = (
    re.compile(r"(^|\.)patchify_proj\.weight$"),
    re.compile(r"(^|\.)transformer_blocks\.0\.attn1\.to_q\.weight$"),
)


def is_lora(names: Iterable[str]) -> bool:
    """True for the names of an adapter file.

    False for a transformer that also holds adapter tensors, e.g. of a low-rank correction.
    """
    names = list(names)
    if not any(LORA_KEY.search(name) for name in names):
        return False
    return not all(any(mark.search(name) for name in names) for mark in _FULL_TRANSFORMER)


# --- Gemma with the names of llama.cpp ------------------------------------------------------------

_GGUF_GEMMA = {
    "token_embd.weight": "embed_tokens.weight",
    "output_norm.weight": "norm.weight",
}
_GGUF_LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GGUF_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_GGUF_SCALAR = "layer_output_scale"
_GGUF_NOT_NEEDED = {"output.weight": "lm_head.weight", "rope_freqs.weight": "rope_freqs.weight"}


def assign_gemma_roles(names: Iterable[str]) -> dict[str, TensorRole]:
    """The roles of the tensors of a Gemma 3 or 4 with llama.cpp's names; empty for another model.

    Only these have both a norm after the feed-forward and norms of queries and keys.
    """
    names = list(names)
    if not {"blk.0.post_ffw_norm.weight", "blk.0.attn_q_norm.weight"}.issubset(names):
        return {}
    found = assign_roles(name for name in names if not name.startswith("blk."))
    for name in names:
        match = _GGUF_NAME.fullmatch(name)
        if match and match[2] in _GGUF_LAYER:
            key = f"layers.{match[1]}.{_GGUF_LAYER[match[2]]}.weight"
            found[name] = TensorRole("text_encoder", key)
        elif match and match[2] == _GGUF_SCALAR:
            found[name] = TensorRole("text_encoder", f"layers.{match[1]}.layer_scalar")
        elif name in _GGUF_GEMMA:
            found[name] = TensorRole("text_encoder", _GGUF_GEMMA[name])
        elif name in _GGUF_NOT_NEEDED:
            found[name] = TensorRole(None, _GGUF_NOT_NEEDED[name])
    return found
