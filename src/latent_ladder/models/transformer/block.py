"""Transformer block of LTX-2: modulated attention and feed-forward of the video and audio stream.

Each sublayer processes rows and tokens in chunks and updates the residual stream in place, so
memory is needed for the residuals and the keys and values of one row. Source: LTX-2 reference
(``transformer.py`` of ltx-core).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from latent_ladder.models.network_configs import CHUNK_TOKENS_CPU
from latent_ladder.models.transformer.attention import (
    Attention,
    AttentionShape,
    FeedForward,
    KeysValues,
)
from latent_ladder.models.transformer.config import StreamConfig, TransformerConfig
from latent_ladder.models.transformer.noise_levels import Affine, TokenChunk
from latent_ladder.models.transformer.pass_batching import BlockRows, SublayerRows, group_rows
from latent_ladder.models.transformer.rope import RopeTable
from latent_ladder.models.transformer.streams import NagState, StreamState
from latent_ladder.models.weights.linear import decode_once

SCALE_ROWS = (0, 1, 0, 0, 1, 0, 0, 1, 0)
"""1 for the rows of a block's modulation table that are scales (to which 1 is added). Rows are
(shift, scale, gate) of self-attention, of feed-forward and, in 2.3, of text attention."""
CROSS_SCALE_ROWS = (1, 0, 1, 0)
"""The same for audio-video tables, without their last row (the gate): scale and shift of
audio-to-video attention, then of video-to-audio attention."""


class _Modulation(NamedTuple):
    """Modulation of one stream in a block; scales are factors (1 is added)."""

    attention: Affine
    attention_gate: Tensor
    text: Affine
    text_gate: Tensor | None
    ff: Affine
    ff_gate: Tensor


class _CrossModulation(NamedTuple):
    """Audio-video modulation of one stream in a block; the gate scales what the stream receives."""

    a2v: Affine
    v2a: Affine
    gate: Tensor


class _StreamLayers(NamedTuple):
    """Modules and modulation tables of one stream in a block."""

    attn1: Attention
    attn2: Attention
    ff: FeedForward
    table: Tensor
    prompt_table: Tensor | None
    cross_table: Tensor


class TransformerBlock(nn.Module):
    """Transformer block: self-attention, text attention, audio-video attention, feed-forward."""

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

    def _stream_layers(self, prefix: str) -> _StreamLayers:
        """Modules of the stream with the name prefix ``""`` (video) or ``"audio_"``."""
        modules, tables = self._modules, self._parameters
        return _StreamLayers(
            cast(Attention, modules[f"{prefix}attn1"]),
            cast(Attention, modules[f"{prefix}attn2"]),
            cast(FeedForward, modules[f"{prefix}ff"]),
            cast(Tensor, tables[f"{prefix}scale_shift_table"]),
            tables.get(f"{prefix}prompt_scale_shift_table"),
            cast(Tensor, tables[f"scale_shift_table_a2v_ca_{'audio' if prefix else 'video'}"]),
        )

    def forward(
        self,
        video: StreamState | None,
        audio: StreamState | None,
        rows: BlockRows,
        updated_video: bool = False,
    ) -> None:
        """Run the block on both streams; updates their state in place.

        ``updated_video``: see :meth:`Transformer.forward`.
        """
        enabled = []
        for s, prefix, self_rows, text in (
            (video, "", rows.video_self, rows.video_text),
            (audio, "audio_", rows.audio_self, rows.audio_text),
        ):
            if s is not None and self_rows is not None and text is not None:
                layers = self._stream_layers(prefix)
                mods = self._compute_modulation(s, layers)
                self._self_attention(s, layers, mods, self_rows)
                self._text_attention(s, layers, mods, text)
                enabled.append((s, layers.ff, mods))
        if video is not None and audio is not None:
            self._cross_attention(video, audio, rows, updated_video)
        for s, ff, mods in enabled:
            self._feed_forward(s, ff, mods)

    def _decode_once(self, s: StreamState, *layers: nn.Module) -> AbstractContextManager[None]:
        """Weights of ``layers`` are decoded once where ``s`` is computed in several chunks."""
        return nullcontext() if s.is_one_chunk(self.chunk_tokens) else decode_once(*layers)

    def _self_attention(
        self, s: StreamState, layers: _StreamLayers, mods: _Modulation, sub: SublayerRows
    ) -> None:
        s.split_rows(sub)
        with self._decode_once(s, layers.attn1):
            self._attend_to_self(s, layers.attn1, mods, sub)

    def _attend_to_self(
        self, s: StreamState, attn: Attention, mods: _Modulation, sub: SublayerRows
    ) -> None:
        budget = self.chunk_tokens
        for rows, keys in group_rows(sub.keys, s.rows_per_chunk(budget)):
            chunks = list(s.chunks(rows, budget))
            if keys is None:
                for chunk in chunks:
                    delta = attn.skip_attention(s.normalise(chunk, mods.attention, self.eps))
                    s.add(chunk, delta, mods.attention_gate)
                continue
            kv, normed_x = self._compute_keys_values(
                s, attn, chunks, mods.attention, s.prepared.rope
            )
            for chunk in chunks:
                x = s.normalise(chunk, mods.attention, self.eps) if normed_x is None else normed_x
                delta = attn(x, kv, s.rope_chunk(s.prepared.rope, chunk), s.bias_chunk(chunk))
                s.add(chunk, delta, mods.attention_gate)

    def _compute_keys_values(
        self,
        s: StreamState,
        attn: Attention,
        chunks: Sequence[TokenChunk],
        modulation: Affine,
        table: RopeTable,
    ) -> tuple[KeysValues, Tensor | None]:
        """Compute keys and values of all chunks.

        If there is one chunk, its normalised input is returned too, for use as the query input.
        """
        if len(chunks) == 1:
            x = s.normalise(chunks[0], modulation, self.eps)
            return attn.keys_values(x, s.rope_chunk(table, chunks[0])), x
        rows = chunks[0].rows
        heads, inner = attn.heads, attn.to_k.out_features
        shape = (rows.stop - rows.start, s.x.shape[1], heads, inner // heads)
        all_kv = KeysValues(s.x.new_empty(shape), s.x.new_empty(shape))
        for chunk in chunks:
            x = s.normalise(chunk, modulation, self.eps)
            keys, values = attn.keys_values(x, s.rope_chunk(table, chunk))
            all_kv.keys[:, chunk.tokens] = keys
            all_kv.values[:, chunk.tokens] = values
        return all_kv, None

    def _text_attention(
        self, s: StreamState, layers: _StreamLayers, mods: _Modulation, sub: SublayerRows
    ) -> None:
        context, table = s.context, layers.prompt_table
        if table is not None:
            both = table[None] if s.prompt is None else table + s.prompt
            context = torch.addcmul(both[:, :1], context, 1 + both[:, 1:]).to(context.dtype)
        s.split_rows(sub)
        attn = layers.attn2
        kv = attn.keys_values(context)
        nag_kv = None if s.nag is None else self._nag_keys_values(s, s.nag, layers)
        with self._decode_once(s, *attn.query_layers):
            self._attend_to_text(s, attn, mods, sub, (kv, nag_kv))

    def _attend_to_text(
        self,
        s: StreamState,
        attn: Attention,
        mods: _Modulation,
        sub: SublayerRows,
        contexts: tuple[KeysValues, KeysValues | None],
    ) -> None:
        (kv, nag_kv), budget = contexts, self.chunk_tokens
        limit = s.rows_per_chunk(budget) if s.nag is None else 1
        for rows, keys in group_rows(sub.keys, limit):
            if keys is None:
                continue
            group_kv = kv.rows(keys, rows.stop - rows.start)
            away_from = None
            if s.nag is not None and nag_kv is not None and s.nag.applies[keys.start]:
                away_from = nag_kv.rows(keys if len(nag_kv.keys) > 1 else slice(0, 1), 1)
            for chunk in s.chunks(rows, budget):
                x = s.normalise(chunk, mods.text, self.eps)
                if s.nag is None or away_from is None:
                    delta = attn(x, group_kv)
                else:
                    delta = attn.guided(x, group_kv, away_from, s.nag.nag)
                s.add(chunk, delta, mods.text_gate)

    def _nag_keys_values(
        self, s: StreamState, state: NagState, layers: _StreamLayers
    ) -> KeysValues:
        """Keys and values of the prompt that NAG pushes away from.

        One row; one for each row of text keys if the modulation of the prompt differs.
        """
        context, table = state.context, layers.prompt_table
        if table is not None and state.nag.modulated:
            both = table[None] if s.prompt is None else table + s.prompt
            context = torch.addcmul(both[:, :1], context, 1 + both[:, 1:]).to(context.dtype)
        return layers.attn2.keys_values(context)

    def _cross_attention(
        self, video: StreamState, audio: StreamState, rows: BlockRows, updated_video: bool
    ) -> None:
        """Audio-video attention in both directions.

        The video attends to the audio before this sublayer. The audio attends to the video before
        it too, as in the official code, or with ``updated_video`` to the updated video.
        """
        video_mods = self._compute_cross_modulation(video, self._stream_layers(""))
        audio_mods = self._compute_cross_modulation(audio, self._stream_layers("audio_"))
        attn, audio_kv = self.audio_to_video_attn, None
        if rows.a2v is not None and any(k is not None for k in rows.a2v.keys):
            all_tokens = TokenChunk(slice(0, len(audio.x)), slice(0, audio.x.shape[1]))
            audio_kv, _ = self._compute_keys_values(
                audio, attn, [all_tokens], audio_mods.a2v, audio.prepared.cross_rope
            )
        if updated_video:
            self._audio_to_video(video, audio_kv, rows.a2v, video_mods)
        if rows.v2a is not None:
            audio.split_rows(rows.v2a)
            self._video_to_audio(video, audio, rows.v2a, video_mods.v2a, audio_mods)
        if not updated_video:
            self._audio_to_video(video, audio_kv, rows.a2v, video_mods)

    def _audio_to_video(
        self,
        video: StreamState,
        audio_kv: KeysValues | None,
        sub: SublayerRows | None,
        mods: _CrossModulation,
    ) -> None:
        """Let the video attend to the keys ``audio_kv`` of all audio rows."""
        if sub is None:
            return
        video.split_rows(sub)
        attn, budget = self.audio_to_video_attn, self.chunk_tokens
        with self._decode_once(video, *attn.query_layers):
            for group, keys in group_rows(sub.keys, video.rows_per_chunk(budget)):
                if keys is None or audio_kv is None:
                    continue
                group_kv = audio_kv.rows(keys, group.stop - group.start)
                for chunk in video.chunks(group, budget):
                    x = video.normalise(chunk, mods.a2v, self.eps)
                    delta = attn(x, group_kv, video.rope_chunk(video.prepared.cross_rope, chunk))
                    video.add(chunk, delta, mods.gate, shared_gate=True)

    def _video_to_audio(
        self,
        video: StreamState,
        audio: StreamState,
        sub: SublayerRows,
        modulation: Affine,
        mods: _CrossModulation,
    ) -> None:
        """Let the audio attend to the video rows ``sub.keys``; keys of one row group at a time."""
        attn, budget = self.video_to_audio_attn, self.chunk_tokens
        table = video.prepared.cross_rope
        with self._decode_once(video, attn):
            for rows, keys in group_rows(sub.keys, video.rows_per_chunk(budget)):
                if keys is None:
                    continue
                video_kv, _ = self._compute_keys_values(
                    video, attn, list(video.chunks(keys, budget)), modulation, table
                )
                chunk = TokenChunk(rows, slice(0, audio.x.shape[1]))
                count = rows.stop - rows.start
                group_kv = video_kv.rows(slice(0, keys.stop - keys.start), count)
                x = audio.normalise(chunk, mods.v2a, self.eps)
                delta = attn(x, group_kv, audio.rope_chunk(audio.prepared.cross_rope, chunk))
                audio.add(chunk, delta, mods.gate, shared_gate=True)

    def _feed_forward(self, s: StreamState, ff: FeedForward, mods: _Modulation) -> None:
        budget = self.chunk_tokens
        with self._decode_once(s, ff):
            for rows in s.row_chunks(budget):
                for chunk in s.chunks(rows, budget):
                    s.add(chunk, ff(s.normalise(chunk, mods.ff, self.eps)), mods.ff_gate)

    def _compute_modulation(self, s: StreamState, layers: _StreamLayers) -> _Modulation:
        rows = (layers.table + self.ones + s.ada).to(s.x.dtype).unbind(2)
        attention, ff = Affine(rows[1], rows[0]), Affine(rows[4], rows[3])
        text, text_gate = Affine(None, None), None
        if len(rows) > 6:
            text, text_gate = Affine(rows[7], rows[6]), rows[8]
        return _Modulation(attention, rows[2], text, text_gate, ff, rows[5])

    def _compute_cross_modulation(self, s: StreamState, layers: _StreamLayers) -> _CrossModulation:
        table = layers.cross_table
        rows = (table[:4] + self.cross_ones + cast(Tensor, s.cross)).to(s.x.dtype).unbind(2)
        gate = (table[4] + cast(Tensor, s.gate)).to(s.x.dtype)
        return _CrossModulation(Affine(rows[0], rows[1]), Affine(rows[2], rows[3]), gate)
