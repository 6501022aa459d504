"""The request that travels inside an exported graph, and how it meets edits made there.

An export carries its request and the graph as it was exported. On import the graph is read twice,
as it is and as it was: a field that reads the same both times was not touched and is the request's,
one that reads differently was edited and is the graph's. What a graph cannot say survives, and no
edit is lost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from latent_ladder.comfyui.formats.api import read_api
from latent_ladder.comfyui.graph import Graph
from latent_ladder.errors import LadderError
from latent_ladder.request.model import Request
from latent_ladder.request.stages import stage_kinds

PAYLOAD_KEY = "latent_ladder"
"""Under ``extra`` of a UI file, under ``_meta`` of the saving node of an API file."""
PAYLOAD_VERSION = 1
SIGMA_TOLERANCE = 1e-9
"""Sigmas that differ by less are the same list."""

FIELD_GROUPS: tuple[tuple[str, ...], ...] = (
    ("width", "height"), ("frames", "fps", "duration_s"), ("prompt",), ("negative_prompt",),
    ("audio",), ("audio_in",), ("noise_order",), ("mask_convention",),
)  # fmt: skip
"""Fields of a request that belong together: edited is one if any of them is."""
TABLES = ("models", "video", "decode", "output")
"""Tables of a request whose fields are edited one by one."""
STAGE_FIELD_GROUPS: tuple[tuple[str, ...], ...] = (
    ("sampler", "options"), ("sigmas", "schedule", "denoise"), ("guidance",), ("loras",),
    ("tiles",), ("batch_passes",), ("factor", "axis"), ("adain",), ("file",),
    ("name", "width", "height"),
)  # fmt: skip
"""The same for the fields of stages."""


def make_payload(request: Request, graph: Graph) -> dict[str, Any]:
    """What travels in an export."""
    return {
        PAYLOAD_KEY: {
            "version": PAYLOAD_VERSION,
            "request": request.to_dict(),
            "graph": graph.to_api(),
        }
    }


def embed_in_api_document(graph: Graph, request: Request) -> dict[str, Any]:
    """The API document of an exported graph; the request is in ``_meta`` of its last node."""
    document = graph.to_api()
    last = next(reversed(document))
    document[last]["_meta"] |= make_payload(request, graph)
    return document


def find_payload(document: Any) -> Mapping[str, Any] | None:
    """What an export put into a UI or API document; ``None`` for any other document."""
    if not isinstance(document, Mapping):
        return None
    places: list[Any] = [document.get("extra")]
    places += [one.get("_meta") for one in document.values() if isinstance(one, Mapping)]
    for place in places:
        found = place.get(PAYLOAD_KEY) if isinstance(place, Mapping) else None
        if isinstance(found, Mapping) and found.get("version") == PAYLOAD_VERSION:
            return found
    return None


def payload_request(found: Mapping[str, Any]) -> Request | None:
    """The request of a payload; ``None`` where it is no request any more."""
    try:
        return Request.from_dict(found["request"])
    except (KeyError, TypeError, LadderError):
        return None


def merge_edits(own: Request, before: Request, now: Request) -> Request:
    """``own`` with everything that differs between the readings ``before`` and ``now``.

    Raises :class:`RequestError` where the edits make no possible request.
    """
    mine, old, new = own.to_dict(), before.to_dict(), now.to_dict()
    out = copy.deepcopy(mine)
    for unit in FIELD_GROUPS:
        _merge_group(out, old, new, unit)
    for name in TABLES:
        _merge_table(out, old, new, name)
    _merge_images(out, old, new)
    if stage_kinds(old["stages"]) != stage_kinds(new["stages"]):
        out["stages"] = new["stages"]
    else:
        for i, stage in enumerate(out["stages"]):
            for unit in STAGE_FIELD_GROUPS:
                _merge_group(stage, old["stages"][i], new["stages"][i], unit)
    if _seeds(old) != _seeds(new):
        out["seed"] = new["seed"]
        for stage, edited in zip(out["stages"], new["stages"], strict=True):
            _copy_fields(stage, edited, ("seed",))
    return _keep_edited_sigmas(Request.from_dict(out), now)


def _merge_group(
    out: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], unit: Sequence[str]
) -> None:
    if any(old.get(name) != new.get(name) for name in unit):
        _copy_fields(out, new, unit)


def _merge_table(
    out: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], name: str
) -> None:
    tables = [table.get(name) for table in (out, old, new)]
    if all(isinstance(table, Mapping) for table in tables):
        mine, before, now = (dict(table or {}) for table in tables)
        for field in {*before, *now}:
            _merge_group(mine, before, now, (field,))
        out[name] = mine
    else:
        _merge_group(out, old, new, (name,))


def _merge_images(out: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Picture by picture, where there are as many as before."""
    mine, before, now = (table.get("images", []) for table in (out, old, new))
    if not len(mine) == len(before) == len(now):
        _merge_group(out, old, new, ("images",))
        return
    for image, was, is_now in zip(mine, before, now, strict=True):
        for field in {*was, *is_now}:
            _merge_group(image, was, is_now, (field,))


def _copy_fields(out: dict[str, Any], new: Mapping[str, Any], unit: Iterable[str]) -> None:
    for name in unit:
        out.pop(name, None)
        if name in new:
            out[name] = copy.deepcopy(new[name])


def _seeds(table: Mapping[str, Any]) -> list[Any]:
    return [table.get("seed"), *(stage.get("seed") for stage in table["stages"])]


def _keep_edited_sigmas(request: Request, graph: Request) -> Request:
    """A fixed list in the graph that a schedule would have moved with an edited size stays."""
    table, read = request.to_dict(), graph.to_dict()
    moved = False
    for i, _ in request.sampling_stages():
        ours, theirs = request.sigmas(i), graph.sigmas(i)
        same = len(ours) == len(theirs) and all(
            abs(a - b) < SIGMA_TOLERANCE for a, b in zip(ours, theirs, strict=True)
        )
        if not same:
            _copy_fields(table["stages"][i], read["stages"][i], ("sigmas", "schedule", "denoise"))
            moved = True
    return Request.from_dict(table) if moved else request


def payload_graph(found: Mapping[str, Any]) -> Graph | None:
    """The graph of a payload as it was exported; ``None`` where it is none any more."""
    written = found.get("graph")
    try:
        return read_api(written) if isinstance(written, Mapping) else None
    except LadderError:
        return None
