"""Forwards of a transformer recorded once and replayed: no launches from Python, same kernels.

The second forward of a kind is recorded, the first one runs as usual, so that kernels are chosen
and compiled before. A recording keeps the activations of its forward until the stage ends.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from latent_ladder.models.transformer.model import Transformer
from latent_ladder.models.transformer.pass_batching import PassSpec
from latent_ladder.models.transformer.streams import StreamInput
from latent_ladder.models.weights.block_offload import ResidentBlocks

Velocities = tuple[Tensor | None, Tensor | None]
Replay = Callable[[], None]
_Forward = Callable[[StreamInput | None, StreamInput | None], Velocities]
Record = Callable[[Callable[[], Velocities]], tuple[Replay, Velocities]]
"""Records a function; returns how to replay it, and its outputs, which each replay overwrites."""


def record_cuda_graph(work: Callable[[], Velocities]) -> tuple[Replay, Velocities]:
    """Record ``work`` as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = work()
    return graph.replay, outputs


@dataclass(frozen=True)
class _Recording:
    """A recorded forward: its inputs, which are overwritten before each replay, and outputs."""

    video: StreamInput | None
    audio: StreamInput | None
    replay: Replay
    outputs: Velocities


class GraphedForward:
    """Callable like a :class:`Transformer`, for one stage and one set of LoRAs.

    Streamed blocks cannot be recorded: with them every forward runs as usual.
    """

    def __init__(self, transformer: Transformer, record: Record = record_cuda_graph) -> None:
        self._transformer, self._record = transformer, record
        self._recordings: dict[Hashable, _Recording | None] = {}

    def __call__(
        self,
        video: StreamInput | None,
        audio: StreamInput | None,
        passes: Sequence[PassSpec],
        *,
        updated_video: bool = False,
    ) -> Velocities:
        """Velocities as :meth:`Transformer.forward` computes them, in new tensors."""
        forward: _Forward = partial(self._transformer, passes=passes, updated_video=updated_video)
        if not isinstance(self._transformer.block_iterator, ResidentBlocks):
            return forward(video, audio)
        key = _kind(video), _kind(audio), tuple(passes), updated_video
        if key not in self._recordings:
            self._recordings[key] = None
            return forward(video, audio)
        recording = self._recordings[key]
        if recording is None:
            recording = self._recordings[key] = self._make(video, audio, forward)
        for stored, given in ((recording.video, video), (recording.audio, audio)):
            if stored is not None and given is not None:
                stored.tokens.copy_(given.tokens)
                stored.sigma.copy_(given.sigma)
        recording.replay()
        first, second = (None if out is None else out.clone() for out in recording.outputs)
        return first, second

    def _make(
        self, video: StreamInput | None, audio: StreamInput | None, forward: _Forward
    ) -> _Recording:
        own_video, own_audio = _own(video), _own(audio)
        replay, outputs = self._record(partial(forward, own_video, own_audio))
        return _Recording(own_video, own_audio, replay, outputs)


def _kind(stream: StreamInput | None) -> Hashable:
    if stream is None:
        return None
    return id(stream.prepared), stream.tokens.shape, stream.sigma.shape, stream.enabled


def _own(stream: StreamInput | None) -> StreamInput | None:
    """A copy of an input whose tensors a recording may keep."""
    if stream is None:
        return None
    return replace(stream, tokens=stream.tokens.clone(), sigma=stream.sigma.clone())
