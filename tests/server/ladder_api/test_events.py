"""The WebSocket of events: the state first, then changes; slow pages stay small."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from helpers.studio_server import PROMPT, StudioServer, write_worker

from latent_ladder.server.ladder_api.events import Page

pytestmark = pytest.mark.slow
SECONDS = 30


async def collect(
    server: StudioServer, start: Callable[[], Any], until: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """The messages of one page; ``start`` is called after the first one."""
    found: list[dict[str, Any]] = []
    url = f"http://127.0.0.1:{server.port}/ladder/events"
    async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
        async with asyncio.timeout(SECONDS):
            async for message in socket:
                found.append(json.loads(message.data))
                if len(found) == 1:
                    await asyncio.to_thread(start)
                if until(found[-1]):
                    return found
    raise AssertionError(found[-3:])


def ended(message: dict[str, Any]) -> bool:
    """True for the end of a job."""
    return message["type"] == "job" and message["job"]["state"] in ("done", "failed", "cancelled")


def test_a_page_gets_the_state_and_then_all_that_happens(tmp_path: Path) -> None:
    with StudioServer(tmp_path, write_worker(tmp_path)) as server:

        def start() -> None:
            server.make_job(kind="drafts", count=2)

        found = asyncio.run(collect(server, start, ended))
        assert found[0]["type"] == "state" and found[0]["jobs"] == []
        assert found[0]["queue"]["paused"] is False
        kinds = {message["type"] for message in found}
        assert kinds >= {"state", "job", "queue", "progress", "preview", "warning"}
        progress = next(m for m in found if m["type"] == "progress")
        assert progress["stage"] == "base" and progress["steps"] == 4
        preview = next(m for m in found if m["type"] == "preview")
        assert preview["url"].startswith(f"/ladder/jobs/{preview['job']}/preview?")

        def again(message: dict[str, Any]) -> bool:
            return bool(message["type"] == "state")

        reloaded = asyncio.run(collect(server, lambda: None, again))[0]
        assert [job["state"] for job in reloaded["jobs"]] == ["done"]
        assert [clip["state"] for clip in reloaded["jobs"][0]["clips"]] == ["done", "done"]


def test_two_pages_see_the_same(tmp_path: Path) -> None:
    with StudioServer(tmp_path, write_worker(tmp_path)) as server:

        async def both() -> list[Any]:
            def start() -> None:
                server.make_job(kind="make", request={"prompt": PROMPT})

            first = collect(server, lambda: None, ended)
            second = collect(server, start, ended)
            return list(await asyncio.gather(first, second))

        ends = [messages[-1]["job"] for messages in asyncio.run(both())]
        assert ends[0] == ends[1]


def test_a_page_of_another_site_is_refused(tmp_path: Path) -> None:
    with StudioServer(tmp_path) as server:

        async def connect() -> int:
            url = f"http://127.0.0.1:{server.port}/ladder/events"
            headers = {"Origin": "http://evil.example"}
            async with aiohttp.ClientSession() as session:
                try:
                    await session.ws_connect(url, headers=headers)
                except aiohttp.WSServerHandshakeError as error:
                    return error.status
            return 101

        assert asyncio.run(connect()) == 403


def test_messages_about_the_same_thing_replace_each_other() -> None:
    class Socket:
        def __init__(self) -> None:
            self.sent: list[str] = []

        async def send_str(self, text: str) -> None:
            self.sent.append(text)

    async def send() -> list[str]:
        socket: Any = Socket()
        page = Page(socket)
        for number in range(10_000):
            page.put(("progress", "a"), {"n": number})
        page.put(("job", "a"), {"n": "end"})
        sender = asyncio.create_task(page.send())
        await asyncio.sleep(0.01)
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        return list(socket.sent)

    assert asyncio.run(send()) == ['{"n": 9999}', '{"n": "end"}']
