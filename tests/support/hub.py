"""A stand-in for the Hugging Face hub: the routes and headers that huggingface_hub uses, on loopback.

`/api/models/<org>/<name>` describes a repo; `/<org>/<name>/resolve/<revision>/<file>` serves a small file
itself and redirects for a large one, as the hub does to its storage host, here `localhost` instead of
`127.0.0.1` so that it counts as another host. Switches on `StubHub` make it fail in the ways the hub does.
"""

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class StubHub:
    repo: str
    files: dict[str, bytes]
    gated: bool = False  # needs a token that is in `allowed_tokens`
    allowed_tokens: tuple[str, ...] = ()
    api_status: int = 200  # answer of the description, e.g. 503
    api_message: str = "out of order"
    file_status: int = 200  # answer of a file's GET
    drop_after: int | None = None  # bytes of a large file after which the connection breaks, once
    large: int = 1 << 16  # files from this size on are redirected to the storage host
    requests: list[Request] = field(default_factory=list)
    hang: threading.Event | None = None  # the description is answered only once this is set
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def seen(self, method: str, ending: str) -> list[Request]:
        return [request for request in self.requests if request.method == method and ending in request.path]


@contextlib.contextmanager
def serve(hub: StubHub) -> Iterator[StubHub]:
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        if hub.hang is not None:
            hub.hang.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: StubHub

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def _route(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        headers = self.headers
        hub.requests.append(Request(self.command, self.path, headers.get("Range"), headers.get("Authorization")))
        if path.startswith("/storage/"):
            self._send_content(hub.files[path.removeprefix("/storage/")])
        elif path == f"/api/models/{hub.repo}":
            self._describe()
        elif path.startswith(f"/{hub.repo}/resolve/"):
            self._resolve(*path.removeprefix(f"/{hub.repo}/resolve/").split("/", 1))
        else:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")

    def _describe(self) -> None:
        hub = self.hub
        if hub.hang is not None:
            hub.hang.wait()
        if hub.api_status != 200:
            self._refuse(hub.api_status, "", hub.api_message)
            return
        siblings = [{"rfilename": name, "size": len(data), "blobId": "0"} for name, data in hub.files.items()]
        gated = "manual" if hub.gated else False
        body = {"id": hub.repo, "sha": REVISION, "siblings": siblings, "gated": gated, "private": False}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _resolve(self, revision: str, name: str) -> None:
        hub = self.hub
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if hub.gated and token not in hub.allowed_tokens:
            self._refuse(403 if token else 401, "GatedRepo", "Access to this model is restricted.")
        elif revision != REVISION:
            self._refuse(404, "RevisionNotFound", "Invalid rev id")
        elif name not in hub.files:
            self._refuse(404, "EntryNotFound", "Entry not found")
        elif len(hub.files[name]) >= hub.large:
            self._redirect(name)
        else:
            self._send_content(hub.files[name], {"X-Repo-Commit": REVISION})

    def _redirect(self, name: str) -> None:
        data = self.hub.files[name]
        self._send(
            302,
            b"",
            {
                "Location": f"http://localhost:{self.hub.port}/storage/{name}",
                "X-Repo-Commit": REVISION,
                "X-Linked-Size": str(len(data)),
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
            },
        )

    def _send_content(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        hub, status = self.hub, 200
        if self.command == "GET" and hub.file_status != 200:
            self._refuse(hub.file_status, "", "out of order")
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"} | (headers or {})
        if self.command == "GET" and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[start:]
        large = len(data) >= hub.large
        if self.command == "GET" and large and hub.drop_after is not None:
            cut, hub.drop_after = hub.drop_after, None
            self._send(status, data[:cut], headers | {"Content-Length": str(len(data))})
            return
        self._send(status, data, headers)

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._send(status, json.dumps({"error": message}).encode(), headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("X-HF-Warning", "greeting; this is a stand-in")
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
