"""Model of PyTorch's caching allocator: memory reserved for a trace of allocations.

Source: ``c10/cuda/CUDACachingAllocator.cpp``. Requests of up to 1 MiB are served from segments of
2 MiB, up to 10 MiB from segments of 20 MiB, larger ones from segments of their size. The smallest
free block that is large enough is used and split; neighbours that become free are merged. With
``expandable_segments`` (what the product sets on Linux), each pool is one range of addresses that
grows by pages of 2 MiB (small) and 20 MiB (large); before an out-of-memory error, pages without a
tensor are returned.
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


class Expandable(NamedTuple):
    """Peaks of a trace: bytes of all pages mapped, and of the pages with a tensor in them."""

    mapped: int
    needed: int


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


def peak_expandable(trace: Iterable[tuple[str, int, int]]) -> Expandable:
    """Peaks for a trace, as :func:`peak_reserved`, with expandable segments."""
    ranges = {True: _Range(SMALL_SEGMENT), False: _Range(MEDIUM_SEGMENT)}
    live: dict[int, tuple[_Block, bool]] = {}
    most = 0
    for kind, number, nbytes in trace:
        if kind == "f":
            block, small = live.pop(number)
            ranges[small].free(block)
            continue
        small = nbytes <= SMALL_REQUEST
        live[number] = ranges[small].allocate(nbytes), small
        most = max(most, sum(part.needed for part in ranges.values()))
    return Expandable(sum(part.mapped for part in ranges.values()), most)


class _Range:
    """One expandable segment: blocks in order of address, the last one free or of size 0."""

    def __init__(self, page: int) -> None:
        self.page, self.mapped, self.needed = page, 0, 0
        self._pool, self._end = _Pool(), _Block(0, free=False)
        self._begin: dict[int, int] = {}
        self._used: dict[int, int] = {}

    def allocate(self, nbytes: int) -> _Block:
        block = self._pool.smallest(nbytes)
        if block is None:
            block = self._grow(nbytes)
        begin = self._begin.pop(id(block))
        rest = block.size - nbytes
        if rest >= SMALLEST_REST:
            remainder = _Block(rest, True, block, block.after)
            if block.after is not None:
                block.after.before = remainder
            block.after, block.size = remainder, nbytes
            self._add(remainder, begin + nbytes)
            if self._end is block:
                self._end = remainder
        block.free = False
        self._begin[id(block)] = begin
        self._count(block, 1)
        return block

    def free(self, block: _Block) -> None:
        self._count(block, -1)
        begin = self._begin.pop(id(block))
        if block.before is not None and block.before.free:
            begin = self._begin.pop(id(block.before))
        if block.after is not None and block.after.free:
            self._begin.pop(id(block.after))
        was_end = self._end is block or (
            block.after is not None and block.after.free and self._end is block.after
        )
        merged = _merge(block, self._pool)
        if was_end:
            self._end = merged
        self._add(merged, begin)

    def _grow(self, nbytes: int) -> _Block:
        """A free block of at least ``nbytes`` at the end of the range."""
        end, page = self._end, self.page
        is_free = end.free and end.size > 0
        missing = nbytes - (end.size if is_free else 0)
        more = -(-missing // page) * page
        if is_free:
            self._pool.remove(end)
            end.size += more
        else:
            fresh = _Block(more, True, end if end.size else None)
            if end.size:
                end.after = fresh
            self._begin[id(fresh)] = self.mapped
            self._end = end = fresh
        self.mapped += more
        return end

    def _add(self, block: _Block, begin: int) -> None:
        self._begin[id(block)] = begin
        self._pool.add(block)

    def _count(self, block: _Block, step: int) -> None:
        """Count a block in or out of the pages that it touches."""
        begin = self._begin[id(block)]
        last = (begin + max(block.size, 1) - 1) // self.page
        for number in range(begin // self.page, last + 1):
            before = self._used.get(number, 0)
            self._used[number] = before + step
            if min(before, before + step) == 0:
                self.needed += step * self.page
