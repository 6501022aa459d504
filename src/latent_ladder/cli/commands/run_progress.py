"""A run that the user watches: its progress, Ctrl-C, and the command to go on with."""

from __future__ import annotations

import json
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from latent_ladder.cli.console import RunProgress, show_note
from latent_ladder.errors import Cancelled

if TYPE_CHECKING:
    from types import FrameType

    from latent_ladder.pipeline.run import Cancel, Prepared, Result, RunOptions


@contextmanager
def watched(
    prepared: Prepared,
    device: str,
    command: str,
    *,
    overwrite: bool,
    quiet: bool,
    kept: str = "stages",
) -> Iterator[RunOptions]:
    """Options of a run whose progress is shown and that Ctrl-C stops.

    Raises :class:`Cancelled` after saying that what is ``kept`` stays and that ``command`` goes on.
    """
    from latent_ladder.pipeline.run import Cancel, RunOptions

    cancel = Cancel()
    with RunProgress(quiet) as progress, interrupts(cancel):
        try:
            yield RunOptions(
                device=device,
                memory=prepared.options,
                overwrite=overwrite,
                command=command,
                on_event=progress.on_event,
                cancel=cancel,
            )
        except (Cancelled, KeyboardInterrupt) as error:
            show_note(f"stopped; finished {kept} are kept. To go on:\n  {command}")
            raise Cancelled("stopped by the user") from error


@contextmanager
def interrupts(cancel: Cancel) -> Iterator[None]:
    """The first Ctrl-C lets the step finish, the second stops at once."""

    def stop(_: int, __: FrameType | None) -> None:
        if cancel.requested:
            raise KeyboardInterrupt
        cancel.request()
        show_note("stopping after this step; press Ctrl-C again to stop at once")

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def resume_command(seed: int) -> str:
    """This command line with the seed it drew, so that it names the same clip again."""
    words, skip = ["ladder"], False
    for word in sys.argv[1:]:
        if skip or word.startswith("--seed="):
            skip = False
        elif word == "--seed":
            skip = True
        else:
            words.append(word)
    return shlex.join([*words, "--seed", str(seed)])


def print_result(result: Result, as_json: bool) -> None:
    """The path of the clip on stdout, or everything about it as JSON."""
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, indent=2))
    else:
        print(result.output)
