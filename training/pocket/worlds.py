"""The synthetic world of a training run, chosen by POCKET_WORLD: `first` (default) or `second`.

The scripts that train on either world load `world`, `sound`, `cache` and `vae_train` with `module`.
The shipped weights were trained on the first world (`world.py`); the second is `scenery.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from types import ModuleType

EDITION = os.environ.get("POCKET_WORLD", "first")
MODULES: dict[str, dict[str, str]] = {
    "first": {"world": "world", "sound": "sound", "cache": "cache", "vae_train": "vae_train"},
    "second": {
        "world": "scenery_world",
        "sound": "scenery_sound",
        "cache": "scenery_cache",
        "vae_train": "scenery_vae",
    },
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the networks for a world."""

    layers: int
    heads: int  # of both streams, 32 channels each for video and 16 for audio
    audio_channels: int  # of the audio VAE


SIZES = {"first": Sizes(6, 4, 2), "second": Sizes(6, 5, 3)}[EDITION]


def module(name: str) -> ModuleType:
    """Import the chosen world's module `world`, `sound`, `cache` or `vae_train`."""
    return importlib.import_module(MODULES[EDITION][name])
