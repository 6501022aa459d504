"""Model of PyTorch's caching allocator: memory reserved for a trace of allocations.

Source: ``c10/cuda/CUDACachingAllocator.cpp``. Requests of up to 1 MiB are served from segments of
2 MiB, up to 10 MiB from segments of 20 MiB, larger ones from segments of their size. The smallest
free block that is large enough is used and split; neighbours that become free are merged.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

MIB = 2**20
SMALL_REQUEST, SMALL_SEGMENT = MIB, 2 * MIB
MEDIUM_REQUEST, MEDIUM_SEGMENT = 10 * MIB, 20 * MIB
ROUND_LARGE = 2 * MIB
SMALLEST_REST = 512


class Reserved(NamedTuple):
    """Peaks of a trace: bytes of all segments, and bytes of the blocks in use."""

    reserved: int
    in_use: int


@dataclass
class _Block:
    size: int
    free: bool = True
    before: _Block | None = None
    after: _Block | None = None


class _Pool:
    """Free blocks of one kind (small or large), sorted by size."""

    def __init__(self) -> None:
        self._blocks: list[tuple[int, int, _Block]] = []
        self._numbers = itertools.count()

    def add(self, block: _Block) -> None:
        bisect.insort(self._blocks, (block.size, next(self._numbers), block))

    def remove(self, block: _Block) -> None:
        index = bisect.bisect_left(self._blocks, (block.size, -1))
        while self._blocks[index][2] is not block:
            index += 1
        self._blocks.pop(index)

    def smallest(self, nbytes: int) -> _Block | None:
        """Take out the smallest block of at least ``nbytes``."""
        index = bisect.bisect_left(self._blocks, (nbytes, -1))
        return self._blocks.pop(index)[2] if index < len(self._blocks) else None


def peak_reserved(trace: Iterable[tuple[str, int, int]]) -> Reserved:
    """Peaks for a trace of ("a", number, bytes) and ("f", number, 0); cached segments stay."""
    pools = {True: _Pool(), False: _Pool()}
    live: dict[int, tuple[_Block, bool]] = {}
    reserved = in_use = peak = 0
    for kind, number, nbytes in trace:
        if kind == "f":
            block, small = live.pop(number)
            in_use -= block.size
            pools[small].add(_merge(block, pools[small]))
            continue
        small = nbytes <= SMALL_REQUEST
        found = pools[small].smallest(nbytes)
        if found is None:
            found = _Block(_segment_bytes(nbytes))
            reserved += found.size
        _split(found, nbytes, small, pools[small])
        found.free = False
        live[number] = found, small
        in_use += found.size
        peak = max(peak, in_use)
    return Reserved(reserved, peak)


def _segment_bytes(nbytes: int) -> int:
    if nbytes <= SMALL_REQUEST:
        return SMALL_SEGMENT
    if nbytes < MEDIUM_REQUEST:
        return MEDIUM_SEGMENT
    return -(-nbytes // ROUND_LARGE) * ROUND_LARGE


def _split(block: _Block, nbytes: int, small: bool, pool: _Pool) -> None:
    rest = block.size - nbytes
    if rest < SMALLEST_REST or (not small and rest <= SMALL_REQUEST):
        return
    remainder = _Block(rest, True, block, block.after)
    if block.after is not None:
        block.after.before = remainder
    block.after, block.size = remainder, nbytes
    pool.add(remainder)


def _merge(block: _Block, pool: _Pool) -> _Block:
    block.free = True
    for neighbour in (block.before, block.after):
        if neighbour is None or not neighbour.free:
            continue
        pool.remove(neighbour)
        first, second = (neighbour, block) if neighbour is block.before else (block, neighbour)
        first.size += second.size
        first.after = second.after
        if second.after is not None:
            second.after.before = first
        block = first
    return block
