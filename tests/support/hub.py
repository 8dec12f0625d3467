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
    stall_after: int | None = None  # bytes of a large file after which no more come until `hang` is set
    damaged: dict[str, int] = field(default_factory=dict)  # how often a file still comes with a byte changed
    sent: dict[str, bytes] = field(default_factory=dict)  # what comes in place of a file
    together: threading.Barrier | None = None  # large files are answered only once so many are asked for
    knows_ranges: bool = True
    tells_digests: bool = True
    large: int = 1 << 16  # files from this size on are redirected to the storage host
    requests: list[Request] = field(default_factory=list)
    hang: threading.Event | None = None  # what is to hang, by default the description, goes on only once this is set
    port: int = 0
    most_at_once: int = 0  # large files that were on their way at one time
    _on_their_way: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """While a large file is sent in the block."""
        with self._lock:
            self._on_their_way += 1
            self.most_at_once = max(self.most_at_once, self._on_their_way)
        try:
            yield
        finally:
            with self._lock:
                self._on_their_way -= 1

    def seen(self, method: str, ending: str) -> list[Request]:
        return [request for request in self.requests if request.method == method and ending in request.path]


def blob_sha1(data: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


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
            self._send_content(path.removeprefix("/storage/"))
        elif path == f"/api/models/{hub.repo}":
            self._describe()
        elif path.startswith(f"/{hub.repo}/resolve/"):
            self._resolve(*path.removeprefix(f"/{hub.repo}/resolve/").split("/", 1))
        else:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")

    def _describe(self) -> None:
        hub = self.hub
        if hub.hang is not None and hub.stall_after is None:
            hub.hang.wait()
        if hub.api_status != 200:
            self._refuse(hub.api_status, "", hub.api_message)
            return
        siblings = [self._sibling(name, data) for name, data in hub.files.items()]
        gated = "manual" if hub.gated else False
        body = {"id": hub.repo, "sha": REVISION, "siblings": siblings, "gated": gated, "private": False}
        self._send(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _sibling(self, name: str, data: bytes) -> dict[str, object]:
        """How the hub describes a file: a large one by its digest, and by that of the pointer to it in git."""
        about: dict[str, object] = {"rfilename": name, "size": len(data)}
        if not self.hub.tells_digests:
            return about
        if len(data) < self.hub.large:
            return about | {"blobId": blob_sha1(data)}
        lfs = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return about | {"blobId": blob_sha1(b"version https://git-lfs.github.com/spec/v1"), "lfs": lfs}

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
            self._send_content(name, {"X-Repo-Commit": REVISION})

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

    def _send_content(self, name: str, headers: dict[str, str] | None = None) -> None:
        hub, status, data = self.hub, 200, self._content(name)
        if self.command == "GET" and hub.file_status != 200:
            self._refuse(hub.file_status, "", "out of order")
            return
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"} | (headers or {})
        large = len(data) >= hub.large
        if self.command == "GET" and hub.knows_ranges and (wanted := self.headers.get("Range")):
            start, stop = (int(place) for place in wanted.removeprefix("bytes=").split("-"))
            headers["Content-Range"] = f"bytes {start}-{stop}/{len(data)}"
            status, data = 206, data[start : stop + 1]
        if self.command == "GET" and large:
            with hub.counted():
                self._send_large(status, data, headers)
        else:
            self._send(status, data, headers)

    def _content(self, name: str) -> bytes:
        """What lies on the hub, or is damaged on the way."""
        hub, data = self.hub, self.hub.sent.get(name, self.hub.files[name])
        if self.command == "GET" and hub.damaged.get(name, 0) > 0:
            hub.damaged[name] -= 1
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def _send_large(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        hub, headers = self.hub, headers | {"Content-Length": str(len(data))}
        if hub.together is not None:
            hub.together.wait()
        if hub.drop_after is not None:
            cut, hub.drop_after = hub.drop_after, None
            self._send(status, data[:cut], headers)
        elif hub.stall_after is not None and hub.hang is not None:
            self._send(status, data[: hub.stall_after], headers)
            hub.hang.wait()
            with contextlib.suppress(OSError):  # nobody waits for it any more
                self.wfile.write(data[hub.stall_after :])
        else:
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
