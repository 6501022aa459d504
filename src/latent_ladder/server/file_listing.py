"""Names of the files that clients may choose from: models by folder, uploads. No torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from latent_ladder.checkpoints.search_paths import CATEGORIES, ModelFolder

SUFFIXES = frozenset({".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin"})
"""Suffixes of model files; those that would have to be unpickled are listed, and refused on use."""

FOLDERS = (*dict.fromkeys(CATEGORIES.values()), "embeddings")
"""What ``/models`` lists."""

_DEEPEST = 8


@dataclass(frozen=True)
class Listing:
    """The files below ``models``, by ComfyUI's folder names, and those of ``input``.

    ``replaced`` are names of workflows that mean another file: they are listed beside it, as
    clients look there before they send a workflow.
    """

    models: tuple[ModelFolder, ...]
    input: Path
    replaced: Mapping[str, str] = field(default_factory=dict)

    def names(self, folder: str) -> list[str]:
        """Sorted names; ``"a,b"`` is the union of both, ``"input"`` what was uploaded."""
        if folder == "input":
            return sorted(name for name, _ in _below(self.input))
        found = {name for name, _ in self._files(folder)}
        return sorted(found | {old for old, new in self.replaced.items() if new in found})

    def find(self, folder: str, name: str) -> Path | None:
        """The file that a listed name means; no other file is ever returned."""
        return next((path for found, path in self._files(folder) if found == name), None)

    def state(self) -> frozenset[tuple[str, int, int]]:
        """Path, size and time of every model file: another value where any has changed."""
        found = set()
        for _, path in self._files(",".join(FOLDERS)):
            with suppress(OSError):
                about = path.stat()
                found.add((str(path), about.st_size, about.st_mtime_ns))
        return frozenset(found)

    def _files(self, folder: str) -> Iterator[tuple[str, Path]]:
        asked = {CATEGORIES.get(name, name) for name in folder.split(",")}
        for category in asked.intersection(FOLDERS):  # any other name could be a path
            for root in self._roots(category):
                for name, path in _below(root):
                    if path.suffix.lower() in SUFFIXES:
                        yield name, path

    def _roots(self, category: str) -> Iterable[Path]:
        aliases = [old for old, new in CATEGORIES.items() if new == category] or [category]
        for folder in self.models:
            if folder.category is None:
                yield from (folder.path / alias for alias in aliases)
            elif folder.category == category:
                yield folder.path


class Glance:
    """A listing that looks into every folder once, for as long as one request lasts."""

    def __init__(self, listing: Listing) -> None:
        self._look = functools.cache(listing.names)

    def names(self, folder: str) -> list[str]:
        """As :meth:`Listing.names`."""
        return self._look(folder)


def _below(root: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Path]]:
    """Visible files below a folder with their names as ComfyUI lists them, with ``/``."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield prefix + entry.name, Path(entry.path)
        elif depth < _DEEPEST and entry.is_dir():
            yield from _below(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)
