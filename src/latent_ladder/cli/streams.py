"""stdout and stderr as they may be: full devices, closed pipes, encodings without most letters.

A stderr that cannot be written never ends a command. A stdout that cannot be written is an error,
because results go there; a closed pipe is none, because its reader has seen enough.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from latent_ladder.errors import LadderError


class ClosedStdout(Exception):
    """The reader of stdout has seen enough, as ``| head``: no error, and nothing to say.

    Not an ``OSError``, which typer would turn into an exit code of its own.
    """


class SafeStderr:
    """``sys.stderr`` of this moment, ignoring errors of writing; what rich needs of a stream."""

    @property
    def _stream(self) -> TextIO:
        # rich replaces sys.stderr while it shows a progress bar
        stream: TextIO = getattr(sys.stderr, "rich_proxied_file", sys.stderr)
        return stream

    @property
    def encoding(self) -> str:
        """Encoding of the stream."""
        return self._stream.encoding or "ascii"

    def write(self, text: str) -> int:
        """Write, as far as that is possible."""
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, as far as that is possible."""
        with suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """True for a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """File descriptor of the stream."""
        return self._stream.fileno()


def flush_stdout() -> None:
    """Write out what was printed. Raises :class:`LadderError`, or :class:`ClosedStdout`."""
    with convert_stdout_errors():
        sys.stdout.flush()


@contextmanager
def convert_stdout_errors() -> Iterator[None]:
    """Convert errors of writing to stdout into :class:`LadderError` and :class:`ClosedStdout`."""
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedStdout from error
    except OSError as error:
        raise LadderError(
            f"the result cannot be written to stdout: {os.strerror(error.errno or 0)}",
            "what was made is stored; print to another place",
        ) from error


def prepare_streams() -> None:
    """Let stdout and stderr show what their encoding cannot, such as ``\\u2026`` in ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def discard_stdout() -> None:
    """Drop what is still to be printed: Python would try, and report it, when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
