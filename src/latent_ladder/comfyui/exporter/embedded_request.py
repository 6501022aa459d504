"""The request embedded in an exported graph, and its merge with edits made in ComfyUI.

An export contains its request and the graph as exported. On import, a field is taken from the
embedded request if the exported and the current graph agree on it; otherwise it was edited in
ComfyUI, and the current graph decides. So fields that no node can express are preserved, and no
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
from latent_ladder.request.stage_rules import stage_kinds

PAYLOAD_KEY = "latent_ladder"
"""The key of the payload: in ``extra`` of a UI file, in ``_meta`` of the saving node otherwise."""
PAYLOAD_VERSION = 1
SIGMA_TOLERANCE = 1e-9
"""Largest difference of sigmas that count as equal."""

FIELD_GROUPS: tuple[tuple[str, ...], ...] = (
    ("width", "height"), ("frames", "fps", "duration_s"), ("prompt",), ("negative_prompt",),
    ("audio",), ("audio_in",), ("noise_order",), ("mask_convention",),
    ("model_convention",), ("image_resize",), ("image_crf",), ("hdr",),
)  # fmt: skip
"""Groups of request fields that are merged together."""
TABLES = ("models", "video", "decode", "output")
"""Tables of a request whose fields are merged one by one."""
STAGE_FIELD_GROUPS: tuple[tuple[str, ...], ...] = (
    ("sampler", "options"), ("sigmas", "schedule", "denoise"), ("guidance",), ("loras",),
    ("tiles",), ("batch_passes",), ("factor", "axis"), ("adain",), ("file",),
    ("name", "width", "height"),
)  # fmt: skip
"""Groups of stage fields that are merged together."""


def make_payload(request: Request, graph: Graph) -> dict[str, Any]:
    """Return the payload of an export: the request and the graph."""
    return {
        PAYLOAD_KEY: {
            "version": PAYLOAD_VERSION,
            "request": request.to_dict(),
            "graph": graph.to_api(),
        }
    }


def embed_in_api_document(graph: Graph, request: Request) -> dict[str, Any]:
    """Return the API document of an exported graph, with the payload in its last node."""
    document = graph.to_api()
    last = next(reversed(document))
    document[last]["_meta"] |= make_payload(request, graph)
    return document


def find_payload(document: Any) -> Mapping[str, Any] | None:
    """Return the payload of a UI or API document, or ``None`` if it has none."""
    if not isinstance(document, Mapping):
        return None
    containers: list[Any] = [document.get("extra")]
    containers += [entry.get("_meta") for entry in document.values() if isinstance(entry, Mapping)]
    for container in containers:
        payload = container.get(PAYLOAD_KEY) if isinstance(container, Mapping) else None
        if isinstance(payload, Mapping) and payload.get("version") == PAYLOAD_VERSION:
            return payload
    return None


def payload_request(payload: Mapping[str, Any]) -> Request | None:
    """Return the request of a payload, or ``None`` if it is invalid."""
    try:
        return Request.from_dict(payload["request"])
    except (KeyError, TypeError, LadderError):
        return None


def merge_edits(embedded: Request, before: Request, after: Request) -> Request:
    """Return the embedded request with all fields that differ between ``before`` and ``after``.

    ``before`` and ``after`` are the imports of the exported and of the current graph. Raises
    :class:`RequestError` if the edits do not give a valid request.
    """
    old, new = before.to_dict(), after.to_dict()
    out = copy.deepcopy(embedded.to_dict())
    for group in FIELD_GROUPS:
        _merge_group(out, old, new, group)
    for name in TABLES:
        _merge_table(out, old, new, name)
    _merge_images(out, old, new)
    if stage_kinds(old["stages"]) != stage_kinds(new["stages"]):
        out["stages"] = new["stages"]
    else:
        for i, stage in enumerate(out["stages"]):
            for group in STAGE_FIELD_GROUPS:
                _merge_group(stage, old["stages"][i], new["stages"][i], group)
    if _seeds(old) != _seeds(new):
        out["seed"] = new["seed"]
        for stage, edited in zip(out["stages"], new["stages"], strict=True):
            _copy_fields(stage, edited, ("seed",))
    return _keep_edited_sigmas(Request.from_dict(out), after)


def _merge_group(
    out: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], group: Sequence[str]
) -> None:
    if any(old.get(name) != new.get(name) for name in group):
        _copy_fields(out, new, group)


def _merge_table(
    out: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any], name: str
) -> None:
    tables = [table.get(name) for table in (out, old, new)]
    if all(isinstance(table, Mapping) for table in tables):
        merged, before, after = (dict(table or {}) for table in tables)
        for field in {*before, *after}:
            _merge_group(merged, before, after, (field,))
        out[name] = merged
    else:
        _merge_group(out, old, new, (name,))


def _merge_images(out: dict[str, Any], old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Merge image by image if their number is unchanged."""
    merged, before, after = (table.get("images", []) for table in (out, old, new))
    if not len(merged) == len(before) == len(after):
        _merge_group(out, old, new, ("images",))
        return
    for image, image_before, image_after in zip(merged, before, after, strict=True):
        for field in {*image_before, *image_after}:
            _merge_group(image, image_before, image_after, (field,))


def _copy_fields(out: dict[str, Any], new: Mapping[str, Any], group: Iterable[str]) -> None:
    for name in group:
        out.pop(name, None)
        if name in new:
            out[name] = copy.deepcopy(new[name])


def _seeds(table: Mapping[str, Any]) -> list[Any]:
    return [table.get("seed"), *(stage.get("seed") for stage in table["stages"])]


def _keep_edited_sigmas(request: Request, graph: Request) -> Request:
    """Return the request with the sigmas of the graph wherever its own differ.

    A schedule of the request may depend on a size that was edited, while the graph has a fixed
    list of sigmas.
    """
    table, edited = request.to_dict(), graph.to_dict()
    changed = False
    for i, _ in request.sampling_stages():
        own, wanted = request.resolved.stages[i].sigmas, graph.resolved.stages[i].sigmas
        equal = len(own) == len(wanted) and all(
            abs(a - b) < SIGMA_TOLERANCE for a, b in zip(own, wanted, strict=True)
        )
        if not equal:
            _copy_fields(table["stages"][i], edited["stages"][i], ("sigmas", "schedule", "denoise"))
            changed = True
    return Request.from_dict(table) if changed else request


def payload_graph(payload: Mapping[str, Any]) -> Graph | None:
    """Return the graph of a payload as it was exported, or ``None`` if it is invalid."""
    document = payload.get("graph")
    try:
        return read_api(document) if isinstance(document, Mapping) else None
    except LadderError:
        return None
