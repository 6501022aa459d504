"""Where to search for model files: flags, environment, config file, ComfyUI's own settings.

The order is the order of preference: ``--models``, ``LADDER_MODELS``, the config file, then
``./models``, ``./ComfyUI/models`` and ``../ComfyUI/models``, then the pocket inside the package.
Each may be a ComfyUI ``models/`` folder, ComfyUI's root, or an ``extra_model_paths.yaml``.
Knows nothing of what the files hold.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_ladder.errors import CheckpointNotFound, RequestError

EMBEDDED = Path(__file__).parent.parent / "pocket" / "models"
"""The pocket model's folder inside the package."""

VARIABLE = "LADDER_MODELS"
"""Folders to search, separated as in ``PATH``."""

EXTRA_PATHS = "extra_model_paths.yaml"
"""ComfyUI's list of folders outside its own ``models/``."""

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
}
"""The folders of ComfyUI that may hold files of ours, and what each is called today."""

_USUAL = ("models", "ComfyUI/models", "../ComfyUI/models")


@dataclass(frozen=True)
class ModelFolder:
    """One folder to search.

    ``category`` is ComfyUI's name for what it holds where an ``extra_model_paths.yaml`` says so,
    else ``None``: its subfolders are the categories. ``source`` says who named it.
    """

    path: Path
    category: str | None = None
    source: str = "--models"

    @property
    def embedded(self) -> bool:
        """Whether it is the pocket model's."""
        return self.path == EMBEDDED.resolve()


def model_folders(
    extra: Sequence[Path | str] = (),
    environ: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> tuple[ModelFolder, ...]:
    """Every folder to search, the most wanted first, each once.

    ``config`` is the config file, by default ``latent-ladder/config.toml`` in the user's config
    folder. Raises :class:`CheckpointNotFound` for a folder that was named and does not exist or
    cannot be read, :class:`RequestError` for a config or YAML file that is not what it should be.
    """
    environ = os.environ if environ is None else environ
    config = config_file() if config is None else config
    folders = [f for path in extra for f in named_folder(Path(path), "--models")]
    for text in environ.get(VARIABLE, "").split(os.pathsep):
        if text:
            folders += named_folder(Path(text), VARIABLE)
    for path in _configured(config):
        folders += named_folder(path, str(config))
    for usual in _USUAL:
        if _is_folder(Path(usual)):
            folders += _with_extra_paths(Path(usual), f"./{usual}")
    folders.append(ModelFolder(EMBEDDED, None, "embedded"))
    return _each_once(folders)


def config_file() -> Path:
    """The user's config file, whether or not it exists."""
    from platformdirs import user_config_path

    return user_config_path("latent-ladder") / "config.toml"


def named_folder(path: Path, source: str) -> tuple[ModelFolder, ...]:
    """The folders behind one path that somebody named: a folder, ComfyUI's root, or a YAML file.

    Raises :class:`CheckpointNotFound` where it is missing or cannot be read.
    """
    path = path.expanduser()
    try:
        if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
            return _existing(path, read_extra_paths(path))
        if not path.is_dir():
            kind = "is a file" if path.exists() else "does not exist"
            raise CheckpointNotFound(
                f"model folder {path} ({source}) {kind}",
                "give the folder that holds checkpoints/, loras/ ... (ComfyUI's models/), "
                f"or an {EXTRA_PATHS}",
            )
        next(path.iterdir(), None)
    except PermissionError as error:
        raise CheckpointNotFound(
            f"model folder {path} ({source}) cannot be read: permission denied",
            "allow this user to read it, or name another folder",
        ) from error
    return _with_extra_paths(_models_below(path), source)


def _models_below(path: Path) -> Path:
    """``path``, or the ``models/`` in it where it is ComfyUI's root (or that of its portable)."""
    if any((path / name).is_dir() for name in CATEGORIES):
        return path
    below = (path / "models", path / "ComfyUI" / "models")
    return next((b for b in below if any((b / name).is_dir() for name in CATEGORIES)), path)


def _with_extra_paths(models: Path, source: str) -> tuple[ModelFolder, ...]:
    """The folder and, where ComfyUI's settings lie beside it, the folders they name."""
    beside = models.absolute().parent / EXTRA_PATHS
    more = read_extra_paths(beside) if models.name == "models" and beside.is_file() else ()
    own = ModelFolder(models, None, source)
    return (own, *(f for f in more if _is_folder(f.path)))


def read_extra_paths(path: Path) -> tuple[ModelFolder, ...]:
    """The folders of an ``extra_model_paths.yaml``, those of an ``is_default`` section first.

    As ComfyUI reads it: a section has an optional ``base_path`` (``~`` and variables expanded,
    relative to the file) and categories, each with one path per line. Folders may be missing;
    categories that cannot hold our files are left out. Raises :class:`RequestError` for a file
    that is not such a table.
    """
    import yaml

    try:
        sections = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RequestError(f"{path} cannot be read as YAML: {reason}", "correct it") from error
    if not isinstance(sections, Mapping | None):
        raise RequestError(f"{path} holds no table of sections", f"see ComfyUI's {EXTRA_PATHS}")
    found: list[tuple[bool, ModelFolder]] = []
    for name, section in (sections or {}).items():
        if section is None:
            continue
        if not isinstance(section, Mapping):
            raise RequestError(
                f"{path}: section {name} is not a table of folders",
                "write `base_path:` and `checkpoints:` ... below it",
            )
        default = bool(section.get("is_default", False))
        found += [(not default, folder) for folder in _section(path, str(name), section)]
    return tuple(folder for _, folder in sorted(found, key=lambda pair: pair[0]))


def _section(path: Path, name: str, section: Mapping[Any, Any]) -> Iterator[ModelFolder]:
    base = path.absolute().parent / _expanded(str(section.get("base_path") or ""))
    for key, value in section.items():
        category = CATEGORIES.get(str(key))
        if category is None or value is None:
            continue
        lines = value if isinstance(value, list) else str(value).split("\n")
        for line in lines:
            if str(line).strip():
                folder = base / _expanded(str(line).strip())
                yield ModelFolder(folder, category, f"{path} [{name}]")


def _expanded(text: str) -> Path:
    return Path(os.path.expandvars(text)).expanduser()


def _existing(path: Path, folders: tuple[ModelFolder, ...]) -> tuple[ModelFolder, ...]:
    existing = tuple(f for f in folders if _is_folder(f.path))
    if not existing:
        raise CheckpointNotFound(
            f"none of the {len(folders)} model folders that {path} names exists",
            "check its base_path",
        )
    return existing


def _configured(config: Path) -> Iterator[Path]:
    try:
        table = tomllib.loads(config.read_text("utf-8"))
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{config} cannot be read: {error}", "correct or remove it") from error
    paths = table.get("models", [])
    paths = [paths] if isinstance(paths, str) else paths
    if not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        raise RequestError(
            f"{config}: models is {paths!r}, not a list of folders",
            'write models = ["/path/to/ComfyUI/models"]',
        )
    for text in paths:
        yield config.parent / _expanded(text)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _each_once(folders: Iterable[ModelFolder]) -> tuple[ModelFolder, ...]:
    seen: dict[Path, ModelFolder] = {}
    for folder in folders:
        path = folder.path.resolve()
        seen.setdefault(path, ModelFolder(path, folder.category, folder.source))
    return tuple(seen.values())
