"""Configuration of an LTX-2 transformer, read from a checkpoint's header and tensor shapes.

Imports no torch, so the memory planner can use it without loading torch.
Families: 2.0 (no gates, caption projection in the transformer), 2.3 (gated attention, modulated
text attention), 2.5 (video feed-forward without bias, keyframe embedding).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from latent_ladder.errors import UnknownLayout

Shapes = Mapping[str, tuple[int, ...]]

VIDEO_HEAD_DIM, AUDIO_HEAD_DIM = 128, 64
"""Head widths of all published files; used when a file has neither gates nor a header.

No other tensor shows the number of heads: projections and QK norms span all heads together. Only
LTX-2.0 has no gates, and it was published with these widths only.
"""

_SUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu-approximate",),
    "attention_bias": (True,),
    "norm_elementwise_affine": (False,),
    "positional_embedding_type": ("rope",),
    "qk_norm": ("rms_norm",),
    "rope_type": ("split",),
    "share_ff": (False,),
    "standardization_norm": ("rms_norm",),
    "use_middle_indices_grid": (True,),
    "av_cross_ada_norm": (True,),
    "use_audio_video_cross_attention": (True,),
    "causal_temporal_positioning": (True,),
}


class HasShapes(Protocol):
    """Checkpoint component with a header configuration and tensor shapes."""

    @property
    def config(self) -> Mapping[str, Any]:
        """Configuration of the component in the file's header, ``{}`` if there is none."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor by its name inside the component."""


@dataclass(frozen=True)
class StreamConfig:
    """Sizes of one stream (video or audio): token channels, attention heads, feed-forward width.

    ``context_dim`` is the width of the text context at the input (before the caption projection,
    where the family has one). ``max_pos`` divides positions, one entry per axis: seconds, and for
    video also pixel rows and columns.
    """

    in_channels: int
    out_channels: int
    heads: int
    head_dim: int
    ff_dim: int
    context_dim: int
    max_pos: tuple[float, ...]
    ff_bias: bool = True

    @property
    def dim(self) -> int:
        """Width of the residual stream."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class TransformerConfig:
    """Configuration of a transformer. Audio-video attention uses the audio heads and width.

    ``gated``: attention has per-head output gates. ``text_adaln``: text attention is modulated by
    the noise level. ``prompt_adaln``: the text context is modulated too.
    """

    layers: int
    video: StreamConfig
    audio: StreamConfig
    gated: bool = True
    text_adaln: bool = True
    prompt_adaln: bool = True
    caption_projection: bool = False
    keyframe_embedding: bool = False
    timestep_dim: int = 256
    timestep_scale: float = 1000.0
    cross_timestep_scale: float = 1000.0
    norm_eps: float = 1e-6
    theta: float = 10000.0
    float64_frequencies: bool = True

    @property
    def cross_dim(self) -> int:
        """Inner width of audio-video attention."""
        return self.audio.dim

    @property
    def table_rows(self) -> int:
        """Rows of the modulation table of one stream in each block."""
        return 9 if self.text_adaln else 6

    @classmethod
    def from_component(cls, component: HasShapes) -> TransformerConfig:
        """Read the configuration of a checkpoint's transformer; see :meth:`from_shapes`."""
        return cls.from_shapes(component.shapes(), component.config)

    @classmethod
    def from_shapes(cls, shapes: Shapes, header: Mapping[str, Any]) -> TransformerConfig:
        """Derive the configuration from tensor ``shapes``, and from ``header`` what they lack.

        ``header`` may be empty (GGUF files, files with only the transformer): widths, layers and
        features come from shapes, scales are the family's constants, and without gates the heads
        are 128 (video) and 64 (audio) wide.
        Raises :class:`UnknownLayout` if header and shapes disagree or the header requests an
        option that this implementation does not support. Whether there are biases of the
        feed-forward and a mark of keyframes is decided by the tensors alone, as in ComfyUI; see
        :func:`latent_ladder.checkpoints.compatibility.header_contradictions`.
        """
        config = cls(
            layers=_layers(shapes),
            video=_stream(shapes, header, ""),
            audio=_stream(shapes, header, "audio_"),
            gated="transformer_blocks.0.attn1.to_gate_logits.weight" in shapes,
            text_adaln=_shape(shapes, "transformer_blocks.0.scale_shift_table")[0] == 9,
            prompt_adaln="prompt_adaln_single.linear.weight" in shapes,
            caption_projection="caption_projection.linear_1.weight" in shapes,
            keyframe_embedding="keyframes_abs_pos_embedding" in shapes,
            timestep_dim=_shape(shapes, "adaln_single.emb.timestep_embedder.linear_1.weight")[1],
            timestep_scale=float(header.get("timestep_scale_multiplier", 1000)),
            cross_timestep_scale=float(header.get("av_ca_timestep_scale_multiplier", 1000)),
            norm_eps=float(header.get("norm_eps", 1e-6)),
            theta=float(header.get("positional_embedding_theta", 10000)),
            float64_frequencies=header.get("frequencies_precision", "float64") == "float64",
        )
        _check(config, header)
        return config


