"""Row plan of a batched forward: which guidance passes share a row, block by block.

Guidance runs several passes on the same latents. Two passes are identical up to the first
sublayer where they differ: another prompt at the first text attention, a perturbed self-attention
at its block, isolated modalities at the first audio-video attention. Up to there one row is
computed for all of them, which is exact. A plan contains only integers;
:class:`~latent_ladder.models.transformer.model.Transformer` executes it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple


@dataclass(frozen=True)
class PassSpec:
    """Options of one guidance pass.

    ``context``: row of the text contexts that all batch items use; ``None``: row b for item b.
    ``stg_video``, ``stg_audio``: blocks whose self-attention is skipped (spatio-temporal
    guidance). ``isolated``: no audio-video attention in either direction.
    """

    context: int | None = None
    stg_video: frozenset[int] = frozenset()
    stg_audio: frozenset[int] = frozenset()
    isolated: bool = False


class SublayerRows(NamedTuple):
    """Rows of one sublayer.

    Row j continues row ``source[j]`` of the sublayer before (``source`` ``None``: rows are
    unchanged) and attends to the keys of row ``keys[j]`` (``None``: attention is skipped).
    """

    source: tuple[int, ...] | None
    keys: tuple[int | None, ...]


class BlockRows(NamedTuple):
    """Rows of each sublayer of one block; ``None`` if the stream is absent or disabled."""

    video_self: SublayerRows | None
    audio_self: SublayerRows | None
    video_text: SublayerRows | None
    audio_text: SublayerRows | None
    a2v: SublayerRows | None
    v2a: SublayerRows | None


class RowPlan(NamedTuple):
    """Row plan of one forward.

    ``contexts``: (context, batch item) of each row of text keys. ``video``, ``audio``: final row
    of each (pass, item), pass-major.
    """

    blocks: tuple[BlockRows, ...]
    contexts: tuple[tuple[int, int], ...]
    video: tuple[int, ...]
    audio: tuple[int, ...]


class ForwardSpec(NamedTuple):
    """Inputs of a row plan: the passes, batch size and streams of one forward.

    ``per_item_sigma``: batch items have different noise levels. ``video``, ``audio``: the stream
    is present and updated. ``cross``: audio-video attention runs. ``updated_video``: the audio
    attends to the video after audio-to-video attention was added to it, not before.
    """

    layers: int
    passes: tuple[PassSpec, ...]
    batch: int
    per_item_sigma: bool
    video: bool
    audio: bool
    cross: bool
    updated_video: bool = False


@lru_cache(maxsize=64)
def plan_rows(spec: ForwardSpec) -> RowPlan:
    """Plan the rows of a forward: every (pass, item) shares a row until it differs."""
    items = [(p, b) for p in spec.passes for b in range(spec.batch)]
    pairs = [
        (b if p.context is None else p.context, b if spec.per_item_sigma else 0) for p, b in items
    ]
    contexts = tuple(dict.fromkeys(pairs))
    text = [contexts.index(pair) for pair in pairs]
    isolated = [p.isolated or not spec.cross for p, _ in items]
    video = audio = [b for _, b in items]
    blocks = []
    for i in range(spec.layers):
        video, video_self = _assign_self_rows(
            video, [i in p.stg_video for p, _ in items], spec.video
        )
        audio, audio_self = _assign_self_rows(
            audio, [i in p.stg_audio for p, _ in items], spec.audio
        )
        video, video_text = _assign_rows(video, text, spec.video)
        audio, audio_text = _assign_rows(audio, text, spec.audio)
        to_audio = [None if off else row for off, row in zip(isolated, audio, strict=True)]
        before = video
        video, a2v = _assign_rows(video, to_audio, spec.video and spec.cross)
        source = video if spec.updated_video else before
        to_video = [None if off else row for off, row in zip(isolated, source, strict=True)]
        audio, v2a = _assign_rows(audio, to_video, spec.audio and spec.cross)
        blocks.append(BlockRows(video_self, audio_self, video_text, audio_text, a2v, v2a))
    return RowPlan(tuple(blocks), contexts, tuple(video), tuple(audio))


def _assign_self_rows(
    rows: list[int], perturbed: list[bool], enabled: bool
) -> tuple[list[int], SublayerRows | None]:
    rows, sublayer = _assign_rows(rows, [None if p else 0 for p in perturbed], enabled)
    if sublayer is not None:
        own = tuple(None if k is None else j for j, k in enumerate(sublayer.keys))
        sublayer = SublayerRows(sublayer.source, own)
    return rows, sublayer


def _assign_rows(
    rows: list[int], keys: Sequence[int | None], enabled: bool
) -> tuple[list[int], SublayerRows | None]:
    """Assign new rows: items share a row if they had the same row and attend to the same key."""
    if not enabled:
        return rows, None
    states: list[Hashable] = list(zip(rows, keys, strict=True))
    distinct = list(dict.fromkeys(states))
    new_rows = [distinct.index(state) for state in states]
    source = tuple(rows[states.index(state)] for state in distinct)
    unchanged = source == tuple(range(max(rows) + 1))
    distinct_keys = tuple(keys[states.index(state)] for state in distinct)
    return new_rows, SublayerRows(None if unchanged else source, distinct_keys)


class RowGroup(NamedTuple):
    """Consecutive rows computed together, and their key rows (as many, or a single one)."""

    rows: slice
    keys: slice | None


def group_rows(keys: Sequence[int | None], limit: int) -> list[RowGroup]:
    """Split rows into groups of at most ``limit`` with equal or consecutive keys."""
    groups: list[RowGroup] = []
    start = 0
    while start < len(keys):
        stop, step = start + 1, None
        while stop < len(keys) and stop - start < limit:
            key_step = _key_step(keys[stop - 1], keys[stop])
            if key_step is None or step not in (None, key_step):
                break
            stop, step = stop + 1, key_step
        first, last = keys[start], keys[stop - 1]
        key_rows = None if first is None or last is None else slice(first, last + 1)
        groups.append(RowGroup(slice(start, stop), key_rows))
        start = stop
    return groups


def _key_step(before: int | None, after: int | None) -> int | None:
    """0 for the same key, 1 for the next key, ``None`` if the rows cannot be in one group."""
    if before is None or after is None:
        return 0 if before is after else None
    return after - before if after - before in (0, 1) else None
