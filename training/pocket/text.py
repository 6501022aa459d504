"""The text tower of the pocket model: tokenizer, Gemma-3 encoder, projections and connectors.

The structure is LTX-2.3's at very small widths: the hidden states of all layers of a Gemma-3 text
model, RMS-normalised per token and layer, are concatenated (column d * layers + layer) and
projected to a video and an audio width; one connector per stream then replaces the padding by
registers. A `TextTower` is built from header configs alone and is differentiable.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from safetensors import safe_open
from safetensors.torch import save_file
from state import PARTS
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Gemma3TextConfig, Gemma3TextModel
from worlds import SIZES

LENGTH = 64  # tokens per prompt = number of registers
VOCABULARY_SIZE = 1200
PAD, EOS, BOS, UNK = 0, 1, 2, 3
ENCODER_FILE = "text_encoder.safetensors"
CONNECTOR_FILE = "text_connectors.safetensors"

TEXT_CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 256,
    "sliding_window": 16,
    "query_pre_attn_scalar": 32,
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 1024,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": BOS,
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}
CONNECTOR_CONFIG: dict[str, Any] = {  # the keys of the header's `transformer` section used here
    "caption_channels": 96,
    "cross_attention_dim": 32 * SIZES.heads,
    "audio_cross_attention_dim": 16 * SIZES.heads,
    "use_embeddings_connector": True,
    "connector_attention_head_dim": 32,
    "connector_num_attention_heads": SIZES.heads,
    "connector_num_layers": 1,
    "connector_positional_embedding_max_pos": [4096],
    "connector_num_learnable_registers": LENGTH,
    "connector_norm_output": True,
    "connector_apply_gated_attention": True,
    "connector_learnable_registers_std": 1,
    "audio_connector_attention_head_dim": 16,
    "audio_connector_num_attention_heads": SIZES.heads,
    "caption_projection_first_linear": False,
    "caption_projection_second_linear": False,
    "caption_proj_input_norm": False,
    "caption_proj_before_connector": True,
    "text_encoder_norm_type": "per_token_rms",
}
_CONNECTOR_PREFIXES = {  # diffusers -> original
    "video_text_proj_in.": "text_embedding_projection.video_aggregate_embed.",
    "audio_text_proj_in.": "text_embedding_projection.audio_aggregate_embed.",
    "video_connector.": "model.diffusion_model.video_embeddings_connector.",
    "audio_connector.": "model.diffusion_model.audio_embeddings_connector.",
}
_CONNECTOR_NAMES = (
    ("transformer_blocks.", "transformer_1d_blocks."), ("norm_q.", "q_norm."),
    ("norm_k.", "k_norm."),
)  # fmt: skip


def gemma_config(vocabulary: int) -> dict[str, Any]:
    """The header `gemma_config` of the text encoder, for a vocabulary size."""
    return {"model_type": "gemma3_text", "text_config": {"vocab_size": vocabulary} | TEXT_CONFIG}


def config() -> dict[str, Any]:
    """The connectors' entries in the `transformer` section of the header config."""
    return dict(CONNECTOR_CONFIG)


