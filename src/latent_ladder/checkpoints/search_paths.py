"""Search path for model files: flags, environment, config file, ComfyUI's settings.

In order of preference: ``--models``, ``LADDER_MODELS``, the config file, then ``./models``,
``./ComfyUI/models`` and ``../ComfyUI/models``, then the pocket model inside the package. Each can
be a ComfyUI ``models/`` folder, ComfyUI's root, or an ``extra_model_paths.yaml``. This module does
not read model files.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.errors import CheckpointNotFound, RequestError
from latent_ladder.storage.read_file import is_pseudo_folder, read_error, read_small_text
from latent_ladder.storage.user_config import config_file, read_setting
from latent_ladder.storage.user_folders import expand_home

EMBEDDED = Path(__file__).parent.parent / "pocket" / "models"
"""The pocket model's folder inside the package."""

ENVIRONMENT_VARIABLE = "LADDER_MODELS"
"""Environment variable with folders to search, separated as in ``PATH``."""

EXTRA_PATHS = "extra_model_paths.yaml"
"""Name of ComfyUI's list of folders outside its own ``models/``."""

MAX_SETTINGS_BYTES = 2**20
"""Largest file of settings."""

CATEGORIES: Mapping[str, str] = {
    "checkpoints": "checkpoints",
    "diffusion_models": "diffusion_models",
    "unet": "diffusion_models",
    "text_encoders": "text_encoders",
    "clip": "text_encoders",
    "vae": "vae",
    "vae_approx": "vae_approx",
    "loras": "loras",
    "latent_upscale_models": "latent_upscale_models",
    "upscale_models": "upscale_models",
    "model_patches": "model_patches",
}
"""Folders of ComfyUI with files that are used here -> current name of the category."""

_DEFAULT_FOLDERS = ("models", "ComfyUI/models", "../ComfyUI/models")


@dataclass(frozen=True)
class ModelFolder:
    """One folder to search.

    ``category`` is ComfyUI's category of its files if it is from an ``extra_model_paths.yaml``,
    else ``None``: its subfolders are the categories. ``source`` is the flag, variable or file that
    it is from.
    """

    path: Path
    category: str | None = None
    source: str = "--models"

    @property
    def is_embedded(self) -> bool:
        """True for the folder of the pocket model."""
        return self.path == EMBEDDED.resolve()


