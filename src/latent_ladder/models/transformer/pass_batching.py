"""Which rows of a batched forward are still identical, block by block.

Guidance runs several passes on the same latents. Two passes differ only from the sublayer on
where their flags first matter: another prompt at the first text attention, a perturbed
self-attention at its block, isolated modalities at the first audio-video attention. Until then
one row stands for all of them, exactly. The plan is integers only; :mod:`transformer` carries it
out.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple


@dataclass(frozen=True)
class PassSpec:
    """How one guidance pass differs from a plain forward.

    ``context``: row of the contexts that every batch item uses, ``None``: row b for item b.
    ``stg_video``, ``stg_audio``: blocks whose self-attention gives the value projection instead.
    ``isolated``: no audio-video attention in either direction.
    """

    context: int | None = None
    stg_video: frozenset[int] = frozenset()
    stg_audio: frozenset[int] = frozenset()
    isolated: bool = False


class Sublayer(NamedTuple):
    """Rows of one sublayer: row j continues row ``source[j]`` (``None``: all as they were) and
    attends to ``keys[j]`` (``None``: self-attention perturbed, or cross-attention skipped).
    """

    source: tuple[int, ...] | None
    keys: tuple[int | None, ...]


class BlockRows(NamedTuple):
    """The sublayers of one block in order; ``None`` where the stream is absent or disabled."""

    video_self: Sublayer | None
    audio_self: Sublayer | None
    video_text: Sublayer | None
    audio_text: Sublayer | None
    a2v: Sublayer | None
    v2a: Sublayer | None


class Rows(NamedTuple):
    """The whole plan. ``contexts``: the (context, batch item) pair behind each row of text keys;
    ``video`` and ``audio``: the final row of every (pass, item), pass-major.
    """

    blocks: tuple[BlockRows, ...]
    contexts: tuple[tuple[int, int], ...]
    video: tuple[int, ...]
    audio: tuple[int, ...]


class Question(NamedTuple):
    """What a plan depends on. ``per_item_sigma``: batch items differ in their noise level."""

    layers: int
    passes: tuple[PassSpec, ...]
    batch: int
    per_item_sigma: bool
    video: bool
    audio: bool
    cross: bool


@lru_cache(maxsize=64)
def plan_rows(ask: Question) -> Rows:
    """Follow every (pass, item) through the blocks and split rows where they part."""
    items = [(p, b) for p in ask.passes for b in range(ask.batch)]
    pairs = [
        (b if p.context is None else p.context, b if ask.per_item_sigma else 0) for p, b in items
    ]
    contexts = tuple(dict.fromkeys(pairs))
    text = [contexts.index(pair) for pair in pairs]
    alone = [p.isolated or not ask.cross for p, _ in items]
    video = audio = [b for _, b in items]
    blocks = []
    for i in range(ask.layers):
        video, video_self = _self(video, [i in p.stg_video for p, _ in items], ask.video)
        audio, audio_self = _self(audio, [i in p.stg_audio for p, _ in items], ask.audio)
        video, video_text = _advance(video, text, ask.video)
        audio, audio_text = _advance(audio, text, ask.audio)
        to_audio = [None if off else row for off, row in zip(alone, audio, strict=True)]
        to_video = [None if off else row for off, row in zip(alone, video, strict=True)]
        video, a2v = _advance(video, to_audio, ask.video and ask.cross)
        audio, v2a = _advance(audio, to_video, ask.audio and ask.cross)
        blocks.append(BlockRows(video_self, audio_self, video_text, audio_text, a2v, v2a))
    return Rows(tuple(blocks), contexts, tuple(video), tuple(audio))


def _self(rows: list[int], perturbed: list[bool], on: bool) -> tuple[list[int], Sublayer | None]:
    rows, sublayer = _advance(rows, [None if p else 0 for p in perturbed], on)
    if sublayer is not None:
        own = tuple(None if k is None else j for j, k in enumerate(sublayer.keys))
        sublayer = Sublayer(sublayer.source, own)
    return rows, sublayer


def _advance(
    rows: list[int], keys: Sequence[int | None], on: bool
) -> tuple[list[int], Sublayer | None]:
    """New row of every item: items stay together while they agree in row and key."""
    if not on:
        return rows, None
    states: list[Hashable] = list(zip(rows, keys, strict=True))
    distinct = list(dict.fromkeys(states))
    parted = [distinct.index(state) for state in states]
    source = tuple(rows[states.index(state)] for state in distinct)
    unchanged = source == tuple(range(max(rows) + 1))
    found = tuple(keys[states.index(state)] for state in distinct)
    return parted, Sublayer(None if unchanged else source, found)


class RowGroup(NamedTuple):
    """Neighbouring rows that can be computed together; ``keys`` is as long, or of length one."""

    rows: slice
    keys: slice | None


def group_rows(keys: Sequence[int | None], limit: int) -> list[RowGroup]:
    """Split rows into groups of at most ``limit`` with equal or consecutive keys."""
    groups: list[RowGroup] = []
    start = 0
    while start < len(keys):
        stop, step = start + 1, None
        while stop < len(keys) and stop - start < limit:
            gap = _gap(keys[stop - 1], keys[stop])
            if gap is None or step not in (None, gap):
                break
            stop, step = stop + 1, gap
        first, last = keys[start], keys[stop - 1]
        held = None if first is None or last is None else slice(first, last + 1)
        groups.append(RowGroup(slice(start, stop), held))
        start = stop
    return groups


def _gap(before: int | None, after: int | None) -> int | None:
    """0 for the same key, 1 for the next, ``None`` for what does not go together."""
    if before is None or after is None:
        return 0 if before is after else None
    return after - before if after - before in (0, 1) else None
