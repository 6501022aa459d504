"""How a server is set up: values only, what the command line says."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.search_paths import ModelFolder
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.server.data_folders import Places
from latent_ladder.server.job_store import MAX_HISTORY
from latent_ladder.server.origin_guard import Access

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """The largest bodies that are read, in bytes."""

    upload: int = 100 * MIB
    prompt: int = 32 * MIB


@dataclass(frozen=True)
class Setup:
    """Everything a server is told.

    ``named`` are the model folders of the command line, ``models`` all that are searched;
    ``names`` replaces file names of graphs; ``state`` is the file that survives a restart.
    """

    places: Places
    store: Path
    state: Path
    named: tuple[Path, ...] = ()
    models: tuple[ModelFolder, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    device: str = "auto"
    port: int = 8188
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    history: int = MAX_HISTORY
    metadata: bool = True
    previews: bool = True
    worker: tuple[str, ...] = (sys.executable, "-m", "latent_ladder.server.worker_main")

    def opening(self) -> dict[str, Any]:
        """What the worker is told first."""
        memory = asdict(self.memory)
        return {
            "models": [str(path) for path in self.named],
            "names": dict(self.names),
            "places": {name: str(path) for name, path in asdict(self.places).items()},
            "store": str(self.store),
            "device": self.device,
            "memory": {**memory, "changes": sorted(self.memory.changes)},
            "metadata": self.metadata,
            "previews": self.previews,
        }
