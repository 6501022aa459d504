"""Model files in a folder where ComfyUI does not look for their kind.

latent-ladder finds a file in any folder. The check is for users who share the folder with ComfyUI
and want to know why ComfyUI does not list a file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from latent_ladder.checkpoints.scan import FoundComponent, Library

ALLOWED_CATEGORIES: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
    (frozenset({"lora"}), ("loras",)),
    (frozenset({"latent_upsampler"}), ("latent_upscale_models",)),
    (frozenset({"text_encoder"}), ("text_encoders",)),
    (frozenset({"transformer", "video_vae"}), ("checkpoints",)),
    (frozenset({"transformer"}), ("diffusion_models",)),
    (frozenset({"video_vae"}), ("vae",)),
    (frozenset({"audio_vae"}), ("vae", "checkpoints")),
    (frozenset({"vocoder"}), ("vae", "checkpoints")),
    (frozenset({"text_projection"}), ("text_encoders", "checkpoints")),
    (frozenset({"connectors"}), ("text_encoders", "checkpoints")),
    (frozenset({"pixel_upscaler"}), ("upscale_models",)),
    (frozenset({"preview_vae"}), ("vae_approx", "vae")),
)
"""Roles of a file -> categories in which ComfyUI's loaders list it. The first match counts."""


@dataclass(frozen=True)
class MisplacedFile:
    """A file in the folder ``category``, although ComfyUI lists its kind in ``expected`` only."""

    path: Path
    roles: tuple[str, ...]
    category: str
    expected: str

    @property
    def message(self) -> str:
        """One sentence for the user."""
        content = " and ".join(role.replace("_", " ") for role in self.roles[:2])
        return (
            f"{self.path.name} ({content}) is in {self.category}/: latent-ladder uses it from "
            f"there, but ComfyUI looks for it in {self.expected}/"
        )


def find_misplaced(library: Library) -> tuple[MisplacedFile, ...]:
    """The files in a ComfyUI category other than that of their kind."""
    wrong = []
    for path, roles in library.files.items():
        found = next(iter(roles.values()))
        allowed = allowed_categories(roles, found.summary.container)
        known = found.category is not None and not found.is_embedded
        if known and allowed and found.category not in allowed:
            wrong.append(MisplacedFile(path, tuple(roles), _folder_name(found), allowed[0]))
    return tuple(wrong)


def allowed_categories(roles: Collection[str], container: str) -> tuple[str, ...]:
    """The categories in which ComfyUI lists a file with these roles; empty if there is none.

    Only the GGUF loader lists a GGUF transformer, and it looks in ``diffusion_models``.
    """
    if container == "gguf" and "transformer" in roles:
        return ("diffusion_models",)
    return next((folders for needed, folders in ALLOWED_CATEGORIES if needed <= set(roles)), ())


def _folder_name(found: FoundComponent) -> str:
    """The name of the folder, which may be an old one: ``unet`` for ``diffusion_models``."""
    if found.configured_category is not None:
        return found.configured_category
    return found.path.relative_to(found.folder).parts[0]
