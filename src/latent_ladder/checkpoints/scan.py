"""Scan of model folders: finds all model files and their components. Reads headers only.

Components are detected by the content of a file, never by its name or folder. Files of other models
are listed as ignored, damaged ones as unreadable, with the reason.
"""

from __future__ import annotations

import gc
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.families import component_family
from latent_ladder.checkpoints.header_cache import (
    ComponentSummary,
    FileContent,
    HeaderCache,
    fingerprint_files,
)
from latent_ladder.checkpoints.mmap_file import refusing_damage
from latent_ladder.checkpoints.search_paths import CATEGORIES, EMBEDDED, ModelFolder
from latent_ladder.checkpoints.shards import entry_points
from latent_ladder.checkpoints.upscalers import (
    CATEGORY,
    is_pickle,
    open_upscaler,
    upscaler_component,
)
from latent_ladder.errors import CheckpointError, UnknownLayout

MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf", ".safetensors.index.json")


class LazyComponents:
    """The components of a file; its header is read when the first of them is accessed."""

    def __init__(self, path: Path, parts: Mapping[str, Component] | None = None) -> None:
        self.path = path
        self._parts = parts

    @property
    def is_open(self) -> bool:
        """True if the header was read."""
        return self._parts is not None

    def part(self, role: str) -> Component:
        """One component. Raises what :func:`open_checkpoint` and :func:`components` raise."""
        if self._parts is None:
            self._parts = components(open_checkpoint(self.path))
        return self._parts[role]


@dataclass(frozen=True)
class FoundComponent:
    """One component, its file and the model folder in which it was found.

    ``path`` is the file, or the index or first file of a split checkpoint. ``summary`` is known
    without reading the header. ``configured_category`` is the category of the folder in an
    ``extra_model_paths.yaml``.
    """

    role: str
    path: Path
    folder: Path
    summary: ComponentSummary
    file: LazyComponents
    configured_category: str | None = None

    @property
    def component(self) -> Component:
        """The component itself; reads the header if that was not done before."""
        return self.file.part(self.role)

    @property
    def name(self) -> str:
        """The file's path relative to its model folder, as ComfyUI names it."""
        return self.path.relative_to(self.folder).as_posix()

    @property
    def is_embedded(self) -> bool:
        """True for the pocket model inside the package."""
        return self.folder == EMBEDDED

    @property
    def category(self) -> str | None:
        """ComfyUI's category of its folder, ``None`` for a folder that ComfyUI does not use."""
        if self.configured_category is not None:
            return self.configured_category
        parts = self.path.relative_to(self.folder).parts
        return CATEGORIES.get(parts[0]) if len(parts) > 1 else None


@dataclass(frozen=True)
class Library:
    """The result of a scan: all components by role, in the order of the folders.

    ``unreadable`` are damaged files and folders with the reason, ``ignored`` are files of other
    models with the reason. ``other_names`` are further names (links) of files that are in
    ``found``: usable by name, and not listed or chosen twice.
    """

    folders: tuple[Path, ...]
    found: Mapping[str, tuple[FoundComponent, ...]]
    unreadable: tuple[tuple[Path, str], ...] = ()
    ignored: tuple[tuple[Path, str], ...] = ()
    other_names: tuple[FoundComponent, ...] = ()
    selections: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    """Cache of the model sets that were selected from it."""

    def of(self, role: str) -> tuple[FoundComponent, ...]:
        """All components with a role."""
        return self.found.get(role, ())

    def named(self, role: str) -> tuple[FoundComponent, ...]:
        """All components with a role, under all names of their files."""
        return (*self.of(role), *(found for found in self.other_names if found.role == role))

    @cached_property
    def files(self) -> dict[Path, dict[str, FoundComponent]]:
        """Path -> role -> component."""
        files: dict[Path, dict[str, FoundComponent]] = {}
        for role, find_model_files in self.found.items():
            for found in find_model_files:
                files.setdefault(found.path, {})[role] = found
        return files


