"""Plan of an upscale stage: the upscaler, the crop and the target size, before anything is loaded.

``lanczos`` and ``rtx`` are built in; all other names are files. Needs no torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from latent_ladder.checkpoints.components import Component
from latent_ladder.checkpoints.selection import Library
from latent_ladder.checkpoints.upscalers import ROLE, open_upscaler
from latent_ladder.errors import CheckpointError, CheckpointNotFound
from latent_ladder.latents.shapes import Crop
from latent_ladder.request.stages import UpscaleStage
from latent_ladder.storage.user_folders import expand_home

BUILT_IN = ("lanczos", "rtx")


@dataclass(frozen=True)
class UpscalePlan:
    """The upscaler of a stage and its sizes (width, height).

    ``crop`` is the part of a frame of size ``source`` that has the aspect ratio of ``target``.
    ``model`` is the file, ``None`` for a built-in method.
    """

    name: str
    source: tuple[int, int]
    crop: Crop
    target: tuple[int, int]
    model: Component | None = None

    @property
    def id(self) -> str:
        """Identifies the upscaler in artefact keys."""
        return self.name if self.model is None else self.model.id


def plan_upscale(stage: UpscaleStage, size: tuple[int, int], library: Library) -> UpscalePlan:
    """The plan to upscale a clip of ``size`` (width, height).

    Raises :class:`CheckpointNotFound` for a missing file, or a built-in method whose package is not
    installed.
    """
    model = None
    if stage.name not in BUILT_IN:
        model = find_upscaler(stage.name, library)
    elif stage.name == "rtx":
        require_rtx()
    target = stage.target(size)
    return UpscalePlan(stage.name, size, crop_to_aspect(size, target), target, model)


def crop_to_aspect(size: tuple[int, int], target: tuple[int, int]) -> Crop:
    """The largest centred part of ``size`` with the aspect ratio of ``target``."""
    (w, h), (width, height) = size, target
    wide, high = min(w, round(h * width / height)), min(h, round(w * height / width))
    return Crop(left=(w - wide) // 2, top=(h - high) // 2, width=wide, height=high)


def find_upscaler(name: str, library: Library) -> Component:
    """The upscaler in a file: a path, or a name in ``upscale_models/`` with or without suffix.

    Raises :class:`CheckpointNotFound` for a missing file, or one that is not an upscaler.
    """
    path = expand_home(name)
    if path.is_file():
        try:
            return open_upscaler(path)
        except (CheckpointError, OSError) as error:
            raise CheckpointNotFound(
                f"{path.name} is not an upscaler: {error}",
                "use lanczos, or a model of upscale_models/",
            ) from error
    wanted = name.replace("\\", "/")
    for found in library.named(ROLE):
        names = (found.name, found.path.name, found.path.stem)
        if wanted in names or f"/{found.name}".endswith(f"/{wanted}"):
            return found.component
    for file, roles in library.files.items():
        if wanted in (file.name, file.stem):
            content = " and ".join(role.replace("_", " ") for role in roles)
            raise CheckpointNotFound(
                f"{file.name} is not a pixel upscaler, it contains a {content}",
                "use lanczos, or a model of upscale_models/",
            )
    known = ", ".join([*BUILT_IN, *sorted({f.path.name for f in library.of(ROLE)})])
    raise CheckpointNotFound(
        f"no upscaler called {name} found; known: {known}",
        "put its file into models/upscale_models/, or give its path",
    )


def require_rtx() -> None:
    """Raise :class:`CheckpointNotFound` if NVIDIA's package is not installed."""
    if importlib.util.find_spec("nvvfx") is None:
        raise CheckpointNotFound(
            "rtx needs NVIDIA's package nvidia-vfx, which is not installed",
            "pip install nvidia-vfx (proprietary licence, RTX card), or use lanczos",
        )
