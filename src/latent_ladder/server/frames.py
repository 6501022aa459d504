"""How the server and its worker talk: frames over the worker's stdin and stdout.

A frame is two big-endian lengths, that many bytes of JSON and that many raw bytes (a preview).
Both ends are this package, started by each other; nothing is ever unpickled.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from latent_ladder.workflow.events import (
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
    text = json.dumps(body, separators=(",", ":")).encode()
    return LENGTHS.pack(len(text), len(raw)) + text + raw


def pack_event(event: GraphEvent) -> bytes:
    """The frame of an event; a picture travels raw."""
    fields = asdict(event)
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
