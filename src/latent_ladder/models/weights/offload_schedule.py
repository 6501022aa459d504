"""Schedule of streamed blocks, used by the memory planner and by block offloading."""

from __future__ import annotations


def streamed_block_numbers(blocks: int, streamed: int) -> tuple[int, ...]:
    """Numbers of the blocks to stream, ``streamed`` out of ``blocks``, evenly spaced.

    Even spacing gives each copy the compute time of all blocks between two streamed ones.
    """
    return tuple((k + 1) * blocks // streamed - 1 for k in range(streamed))
