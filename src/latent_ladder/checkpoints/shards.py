"""Checkpoints split into several files (shards): finds the files that belong together.

Hugging Face writes ``model-00001-of-00005.safetensors`` and an index with the file of each tensor;
llama.cpp writes ``model-00001-of-00003.gguf``.
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

from latent_ladder.checkpoints.mmap_file import (
    MappedFile,
    damaged_error,
    read_error,
    shorten,
    stat_file,
)
from latent_ladder.errors import CheckpointNotFound, CorruptCheckpoint, UnknownLayout

INDEX_SUFFIX = ".safetensors.index.json"
MAX_INDEX_BYTES = 100_000_000
_PART = re.compile(
    r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.safetensors|\.gguf)"
)
_MODEL_SUFFIXES = (".safetensors", ".sft", ".gguf")


@dataclass(frozen=True)
class Shards:
    """The files of one checkpoint; most checkpoints have one. ``path`` is the index or first file.

    ``weight_map`` is the index: tensor name -> name of its file; empty without an index.
    """

    path: Path
    parts: tuple[Path, ...]
    weight_map: Mapping[str, str] = field(default_factory=dict)

    def part_of(self, name: str, part: int) -> int | None:
        """The number of the file to read a tensor from that was found in file ``part``.

        ``None`` if the index does not list the tensor.
        """
        if not self.weight_map:
            return part
        file = self.weight_map.get(name)
        return None if file is None else self._numbers[file]

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {path.name: number for number, path in enumerate(self.parts)}

    def check_complete(self, found: Collection[str]) -> None:
        """Raise :class:`CorruptCheckpoint` if the index lists a tensor that is not in ``found``."""
        for name, file in self.weight_map.items():
            if name not in found:
                raise CorruptCheckpoint(
                    f"{self.path.name}: tensor {shorten(name)} is not in {shorten(file)}, "
                    "although the index lists it there",
                    "download the index and all its files again, from one repository",
                )


def find_shards(path: Path) -> Shards:
    """The files of the checkpoint at ``path``: one file, an index, one of the files, or a folder.

    Raises :class:`CheckpointNotFound` with the missing files, :class:`UnknownLayout` for a folder
    with no or several checkpoints, :class:`CorruptCheckpoint` for a damaged index.
    """
    if stat.S_ISDIR(stat_file(path).st_mode):
        path = _find_in_folder(path)
    if path.name.endswith(INDEX_SUFFIX):
        return _from_index(path)
    if part := _PART.fullmatch(path.name):
        return _from_part(path, part)
    return Shards(path, (path,))


def entry_points(paths: Iterable[Path]) -> Iterator[Path]:
    """The model files of ``paths`` to open, with one path for each split checkpoint."""
    paths = sorted(set(paths))
    indexed = {p.parent for p in paths if p.name.endswith(INDEX_SUFFIX)}
    for path in paths:
        part = _PART.fullmatch(path.name)
        if part is None:
            yield path
        elif path.parent in indexed and part["end"] == ".safetensors":
            continue
        elif part["number"] == "00001" or not _exists(path.with_name(_part_name(part, 1))):
            yield path


def _find_in_folder(folder: Path) -> Path:
    """The index in a folder, else the first file of a split checkpoint, else the model file.

    Raises :class:`UnknownLayout` unless there is exactly one.
    """
    try:
        inside = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise read_error(folder, error) from error
    indices = [p for p in inside if p.name.endswith(INDEX_SUFFIX)]
    models = [p for p in inside if p.suffix in _MODEL_SUFFIXES]
    sets = [p for p in models if _PART.fullmatch(p.name)]
    found = indices or list(entry_points(sets or models))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UnknownLayout(f"{folder}: a folder without model files", "give a model file")
    names = ", ".join(p.name for p in found[:4]) + (", ..." if len(found) > 4 else "")
    raise UnknownLayout(
        f"{folder}: a folder with {len(found)} models ({names})", "give one of them"
    )


def _from_index(path: Path) -> Shards:
    weight_map = _weight_map(path)
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or name in (".", ".."):
            raise damaged_error(path, f"it refers to a file in another folder: {shorten(name)}")
    parts = tuple(path.with_name(name) for name in names)
    _check_present(path, parts)
    return Shards(path, parts, weight_map)


def _weight_map(path: Path) -> dict[str, str]:
    file = MappedFile.from_path(path)
    if file.size > MAX_INDEX_BYTES:
        raise damaged_error(path, f"its index has {file.size:,} bytes")
    try:
        index: Any = json.loads(file.head(file.size))
        found = dict(index["weight_map"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged_error(
            path, "it is not an index of tensors (JSON with a `weight_map`)"
        ) from error
    if not found or not all(isinstance(name, str) for name in found.values()):
        raise damaged_error(path, "its `weight_map` does not list file names")
    return found


def _from_part(path: Path, part: re.Match[str]) -> Shards:
    count = int(part["count"])
    if not 1 <= int(part["number"]) <= count:
        raise CheckpointNotFound(
            f"{path}: its name says file {part['number']} of {count}", "check the name"
        )
    index = path.with_name(f"{part['stem']}{INDEX_SUFFIX}")
    if part["end"] == ".safetensors" and _exists(index):
        return _from_index(index)
    parts = tuple(path.with_name(_part_name(part, number)) for number in range(1, count + 1))
    _check_present(path, parts)
    return Shards(parts[0], parts)


def _part_name(part: re.Match[str], number: int) -> str:
    return f"{part['stem']}-{number:05}-of-{part['count']}{part['end']}"


def _exists(path: Path) -> bool:
    """True if ``path`` exists; ``False`` for an invalid name too."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def _check_present(path: Path, parts: Collection[Path]) -> None:
    missing = [shorten(part.name) for part in parts if not _exists(part)]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointNotFound(
            f"{path.name}: {len(missing)} of its {len(parts)} files missing: "
            f"{', '.join(missing[:3])}{more}",
            f"put the missing files into {path.parent}",
        )
