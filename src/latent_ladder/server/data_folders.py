"""The folders a client may read and write: uploads, results, previews. Nothing leaves them.

Knows no HTTP. Every path that a client names goes through :func:`confined`.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from latent_ladder.errors import RequestError
from latent_ladder.storage.atomic_write import PART_PREFIX, is_abandoned

KINDS = ("output", "input", "temp")
"""ComfyUI's names of the folders; the first is what ``/view`` means if nobody says."""

MAX_NAME_BYTES = 200
"""Of a file to be written: a temporary name beside it has a few more."""
MAX_COMPONENT_BYTES = 255
MAX_PATH = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ANNOTATED = re.compile(r"(?P<name>.*?)\s*\[(?P<kind>output|input|temp)\]", re.DOTALL)
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Places:
    """Where uploads lie, where results go, and what may be thrown away."""

    input: Path
    output: Path
    temp: Path

    def make(self) -> None:
        """Create them, and remove what uploads left that a crash cut short.

        Raises :class:`RequestError` where that is not possible.
        """
        for kind in KINDS:
            try:
                self.root(kind).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RequestError(
                    f"{kind} folder {self.root(kind)} cannot be made: {error.strerror}",
                    f"choose another --{kind}-directory",
                ) from error
        for part in self.input.glob(f"{PART_PREFIX}*"):
            if is_abandoned(part):
                with suppress(OSError):
                    part.unlink()

    def root(self, kind: str) -> Path:
        """The folder that ``kind`` names. Raises :class:`RequestError`."""
        roots = {"output": self.output, "input": self.input, "temp": self.temp}
        if kind not in roots:
            raise RequestError(f"type={kind[:40]!r} is no folder", f"use {', '.join(KINDS)}")
        return roots[kind]

    def path(self, kind: str, subfolder: str, name: str = "") -> Path:
        """The path that a client means, which may not exist. Raises :class:`RequestError`."""
        return confined(self.root(kind), subfolder, name)


def annotated(name: str, kind: str) -> tuple[str, str]:
    """``("x.png [input]", "output")`` -> ``("x.png", "input")``; else both as they are."""
    found = _ANNOTATED.fullmatch(name)
    return (found["name"], found["kind"]) if found else (name, kind)


def confined(root: Path, *parts: str) -> Path:
    """``root`` and ``parts`` below it, links followed.

    Raises :class:`RequestError` for a path that is absolute, goes up, or leaves ``root`` by a link.
    """
    below = root.resolve()
    path = below
    for part in parts:
        _check(part)
        path = path / part
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _escapes(parts) from error
    if not path.is_relative_to(below):
        raise _escapes(parts)
    return path


def _check(part: str) -> None:
    rooted = part.startswith(("/", "\\")) or "\\" in part or (os.name == "nt" and ":" in part)
    if rooted or ".." in part.split("/") or _CONTROL.search(part) or not _writable(part):
        raise _escapes((part,))


def _writable(text: str) -> bool:
    """Whether ``text`` can be a path at all: lone surrogates cannot, nor can names too long."""
    try:
        names = text.encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return False
    return len(text) <= MAX_PATH and max(map(len, names)) <= MAX_COMPONENT_BYTES


def _escapes(parts: tuple[str, ...]) -> RequestError:
    named = ascii("/".join(part for part in parts if part)[:100])
    return RequestError(f"{named} is not a path below the folder", "name a file inside it")


def file_name(text: str) -> str:
    """The name of a file to be written, as a client gave it. Raises :class:`RequestError`."""
    _check(text)
    bare = text.strip().rstrip(".")
    if (
        not bare
        or "/" in bare
        or len(bare.encode("utf-8")) > MAX_NAME_BYTES
        or _WINDOWS_DEVICES.fullmatch(bare)
    ):
        raise RequestError(
            f"{text[:60]!a} is not a file name", "use letters, digits, - and _, and a suffix"
        )
    return bare
