"""The clients that listen on ``/ws``, and what is sent to whom."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from aiohttp import WSMsgType, web

from latent_ladder.server.client_messages import Message, Picture

MAX_CLIENTS = 200
MAX_WAITING = 2_000
"""Messages that may wait for a slow client before it is cut off; pictures give way first."""
MAX_PICTURES = 4
MAX_FROM_CLIENT = 2**20
PING_S = 30.0

Features = Mapping[str, Any]


class Client:
    """One open socket and what waits to be sent on it."""

    def __init__(self, sid: str, socket: web.WebSocketResponse) -> None:
        self.sid = sid
        self._socket = socket
        self._metadata = False
        self._waiting: deque[Message | Picture] = deque()
        self._some = asyncio.Event()

    def put(self, message: Message | Picture) -> None:
        """Queue a message; of pictures only the newest few."""
        if isinstance(message, Picture):
            old = [m for m in self._waiting if isinstance(m, Picture)]
            if len(old) >= MAX_PICTURES:
                self._waiting.remove(old[0])
        self._waiting.append(message)
        self._some.set()

    async def send_all(self) -> None:
        """Send what is queued, forever; cut off where too much waits."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                if len(self._waiting) > MAX_WAITING:
                    await self._socket.close(message=b"too slow")
                    return
                await self._send(self._waiting.popleft())

    async def _send(self, message: Message | Picture) -> None:
        if isinstance(message, Message):
            await self._socket.send_str(message.text())
        else:
            await self._socket.send_bytes(message.packed(self._metadata))

    async def listen(self, ours: Features) -> None:
        """Read until the client leaves; its first message may be its feature flags."""
        first = True
        async for received in self._socket:
            if first and received.type is WSMsgType.TEXT:
                self._greet(received.data, ours)
            first = False

    def _greet(self, text: str, ours: Features) -> None:
        try:
            said = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(said, Mapping) or said.get("type") != "feature_flags":
            return
        flags = said.get("data")
        self._metadata = isinstance(flags, Mapping) and bool(flags.get("supports_preview_metadata"))
        self.put(Message("feature_flags", ours))


class Sockets:
    """All clients; a newer socket with the same id takes the older one's place."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self._clients: dict[str, Client] = {}
        self._open: set[web.WebSocketResponse] = set()

    async def serve(
        self, request: web.Request, greeting: Callable[[str], Iterable[Message]]
    ) -> web.WebSocketResponse:
        """One client, from its first message to its last."""
        if len(self._open) >= MAX_CLIENTS:
            raise web.HTTPServiceUnavailable(text=f"more than {MAX_CLIENTS} clients")
        socket = web.WebSocketResponse(heartbeat=PING_S, max_msg_size=MAX_FROM_CLIENT)
        await socket.prepare(request)
        sid = request.query.get("clientId", "")[:200] or uuid4().hex
        client = Client(sid, socket)
        self._clients[sid] = client
        self._open.add(socket)
        for message in greeting(sid):
            client.put(message)
        sender = asyncio.create_task(client.send_all())
        try:
            await client.listen(self._features)
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._open.discard(socket)
            if self._clients.get(sid) is client:
                del self._clients[sid]
        return socket

    def send(self, message: Message | Picture, sid: str | None) -> None:
        """To the client ``sid``; to all for ``None`` if the message is for everyone."""
        if sid is not None:
            if (client := self._clients.get(sid)) is not None:
                client.put(message)
        elif isinstance(message, Message) and message.everyone:
            for client in self._clients.values():
                client.put(message)

    async def close(self) -> None:
        """Say goodbye to all."""
        for socket in list(self._open):
            await socket.close(code=1001, message=b"the server is stopping")
