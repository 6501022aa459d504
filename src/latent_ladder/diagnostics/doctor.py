"""``ladder doctor``: files found and missing, presets that can run, and their fit into memory.

Reads headers only. Knows no terminal: :class:`Checkup` is plain data that the command prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from latent_ladder.checkpoints.catalog import CatalogFile
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.gemma_sizes import assumed_rope_factor
from latent_ladder.checkpoints.misplaced import MisplacedFile, find_misplaced
from latent_ladder.checkpoints.scan import FoundComponent
from latent_ladder.checkpoints.search_paths import ModelFolder, model_folders
from latent_ladder.checkpoints.selection import Library, PartialModelSet, scan, select_available
from latent_ladder.checkpoints.training import transformer_training
from latent_ladder.diagnostics.first_presets import first_preset
from latent_ladder.diagnostics.preset_readiness import (
    Fits,
    PresetState,
    preset_states,
    split_off_pocket,
)
from latent_ladder.errors import CheckpointError, MemoryBudgetError, StoreError
from latent_ladder.memory.gpus import Gpu, gpus
from latent_ladder.memory.hardware import MemoryOptions, budget
from latent_ladder.memory.planner import Budget, Policy
from latent_ladder.storage.artifact_store import Store, default_root
from latent_ladder.storage.atomic_write import free_bytes


@dataclass(frozen=True)
class Checkup:
    """Result of ``ladder doctor``."""

    folders: tuple[ModelFolder, ...]
    library: Library
    choice: PartialModelSet
    error: CheckpointError | None
    presets: tuple[PresetState, ...]
    misplaced: tuple[MisplacedFile, ...]
    disks: Mapping[str, tuple[Path, int]]
    memory: Budget | None
    gpus: tuple[Gpu, ...]
    named: bool
    store_error: StoreError | None = None
    suggested: str = "2.3"

    @property
    def only_pocket(self) -> bool:
        """True where the model inside the package is the only one that can run."""
        return self.choice.transformer is not None and self.choice.transformer.is_embedded

    @property
    def family(self) -> str:
        """The family of the files that run, or of those to get for the first preset."""
        return self.suggested if self.only_pocket else self.choice.family

    @property
    def runnable(self) -> bool:
        """True where ``ladder make`` finds a complete set of models.

        The pocket counts only where the user named no folder.
        """
        complete = self.error is None and not (self.named and self.only_pocket)
        return complete and self.store_error is None

    @property
    def ready(self) -> tuple[PresetState, ...]:
        """The presets that can run now."""
        return tuple(state for state in self.presets if state.ready and self.store_error is None)

    @property
    def wanted(self) -> PresetState:
        """The preset that runs first with the real model: that of the transformer's training."""
        found = None if self.only_pocket else self.choice.transformer
        training = None if found is None else transformer_training(found.component)
        name = first_preset(self.family, training, has_lora=training == "dev")
        return next(state for state in self.presets if state.name == name)


def examine(
    folders: Sequence[Path | str] = (),
    store: Path | None = None,
    options: MemoryOptions | None = None,
    device: str = "auto",
) -> Checkup:
    """Check folders, disk and memory. Loads no tensor and does not import torch.

    ``options`` and ``device`` select the memory to fit into, as for a run.

    Raises :class:`CheckpointNotFound` for a folder that does not exist or cannot be read.
    """
    options = options or MemoryOptions()
    searched = model_folders(folders)
    library = scan(
        searched, refresh=True
    )  # damaged files are found even where the index knows them
    users, embedded = split_off_pocket(library)
    choice, pocket = select_available(users), select_available(embedded)
    available = _available(options, device)
    policy = Policy(options.offload, options.changes)
    states = tuple(preset_states(users, pocket, Fits(available, policy)))
    used = pocket if choice.transformer is None else choice
    return Checkup(
        folders=searched,
        library=library,
        choice=used,
        error=_error(used, library),
        presets=states,
        misplaced=find_misplaced(library),
        disks=_disks(searched, store or default_root()),
        memory=available,
        gpus=gpus(),
        named=bool(folders),
        store_error=_store_error(store or default_root()),
        suggested=choice.family,
    )


def _store_error(folder: Path) -> StoreError | None:
    try:
        Store(folder).check_writable(create=False)
    except StoreError as error:
        return error
    return None


