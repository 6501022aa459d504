"""``--open``: the file that a command made, in the program that the desktop uses for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from latent_ladder.cli.console import show_note


def open_file(path: Path) -> None:
    """Open a file, a picture sequence's folder or a web page; say so where that is impossible."""
    target = path.parent if "%" in path.name else path
    why = _why_not(sys.platform, os.environ)
    if why is None:
        try:
            _start(target)
        except OSError as error:
            why = error.strerror or str(error)
    if why is not None:
        show_note(f"--open: {why}; open {target} yourself")


def _opener(platform: str) -> str:
    """The program that opens files on this platform."""
    return "open" if platform == "darwin" else "xdg-open"


def _why_not(platform: str, environment: Mapping[str, str]) -> str | None:
    """The reason why nothing can be opened here, ``None`` if it can."""
    if platform in ("win32", "darwin"):
        return None
    if not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")):
        return "there is no display"
    if shutil.which(_opener(platform)) is None:
        return f"{_opener(platform)} is not installed"
    return None


def _start(target: Path) -> None:
    """Start the opener and leave it running. Raises ``OSError``."""
    if sys.platform == "win32":
        os.startfile(target)
        return
    # the shell ends at once, and the opener goes on without a parent
    command = ["sh", "-c", '"$0" "$1" &', _opener(sys.platform), str(target.absolute())]
    subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
