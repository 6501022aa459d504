"""The server from start to end: bind the port, answer requests, stop and keep the queue."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from aiohttp import BadContentDispositionHeader, BadContentDispositionParam, web

from latent_ladder.errors import RequestError
from latent_ladder.server.access_token import TokenGate
from latent_ladder.server.app_context import CONTEXT, MAX_LINES, Context
from latent_ladder.server.config import ServerConfig
from latent_ladder.server.file_listing import FileListing
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.job_store import JobStore
from latent_ladder.server.ladder_api.studio_context import add_studio
from latent_ladder.server.origin_guard import add_headers, own_names, refuse_other_sites
from latent_ladder.server.request_errors import HEADER_TIMEOUT_S, limit_body_time, report_errors
from latent_ladder.server.request_log import log_requests
from latent_ladder.server.route_table import all_routes
from latent_ladder.server.system_info import server_features
from latent_ladder.server.websockets import WebSocketClients
from latent_ladder.server.worker_process import WorkerProcess

Notify = Callable[[str], None]
"""Prints a line for the person who started the server."""

logger = logging.getLogger(__name__)


def run_server(
    config: ServerConfig, notify: Notify, on_ready: Callable[[str], None] | None = None
) -> None:
    """Answer requests until Ctrl-C or SIGTERM.

    ``on_ready`` gets the address of the first page, with the link that lets a browser in. Raises
    :class:`RequestError` if the port is in use or a folder cannot be created.
    """
    asyncio.run(_run_server(config, notify, on_ready))


async def _run_server(
    config: ServerConfig, notify: Notify, on_ready: Callable[[str], None] | None
) -> None:
    config.folders.create()
    # the text of a client's faulty header is not written to the terminal
    warnings.simplefilter("ignore", BadContentDispositionHeader)
    warnings.simplefilter("ignore", BadContentDispositionParam)
    with _bind(config) as listener, closing(JobStore(config.state_file, config.history)) as store:
        await _answer_requests(config, listener, store, notify, on_ready)


async def _answer_requests(
    config: ServerConfig,
    listener: socket.socket,
    store: JobStore,
    notify: Notify,
    on_ready: Callable[[str], None] | None,
) -> None:
    if store.damaged_copy:
        notify(f"warning: the queue and history were damaged; a copy is in {store.damaged_copy}")
    worker = WorkerProcess(config.worker, config.worker_settings())
    clients = WebSocketClients(server_features(config.limits.upload))
    lines: deque[tuple[str, str]] = deque(maxlen=MAX_LINES)

    def announce(text: str) -> None:
        lines.append((datetime.now(UTC).isoformat(), text))
        notify(text)

    jobs = JobLoop(store, worker, clients, announce)
    listing = FileListing(config.models, config.folders.input, config.file_names)
    gate = TokenGate(config.access.token) if config.access.token else None
    app = build_application(Context(config, listing, jobs, clients, lines), gate)
    runner = make_runner(app)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        queued = store.count(None)
        resumed = f", resuming {queued} queued jobs" if queued else ""
        what = "ComfyUI's API" if config.serves_comfyui else "Ladder Studio"
        notify(f"{what} is at http://{_address(listener)}{resumed}")
        for line in _describe_access(config, listener, gate):
            notify(line)
        if on_ready is not None:
            on_ready(_first_page(listener, gate))
        logger.info("serving at %s, store %s", _address(listener), config.store)
        with _stop_on_signal() as stop:
            await _wait_until(stop, asyncio.create_task(jobs.run()))
        notify(f"stopping; {store.count(None)} queued jobs are kept")
        await clients.close()
        await jobs.close()
    finally:
        await runner.cleanup()
        await worker.close(0)
        logger.info("server stopped")


def build_application(context: Context, gate: TokenGate | None = None) -> web.Application:
    """The aiohttp application: all routes, behind one chain of checks.

    A request passes, in order: the log, its host and origin, its token (``gate``), the time limit
    of its body, and the answers to errors. Routes that are added to the table pass all of them.
    """
    access = context.config.access
    checks = [log_requests, refuse_other_sites(access)]
    checks += [] if gate is None else [gate.middleware()]
    app = web.Application(
        middlewares=[*checks, limit_body_time, report_errors],
        client_max_size=context.config.limits.prompt,
    )
    app[CONTEXT] = context
    app.on_response_prepare.append(add_headers(access))
    add_studio(app)
    app.add_routes(all_routes(context.config))
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """The runner of an application, with limits for slow clients and compressed bodies."""
    return web.AppRunner(
        app,
        access_log=None,
        handle_signals=False,
        shutdown_timeout=2.0,
        keepalive_timeout=HEADER_TIMEOUT_S,
        auto_decompress=False,  # a few bytes could become gigabytes: read_body() has a limit
    )


def _first_page(listener: socket.socket, gate: TokenGate | None) -> str:
    """The address for a browser on this machine; with a token, the link that works once."""
    host, port = listener.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}{'/studio/' if gate is None else gate.link}"


def _describe_access(
    config: ServerConfig, listener: socket.socket, gate: TokenGate | None
) -> Iterator[str]:
    """Lines about the editor's address and the token."""
    address = f"http://{_address(listener)}"
    if config.frontend is not None:
        yield f"open the editor at {address}/"
    if gate is None:
        return
    port = listener.getsockname()[1]
    is_any = config.access.listen in ("0.0.0.0", "::")
    host = own_names()[0] if is_any else address.removeprefix("http://").rpartition(":")[0]
    if config.shows_token:
        yield f"programs send the header Authorization: Bearer {config.access.token}"
    yield f"to let one browser in, open http://{host}:{port}{gate.link} (works once)"


def _bind(config: ServerConfig) -> socket.socket:
    """The bound socket; port 0 takes a free port. Raises :class:`RequestError`."""
    listen = config.access.listen
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    try:
        return socket.create_server((listen, config.port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RequestError(
                f"port {config.port} of {listen} is used by another program",
                f"stop it (ComfyUI?), or use --port {config.port + 1}",
            ) from error
        raise RequestError(
            f"{listen}:{config.port} cannot be listened on: {error.strerror}",
            "use --listen 127.0.0.1 and a --port above 1023",
        ) from error


async def _wait_until(stop: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Wait for ``stop``. Raises the error of ``work`` if that ends first."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, work}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()


@contextmanager
def _stop_on_signal() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set; a second signal ends the process as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    previous: dict[int, Any] = {}

    def request_stop(number: int, _: object) -> None:
        loop.call_soon_threadsafe(stop.set)
        signal.signal(number, previous[number])

    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        previous[stop_signal] = signal.signal(stop_signal, request_stop)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            with suppress(ValueError):
                signal.signal(number, handler)


def _address(listener: socket.socket) -> str:
    """Host and port of a bound socket, as in a URL."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
