"""One server from start to end: bound, answering, and stopped so that the queue stays."""

from __future__ import annotations

import asyncio
import errno
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

from aiohttp import web

from latent_ladder.errors import RequestError
from latent_ladder.server.app_context import CONTEXT, Context
from latent_ladder.server.config import Setup
from latent_ladder.server.file_listing import Listing
from latent_ladder.server.job_loop import Jobs
from latent_ladder.server.job_store import Kept
from latent_ladder.server.origin_guard import add_headers, errors_in_words, guard
from latent_ladder.server.routes import ROUTES
from latent_ladder.server.system_info import features
from latent_ladder.server.websockets import Sockets
from latent_ladder.server.worker_process import Worker

Say = Callable[[str], None]


def serve(setup: Setup, say: Say) -> None:
    """Answer until Ctrl-C or SIGTERM. Raises :class:`RequestError` where the port is taken."""
    asyncio.run(_serve(setup, say))


async def _serve(setup: Setup, say: Say) -> None:
    setup.places.make()
    with _bound(setup) as listening, closing(Kept(setup.state, setup.history)) as kept:
        await _answer(setup, listening, kept, say)


async def _answer(setup: Setup, listening: socket.socket, kept: Kept, say: Say) -> None:
    if kept.moved:
        say(f"warning: the file of queue and history was damaged; it is kept as {kept.moved}")
    worker = Worker(setup.worker, setup.opening())
    sockets = Sockets(features(setup.limits.upload))
    jobs = Jobs(kept, worker, sockets, say)
    app = application(
        Context(setup, Listing(setup.models, setup.places.input, setup.names), jobs, sockets)
    )
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        waiting = kept.count()
        going_on = f", going on with {waiting} queued" if waiting else ""
        say(f"ComfyUI's API is at http://{_shown(listening)}{going_on}")
        with _stopping() as stop:
            await _until(stop, asyncio.create_task(jobs.work()))
        say(f"stopping; {kept.count()} queued jobs are kept")
        await sockets.close()
        await jobs.close()
    finally:
        await runner.cleanup()
        await worker.close(0)


def application(here: Context) -> web.Application:
    """The routes, guarded, in front of ``here``."""
    access = here.setup.access
    app = web.Application(
        middlewares=[guard(access), errors_in_words], client_max_size=here.setup.limits.prompt
    )
    app[CONTEXT] = here
    app.on_response_prepare.append(add_headers(access))
    app.add_routes(ROUTES)
    app.add_routes([_under_api(route) for route in ROUTES if route.path != "/"])
    return app


def _under_api(route: web.RouteDef) -> web.RouteDef:
    return web.RouteDef(route.method, f"/api{route.path}", route.handler, dict(route.kwargs))


def _bound(setup: Setup) -> socket.socket:
    """Bind before anything else is touched; the system chooses a port for 0."""
    listen = setup.access.listen
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    try:
        return socket.create_server((listen, setup.port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise RequestError(
                f"port {setup.port} of {listen} is taken by another program",
                f"stop it (ComfyUI?), or use --port {setup.port + 1}",
            ) from error
        raise RequestError(
            f"{listen}:{setup.port} cannot be listened on: {error.strerror}",
            "use --listen 127.0.0.1 and a --port above 1023",
        ) from error


async def _until(stop: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Wait for ``stop``; an error of the loop that runs jobs ends the server with it."""
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({stopped, work}, return_when=asyncio.FIRST_COMPLETED)
    if work.done():
        work.result()


@contextmanager
def _stopping() -> Iterator[asyncio.Event]:
    """An event that Ctrl-C and SIGTERM set; a second one ends the process as usual."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    before: dict[int, Any] = {}

    def asked(number: int, _: object) -> None:
        loop.call_soon_threadsafe(stop.set)
        signal.signal(number, before[number])

    for wanted in (signal.SIGINT, signal.SIGTERM):
        before[wanted] = signal.signal(wanted, asked)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            with suppress(ValueError):
                signal.signal(number, handler)


def _shown(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
