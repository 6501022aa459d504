"""``--open``: the file that a command made, in the program that the desktop uses for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from latent_ladder.cli.console import show_note

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")
"""Variables of which one is set where a Linux desktop is running."""


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
    if not any(environment.get(name) for name in DISPLAYS):
        return "there is no display"
    if shutil.which(_opener(platform), path=environment.get("PATH")) is None:
        return f"{_opener(platform)} is not installed"
    return None


def _start(target: Path) -> None:
    """Start the opener and leave it running. Raises ``OSError``."""
    if sys.platform == "win32":
        os.startfile(target)
        return
    subprocess.Popen(
        [_opener(sys.platform), str(target.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