def model_folders(
    extra: Sequence[Path | str] = (),
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> tuple[ModelFolder, ...]:
    """All folders to search, the preferred ones first, each once.

    ``extra`` are the folders of ``--models``. ``config`` is the config file, by default
    ``latent-ladder/config.toml`` in the user's config folder. Raises :class:`CheckpointNotFound`
    for a named folder that does not exist or cannot be read, :class:`RequestError` for an invalid
    config or YAML file.
    """
    environ = os.environ if environ is None else environ
    config = config_file() if config is None else config
    folders = [f for path in extra for f in expand_model_folder(Path(path), "--models")]
    for text in environ.get(ENVIRONMENT_VARIABLE, "").split(os.pathsep):
        if text:
            folders += expand_model_folder(Path(text), ENVIRONMENT_VARIABLE)
    for text in read_setting("models", {}, config).value or ():
        folders += expand_model_folder(Path(text), str(config))
    for default in _DEFAULT_FOLDERS:
        if _is_folder(Path(default)):
            folders += _with_extra_paths(Path(default), f"./{default}")
    folders.append(ModelFolder(EMBEDDED, None, "embedded"))
    return _unique_folders(folders)


def expand_model_folder(path: Path, source: str) -> tuple[ModelFolder, ...]:
    """The folders to search for one path: a models folder, ComfyUI's root, or a YAML file.

    Raises :class:`CheckpointNotFound` if it is missing or cannot be read.
    """
    path = expand_home(path)
    if is_pseudo_folder(path):
        raise CheckpointNotFound(
            f"model folder {path} ({source}) has processes or devices, not files",
            "give the folder with checkpoints/, loras/ ... in it (ComfyUI's models/)",
        )
    try:
        if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
            return _require_existing(path, read_extra_paths(path))
        if not path.is_dir():
            kind = "is a file" if path.exists() else "does not exist"
            raise CheckpointNotFound(
                f"model folder {path} ({source}) {kind}",
                "give the folder with checkpoints/, loras/ ... in it (ComfyUI's models/), "
                f"or an {EXTRA_PATHS}",
            )
        next(path.iterdir(), None)
    except (OSError, ValueError) as error:
        raise read_error(path, error, CheckpointNotFound, f"model folder of {source}") from error
    return _with_extra_paths(_models_below(path), source)


def _models_below(path: Path) -> Path:
    """``path``, or its ``models/`` if it is the root of ComfyUI (or of the portable version)."""
    if any((path / name).is_dir() for name in CATEGORIES):
        return path
    below = (path / "models", path / "ComfyUI" / "models")
    return next((b for b in below if any((b / name).is_dir() for name in CATEGORIES)), path)


def _with_extra_paths(models: Path, source: str) -> tuple[ModelFolder, ...]:
    """The folder, and those in an ``extra_model_paths.yaml`` of the ComfyUI around it."""
    settings = models.absolute().parent / EXTRA_PATHS
    more = read_extra_paths(settings) if models.name == "models" and settings.is_file() else ()
    own = ModelFolder(models, None, source)
    return (own, *(f for f in more if _is_folder(f.path)))


def read_extra_paths(path: Path) -> tuple[ModelFolder, ...]:
    """The folders in an ``extra_model_paths.yaml``, those of an ``is_default`` section first.

    As in ComfyUI, a section has an optional ``base_path`` (``~`` and variables are expanded,
    relative to the file) and categories, each with one path per line. The folders may not exist;
    categories that are not used here are left out. Raises :class:`RequestError` for an invalid
    file.
    """
    import yaml

    try:
        text = read_small_text(path, MAX_SETTINGS_BYTES, RequestError, "settings file")
        sections = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(
            f"{path} cannot be read as YAML: {reason}", "correct the file or remove it"
        ) from error
    if not isinstance(sections, Mapping | None):
        raise RequestError(
            f"{path} has no sections", f"write it like ComfyUI's {EXTRA_PATHS}.example"
        )
    found: list[tuple[bool, ModelFolder]] = []
    for name, section in (sections or {}).items():
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise RequestError(
                f"{path}: section {name} has no folders",
                "write `base_path:` and `checkpoints:` ... below it",
            )
        default = bool(section.get("is_default", False))
        found += [(not default, folder) for folder in _section_folders(path, str(name), section)]
    return tuple(folder for _, folder in sorted(found, key=lambda pair: pair[0]))


def _section_folders(path: Path, name: str, section: Mapping[Any, Any]) -> Iterator[ModelFolder]:
    base = path.absolute().parent / _expand(str(section.get("base_path") or ""))
    for key, value in section.items():
        category = CATEGORIES.get(str(key))
        if category is None or value is None:
            continue
        lines = value if isinstance(value, list) else str(value).split("\n")
        for line in lines:
            if str(line).strip():
                folder = base / _expand(str(line).strip())
                yield ModelFolder(folder, category, f"{path} [{name}]")


def _expand(text: str) -> Path:
    return expand_home(os.path.expandvars(text))


def _require_existing(path: Path, folders: tuple[ModelFolder, ...]) -> tuple[ModelFolder, ...]:
    existing = tuple(f for f in folders if _is_folder(f.path))
    if not existing:
        raise CheckpointNotFound(
            f"none of the {len(folders)} model folders in {path} exists",
            "check its base_path",
        )
    return existing


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _unique_folders(folders: Iterable[ModelFolder]) -> tuple[ModelFolder, ...]:
    seen: dict[Path, ModelFolder] = {}
    for folder in folders:
        path = folder.path.resolve()
        seen.setdefault(path, ModelFolder(path, folder.category, folder.source))
    return tuple(seen.values())
