"""Every model file below some folders, by the roles its content gives it. Loads no tensor.

Files are recognised by their content, never by name or folder. Files of other models are passed
over in silence, damaged ones are kept with the reason.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from latent_ladder.checkpoints.files import open_checkpoint
from latent_ladder.checkpoints.folders import CATEGORIES, EMBEDDED, ModelFolder
from latent_ladder.checkpoints.layout import Component, components
from latent_ladder.checkpoints.shards import entry_points
from latent_ladder.checkpoints.upscalers import CATEGORY, as_upscaler, is_pickle, pixel_upscaler
from latent_ladder.errors import CheckpointError, CorruptCheckpoint, UnknownLayout

ENDINGS = (".safetensors", ".sft", ".gguf", ".safetensors.index.json")


@dataclass(frozen=True)
class Found:
    """One component and the model folder it was found under.

    ``given_category`` is what an ``extra_model_paths.yaml`` says that the folder holds.
    """

    component: Component
    folder: Path
    given_category: str | None = None

    @property
    def path(self) -> Path:
        """The file it is in; of a split one its index, or the first of its files."""
        return self.component.file.path

    @property
    def name(self) -> str:
        """The file's path relative to its model folder, as ComfyUI names it."""
        return self.path.relative_to(self.folder).as_posix()

    @property
    def embedded(self) -> bool:
        """Whether it belongs to the model inside the package."""
        return self.folder == EMBEDDED

    @property
    def category(self) -> str | None:
        """ComfyUI's category of the place it lies in, ``None`` where ComfyUI has no such place."""
        if self.given_category is not None:
            return self.given_category
        parts = self.path.relative_to(self.folder).parts
        return CATEGORIES.get(parts[0]) if len(parts) > 1 else None


@dataclass(frozen=True)
class Library:
    """Everything found, by role, in the order searched.

    ``unreadable`` are damaged files and folders with the reason, ``ignored`` those that can be
    read and are not of this family.
    """

    folders: tuple[Path, ...]
    found: Mapping[str, tuple[Found, ...]]
    unreadable: tuple[tuple[Path, str], ...] = ()
    ignored: tuple[tuple[Path, str], ...] = ()

    def of(self, role: str) -> tuple[Found, ...]:
        """All candidates for a role."""
        return self.found.get(role, ())

    @cached_property
    def files(self) -> dict[Path, dict[str, Found]]:
        """Path -> role -> what was found there."""
        files: dict[Path, dict[str, Found]] = {}
        for role, candidates in self.found.items():
            for found in candidates:
                files.setdefault(found.path, {})[role] = found
        return files


@dataclass
class _Scan:
    """What a scan under way has seen, so that links in circles and second names end."""

    found: dict[str, list[Found]] = field(default_factory=dict)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    ignored: list[tuple[Path, str]] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def add(self, path: Path, folder: ModelFolder) -> None:
        """Open one candidate and file it under its roles."""
        try:
            if (real := path.resolve()) in self.seen:
                return
            self.seen.add(real)
            if is_pickle(path):
                self._file(pixel_upscaler(path), folder)
                return
            file = open_checkpoint(path)
        except CheckpointError as error:
            self.unreadable.append((path, error.message))
            return
        except OSError as error:
            self.unreadable.append((path, f"{path.name} cannot be read: {error.strerror}"))
            return
        try:
            parts = components(file)
        except CorruptCheckpoint as error:
            self.unreadable.append((path, error.message))
            return
        except UnknownLayout as error:
            if in_upscale_models(path, folder):
                self._file(as_upscaler(file), folder)
            else:
                self.ignored.append((path, error.message))
            return
        for part in parts.values():
            self._file(part, folder)

    def _file(self, part: Component, folder: ModelFolder) -> None:
        found = Found(part, folder.path, folder.category)
        self.found.setdefault(part.role, []).append(found)


def scan(folders: Iterable[Path | ModelFolder]) -> Library:
    """Read the headers of every model file below the folders.

    Links are followed, circles of links end, the same file under two names counts once. Nothing
    that a file holds can make a scan fail.
    """
    places = [f if isinstance(f, ModelFolder) else ModelFolder(f) for f in folders]
    state = _Scan()
    with _no_collection():
        for place in places:
            for path in (*candidates(place.path, state.unreadable), *upscaler_pickles(place)):
                state.add(path, place)
    return Library(
        tuple(place.path for place in places),
        {role: tuple(found) for role, found in state.found.items()},
        tuple(state.unreadable),
        tuple(state.ignored),
    )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Looking for garbage among the hundred thousand names of a scan costs a fifth of its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def in_upscale_models(path: Path, folder: ModelFolder) -> bool:
    """Whether a file lies where ComfyUI keeps upscalers of pixels."""
    if folder.category is not None:
        return folder.category == CATEGORY
    return path.relative_to(folder.path).parts[0] == CATEGORY


def upscaler_pickles(folder: ModelFolder) -> Iterator[Path]:
    """Upscalers as torch.save writes them: the only pickles that count as models."""
    below = folder.path if folder.category == CATEGORY else folder.path / CATEGORY
    if folder.category in (None, CATEGORY) and below.is_dir():
        yield from sorted(p for p in below.rglob("*") if is_pickle(p))


def candidates(folder: Path, unreadable: list[tuple[Path, str]]) -> Iterator[Path]:
    """Model files below a folder, sorted by path; a split one counts once.

    A folder that cannot be read is added to ``unreadable``.
    """

    def refused(error: OSError) -> None:
        unreadable.append((Path(error.filename), f"cannot be read: {error.strerror}"))

    seen: set[tuple[int, int]] = set()
    found: list[Path] = []
    for here, below, names in os.walk(folder, onerror=refused, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        below[:] = [name for name in below if not name.startswith(".")]
        found += (Path(here) / name for name in names if name.endswith(ENDINGS))
    yield from entry_points(found)
