"""The LTX-2 transformer for video and audio (2.0, 2.3, 2.5), under the checkpoint's own key names.

One forward runs all guidance passes of a step: rows that are still identical are computed once
(:mod:`passes`), text keys once per distinct prompt, modulation once per distinct noise level.
Each sublayer works through its rows and tokens in chunks and updates the residual stream in
place, so that besides the residuals only one row's keys and values are ever whole; under autograd
the same code runs unchunked on new tensors.

Dtypes: the residual stream and all matrices have the weights' dtype; modulation tables, noise
levels and rotation tables are float32. Equations: the LTX-2 reference (``transformer.py``,
``model.py`` of ltx-core).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_ladder.checkpoints.components import Component
from latent_ladder.models.network_configs import CHUNK_TOKENS_CPU, chunk_tokens
from latent_ladder.models.transformer.adaln import AdaLn
from latent_ladder.models.transformer.attention import (
    BACKENDS,
    Attention,
    AttentionShape,
    FeedForward,
    KeysValues,
)
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.noise_levels import Affine, Part, affine, clip_runs
from latent_ladder.models.transformer.norms import layer_normed
from latent_ladder.models.transformer.pass_batching import (
    BlockRows,
    PassSpec,
    Question,
    Rows,
    Sublayer,
    group_rows,
    plan_rows,
)
from latent_ladder.models.transformer.rope import Rope
from latent_ladder.models.transformer.streams import StreamInput, StreamState, pick
from latent_ladder.models.weights.block_offload import Residency, Resident, Streamed, Walk
from latent_ladder.models.weights.linear import Linear
from latent_ladder.models.weights.loading import Hold, Place, load_module, readers
from latent_ladder.models.weights.quantize_fp8 import Fp8Reader, is_fp8_weight

SCALE_ROWS = (0, 1, 0, 0, 1, 0, 0, 1, 0)
"""The rows of a block's table that are scales around one: (shift, scale, gate) of self-attention,
feed-forward and, in 2.3, text attention."""
CROSS_SCALE_ROWS = (1, 0, 1, 0)
"""Audio-video tables: scale and shift of audio to video, then of video to audio; a gate follows."""


class _Mods(NamedTuple):
    """A block's modulation of one stream, scales as factors."""

    attention: Affine
    attention_gate: Tensor
    text: Affine
    text_gate: Tensor | None
    ff: Affine
    ff_gate: Tensor


class _CrossMods(NamedTuple):
    """A block's audio-video modulation of one stream; the gate is for what the stream receives."""

    a2v: Affine
    v2a: Affine
    gate: Tensor


class _Layers(NamedTuple):
    """One stream's modules and tables in a block."""

    attn1: Attention
    attn2: Attention
    ff: FeedForward
    table: Tensor
    prompt_table: Tensor | None
    cross_table: Tensor