def train_tokenizer(lines: Iterable[str], size: int = VOCABULARY_SIZE) -> bytes:
    """Train a SentencePiece model like Gemma's: BPE with byte fallback, no normalisation."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=size,
        byte_fallback=True,
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=EOS,
        bos_id=BOS,
        unk_id=UNK,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def build_connectors(options: dict[str, Any], layers: int) -> LTX2TextConnectors:
    """Projections and connectors from the header's `transformer` section.

    `layers` counts the layers of the text model plus the embedding.
    """
    registers = options["connector_num_learnable_registers"]
    return LTX2TextConnectors(
        caption_channels=options["caption_channels"],
        text_proj_in_factor=layers,
        video_connector_num_attention_heads=options["connector_num_attention_heads"],
        video_connector_attention_head_dim=options["connector_attention_head_dim"],
        video_connector_num_layers=options["connector_num_layers"],
        video_connector_num_learnable_registers=registers,
        video_gated_attn=options["connector_apply_gated_attention"],
        audio_connector_num_attention_heads=options["audio_connector_num_attention_heads"],
        audio_connector_attention_head_dim=options["audio_connector_attention_head_dim"],
        audio_connector_num_layers=options["connector_num_layers"],
        audio_connector_num_learnable_registers=registers,
        audio_gated_attn=options["connector_apply_gated_attention"],
        connector_rope_base_seq_len=options["connector_positional_embedding_max_pos"][0],
        rope_type="split",
        per_modality_projections=True,
        video_hidden_dim=options["cross_attention_dim"],
        audio_hidden_dim=options["audio_cross_attention_dim"],
        proj_bias=True,
    )


def _original_connector_name(name: str) -> str:
    """Original name of a tensor of the diffusers connectors; KeyError for other tensors."""
    for prefix, original in _CONNECTOR_PREFIXES.items():
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            for diffusers_name, original_name in _CONNECTOR_NAMES:
                rest = rest.replace(diffusers_name, original_name)
            return original + rest
    raise KeyError(name)


class TextTower(nn.Module):
    """Tokenizer, Gemma-3, projections and connectors: from prompts to both streams' contexts.

    `length` is the number of tokens of every context, a multiple of the number of registers.
    """

    def __init__(
        self,
        spiece_model: bytes,
        gemma: dict[str, Any] | None = None,
        connectors: dict[str, Any] | None = None,
        length: int = LENGTH,
    ) -> None:
        super().__init__()
        self.spiece_model = spiece_model
        self.tokenizer = sentencepiece.SentencePieceProcessor(model_proto=spiece_model)
        self.gemma_config = gemma or gemma_config(self.tokenizer.get_piece_size())
        self.length = length
        text_config = Gemma3TextConfig(**self.gemma_config["text_config"])
        text_config._attn_implementation = "eager"
        self.gemma = Gemma3TextModel(text_config)
        layers = text_config.num_hidden_layers + 1
        self.connectors = build_connectors(connectors or CONNECTOR_CONFIG, layers)

    def tokens(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both (B, length) int64.

        Prompts start with BOS, have no EOS, are padded on the left and truncated at the end.
        """
        ids = torch.full((len(prompts), self.length), PAD)
        for row, prompt in zip(ids, prompts, strict=True):
            piece_ids = [BOS, *self.tokenizer.encode(prompt.strip())][: self.length]
            row[self.length - len(piece_ids) :] = torch.tensor(piece_ids)
        return ids, (ids != PAD).long()

    def hidden_states(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, T, D, L) of embedding and layers, the last after the final norm.

        Columns that are padding in every row are not computed and are zero in the result, since
        positions are relative and padding is masked later.
        """
        longest = int(mask.sum(1).max())
        ids, mask, skipped = ids[:, -longest:], mask[:, -longest:], ids.shape[1] - longest
        out = self.gemma(ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return F.pad(torch.stack(out.hidden_states, dim=-1), (0, 0, 0, 0, skipped, 0))

    def forward(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Video and audio context (B, length, D) of prompts: text tokens first, then registers."""
        ids, mask = self.tokens(prompts)
        device = self.gemma.embed_tokens.weight.device
        ids, mask = ids.to(device), mask.to(device)
        video, audio, _ = self.connectors(self.hidden_states(ids, mask), mask)
        return video, audio

    def text_encoder_tensors(self) -> dict[str, Tensor]:
        """Tensors of ComfyUI's single-file text encoder: bf16 weights and `spiece_model` bytes."""
        out = {f"model.{name}": _bf16(value) for name, value in self.gemma.state_dict().items()}
        out["spiece_model"] = torch.frombuffer(bytearray(self.spiece_model), dtype=torch.uint8)
        return out

    def text_encoder_metadata(self) -> dict[str, str]:
        """Metadata of the text encoder file."""
        return {"format": "pt", "gemma_config": json.dumps(self.gemma_config)}

    def projection_tensors(self) -> dict[str, Tensor]:
        """Tensors `text_embedding_projection.*` of the checkpoint, bf16."""
        return self._connector_part("text_embedding_projection.")

    def connector_tensors(self) -> dict[str, Tensor]:
        """Tensors `model.diffusion_model.{video,audio}_embeddings_connector.*`, bf16."""
        return self._connector_part("model.diffusion_model.")

    def _connector_part(self, prefix: str) -> dict[str, Tensor]:
        state = {_original_connector_name(n): v for n, v in self.connectors.state_dict().items()}
        return {name: _bf16(value) for name, value in state.items() if name.startswith(prefix)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Load all weights from tensors with their original names; ignores other tensors."""
        gemma = {n: tensors[f"model.{n}"].float() for n in self.gemma.state_dict()}
        connectors = {
            n: tensors[_original_connector_name(n)].float() for n in self.connectors.state_dict()
        }
        self.gemma.load_state_dict(gemma)
        self.connectors.load_state_dict(connectors)


def _bf16(value: Tensor) -> Tensor:
    return value.detach().to("cpu", torch.bfloat16).contiguous()


def _read(path: Path, prefixes: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        header = {n: json.loads(v) for n, v in file.metadata().items() if v.startswith("{")}
        names = sorted(file.keys())
        tensors = {n: file.get_tensor(n) for n in names if n.startswith(prefixes)}
    return tensors, header


def load(
    encoder: Path = PARTS / ENCODER_FILE,
    checkpoint: Path = PARTS / CONNECTOR_FILE,
    length: int = LENGTH,
) -> TextTower:
    """Load a tower from a text encoder file and a checkpoint (or the connectors' file alone)."""
    tensors, header = _read(encoder, ("model.", "spiece_model"))
    connectors, options = _read(checkpoint, tuple(_CONNECTOR_PREFIXES.values()))
    spiece_model = bytes(tensors.pop("spiece_model").cpu().numpy())
    transformer = options["config"]["transformer"]
    tower = TextTower(spiece_model, header["gemma_config"], transformer, length)
    tower.restore(tensors | connectors)
    return tower


def save(tower: TextTower, folder: Path = PARTS) -> None:
    """Write the text encoder and the connectors to runs/parts, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    connectors = tower.projection_tensors() | tower.connector_tensors()
    header = {"config": json.dumps({"transformer": config()})}
    files = (
        (ENCODER_FILE, tower.text_encoder_tensors(), tower.text_encoder_metadata()),
        (CONNECTOR_FILE, connectors, header),
    )
    for name, tensors, metadata in files:
        temporary = folder / f"{name}.new"
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(folder / name)
