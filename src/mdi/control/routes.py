"""Start, stop, status and chunk transfer over HTTP: the routes.

    GET  /                 status
    GET  /timeline         what the node did when
    POST /init             configure a secondary for a session
    PUT  /release          give up a session that never ran
    PUT  /stop             end the node
    HEAD /chunks/<digest>  how many bytes of a chunk the node holds (X-Held-Bytes)
    PUT  /chunks/<digest>  append to it (Content-Range)

Bodies are JSON, but for the chunk's bytes. An error has the body {"error": reason}; with "retry": true it may pass.
Who may ask is `mdi.control.auth`'s matter.
"""

import html
import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, Protocol

import cherrypy

from mdi.checkpoint.cache import ChunkCache
from mdi.control.auth import STREAMED, Gate
from mdi.control.client import UPLOAD_BYTES
from mdi.control.server import WebServer
from mdi.control.session import SessionSpec
from mdi.errors import ConfigError, ControlError, MdiError, StorageError
from mdi.net.access import THIS_MACHINE, Access, is_loopback
from mdi.net.sockets import listen
from mdi.strings import one_line

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
MAX_JSON_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")


class Node(Protocol):
    """What the routes ask of a node. All calls come from HTTP threads."""

    @property
    def cache(self) -> ChunkCache | None: ...

    def status(self) -> dict[str, Any]: ...

    def request_init(self, spec: SessionSpec) -> "Future[dict[str, Any]]": ...

    def timeline(self) -> dict[str, Any]: ...

    def request_release(self, run: int) -> None: ...

    def request_stop(self, run: int | None) -> None: ...


class Busy(ControlError):
    """The node already serves a session."""


