"""The gallery: runs of the store with their stars, files, provenance and deletion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from latent_ladder.errors import StoreError
from latent_ladder.server.ladder_api.api_errors import conflict, not_found
from latent_ladder.server.ladder_api.run_documents import (
    add_addresses,
    describe_file,
    exists,
    sweep_file,
)
from latent_ladder.server.ladder_api.run_index import RunFilter, RunIndex, stage_rows
from latent_ladder.storage.artifact_store import Store
from latent_ladder.storage.atomic_write import convert_write_errors, write_atomically
from latent_ladder.storage.file_lock import lock_file
from latent_ladder.storage.run_records import RunRecord

Stars = dict[str, list[int]]
"""Numbers of starred clips by run; 0 is the run itself."""


class Gallery:
    """Runs of one store. Its methods read files: call them in a thread."""

    def __init__(self, store: Store, own: Path, outputs: Path) -> None:
        """``own`` is the studio's folder, ``outputs`` the folder of the clips it makes."""
        self._store, self._outputs = store, outputs
        self._stars_file = own / "stars.json"
        self.index = RunIndex(store, own / "gallery.sqlite3")

    # --- lists and documents ------------------------------------------------------------------

    def page(self, wanted: RunFilter, limit: int, before: str | None) -> dict[str, Any]:
        """A page of runs, the newest first; ``next`` is the cursor of the following page."""
        stars = self._stars()
        documents, total = self.index.page(wanted, limit, before)
        runs = [add_addresses(each, set(stars.get(each["id"], ()))) for each in documents]
        more = len(documents) == limit
        return {"runs": runs, "total": total, "next": documents[-1]["id"] if more else None}

    def starred_runs(self) -> list[str]:
        """The runs with a star on themselves or on a clip."""
        return [run for run, numbers in self._stars().items() if numbers]

    def find(self, run_id: str) -> dict[str, Any]:
        """The document of one run with request, stages and warnings. Raises :class:`ApiError`."""
        document, record = self.document(run_id), self.record(run_id)
        body = add_addresses(document, set(self._stars().get(run_id, ())))
        body["request"] = dict(record.request)
        body["command"] = record.command
        body["error"] = record.error
        body["warnings"] = list(record.warnings)
        body["metrics"] = record.metrics
        body["stages"] = list(self._stages(record))
        base = next((s.key for s in record.stages if s.stage == "base"), None)
        if body["parent"] is None and base is not None and document["kind"] == "refine":
            body["parent"] = self.index.drafts_of(run_id, base)
        return body

    def document(self, run_id: str) -> dict[str, Any]:
        """The document with paths. Raises :class:`ApiError` if there is no such run."""
        found = self.index.find(run_id)
        if found is None:
            raise not_found(f"run {run_id[:40]!r}", "GET /ladder/runs lists them")
        return found

    def record(self, run_id: str) -> RunRecord:
        """The record of a run. Raises :class:`ApiError`."""
        found = self._store.runs.read(run_id)
        if not isinstance(found, RunRecord):
            raise not_found(f"readable record of run {run_id[:40]!r}")
        return found

    def _stages(self, record: RunRecord) -> Iterator[dict[str, Any]]:
        """The stages with what is known from their artefacts: kind, inputs, checkpoints."""
        for row in stage_rows(record):
            meta: Mapping[str, Any] = {}
            stored = False
            with suppress(ValueError, StoreError):
                stored = self._store.bytes_of(str(row["key"])) > 0
                meta = self._store.meta_of(str(row["key"])) if stored else {}
            yield {
                **row,
                "kind": meta.get("stage"),
                "stored": stored,
                "inputs": list(meta.get("inputs", ())),
                "checkpoints": list(meta.get("checkpoints", ())),
                "settings": {
                    name: value
                    for name, value in meta.items()
                    if name not in ("key", "stage", "inputs", "checkpoints")
                },
            }

    # --- files --------------------------------------------------------------------------------

    def clip(self, run_id: str, number: int) -> Path:
        """The file of one clip. Raises :class:`ApiError` if there is none, or it is gone."""
        document = self.document(run_id)
        clip = next((c for c in document["clips"] if c["number"] == number), None)
        if clip is None or clip["path"] is None:
            raise not_found(f"clip {number} of run {run_id}")
        return _existing(Path(clip["path"]))

    def file(self, run_id: str, name: str) -> Path:
        """One file of a run by its name. Raises :class:`ApiError`."""
        document = self.document(run_id)
        path = document["files"].get(name)
        paths = [Path(c["path"]) for c in document["clips"] if c["path"] is not None]
        found = Path(path) if path else next((p for p in paths if p.name == name), None)
        if found is None:
            raise not_found(f"file {name[:80]!r} of run {run_id}")
        return _existing(found)

    def describe_output(self, run_id: str, path: str) -> dict[str, Any] | None:
        """One output of a job as a file of its run; ``None`` if it is not one, or is gone."""
        found = self.index.find(run_id)
        if found is None:
            return None
        names = {p: name for name, p in found["files"].items()}
        clips = {c["path"]: Path(c["path"]).name for c in found["clips"] if c["path"]}
        name = (names | clips).get(path)
        codec = "h264" if found["kind"] in ("drafts", "sweep") else found["codec"]
        return None if name is None else describe_file(run_id, name, Path(path), codec)

    # --- sweeps -------------------------------------------------------------------------------

    def sweep(self, run_id: str) -> dict[str, Any]:
        """The report of a sweep. Raises :class:`ApiError` if the run is none, or it is gone."""
        document = self.document(run_id)
        body = sweep_file(document["folder"]) if document["kind"] == "sweep" else None
        if body is None:
            raise not_found(f"report of a sweep for run {run_id}")
        choice = body["choice"]
        clips = {clip["number"]: clip for clip in add_addresses(document, set())["clips"]}
        return {
            "axes": body["axes"],
            "points": [
                {
                    "number": point["number"],
                    "settings": point["settings"],
                    "metrics": _metrics(point),
                    "video_url": clips.get(point["number"], {}).get("url"),
                    "thumbnail_url": clips.get(point["number"], {}).get("thumbnail_url"),
                    "error": point["error"],
                    "recommended": point["number"] == choice["point"],
                }
                for point in body["points"]
            ],
            "recommendation": {
                "point": choice["point"], "why": choice["why"], "outcome": choice["outcome"]
            },
            "noise": {"detail_db": choice["noise_db"], "least_kept": choice["least_kept"]},
        }  # fmt: skip

    # --- stars --------------------------------------------------------------------------------

    def star(self, run_id: str, clip: int, starred: bool) -> None:
        """Set or remove the star of a clip (0: of the run). Raises :class:`ApiError`."""
        document = self.document(run_id)
        if clip and clip not in [c["number"] for c in document["clips"]]:
            raise not_found(f"clip {clip} of run {run_id}")
        with lock_file(self._stars_file.with_suffix(".lock")):
            stars = self._stars()
            numbers = set(stars.get(run_id, ()))
            numbers = numbers | {clip} if starred else numbers - {clip}
            stars[run_id] = sorted(numbers)
            self._save_stars({run: found for run, found in stars.items() if found})

    def _stars(self) -> Stars:
        try:
            stars = json.loads(self._stars_file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return stars if isinstance(stars, dict) else {}

    def _save_stars(self, stars: Stars) -> None:
        data = json.dumps(stars).encode()
        with convert_write_errors(StoreError, "the stars", self._stars_file.parent, len(data)):
            self._stars_file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._stars_file, data)

    # --- deletion -----------------------------------------------------------------------------

    def deletion(self, run_id: str) -> dict[str, Any]:
        """Files, artefacts and bytes that deleting a run removes. Raises :class:`ApiError`."""
        self.document(run_id)
        keys = [] if self.index.has_running() else self.index.keys_only_of(run_id)
        sizes = {key: self._store.bytes_of(key) for key in keys}
        own, others = self._output_files(run_id)
        return {
            "frees_bytes": sum(sizes.values()) + sum(_bytes_of(path) for path in own),
            "artifacts": sum(1 for size in sizes.values() if size),
            "files": [path.name for path in own],
            "kept_files": [str(path) for path in others],
            "kept_by": self.index.runs_that_share(run_id)[:50],
        }

    def delete(self, run_id: str) -> dict[str, Any]:
        """Delete a run, its files in the output folder, and artefacts that no other run uses.

        While a run is under way its artefacts stay, as for ``ladder runs prune``. Raises
        :class:`ApiError`.
        """
        if self.document(run_id)["status"] == "running":
            raise conflict(f"run {run_id} is under way", "cancel its job first")
        plan = self.deletion(run_id)
        keys = [] if self.index.has_running() else self.index.keys_only_of(run_id)
        own, _ = self._output_files(run_id)
        self._store.runs.remove(run_id)
        for key in keys:
            self._store.remove(key)
        for path in own:
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return plan

    def _output_files(self, run_id: str) -> tuple[list[Path], list[Path]]:
        """The files of a run in the output folder, which are deleted, and those elsewhere."""
        document = self.document(run_id)
        if document["folder"]:
            paths = [Path(document["folder"])]
        else:
            found = [Path(path) for path in document["files"].values() if exists(Path(path))]
            paths = [path.parent if "%" in path.name else path for path in found]
        root = self._outputs.resolve()
        own = [path for path in paths if root in path.resolve().parents]
        return own, [path for path in paths if path not in own]

    def close(self) -> None:
        """Close the index."""
        self.index.close()


def _metrics(point: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a point, of the clip and against its draft."""
    return {**point["metrics"], **(point["comparison"] or {}), "seconds": point["seconds"]}


def _existing(path: Path) -> Path:
    if not exists(path):
        raise not_found(f"file {path.name} any more", "it was moved or deleted; make it again")
    return path


def _bytes_of(path: Path) -> int:
    paths = path.rglob("*") if path.is_dir() else [path]
    total = 0
    for each in paths:
        with suppress(OSError):
            total += each.stat().st_size if each.is_file() else 0
    return total
