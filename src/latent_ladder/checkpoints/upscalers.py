"""Pixel upscalers: the files of ``upscale_models/``, of many architectures.

They are recognised by their folder; the architecture is detected when the network is loaded.
Pickles are listed, but not opened here.
"""

from __future__ import annotations

from pathlib import Path

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, open_checkpoint
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.mmap_file import MappedFile

ROLE = "pixel_upscaler"
CATEGORY = "upscale_models"
PICKLE_SUFFIXES = (".pth", ".pt")
"""Suffixes of files of torch.save, as most published upscalers have."""


def is_pickle(path: Path) -> bool:
    """True for a file with the suffix of a pickle."""
    return path.suffix.lower() in PICKLE_SUFFIXES


def open_upscaler(path: Path) -> Component:
    """A file as an upscaler component. Raises what :func:`open_checkpoint` raises, and OSError."""
    return upscaler_component(_pickle(path) if is_pickle(path) else open_checkpoint(path))


def upscaler_component(file: CheckpointFile) -> Component:
    """An open file as an upscaler component, whatever its tensors are."""
    return Component(ROLE, file, {name: name for name in file.tensors})


def _pickle(path: Path) -> CheckpointFile:
    """A pickle file, without its tensors: only path and bytes are known."""
    return CheckpointFile(
        path=path,
        header_bytes=0,
        metadata={},
        tensors={},
        container="pickle",
        parts=((MappedFile.from_path(path), 0),),
    )
