"""The world that a training run is about, chosen by POCKET_WORLD: `first` (default) or `second`.

Every module that trains takes `world`, `sound`, `cache` and `vae_train` from here. The first world
is the one of the shipped weights (`world.py`); the second is `scenery.py`.
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
    """Widths of the networks that a world needs."""

    layers: int
    heads: int  # of both streams; 32 numbers each in the video's, 16 in the sound's
    audio_channels: int  # of the audio VAE


SIZES = {"first": Sizes(6, 4, 2), "second": Sizes(6, 5, 3)}[EDITION]


def module(name: str) -> ModuleType:
    """The world's own module `world`, `sound`, `cache` or `vae_train`."""
    return importlib.import_module(MODULES[EDITION][name])
