"""Requests of web pages from other sites are refused, unless the user allows them."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from latent_ladder.server.app import build_application
from latent_ladder.server.app_context import Context
from latent_ladder.server.config import ServerConfig
from latent_ladder.server.data_folders import DataFolders
from latent_ladder.server.file_listing import FileListing
from latent_ladder.server.job_loop import JobLoop
from latent_ladder.server.job_store import JobStore
from latent_ladder.server.origin_guard import Access
from latent_ladder.server.websockets import WebSocketClients
from latent_ladder.server.worker_process import WorkerProcess

LOCAL = {"Host": "127.0.0.1:8188"}


@pytest.mark.parametrize(
    ("access", "headers", "allowed"),
    [
        (Access(), LOCAL, True),
        (Access(), {"Host": "localhost:8188"}, True),
        (Access(), {"Host": "[::1]:8188"}, True),
        (Access(), {"Host": "evil.example:8188"}, False),
        (Access(), {"Host": ""}, False),
        (Access(), {"Host": "[bad"}, False),
        (Access(), {**LOCAL, "Origin": "http://127.0.0.1:8188"}, True),
        (Access(), {**LOCAL, "Origin": "http://evil.example"}, False),
        (Access(), {**LOCAL, "Origin": "http://127.0.0.1:9999"}, False),
        (Access(), {**LOCAL, "Origin": "null"}, False),
        (Access(), {**LOCAL, "Sec-Fetch-Site": "cross-site"}, False),
        (Access(), {**LOCAL, "Sec-Fetch-Site": "same-origin"}, True),
        (Access(cors="*"), {**LOCAL, "Origin": "http://evil.example"}, True),
        (Access(cors="*"), {"Host": "evil.example"}, False),
        (Access(hosts=("studio",)), {"Host": "studio:8188"}, True),
        (Access("0.0.0.0"), {"Host": "studio:8188"}, True),
        (Access("0.0.0.0"), {"Host": "studio:8188", "Origin": "http://evil.example"}, False),
    ],
)
def test_pages_of_other_sites_are_refused(
    access: Access, headers: dict[str, str], allowed: bool
) -> None:
    assert (access.refusal_reason(headers) is None) is allowed


async def send_requests(
    config: ServerConfig, *requests: tuple[str, str, dict[str, str]]
) -> list[tuple[int, Any]]:
    """Status and headers of the answers of an application in this process."""
    with closing(JobStore(config.state_file)) as store:
        clients = WebSocketClients({})
        jobs = JobLoop(store, WorkerProcess(config.worker, {}), clients, lambda _: None)
        listing = FileListing(config.models, config.folders.input)
        runner = web.AppRunner(build_application(Context(config, listing, jobs, clients)))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        answers = []
        async with aiohttp.ClientSession() as session:
            for method, path, headers in requests:
                async with session.request(method, address + path, headers=headers) as answer:
                    answers.append((answer.status, answer.headers))
        await runner.cleanup()
    return answers


def test_an_allowed_page_gets_cors_headers(tmp_path: Path) -> None:
    page = {"Origin": "http://editor.example"}
    folders = DataFolders(tmp_path, tmp_path, tmp_path)
    access = Access(cors=page["Origin"])
    config = ServerConfig(folders, tmp_path, tmp_path / "s.sqlite3", access=access)
    (preflight_status, preflight), (status, body) = asyncio.run(
        send_requests(config, ("OPTIONS", "/prompt", page), ("GET", "/api/queue", page))
    )
    assert (preflight_status, status) == (204, 200)
    for headers in (preflight, body):
        assert headers["Access-Control-Allow-Origin"] == page["Origin"]
        assert headers["Vary"] == "Origin"
    assert "POST" in preflight["Access-Control-Allow-Methods"]
