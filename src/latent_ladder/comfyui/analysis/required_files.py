"""The files that a graph wants: models by name and folder, pictures and clips that were uploaded.

Each is here, or somewhere else than ComfyUI would look, or something other than it should be, or
missing; then it is said where it is published.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from latent_ladder.checkpoints.catalog import FILES
from latent_ladder.checkpoints.misplaced import allowed_categories
from latent_ladder.checkpoints.scan import Found, Library, found_in
from latent_ladder.comfyui.analysis.validate import (
    map_file_name,
    split_folder_tag,
    unsafe_path_reason,
)
from latent_ladder.comfyui.graph import Graph, Link, ModelFile, Node
from latent_ladder.comfyui.node_defs import node_type
from latent_ladder.errors import CheckpointError, WorkflowError

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
    "text_encoders": frozenset({"text_encoder", "text_projection", "connectors"}),
    "vae": frozenset({"video_vae", "audio_vae", "vocoder", "preview_vae"}),
}
"""What a file of a folder must hold, at least one of these."""


@dataclass(frozen=True)
class RequiredFile:
    """A file that some nodes name.

    ``used`` is the name looked for instead (``--map``, or a Windows path with ``/``). ``state`` is
    ``here``, ``elsewhere`` (usable, but not where ComfyUI looks), ``wrong`` or ``missing``;
    ``note`` says more, ``url`` where it is published.
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
        """Whether a run can use it."""
        return self.state in (FOUND, MISPLACED)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
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
    needed: Iterable[str],
    library: Library,
    inputs: Sequence[Path] = (),
    names: Mapping[str, str] | None = None,
) -> tuple[RequiredFile, ...]:
    """The files that the nodes ``needed`` name, each once, in the order of the graph.

    ``inputs`` are the folders of uploaded files, ``names`` replaces names that the graph holds.
    """
    found: list[RequiredFile] = []
    chosen = set(needed)
    for node in graph.nodes.values():
        for one in _named_files(node) if node.id in chosen else ():
            place = next(
                (i for i, other in enumerate(found) if _is_same_file(one, other)), len(found)
            )
            before = found[place : place + 1] or [replace(one, nodes=())]
            narrow = min(one.folder, before[0].folder, key=len)
            merged = replace(before[0], nodes=(*before[0].nodes, node.id), folder=narrow)
            found[place : place + 1] = [merged]
    return tuple(_locate(one, graph, library, inputs, names or {}) for one in found)


def _is_same_file(one: RequiredFile, other: RequiredFile) -> bool:
    """Whether two inputs name the same file: by name, and a folder that both may look in."""
    folders = set(one.folder.split(",")) & set(other.folder.split(","))
    return one.name == other.name and bool(folders)


def _named_files(node: Node) -> Iterator[RequiredFile]:
    kind = node_type(node.class_type, node.pack)
    for one in kind.inputs:
        name = node.inputs.get(one.name)
        if one.folder and isinstance(name, str) and name and not isinstance(name, Link):
            yield RequiredFile(name, name, one.folder, (node.id,), one.name)


def _locate(
    one: RequiredFile,
    graph: Graph,
    library: Library,
    inputs: Sequence[Path],
    names: Mapping[str, str],
) -> RequiredFile:
    if one.folder == "input":
        return _locate_upload(one, inputs, names)
    if wrong := unsafe_path_reason(one.name):
        return replace(one, state=WRONG, note=f"its name {wrong}")
    one = replace(one, used=map_file_name(one.name, names), url=_download_url(one, graph.models))
    try:
        parts = _components_by_name(library, one.used) or _components_by_path(Path(one.used))
    except CheckpointError as error:
        return replace(one, state=WRONG, path=Path(one.used), note=error.message)
    if not parts:
        return _explain_missing(one, library)
    found = next(iter(parts.values()))
    wanted = {role for folder in one.folder.split(",") for role in _FOLDER_ROLES.get(folder, ())}
    if not wanted & parts.keys() and not (one.folder == "vae,checkpoints" and "audio_vae" in parts):
        held = " and ".join(sorted(role.replace("_", " ") for role in parts))
        return replace(one, state=WRONG, path=found.path, note=f"it holds {held}")
    allowed = allowed_categories(parts, found.component.file.container)
    if found.embedded or found.category is None or found.category in (*allowed, one.folder):
        return replace(one, state=FOUND, path=found.path)
    note = f"it lies in {found.category}/, where ComfyUI does not see it"
    return replace(one, state=MISPLACED, path=found.path, note=note)


def _components_by_name(library: Library, name: str) -> Mapping[str, Found]:
    """What the file of a name holds: the name as a whole, or its last part anywhere."""
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


def _components_by_path(path: Path) -> Mapping[str, Found]:
    """What a file outside of all model folders holds; ``--map`` may name any."""
    if not path.is_file():
        return {}
    return found_in(path, path.resolve().parent)


def _explain_missing(one: RequiredFile, library: Library) -> RequiredFile:
    last = one.used.rpartition("/")[2]
    for path, reason in (*library.unreadable, *library.ignored):
        if path.name == last:
            return replace(one, state=WRONG, path=path, note=reason)
    return one


def _locate_upload(
    one: RequiredFile, inputs: Sequence[Path], names: Mapping[str, str]
) -> RequiredFile:
    plain, _ = split_folder_tag(one.name)
    if wrong := unsafe_path_reason(plain):
        return replace(one, state=WRONG, note=f"its name {wrong}")
    used = names.get(one.name) or names.get(plain)
    places = [Path(used)] if used else [folder / plain.replace("\\", "/") for folder in inputs]
    path = next((place for place in places if place.is_file()), None)
    return replace(one, used=used or plain, state=FOUND if path else MISSING, path=path)


def _download_url(one: RequiredFile, models: Iterable[ModelFile]) -> str:
    """Where a file is published: as the workflow says, or as is known."""
    last = one.name.replace("\\", "/").rpartition("/")[2]
    for model in models:
        if model.name.rpartition("/")[2] == last and model.url.startswith(("https://", "http://")):
            return model.url
    for known in FILES:
        if known.name == last:
            return f"https://huggingface.co/{known.repository}/resolve/main/{known.path}"
    return ""


def default_input_folder(source: str) -> Path:
    """The folder of uploads: ``./input`` where it is there, else that of the workflow itself."""
    usual = Path("input")
    return usual if usual.is_dir() or source == "-" else Path(source).absolute().parent


def parse_file_name_map(settings: Iterable[str]) -> dict[str, str]:
    """``OLD=NEW`` of each ``--map``, by the old name. Raises :class:`WorkflowError`."""
    names: dict[str, str] = {}
    for setting in settings:
        old, equals, new = setting.partition("=")
        if not equals or not old.strip() or not new.strip():
            raise WorkflowError(
                f"--map {setting} is not OLD=NEW",
                "for example --map ltx-2.3-22b-dev.safetensors=my-file.safetensors",
            )
        names[old.strip().replace("\\", "/")] = new.strip()
    return names
