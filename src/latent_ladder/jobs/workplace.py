"""Folders, device and memory of the machine that plans and runs jobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.search_paths import model_folders
from latent_ladder.checkpoints.selection import Library, scan
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.storage.artifact_store import Store


@dataclass(frozen=True)
class Workplace:
    """Places of models and artefacts of jobs, and of the clips that they make (``outputs``)."""

    root: Path
    outputs: Path
    folders: tuple[Path, ...] = ()
    device: str = "auto"
    memory: MemoryOptions = field(default_factory=MemoryOptions)

    @property
    def store(self) -> Store:
        """The artefact store."""
        return Store(self.root)

    def library(self) -> Library:
        """The model files as they are now."""
        return scan(model_folders(self.folders))

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Workplace:
        """The workplace of a worker's settings (``ServerConfig.worker_settings``)."""
        memory = dict(settings["memory"])
        sets = {name: frozenset(memory[name]) for name in ("changes", "fast")}
        return cls(
            Path(settings["store"]),
            Path(settings["folders"]["output"]),
            tuple(Path(path) for path in settings["models"]),
            settings["device"],
            MemoryOptions(**{**memory, **sets}),
        )
