"""Schedule of offloaded blocks: the planner counts with it, block offloading carries it out."""

from __future__ import annotations

BUFFERS = 2
"""Blocks on the device while others are streamed: one is computed while the next is copied."""


def streamed_block_numbers(blocks: int, streamed: int) -> tuple[int, ...]:
    """Numbers of the blocks to stream, ``streamed`` out of ``blocks``, evenly spaced.

    Even spacing gives each copy the compute time of all blocks between two streamed ones.
    """
    return tuple((k + 1) * blocks // streamed - 1 for k in range(streamed))
