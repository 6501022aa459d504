"""Requests of web pages from other sites are refused, unless the user allows them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from helpers.in_process_server import InProcessServer

from latent_ladder.server.config import ServerConfig
from latent_ladder.server.data_folders import DataFolders
from latent_ladder.server.origin_guard import Access

OWN_NAME = socket.gethostname().partition(".")[0]
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
        (Access("0.0.0.0"), {"Host": "192.168.1.7:8188"}, True),
        (Access("0.0.0.0"), {"Host": "[fd00::7]:8188"}, True),
        (Access("0.0.0.0"), {"Host": f"{OWN_NAME}:8188"}, True),
        (Access("0.0.0.0"), {"Host": f"{OWN_NAME.upper()}.local"}, True),
        (Access("0.0.0.0"), {"Host": "evil.example:8188"}, False),
        (Access("0.0.0.0"), {"Host": "192.168.1.7.evil.example"}, False),
        (Access("0.0.0.0"), {"Host": ""}, False),
        (Access("0.0.0.0", hosts=("studio",)), {"Host": "Studio:8188"}, True),
        (Access("studio.lan"), {"Host": "studio.lan:8188"}, True),
        (Access("192.168.1.7"), {"Host": "evil.example"}, False),
        (Access("0.0.0.0"), {"Host": "10.0.0.2:8188", "Origin": "http://evil.example"}, False),
    ],
)
def test_pages_of_other_sites_are_refused(
    access: Access, headers: dict[str, str], allowed: bool
) -> None:
    assert (access.refusal_reason(headers) is None) is allowed


def test_an_allowed_page_gets_cors_headers(tmp_path: Path) -> None:
    page = {"Origin": "http://editor.example"}
    folders = DataFolders(tmp_path, tmp_path, tmp_path)
    access = Access(cors=page["Origin"])
    config = ServerConfig(folders, tmp_path, tmp_path / "s.sqlite3", access=access)
    with InProcessServer(config) as server:
        preflight = server.request("OPTIONS", "/prompt", headers=page)
        body = server.request("GET", "/api/queue", headers=page)
    assert (preflight.status, body.status) == (204, 200)
    for headers in (preflight.headers, body.headers):
        assert headers["access-control-allow-origin"] == page["Origin"]
        assert headers["vary"] == "Origin"
    assert "POST" in preflight.headers["access-control-allow-methods"]
