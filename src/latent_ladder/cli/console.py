"""Terminal output: results on stdout; progress, warnings and errors on stderr. No model code.

The only module of the command line that prints. Text of others is made harmless here
(:mod:`latent_ladder.cli.printable`). A stderr that cannot be written (a full disk, a closed pipe)
never ends a command; a stdout that cannot be written is an error, because results go there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO, cast

from latent_ladder.cli.printable import printable, printable_json, printable_line
from latent_ladder.cli.streams import SafeStderr, convert_stdout_errors
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

    stream = cast("TextIO", SafeStderr())
    return Console(file=stream, highlight=False, soft_wrap=True)


def print_lines(text: object) -> None:
    """Print a result on stdout as it is, such as a path."""
    with convert_stdout_errors():
        print(printable(str(text)))


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print ``value`` as JSON on stdout; unsafe characters in its texts as ``\\uXXXX``."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    with convert_stdout_errors():
        print(printable_json(text))


def print_toml(text: str) -> None:
    """Print a TOML document on stdout; unsafe characters in its texts as ``\\uXXXX``."""
    with convert_stdout_errors():
        print(printable_json(text.rstrip()))


def show_error(error: LadderError) -> None:
    """Print ``error:`` and ``hint:`` lines on stderr, a pair for each problem of a request."""
    console = stderr_console()
    pairs = error.problems if isinstance(error, RequestError) else ((error.message, error.hint),)
    for message, hint in pairs:
        console.print(f"[bold red]error:[/] {escape_text(message)}")
        if hint:
            console.print(f"[bold]hint:[/]  {escape_text(hint)}")


def show_warning(message: str) -> None:
    """Print a ``warning:`` line on stderr."""
    stderr_console().print(f"[bold yellow]warning:[/] {escape_text(message)}")


def show_traceback(
    kind: type[BaseException], error: BaseException, frames: TracebackType | None
) -> None:
    """Print the traceback of a bug on stderr, as ``sys.excepthook``."""
    text = "".join(traceback.format_exception(kind, error, frames))
    stderr_console().print(escape_text(text), end="")


def show_note(message: str) -> None:
    """Print a plain line on stderr."""
    stderr_console().print(escape_text(message))


def show_loading(text: str, quiet: bool = False) -> None:
    """Print a plain line on stderr at once, before anything slow is imported."""
    if not quiet:
        stream = SafeStderr()
        stream.write(f"{printable(text)}\n")
        stream.flush()


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

    cells = [[printable_line(cell) for cell in row] for row in rows]
    lines = Table(columns, cells, whole, below).lines(output_width())
    print_lines("\n".join(["", *([title] if title else []), *lines]))


def print_text(text: str) -> None:
    """Print a paragraph on stdout, broken at spaces to fit the terminal."""
    from latent_ladder.cli.table_layout import wrap

    print_lines("\n".join(wrap(text, output_width())))


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


def escape_text(text: str) -> str:
    """``text`` of others for rich: neither its markup nor a control character has an effect."""
    from rich.markup import escape

    return escape(printable(text))


def escape_line(text: str) -> str:
    """As :func:`escape_text`, in one line."""
    from rich.markup import escape

    return escape(printable_line(text))


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
                self._print(f"[bold yellow]warning:[/] {escape_text(event.message)}")
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
            self._print(escape_text(line))

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
            self._print(f"preview: {escape_text(event.path)}")

    def _print(self, markup: str) -> None:
        (self._progress.console if self._progress is not None else stderr_console()).print(markup)

    def _update_bar(self, progress: Progress, event: Event) -> None:
        if isinstance(event, DraftStarted | PointStarted):
            self._suffix = f" #{event.number}"
        elif isinstance(event, StageStarted):
            label = escape_line(f"{event.position}/{event.of} {event.stage}{self._suffix}")
            self._task = progress.add_task(label, total=event.steps or 1, note="")
        elif isinstance(event, StepDone) and self._task is not None:
            note = "" if event.sigma is None else f"sigma {event.sigma:.3f}"
            progress.update(self._task, completed=event.done, total=event.steps, note=note)
        elif isinstance(event, StageDone):
            if event.reused:
                progress.console.print(escape_text(f"{event.stage}: {_done_note(event)}"))
            elif self._task is not None:
                total = progress.tasks[progress.task_ids.index(self._task)].total
                progress.update(self._task, completed=total, note=_done_note(event))


def _done_note(event: StageDone) -> str:
    """Time and memory of a finished stage."""
    if event.reused:
        return "stored before, reused"
    return f"{event.seconds:.1f} s, peak memory {format_bytes(event.peak_memory_bytes)}"
