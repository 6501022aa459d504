"""Settings of a server, as plain values."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from latent_ladder.checkpoints.search_paths import ModelFolder
from latent_ladder.comfyui.versions import ModelConvention
from latent_ladder.memory.hardware import MemoryOptions
from latent_ladder.server.data_folders import DataFolders
from latent_ladder.server.job_store import MAX_HISTORY
from latent_ladder.server.origin_guard import Access

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Largest bodies that are read, in bytes."""

    upload: int = 100 * MIB
    prompt: int = 32 * MIB


@dataclass(frozen=True)
class ServerConfig:
    """All settings of a server.

    ``named_models`` are the model folders of the command line, ``models`` all folders that are
    searched. ``file_names`` maps file names in workflows to the files to use. ``state_file`` stores
    queue and history. ``convention``: version of ComfyUI to compute like. ``user`` has the editor's
    settings and workflows, ``frontend`` is the folder of the editor, if it is served.
    ``shows_token``: the token is printed at the start, because it was made there.
    ``serves_comfyui``: ComfyUI's routes are served, ``opens_studio``: ``/`` leads to the studio.
    ``worker`` is the command line of the child process.
    """

    folders: DataFolders
    store: Path
    state_file: Path
    named_models: tuple[Path, ...] = ()
    models: tuple[ModelFolder, ...] = ()
    file_names: Mapping[str, str] = field(default_factory=dict)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    device: str = "auto"
    port: int = 8188
    access: Access = field(default_factory=Access)
    limits: Limits = field(default_factory=Limits)
    history: int = MAX_HISTORY
    metadata: bool = True
    previews: bool = True
    convention: ModelConvention = "comfyui"
    user: Path = Path("user")
    frontend: Path | None = None
    shows_token: bool = False
    serves_comfyui: bool = True
    opens_studio: bool = False
    worker: tuple[str, ...] = (sys.executable, "-m", "latent_ladder.server.worker_main")

    def worker_settings(self) -> dict[str, Any]:
        """Settings for the worker as JSON data: its first frame."""
        memory = asdict(self.memory)
        return {
            "models": [str(path) for path in self.named_models],
            "file_names": dict(self.file_names),
            "folders": {name: str(path) for name, path in asdict(self.folders).items()},
            "store": str(self.store),
            "device": self.device,
            "memory": {
                **memory,
                "changes": sorted(self.memory.changes),
                "fast": sorted(self.memory.fast),
            },
            "metadata": self.metadata,
            "previews": self.previews,
            "convention": self.convention,
            "log_level": logging.getLogger("latent_ladder").getEffectiveLevel(),
        }
