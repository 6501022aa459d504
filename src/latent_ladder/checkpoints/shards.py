"""Checkpoints split over several files: which files belong together.

Hugging Face writes ``model-00001-of-00005.safetensors`` beside an index that says which tensor
lies in which file; llama.cpp writes ``model-00001-of-00003.gguf``.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.mmap_file import MappedFile, damaged, refused, shortened, status
from latent_ladder.errors import CheckpointNotFound, CorruptCheckpoint, UnknownLayout

INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
_PART = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.safetensors|\.gguf)"
)
_MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf")


@dataclass(frozen=True)
class Shards:
    """The files of one checkpoint, most often one. ``path`` stands for all of them.

    ``weight_map`` is the index: tensor name -> name of its file; empty without an index.
    """

    path: Path
    parts: tuple[Path, ...]
    weight_map: Mapping[str, str] = field(default_factory=dict)

    def holder(self, name: str, part: int) -> int | None:
        """The number of the part that tensor ``name``, found in ``part``, is to be read from.

        ``None``: the index does not list it.
        """
        if not self.weight_map:
            return part
        file = self.weight_map.get(name)
        return None if file is None else self._numbers[file]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {path.name: number for number, path in enumerate(self.parts)}

    def check_complete(self, found: Collection[str]) -> None:
        """Raise :class:`CorruptCheckpoint` when the index lists a tensor that is not there."""
        for name, file in self.weight_map.items():
            if name not in found:
                raise CorruptCheckpoint(
                    f"{self.path.name}: tensor {shortened(name)} is not in {shortened(file)}, "
                    "where the index has it",
                    "download the index and all its files again, from one place",
                )


def find_shards(path: Path) -> Shards:
    """The files that ``path`` stands for: one file, an index, a part of a set, or a folder.

    Raises :class:`CheckpointNotFound` naming what is missing, :class:`UnknownLayout` for a folder
    without one checkpoint, :class:`CorruptCheckpoint` for a damaged index.
    """
    if stat.S_ISDIR(status(path).st_mode):
        path = _of_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _of_index(path)
    if part := _PART.fullmatch(path.name):
        return _of_part(path, part)
    return Shards(path, (path,))


def entry_points(paths: Iterable[Path]) -> Iterator[Path]:
    """Of model files as found in folders, those to open: one path for each split checkpoint."""
    paths = sorted(set(paths))
    indexed = {p.parent for p in paths if p.name.endswith(INDEX_SUFFIX)}
    for path in paths:
        part = _PART.fullmatch(path.name)
        if part is None:
            yield path
        elif path.parent in indexed and part["end"] == ".safetensors":
            continue
        elif part["number"] == "00001" or not _is_there(path.with_name(_name(part, 1))):
            yield path


def _of_folder(folder: Path) -> Path:
    """Its one index, else its one set of parts, else its one model file."""
    try:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise refused(folder, error) from error
    indices = [p for p in inside if p.name.endswith(INDEX_SUFFIX)]
    models = [p for p in inside if p.suffix in _MODEL_SUFFIXES]
    sets = [p for p in models if _PART.fullmatch(p.name)]
    found = indices or list(entry_points(sets or models))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownLayout(f"{folder}: a folder without model files", "give the model file itself")
    names = ", ".join(p.name for p in found[:4]) + (", ..." if len(found) > 4 else "")
    raise UnknownLayout(
        f"{folder}: a folder with {len(found)} models ({names})", "name one of them"
    )


def _of_index(path: Path) -> Shards:
    weight_map = _weight_map(path)
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise damaged(path, f"it names a file elsewhere: {shortened(name)}")
    parts = tuple(path.with_name(name) for name in names)
    _check_present(path, parts)
    return Shards(path, parts, weight_map)


def _weight_map(path: Path) -> dict[str, str]:
    file = MappedFile.at(path)
    if file.size > MAX_INDEX_BYTES:
        raise damaged(path, f"an index of {file.size:,} bytes")
    try:
        index: Any = json.loads(file.head(file.size))
        found = dict(index["weight_map"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path, "it is not an index of tensors (JSON with a `weight_map`)") from error
    if not found or not all(isinstance(name, str) for name in found.values()):
        raise damaged(path, "its `weight_map` does not list file names")
    return found


def _of_part(path: Path, part: re.Match[str]) -> Shards:
    count = int(part["count"])
    if not 1 <= int(part["number"]) <= count:
        raise CheckpointNotFound(f"{path}: part {part['number']} of {count}", "check its name")
    index = path.with_name(f"{part['stem']}{INDEX_SUFFIX}")
    if part["end"] == ".safetensors" and _is_there(index):
        return _of_index(index)
    parts = tuple(path.with_name(_name(part, number)) for number in range(1, count + 1))
    _check_present(path, parts)
    return Shards(parts[0], parts)


def _name(part: re.Match[str], number: int) -> str:
    return f"{part['stem']}-{number:05}-of-{part['count']}{part['end']}"


def _is_there(path: Path) -> bool:
    """Whether it exists; a name that no file can have does not."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _check_present(path: Path, parts: Collection[Path]) -> None:
    missing = [shortened(part.name) for part in parts if not _is_there(part)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointNotFound(
            f"{path.name}: {len(missing)} of its {len(parts)} files missing: "
            f"{', '.join(missing[:3])}{more}",
            f"put the missing files into {path.parent}",
        )
