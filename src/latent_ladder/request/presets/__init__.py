"""Presets: named starting points of a request, one TOML file each, read as plain data.

A preset is a request without a prompt, plus fields about itself: ``summary`` (its purpose),
``source`` (the origin of its numbers), ``family`` (that of the models it was made for, if that is
not LTX-2.3), and for a preset that was made for one model ``[world]`` (what that model was trained
on). Adding a preset is adding a file.

Users have presets of their own, in ``presets/`` of their config folder (``ladder presets save``),
and files that others share. A built-in name always means the built-in preset, so that a request
means the same on every machine.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from latent_ladder.errors import RequestError, did_you_mean
from latent_ladder.storage.read_file import read_small_text
from latent_ladder.storage.user_config import config_folder
from latent_ladder.storage.user_folders import expand_home

FOLDER = Path(__file__).parent
SUFFIX = ".toml"
MAX_BYTES = 2**20
"""Largest preset file that is read."""


class World(NamedTuple):
    """Clips that a small model was trained on.

    ``seconds`` is their length, ``shows`` says in words what they show, ``objects`` are the nouns
    of things in them, of which each clip has at most ``most_objects``.
    """

    seconds: Fraction
    shows: str
    objects: tuple[str, ...]
    most_objects: int


class Preset(NamedTuple):
    """One preset: ``fields`` is its request table, a new copy on every read.

    ``file`` is the file of a preset that is not built in. ``based_on`` is the built-in preset that
    it started from. ``world`` belongs to presets for one model only. ``family`` is that of the
    models it was made for, "" if it is for no published family.
    """

    name: str
    summary: str
    source: str
    fields: dict[str, Any]
    world: World | None = None
    file: Path | None = None
    based_on: str = ""
    family: str = ""


DEFAULT_FAMILY = "2.3"
"""The family of built-in presets that name none."""


def preset_names() -> tuple[str, ...]:
    """The names of all built-in presets, sorted."""
    return tuple(sorted(file.stem for file in FOLDER.glob(f"*{SUFFIX}")))


def own_folder() -> Path:
    """The folder of the user's own presets, which may not exist."""
    return config_folder() / "presets"


def own_preset_names() -> tuple[str, ...]:
    """The names of the user's own presets, sorted, without those that a built-in one shadows."""
    return tuple(sorted(set(_own_files()) - set(preset_names())))


def shadowed_presets() -> tuple[Path, ...]:
    """Files of the user's that are not used, because a built-in preset has their name."""
    files = _own_files()
    return tuple(files[name] for name in sorted(set(files) & set(preset_names())))


def _own_files() -> dict[str, Path]:
    try:
        return {file.stem: file for file in own_folder().glob(f"*{SUFFIX}")}
    except OSError:
        return {}


def read_preset(name: str) -> Preset:
    """The preset ``name``: a built-in one, one of the user's own, or the path of a TOML file.

    Raises RequestError with the nearest names for an unknown one, and for a file that is no preset.
    """
    if name in preset_names():
        return _built_in(name)
    if _is_path(name):
        return read_preset_file(expand_home(name))
    if name in own_preset_names():
        return read_preset_file(own_folder() / f"{name}{SUFFIX}")
    names = (*preset_names(), *own_preset_names())
    raise RequestError(f"preset {name!r} does not exist", did_you_mean(name, names))


def find_preset(name: str) -> Preset | None:
    """The preset of a name that a file or a request records, ``None`` if there is none here."""
    if name in preset_names():
        return _built_in(name)
    if name not in own_preset_names():
        return None
    try:
        return read_preset_file(own_folder() / f"{name}{SUFFIX}")
    except RequestError:
        return None


def preset_family(name: str) -> str:
    """The family of models that the preset of a request was made for, "" if it is for any.

    A preset of the user's has that of the built-in one that it is based on.
    """
    preset = find_preset(name)
    return "" if preset is None else preset.family


def preset_training(name: str) -> str:
    """The training of the transformer that a preset is for, "dev" or "distilled", else "".

    Dev transformers need guidance or the distilled LoRA.
    """
    preset = find_preset(name)
    if preset is None or not preset.family:
        return ""
    for stage in preset.fields["stages"]:
        streams = stage.get("guidance", {}).values()
        roles = [lora.get("role") for lora in stage.get("loras", ())]
        if "distilled" in roles or any(stream.get("cfg", 1) != 1 for stream in streams):
            return "dev"
    return "distilled"


def _is_path(name: str) -> bool:
    return name.lower().endswith(SUFFIX) or "/" in name or "\\" in name


def _built_in(name: str) -> Preset:
    fields = tomllib.loads((FOLDER / f"{name}{SUFFIX}").read_text("utf-8"))
    summary, source = fields.pop("summary"), fields.pop("source")
    world = _world(fields.pop("world", None))
    family = fields.pop("family", DEFAULT_FAMILY if world is None else "")
    return Preset(name, summary, source, {"preset": name} | fields, world, None, name, family)


def _world(table: Mapping[str, Any] | None) -> World | None:
    if table is None:
        return None
    return World(
        Fraction(table["seconds"]), table["shows"], tuple(table["objects"]), table["most_objects"]
    )


def read_preset_file(path: Path) -> Preset:
    """The preset in a TOML file; its name is that of the file.

    Raises RequestError for a file that cannot be read or has no stages. The values of its fields
    are checked with the request that it becomes.
    """
    hint = "give a name of `ladder presets list`, or a file that `ladder presets save` wrote"
    try:
        fields = tomllib.loads(read_small_text(path, MAX_BYTES, RequestError, "preset"))
    except RequestError as error:
        raise RequestError(error.message, hint) from error
    except ValueError as error:
        raise RequestError(f"preset {path} cannot be read: {error}", hint) from error
    texts = {key: fields.pop(key, "") for key in ("summary", "source", "based_on")}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise RequestError(f"preset {path}: {key} is {value!r}, expected text", "use quotes")
    if not isinstance(fields.get("stages"), list):
        raise RequestError(f"preset {path} has no stages", hint)
    fields.pop("prompt", None)
    return Preset(
        path.stem,
        texts["summary"],
        texts["source"],
        fields | {"preset": path.stem},
        None,
        path,
        texts["based_on"],
        _built_in(texts["based_on"]).family if texts["based_on"] in preset_names() else "",
    )
