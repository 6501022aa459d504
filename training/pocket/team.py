"""Data-parallel training of one network in several processes, with one synchronisation per step.

Processes of one thread each synchronise once per step, while the threads of one process synchronise
at every operation. On a machine with other load this halves the time of a step.
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
    """The group of training processes; a single process by default."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def sum(self, flat: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            torch.distributed.all_reduce(flat)
        return flat

    def average_gradients(self, weights: list[nn.Parameter], message: Tensor) -> Tensor:
        """Replace all gradients by their mean over the processes.

        Returns the `message` of the first process in every process.
        """
        if self.size == 1:
            return message
        for weight in weights:
            if weight.grad is None:
                weight.grad = torch.zeros_like(weight)
        message = message if self.rank == 0 else torch.zeros_like(message)
        flat = self.sum(torch.cat([message, *(w.grad.flatten() for w in weights)]))
        at = len(message)
        for weight in weights:
            weight.grad.copy_(flat[at : at + weight.numel()].view_as(weight) / self.size)
            at += weight.numel()
        return flat[: len(message)]

    def broadcast(self, state: dict[str, Tensor]) -> None:
        """Copy the weights of the first process to all others."""
        if self.size > 1:
            for value in state.values():
                torch.distributed.broadcast(value, 0)


def launch(train: Callable[[argparse.Namespace, Team], None], options: argparse.Namespace) -> None:
    """Run `train` in `options.processes` processes of `options.threads` threads each."""
    if options.processes == 1:
        _member(0, train, options, "")
        return
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{folder}/rendezvous"
        context = torch.multiprocessing.get_context("spawn")
        others = range(1, options.processes)
        team = [
            context.Process(target=_member, args=(r, train, options, rendezvous)) for r in others
        ]
        for process in team:
            process.start()
        _member(0, train, options, rendezvous)
        for process in team:
            process.join()


def _member(
    rank: int,
    train: Callable[[argparse.Namespace, Team], None],
    options: argparse.Namespace,
    rendezvous: str,
) -> None:
    prepare(options.threads)
    if rendezvous:
        torch.distributed.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=options.processes
        )
    train(options, Team(rank, options.processes))
