"""Training of a transformer: dev or distilled.

The two files of a family have the same tensors and sizes, so the hash of a file decides where it is
known, else its name. Nothing is read for that: the hash is known of files that were downloaded by
this program or hashed with ``ladder models identify``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from latent_ladder.checkpoints.catalog import find_published, may_be_published
from latent_ladder.checkpoints.compatibility import is_distilled_lora, training_variant
from latent_ladder.checkpoints.components import Component
from latent_ladder.errors import CheckpointError
from latent_ladder.storage.file_hashes import known_hash

Training = Literal["dev", "distilled"]


def transformer_training(transformer: Component) -> Training | None:
    """The training of a transformer by its hash or its names, ``None`` if none of them tells."""
    file = transformer.file
    return training_of_file(file.path) or _named(str(file.kv.get("general.name", "")))


def training_of_file(path: Path) -> Training | None:
    """The training of the transformer in a file by its hash or its name; does not read the file."""
    published = _published_variant(path)
    return _named(path.name if published is None else published)


def _named(name: str) -> Training | None:
    found = training_variant(name)
    return None if found is None else "distilled" if found == "distilled" else "dev"


def _published_variant(path: Path) -> str | None:
    """The variant of the published file with the hash of this one."""
    if not path.is_file() or not may_be_published(path.stat().st_size):
        return None
    sha256 = known_hash(path, "sha256")
    published = None if sha256 is None else find_published(path.stat().st_size, sha256)
    return None if published is None else published.variant


def unknown_training_error(transformer: Component, distilled: str, dev: str) -> CheckpointError:
    """The error for a transformer that may be either, with a preset for each."""
    name = transformer.file.path.name
    return CheckpointError(
        f"{name} may be the dev or the distilled transformer: their files look alike, and neither "
        "its name nor a known hash tells",
        f"choose --preset {distilled} or --preset {dev}; `ladder models identify {name}` compares "
        "it with the published files",
    )


def is_distilled_twice(lora: Component, transformer: Component) -> bool:
    """True for a distilled LoRA and a transformer that is known to be distilled already."""
    return is_distilled_lora(lora) and transformer_training(transformer) == "distilled"
