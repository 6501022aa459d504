"""The files that a graph requires: model files and uploaded images, audio and videos.

Each file is found, in a folder where ComfyUI does not look, of the wrong kind, or missing; for a
missing model file the download URL is given if it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from latent_ladder.checkpoints.catalog import FILES
from latent_ladder.checkpoints.misplaced import allowed_categories
from latent_ladder.checkpoints.scan import FoundComponent, Library, find_in_file
from latent_ladder.comfyui.file_names import (
    map_file_name,
    mapped_file_name,
    split_folder_tag,
    unsafe_path_reason,
)
from latent_ladder.comfyui.graph import Graph, Link, ModelFile, Node
from latent_ladder.comfyui.node_defs import NODE_TYPES, node_type
from latent_ladder.errors import CheckpointError, RequestError
from latent_ladder.storage.read_file import is_file

FOUND: Final = "here"
MISPLACED: Final = "elsewhere"
WRONG: Final = "wrong"
MISSING: Final = "missing"

_FOLDER_ROLES: Mapping[str, frozenset[str]] = {
    "checkpoints": frozenset({"transformer"}),
    "diffusion_models": frozenset({"transformer"}),
    "loras": frozenset({"lora"}),
    "latent_upscale_models": frozenset({"latent_upsampler"}),
    "upscale_models": frozenset({"pixel_upscaler"}),
    "model_patches": frozenset({"duration_head"}),
    "text_encoders": frozenset({"text_encoder", "text_projection", "connectors"}),
    "vae": frozenset({"video_vae", "audio_vae", "vocoder", "preview_vae"}),
}
"""Roles by model folder; a file of the folder must contain at least one of them."""


@dataclass(frozen=True)
class RequiredFile:
    """A file that nodes of a graph name.

    ``used`` is the name that is looked up: ``name`` after ``--map``, with ``/`` in Windows paths.
    ``state`` is ``here``, ``elsewhere`` (usable, but not in a folder where ComfyUI looks),
    ``wrong`` or ``missing``; ``note`` gives the reason and ``url`` the download location.
    """

    name: str
    used: str
    folder: str
    nodes: tuple[str, ...]
    input: str
    state: str = MISSING
    path: Path | None = None
    note: str = ""
    url: str = ""

    @property
    def usable(self) -> bool:
        """True if the workflow can run with the file."""
        return self.state in (FOUND, MISPLACED)

    def to_dict(self) -> dict[str, Any]:
        """Return the file as JSON data for ``--json``."""
        return {
            "name": self.name,
            "used": self.used,
            "folder": self.folder,
            "nodes": list(self.nodes),
            "input": self.input,
            "state": self.state,
            "path": None if self.path is None else str(self.path),
            "note": self.note,
            "url": self.url,
        }


def find_required_files(
    graph: Graph,
    nodes: Iterable[str],
    library: Library,
    inputs: Sequence[Path] = (),
    names: Mapping[str, str] | None = None,
) -> tuple[RequiredFile, ...]:
    """Return the files that ``nodes`` name, each once, in the order of the graph.

    ``inputs`` are the folders of uploaded files; ``names`` maps names in the graph to others.
    """
    files: list[RequiredFile] = []
    selected = set(nodes)
    for node in graph.nodes.values():
        for file in _named_files(node) if node.id in selected else ():
            index = next(
                (i for i, other in enumerate(files) if _is_same_file(file, other)), len(files)
            )
            known = files[index] if index < len(files) else replace(file, nodes=())
            folder = min(file.folder, known.folder, key=len)
            merged = replace(known, nodes=(*known.nodes, node.id), folder=folder)
            files[index : index + 1] = [merged]
    return tuple(_locate(file, graph, library, inputs, names or {}) for file in files)


def _is_same_file(file: RequiredFile, other: RequiredFile) -> bool:
    """Return whether two inputs name the same file: the same name and a common folder."""
    folders = set(file.folder.split(",")) & set(other.folder.split(","))
    return file.name == other.name and bool(folders)


def _named_files(node: Node) -> Iterator[RequiredFile]:
    for item in node_type(node.class_type, node.pack).inputs:
        name = node.inputs.get(item.name)
        if item.folder and isinstance(name, str) and name and not isinstance(name, Link):
            yield RequiredFile(name, name, item.folder, (node.id,), item.name)


def _locate(
    file: RequiredFile,
    graph: Graph,
    library: Library,
    inputs: Sequence[Path],
    names: Mapping[str, str],
) -> RequiredFile:
    if file.folder == "input":
        return _locate_upload(file, inputs, names)
    if wrong := unsafe_path_reason(file.name):
        return replace(file, state=WRONG, note=f"its name {wrong}")
    file = replace(
        file, used=map_file_name(file.name, names), url=_download_url(file, graph.models)
    )
    try:
        parts = _components_by_name(library, file.used) or _components_by_path(Path(file.used))
    except CheckpointError as error:
        return replace(file, state=WRONG, path=Path(file.used), note=error.message)
    if not parts:
        return _explain_missing(file, library)
    found = next(iter(parts.values()))
    roles = {role for folder in file.folder.split(",") for role in _FOLDER_ROLES.get(folder, ())}
    if not roles & parts.keys() and not (file.folder == "vae,checkpoints" and "audio_vae" in parts):
        content = " and ".join(sorted(role.replace("_", " ") for role in parts))
        return replace(file, state=WRONG, path=found.path, note=f"it contains {content}")
    allowed = allowed_categories(parts, found.component.file.container)
    if found.is_embedded or found.category is None or found.category in (*allowed, file.folder):
        return replace(file, state=FOUND, path=found.path)
    note = f"it is in {found.category}/, where ComfyUI does not look for it"
    return replace(file, state=MISPLACED, path=found.path, note=note)


def _components_by_name(library: Library, name: str) -> Mapping[str, FoundComponent]:
    """Return the components of the file with a name.

    The whole name is preferred; else a file in any folder with the same last part counts.
    """
    last, fallback = name.rpartition("/")[2], None
    for path, parts in library.files.items():
        if path == Path(name):
            return parts
        found = next(iter(parts.values()))
        if f"/{found.name}".endswith(f"/{name}"):
            return parts
        if fallback is None and path.name == last:
            fallback = parts
    return fallback or {}


def _components_by_path(path: Path) -> Mapping[str, FoundComponent]:
    """Return the components of a file outside the model folders, which ``--map`` may name."""
    if not is_file(path):
        return {}
    return find_in_file(path, path.resolve().parent)


def _explain_missing(file: RequiredFile, library: Library) -> RequiredFile:
    last = file.used.rpartition("/")[2]
    for path, reason in (*library.unreadable, *library.ignored):
        if path.name == last:
            return replace(file, state=WRONG, path=path, note=reason)
    return file


def _locate_upload(
    file: RequiredFile, inputs: Sequence[Path], names: Mapping[str, str]
) -> RequiredFile:
    name, _ = split_folder_tag(file.name)
    if wrong := unsafe_path_reason(name):
        return replace(file, state=WRONG, note=f"its name {wrong}")
    mapped = mapped_file_name(file.name, names) or mapped_file_name(name, names)
    paths = [Path(mapped)] if mapped else [folder / name.replace("\\", "/") for folder in inputs]
    path = next((path for path in paths if path.is_file()), None)
    return replace(file, used=mapped or name, state=FOUND if path else MISSING, path=path)


def _download_url(file: RequiredFile, models: Iterable[ModelFile]) -> str:
    """Return the download URL of a file, from the workflow or else from the catalog."""
    last = file.name.replace("\\", "/").rpartition("/")[2]
    for model in models:
        if model.name.rpartition("/")[2] == last and model.url.startswith(("https://", "http://")):
            return model.url
    for known in FILES:
        if known.name == last:
            return f"https://huggingface.co/{known.repository}/resolve/main/{known.path}"
    return ""


def default_input_folder(source: str) -> Path:
    """Return the folder of input files: ``./input`` if it exists, else the workflow's folder."""
    default = Path("input")
    return default if default.is_dir() or source == "-" else Path(source).absolute().parent


