"""File names as graphs and clients write them: mapped names, safe names, folder tags."""

from __future__ import annotations

import re
from collections.abc import Mapping

_TAGGED = re.compile(r"(?P<name>.*?)\s*\[(?P<folder>output|input|temp)\]", re.DOTALL)


def map_file_name(name: str, names: Mapping[str, str]) -> str:
    """Return the name to look up for a file name in a graph.

    ``names`` maps full names or last path parts to others; ``\\`` of Windows paths becomes ``/``.
    """
    return mapped_file_name(name, names) or name.replace("\\", "/")


def mapped_file_name(name: str, names: Mapping[str, str]) -> str | None:
    """Return the name that ``names`` has for a file name in a graph or its last path part."""
    path = name.replace("\\", "/")
    return names.get(name) or names.get(path) or names.get(path.rpartition("/")[2])


def unsafe_path_reason(name: str) -> str:
    """Return why a file name could lead out of its folder, or an empty string if it cannot.

    The reason is a predicate, such as ``"is an absolute path"``.
    """
    path = name.replace("\\", "/")
    if "\0" in path:
        return "contains a zero byte"
    if path.startswith(("/", "~")) or re.match(r"[A-Za-z]:", path):
        return "is an absolute path"
    return "leads out of its folder" if ".." in path.split("/") else ""


def split_folder_tag(name: str, default: str = "") -> tuple[str, str]:
    """Split a name from its folder tag: ``"a.png [output]"`` -> ``("a.png", "output")``.

    The folder of a name without tag is ``default``.
    """
    match = _TAGGED.fullmatch(name)
    return (match["name"], match["folder"]) if match else (name, default)
