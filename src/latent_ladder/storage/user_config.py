"""The user's configuration: ``config.toml``, environment variables, and their order.

A flag of a command comes before the environment, the environment before the file, the file before
the default. The file lies in the user's config folder (``ladder config`` prints its path); an
unknown key in it is an error. This module knows the names and types of the keys, not their use.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.errors import RequestError, did_you_mean
from latent_ladder.storage.read_file import read_small_text
from latent_ladder.storage.user_folders import expand_home, user_folder


@dataclass(frozen=True)
class ConfigKey:
    """One key: its environment variable, its use, and an example of a line in the file.

    ``is_list`` keys take several folders; ``is_path`` values are relative to the file's folder.
    """

    name: str
    variable: str
    meaning: str
    example: str
    is_path: bool = True
    is_list: bool = False


KEYS: tuple[ConfigKey, ...] = (
    ConfigKey(
        "preset", "LADDER_PRESET", "preset of commands without --preset",
        'preset = "balanced"', is_path=False,
    ),
    ConfigKey(
        "models", "LADDER_MODELS", "model folders to search, after those of --models",
        'models = ["/path/to/ComfyUI/models"]', is_list=True,
    ),
    ConfigKey("store", "LADDER_STORE", "folder of stored results", 'store = "/data/ladder"'),
    ConfigKey(
        "output", "LADDER_OUTPUT", "folder of clips without -o", 'output = "/home/me/clips"'
    ),
)  # fmt: skip
"""All keys of the file."""

MAX_CONFIG_BYTES = 2**20
"""Largest config file."""


@dataclass(frozen=True)
class Setting:
    """The value of a key, and its source: the variable, the path of the file, or "default"."""

    key: ConfigKey
    value: str | tuple[str, ...] | None
    source: str


def config_folder() -> Path:
    """The user's config folder for this program, which may not exist."""
    return user_folder("config")


def config_file() -> Path:
    """The path of the user's config file, which may not exist."""
    return config_folder() / "config.toml"


def read_config(path: Path | None = None) -> dict[str, Any]:
    """The checked content of the config file, empty if it does not exist.

    Values are text, or a list of texts for keys that take several. Raises :class:`RequestError` for
    a file that cannot be read, an unknown key (with the nearest name) or a value of another type.
    """
    path = config_file() if path is None else path
    try:
        if not path.exists():
            return {}
        text = read_small_text(path, MAX_CONFIG_BYTES, RequestError, "settings file")
        table = tomllib.loads(text)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}", "correct or remove it") from error
    known = {key.name: key for key in KEYS}
    for name, value in table.items():
        if name not in known:
            hint = did_you_mean(name, known)
            raise RequestError(f"{path}: {name} is not a key of the configuration", hint)
        _check(path, known[name], value)
    return {
        name: [value] if known[name].is_list and isinstance(value, str) else value
        for name, value in table.items()
    }


def _check(path: Path, key: ConfigKey, value: Any) -> None:
    if isinstance(value, str):
        return
    if key.is_list and isinstance(value, list) and all(isinstance(v, str) for v in value):
        return
    expected = "a list of folders" if key.is_list else "a folder" if key.is_path else "a name"
    raise RequestError(
        f"{path}: {key.name} is {value!r}, expected {expected}", f"write {key.example}"
    )


def read_setting(
    name: str, environ: Mapping[str, str] | None = None, path: Path | None = None
) -> Setting:
    """The value of a key outside the flags: environment, then config file, then nothing.

    Paths of the file are made absolute. Raises what :func:`read_config` raises; the file is not
    read if the environment has a value.
    """
    key = next(key for key in KEYS if key.name == name)
    environ = os.environ if environ is None else environ
    if text := environ.get(key.variable):
        parts = tuple(part for part in text.split(os.pathsep) if part)
        return Setting(key, parts if key.is_list else text, key.variable)
    path = config_file() if path is None else path
    found = read_config(path).get(name)
    if found is None:
        return Setting(key, None, "default")
    if not key.is_path:
        return Setting(key, found, str(path))
    if isinstance(found, list):
        return Setting(key, tuple(str(_absolute(path, text)) for text in found), str(path))
    return Setting(key, str(_absolute(path, found)), str(path))


def configured_path(name: str) -> Path | None:
    """The path of a key as :func:`read_setting` finds it, ``None`` if it is not set."""
    value = read_setting(name).value
    return expand_home(value) if isinstance(value, str) else None


def _absolute(path: Path, text: str) -> Path:
    return path.parent / expand_home(os.path.expandvars(text))
