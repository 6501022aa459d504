"""Several processes train one network: one thread each, one meeting a step.

A process of one thread per core meets the others once a step, not at every operation as the threads
of one process do. On a machine that others use too this halves the time of a step.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import torch
import torch.distributed
import torch.multiprocessing
from state import prepare
from torch import Tensor, nn


class Team:
    """The processes that share every step; alone by default."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def sum(self, flat: Tensor) -> Tensor:
        """Elementwise over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(flat)
        return flat

    def average(self, weights: list[nn.Parameter], note: Tensor) -> Tensor:
        """Replace gradients by their mean; the first process's `note` to all."""
        if self.size == 1:
            return note
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        note = note if self.rank == 0 else torch.zeros_like(note)
        flat = self.sum(torch.cat([note, *(w.grad.flatten() for w in weights)]))
        at = len(note)
        for weight in weights:
            weight.grad.copy_(flat[at : at + weight.numel()].view_as(weight) / self.size)
            at += weight.numel()
        return flat[: len(note)]

    def same(self, state: dict[str, Tensor]) -> None:
        """The first process's weights to all."""
        if self.size > 1:
            for value in state.values():
                torch.distributed.broadcast(value, 0)


def launch(train: Callable[[argparse.Namespace, Team], None], options: argparse.Namespace) -> None:
    """Call `train` in `options.processes` processes of `options.threads` threads."""
    if options.processes == 1:
        _member(0, train, options, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/meeting"
        context = torch.multiprocessing.get_context("spawn")
        others = range(1, options.processes)
        team = [context.Process(target=_member, args=(r, train, options, meeting)) for r in others]
        for process in team:
            process.start()
        _member(0, train, options, meeting)
        for process in team:
            process.join()


def _member(
    rank: int,
    train: Callable[[argparse.Namespace, Team], None],
    options: argparse.Namespace,
    meeting: str,
) -> None:
    prepare(options.threads)
    if meeting:
        torch.distributed.init_process_group(
            "gloo", init_method=meeting, rank=rank, world_size=options.processes
        )
    train(options, Team(rank, options.processes))
