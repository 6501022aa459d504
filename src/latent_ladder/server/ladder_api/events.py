"""``/ladder/events``: the WebSocket that tells pages about jobs, previews and the gallery.

A page that connects gets the whole state first. What a slow page has not read yet is replaced by
newer messages about the same thing, so its queue stays small.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from aiohttp import WSMsgType, web

from latent_ladder.comfyui.runtime.events import NodePreview, NodeProgress, NodeStarted, NodeWarned
from latent_ladder.pipeline import events
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.ladder_api.job_documents import JobDocuments
from latent_ladder.server.worker_protocol import JobEvent

MAX_PAGES = 100
PING_S = 30.0
BATCH_S = 0.05
"""Time in which messages about the same thing are merged."""

Key = tuple[str, ...]


class Page:
    """One open socket and the messages that it has not got yet."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._waiting: dict[Key, Mapping[str, Any]] = {}
        self._wake = asyncio.Event()

    def put(self, key: Key, message: Mapping[str, Any]) -> None:
        """Queue a message in place of an older one with the same key."""
        self._waiting.pop(key, None)
        self._waiting[key] = message
        self._wake.set()

    async def send(self) -> None:
        """Send messages until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch, self._waiting = self._waiting, {}
            for message in batch.values():
                await self._socket.send_str(json.dumps(message))
            await asyncio.sleep(BATCH_S)


class EventHub:
    """All open pages. For one event loop."""

    def __init__(self, jobs: JobLoop, documents: JobDocuments) -> None:
        self._jobs, self._documents = jobs, documents
        self._pages: dict[Page, web.WebSocketResponse] = {}
        self._warnings = 0
        jobs.listen(self.on_change)

    def on_change(self, job_id: str, event: JobEvent | None) -> None:
        """Tell all pages about a change of a job, or of the queue (``""``)."""
        if not self._pages:
            return
        if job_id and event is not None:
            self._on_event(job_id, event)
        elif job_id:
            self._send_job(job_id)
            self._send_queue()
            if self._documents.find_ended(job_id):
                self.runs_changed()
        else:
            self._send_queue()
            for document in self._documents.queued():
                self._send(("job", document["id"]), {"type": "job", "job": document})

    def runs_changed(self) -> None:
        """Tell all pages that the gallery changed."""
        self._send(("runs",), {"type": "runs"})

    def _on_event(self, job_id: str, event: JobEvent) -> None:
        match event:
            case events.StepDone() | NodeProgress():
                self._send_progress(job_id)
            case events.StageStarted() | NodeStarted():
                self._send_progress(job_id)
            case events.Preview() | NodePreview():
                self._send_preview(job_id)
            case events.Warned() | NodeWarned():
                self._warnings += 1
                text = {"job": job_id, "code": event.code, "message": event.message}
                self._send(("warning", str(self._warnings)), {"type": "warning", **text})
                self._send_job(job_id)
            case _:
                self._send_job(job_id)

    def _send_progress(self, job_id: str) -> None:
        progress = self._documents.progress(job_id)
        if progress is not None:
            message = {"type": "progress", "job": job_id, **progress}
            self._send(("progress", job_id), message)

    def _send_preview(self, job_id: str) -> None:
        found = self._documents.newest_preview(job_id)
        if found is not None:
            key = ("preview", job_id, str(found["clip"]))
            self._send(key, {"type": "preview", "job": job_id, **found})

    def _send_job(self, job_id: str) -> None:
        document = self._documents.find(job_id)
        if document is not None:
            self._send(("job", job_id), {"type": "job", "job": document})
        else:
            self._send(("job", job_id), {"type": "job_removed", "job": job_id})

    def _send_queue(self) -> None:
        self._send(("queue",), {"type": "queue", "queue": self._documents.queue()})

    def _send(self, key: Key, message: Mapping[str, Any]) -> None:
        for page in self._pages:
            page.put(key, message)

    async def serve(self, request: web.Request) -> web.WebSocketResponse:
        """Serve one page until it disconnects."""
        if len(self._pages) >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(text=f"more than {MAX_PAGES} pages are open")
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=2**16)
        await socket.prepare(request)
        page = Page(socket)
        self._pages[page] = socket
        page.put(("state",), {"type": "state", **self._documents.state()})
        sender = asyncio.create_task(page.send())
        try:
            async for received in socket:
                if received.type is WSMsgType.ERROR:
                    break
        finally:
            self._pages.pop(page, None)
            sender.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await sender
        return socket

    async def close(self) -> None:
        """Disconnect all pages."""
        for socket in list(self._pages.values()):
            await socket.close(code=1001, message=b"the server is stopping")
