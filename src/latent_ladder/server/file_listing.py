"""Names of the files that clients can choose: models by folder, and uploads. No torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from latent_ladder.checkpoints.search_paths import CATEGORIES, ModelFolder

SUFFIXES = frozenset({".safetensors", ".sft", ".gguf", ".ckpt", ".pt", ".pth", ".bin"})
"""Suffixes of model files. Files that would need unpickling are listed, and refused when used."""

FOLDERS = (*dict.fromkeys(CATEGORIES.values()), "embeddings")
"""The folders of ``/models``."""

_MAX_DEPTH = 8


@dataclass(frozen=True)
class FileListing:
    """The files below ``models``, by ComfyUI's folder names, and those of ``input``.

    ``replaced`` maps file names in workflows to the files to use. The old names are listed too,
    because clients check a workflow against the list before they send it.
    """

    models: tuple[ModelFolder, ...]
    input: Path
    replaced: Mapping[str, str] = field(default_factory=dict)

    def names(self, folder: str) -> list[str]:
        """Sorted file names of a folder, of several (``"a,b"``), or the uploads (``"input"``)."""
        if folder == "input":
            return sorted(name for name, _ in _walk_files(self.input))
        names = {name for name, _ in self._files(folder)}
        return sorted(names | {old for old, new in self.replaced.items() if new in names})

    def find(self, folder: str, name: str) -> Path | None:
        """The path of a listed file; ``None`` for every other name."""
        return next((path for found, path in self._files(folder) if found == name), None)

    def state(self) -> frozenset[tuple[str, int, int]]:
        """Path, size and modification time of every model file, to detect changes."""
        files = set()
        for _, path in self._files(",".join(FOLDERS)):
            with suppress(OSError):
                status = path.stat()
                files.add((str(path), status.st_size, status.st_mtime_ns))
        return frozenset(files)

    def _files(self, folder: str) -> Iterator[tuple[str, Path]]:
        wanted = {CATEGORIES.get(name, name) for name in folder.split(",")}
        for category in wanted.intersection(FOLDERS):  # any other name could be a path
            for root in self._roots(category):
                for name, path in _walk_files(root):
                    if path.suffix.lower() in SUFFIXES:
                        yield name, path

    def _roots(self, category: str) -> Iterable[Path]:
        aliases = [old for old, new in CATEGORIES.items() if new == category] or [category]
        for folder in self.models:
            if folder.category is None:
                yield from (folder.path / alias for alias in aliases)
            elif folder.category == category:
                yield folder.path


class CachedListing:
    """A listing that reads every folder once; for the time of one request."""

    def __init__(self, listing: FileListing) -> None:
        self._names = functools.cache(listing.names)

    def names(self, folder: str) -> list[str]:
        """Sorted file names, as :meth:`FileListing.names`."""
        return self._names(folder)


def _walk_files(root: Path, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Path]]:
    """Visible files below a folder, each with its name relative to the folder (with ``/``)."""
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield prefix + entry.name, Path(entry.path)
        elif depth < _MAX_DEPTH and entry.is_dir():
            yield from _walk_files(Path(entry.path), f"{prefix}{entry.name}/", depth + 1)
