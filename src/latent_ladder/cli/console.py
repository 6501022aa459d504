"""Terminal output: tables on stdout; progress, warnings and errors on stderr. No model code."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from latent_ladder.cli.terminal_images import Protocol, detect_protocol, encode_image
from latent_ladder.errors import LadderError, RequestError
from latent_ladder.pipeline.events import (
    DraftStarted,
    Event,
    PointStarted,
    Preview,
    StageDone,
    StageStarted,
    StepDone,
    Waiting,
    Warned,
)

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.progress import Progress, TaskID
    from rich.segment import Segment

GIB = 2**30
MIB = 2**20

PREVIEW_INTERVAL_S = 10.0
"""Least time between two preview pictures of a stage in the terminal."""

LINE_INTERVAL_S = 10.0
"""Least time between two lines about the steps of one stage where there are no bars."""


def stderr_console() -> Console:
    """A rich console on stderr, for everything but results."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: LadderError) -> None:
    """Print ``error:`` and ``hint:`` lines on stderr, a pair for each problem of a request."""
    console = stderr_console()
    pairs = error.problems if isinstance(error, RequestError) else ((error.message, error.hint),)
    for message, hint in pairs:
        console.print(f"[bold red]error:[/] {_escape(message)}")
        if hint:
            console.print(f"[bold]hint:[/]  {_escape(hint)}")


def show_warning(message: str) -> None:
    """Print a ``warning:`` line on stderr."""
    stderr_console().print(f"[bold yellow]warning:[/] {_escape(message)}")


def show_note(message: str) -> None:
    """Print a plain line on stderr."""
    stderr_console().print(_escape(message))


def show_loading(text: str, quiet: bool = False) -> None:
    """Print a plain line on stderr at once, before anything slow is imported."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def print_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    whole: Collection[str] = (),
    below: Sequence[str] = (),
) -> None:
    """Print a table on stdout, as wide as the terminal; one line per row when it is piped.

    ``whole`` are columns whose names must not be broken, ``below`` those that may move below their
    row (:class:`latent_ladder.cli.table_layout.Table`).
    """
    from latent_ladder.cli.table_layout import Table

    lines = Table(columns, list(rows), whole, below).lines(output_width())
    print("\n".join(["", *([title] if title else []), *lines]))


def print_text(text: str) -> None:
    """Print a paragraph on stdout, broken at spaces to fit the terminal."""
    from latent_ladder.cli.table_layout import wrap

    print("\n".join(wrap(text, output_width())))


def output_width() -> int | None:
    """Width of stdout in characters: COLUMNS, else the terminal's; ``None`` for a pipe."""
    named = os.environ.get("COLUMNS", "")
    if named.isdecimal() and int(named) > 0:
        return int(named)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def format_bytes(count: float) -> str:
    """``count`` bytes in GiB, or in MiB below one GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / MIB:.0f} MiB"


class _TerminalImage:
    """A PNG file as rich prints it: the escape sequences, then the end of the line."""

    def __init__(self, path: str, protocol: Protocol) -> None:
        self._path, self._protocol = path, protocol

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import ControlType, Segment

        with suppress(OSError):
            png = Path(self._path).read_bytes()
            # any control code marks the text as not to be measured or wrapped
            yield Segment(encode_image(png, self._protocol), None, [(ControlType.BELL,)])
        yield Segment.line()


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class RunProgress(AbstractContextManager["RunProgress"]):
    """Progress of a run on stderr: bars on a terminal, else a line per stage and per interval.

    Use it as a context manager and give ``on_event`` to the run.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._uses_bars = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._suffix = ""
        self._last_preview: tuple[str, float] | None = None
        self._next_line = 0.0

    def __enter__(self) -> Self:
        if self._uses_bars:
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                TextColumn("{task.description:<18}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("eta"),
                TimeRemainingColumn(),
                console=stderr_console(),
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def on_event(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, Warned):
            if not self._quiet:
                self._print(f"[bold yellow]warning:[/] {_escape(event.message)}")
        elif isinstance(event, Waiting):
            self._print(f"waiting for process {event.pid}, which makes the same clip")
        elif isinstance(event, Preview):
            self._show_preview(event)
        elif self._progress is not None:
            self._update_bar(self._progress, event)
        elif not self._quiet:
            self._print_line(event)

    def _print_line(self, event: Event) -> None:
        """One plain line for a stage that begins or ends, and for steps at intervals."""
        line = None
        if isinstance(event, DraftStarted):
            line = f"draft {event.number} of {event.of}: seed {event.seed}"
        elif isinstance(event, PointStarted):
            line = f"point {event.number} of {event.of}: {event.settings}"
        elif isinstance(event, StageStarted):
            self._next_line = time.monotonic() + LINE_INTERVAL_S
            line = f"{event.position}/{event.of} {event.stage}"
        elif isinstance(event, StepDone):
            if time.monotonic() >= self._next_line and event.done < event.steps:
                self._next_line = time.monotonic() + LINE_INTERVAL_S
                line = f"{event.stage}: {event.done} of {event.steps}"
        elif isinstance(event, StageDone):
            line = f"{event.stage}: {_done_note(event)}"
        if line is not None:
            self._print(_escape(line))

    def _show_preview(self, event: Preview) -> None:
        """Show the picture in a terminal that can, at intervals; else print its path once."""
        now = time.monotonic()
        protocol = detect_protocol(os.environ)
        last = self._last_preview
        if self._progress is not None and protocol is not None:
            if last is None or last[0] != event.stage or now > last[1]:
                self._last_preview = event.stage, now + PREVIEW_INTERVAL_S
                self._progress.console.print(_TerminalImage(event.path, protocol))
        elif last is None and not self._quiet:
            self._last_preview = event.stage, now
            self._print(f"preview: {_escape(event.path)}")

    def _print(self, markup: str) -> None:
        (self._progress.console if self._progress is not None else stderr_console()).print(markup)

    def _update_bar(self, progress: Progress, event: Event) -> None:
        if isinstance(event, DraftStarted | PointStarted):
            self._suffix = f" #{event.number}"
        elif isinstance(event, StageStarted):
            label = f"{event.position}/{event.of} {event.stage}{self._suffix}"
            self._task = progress.add_task(label, total=event.steps or 1, note="")
        elif isinstance(event, StepDone) and self._task is not None:
            note = "" if event.sigma is None else f"sigma {event.sigma:.3f}"
            progress.update(self._task, completed=event.done, total=event.steps, note=note)
        elif isinstance(event, StageDone):
            if event.reused:
                progress.console.print(_escape(f"{event.stage}: {_done_note(event)}"))
            elif self._task is not None:
                total = progress.tasks[progress.task_ids.index(self._task)].total
                progress.update(self._task, completed=total, note=_done_note(event))


def _done_note(event: StageDone) -> str:
    """Time and memory of a finished stage."""
    if event.reused:
        return "stored before, reused"
    return f"{event.seconds:.1f} s, peak memory {format_bytes(event.peak_memory_bytes)}"
