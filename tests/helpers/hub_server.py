"""A local server with the routes of a Hugging Face hub that a download uses, and with its errors.

``/<repository>/resolve/<revision>/<path>`` answers with the hub's headers and redirects large files
to another host (``localhost`` instead of ``127.0.0.1``), as the real hub does to its CDN.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "c0ffee" * 6 + "beef"
RESOLVE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")


@dataclass
class HubServer:
    """Files of the server (``{(repository, path): bytes}``), its errors, and received requests.

    ``small`` are paths without redirect, ``status`` the HTTP status of a repository. ``gates`` has
    the tokens with access of each gated repository, ``no_scope`` tokens whose account accepted the
    licence, but which may not read gated repositories. ``cuts`` are
    lengths after which transfers break, ``failures`` statuses of transfers, ``corrupt`` changes a
    byte, ``ranges=False`` ignores ranges. ``pause_after`` stops a transfer after that many bytes
    until ``resume`` is set.
    """

    port: int = 0
    files: dict[tuple[str, str], bytes] = field(default_factory=dict)
    small: set[str] = field(default_factory=set)
    status: dict[str, tuple[int, str]] = field(default_factory=dict)
    gates: dict[str, set[str]] = field(default_factory=dict)
    no_scope: set[str] = field(default_factory=set)
    cuts: list[int] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    corrupt: bool = False
    ranges: bool = True
    pause_after: int | None = None
    resume: threading.Event = field(default_factory=threading.Event)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """Address of the server."""
        return f"http://127.0.0.1:{self.port}"

    def transfers(self) -> list[tuple[str, str | None]]:
        """Path and range of every request for file content."""
        return [(p, r) for method, p, r, _ in self.requests if method == "GET" and "/cdn/" in p]


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """Run a :class:`HubServer` until the block ends."""
    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.resume.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            headers = self.headers
            hub.requests.append(
                (self.command, self.path, headers["Range"], headers["Authorization"])
            )
            if self.path.startswith("/cdn/"):
                return self._send_file(self.path.removeprefix("/cdn/"), body)
            match = RESOLVE.fullmatch(self.path)
            if match is None:
                return self._send_status(404)
            repo, path = match["repo"], match["path"]
            if repo in hub.status:
                status, code = hub.status[repo]
                return self._send_status(status, {"X-Error-Code": code} if code else {})
            if repo in hub.gates and (refusal := self._refusal(repo)) is not None:
                status, why = refusal
                why_header = {"X-Error-Code": "GatedRepo", "X-Error-Message": why}
                return self._send_status(status, why_header)
            if (repo, path) not in hub.files:
                return self._send_status(404, {"X-Error-Code": "EntryNotFound"})
            data = hub.files[repo, path]
            if path in hub.small:
                digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                return self._send_file(f"{repo}/{path}", body, {"ETag": f'"{digest}"'})
            digest = hashlib.sha256(data).hexdigest()
            return self._send_status(
                302,
                {
                    "Location": f"http://localhost:{hub.port}/cdn/{repo}/{path}",
                    "X-Repo-Commit": COMMIT,
                    "X-Linked-Size": str(len(data)),
                    "X-Linked-ETag": f'"{digest}"',
                },
            )

        def _refusal(self, repo: str) -> tuple[int, str] | None:
            """Status and message for a request without access to a gated repository."""
            token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
            if token in hub.gates[repo]:
                return None
            if token in hub.no_scope:
                return 403, (
                    "Please enable access to public gated repositories in your fine-grained token "
                    "settings to view this repository."
                )
            restricted = f"Access to model {repo} is restricted"
            if not token or token.startswith("hf_wrong"):
                return 401, f"{restricted}. You must have access to it and be authenticated."
            return 403, f"{restricted} and you are not in the authorized list."

        def _send_status(self, status: int, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": "0", **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()

        def _send_file(
            self, location: str, body: bool, headers: Mapping[str, str] | None = None
        ) -> None:
            if hub.failures and body:
                return self._send_status(hub.failures.pop(0))
            owner, name, path = location.split("/", 2)
            data = hub.files[f"{owner}/{name}", path]
            if hub.corrupt:
                data = bytes([data[0] ^ 1]) + data[1:]
            start = 0
            if hub.ranges and (requested := self.headers["Range"]):
                start = int(requested.removeprefix("bytes=").removesuffix("-"))
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

        def _send(self, data: bytes) -> None:
            if hub.cuts:
                data = data[: hub.cuts.pop(0)]
                self.close_connection = True
            if hub.pause_after is not None:
                self.wfile.write(data[: hub.pause_after])
                hub.resume.wait(30)
                self.close_connection = True
                return
            self.wfile.write(data)

    return Handler
