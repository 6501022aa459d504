"""Runs of the store in the form of ``/ladder/runs``; built from their records alone."""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import quote

from latent_ladder.drafts.draft_run_files import GRID, SHEET, clip_name
from latent_ladder.errors import LadderError
from latent_ladder.request.model import Request
from latent_ladder.storage.run_records import RunRecord
from latent_ladder.sweeps.report_files import CSV, JSON, PAGE, POINTS

KINDS = ("make", "drafts", "refine", "sweep", "upscale", "sound", "workflow")
_RECORD_KINDS = {"draft": "drafts", "sweep": "sweep", "workflow": "workflow"}
_COMMAND = re.compile(r"ladder (\w+)(?: '?([0-9a-hjkmnp-tv-z]{8})(?::(\d+))?'?(?=\s|$))?")
_PICTURES = (".poster.png", ".sheet.png", ".preview.png", ".compare.mp4")
"""Ends of the names of files that a run writes next to its clip."""
_PLAYED = {".mp4": ("auto", "h264"), ".webm": ("auto", "av1")}
"""Codecs that browsers play, by container."""
_IMAGES = (".png", ".jpg", ".webp", ".gif", ".avif")


def kind_of(record: RunRecord) -> str:
    """The kind of a run, for a whole clip by the command that made it."""
    if record.kind in _RECORD_KINDS:
        return _RECORD_KINDS[record.kind]
    found = _COMMAND.match(record.command)
    return found[1] if found is not None and found[1] in KINDS else "make"


def parent_of(record: RunRecord) -> str | None:
    """The run that a refined clip or a sweep started from, where its command names it."""
    found = _COMMAND.match(record.command)
    is_child = found is not None and found[1] in ("refine", "sweep")
    return found[2] if found is not None and is_child else None


def is_shown(record: RunRecord) -> bool:
    """True for a run with something to see."""
    if record.drafts:
        return any(draft.status == "done" for draft in record.drafts)
    return record.status == "done" and record.output is not None


def build_document(record: RunRecord) -> dict[str, Any]:
    """The document of a run, with paths in place of addresses (:func:`add_addresses`)."""
    request = _request(record)
    size = (0, 0) if request is None else _size(record, request)
    fps = Fraction(24) if request is None else request.fps
    frames = 0 if request is None else request.frames
    prompt = str(record.request.get("prompt", ""))
    files = dict(_files(record))
    return {
        "id": record.id,
        "kind": kind_of(record),
        "status": record.status,
        "created": record.created,
        "title": prompt[:120] or (Path(record.output).name if record.output else record.id),
        "prompt": prompt,
        "preset": str(record.request.get("preset", "")) or None,
        "seed": record.request.get("seed"),
        "width": size[0],
        "height": size[1],
        "frames": frames,
        "fps": float(fps),
        "seconds": round(frames / float(fps), 3),
        "clips": list(_clips(record)),
        "files": {name: str(path) for name, path in files.items()},
        "codec": None if request is None else _codec(request),
        "parent": parent_of(record),
        "folder": str(_folder(record)) if _folder(record) else None,
    }


def _request(record: RunRecord) -> Request | None:
    """The request of a run; ``None`` for a graph, and for one of another version."""
    if "stages" not in record.request:
        return None
    try:
        return Request.from_dict(record.request)
    except LadderError:
        return None


def _size(record: RunRecord, request: Request) -> tuple[int, int]:
    if record.kind == "draft":
        return request.resolutions[0].width, request.resolutions[0].height
    width, height = request.resolved.final_size
    return width, height


def _codec(request: Request) -> str:
    """The codec of the clip, with what makes it one that browsers do not play."""
    words: list[str] = [request.output.codec]
    if request.output.pix_fmt not in (None, "yuv420p"):
        words.append(str(request.output.pix_fmt))
    if request.hdr != "off":
        words.append("HDR")
    return " ".join(words)


def _folder(record: RunRecord) -> Path | None:
    """The folder of a session of drafts or of a sweep."""
    return Path(record.output) if record.output and record.drafts else None


def _clips(record: RunRecord) -> Iterator[dict[str, Any]]:
    """The clips of a run, with their files where it wrote one for each."""
    if not record.drafts:
        prompt, seed = record.request.get("prompt", ""), record.request.get("seed")
        output = record.output
        yield _clip(1, str(prompt), seed, output, dict(record.metrics or {}), "done", None)
        return
    folder, points = _folder(record), _point_clips(record)
    for draft in record.drafts:
        path = None if folder is None else folder / clip_name(draft.number)
        if record.kind == "sweep":
            name = points.get(draft.number)
            path = folder / POINTS / name if folder is not None and name else None
        text = None if path is None else str(path)
        metrics = dict(draft.metrics)
        clip = _clip(
            draft.number, draft.prompt, draft.seed, text, metrics, draft.status, draft.error
        )
        yield {**clip, "sets": list(draft.sets)}


