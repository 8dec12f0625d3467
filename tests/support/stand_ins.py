"""What may answer on the HTTP port of a node that is gone."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.statuses import IDLE


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, then behaves as its server's kind of stand-in does."""

    protocol_version = "HTTP/1.1"
    server: "_Server"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.server.behave(self)

    do_GET = do_HEAD = do_PUT = do_POST = _answer

    def send(self, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


Behaviour = Callable[[_Handler], None]


class _Server(ThreadingHTTPServer):
    behave: Behaviour
    daemon_threads = False

    def __init__(self, behave: Behaviour) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave, self.closing = behave, threading.Event()


def _page(handler: _Handler) -> None:
    handler.send(b"<html><h1>It works!</h1></html>", kind="text/html")


def _unsupported(handler: _Handler) -> None:
    handler.send(b"<html>Unsupported method</html>", 501, "text/html")


def _other_key(handler: _Handler) -> None:
    handler.send(json.dumps({"error": "the caller and this node have different keys"}).encode(), 401)


def _other_version(handler: _Handler) -> None:
    handler.send(json.dumps({"error": "the starter runs version 0.0.1, this node 9.9.9"}).encode(), 400)


def _full_disk(handler: _Handler) -> None:
    if handler.command == "POST":
        return handler.send(b'{"needs_chunk": {"held_bytes": 0}}')
    if handler.command == "PUT":
        return handler.send(b'{"error": "/cache: the chunk takes 2.2 GB and 10 kB are free"}', 507)
    return handler.send(b"")


def _damaged_cache(handler: _Handler) -> None:
    handler.send(b'{"error": "/cache/chunk.pth: damaged", "retry": false}')


def _cut_short(handler: _Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"  ")


def _silent(handler: _Handler) -> None:
    handler.server.closing.wait(60)


def _endless(handler: _Handler) -> None:
    """Signs of life for ever."""
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b" ")


def _answers(value: object) -> Behaviour:
    return lambda handler: handler.send(json.dumps(value).encode())


STATUS = IDLE.to_json()
# Whatever is not a node any more, by name; each behaves so for every request.
STAND_INS: dict[str, Behaviour] = {
    "page": _page,
    "unsupported": _unsupported,
    "other key": _other_key,
    "other version": _other_version,
    "full disk": _full_disk,
    "damaged cache": _damaged_cache,
    "cut short": _cut_short,
    "silent": _silent,
    "endless": _endless,
    "null": _answers(None),
    "list": _answers([{}]),
    "empty": _answers({}),
    "no status": _answers({"ready": {}}),
    "half a status": _answers({"ready": {key: STATUS[key] for key in STATUS if key != "span"}}),
    "starter": _answers({"ready": STATUS | {"role": "starter"}}),
    "span of text": _answers({"ready": STATUS | {"span": "0-1"}}),
    "needs nothing": _answers({"needs_chunk": {}}),
    "needs less than nothing": _answers({"needs_chunk": {"held_bytes": -1}}),
}
ABSENT = ("silent", "cut short", "endless")  # not there yet, as far as anybody can tell


@contextlib.contextmanager
def stand_in(name: str) -> Iterator[int]:
    """The port of something that answers as `STAND_INS[name]` does."""
    server = _Server(STAND_INS[name])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, name="stand-in")
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
