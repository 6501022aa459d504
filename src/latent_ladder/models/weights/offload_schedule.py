"""Which of a row of blocks come and go: the planner and the one who carries it out agree here."""

from __future__ import annotations


def spread(blocks: int, streamed: int) -> tuple[int, ...]:
    """Numbers of the ``streamed`` of ``blocks``: evenly spaced, the first one late.

    A copy then has the time of all blocks between two streamed ones.
    """
    return tuple((k + 1) * blocks // streamed - 1 for k in range(streamed))
