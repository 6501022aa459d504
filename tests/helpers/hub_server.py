"""A server that speaks the routes of a Hugging Face hub which a download uses, with its faults.

``/<repository>/resolve/<revision>/<path>`` answers with the hub's headers and redirects big files
to another host (``localhost`` instead of ``127.0.0.1``), as the real one does to its CDN.
"""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "beef"
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class HubServer:
    """What the server holds (``{(repository, path): bytes}``), does wrong, and was asked."""

    port: int = 0
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    corrupt: bool = False
    ranges: bool = True
    hold_after: int | None = None
    released: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def transfers(self) -> list[tuple[str, str | None]]:
        """(path, range) of every request for bytes."""
        return [(p, r) for method, p, r, _ in self.requests if method == "GET" and "/cdn/" in p]


@contextmanager
def hub_server():
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: HubServer):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            headers = self.headers
            hub.requests.append(
                (self.command, self.path, headers["Range"], headers["Authorization"])
            )
            if self.path.startswith("/cdn/"):
                return self._bytes(self.path.removeprefix("/cdn/"), body)
            match = RESOLVE.fullmatch(self.path)
            if match is None:
                return self._say(404)
            repo, path = match["repo"], match["path"]
            if repo in hub.status:
                status, code = hub.status[repo]
                return self._say(status, {"X-Error-Code": code} if code else {})
            if (repo, path) not in hub.files:
                return self._say(404, {"X-Error-Code": "EntryNotFound"})
            data = hub.files[repo, path]
            if path in hub.small:
                mark = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                return self._bytes(f"{repo}/{path}", body, {"ETag": f'"{mark}"'})
            mark = hashlib.sha256(data).hexdigest()
            return self._say(
                302,
                {
                    "Location": f"http://localhost:{hub.port}/cdn/{repo}/{path}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Size": str(len(data)),
                    "X-Linked-ETag": f'"{mark}"',
                },
            )

        def _say(self, status, headers=None):
            self.send_response(status)
            for name, value in {"Content-Length": "0", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()

        def _bytes(self, place, body, headers=None):
            if hub.failures and body:
                return self._say(hub.failures.pop(0))
            owner, name, path = place.split("/", 2)
            data = hub.files[f"{owner}/{name}", path]
            if hub.corrupt:
                data = bytes([data[0] ^ 1]) + data[1:]
            start = 0
            if hub.ranges and (given := self.headers["Range"]):
                start = int(given.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206 if start else 200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self._send(data[start:])
            return None

        def _send(self, data):
            if hub.cuts:
                data = data[: hub.cuts.pop(0)]
                self.close_connection = True
            if hub.hold_after is not None:
                self.wfile.write(data[: hub.hold_after])
                hub.released.wait(30)
                self.close_connection = True
                return
            self.wfile.write(data)

    return Handler