def _clip(
    number: int,
    prompt: str,
    seed: Any,
    path: str | None,
    metrics: dict[str, Any],
    state: str,
    error: str | None,
) -> dict[str, Any]:
    return {
        "number": number,
        "prompt": prompt,
        "seed": seed,
        "path": path,
        "state": state,
        "error": error,
        "flags": list(metrics.get("flags", ())),
        "metrics": metrics or None,
    }


def _point_clips(record: RunRecord) -> dict[int, str]:
    """Number -> file name of the small clips of a sweep's points."""
    found = sweep_file(record.output) if record.kind == "sweep" else None
    points = found.get("points", ()) if found else ()
    return {int(p["number"]): str(p["clip"]) for p in points if p.get("clip")}


def sweep_file(folder: str | None) -> dict[str, Any] | None:
    """``sweep.json`` of a sweep's folder; ``None`` if it is missing or damaged."""
    if folder is None:
        return None
    try:
        body = json.loads((Path(folder) / JSON).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def _files(record: RunRecord) -> Iterator[tuple[str, Path]]:
    """Name and path of the files of a run, whether they are still there or not."""
    folder = _folder(record)
    if folder is not None:
        names = (SHEET, GRID) if record.kind == "draft" else (PAGE, JSON, CSV)
        for name in names:
            yield name, folder / name
    elif record.output:
        path = Path(record.output)
        yield path.name, path
        for end in _PICTURES:
            other = path.with_name(f"{path.stem}{end}")
            yield other.name, other


def add_addresses(document: Mapping[str, Any], starred: set[int]) -> dict[str, Any]:
    """The document as it is sent: addresses in place of paths, files that are gone left out.

    ``starred`` are numbers of clips; 0 is the run.
    """
    run = document["id"]
    body = {name: value for name, value in document.items() if name not in ("files", "folder")}
    body["clips"] = [_with_urls(clip, document, starred) for clip in document["clips"]]
    described = (
        describe_file(run, name, Path(path), document["codec"])
        for name, path in document["files"].items()
    )
    body["outputs"] = [found for found in described if found is not None]
    body["starred"] = 0 in starred
    body["missing"] = not body["outputs"] and all(c["url"] is None for c in body["clips"])
    body["can_refine"] = document["kind"] in ("make", "drafts", "refine") and run is not None
    return body


def _with_urls(
    clip: Mapping[str, Any], document: Mapping[str, Any], starred: set[int]
) -> dict[str, Any]:
    body = {name: value for name, value in clip.items() if name != "path"}
    path = None if clip["path"] is None else Path(clip["path"])
    there = path is not None and exists(path)
    place = f"/ladder/runs/{document['id']}/clips/{clip['number']}"
    plays = there and path is not None and is_playable(path, _clip_codec(document))
    return body | {
        "url": f"{place}/video" if there else None,
        "proxy_url": f"{place}/video?proxy=1" if there and not plays else None,
        "thumbnail_url": f"{place}/thumbnail" if there else None,
        "playable": plays,
        "starred": clip["number"] in starred,
    }


def _clip_codec(document: Mapping[str, Any]) -> str | None:
    """The codec of the clips of a run; those of drafts and points are always H.264."""
    return "h264" if document["kind"] in ("drafts", "sweep") else document["codec"]


def describe_file(run: str, name: str, path: Path, codec: str | None) -> dict[str, Any] | None:
    """One file of a run; ``None`` if it is gone."""
    if not exists(path):
        return None
    url = f"/ladder/runs/{run}/files/{quote(name, safe='')}"
    plays = is_playable(path, codec)
    is_video = path.suffix.lower() in (".mp4", ".mov", ".mkv", ".webm", ".avi") or "%" in name
    return {
        "name": name,
        "url": url,
        "mime": mimetypes.guess_type(name)[0] or "application/octet-stream",
        "bytes": None if "%" in name else path.stat().st_size,
        "playable": plays,
        "proxy_url": f"{url}?proxy=1" if is_video and not plays else None,
    }


def exists(path: Path) -> bool:
    """True for a file, and for the pattern of numbered pictures if the first one is there."""
    if "%" not in path.name:
        return path.is_file()
    return path.parent.is_dir() and next(path.parent.glob(f"*{path.suffix}"), None) is not None


def is_playable(path: Path, codec: str | None) -> bool:
    """True for a file that every browser shows or plays."""
    suffix = path.suffix.lower()
    if "%" in path.name:
        return False
    if suffix in _IMAGES or suffix in (".wav", ".mp3"):
        return True
    return suffix in _PLAYED and (codec is None or codec in _PLAYED[suffix])
