"""A server of OpenAI's API that answers as a test says: whole, in pieces, broken, or with an error."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 5}}
DONE = "[DONE]"


@dataclass
class Reply:
    """What one request is answered with."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    events: tuple[str, ...] | None = None  # the data of a stream
    is_whole: bool = True  # whether the stream ends as HTTP wants it
    held: threading.Event | None = None  # the connection stays open behind the last event until this is set


def chunk(text: str | None = None, reason: str | None = None) -> str:
    """An event of a streamed chat."""
    delta = {} if text is None else {"content": text}
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def stream(*pieces: str, reason: str = "stop", **how: Any) -> Reply:
    """A streamed chat, complete."""
    usage = json.dumps({"choices": [], "usage": USAGE})
    return Reply(events=(*map(chunk, pieces), chunk(reason=reason), usage, DONE), **how)


def broken(*pieces: str, **how: Any) -> Reply:
    """A streamed chat that ends behind `pieces`."""
    return Reply(events=tuple(map(chunk, pieces)), **how)


def refusal(status: int, message: str, code: str | None = None, **headers: str) -> Reply:
    error = {"error": {"message": message, "type": "a", "param": None, "code": code}}
    return Reply(status, json.dumps(error).encode(), {name.replace("_", "-"): text for name, text in headers.items()})


@dataclass
class StubApi:
    """Answers `POST` with its replies, one after the other, and keeps what was asked."""

    replies: list[Reply] = field(default_factory=list)
    models: Reply = field(default_factory=lambda: Reply(body=b'{"data": [{"id": "tiny"}, {"id": "other"}]}'))
    requests: list[tuple[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def release(self) -> None:
        """Let go of what is held."""
        for reply in self.replies:
            if reply.held is not None:
                reply.held.set()


@contextlib.contextmanager
def serve_api(api: StubApi) -> Iterator[StubApi]:
    handler = type("Handler", (_Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield api
    finally:
        api.release()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    api: StubApi
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self.api.keys.append(self.headers.get("Authorization"))
        self._send(self.api.models)

    def do_POST(self) -> None:
        self.api.requests.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self._send(self.api.replies[len(self.api.requests) - 1])

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Connection", "close")  # which the handler itself obeys
        headers = {"Content-Length": str(len(reply.body))} if reply.events is None else {"Transfer-Encoding": "chunked"}
        for name, value in (headers | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has gone
            self._send_body(reply)

    def _send_body(self, reply: Reply) -> None:
        write: Callable[[bytes], object] = self.wfile.write
        if reply.events is None:
            write(reply.body)
            return
        for data in reply.events:
            event = f"data: {data}\n\n".encode()
            write(b"%x\r\n%s\r\n" % (len(event), event))
            self.wfile.flush()
        if reply.held is not None:
            reply.held.wait(60)
        if reply.is_whole:
            write(b"0\r\n\r\n")
