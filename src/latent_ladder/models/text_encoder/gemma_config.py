"""Configuration of a Gemma 3 or Gemma 4 text encoder, from tensor shapes and the header.

Sizes are read from shapes; what shapes do not show comes from ``gemma_config`` in the header or,
without one, from the published models. Imports no torch. Sources: Gemma 3 technical report,
arXiv 2503.19786; ``Gemma4UnifiedTextModel`` of transformers 5.14.

============================  =================  ==============================================
What differs                  Gemma 3            Gemma 4
============================  =================  ==============================================
Weights of norms              stored minus one   multiplied directly
Attention scale               1 / sqrt(d)        1
Full layers                   as sliding ones    wider heads, one key head, keys as values
Norm of values                none               RMS without a weight
RoPE of full layers           positions / 8      the first quarter of the frequencies
After a layer                 --                 the residual stream times ``layer_scalar``
============================  =================  ==============================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.families import text_encoder_architecture
from latent_ladder.checkpoints.gemma_sizes import gemma_defaults
from latent_ladder.errors import UnknownLayout

# Settings that shapes do not show, as in all published models; a header overrides them.
WINDOW, FULL_EVERY, EPS = 1024, 6, 1e-6
FULL_THETA, SLIDING_THETA = 1_000_000.0, 10_000.0
GEMMA_4_ROTARY = 0.25

_LAYER = re.compile(r"layers\.(\d+)\.")


@dataclass(frozen=True)
class RopeParameters:
    """RoPE base ``theta``, the factor that positions are divided by, and the rotated share.

    Only the first ``rotary`` of the frequencies rotate; the other ones are zero.
    """

    theta: float
    factor: float = 1.0
    rotary: float = 1.0


@dataclass(frozen=True)
class AttentionConfig:
    """Attention of one layer.

    ``window``: a token attends to itself and the ``window - 1`` before it, ``None`` to all before
    it. ``keys_as_values``: there is no projection of values, the projected keys are used, before
    their norm and rotation. ``value_norm``: values are RMS-normalised.
    """

    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    scale: float
    rope: RopeParameters
    keys_as_values: bool = False
    value_norm: bool = False


@dataclass(frozen=True)
class GemmaConfig:
    """Configuration of a Gemma text encoder; ``layers`` has the attention of each layer.

    ``norm_offset`` is added to the stored weights of norms. ``layer_scalar``: each layer ends with
    the product of the residual stream and a learned number.
    """

    hidden: int
    inner: int
    eps: float
    layers: tuple[AttentionConfig, ...]
    norm_offset: float = 1.0
    layer_scalar: bool = False


def read_gemma_config(text_encoder: Component) -> GemmaConfig:
    """Read the configuration: sizes from tensor shapes, the rest from the header.

    Raises :class:`UnknownLayout` if tensors are missing, sizes differ from those in the header,
    or the header requests something that the model does not have.
    """
    header = text_encoder.config.get("text_config", text_encoder.config)
    count = len({int(m[1]) for key in text_encoder.names if (m := _LAYER.match(key))})
    is_gemma_4 = text_encoder_architecture(text_encoder) == "gemma4"
    full = _full_layers(header, count)
    if len(full) != count:
        raise UnknownLayout(
            f"{text_encoder.file.path.name}: it has {count} layers, its header {len(full)}",
            "the header was copied from another model; use an unmodified file",
        )
    read_attention = _gemma_4_attention if is_gemma_4 else _gemma_3_attention
    config = GemmaConfig(
        hidden=text_encoder.shape("norm.weight")[0],
        inner=text_encoder.shape("layers.0.mlp.gate_proj.weight")[0],
        eps=header.get("rms_norm_eps", EPS),
        layers=tuple(read_attention(text_encoder, header, n, f) for n, f in enumerate(full)),
        norm_offset=0.0 if is_gemma_4 else 1.0,
        layer_scalar=is_gemma_4,
    )
    _check(text_encoder, header, config, full)
    return config


def _gemma_3_attention(
    text_encoder: Component, header: Mapping[str, Any], number: int, full: bool
) -> AttentionConfig:
    heads, kv_heads, head_dim = _head_sizes(text_encoder, number)
    defaults = gemma_defaults(text_encoder)
    window = header.get("sliding_window", defaults.window)
    scalar = header.get("query_pre_attn_scalar", defaults.scalar or head_dim)
    kind = "full_attention" if full else "sliding_attention"
    return AttentionConfig(
        heads,
        kv_heads,
        head_dim,
        window=None if full else window,
        scale=scalar**-0.5,
        rope=_gemma_3_rope(header, defaults.factor)[kind],
    )


def _gemma_4_attention(
    text_encoder: Component, header: Mapping[str, Any], number: int, full: bool
) -> AttentionConfig:
    heads, kv_heads, head_dim = _head_sizes(text_encoder, number)
    values = f"layers.{number}.self_attn.v_proj.weight"
    return AttentionConfig(
        heads,
        kv_heads,
        head_dim,
        window=None if full else header.get("sliding_window", WINDOW),
        scale=1.0,
        rope=_gemma_4_rope(header, full),
        keys_as_values=full and values not in text_encoder,
        value_norm=True,
    )


def _head_sizes(text_encoder: Component, number: int) -> tuple[int, int, int]:
    """(heads, heads of keys, width of a head) of a layer."""
    attention = f"layers.{number}.self_attn."
    (head_dim,) = text_encoder.shape(f"{attention}q_norm.weight")
    heads, kv_heads = (
        text_encoder.shape(f"{attention}{name}_proj.weight")[0] // head_dim for name in "qk"
    )
    return heads, kv_heads, head_dim


_FIXED: Mapping[str, Any] = {
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": None,
    "num_kv_shared_layers": 0,
    "enable_moe_block": False,
    "attention_bias": False,
}
"""Header entries with the same value in all models that are supported. Other sizes of Gemma 4
share keys between layers or have experts."""


def _check(
    text_encoder: Component, header: Mapping[str, Any], config: GemmaConfig, full: tuple[bool, ...]
) -> None:
    """Raise :class:`UnknownLayout` if the header contradicts the shapes."""
    expected: dict[str, Any] = {
        **_FIXED,
        "hidden_size": config.hidden,
        "intermediate_size": config.inner,
        "num_hidden_layers": len(config.layers),
    }
    for first, names in (
        (False, ("num_attention_heads", "num_key_value_heads", "head_dim")),
        (True, ("", "num_global_key_value_heads", "global_head_dim")),
    ):
        if first in full:
            layer = config.layers[full.index(first)]
            sizes = zip(names, (layer.heads, layer.kv_heads, layer.head_dim), strict=True)
            expected |= {name: size for name, size in sizes if name}
    for name, value in expected.items():
        # The header of a model without wide full layers names no sizes of their own.
        if header.get(name, value) not in (value, *((None,) if "global" in name else ())):
            raise UnknownLayout(
                f"{text_encoder.file.path.name}: its header has {name} = {header[name]}, "
                f"expected {value}",
                "the header was copied from another model; use an unmodified file",
            )


def _full_layers(header: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """For each layer, True if it attends to the whole prompt (every sixth layer by default)."""
    if "layer_types" in header:
        return tuple(kind == "full_attention" for kind in header["layer_types"])
    every = header.get("sliding_window_pattern", FULL_EVERY)
    return tuple(n % every == 0 for n in range(1, layers + 1))


def _gemma_3_rope(header: Mapping[str, Any], factor: float) -> dict[str, RopeParameters]:
    """RoPE parameters per layer type, from the new or the old config format of transformers."""
    if "rope_parameters" in header:
        return {
            kind: RopeParameters(values["rope_theta"], values.get("factor", 1.0))
            for kind, values in header["rope_parameters"].items()
        }
    scaling = header.get("rope_scaling", {"factor": factor}) or {}
    return {
        "full_attention": RopeParameters(
            header.get("rope_theta", FULL_THETA), scaling.get("factor", 1.0)
        ),
        "sliding_attention": RopeParameters(header.get("rope_local_base_freq", SLIDING_THETA)),
    }


def _gemma_4_rope(header: Mapping[str, Any], full: bool) -> RopeParameters:
    kind = "full_attention" if full else "sliding_attention"
    values = header.get("rope_parameters", {}).get(kind, {})
    theta, stated = (FULL_THETA, "rope_theta") if full else (SLIDING_THETA, "rope_local_base_freq")
    rotary = values.get("partial_rotary_factor", GEMMA_4_ROTARY) if full else 1.0
    return RopeParameters(values.get("rope_theta", header.get(stated, theta)), rotary=rotary)