class Block(nn.Module):
    """One transformer block: self-attention, text, audio-video attention, feed-forward."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.chunk_tokens = CHUNK_TOKENS_CPU
        for prefix, stream in (("", config.video), ("audio_", config.audio)):
            self._add_stream(prefix, stream, config)
        video, audio = config.video, config.audio
        inner = (audio.heads, audio.head_dim, config.gated, config.norm_eps)
        self.audio_to_video_attn = Attention(AttentionShape(video.dim, audio.dim, *inner))
        self.video_to_audio_attn = Attention(AttentionShape(audio.dim, video.dim, *inner))
        for name, dim in (("video", video.dim), ("audio", audio.dim)):
            table = nn.Parameter(torch.empty(5, dim))
            self.register_parameter(f"scale_shift_table_a2v_ca_{name}", table)
        self.ones: Tensor
        self.cross_ones: Tensor
        for name, ones in (
            ("ones", SCALE_ROWS[: config.table_rows]),
            ("cross_ones", CROSS_SCALE_ROWS),
        ):
            rows = torch.tensor(ones, dtype=torch.float32)[:, None]
            self.register_buffer(name, rows, persistent=False)

    def _add_stream(self, prefix: str, stream: StreamConfig, config: TransformerConfig) -> None:
        dim, heads = stream.dim, (stream.heads, stream.head_dim, config.gated, config.norm_eps)
        context = dim if config.caption_projection else stream.context_dim
        self.add_module(f"{prefix}attn1", Attention(AttentionShape(dim, dim, *heads)))
        self.add_module(f"{prefix}attn2", Attention(AttentionShape(dim, context, *heads)))
        self.add_module(f"{prefix}ff", FeedForward(dim, stream.ff_dim, stream.ff_bias))
        table = nn.Parameter(torch.empty(config.table_rows, dim))
        self.register_parameter(f"{prefix}scale_shift_table", table)
        if config.text_adaln:
            table = nn.Parameter(torch.empty(2, context))
            self.register_parameter(f"{prefix}prompt_scale_shift_table", table)

    def _layers(self, prefix: str) -> _Layers:
        """The modules of the stream ``""`` (video) or ``"audio_"``."""
        modules, tables = self._modules, self._parameters
        return _Layers(
            cast(Attention, modules[f"{prefix}attn1"]),
            cast(Attention, modules[f"{prefix}attn2"]),
            cast(FeedForward, modules[f"{prefix}ff"]),
            cast(Tensor, tables[f"{prefix}scale_shift_table"]),
            tables.get(f"{prefix}prompt_scale_shift_table"),
            cast(Tensor, tables[f"scale_shift_table_a2v_ca_{'audio' if prefix else 'video'}"]),
        )

    def forward(
        self, video: StreamState | None, audio: StreamState | None, rows: BlockRows
    ) -> None:
        """Advance the streams by one block, inside their state."""
        enabled = []
        for s, prefix, own, text in (
            (video, "", rows.video_self, rows.video_text),
            (audio, "audio_", rows.audio_self, rows.audio_text),
        ):
            if s is not None and own is not None and text is not None:
                layers = self._layers(prefix)
                mods = self._mods(s, layers)
                self._self_attention(s, layers, mods, own)
                self._text_attention(s, layers, mods, text)
                enabled.append((s, layers.ff, mods))
        if video is not None and audio is not None:
            self._cross_attention(video, audio, rows)
        for s, ff, mods in enabled:
            self._feed_forward(s, ff, mods)

    def _self_attention(self, s: StreamState, layers: _Layers, mods: _Mods, sub: Sublayer) -> None:
        s.fork(sub)
        budget, attn = self.chunk_tokens, layers.attn1
        for rows, keys in group_rows(sub.keys, s.rows_at_once(budget)):
            parts = list(s.parts(rows, budget))
            if keys is None:
                for part in parts:
                    delta = attn.value_path(s.normed(part, mods.attention, self.eps))
                    s.add(part, delta, mods.attention_gate)
                continue
            kv, kept = self._keys_values(s, attn, parts, mods.attention, s.stage.rope)
            for part in parts:
                x = s.normed(part, mods.attention, self.eps) if kept is None else kept
                delta = attn(x, kv, s.rope(s.stage.rope, part), s.bias(part))
                s.add(part, delta, mods.attention_gate)

    def _keys_values(
        self, s: StreamState, attn: Attention, parts: Sequence[Part], by: Affine, table: Rope
    ) -> tuple[KeysValues, Tensor | None]:
        """Keys and values of the parts, and their modulated input where one part is all."""
        if len(parts) == 1:
            x = s.normed(parts[0], by, self.eps)
            return attn.keys_values(x, s.rope(table, parts[0])), x
        rows = parts[0].rows
        heads, inner = attn.heads, attn.to_k.out_features
        shape = (rows.stop - rows.start, s.x.shape[1], heads, inner // heads)
        whole = KeysValues(s.x.new_empty(shape), s.x.new_empty(shape))
        for part in parts:
            x = s.normed(part, by, self.eps)
            keys, values = attn.keys_values(x, s.rope(table, part))
            whole.keys[:, part.tokens] = keys
            whole.values[:, part.tokens] = values
        return whole, None

    def _text_attention(self, s: StreamState, layers: _Layers, mods: _Mods, sub: Sublayer) -> None:
        context, table = s.context, layers.prompt_table
        if table is not None:
            both = table[None] if s.prompt is None else table + s.prompt
            context = torch.addcmul(both[:, :1], context, 1 + both[:, 1:]).to(context.dtype)
        s.fork(sub)
        budget, attn = self.chunk_tokens, layers.attn2
        kv = attn.keys_values(context)
        for rows, keys in group_rows(sub.keys, s.rows_at_once(budget)):
            if keys is None:
                continue
            held = kv.rows(keys, rows.stop - rows.start)
            for part in s.parts(rows, budget):
                delta = attn(s.normed(part, mods.text, self.eps), held)
                s.add(part, delta, mods.text_gate)

    def _cross_attention(self, video: StreamState, audio: StreamState, rows: BlockRows) -> None:
        """Both directions read the state before either: audio's keys, then audio, then video."""
        mods_v = self._cross_mods(video, self._layers(""))
        mods_a = self._cross_mods(audio, self._layers("audio_"))
        attn, sound = self.audio_to_video_attn, None
        if rows.a2v is not None and any(k is not None for k in rows.a2v.keys):
            every = Part(slice(0, len(audio.x)), slice(0, audio.x.shape[1]))
            sound, _ = self._keys_values(audio, attn, [every], mods_a.a2v, audio.stage.cross_rope)
        if rows.v2a is not None:
            audio.fork(rows.v2a)
            self._video_to_audio(video, audio, rows.v2a, mods_v.v2a, mods_a)
        if rows.a2v is None:
            return
        video.fork(rows.a2v)
        budget = self.chunk_tokens
        for group, keys in group_rows(rows.a2v.keys, video.rows_at_once(budget)):
            if keys is None or sound is None:
                continue
            held = sound.rows(keys, group.stop - group.start)
            for part in video.parts(group, budget):
                x = video.normed(part, mods_v.a2v, self.eps)
                delta = attn(x, held, video.rope(video.stage.cross_rope, part))
                video.add(part, delta, mods_v.gate, whole=True)

    def _video_to_audio(
        self, video: StreamState, audio: StreamState, sub: Sublayer, by: Affine, mods: _CrossMods
    ) -> None:
        """Audio attends to the video rows ``sub.keys``, a group's keys at a time."""
        attn, budget = self.video_to_audio_attn, self.chunk_tokens
        for rows, keys in group_rows(sub.keys, video.rows_at_once(budget)):
            if keys is None:
                continue
            seen, _ = self._keys_values(
                video, attn, list(video.parts(keys, budget)), by, video.stage.cross_rope
            )
            part = Part(rows, slice(0, audio.x.shape[1]))
            count = rows.stop - rows.start
            held = seen.rows(slice(0, keys.stop - keys.start), count)
            x = audio.normed(part, mods.v2a, self.eps)
            delta = attn(x, held, audio.rope(audio.stage.cross_rope, part))
            audio.add(part, delta, mods.gate, whole=True)

    def _feed_forward(self, s: StreamState, ff: FeedForward, mods: _Mods) -> None:
        budget = self.chunk_tokens
        for rows in s.row_groups(budget):
            for part in s.parts(rows, budget):
                s.add(part, ff(s.normed(part, mods.ff, self.eps)), mods.ff_gate)

    def _mods(self, s: StreamState, layers: _Layers) -> _Mods:
        rows = (layers.table + self.ones + s.ada).to(s.x.dtype).unbind(2)
        attention, ff = Affine(rows[1], rows[0]), Affine(rows[4], rows[3])
        text, text_gate = Affine(None, None), None
        if len(rows) > 6:
            text, text_gate = Affine(rows[7], rows[6]), rows[8]
        return _Mods(attention, rows[2], text, text_gate, ff, rows[5])

    def _cross_mods(self, s: StreamState, layers: _Layers) -> _CrossMods:
        table = layers.cross_table
        rows = (table[:4] + self.cross_ones + cast(Tensor, s.cross)).to(s.x.dtype).unbind(2)
        gate = (table[4] + cast(Tensor, s.gate)).to(s.x.dtype)
        return _CrossMods(Affine(rows[0], rows[1]), Affine(rows[2], rows[3]), gate)


