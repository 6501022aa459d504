"""Faulty and hostile requests get 4xx answers in words, in time and in little memory."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import time
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from helpers.comfyui_server import number_graph
from helpers.in_process_server import Answer, InProcessServer, make_config

from latent_ladder.server import app, request_errors
from latent_ladder.server.config import MIB, Limits
from latent_ladder.server.route_table import ROUTES

LIMITS = Limits(upload=MIB, prompt=4 * MIB)
IMAGE = 'Content-Disposition: form-data; name="image"'
FORM = {"Content-Type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessServer]:
    folder = tmp_path_factory.mktemp("faults")
    with InProcessServer(make_config(folder, limits=LIMITS)) as running:
        yield running


# --- compressed bodies ----------------------------------------------------------------------------

PROMPT = json.dumps({"prompt": number_graph()}).encode()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("identity", PROMPT),
        ("gzip", gzip.compress(PROMPT)),
        ("deflate", zlib.compress(PROMPT)),
    ],
)
def test_compressed_bodies_are_read(server: InProcessServer, encoding: str, body: bytes) -> None:
    answer = server.request("POST", "/prompt", body, {"Content-Encoding": encoding})
    assert (answer.status, answer.json["node_errors"]) == (200, {})


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", b"not gzip", 400),
        ("gzip", gzip.compress(PROMPT)[:-9], 400),
        ("gzip", gzip.compress(PROMPT) + b"more", 400),
        ("gzip", b"", 400),
        ("deflate", PROMPT, 400),
        ("br", PROMPT, 400),
        ("gzip, gzip", gzip.compress(gzip.compress(PROMPT)), 400),
        ("gzip", gzip.compress(b" " * (5 * MIB)), 413),
        ("gzip", gzip.compress(b"[" * (300 * MIB), 1), 413),
    ],
)
def test_damaged_and_huge_compressed_bodies_are_refused(
    server: InProcessServer, encoding: str, body: bytes, status: int
) -> None:
    for path in ("/prompt", "/api/settings/x", "/userdata/x.json", "/v1/videos"):
        answer = server.request("POST", path, body, {"Content-Encoding": encoding})
        assert answer.status == status, (path, answer.body)


# --- text that is not Unicode ---------------------------------------------------------------------


@pytest.mark.parametrize("text", [r"\ud800", r"a\uDFFFb", r"\udc00\ud800"])
def test_half_surrogates_are_refused_wherever_they_are(server: InProcessServer, text: str) -> None:
    graph = json.dumps(number_graph())
    bodies = {
        "/prompt": f'{{"prompt": {graph}, "client_id": "{text}"}}',
        "/queue": f'{{"delete": ["{text}"]}}',
        "/history": f'{{"{text}": 1}}',
        "/settings": f'{{"a": {{"b": ["{text}"]}}}}',
        "/v1/videos": f'{{"prompt": "{text}"}}',
        "/api/v2/jobs": f'{{"workflow": {{"1": "{text}"}}}}',
        "/jobs/cancel": f'{{"job_ids": ["{text}"]}}',
    }
    for path, body in bodies.items():
        answer = server.post(path, body.encode())
        assert answer.status == 400, (path, answer.body)
        assert "surrogate" in answer.json["error"]["message"]


def test_whole_surrogate_pairs_are_one_character(server: InProcessServer) -> None:
    assert server.post("/settings/pair", b'"\\ud83d\\ude00"').status == 200
    assert server.get("/settings/pair").json == "\U0001f600"


# --- names ----------------------------------------------------------------------------------------

NAMES = (
    "%00", "a%00b", "%FF%FE", "%ED%A0%80", "..%2F..%2Fetc%2Fpasswd", "%2e%2e", "%2Fetc%2Fpasswd",
    "a" * 3000, "%F0%9F%98%80" * 90, "%0A", "con.txt", "..%5C..", "%C0%AE%C0%AE", "-1", "NaN",
    "1e999", "9" * 400, "%25%25%s%n", "[]", "{}", "%1B%5B2J", "*", "%20", "%22%3E%3Cscript%3E",
)  # fmt: skip


@pytest.mark.parametrize("route", ROUTES, ids=lambda r: f"{r.method} {r.path}")
def test_no_name_is_a_fault_of_the_server(server: InProcessServer, route: Any) -> None:
    """Every route with strange names in path and query, and with strange bodies."""
    query = "filename={0}&subfolder={0}&type={0}&dir={0}&path={0}&limit={0}&offset={0}&status={0}"
    query += "&max_items={0}&cursor={0}&after={0}&order={0}&preview={0}&channel={0}&variant={0}"
    for name in NAMES:
        path = re.sub(r"\{[^}]*\}", name.replace("\\", "\\\\"), route.path)
        answer = server.request(route.method, f"{path}?{query.format(name)}"[:6000], b"{}")
        assert answer.status < 500, (name, answer.body)


BODIES: tuple[Any, ...] = (
    None, [], "text", 1e300, True, {"prompt": None}, {"prompt": [1]}, {"prompt": {"": {}}},
    {"prompt": {"1": {"class_type": "\0", "inputs": {"\0": "\0"}}}}, {"delete": {"a": 1}},
    {"delete": [None, {}, [1], "\0", 10**30]}, {"clear": "yes"}, {"prompt_id": {"a": []}},
    {"job_ids": [1]}, {"workflow": {"1": {"__type": "core/ASSET", "info": {"id": "\0"}}}},
    {"workflow": {"1": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}}}},
    {"hash": {"a": 1}}, {"prompt": "a ball", "seconds": "nan"}, {"prompt": "a", "size": "0x0"},
    {"prompt": "a ball", "seconds": "1e9"}, {"prompt": "a", "model": ["x"]}, {"prompt": "\0\x1b"},
    {"prompt": "a ball", "size": "99999x99999"},
    {"prompt": "a", "input_reference": {"image_url": "data:"}},
    {"prompt": number_graph(), "number": 10**400}, {"prompt": number_graph(), "extra_data": 5},
)  # fmt: skip


@pytest.mark.parametrize("route", [r for r in ROUTES if r.method == "POST"], ids=lambda r: r.path)
def test_no_body_is_a_fault_of_the_server(server: InProcessServer, route: Any) -> None:
    path = re.sub(r"\{[^}]*\}", "x", route.path)
    for body in BODIES:
        assert server.post(path, body).status < 500, body
    for data in (b"", b"\0", b"\xff" * 100, b"[" * 10**5, b"{" + b'"a":{' * 10**4):
        assert server.post(path, data).status < 500, data[:20]


# --- forms ----------------------------------------------------------------------------------------


def form_part(head: str, data: bytes = b"x") -> bytes:
    return b"--x\r\n" + head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + data + b"\r\n"


@pytest.mark.filterwarnings("ignore::aiohttp.multipart.BadContentDispositionHeader")
@pytest.mark.parametrize(
    "body",
    [
        form_part('Content-Disposition: form-data; name="image"; filename="a.png"' + "a" * 20_000),
        form_part("X: " + "y" * 100_000),
        b"--x\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        form_part(IMAGE + '; filename="a\0.png"') + b"--x--\r\n",
        form_part(IMAGE + "; filename*=utf-8''%00") + b"--x--",
        form_part(IMAGE + '; filename="\udcff\udcfe"') + b"--x--",
        form_part('Content-Disposition: nonsense; ; =;"') + b"--x--\r\n",
        form_part('Content-Disposition: form-data; name="image"') + b"--x--\r\n",
        form_part("Content-Type: multipart/mixed; boundary=y", b"--y\r\n\r\n--y--") + b"--x--\r\n",
        b"--x\r\nno colon here\r\n\r\nz\r\n--x--\r\n",
        b"--x" * 1000,
        b"--x\r\n\r\n" * 50 + b"--x--",
        b"",
    ],
)  # fmt: skip
def test_faulty_forms_are_refused(server: InProcessServer, body: bytes) -> None:
    for path in ("/upload/image", "/upload/mask", "/api/v2/assets", "/v1/videos"):
        answer = server.request("POST", path, body, FORM)
        assert 400 <= answer.status < 500, (path, answer.status, answer.body[:200])
    for headers in ({"Content-Type": "multipart/form-data"}, {**FORM, "Content-Encoding": "gzip"}):
        assert 400 <= server.request("POST", "/upload/image", body, headers).status < 500
    assert not list(server.config.folders.input.glob(".part-*"))


def test_random_bytes_never_stop_the_server(server: InProcessServer) -> None:
    """Damaged requests of many kinds; afterwards the server answers as before."""
    generator = random.Random(7)
    valid = b"POST /api/prompt HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(
        PROMPT
    )
    for _ in range(150):
        data = bytearray(valid + PROMPT)
        for _ in range(generator.randint(1, 12)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        answer = server.send_raw(bytes(data), 0.05)
        assert not re.match(rb"HTTP/1\.\d 5(?!05)", answer), bytes(data)
    assert server.get("/queue").status == 200


# --- slow clients ---------------------------------------------------------------------------------


@pytest.fixture
def hasty(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcessServer]:
    """A server with little patience."""
    monkeypatch.setattr(app, "HEADER_TIMEOUT_S", 0.3)
    monkeypatch.setattr(request_errors, "BODY_WINDOW_S", 0.3)
    with InProcessServer(make_config(tmp_path_factory.mktemp("hasty"))) as running:
        yield running


@pytest.mark.parametrize(
    "start", [b"", b"GET /queue HTTP/1.1\r\n", b"GET /queue HTTP/1.1\r\nHost: a"]
)
def test_a_connection_without_a_whole_header_is_closed(
    hasty: InProcessServer, start: bytes
) -> None:
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", hasty.port), 10) as connection:
        connection.sendall(start)
        for _ in range(100):  # a byte now and then does not help
            try:
                connection.sendall(b"x")
                connection.settimeout(0.05)
                if connection.recv(100) == b"":
                    break
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert time.monotonic() - began < 4


@pytest.mark.parametrize("path", ["/prompt", "/upload/image", "/userdata/x.json", "/v1/videos"])
def test_a_body_that_comes_in_drops_is_refused(hasty: InProcessServer, path: str) -> None:
    began = time.monotonic()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n"
    form = "Content-Type: multipart/form-data; boundary=x\r\n" if "upload" in path else ""
    answer = hasty.send_raw(f"{head}{form}\r\n--x\r\n".encode(), 5)
    assert answer.startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 4


def test_a_slow_but_steady_upload_is_not_refused(hasty: InProcessServer) -> None:
    data = b'"' + b"a" * 100_000 + b'"'
    head = f"POST /settings/big HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", hasty.port), 10) as connection:
        connection.sendall(head.encode())
        for start in range(0, len(data), 10_000):
            time.sleep(0.07)
            connection.sendall(data[start : start + 10_000])
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


# --- what browsers run ----------------------------------------------------------------------------

ACTIVE = ("svg", "svgz", "xhtml", "xht", "html", "htm", "shtml", "xml", "xsl", "xslt", "rdf", "mml",
          "atom", "rss", "js", "mjs", "css", "hta", "swf", "pdf", "mhtml", "vml", "wsdl", "x3d",
          "dae", "gpx", "unknown", "")  # fmt: skip


def upload(
    server: InProcessServer, name: str, data: bytes = b"<script>alert(1)</script>"
) -> Answer:
    head = f'Content-Disposition: form-data; name="image"; filename="{name}"'
    fields = form_part('Content-Disposition: form-data; name="overwrite"', b"true")
    body = fields + form_part(head, data) + b"--x--\r\n"
    return server.request("POST", "/upload/image", body, FORM)


@pytest.mark.parametrize("suffix", ACTIVE)
def test_active_content_is_downloaded_and_not_shown(server: InProcessServer, suffix: str) -> None:
    name = f"page.{suffix}".rstrip(".")
    assert upload(server, name).status == 200
    assert server.post(f"/userdata/{quote(name)}", b"<svg onload=alert(1)>").status == 200
    for path in (f"/view?type=input&filename={quote(name)}", f"/userdata/{quote(name)}"):
        answer = server.get(path)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"].startswith("attachment;")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("suffix", "content_type"),
    [("png", "image/png"), ("JPG", "image/jpeg"), ("mp4", "video/mp4"), ("webm", "video/webm"),
     ("flac", "audio/flac"), ("json", "application/json"), ("txt", "text/plain")],
)  # fmt: skip
def test_media_are_shown(server: InProcessServer, suffix: str, content_type: str) -> None:
    upload(server, f"media.{suffix}")
    answer = server.get(f"/view?type=input&filename=media.{suffix}")
    assert answer.headers["content-type"] == content_type
    assert answer.headers["content-disposition"].startswith("inline;")
