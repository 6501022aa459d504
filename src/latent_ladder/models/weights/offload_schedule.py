"""Schedule of offloaded blocks: the planner counts with it, block offloading carries it out."""

from __future__ import annotations

from functools import cache

BUFFERS = 2
"""Blocks on the device while others are streamed: one is computed while the next is copied."""


def streamed_block_numbers(blocks: int, streamed: int) -> tuple[int, ...]:
    """Numbers of the blocks to stream, ``streamed`` out of ``blocks``, spread over all of them.

    The sets are nested: streaming more blocks streams the same ones and others, so a stage that has
    less room than the one before only gives blocks back. A gap between two streamed blocks is at
    most twice as long as another, so each copy has the compute time of about as many blocks.
    """
    return tuple(sorted(_streaming_order(blocks)[:streamed]))


@cache
def _streaming_order(blocks: int) -> tuple[int, ...]:
    """All block numbers, each as far as possible from those before it; blocks form a circle.

    The last block is the first: while it is copied, the ones before it are computed.
    """
    order: list[int] = []
    distance = [blocks] * blocks
    for _ in range(blocks):
        number = max(range(blocks), key=lambda n: (distance[n], n))
        order.append(number)
        for other in range(blocks):
            apart = abs(other - number)
            distance[other] = min(distance[other], apart, blocks - apart)
    return tuple(order)
