"""Saving of the user's own presets: a request without what belongs to one clip."""

from __future__ import annotations

import re
from pathlib import Path

from latent_ladder.errors import RequestError
from latent_ladder.request.model import Request
from latent_ladder.request.presets import (
    SUFFIX,
    own_folder,
    own_preset_names,
    preset_names,
    read_preset_file,
)
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
CLIP_FIELDS = ("prompt", "seed", "preset", "images", "audio_in", "video")
"""Fields of one clip, which a preset does not keep."""


def check_name(name: str) -> Path:
    """The path of the user's preset ``name``. Raises :class:`RequestError` for a bad name."""
    if name in preset_names():
        raise RequestError(
            f"{name} is a built-in preset", f"choose another name, such as my-{name}"
        )
    if not _NAME.fullmatch(name) or name.lower().endswith(SUFFIX):
        raise RequestError(
            f"preset name {name!r} is not 1 to 64 letters, digits, '-', '_' and '.'",
            "choose a name such as night-shots",
        )
    return own_folder() / f"{name}{SUFFIX}"


def save_preset(
    name: str, request: Request, *, summary: str = "", based_on: str = "", overwrite: bool = False
) -> Path:
    """Write a request as the user's preset ``name``; returns its file.

    Prompt, seed and input files are left out. Raises :class:`RequestError` for a bad name, for one
    that exists unless ``overwrite``, and for a folder that cannot be written.
    """
    import tomli_w

    path = check_name(name)
    if path.exists() and not overwrite:
        raise RequestError(f"preset {name} exists: {path}", "--overwrite replaces it")
    fields = request.to_dict()
    if fields.get("duration_s") is not None:
        fields.pop("frames", None)
    about = {"summary": summary or "saved by you", "source": "ladder presets save"}
    about |= {"based_on": based_on} if based_on else {}
    kept = {key: value for key, value in fields.items() if key not in CLIP_FIELDS}
    data = tomli_w.dumps(about | kept).encode()
    with convert_write_errors(RequestError, f"preset {path.name}", path.parent, len(data)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    return path


def remove_preset(name: str) -> Path:
    """Delete the user's preset ``name``; returns its former file. Raises :class:`RequestError`."""
    path = check_name(name)
    if name not in own_preset_names():
        raise RequestError(f"there is no preset {name} of your own", "see `ladder presets list`")
    read_preset_file(path)
    path.unlink()
    return path
