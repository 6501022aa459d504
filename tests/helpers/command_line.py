"""Arguments and environment of ``ladder`` on the tiny checkpoint of the goldens."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"


TINY = ["--models", str(GOLDEN), "--checkpoint", "tiny-ltx-2.3.safetensors", "--preset", "pocket"]


SMALL = ["--size", "64x64", "--frames", "9", "--set", "base.steps=2"]


def environment(tmp_path):
    return os.environ | {"LADDER_STORE": str(tmp_path / "store"), "COLUMNS": "200"}
