"""``--notify``: the terminal's bell and a message of the desktop at the end of a command."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from latent_ladder.cli.result_line import format_time
from latent_ladder.errors import Cancelled, LadderError

TITLE = "latent-ladder"
TIMEOUT_S = 5


@contextmanager
def notify_at_end(wanted: bool, what: str) -> Iterator[None]:
    """Tell the user when the block ends, also with an error; not when the user stopped it.

    ``what`` names what the block makes.
    """
    began = time.monotonic()
    try:
        yield
    except Cancelled:
        raise
    except LadderError as error:
        if wanted:
            send(f"{what} failed: {error.message}")
        raise
    if wanted:
        send(f"{what} finished in {format_time(time.monotonic() - began)}")


def send(text: str) -> None:
    """Ring the bell of the terminal and show a desktop message where there is a program for it."""
    if sys.stderr.isatty():
        sys.stderr.write("\a")
        sys.stderr.flush()
    command = desktop_command(sys.platform, text)
    if command and shutil.which(command[0]):
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
                check=False,
            )


def desktop_command(platform: str, text: str) -> Sequence[str]:
    """The command that shows a desktop message, empty for a platform without one.

    The text is an argument or is quoted: it may come from a file name or a prompt.
    """
    if platform == "darwin":
        quoted = text.replace("\\", "\\\\").replace('"', '\\"')
        return ("osascript", "-e", f'display notification "{quoted}" with title "{TITLE}"')
    if platform.startswith("linux"):
        return ("notify-send", "--app-name", TITLE, "--", TITLE, text)
    return ()
