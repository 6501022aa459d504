"""How the server and its worker talk: frames over the worker's stdin and stdout.

A frame is two big-endian lengths, that many bytes of JSON and that many raw bytes (a preview).
Both ends are this package, started by each other; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from pathlib import PurePath
from typing import Any

from latent_ladder.comfyui.runtime.events import (
    GraphEvent,
    NodeDone,
    NodePreview,
    NodeProgress,
    NodesCached,
    NodeStarted,
    NodeWarned,
)

LENGTHS = struct.Struct(">II")
_EVENTS: Mapping[str, Callable[..., GraphEvent]] = {
    kind.__name__: kind
    for kind in (NodesCached, NodeStarted, NodeProgress, NodePreview, NodeDone, NodeWarned)
}


def pack(body: Mapping[str, Any], raw: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(body, separators=(",", ":"), default=_plain).encode()
    return LENGTHS.pack(len(text), len(raw)) + text + raw


def _plain(value: object) -> Any:
    """What of an event's values JSON does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be told to a client")


def pack_event(event: GraphEvent) -> bytes:
    """The frame of an event; a picture travels raw."""
    fields: dict[str, Any] = {one.name: getattr(event, one.name) for one in dataclass_fields(event)}
    raw = fields.pop("picture", b"")
    return pack({"event": type(event).__name__, **fields}, raw)


def event_of(body: Mapping[str, Any], raw: bytes) -> GraphEvent:
    """The event in a frame."""
    fields = {name: value for name, value in body.items() if name != "event"}
    if body["event"] == NodePreview.__name__:
        fields["picture"] = raw
    if body["event"] == NodesCached.__name__:
        fields["nodes"] = tuple(fields["nodes"])
    return _EVENTS[body["event"]](**fields)
