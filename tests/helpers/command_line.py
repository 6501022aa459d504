"""Arguments and environment to run ``ladder`` with the tiny checkpoint of the goldens."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


TINY = ["--models", str(GOLDEN), "--checkpoint", "tiny-ltx-2.3.safetensors", "--preset", "pocket"]
"""Options that choose the tiny checkpoint."""


SMALL = ["--size", "64x64", "--frames", "9", "--set", "base.steps=2"]
"""Options for a small and short clip."""


def environment(tmp_path: Path) -> Mapping[str, str]:
    """The environment of ``ladder`` with a store of its own in ``tmp_path``."""
    return os.environ | {"LADDER_STORE": str(tmp_path / "store"), "COLUMNS": "200"}
