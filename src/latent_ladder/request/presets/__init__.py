"""Presets: named starting points of a request, one TOML file each, read as plain data.

A preset is a request without a prompt, plus two fields about itself: ``summary`` (its purpose) and
``source`` (the origin of its numbers). Adding a preset is adding a file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from latent_ladder.errors import RequestError
from latent_ladder.request.problems import did_you_mean

FOLDER = Path(__file__).parent


class Preset(NamedTuple):
    """One preset: ``fields`` is its request table, a new copy on every read."""

    name: str
    summary: str
    source: str
    fields: dict[str, Any]


def preset_names() -> tuple[str, ...]:
    """All preset names, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.toml")))


def read_preset(name: str) -> Preset:
    """The preset ``name``. Raises RequestError with the nearest names for an unknown one."""
    if name not in preset_names():
        raise RequestError(f"preset {name!r} does not exist", did_you_mean(name, preset_names()))
    fields = tomllib.loads((FOLDER / f"{name}.toml").read_text("utf-8"))
    return Preset(name, fields.pop("summary"), fields.pop("source"), {"preset": name} | fields)