class Transformer(nn.Module):
    """The whole network: tokens in, velocities out. Build with :func:`load_transformer`.

    ``Transformer(config)`` has undefined weights; :meth:`initialise` draws them for training.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.chunk_tokens = CHUNK_TOKENS_CPU
        for prefix, stream in (("", config.video), ("audio_", config.audio)):
            self._add_stream(prefix, stream)
        video, audio, step = config.video.dim, config.audio.dim, config.timestep_dim
        self.av_ca_video_scale_shift_adaln_single = AdaLn(video, 4, step)
        self.av_ca_audio_scale_shift_adaln_single = AdaLn(audio, 4, step)
        self.av_ca_a2v_gate_adaln_single = AdaLn(video, 1, step)
        self.av_ca_v2a_gate_adaln_single = AdaLn(audio, 1, step)
        if config.keyframe_embedding:
            self.keyframes_abs_pos_embedding = nn.Parameter(torch.empty(1, video))
        self.transformer_blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.walk: Walk = Resident(list(self.transformer_blocks))

    def _add_stream(self, prefix: str, stream: StreamConfig) -> None:
        config, dim = self.config, stream.dim
        self.add_module(f"{prefix}patchify_proj", Linear(stream.in_channels, dim))
        self.add_module(f"{prefix}proj_out", Linear(dim, stream.out_channels))
        rows = config.table_rows
        self.add_module(f"{prefix}adaln_single", AdaLn(dim, rows, config.timestep_dim))
        if config.prompt_adaln:
            self.add_module(f"{prefix}prompt_adaln_single", AdaLn(dim, 2, config.timestep_dim))
        if config.caption_projection:
            layers = {"linear_1": Linear(stream.context_dim, dim), "linear_2": Linear(dim, dim)}
            self.add_module(f"{prefix}caption_projection", nn.ModuleDict(layers))
        table = nn.Parameter(torch.empty(2, dim))
        self.register_parameter(f"{prefix}scale_shift_table", table)

    def forward(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        passes: Sequence[PassSpec] = (PassSpec(),),
    ) -> tuple[Tensor | None, Tensor | None]:
        """Velocities of every pass, float32 (passes * B, N, C), pass-major; ``None`` if absent."""
        both = [s for s in (video, audio) if s is not None]
        rows = plan_rows(
            Question(
                layers=self.config.layers,
                passes=tuple(passes),
                batch=max(len(s.tokens) for s in both),
                per_item_sigma=any(len(s.timesteps()) > 1 or len(s.sigma) > 1 for s in both),
                video=video is not None and video.enabled,
                audio=audio is not None and audio.enabled,
                cross=len(both) == 2,
            )
        )
        v = None if video is None else self._enter("", video, audio, rows)
        a = None if audio is None else self._enter("audio_", audio, video, rows)
        for block, plan in zip(self.walk.blocks(), rows.blocks, strict=True):
            block(v, a, plan)
        return (
            None if v is None else self._leave("", v, rows.video),
            None if a is None else self._leave("audio_", a, rows.audio),
        )

    def _enter(
        self, prefix: str, s: StreamInput, other: StreamInput | None, rows: Rows
    ) -> StreamState:
        """Patchified tokens and everything that only depends on noise level and prompt."""
        config, stage = self.config, s.stage
        tokens = s.tokens if stage.order is None else s.tokens[:, stage.order]
        project = self._linear(f"{prefix}patchify_proj")
        x = project(tokens.to(project.compute_dtype))
        if config.keyframe_embedding and stage.marked is not None and not prefix:
            x = x + (stage.marked > 0).to(x.dtype) * self.keyframes_abs_pos_embedding
        timesteps = s.timesteps() * config.timestep_scale
        ada, embedded = self._ada(f"{prefix}adaln_single", timesteps)
        cross = gate = prompt = None
        if other is not None:
            own, received = ("audio", "v2a") if prefix else ("video", "a2v")
            cross, _ = self._ada(f"av_ca_{own}_scale_shift_adaln_single", timesteps)
            there = other.sigma[:, None] * config.cross_timestep_scale
            gate, _ = self._ada(f"av_ca_{received}_gate_adaln_single", there)
            gate = gate[:, :, 0]
        if config.prompt_adaln:
            here = s.sigma[:, None] * config.timestep_scale
            table, _ = self._ada(f"{prefix}prompt_adaln_single", here)
            prompt = pick(table[:, 0], [b for _, b in rows.contexts])
        return StreamState(
            x=x,
            stage=stage,
            inputs=tuple(range(len(x))),
            enabled=s.enabled,
            ada=ada,
            embedded=embedded,
            cross=cross,
            gate=gate,
            prompt=prompt,
            context=self._context(prefix, s, rows),
        )

    def _context(self, prefix: str, s: StreamInput, rows: Rows) -> Tensor:
        contexts = s.stage.contexts.to(self._linear(f"{prefix}patchify_proj").compute_dtype)
        if self.config.caption_projection:
            layers = cast(nn.ModuleDict, self._modules[f"{prefix}caption_projection"])
            first, second = layers["linear_1"], layers["linear_2"]
            contexts = second(F.gelu(first(contexts), approximate="tanh"))
        wanted = [c for c, _ in rows.contexts]
        return contexts if wanted == list(range(len(contexts))) else contexts[wanted]

    def _leave(self, prefix: str, s: StreamState, items: tuple[int, ...]) -> Tensor:
        """Final norm and projection of every row, then one row per (pass, item)."""
        table = cast(Tensor, self._parameters[f"{prefix}scale_shift_table"])
        shift, scale = (table + s.embedded[:, :, None]).unbind(2)
        by = Affine((1 + scale).to(s.x.dtype), shift.to(s.x.dtype))
        project = self._linear(f"{prefix}proj_out")
        budget = self.chunk_tokens
        chunks = []
        for rows in s.row_groups(budget):
            parts = []
            for part in s.parts(rows, budget):
                x = layer_normed(s.x[part.rows, part.tokens], self.config.norm_eps)
                picked = Affine(*(s.pick(cast(Tensor, t), rows) for t in by))
                runs = list(clip_runs(s.stage.levels.runs, part.tokens))
                parts.append(project(affine(x, picked, runs)).float())
            chunks.append(torch.cat(parts, 1))
        out = torch.cat(chunks)
        if s.stage.order is not None:
            out = out[:, s.stage.order.argsort()]
        return out if items == tuple(range(len(out))) else out[list(items)]

    def _linear(self, name: str) -> Linear:
        return cast(Linear, self._modules[name])

    def _ada(self, name: str, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        rows, embedded = cast(AdaLn, self._modules[name])(timesteps)
        return rows.float(), embedded.float()

    @contextmanager
    def held(self, device: torch.device, residency: Residency | None) -> Iterator[None]:
        """Blocks come and go as ``residency`` says while in the ``with`` block; None: all stay.

        LoRAs must be attached before.
        """
        if residency is None:
            yield
            return
        before, self.walk = self.walk, Streamed(list(self.transformer_blocks), device, residency)
        try:
            yield
        finally:
            self.walk.close()
            self.walk = before

    def use_attention(self, backend: str) -> None:
        """Compute every attention with an entry of :data:`attention.BACKENDS`."""
        if backend not in BACKENDS:
            raise ValueError(f"attention backend {backend!r}, known: {', '.join(BACKENDS)}")
        for module in self.modules():
            if isinstance(module, Attention):
                module.backend = backend

    def set_chunk_tokens(self, tokens: int) -> None:
        """How many tokens to work on at once: more is faster up to a point and needs memory."""
        self.chunk_tokens = tokens
        for block in self.transformer_blocks:
            cast(Block, block).chunk_tokens = tokens

    def initialise(self, seed: int) -> None:
        """Draw weights for training: small normal matrices, open gates, zero output."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                _draw(name, weight, generator)


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> None:
    if name.endswith("norm.weight"):
        weight.fill_(1)
    elif name.endswith(".bias") or "proj_out." in name or "to_gate_logits." in name:
        weight.zero_()
    else:
        fan = weight.shape[-1]
        weight.copy_(torch.randn(weight.shape, generator=generator) * fan**-0.5)


