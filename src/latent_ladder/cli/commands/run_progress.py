"""A run in the foreground: its progress and log, Ctrl-C, and the command that resumes it."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from latent_ladder.cli.console import RunProgress, print_json, print_lines, show_note
from latent_ladder.cli.printable import shell_command
from latent_ladder.cli.result_line import clip_lines
from latent_ladder.cli.run_log import log_events, log_plan
from latent_ladder.errors import Cancelled

if TYPE_CHECKING:
    from types import FrameType

    from latent_ladder.pipeline.run import Cancel, Prepared, Result, RunOptions


@contextmanager
def track_run(
    prepared: Prepared,
    command: str,
    *,
    overwrite: bool,
    quiet: bool,
    parts: str = "stages",
) -> Iterator[RunOptions]:
    """Options of a run that shows its progress, is logged, and stops at Ctrl-C.

    ``command`` resumes the run and ``parts`` are the things that it stores; both are in the note
    that is printed before :class:`Cancelled` is raised. Raises :class:`StoreError` for a store
    that cannot be written, before anything is loaded.
    """
    prepared.store.check_writable()
    if not quiet:
        _announce(prepared)
    from latent_ladder.pipeline.run import Cancel, RunOptions

    cancel = Cancel()
    log_plan(prepared)
    with RunProgress(quiet) as progress, cancel_on_interrupt(cancel):
        try:
            yield RunOptions(
                device=prepared.device,
                memory=prepared.options,
                overwrite=overwrite,
                command=command,
                on_event=log_events(progress.on_event),
                cancel=cancel,
            )
        except (Cancelled, KeyboardInterrupt) as error:
            show_note(f"stopped; finished {parts} are stored. To resume:\n  {command}")
            raise Cancelled("stopped by the user") from error


def _announce(prepared: Prepared) -> None:
    """Print what will be made, with its seed, and what is loading."""
    show_note(prepared.headline())
    earlier = prepared.unfinished
    if earlier is not None:
        state = {"cancelled": "was stopped", "failed": "failed"}.get(earlier.status, "was killed")
        show_note(
            f"run {earlier.id} {state}: its seed {prepared.request.seed} is taken over and its "
            "finished stages are used (--seed -1 makes another clip)"
        )
    if "torch" not in sys.modules:
        show_note("loading PyTorch")


@contextmanager
def cancel_on_interrupt(cancel: Cancel) -> Iterator[None]:
    """Request ``cancel`` at the first Ctrl-C; the second one raises ``KeyboardInterrupt``."""

    def stop(_: int, __: FrameType | None) -> None:
        if cancel.requested:
            raise KeyboardInterrupt
        cancel.request()
        show_note("stopping after this step; press Ctrl-C again to stop at once")

    previous = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def current_command() -> str:
    """The command line of this process as text for a shell."""
    return shell_command(["ladder", *sys.argv[1:]])


def resume_command(seed: int) -> str:
    """The command line of this process with ``--seed seed``, so that it makes the same clip."""
    words, skip = ["ladder"], False
    for word in sys.argv[1:]:
        if skip or word.startswith("--seed="):
            skip = False
        elif word == "--seed":
            skip = True
        else:
            words.append(word)
    return shell_command([*words, "--seed", str(seed)])


def print_result(result: Result, seconds: float, *, as_json: bool, quiet: bool) -> None:
    """Print a finished clip on stdout: one line, or its path alone, or all of it as JSON.

    ``seconds`` is how long it took.
    """
    if as_json:
        print_json(result.to_dict())
    elif quiet:
        print_lines(result.output)
    else:
        print_lines("\n".join(clip_lines(result, seconds)))
