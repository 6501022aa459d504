"""Where ComfyUI looks for a file, by what it holds; and which files lie somewhere else.

latent-ladder finds a file wherever it lies. This is for people who use the same folder with
ComfyUI, and for those who wonder why ComfyUI does not list a file.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from latent_ladder.checkpoints.scan import Found, Library

ALLOWED: tuple[tuple[frozenset[str], tuple[str, ...]], ...] = (
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
"""A file that has all these roles -> the categories where ComfyUI's loaders see it; first match."""


@dataclass(frozen=True)
class Misplaced:
    """A file in a category where ComfyUI's loaders for its kind do not look."""

    path: Path
    holds: tuple[str, ...]
    category: str
    expected: str

    @property
    def message(self) -> str:
        """One sentence for a person."""
        held = " and ".join(role.replace("_", " ") for role in self.holds[:2])
        return (
            f"{self.path.name} ({held}) lies in {self.category}/: it is used from there, but "
            f"ComfyUI looks for it in {self.expected}/"
        )


def misplaced(library: Library) -> tuple[Misplaced, ...]:
    """Files that lie in one of ComfyUI's categories and not in the one of their kind."""
    wrong = []
    for path, roles in library.files.items():
        found = next(iter(roles.values()))
        allowed = allowed_categories(roles, found.facts.container)
        known = found.category is not None and not found.embedded
        if known and allowed and found.category not in allowed:
            wrong.append(Misplaced(path, tuple(roles), _written(found), allowed[0]))
    return tuple(wrong)


def allowed_categories(roles: Collection[str], container: str) -> tuple[str, ...]:
    """The categories where ComfyUI sees a file with these roles; empty where it has none.

    A GGUF transformer is seen by the GGUF loader alone, which looks in ``diffusion_models``.
    """
    if container == "gguf" and "transformer" in roles:
        return ("diffusion_models",)
    return next((places for needed, places in ALLOWED if needed <= set(roles)), ())


def _written(found: Found) -> str:
    """The category as the folder is called: ``unet`` for ``diffusion_models``."""
    if found.given_category is not None:
        return found.given_category
    return found.path.relative_to(found.folder).parts[0]
