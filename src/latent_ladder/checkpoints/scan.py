"""Every model file below some folders, by the roles its content gives it. Loads no tensor.

Files are recognised by their content, never by name or folder. Files of other models are passed
over in silence, damaged ones are kept with the reason.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.checkpoint_file import open_checkpoint
from latent_ladder.checkpoints.compatibility import part_family
from latent_ladder.checkpoints.components import Component, components
from latent_ladder.checkpoints.header_cache import Facts, Index, Verdict, stamp
from latent_ladder.checkpoints.search_paths import CATEGORIES, EMBEDDED, ModelFolder
from latent_ladder.checkpoints.shards import entry_points
from latent_ladder.checkpoints.upscalers import CATEGORY, as_upscaler, is_pickle, pixel_upscaler
from latent_ladder.errors import CheckpointError, UnknownLayout

ENDINGS = (".safetensors", ".sft", ".gguf", ".safetensors.index.json")


class OpenedOnce:
    """A file whose header is read when the first of its components is wanted, or was before."""

    def __init__(self, path: Path, parts: Mapping[str, Component] | None = None) -> None:
        self.path = path
        self._parts = parts

    @property
    def is_open(self) -> bool:
        """Whether its header was read."""
        return self._parts is not None

    def part(self, role: str) -> Component:
        """One component. Raises what :func:`open_checkpoint` and :func:`components` raise."""
        if self._parts is None:
            self._parts = components(open_checkpoint(self.path))
        return self._parts[role]


@dataclass(frozen=True)
class Found:
    """One component and the model folder it was found under.

    ``path`` is the file it is in; of a split one its index, or the first of its files. ``facts``
    are known without reading its header. ``given_category`` is what an ``extra_model_paths.yaml``
    says that the folder holds.
    """

    role: str
    path: Path
    folder: Path
    facts: Facts
    file: OpenedOnce
    given_category: str | None = None

    @property
    def component(self) -> Component:
        """The component itself; reads the header if nobody did."""
        return self.file.part(self.role)

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
    selected: dict[Any, Any] = field(init=False, repr=False, compare=False, default_factory=dict)
    """Sets of models chosen from it before."""

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

    index: Index
    trust: bool
    found: dict[str, list[Found]] = field(default_factory=dict)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    ignored: list[tuple[Path, str]] = field(default_factory=list)
    seen: set[Path] = field(default_factory=set)

    def add(self, path: Path, folder: ModelFolder) -> None:
        """Look at one candidate, in the index or itself, and file it under its roles."""
        try:
            if (real := path.resolve()) in self.seen:
                return
            self.seen.add(real)
            if is_pickle(path):
                self._file(pixel_upscaler(path), folder)
                return
            mark = stamp(path)
            known = self.index.get(path, mark) if self.trust else None
            if known is None:
                self._judge(path, mark, folder)
            elif known.ignored is not None and in_upscale_models(path, folder):
                self._file(as_upscaler(open_checkpoint(path)), folder)
            else:
                self._recall(path, known, folder)
        except CheckpointError as error:
            self.unreadable.append((path, error.message))
        except OSError as error:
            self.unreadable.append((path, f"{path.name} cannot be read: {error.strerror}"))

    def _judge(self, path: Path, mark: str | None, folder: ModelFolder) -> None:
        file = open_checkpoint(path)
        try:
            parts = components(file)
        except UnknownLayout as error:
            self.index.put(path, mark, Verdict(ignored=error.message))
            if in_upscale_models(path, folder):
                self._file(as_upscaler(file), folder)
            else:
                self.ignored.append((path, error.message))
            return
        facts = {role: facts_of(part) for role, part in parts.items()}
        self.index.put(path, mark, Verdict(facts))
        opened = OpenedOnce(file.path, parts)
        for role, known in facts.items():
            self._add(Found(role, file.path, folder.path, known, opened, folder.category))

    def _recall(self, path: Path, known: Verdict, folder: ModelFolder) -> None:
        if known.ignored is not None:
            self.ignored.append((path, known.ignored))
            return
        opened = OpenedOnce(path)
        for role, facts in known.parts.items():
            self._add(Found(role, path, folder.path, facts, opened, folder.category))

    def _file(self, part: Component, folder: ModelFolder) -> None:
        path, opened = part.file.path, OpenedOnce(part.file.path, {part.role: part})
        facts = Facts(part.file.container, part.precision, part.nbytes, None)
        self._add(Found(part.role, path, folder.path, facts, opened, folder.category))

    def _add(self, found: Found) -> None:
        self.found.setdefault(found.role, []).append(found)


def found_in(path: Path, folder: Path) -> dict[str, Found]:
    """The components of one file by role, its header read.

    Raises what :func:`open_checkpoint` and :func:`components` raise.
    """
    parts = components(open_checkpoint(path))
    opened = OpenedOnce(path, parts)
    return {role: Found(role, path, folder, facts_of(part), opened) for role, part in parts.items()}


def facts_of(part: Component) -> Facts:
    """A component in short."""
    key, bits = "transformer_blocks.0.attn1.to_q.weight", 0.0
    if part.role == "transformer" and key in part:
        bits = 8 * part.nbytes_of(key) / math.prod(part.shape(key))
    return Facts(part.file.container, part.precision, part.nbytes, part_family(part), bits)


def scan(folders: Iterable[Path | ModelFolder], *, anew: bool = False) -> Library:
    """Find every model file below the folders, by its header.

    Headers are read again where a file is new or changed, with ``anew`` all of them. Links are
    followed, circles of links end, the same file under two names counts once. Nothing that a file
    holds can make a scan fail.
    """
    places = [f if isinstance(f, ModelFolder) else ModelFolder(f) for f in folders]
    state = _Scan(Index.read(), trust=not anew)
    with _no_collection():
        for place in places:
            for path in (*candidates(place.path, state.unreadable), *upscaler_pickles(place)):
                state.add(path, place)
    state.index.save()
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