def parse_file_name_map(
    settings: Iterable[str], list_usable: Callable[[str], Iterable[str]] | None = None
) -> dict[str, str]:
    """Return the ``OLD=NEW`` settings of ``--map`` as a mapping from old to new names.

    ``list_usable`` gives the names that can replace an old one, for the error of ``OLD=``. Raises
    :class:`RequestError`.
    """
    names: dict[str, str] = {}
    for setting in settings:
        old, equals, new = (part.strip() for part in setting.partition("="))
        old = old.replace("\\", "/")
        if old and equals and not new and list_usable is not None:
            known = sorted(list_usable(old))
            raise RequestError(
                f"--map {old}= names no file; files that can be used: {', '.join(known) or 'none'}",
                f"--map {old}={known[0]}" if known else "name a folder of models with --models",
            )
        if not (old and equals and new):
            raise RequestError(
                f"--map {setting} is not OLD=NEW",
                "write, for example, --map ltx-2.3-22b-dev.safetensors=my-file.safetensors",
            )
        names[old] = new
    return names


def find_usable_files(old: str, graph: Graph, library: Library, inputs: Iterable[Path]) -> set[str]:
    """Return the names of the files in the folders from which nodes load ``old``."""
    categories = {
        folder
        for node in graph.nodes.values()
        if node.class_type in NODE_TYPES
        for node_input in NODE_TYPES[node.class_type].inputs
        for folder in node_input.folder.split(",")
        if folder and str(node.inputs.get(node_input.name)).replace("\\", "/").endswith(old)
    }
    names = {
        found.path.name
        for parts in library.files.values()
        for found in parts.values()
        if found.category in categories
    }
    for folder in inputs:
        if "input" in categories and folder.is_dir():
            names |= {path.name for path in folder.iterdir() if path.is_file()}
    return names