class ControlServer:
    """The HTTP side of one node. Bound on creation, serving from `start()` to `close()`.

    It is an object of its own, not cherrypy's process-wide engine: several nodes live in one process.
    """

    def __init__(self, addr: str, port: int, node: Node, access: Access = THIS_MACHINE) -> None:
        """Raises `ConfigError` where the port is taken or the address is not one of this machine."""
        with listen(addr, port) as probe:  # for its errors: cheroot's do not tell the reason
            local = probe.getsockname()[0]
        _warn_of_strangers(addr, access)
        self._closing = threading.Event()
        application = cherrypy.Application(_Routes(node, self._closing), "", config=_APPLICATION)
        application.log.access_log.disabled = True
        application.log.error_log.parent = log
        gate = Gate(application, access, local, UPLOAD_BYTES)
        self._server = WebServer(addr, port, gate, 2 * UPLOAD_BYTES, access.tls)
        try:
            self._server.prepare()
        except OSError as exc:
            raise ConfigError(f"cannot listen on {addr} port {port}: {one_line(exc)}") from exc
        self._thread = threading.Thread(target=self._server.serve, name="http-server", daemon=True)

    @property
    def port(self) -> int:
        """The port in use; of interest where port 0 was asked for."""
        return int(self._server.bind_addr[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer what is under way, for up to a second, and end all threads of the server."""
        self._closing.set()
        self._server.stop()
        if self._thread.ident is not None:
            self._thread.join()


def _warn_of_strangers(addr: str, access: Access) -> None:
    if access.key is None and not is_loopback(addr):
        whoever = "everyone" if access.addrs is None else f"whoever calls from {', '.join(access.addrs)}"
        log.warning("this ring has no key: %s may use this node, see docs/running.md", whoever)


def _error_page(status: str, message: str, traceback: str, version: str) -> str:
    cherrypy.response.headers["Content-Type"] = "application/json"
    return json.dumps({"error": html.unescape(message)})


class _Dispatcher(cherrypy.dispatch.MethodDispatcher):  # type: ignore[misc]
    """Finds the routes, and nothing else that the objects behind them have: not `/__class__`, not `/_node`."""

    def find_handler(self, path: str) -> tuple[Any, list[str]]:
        names = [name.translate(self.translate) for name in path.split("/")]  # as cherrypy will: `.` becomes `_`
        is_hidden = any(name.startswith("_") for name in names)
        found: tuple[Any, list[str]] = super().find_handler("/" if is_hidden else path)
        return (None, []) if is_hidden else found


_APPLICATION = {
    "/": {
        "request.dispatch": _Dispatcher(),
        "request.process_request_body": False,
        "request.show_tracebacks": False,
        "error_page.default": _error_page,
        "response.stream": True,
        "tools.trailing_slash.on": False,
    }
}


class _Routes:
    exposed = True

    def __init__(self, node: Node, closing: threading.Event) -> None:
        self._node = node
        self.timeline = _Timeline(node)
        self.init = _Init(node, closing)
        self.release = _Release(node)
        self.stop = _Stop(node)
        self.chunks = _Chunks(node)

    def GET(self) -> bytes:
        return _json(self._node.status())


class _Timeline:
    exposed = True

    def __init__(self, node: Node) -> None:
        self._node = node

    def GET(self) -> bytes:
        return _json(self._node.timeline())


class _Init:
    exposed = True

    def __init__(self, node: Node, closing: threading.Event) -> None:
        self._node, self._closing = node, closing

    def POST(self) -> Iterator[bytes]:
        try:
            spec = SessionSpec.from_json(_read_json())
            answer = self._node.request_init(spec)
        except Busy as exc:
            raise cherrypy.HTTPError(409, str(exc)) from exc
        except ControlError as exc:
            raise cherrypy.HTTPError(400, str(exc)) from exc
        cherrypy.response.headers["Content-Type"] = "application/json"
        cherrypy.request.wsgi_environ[STREAMED] = True
        return _wait_for(answer, self._closing)


def _wait_for(answer: "Future[dict[str, Any]]", closing: threading.Event) -> Iterator[bytes]:
    """Blanks while the node is loading, so that the starter knows it is alive; then the JSON answer."""
    while not closing.is_set():
        try:
            yield json.dumps(answer.result(timeout=HEARTBEAT_S)).encode()
            return
        except FutureTimeout:
            yield b" "
        except MdiError as exc:
            yield json.dumps({"error": str(exc), "retry": isinstance(exc, Busy)}).encode()
            return
    yield b'{"error": "the node ends", "retry": true}'


class _Release:
    exposed = True

    def __init__(self, node: Node) -> None:
        self._node = node

    def PUT(self) -> bytes:
        body = _read_json()
        if not isinstance(body, dict) or type(body.get("run")) is not int:
            raise cherrypy.HTTPError(400, 'expected {"run": number}')
        self._node.request_release(body["run"])
        return _json({"released": body["run"]})


class _Stop:
    exposed = True

    def __init__(self, node: Node) -> None:
        self._node = node

    def PUT(self) -> bytes:
        body = _read_json() if _body_length() else {}
        run = body.get("run") if isinstance(body, dict) else body
        if run is not None and type(run) is not int:
            raise cherrypy.HTTPError(400, 'expected nothing, or {"run": number}')
        self._node.request_stop(run)
        return _json({"stopping": True})


class _Chunks:
    exposed = True

    def __init__(self, node: Node) -> None:
        self._node = node

    def HEAD(self, digest: str) -> bytes:
        cherrypy.response.headers["X-Held-Bytes"] = str(_checked(lambda: self._cache().held_bytes(digest)))
        return b""

    def PUT(self, digest: str) -> bytes:
        headers = cherrypy.request.headers
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", ""))
        length = _body_length()
        if not match or length != int(match[2]) - int(match[1]) + 1 or length > UPLOAD_BYTES:
            raise cherrypy.HTTPError(400, "expected Content-Range: bytes first-last/total and a body of that length")
        start, stop, total_bytes = int(match[1]), int(match[2]) + 1, int(match[3])
        body = cherrypy.request.rfile
        held = _checked(lambda: self._cache().append(digest, start, stop, total_bytes, body))
        return _json({"held_bytes": held})

    def _cache(self) -> ChunkCache:
        if self._node.cache is None:
            raise ControlError("this node takes no chunks")
        return self._node.cache


def _checked(action: Callable[[], int]) -> int:
    try:
        return action()
    except ControlError as exc:
        raise cherrypy.HTTPError(409, str(exc)) from exc
    except StorageError as exc:
        raise cherrypy.HTTPError(507, str(exc)) from exc


def _body_length() -> int:
    if cherrypy.request.wsgi_environ.get("wsgi.input_terminated"):  # chunks, which may not be what they say they are
        raise cherrypy.HTTPError(400, "expected a body of known length, not Transfer-Encoding: chunked")
    text = cherrypy.request.headers.get("Content-Length", "0")
    if not text.isdecimal():
        raise cherrypy.HTTPError(400, "Content-Length is not a number")
    return int(text)


def _read_json() -> Any:
    length = _body_length()
    if length > MAX_JSON_BYTES:
        while cherrypy.request.rfile.read(MAX_JSON_BYTES):
            pass  # a client that is still sending would not read why it is refused
        raise cherrypy.HTTPError(413, f"a body of {length} bytes; {MAX_JSON_BYTES} are allowed")
    try:
        return json.loads(cherrypy.request.rfile.read(length))
    except (ValueError, RecursionError) as exc:
        raise cherrypy.HTTPError(400, "the body is not JSON") from exc


def _json(value: Any) -> bytes:
    cherrypy.response.headers["Content-Type"] = "application/json"
    return json.dumps(value).encode()
