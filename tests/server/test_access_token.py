"""The token of servers that other machines can reach: programs, browsers, wrong ones."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.comfyui_server import ComfyUiServer
from helpers.in_process_server import InProcessServer, make_config
from helpers.waiting import wait_until

from latent_ladder.errors import RequestError
from latent_ladder.server.access_token import check_token
from latent_ladder.server.origin_guard import Access
from latent_ladder.server.route_table import ROUTES

TOKEN = "a-token-for-the-tests"
PAGE = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    folder = tmp_path_factory.mktemp("token")
    with InProcessServer(make_config(folder, access=Access("0.0.0.0", token=TOKEN))) as running:
        yield running


def test_no_route_answers_without_the_token(server: InProcessServer) -> None:
    for route in ROUTES:
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        answer = server.request(route.method, path)
        assert answer.status == 401, route
        assert answer.headers["www-authenticate"].startswith("Bearer")
    assert server.get("/nowhere").status == 401
    assert server.get("/api/v2/jobs").json["error"]["code"] == "unauthorized"


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Basic " + base64.b64encode(f"ladder:{TOKEN}".encode()).decode(), 200),
        ("Basic " + base64.b64encode(b"ladder:wrong").decode(), 401),
        ("Basic !!!", 401),
        ("Basic " + base64.b64encode(b"\xff\xfe").decode(), 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer ", 401),
        ("Bearer \xe9", 401),
        (TOKEN, 401),
        ("", 401),
    ],
)
def test_programs_send_the_token(server: InProcessServer, value: str, status: int) -> None:
    assert server.get("/queue", Authorization=value).status == status


def test_a_link_lets_one_browser_in_once(server: InProcessServer) -> None:
    assert server.gate is not None
    link = server.gate.link
    assert server.request("HEAD", link).status == 401
    first = server.get(link, **PAGE)
    assert (first.status, first.headers["location"]) == (303, "/")
    cookie = first.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
    assert TOKEN not in cookie
    pair = cookie.partition(";")[0]
    assert server.get("/queue", Cookie=pair).status == 200
    assert server.get("/queue", Cookie=pair[:-1]).status == 401
    again = server.get(link, **PAGE)
    assert again.status == 401
    assert b"used before" in again.body
    assert "set-cookie" not in again.headers


def test_a_browser_without_cookie_is_asked_for_the_token(server: InProcessServer) -> None:
    page = server.get("/", **PAGE)
    assert page.status == 401
    assert b"<form" in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    wrong = server.request("POST", "/login", b"token=wrong", form)
    assert (wrong.status, "set-cookie" in wrong.headers) == (401, False)
    right = server.request("POST", "/login", f"token={TOKEN}".encode(), form)
    assert right.status == 303
    assert server.get("/queue", Cookie=right.headers["set-cookie"].partition(";")[0]).status == 200
    big = server.request("POST", "/login", b"token=" + b"x" * 10_000, form)
    assert big.status == 413


def test_a_cookie_of_another_server_does_not_count(server: InProcessServer, tmp_path: Path) -> None:
    access = Access("0.0.0.0", token="the-token-of-another-server")
    with InProcessServer(make_config(tmp_path, access=access)) as other:
        assert other.gate is not None
        cookie = other.get(other.gate.link).headers["set-cookie"].partition(";")[0]
        assert other.get("/queue", Cookie=cookie).status == 200
    assert server.get("/queue", Cookie=cookie).status == 401


@pytest.mark.parametrize("token", ["short", "has a space in it", "ü" * 20, "x" * 501, "line\n" * 5])
def test_weak_and_unsendable_tokens_are_refused(token: str) -> None:
    with pytest.raises(RequestError):
        check_token(token)
    assert check_token(TOKEN) == TOKEN


@pytest.mark.slow
def test_listening_on_the_network_needs_a_token(tmp_path: Path) -> None:
    """The random token and the link for a browser are printed; both work."""
    with ComfyUiServer(tmp_path, "--listen", "0.0.0.0", LADDER_TOKEN="") as running:
        assert running.get("/queue")[0] == 401
        shown = running.stderr_lines
        wait_until(lambda: any("works once" in line for line in shown), "no link is printed")
        text = "".join(running.stderr_lines)
    token = re.findall(r"Authorization: Bearer (\S+)", text)
    assert len(token) == 1
    assert len(check_token(token[0])) >= 32
    with ComfyUiServer(tmp_path, "--listen", "0.0.0.0", LADDER_TOKEN=TOKEN) as running:
        header = {"Authorization": f"Bearer {TOKEN}"}
        assert running.get("/queue")[0] == 401
        assert running.get("/queue", header)[0] == 200
        assert running.get("/queue", {**header, "Host": "evil.example"})[0] == 403
        assert TOKEN not in "".join(running.stderr_lines)
