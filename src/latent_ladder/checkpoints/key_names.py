"""What the name of a tensor says: the role it plays, and its original name inside that role.

Tables of names and nothing else. Layouts: the single file of LTX-2.0/2.3/2.5
(https://github.com/Lightricks/LTX-2), the split files of ComfyUI's model folders, Gemma 3 as
ComfyUI, transformers and llama.cpp name it, latent upsamplers, tiny preview decoders, LoRAs.
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
    "preview_vae",
    "lora",
)


class Placed(NamedTuple):
    """A role and the tensor's name there; the role is ``None`` for parts that are not needed.

    The role ``vae`` stands for a bare VAE, of which the name does not tell the kind.
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
    "lm_head.",
    "language_model.lm_head.",
    "duration_head.",
)

# The longest prefix wins. A value is the role and what replaces the prefix.
_PREFIXES: Mapping[str, Placed] = {
    **{prefix: Placed("transformer", "") for prefix in _TRANSFORMER},
    **{part: Placed("transformer", part) for part in _BARE_TRANSFORMER},
    **{
        f"{prefix}{part}": Placed("connectors", part)
        for prefix in (*_TRANSFORMER, "")
        for part in _CONNECTORS
    },
    "text_embedding_projection.": Placed("text_projection", ""),
    **{
        f"{stream}aggregate_embed.": Placed("text_projection", f"{stream}aggregate_embed.")
        for stream in ("video_", "audio_", "")
    },
    "vae.": Placed("video_vae", ""),
    "audio_vae.": Placed("audio_vae", ""),
    "vocoder.": Placed("vocoder", ""),
    **{part: Placed("vae", part) for part in ("encoder.", "decoder.", "per_channel_statistics.")},
    **{
        f"{wrap}{part}": Placed("text_encoder", part)
        for wrap in _GEMMA
        for part in ("layers.", "embed_tokens.", "norm.")
    },
    **{
        part: Placed("text_encoder", part)
        for part in ("spiece_model", "tokenizer_json", "hf_asset__")
    },
    **{part: Placed("latent_upsampler", part) for part in _UPSAMPLER},
    **{part: Placed(None, part) for part in _NOT_NEEDED},
}
_BY_HEAD: dict[str, list[str]] = {}
for _prefix in sorted(_PREFIXES, key=len, reverse=True):
    _BY_HEAD.setdefault(_prefix[: _prefix.find(".") + 1], []).append(_prefix)
"""Prefixes by their first word with its dot, those without a dot under ""."""

# A vocoder whose outer prefix was taken off: its own generator is called vocoder as well.
_BARE_VOCODER = ("vocoder.", "bwe_generator.", "mel_stft.")


def places(names: Iterable[str]) -> dict[str, Placed]:
    """The place of every name that has one."""
    names = list(names)
    bare_vocoder = any(name.startswith("bwe_generator.") for name in names)
    tiny = TINY_DECODER.issubset(names)
    found = {}
    for name in names:
        if bare_vocoder and name.startswith(_BARE_VOCODER):
            found[name] = Placed("vocoder", name)
        elif tiny and name.startswith(("encoder.", "decoder.")):
            found[name] = Placed("preview_vae", name)
        elif (placed := _by_prefix(name)) is not None:
            found[name] = placed
    return found


def _by_prefix(name: str) -> Placed | None:
    for prefix in (*_BY_HEAD.get(name[: name.find(".") + 1], ()), *_BY_HEAD[""]):
        if name.startswith(prefix):
            placed = _PREFIXES[prefix]
            return Placed(placed.role, placed.key + name[len(prefix) :])
    return None


TINY_DECODER = frozenset({"decoder.1.weight", "decoder.3.conv.0.weight", "decoder.22.bias"})
"""In every tiny video autoencoder of the TAEHV kind (https://github.com/madebyollin/taehv):
first convolution, first memory block, last convolution."""

_VAE = r"(encoder|decoder)\.conv_in\.conv\.weight$|per_channel_statistics\.mean-of-means$"

SIGNATURES: Mapping[str, re.Pattern[str]] = {
    role: re.compile(pattern)
    for role, pattern in {
        "transformer": r"transformer_blocks\.\d+\.(attn1|audio_attn1|audio_ff)\.",
        "connectors": r"(video|audio)_embeddings_connector\.transformer_1d_blocks\.0\.",
        "text_projection": r"(video_|audio_)?aggregate_embed\.weight$",
        "video_vae": _VAE,
        "audio_vae": _VAE,
        "vocoder": r"(vocoder\.)?conv_pre\.weight$",
        "text_encoder": r"layers\.\d+\.pre_feedforward_layernorm\.weight$",
        "latent_upsampler": r"post_upsample_res_blocks\.0\.conv2\.weight$",
        "preview_vae": r"decoder\.22\.bias$",
    }.items()
}
"""A role counts only where the file has a tensor that no other family has under that place."""

LORA_KEY = re.compile(
    r"\.(lora_(A|B|up|down)(\.\w+)?\.weight|lora_(A|B)|lokr_w\d\w*|hada_w\d_\w|diff|diff_b)$",
    re.IGNORECASE,
)

# --- Gemma 3 in the names of llama.cpp ------------------------------------------------------------

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


def gemma_places(names: Iterable[str]) -> dict[str, Placed]:
    """The places of a Gemma 3 in llama.cpp's names, empty where it is another model.

    Only Gemma 3 has both a norm behind the feed-forward and norms of queries and keys.
    """
    names = list(names)
    if not {"blk.0.post_ffw_norm.weight", "blk.0.attn_q_norm.weight"}.issubset(names):
        return {}
    found = {"output.weight": Placed(None, "lm_head.weight")} if "output.weight" in names else {}
    for name in names:
        match = _GGUF_NAME.fullmatch(name)
        if match and match[2] in _GGUF_LAYER:
            key = f"layers.{match[1]}.{_GGUF_LAYER[match[2]]}.weight"
            found[name] = Placed("text_encoder", key)
        elif name in _GGUF_GEMMA:
            found[name] = Placed("text_encoder", _GGUF_GEMMA[name])
    return found
