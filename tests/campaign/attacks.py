"""Attacks on a running server: malformed HTTP, hostile paths, names and bodies."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from helpers.comfyui_server import ComfyUiServer, number_graph
from helpers.mutations import mutate_document

from campaign.trials import Trial

PATHS = (
    "/", "/prompt", "/queue", "/history", "/history/{}", "/view?filename={}", "/object_info/{}",
    "/upload/image", "/upload/mask", "/interrupt", "/free", "/api/jobs?status={}",
    "/api/jobs/{}", "/models/{}", "/embeddings", "/system_stats", "/view_metadata/{}?filename={}",
)  # fmt: skip
NAMES = (
    "../../../../etc/passwd", "/etc/passwd", "..\\..\\win.ini", "a\0b", "\x1b]0;x\x07", "n" * 5000,
    "\ud800", "%00", "con", "\u202egpj.exe", "x.png [output]", "1e999", "-1", "[]", "",
)  # fmt: skip
TYPES = ("application/json", "multipart/form-data; boundary=b", "text/plain", "multipart/x", "")
METHODS = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "BREW")


@contextmanager
def attacks(folder: Path) -> Iterator[Trial]:
    """Requests that no client sends. No answer is a server's fault, and the server lives."""
    secret = folder / "secret.txt"
    secret.write_text("a secret outside of the folders")
    (folder / "served").mkdir(exist_ok=True)
    with ComfyUiServer(folder / "served") as server:
        host, _, port = server.url.removeprefix("http://").rpartition(":")

        def trial(rng: random.Random) -> str:
            data, is_whole = _request(rng, f"{host}:{port}")
            answer = _send(host, int(port), data, 10.0 if is_whole else 0.3)
            assert server.process.poll() is None, "the server has ended"
            status = answer[9:12]
            assert not status.startswith(b"5"), answer[:2000]
            assert b"a secret outside" not in answer
            assert b"root:x:0" not in answer
            return "ok" if status.startswith(b"2") else "refused"

        yield trial
        assert server.get_json("/queue") is not None


def _request(rng: random.Random, host: str) -> tuple[bytes, bool]:
    """The bytes of a request; true if it is whole, so that an answer has to come."""
    name = quote(rng.choice((*NAMES, "../" * rng.randrange(9) + "secret.txt")).encode(
        "utf-8", "surrogatepass"), safe="/." if rng.random() < 0.5 else "")  # fmt: skip
    path = rng.choice(PATHS).replace("{}", name)
    body = _body(rng)
    headers = {
        "Host": host if rng.random() < 0.9 else rng.choice(("evil.example", "", "[", "a" * 9000)),
        "Content-Type": rng.choice(TYPES),
        "Content-Length": str(len(body)) if rng.random() < 0.95 else rng.choice(("-1", "x", "999")),
    }
    if rng.random() < 0.1:
        headers[rng.choice(("Content-Encoding", "Transfer-Encoding", "Range", "Origin"))] = (
            rng.choice(("gzip", "chunked", "bytes=5-1", "http://evil.example"))
        )
    lines = [f"{rng.choice(METHODS)} {path} HTTP/1.{rng.choice('01')}"]
    lines += [f"{key}: {value}" for key, value in headers.items()]
    whole = "\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body
    is_whole = rng.random() < 0.95
    sent = whole if is_whole else whole[: rng.randrange(1, len(whole))]
    return sent, is_whole and headers["Content-Length"] != "999" and "chunked" not in str(headers)


def _body(rng: random.Random) -> bytes:
    match rng.randrange(5):
        case 0:
            return b""
        case 1:
            document = {"prompt": number_graph(1), "client_id": "\x1b[2J", "extra_data": {}}
            return json.dumps(mutate_document(document, rng)).encode()
        case 2:
            return rng.choice((b"[" * 100_000, b'{"a":' * 5000, b'{"prompt": 1e999}', b"\xff\xfe"))
        case 3:
            name = rng.choice(NAMES).encode("utf-8", "surrogatepass")
            head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="' + name
            return head + b'"\r\n\r\n' + rng.randbytes(50) + b"\r\n--b--\r\n"
        case _:
            return rng.randbytes(rng.randrange(200))


def _send(host: str, port: int, data: bytes, wait_s: float) -> bytes:
    """The answer to raw bytes, as far as it comes within ``wait_s`` of silence."""
    answer = bytearray()
    with (
        socket.create_connection((host, port), timeout=10) as connection,
        suppress(OSError),
    ):
        connection.sendall(data)
        connection.settimeout(wait_s)
        while chunk := connection.recv(65536):
            answer += chunk
    return bytes(answer)
