"""Frames that the server and its worker exchange over the worker's stdin and stdout.

A frame is two big-endian lengths, then JSON of the first length and raw bytes of the second (a
preview image). Nothing is unpickled.

Frames to the worker: its settings (:meth:`ServerConfig.worker_settings`), then for a graph
``{"do": "run", "id", "kind", "prompt", "outputs", "workflow", "journal"}`` (``journal``: path of
the :class:`OutputJournal`), for a request ``{"do": "run", "id", "kind", "body"}``
(:mod:`latent_ladder.jobs`), ``{"do": "stop", "id"}``, ``{"do": "stop_part", "id", "part"}`` (one
draft) and, last, ``{"do": "end"}``: the end of the stream without it means that the server has
died. Frames from the worker: ``{"event", ...}``, ``{"log", "level", "message"}`` and, last for a
job, ``{"id", "end"}``, with ``result`` for a request.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from pathlib import PurePath
from typing import Any, get_args

from latent_ladder.comfyui.runtime.events import GraphEvent, NodePreview, NodesCached
from latent_ladder.pipeline import events

LENGTHS = struct.Struct(">II")
JobEvent = GraphEvent | events.Event
"""What a worker reports: nodes of a graph, or stages of a request."""
_EVENTS: Mapping[str, Callable[..., JobEvent]] = {
    event_type.__name__: event_type
    for event_type in (*get_args(GraphEvent), *get_args(events.Event))
}


def pack_frame(body: Mapping[str, Any], raw: bytes = b"") -> bytes:
    """One frame."""
    text = json.dumps(body, separators=(",", ":"), default=_to_json_value).encode()
    return LENGTHS.pack(len(text), len(raw)) + text + raw


def _to_json_value(value: object) -> Any:
    """A JSON value for mappings and paths in an event. Raises ``TypeError`` for other types."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, PurePath):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be sent to a client")


def pack_event_frame(event: JobEvent) -> bytes:
    """The frame of an event; its picture, if any, is the raw part."""
    fields: dict[str, Any] = {f.name: getattr(event, f.name) for f in dataclass_fields(event)}
    raw = fields.pop("picture", b"")
    return pack_frame({"event": type(event).__name__, **fields}, raw)


def unpack_event(body: Mapping[str, Any], raw: bytes) -> JobEvent:
    """The event of a frame."""
    fields = {name: value for name, value in body.items() if name != "event"}
    if body["event"] in (NodePreview.__name__, events.Preview.__name__):
        fields["picture"] = raw
    if body["event"] == NodesCached.__name__:
        fields["nodes"] = tuple(fields["nodes"])
    return _EVENTS[body["event"]](**fields)


def pack_log_frame(record: logging.LogRecord, message: str) -> bytes:
    """The frame of a log record; ``message`` is its text with the traceback, if any."""
    return pack_frame({"log": record.name, "level": record.levelno, "message": message})
