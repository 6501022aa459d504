"""Folders of this user for data, caches and settings, also where there is no home folder."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

Kind = Literal["data", "cache", "config"]

APPLICATION = "latent-ladder"


def user_folder(kind: Kind) -> Path:
    """The user's folder of that kind; it need not exist.

    Without a home folder (HOME unset and no entry in the list of users) it is in the folder for
    temporary files, with the user's number in its name.
    """
    import platformdirs

    find = {
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
        "config": platformdirs.user_config_path,
    }[kind]
    folder = find(APPLICATION, appauthor=False)
    if folder.is_absolute():
        return folder
    number = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir()) / f"{APPLICATION}-{number}" / kind


def expand_home(path: Path | str) -> Path:
    """``path`` with ``~`` replaced by the home folder; unchanged where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)
