"""cheroot's HTTP server as a node needs it: our log, our connections, and limits on unauthenticated clients.

Requests reach a thread with their head complete, from `mdi.control.connections`. A body is read under a deadline, and
only when the middleware in front of the routes asks for it: not before the client is authorized.
"""

import logging
import re
import threading
from collections.abc import Callable
from typing import Any

from cheroot import server, wsgi

from mdi import __version__
from mdi.control.connections import ConnectionLoop
from mdi.control.hosts import LOCAL_ADDRESS
from mdi.control.streams import MAX_HEAD_BYTES
from mdi.errors import ConfigError
from mdi.net.access import THIS_MACHINE, Access, AllowedHosts, as_written
from mdi.net.refusals import RefusalLog
from mdi.net.sockets import BACKLOG
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.strings import one_line

log = logging.getLogger(__name__)

MAX_IGNORED_BYTES = 1 << 20  # of a refused body that is received, so that the client reads the refusal
N_THREADS = 8
SERVER_NAME = f"mdi-llm/{__version__}"  # in answers
CONNECTION = "mdi.connection"  # in the environ: whose request it is
_VERSION = re.compile(rb"HTTP/\d\.\d")


class _Gateway(wsgi.Gateway_10):
    def get_environ(self) -> dict[str, Any]:  # type: ignore[override]  # the stubs say that it returns nothing
        environ: dict[str, Any] = super().get_environ()  # type: ignore[no-untyped-call]
        environ[CONNECTION] = self.req.conn
        environ[LOCAL_ADDRESS] = self.req.conn.socket.getsockname()[:2]
        environ["wsgi.url_scheme"] = "http" if self.req.server.access.tls is None else "https"
        return environ


class _HeaderReader(server.HeaderReader):
    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        try:
            headers: dict[bytes, bytes] = super().__call__(rfile, hdict)
        except UnboundLocalError as exc:  # cheroot 11 does not expect the continuation of no header
            raise ValueError("Illegal continuation line.") from exc
        return headers


class _Request(server.HTTPRequest):
    header_reader = _HeaderReader()

    def read_request_line(self) -> bool:
        """cheroot takes HTTP/1.-1 for a version, and cherrypy fails on it."""
        if not super().read_request_line():  # type: ignore[no-untyped-call]
            return False
        if _VERSION.fullmatch(self.request_protocol) is None:
            self.simple_response("400 Bad Request", "Malformed Request-Line: bad version")
            return False
        return True

    def respond(self) -> None:
        self.conn.rfile.expect_body()
        super().respond()

    def send_headers(self) -> None:
        """cheroot first reads what is left of a body, lest closing resets: the loop can do that without a thread."""
        unread = getattr(self.rfile, "remaining", 0)
        if self.chunked_read or unread > MAX_IGNORED_BYTES:
            self.close_connection = True
        elif unread > 0:
            self.conn.rfile.ignore(unread)
            self.rfile.remaining = 0
        super().send_headers()


class WebServer(wsgi.Server):
    """A server of one WSGI application."""

    max_request_header_size = MAX_HEAD_BYTES
    request_class = _Request

    def __init__(
        self,
        addr: str,
        port: int,
        application: Any,
        max_body_bytes: int,
        access: Access = THIS_MACHINE,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        refusals: RefusalLog | None = None,
        n_threads: int = N_THREADS,
    ) -> None:
        """`n_threads` requests are answered at once."""
        super().__init__(
            (addr, port),
            application,
            numthreads=n_threads,
            server_name=SERVER_NAME,
            request_queue_size=BACKLOG,
            shutdown_timeout=timeouts.server_stop_s,  # type: ignore[arg-type]  # its stubs say int, its code takes both
        )
        self.gateway = _Gateway
        self.max_request_body_size = max_body_bytes
        self.access, self.timeouts = access, timeouts
        self._refusals = refusals or RefusalLog()

    def prepare(self) -> None:
        """Listen, and start the threads of the pool. Raises `OSError`."""
        super().prepare()
        self._connections: Any
        self._connections.close()  # cheroot's; its selector is the only thing in it
        local = self.socket.getsockname()[0]
        known = AllowedHosts(("127.0.0.1", *(self.access.addrs or ())), local, resolve=as_written)
        self.connections = ConnectionLoop(self, self.socket, self.access.tls, known.include, self._refusals)
        self._connections = self.connections

    def serve(self) -> None:
        """Answer requests until `stop`.

        cheroot's own starts one more thread, for requests that the pool has no room for, and does not wait for its end.
        Here there are none: the loop gives the pool no more requests than it has threads.
        """
        while self.ready:
            try:
                self.connections.run(self.expiration_interval)
            except Exception:  # noqa: BLE001  a bug: the others' connections are served on
                self.error_log("error in the loop of connections", logging.ERROR, traceback=True)

    def stop(self) -> None:
        """End all threads, and leave cheroot's list of servers, which lasts as long as the process."""
        super().stop()
        getattr(logging, "statistics", {}).pop(f"Cheroot HTTPServer {id(self)}", None)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        """Called by cheroot; most of it is about what a client did."""
        self._refusals.add(log, "%s", msg, level=level, trace=traceback)


class ServingThread:
    """A web server in a thread of its own. Bound on creation, serving from `start()` to `close()`.

    It is an object of its own, not cherrypy's process-wide engine: several nodes live in one process.
    """

    def __init__(self, server: WebServer, name: str) -> None:
        """Raises `ConfigError` where the server cannot listen."""
        self._server = server
        try:
            server.prepare()
        except OSError as exc:
            addr, port = server.bind_addr[:2]
            raise ConfigError(f"cannot listen on {addr} port {port}: {one_line(exc)}") from exc
        self._thread = threading.Thread(target=server.serve, name=name, daemon=True)

    @property
    def port(self) -> int:
        """The port in use; of interest where port 0 was asked for."""
        return int(self._server.bind_addr[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Answer what is under way, for up to a second, and end all threads of the server."""
        self._server.stop()
        if self._thread.ident is not None:
            self._thread.join()


def marking(application: Any) -> Callable[..., Any]:
    """The application behind the middleware, so that the server knows the connections of authorized clients."""

    def call(environ: dict[str, Any], start_response: Any) -> Any:
        environ[CONNECTION].authenticate()
        return application(environ, start_response)

    return call
