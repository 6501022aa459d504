"""Pixel upscalers: files of ``upscale_models/``, of many makers and forms.

What network is inside is found out when it is loaded; here they are only told from everything
else, by the folder they lie in. Pickles are listed, never opened here.
"""

from __future__ import annotations

from pathlib import Path

from latent_ladder.checkpoints.checkpoint_file import CheckpointFile, open_checkpoint
from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.mmap_file import MappedFile

ROLE = "pixel_upscaler"
CATEGORY = "upscale_models"
PICKLES = (".pth", ".pt")
"""Endings of files as torch.save writes them: most published upscalers."""


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle by its name."""
    return path.suffix.lower() in PICKLES


def pixel_upscaler(path: Path) -> Component:
    """A file taken for an upscaler. Raises what :func:`open_checkpoint` raises, and OSError."""
    return as_upscaler(_pickle(path) if is_pickle(path) else open_checkpoint(path))


def as_upscaler(file: CheckpointFile) -> Component:
    """An open file taken for an upscaler."""
    return Component(ROLE, file, {name: name for name in file.tensors})


def _pickle(path: Path) -> CheckpointFile:
    """A file whose tensors are not known: only its bytes count."""
    return CheckpointFile(
        path=path,
        header_bytes=0,
        metadata={},
        tensors={},
        container="pickle",
        parts=((MappedFile.at(path), 0),),
    )
