"""Output paths in ComfyUI's scheme: ``<prefix>_00001_.mp4``, never outside the output folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from latent_ladder.comfyui.graph import Graph, Link
from latent_ladder.errors import WorkflowError
from latent_ladder.storage.temporary_files import remove_abandoned

_DATE = re.compile(r"%date(?::([^%]*))?%")
_DATE_PARTS = re.compile(r"yyyy|yy|y|MM|M|dd|d|hh|h|mm|m|ss|s")
_WIDGET = re.compile(r"%([^%.]+)\.([^%]+)%")
_FORBIDDEN = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')
RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com\d|lpt\d)(\..*)?$")


class OutputPath(NamedTuple):
    """The location of a result: folder, subfolder below the root, file stem, next free number."""

    folder: Path
    subfolder: str
    stem: str
    number: int

    def path(self, suffix: str, offset: int = 0) -> Path:
        """Return ``folder/stem_00001_.suffix``; ``offset`` is added to the number."""
        return self.folder / f"{self.stem}_{self.number + offset:05}_{suffix}"


def claim_path(
    target: OutputPath,
    suffix: str,
    part: Path,
    offset: int = 0,
    record: Callable[[Path], None] = lambda _: None,
) -> Path:
    """Move a finished file to the first free name from ``offset`` on, and return its path.

    ``record`` gets each name before it is tried. Safe against other processes that claim names at
    the same time. Raises ``OSError`` and leaves ``part`` in place.
    """
    while True:
        path = target.path(suffix, offset)
        record(path)
        try:
            os.link(part, path)
        except FileExistsError:
            offset += 1
            continue
        except OSError:  # a file system without hard links
            if path.exists():
                offset += 1
                continue
            part.replace(path)
            return path
        part.unlink()
        return path


def next_output_path(root: Path, prefix: str, size: tuple[int, int] = (0, 0)) -> OutputPath:
    """Return the next free output path for a prefix such as ``video/clip``; its folder is created.

    ``%width%`` and ``%height%`` are replaced by ``size``. Raises :class:`WorkflowError` for a
    prefix that leads out of ``root``.
    """
    text = prefix.replace("\\", "/").replace("%width%", str(size[0]))
    text = _expand_dates(text.replace("%height%", str(size[1])), datetime.now().astimezone())
    parts = PurePosixPath(text).parts
    stem = "" if not parts or text.endswith("/") else parts[-1]
    folders = parts[:-1] if stem else parts
    if text.startswith("/") or ".." in parts or re.match(r"^[A-Za-z]:", text) or "\0" in text:
        raise WorkflowError(
            f"the filename prefix {prefix!r} leads out of the output folder",
            "use a name with optional subfolders, such as video/clip",
        )
    if any(RESERVED.match(part) for part in parts):
        raise WorkflowError(f"the filename prefix {prefix!r} is reserved on Windows", "rename it")
    folder = root.joinpath(*folders)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise WorkflowError(
            f"the filename prefix {prefix!r} leads out of the output folder through a link",
            "choose another subfolder",
        )
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned([folder])
    return OutputPath(folder, "/".join(folders), stem, _next_number(folder, stem))


def _next_number(folder: Path, stem: str) -> int:
    pattern = re.compile(re.escape(stem) + r"_(\d+)_.*", re.IGNORECASE)
    found = (pattern.fullmatch(path.name) for path in folder.iterdir())
    return max((int(m[1]) for m in found if m is not None), default=0) + 1


def expand_prefix(prefix: str, graph: Graph, now: datetime | None = None) -> str:
    """Return a prefix with ``%date:yyyy-MM-dd%`` and ``%node.widget%`` replaced, as in ComfyUI.

    ``node`` is the title or type of a node; an unknown placeholder is left unchanged.
    """

    def widget(match: re.Match[str]) -> str:
        for node in graph.nodes.values():
            if match[1] in (node.title, node.class_type):
                value = node.inputs.get(match[2])
                if value is not None and not isinstance(value, Link):
                    return _FORBIDDEN.sub("_", str(value))
        return match[0]

    return _expand_dates(_WIDGET.sub(widget, prefix), now or datetime.now().astimezone())


def _expand_dates(text: str, now: datetime) -> str:
    """Replace the placeholders of the interface (``%date:...%``) and the server (``%year%``)."""
    parts = {
        "yyyy": f"{now:%Y}", "yy": f"{now:%y}", "y": str(now.year), "MM": f"{now:%m}",
        "M": str(now.month), "dd": f"{now:%d}", "d": str(now.day), "hh": f"{now:%H}",
        "h": str(now.hour), "mm": f"{now:%M}", "m": str(now.minute), "ss": f"{now:%S}",
        "s": str(now.second),
    }  # fmt: skip

    def date(match: re.Match[str]) -> str:
        asked = match[1] or "yyyyMMddhhmmss"
        return _DATE_PARTS.sub(lambda part: parts[part[0]], asked)

    text = _DATE.sub(date, text)
    for name, code in (
        ("year", "%Y"), ("month", "%m"), ("day", "%d"), ("hour", "%H"), ("minute", "%M"),
        ("second", "%S"),
    ):  # fmt: skip
        text = text.replace(f"%{name}%", now.strftime(code))
    return text
