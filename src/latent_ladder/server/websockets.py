"""Clients that are connected to ``/ws``, and the messages sent to them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from aiohttp import WSMsgType, web

from latent_ladder.server.client_messages import Message, PreviewImage

MAX_CLIENTS = 200
MAX_QUEUED = 2_000
"""Messages that may be queued for a slow client before it is disconnected."""
MAX_QUEUED_IMAGES = 4
"""Preview images that may be queued for a client; older ones are dropped."""
MAX_RECEIVED_BYTES = 2**20
PING_S = 30.0

Features = Mapping[str, Any]

logger = logging.getLogger(__name__)


class WebSocketClient:
    """One open socket and its queue of messages."""

    def __init__(self, sid: str, socket: web.WebSocketResponse) -> None:
        self.sid = sid
        self._socket = socket
        self._wants_metadata = False
        self._queue: deque[Message | PreviewImage] = deque()
        self._has_messages = asyncio.Event()

    def enqueue(self, message: Message | PreviewImage) -> None:
        """Queue a message; of preview images only the newest few are kept."""
        if isinstance(message, PreviewImage):
            images = [m for m in self._queue if isinstance(m, PreviewImage)]
            if len(images) >= MAX_QUEUED_IMAGES:
                self._queue.remove(images[0])
        self._queue.append(message)
        self._has_messages.set()

    async def send_queue(self) -> None:
        """Send queued messages until cancelled; disconnect if too many are queued."""
        while True:
            await self._has_messages.wait()
            self._has_messages.clear()
            while self._queue:
                if len(self._queue) > MAX_QUEUED:
                    await self._socket.close(message=b"too slow")
                    return
                await self._send(self._queue.popleft())

    async def _send(self, message: Message | PreviewImage) -> None:
        if isinstance(message, Message):
            await self._socket.send_str(message.to_json())
        else:
            await self._socket.send_bytes(message.to_bytes(self._wants_metadata))

    async def receive(self, features: Features) -> None:
        """Read until the client disconnects; its first message may be its feature flags."""
        is_first = True
        async for received in self._socket:
            if is_first and received.type is WSMsgType.TEXT:
                self._read_feature_flags(received.data, features)
            is_first = False

    def _read_feature_flags(self, text: str, features: Features) -> None:
        """Store the client's flags and answer with the server's features."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(message, Mapping) or message.get("type") != "feature_flags":
            return
        flags = message.get("data")
        if isinstance(flags, Mapping):
            self._wants_metadata = bool(flags.get("supports_preview_metadata"))
        self.enqueue(Message("feature_flags", features))


class WebSocketClients:
    """All clients. A new socket with the id of an older one replaces it."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._clients: dict[str, WebSocketClient] = {}
        self._open: set[web.WebSocketResponse] = set()

    async def serve(
        self, request: web.Request, initial_messages: Callable[[str], Iterable[Message]]
    ) -> web.WebSocketResponse:
        """Serve one client until it disconnects."""
        if len(self._open) >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text=f"more than {MAX_CLIENTS} clients")
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_RECEIVED_BYTES)
        await socket.prepare(request)
        sid = request.query.get("clientId", "")[:200] or uuid4().hex
        client = WebSocketClient(sid, socket)
        self._clients[sid] = client
        self._open.add(socket)
        logger.info("client %s connected, %d open", sid, len(self._open))
        for message in initial_messages(sid):
            client.enqueue(message)
        sender = asyncio.create_task(client.send_queue())
        try:
            await client.receive(self._features)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._open.discard(socket)
            if self._clients.get(sid) is client:
                del self._clients[sid]
            logger.info("client %s disconnected, %d open", sid, len(self._open))
        return socket

    def send(self, message: Message | PreviewImage, sid: str | None) -> None:
        """Queue a message for the client ``sid``; for ``None``, for all if it is for everyone."""
        if sid is not None:
            if (client := self._clients.get(sid)) is not None:
                client.enqueue(message)
        elif isinstance(message, Message) and message.everyone:
            for client in self._clients.values():
                client.enqueue(message)

    async def close(self) -> None:
        """Disconnect all clients."""
        for socket in list(self._open):
            await socket.close(code=1001, message=b"the server is stopping")