def _error(choice: PartialModelSet, library: Library) -> CheckpointError | None:
    try:
        choice.models(library)
    except CheckpointError as error:
        return error
    return None


def _available(options: MemoryOptions, device: str) -> Budget | None:
    try:
        return budget(options, device)
    except MemoryBudgetError:
        return None


def _disks(folders: Sequence[ModelFolder], store: Path) -> dict[str, tuple[Path, int]]:
    """Free bytes on the disks of the store and of the models."""
    models = next((folder.path for folder in folders if not folder.is_embedded), None)
    paths = {"store": store} | ({} if models is None else {"models": models})
    return {name: (path, free_bytes(path)) for name, path in paths.items()}


def total_ram() -> int:
    """Bytes of memory in this machine."""
    return int(psutil.virtual_memory().total)


# --- as plain data -------------------------------------------------------------------------------


def report(checkup: Checkup) -> dict[str, Any]:
    """The whole check-up for ``--json``; sizes in bytes."""
    error = checkup.error or checkup.store_error
    return {
        "runnable": checkup.runnable,
        "runs_now": [state.name for state in checkup.ready],
        "to_get": [_file_row(m.file) for m in checkup.wanted.missing if m.file is not None],
        "only_pocket": checkup.only_pocket,
        "error": None
        if error is None
        else {"code": error.code, "message": error.message, "hint": error.hint},
        "folders": [
            {"path": str(f.path), "category": f.category, "source": f.source}
            for f in checkup.folders
        ],
        "models": list(rows(checkup)),
        "presets": [_preset_row(state) for state in checkup.presets],
        "misplaced": [
            {"path": str(m.path), "category": m.category, "expected": m.expected,
             "message": m.message}
            for m in checkup.misplaced
        ],
        "damaged": [{"path": str(p), "why": why} for p, why in checkup.library.unreadable],
        "other_files": len(checkup.library.ignored),
        "warnings": list(checkup.choice.notes),
        "disk": {
            name: {"path": str(path), "free_bytes": free}
            for name, (path, free) in checkup.disks.items()
        },
        "ram": {
            "total_bytes": total_ram(),
            "available_bytes": int(psutil.virtual_memory().available),
        },
        "gpus": [
            {"name": g.name, "total_bytes": g.total_bytes, "free_bytes": g.free_bytes}
            for g in checkup.gpus
        ],
        "budget": None
        if checkup.memory is None
        else {"device": checkup.memory.device, "bytes": checkup.memory.device_bytes},
    }  # fmt: skip


def rows(checkup: Checkup) -> Iterator[dict[str, Any]]:
    """Every component found; ``chosen`` marks those that would be used."""
    chosen = {(part.role, part.file.path) for part in _chosen(checkup.choice)}
    for role, candidates in checkup.library.found.items():
        for found in candidates:
            yield {
                "role": role,
                "path": str(found.path),
                "name": found.name,
                "container": found.summary.container,
                "precision": found.summary.precision,
                "family": found.summary.family,
                "bytes": found.summary.nbytes,
                "embedded": found.is_embedded,
                "chosen": (role, found.path) in chosen,
                "assumed": _assumed(found),
            }


def _assumed(found: FoundComponent) -> str | None:
    """Assumptions about a text encoder whose file does not say."""
    return assumed_rope_factor(found.component) if found.role == "text_encoder" else None


def _chosen(choice: PartialModelSet) -> Iterator[Component]:
    yield from choice.parts.values()
    yield from choice.upsamplers.values()
    yield from (lora for name, lora in choice.loras.items() if name == "distilled_lora")


def _preset_row(state: PresetState) -> dict[str, Any]:
    return {
        "name": state.name,
        "ready": state.ready,
        "missing": [
            {"roles": list(m.roles), "why": m.why, "get": m.file and _file_row(m.file)}
            for m in state.missing
        ],
        "advice": list(state.advice),
        "too_big": state.too_big,
        "stages": [asdict(stage) for stage in state.stages],
    }


def _file_row(file: CatalogFile) -> dict[str, Any]:
    return {
        "file": file.name,
        "folder": file.folder,
        "page": f"https://{file.page}",
        "bytes": file.bytes,
        "exact": file.exact,
    }
