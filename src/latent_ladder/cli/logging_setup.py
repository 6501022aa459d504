"""Handlers for the logger ``latent_ladder``: none by default, stderr or a file on request.

Every module logs to ``logging.getLogger(__name__)``, which is below the logger ``latent_ladder``.
Without ``--verbose``, ``--debug``, ``--log`` or ``LADDER_LOG`` nothing is written. Log lines never
go to stdout, which is for results, and :class:`LineFilter` removes secrets from all of them and
shows control characters as escapes. A log that cannot be written (a full disk) never ends a
command: it is said once on stderr.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from latent_ladder._version import __version__
from latent_ladder.cli.printable import printable, printable_line, shell_command
from latent_ladder.errors import RequestError

LOGGER_NAME = "latent_ladder"
"""Parent of all loggers of this package."""

SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
"""Environment variables whose values never appear in a log."""

MASK = "***"

logger = logging.getLogger(__name__)

_KEY = r"[\w-]*(?:token(?!s)|secret|passw(?:or)?d|api[_-]?key|signature|credential)[\w-]*|\bsig"
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # the rest of a header: Authorization: Bearer abc
        (r"""((?:authorization|cookie)["']?\s*[:=]\s*["']?)[^"'\r\n,}]+""", rf"\1{MASK}"),
        (r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", rf"\1 {MASK}"),
        # user and password in an address: https://me:abc@host
        (r"(\b[a-z][a-z0-9+.-]*://)[^\s/@]+@", rf"\1{MASK}@"),
        # tokens of Hugging Face, whatever is before them
        (r"\b(hf|api_org)_[A-Za-z0-9]{6,}", rf"\1_{MASK}"),
        # ?token=abc, "api_key": "abc", --password abc
        (rf"""((?:{_KEY})(?:["']?\s*[:=]\s*["']?))[^\s"'&,;}}\])]+""", rf"\1{MASK}"),
        (rf"(--(?:{_KEY})\s+)\S+", rf"\1{MASK}"),
    )
)


def configure_logging(
    *, verbose: bool = False, debug: bool = False, file: Path | None = None
) -> None:
    """Attach handlers to the logger ``latent_ladder``, in place of those of an earlier call.

    ``verbose`` writes lines of level INFO and above to stderr, ``debug`` all lines; ``file`` gets
    all lines, appended. Raises :class:`RequestError` if ``file`` cannot be written.
    """
    package = logging.getLogger(LOGGER_NAME)
    for old in list(package.handlers):
        package.removeHandler(old)
        old.close()
    package.addHandler(logging.NullHandler())
    if verbose or debug:
        handler = StderrHandler(logging.DEBUG if debug else logging.INFO)
        _attach(handler, "%(relativeCreated)7.0f ms  %(levelname)-7s %(message)s")
    if file is not None:
        _attach(_open_file(file), "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")
    levels = [handler.level for handler in package.handlers[1:]]
    package.setLevel(min(levels, default=logging.WARNING))


def start_log(*, verbose: bool, debug: bool, file: Path | None) -> None:
    """Configure the log of a command and write its first lines: version, command, machine."""
    configure_logging(verbose=verbose, debug=debug, file=file)
    logger.info("latent-ladder %s: %s", __version__, shell_command(["ladder", *sys.argv[1:]]))
    logger.debug("Python %s on %s, in %s", sys.version.split()[0], sys.platform, Path.cwd())


def mask_secrets(text: str) -> str:
    """``text`` without tokens, passwords, ``Authorization`` headers and logins in addresses."""
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class LineFilter(logging.Filter):
    """Replaces secrets in a record by ``***`` and control characters by escapes.

    A message is one line, so that no text of others can look like a line of the log.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Change ``record`` in place; every record passes."""
        record.msg, record.args = printable_line(mask_secrets(record.getMessage())), None
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            record.exc_text = printable(mask_secrets(record.exc_text))
        return True


class StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current ``sys.stderr``, so that lines appear above a progress bar.

    Lines that cannot be written are dropped.
    """

    def __init__(self, level: int) -> None:
        logging.Handler.__init__(self, level)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        """``sys.stderr`` at this moment; rich replaces it while it shows a progress bar."""
        return sys.stderr

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a line that cannot be written: stderr is where that would be said."""


class LogFileHandler(logging.FileHandler):
    """Appends to a file; the first error of writing is said on stderr, then the file is left."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002
        """Say that the log ends here, and drop this and all later lines."""
        from latent_ladder.cli.console import show_warning

        error = sys.exc_info()[1]
        reason = getattr(error, "strerror", None) or str(error)
        self.setLevel(logging.CRITICAL + 1)
        logging.getLogger(LOGGER_NAME).removeHandler(self)
        show_warning(f"log file {self.baseFilename} cannot be written any more: {reason}")

    def close(self) -> None:
        """Close the file; what a full disk did not take is dropped."""
        with suppress(OSError):
            super().close()


def _open_file(path: Path) -> logging.Handler:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_fifo():
            raise OSError(errno.EINVAL, "it is a pipe, and opening it may wait forever")
        handler = LogFileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise RequestError(
            f"log file {path} cannot be written: {error.strerror or error}",
            "choose another path with --log, or unset LADDER_LOG",
        ) from error
    handler.setLevel(logging.DEBUG)
    return handler


def _attach(handler: logging.Handler, line_format: str) -> None:
    handler.addFilter(LineFilter())
    handler.setFormatter(logging.Formatter(line_format))
    logging.getLogger(LOGGER_NAME).addHandler(handler)
