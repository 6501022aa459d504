"""What a person sees in a terminal: progress on stderr, tables, errors. Knows no model."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from latent_ladder.cli.terminal_images import Protocol, picture, protocol
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


def stderr() -> Console:
    """A rich console on stderr, where everything but results goes."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def show_error(error: LadderError) -> None:
    """``error:`` and ``hint:`` lines; a request's problems one under the other."""
    console = stderr()
    pairs = error.problems if isinstance(error, RequestError) else ((error.message, error.hint),)
    for message, hint in pairs:
        console.print(f"[bold red]error:[/] {_escape(message)}")
        if hint:
            console.print(f"[bold]hint:[/]  {_escape(hint)}")


def show_warning(message: str) -> None:
    """One ``warning:`` line."""
    stderr().print(f"[bold yellow]warning:[/] {_escape(message)}")


def show_note(message: str) -> None:
    """A plain line on stderr."""
    stderr().print(_escape(message))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table on stdout: aligned for a person, still one row per line when piped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, title=title or None, box=box.SIMPLE_HEAD, title_justify="left")
    for row in rows:
        shown.add_row(*(_escape(cell) for cell in row))
    console = Console(highlight=False)
    wide = console.width if console.is_terminal else 240
    Console(highlight=False, width=wide).print(shown)


def gib(count: float) -> str:
    """Bytes as GiB, or MiB below one."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"


PICTURE_EVERY_S = 10.0


class _Picture:
    """A PNG file as rich prints it: the sequences, then a line of its own."""

    def __init__(self, path: str, speaks: Protocol) -> None:
        self._path, self._speaks = path, speaks

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        from rich.segment import ControlType, Segment

        with suppress(OSError):
            data = Path(self._path).read_bytes()
            # any control code marks the text as not to be measured or wrapped
            yield Segment(picture(data, self._speaks), None, [(ControlType.BELL,)])
        yield Segment.line()


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


class RunProgress(AbstractContextManager["RunProgress"]):
    """Shows a run's events on stderr; without a terminal only warnings and waiting.

    Use as a context and hand ``on_event`` to the run. Warnings are collected for ``--json``.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._live = sys.stderr.isatty() and not quiet
        self._quiet = quiet
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._draft = ""
        self._shown: tuple[str, float] | None = None

    def __enter__(self) -> Self:
        if self._live:
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
                console=stderr(),
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
                self._say(f"[bold yellow]warning:[/] {_escape(event.message)}")
        elif isinstance(event, Waiting):
            self._say(f"waiting: process {event.pid} is working on the same clip")
        elif isinstance(event, Preview):
            self._look(event)
        elif self._progress is not None:
            self._move(self._progress, event)

    def _look(self, event: Preview) -> None:
        """The picture itself where the terminal can, now and then; else its path, once."""
        now = time.monotonic()
        speaks = protocol(os.environ)
        if self._progress is not None and speaks is not None:
            if self._shown is None or self._shown[0] != event.stage or now > self._shown[1]:
                self._shown = event.stage, now + PICTURE_EVERY_S
                self._progress.console.print(_Picture(event.path, speaks))
        elif self._shown is None and not self._quiet:
            self._shown = event.stage, now
            self._say(f"preview: {_escape(event.path)}")

    def _say(self, markup: str) -> None:
        (self._progress.console if self._progress is not None else stderr()).print(markup)

    def _move(self, progress: Progress, event: Event) -> None:
        if isinstance(event, DraftStarted | PointStarted):
            self._draft = f" #{event.number}"
        elif isinstance(event, StageStarted):
            label = f"{event.position}/{event.of} {event.stage}{self._draft}"
            self._task = progress.add_task(label, total=event.steps or 1, note="")
        elif isinstance(event, StepDone) and self._task is not None:
            note = "" if event.sigma is None else f"sigma {event.sigma:.3f}"
            progress.update(self._task, completed=event.done, total=event.steps, note=note)
        elif isinstance(event, StageDone):
            if event.reused:
                progress.console.print(f"{event.stage}: already made, reused")
            elif self._task is not None:
                total = progress.tasks[progress.task_ids.index(self._task)].total
                note = f"{event.seconds:.1f} s, peak {gib(event.peak_memory_bytes)}"
                progress.update(self._task, completed=total, note=note)