def _stream(shapes: Shapes, header: Mapping[str, Any], prefix: str) -> StreamConfig:
    block = f"transformer_blocks.0.{prefix}"
    dim, in_channels = _shape(shapes, f"{prefix}patchify_proj.weight")
    captions = f"{prefix}caption_projection.linear_1.weight"
    context = captions if captions in shapes else f"{block}attn2.to_k.weight"
    ff = f"{block}ff.net.0.proj"
    heads = _heads(shapes, header, prefix, dim)
    max_pos = header.get(
        f"{prefix}positional_embedding_max_pos", [20] if prefix else [20, 2048, 2048]
    )
    return StreamConfig(
        in_channels=in_channels,
        out_channels=_shape(shapes, f"{prefix}proj_out.weight")[0],
        heads=heads,
        head_dim=dim // heads,
        ff_dim=_shape(shapes, f"{ff}.weight")[0],
        context_dim=_shape(shapes, context)[1],
        max_pos=tuple(float(m) for m in max_pos),
        ff_bias=f"{ff}.bias" in shapes,
    )


def _heads(shapes: Shapes, header: Mapping[str, Any], prefix: str, dim: int) -> int:
    # The bias is tried first: a quantised weight may be padded beyond the number of heads.
    for kind in ("bias", "weight"):
        gate = f"transformer_blocks.0.{prefix}attn1.to_gate_logits.{kind}"
        if gate in shapes:
            return shapes[gate][0]
    width = AUDIO_HEAD_DIM if prefix else VIDEO_HEAD_DIM
    return int(header.get(f"{prefix}num_attention_heads", max(1, dim // width)))


def _layers(shapes: Shapes) -> int:
    found = {int(m[1]) for name in shapes if (m := re.match(r"transformer_blocks\.(\d+)\.", name))}
    if not found or found != set(range(len(found))):
        raise UnknownLayout(
            f"transformer: blocks are not numbered 0..n without gaps, got {sorted(found)[:4]}",
            "the file is incomplete or of an unsupported model family; download it again",
        )
    return len(found)


def _shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UnknownLayout(
            f"transformer: tensor {name} is missing",
            "the file is incomplete or of an unsupported model family; download it again",
        )
    return shapes[name]


def _check(config: TransformerConfig, header: Mapping[str, Any]) -> None:
    video, audio = config.video, config.audio
    from_shapes = {
        "num_layers": config.layers,
        "num_attention_heads": video.heads,
        "attention_head_dim": video.head_dim,
        "audio_num_attention_heads": audio.heads,
        "audio_attention_head_dim": audio.head_dim,
        "in_channels": video.in_channels,
        "out_channels": video.out_channels,
        "audio_in_channels": audio.in_channels,
        "audio_out_channels": audio.out_channels,
        "cross_attention_dim": video.dim,
        "audio_cross_attention_dim": audio.dim,
        "apply_gated_attention": config.gated,
        "cross_attention_adaln": config.text_adaln,
    }
    wrong = [
        f"{key}={header[key]} in the header, {value} in the shapes"
        for key, value in from_shapes.items()
        if key in header and header[key] != value
    ]
    wrong += [
        f"{key}={header[key]}, supported: {', '.join(map(str, values))}"
        for key, values in _SUPPORTED.items()
        if key in header and header[key] not in values
    ]
    if video.heads * video.head_dim != video.dim or len(video.max_pos) != 3:
        wrong.append(f"{video.heads} heads do not divide width {video.dim}")
    if wrong:
        raise UnknownLayout(
            f"transformer: {'; '.join(wrong[:3])}",
            "the file is damaged or of an unsupported model family; download it again",
        )
