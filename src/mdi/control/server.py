"""cheroot's HTTP server as a node needs it: logging to our log, with TLS, and with bounds on what strangers can hold.

A connection takes none of the server's threads before something has come from it, and a request that has begun
must have its head complete in a few seconds; the gate behind it reads no body of a request that it does not let in.
"""

import contextlib
import logging
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from typing import Any

from cheroot import errors, server, wsgi
from cheroot.ssl.builtin import BuiltinSSLAdapter

from mdi import __version__
from mdi.net.sockets import BACKLOG, wake
from mdi.net.tls import Tls

log = logging.getLogger(__name__)

HEAD_TIMEOUT_S = 5.0  # for TLS, the request line and all headers together
MAX_STRANGERS = 64  # connections from which no request has come yet; beyond it the oldest has to go
MAX_HEADER_BYTES = 64 << 10
MAX_IGNORED_BYTES = 1 << 20  # of a refused body that is read, so that the client reads the refusal
N_THREADS = 8
_VERSION = re.compile(rb"HTTP/\d\.\d")


class WebServer(wsgi.Server):
    """A server of one WSGI application."""

    expiration_interval = 0.1  # how often it looks whether it is to end
    max_request_header_size = MAX_HEADER_BYTES

    def __init__(self, addr: str, port: int, application: Any, max_body_bytes: int, tls: Tls | None) -> None:
        super().__init__(
            (addr, port),
            application,
            numthreads=N_THREADS,
            server_name=f"mdi-llm/{__version__}",
            request_queue_size=BACKLOG,
            timeout=30,
            shutdown_timeout=1,
        )
        self.ConnectionClass = _Connection
        self.max_request_body_size = max_body_bytes
        self.strangers: dict[_Connection, None] = {}  # in the order in which they came
        if tls is not None:
            self.ssl_adapter = _TlsAdapter(tls)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "%s", msg, exc_info=traceback)

    def process_conn(self, conn: "_Connection") -> None:
        """Called by the accepting thread with a new connection, and with any that has something to be read."""
        if conn.waited_for:
            super().process_conn(conn)
            return
        conn.waited_for = True
        self.strangers[conn] = None
        if len(self.strangers) > MAX_STRANGERS:
            wake(next(iter(self.strangers)).socket)  # a thread will find it closed
        self.put_conn(conn)


class _HeaderReader(server.HeaderReader):
    def __call__(self, rfile: Any, hdict: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        try:
            headers: dict[bytes, bytes] = super().__call__(rfile, hdict)
        except UnboundLocalError as exc:  # cheroot 11 does not expect the continuation of no header
            raise ValueError("Illegal continuation line.") from exc
        return headers


class _Request(server.HTTPRequest):
    header_reader = _HeaderReader()

    def parse_request(self) -> None:
        try:
            with _cut_off(self.conn.socket, HEAD_TIMEOUT_S):
                super().parse_request()
        except ssl.SSLError as exc:
            log.warning("refused a connection from %s, which does not agree on TLS: %s", self.conn.remote_addr, exc)
            raise errors.FatalSSLAlert(*exc.args) from exc
        self.server.strangers.pop(self.conn, None)

    def read_request_line(self) -> bool:
        """cheroot takes HTTP/1.-1 for a version, and cherrypy fails on it."""
        if not super().read_request_line():  # type: ignore[no-untyped-call]
            return False
        if _VERSION.fullmatch(self.request_protocol) is None:
            self.simple_response("400 Bad Request", "Malformed Request-Line: bad version")
            return False
        return True

    def send_headers(self) -> None:
        """cheroot reads what is left of a body first: not of one that is too long, nor for ever."""
        if getattr(self.rfile, "remaining", 0) > MAX_IGNORED_BYTES:
            self.close_connection = True
        with _cut_off(self.conn.socket, HEAD_TIMEOUT_S):
            super().send_headers()


class _Connection(server.HTTPConnection):
    RequestHandlerClass = _Request
    waited_for = False

    def close(self) -> None:
        self.server.strangers.pop(self, None)
        super().close()
        with contextlib.suppress(OSError):
            self.wfile.close()  # cheroot leaves it, and with it the socket, to the garbage collector


@contextlib.contextmanager
def _cut_off(sock: socket.socket, after_s: float) -> Iterator[None]:
    """End the connection unless the block is through in time: the timeout of a socket bounds each read alone."""
    timer = threading.Timer(after_s, wake, [sock])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class _TlsAdapter(BuiltinSSLAdapter):
    """Shakes hands where a request is read, in a thread of the pool: the accepting thread must not wait."""

    def __init__(self, tls: Tls) -> None:  # not cheroot's: it builds a context that asks for no certificate
        self.context = tls.server

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, Any]]:
        try:
            wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as exc:
            raise errors.FatalSSLAlert(*exc.args) from exc
        return wrapped, {"wsgi.url_scheme": "https"}
