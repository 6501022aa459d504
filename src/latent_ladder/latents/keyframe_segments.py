"""Layout of keyframes-first clips (DFR): segments between keyframes, and tiles of temporal rounds.

The clip is lengthened until it consists of whole segments. A keyframe is generated at the end of
each segment. Every round doubles the frame rate and denoises the clip in tiles of whole segments,
with the keyframes at their seams given and new ones in the middle of each segment. Frames are
counted from 0 at the frame rate of the round. Plain numbers, no tensors. Source: LTX-2 1.2.0
(commit 400fd31) ``resolve_canvas``, ``tile_ranges``.
"""

from __future__ import annotations

from dataclasses import dataclass

from latent_ladder.latents.shapes import FRAMES_PER_LATENT

SEGMENTS = (32, 24)
"""Lengths of a segment in frames; the first is taken where both need the same padding."""
MAX_ROUNDS = 2
"""Most temporal rounds that are known to work: four times the frame rate."""


@dataclass(frozen=True)
class KeyframeCanvas:
    """Length of the clip that is generated: ``frames`` in segments of ``segment`` frames."""

    frames: int
    segment: int

    @property
    def segments(self) -> int:
        """Number of segments, and of keyframes."""
        return (self.frames - 1) // self.segment

    @property
    def keyframes(self) -> tuple[int, ...]:
        """Frames with a generated keyframe: the end of each segment."""
        return tuple(range(self.segment, self.frames, self.segment))

    def frames_after(self, rounds: int) -> int:
        """Length of the canvas after a number of temporal rounds."""
        return ((self.frames - 1) << rounds) + 1


@dataclass(frozen=True)
class SegmentTile:
    """One tile of a temporal round, denoised as a clip of its own.

    ``first_frame`` and ``last_frame`` belong to it. ``given`` are the frames whose keyframes are
    known, ``generated`` those of new keyframes. The first ``repeated_latents`` of its latent frames
    were made by the tile before and are dropped.
    """

    number: int
    first_frame: int
    last_frame: int
    given: tuple[int, ...]
    generated: tuple[int, ...]
    repeated_latents: int

    @property
    def frames(self) -> int:
        """Length in frames, 8k+1."""
        return self.last_frame - self.first_frame + 1

    @property
    def first_latent(self) -> int:
        """Index of its first latent frame in the latents of the round."""
        return self.first_frame // FRAMES_PER_LATENT

    @property
    def latent_stop(self) -> int:
        """Index after its last latent frame."""
        return self.last_frame // FRAMES_PER_LATENT + 1


def keyframe_canvas(frames: int) -> KeyframeCanvas:
    """The canvas for a clip of ``frames`` frames: the segment that needs the least padding.

    Raises :class:`ValueError` below one frame.
    """
    if frames < 1:
        raise ValueError(f"a clip of {frames} frames")
    canvases = [
        KeyframeCanvas(max(-(-(frames - 1) // segment), 1) * segment + 1, segment)
        for segment in SEGMENTS
    ]
    return min(canvases, key=lambda canvas: canvas.frames)


def segment_tiles(canvas: KeyframeCanvas, number: int) -> tuple[SegmentTile, ...]:
    """The tiles of temporal round ``number`` (1, 2, ...), in the order in which they are made.

    There are two for each doubling, of equal numbers of segments or with the longer ones first, and
    fewer where there are not as many segments. Each begins one segment before its own part.
    Raises :class:`ValueError` for a round below 1.
    """
    if number < 1:
        raise ValueError(f"temporal round {number}")
    length, segments = 2 * canvas.segment, canvas.segments << (number - 1)
    count = min(1 << number, segments)
    share, longer = divmod(segments, count)
    tiles, own = [], 0
    for n in range(count):
        begin, own = own, own + share + (n < longer)
        lead = min(begin, 1)
        first, last = (begin - lead) * length, own * length
        tiles.append(
            SegmentTile(
                n,
                first,
                last,
                tuple(range(first or length, last + 1, length)),
                tuple(range(first + length // 2, last, length)),
                lead * (length // FRAMES_PER_LATENT + 1),
            )
        )
    return tuple(tiles)