@dataclass
class _Scan:
    """The state of a scan. ``seen`` has device and inode of every file: two names count once."""

    cache: HeaderCache
    use_cache: bool
    found: dict[str, list[FoundComponent]] = field(default_factory=dict)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    ignored: list[tuple[Path, str]] = field(default_factory=list)
    other_names: list[FoundComponent] = field(default_factory=list)
    seen: set[tuple[int, int]] = field(default_factory=set)
    _is_other_name: bool = False

    def add(self, path: Path, folder: ModelFolder) -> None:
        """Add the components of one file, from the cache or by reading its header."""
        try:
            status = path.stat()
            identity = (status.st_dev, status.st_ino)
            self._is_other_name = identity in self.seen
            self.seen.add(identity)
            with refusing_damage(path):
                self._add_file(path, folder)
        except CheckpointError as error:
            self._add_unreadable(path, error.message)
        except OSError as error:
            self._add_unreadable(path, f"{path.name} cannot be read: {error.strerror}")

    def _add_file(self, path: Path, folder: ModelFolder) -> None:
        if is_pickle(path):
            self._add_upscaler(open_upscaler(path), folder)
            return
        fingerprint = fingerprint_files(path)
        known = self.cache.get(path, fingerprint) if self.use_cache else None
        if known is None:
            self._read_file(path, fingerprint, folder)
        elif known.ignored is not None and is_in_upscale_models(path, folder):
            self._add_upscaler(upscaler_component(open_checkpoint(path)), folder)
        else:
            self._add_cached(path, known, folder)

    def _add_unreadable(self, path: Path, reason: str) -> None:
        if not self._is_other_name:
            self.unreadable.append((path, reason))

    def _add_ignored(self, path: Path, reason: str) -> None:
        if not self._is_other_name:
            self.ignored.append((path, reason))

    def _read_file(self, path: Path, fingerprint: str | None, folder: ModelFolder) -> None:
        file = open_checkpoint(path)
        try:
            parts = components(file)
        except UnknownLayout as error:
            self.cache.put(path, fingerprint, FileContent(ignored=error.message))
            if is_in_upscale_models(path, folder):
                self._add_upscaler(upscaler_component(file), folder)
            else:
                self._add_ignored(path, error.message)
            return
        summaries = {role: summarize(part) for role, part in parts.items()}
        self.cache.put(path, fingerprint, FileContent(summaries))
        opened = LazyComponents(file.path, parts)
        for role, summary in summaries.items():
            self._add(
                FoundComponent(role, file.path, folder.path, summary, opened, folder.category)
            )

    def _add_cached(self, path: Path, known: FileContent, folder: ModelFolder) -> None:
        if known.ignored is not None:
            self._add_ignored(path, known.ignored)
            return
        opened = LazyComponents(path)
        for role, summary in known.parts.items():
            self._add(FoundComponent(role, path, folder.path, summary, opened, folder.category))

    def _add_upscaler(self, part: Component, folder: ModelFolder) -> None:
        path, opened = part.file.path, LazyComponents(part.file.path, {part.role: part})
        summary = ComponentSummary(part.file.container, part.precision, part.nbytes, None)
        self._add(FoundComponent(part.role, path, folder.path, summary, opened, folder.category))

    def _add(self, found: FoundComponent) -> None:
        if self._is_other_name:
            self.other_names.append(found)
        else:
            self.found.setdefault(found.role, []).append(found)


def find_in_file(path: Path, folder: Path) -> dict[str, FoundComponent]:
    """The components of one file by role; reads its header.

    Raises what :func:`open_checkpoint` and :func:`components` raise.
    """
    parts = components(open_checkpoint(path))
    opened = LazyComponents(path, parts)
    return {
        role: FoundComponent(role, path, folder, summarize(part), opened)
        for role, part in parts.items()
    }


def summarize(part: Component) -> ComponentSummary:
    """The summary of a component, for the cache."""
    bits = _bits_per_weight(part) if part.role == "transformer" else 0.0
    return ComponentSummary(
        part.file.container, part.precision, part.nbytes, component_family(part), bits
    )


def _bits_per_weight(transformer: Component) -> float:
    """Mean bits of the query weights of all blocks: some files keep the first ones unquantised."""
    keys = (f"transformer_blocks.{n}.attn1.to_q.weight" for n in itertools.count())
    found = list(itertools.takewhile(transformer.__contains__, keys))
    values = sum(math.prod(transformer.shape(key)) for key in found)
    return 8 * sum(map(transformer.nbytes_of, found)) / values if values else 0.0


def scan(folders: Iterable[Path | ModelFolder], *, refresh: bool = False) -> Library:
    """Find all model files in the folders and their subfolders.

    Headers are read for new and changed files only, with ``refresh`` for all. Symbolic links are
    followed, also in cycles; a file with two names is listed once and found by both. A file never
    makes the scan fail, whatever its content is.
    """
    searched = [f if isinstance(f, ModelFolder) else ModelFolder(f) for f in folders]
    state = _Scan(HeaderCache.read(), use_cache=not refresh)
    with _garbage_collection_disabled():
        for folder in searched:
            for path in (
                *find_model_files(folder.path, state.unreadable),
                *find_upscaler_pickles(folder),
            ):
                state.add(path, folder)
    state.cache.save()
    return Library(
        tuple(folder.path for folder in searched),
        {role: tuple(found) for role, found in state.found.items()},
        tuple(state.unreadable),
        tuple(state.ignored),
        tuple(state.other_names),
    )


@contextmanager
def _garbage_collection_disabled() -> Iterator[None]:
    """Disable Python's garbage collection: it takes a fifth of the time of a scan."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_in_upscale_models(path: Path, folder: ModelFolder) -> bool:
    """True for a file in ComfyUI's folder of pixel upscalers."""
    if folder.category is not None:
        return folder.category == CATEGORY
    return path.relative_to(folder.path).parts[0] == CATEGORY


def find_upscaler_pickles(folder: ModelFolder) -> Iterator[Path]:
    """Upscalers saved by torch.save, the only pickles that count as models."""
    below = folder.path if folder.category == CATEGORY else folder.path / CATEGORY
    if folder.category in (None, CATEGORY) and below.is_dir():
        yield from sorted(p for p in below.rglob("*") if is_pickle(p))


def find_model_files(folder: Path, unreadable: list[tuple[Path, str]]) -> Iterator[Path]:
    """Model files in a folder and its subfolders, sorted by path; a split checkpoint counts once.

    A folder that cannot be read is added to ``unreadable``.
    """

    def add_unreadable(error: OSError) -> None:
        unreadable.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for here, below, names in os.walk(folder, onerror=add_unreadable, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
        found += (Path(here) / name for name in names if name.endswith(MODEL_SUFFIXES))
    yield from entry_points(found)
