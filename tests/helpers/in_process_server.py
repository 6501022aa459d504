"""All routes and checks of the server in a thread of the test, without the worker process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from contextlib import closing, suppress
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from aiohttp import web

from latent_ladder.server.access_token import TokenGate
from latent_ladder.server.app import build_application, make_runner
from latent_ladder.server.app_context import Context
from latent_ladder.server.config import ServerConfig
from latent_ladder.server.data_folders import DataFolders
from latent_ladder.server.file_listing import FileListing
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.job_store import JobStore
from latent_ladder.server.websockets import WebSocketClients
from latent_ladder.server.worker_process import WorkerProcess


class Answer(NamedTuple):
    """Status, headers (names in lower case) and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def make_config(folder: Path, **changes: Any) -> ServerConfig:
    """Settings of a server whose folders are all below ``folder``."""
    folders = DataFolders(*(folder / name for name in ("input", "output", "temp")))
    folders.create()
    state = folder / "store" / "serve" / "0.sqlite3"
    user = folder / "user"
    return ServerConfig(folders, folder / "store", state, user=user, **changes)


class InProcessServer:
    """A server that answers requests until the block ends.

    Jobs are queued, and do not run unless ``runs_jobs``.
    """

    def __init__(self, config: ServerConfig, *, runs_jobs: bool = False) -> None:
        self.config, self._runs_jobs = config, runs_jobs
        self.gate = TokenGate(config.access.token) if config.access.token else None
        self.port = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    async def _run(self) -> None:
        with closing(JobStore(self.config.state_file)) as store:
            clients = WebSocketClients({})
            worker = WorkerProcess(self.config.worker, self.config.worker_settings())
            self.jobs = JobLoop(store, worker, clients, lambda _: None)
            listing = FileListing(self.config.models, self.config.folders.input)
            context = Context(self.config, listing, self.jobs, clients)
            app = build_application(context, self.gate)
            self.prepare(app)
            runner = make_runner(app)
            await runner.setup()
            running = asyncio.create_task(self.jobs.run()) if self._runs_jobs else None
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self.port = listener.getsockname()[1]
                site = await _start(runner, listener)
                self._ready.set()
                await self._stop.wait()
                await site.stop()
                if running is not None:
                    await self.jobs.close()
                    running.cancel()
                    await asyncio.gather(running, return_exceptions=True)
                await runner.cleanup()

    def prepare(self, app: web.Application) -> None:
        """Change the application before it starts."""

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """One request; the path is sent as it is."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())

    def get(self, path: str, **headers: str) -> Answer:
        """A GET."""
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: object = None, **headers: str) -> Answer:
        """A POST; ``bytes`` are sent unchanged, other values as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, headers)

    def send_raw(self, data: bytes, seconds: float = 10) -> bytes:
        """Everything that the server sends for these bytes until it closes the connection."""
        received = b""
        with socket.create_connection(("127.0.0.1", self.port), seconds) as connection:
            connection.sendall(data)
            with suppress(TimeoutError, ConnectionError):
                while chunk := connection.recv(65536):
                    received += chunk
        return received


async def _start(runner: Any, listener: socket.socket) -> Any:
    site = web.SockSite(runner, listener)
    await site.start()
    return site
