"""Folders that clients may read and write (uploads, results, previews), and checks of paths.

Every path that a client names is checked by :func:`resolve_inside`. This module knows no HTTP.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from latent_ladder.errors import RequestError
from latent_ladder.storage.temporary_files import remove_abandoned

FOLDER_TYPES = ("output", "input", "temp")
"""ComfyUI's names of the folders; ``output`` is the default of ``/view``."""

MAX_NAME_BYTES = 200
"""Longest name of a file to write; the temporary file next to it has a longer one."""
MAX_COMPONENT_BYTES = 255
MAX_PATH = 1000
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class DataFolders:
    """Folders for uploads (``input``), results (``output``) and previews (``temp``)."""

    input: Path
    output: Path
    temp: Path

    def create(self) -> None:
        """Create the folders, and delete partial files of processes that were killed.

        Raises :class:`RequestError` if a folder cannot be created.
        """
        for folder_type in FOLDER_TYPES:
            folder = self.root(folder_type)
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RequestError(
                    f"{folder_type} folder {folder} cannot be created: {error.strerror}",
                    f"choose another --{folder_type}-directory",
                ) from error
        remove_abandoned([self.input, self.output, self.temp, *_subfolders(self.output)])

    def root(self, folder_type: str) -> Path:
        """The folder of a type. Raises :class:`RequestError` for an unknown type."""
        roots = {"output": self.output, "input": self.input, "temp": self.temp}
        if folder_type not in roots:
            raise RequestError(
                f"type={folder_type[:40]!r} is not a folder", f"use {', '.join(FOLDER_TYPES)}"
            )
        return roots[folder_type]

    def path(self, folder_type: str, subfolder: str, name: str = "") -> Path:
        """The path that a client names; it may not exist. Raises :class:`RequestError`."""
        return resolve_inside(self.root(folder_type), subfolder, name)


def _subfolders(folder: Path) -> list[Path]:
    """All folders below ``folder``; links are not followed."""
    return [Path(here) / name for here, names, _ in os.walk(folder) for name in names]


def resolve_inside(root: Path, *parts: str) -> Path:
    """The path ``root/parts`` with symbolic links resolved.

    Raises :class:`RequestError` for a path that is absolute, has ``..``, or leaves ``root`` through
    a link.
    """
    resolved_root = root.resolve()
    path = resolved_root
    for part in parts:
        _check_relative(part)
        path = path / part
    try:
        path = path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise _outside_error(parts) from error
    if not path.is_relative_to(resolved_root):
        raise _outside_error(parts)
    return path


def _check_relative(part: str) -> None:
    absolute = part.startswith(("/", "\\")) or "\\" in part or (os.name == "nt" and ":" in part)
    if absolute or ".." in part.split("/") or _CONTROL.search(part) or not _is_valid_path(part):
        raise _outside_error((part,))


def _is_valid_path(text: str) -> bool:
    """False for text that no path can have: lone surrogates, names that are too long."""
    try:
        names = text.encode("utf-8").split(b"/")
    except UnicodeEncodeError:
        return False
    return len(text) <= MAX_PATH and max(map(len, names)) <= MAX_COMPONENT_BYTES


def _outside_error(parts: tuple[str, ...]) -> RequestError:
    path = ascii("/".join(part for part in parts if part)[:100])
    return RequestError(f"{path} is not a path below the folder", "name a file inside it")


def check_file_name(text: str) -> str:
    """The name of a file to write, as a client sent it. Raises :class:`RequestError`."""
    _check_relative(text)
    name = text.strip().rstrip(".")
    if (
        not name
        or "/" in name
        or len(name.encode("utf-8")) > MAX_NAME_BYTES
        or _WINDOWS_DEVICES.fullmatch(name)
    ):
        raise RequestError(
            f"{text[:60]!a} is not a file name", "use letters, digits, - and _, and a suffix"
        )
    return name