@dataclass(frozen=True)
class Load:
    """How to hold a transformer's weights.

    ``precision``: as ``stored``, or matrices of floats converted to ``fp8`` while loading.
    ``as_stored``: float matrices of the blocks keep the file's dtype and are converted at every
    use, which gives the same bits. ``blocks``: where the blocks' matrices lie: on the ``device``;
    ``pinned``, on the CPU in memory of their own; ``file``, where the mapped file has them.
    """

    precision: Literal["stored", "fp8"] = "stored"
    as_stored: bool = False
    blocks: Place = "device"


def load_transformer(
    component: Component,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    load: Load = Load(),
) -> Transformer:
    """The transformer of a checkpoint; modulation tables stay float32.

    Quantised matrices stay as they are stored. Raises :class:`UnknownLayout` when names, shapes
    and header do not fit together, :class:`UnsupportedQuantization` and
    :class:`CorruptCheckpoint` naming the tensor.
    """
    config = TransformerConfig.from_component(component)
    read = readers(component)
    if load.precision == "fp8":
        read |= {name: Fp8Reader(component, name, device) for name in filter(is_fp8_weight, read)}
    in_blocks = Hold(load.as_stored, load.blocks)
    model = load_module(
        lambda: Transformer(config),
        read,
        device=device,
        dtype=dtype,
        keep_float32=lambda name: "scale_shift_table" in name,
        hold=lambda name: in_blocks if name.startswith("transformer_blocks.") else Hold(),
        what=f"{component.file.path.name} (transformer)",
    )
    model.set_chunk_tokens(chunk_tokens(torch.device(device).type))
    return model
