"""cheroot's HTTP server as a node needs it: our log, TLS, and limits on unauthenticated connections.

A connection takes none of the server's threads before something has come from it, and a request that has begun must
have its head complete in a few seconds; the middleware behind it reads no body of a request that is not authorized.
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
from mdi.net.timeouts import DEFAULT_TIMEOUTS, Timeouts
from mdi.net.tls import Tls

log = logging.getLogger(__name__)

MAX_NEW_CONNECTIONS = 64  # from which no request has come yet; beyond it the oldest is closed
MAX_HEADER_BYTES = 64 << 10
MAX_IGNORED_BYTES = 1 << 20  # of a refused body that is read, so that the client reads the refusal
N_THREADS = 8
_VERSION = re.compile(rb"HTTP/\d\.\d")


class WebServer(wsgi.Server):
    """A server of one WSGI application."""

    expiration_interval = 0.1  # how often it looks whether it is to end
    max_request_header_size = MAX_HEADER_BYTES

    def __init__(
        self,
        addr: str,
        port: int,
        application: Any,
        max_body_bytes: int,
        tls: Tls | None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> None:
        super().__init__(
            (addr, port),
            application,
            numthreads=N_THREADS,
            server_name=f"mdi-llm/{__version__}",
            request_queue_size=BACKLOG,
            timeout=timeouts.request_read_s,  # type: ignore[arg-type]  # its stubs say int, its code takes both
            shutdown_timeout=timeouts.server_stop_s,  # type: ignore[arg-type]
        )
        self.ConnectionClass = _Connection
        self.max_request_body_size = max_body_bytes
        self.timeouts = timeouts
        self.new_connections: dict[_Connection, None] = {}  # the oldest first
        if tls is not None:
            self.ssl_adapter = _TlsAdapter(tls)

    def error_log(self, msg: str = "", level: int = logging.INFO, traceback: bool = False) -> None:
        log.log(level, "%s", msg, exc_info=traceback)

    def process_conn(self, conn: "_Connection") -> None:
        """Called by the accepting thread with a new connection, and with any that has something to be read.

        cheroot hands a new connection to a thread at once, and there it waits for its first byte: eight silent clients
        would occupy all eight threads. So the first time it is put among the idle ones, which cost no thread; cheroot's
        selector calls this again when something has come. This thread accepts all connections, so it must not block
        here, in a TLS handshake for one: see `_TlsAdapter`.
        """
        if conn.was_idle:
            super().process_conn(conn)
            return
        conn.was_idle = True
        self.new_connections[conn] = None
        if len(self.new_connections) > MAX_NEW_CONNECTIONS:
            wake(next(iter(self.new_connections)).socket)  # it becomes readable, and a thread closes it
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
            with _deadline(self.conn.socket, self.server.timeouts.request_head_s):
                super().parse_request()
        except ssl.SSLError as exc:
            log.warning("refused a connection from %s, which does not agree on TLS: %s", self.conn.remote_addr, exc)
            raise errors.FatalSSLAlert(*exc.args) from exc
        self.server.new_connections.pop(self.conn, None)

    def read_request_line(self) -> bool:
        """cheroot takes HTTP/1.-1 for a version, and cherrypy fails on it."""
        if not super().read_request_line():  # type: ignore[no-untyped-call]
            return False
        if _VERSION.fullmatch(self.request_protocol) is None:
            self.simple_response("400 Bad Request", "Malformed Request-Line: bad version")
            return False
        return True

    def send_headers(self) -> None:
        """cheroot first reads what is left of a body, lest closing resets: but not megabytes, and not for ever."""
        if getattr(self.rfile, "remaining", 0) > MAX_IGNORED_BYTES:
            self.close_connection = True
        with _deadline(self.conn.socket, self.server.timeouts.request_head_s):
            super().send_headers()


class _Connection(server.HTTPConnection):
    RequestHandlerClass = _Request
    was_idle = False

    def close(self) -> None:
        self.server.new_connections.pop(self, None)
        super().close()
        with contextlib.suppress(OSError):
            self.wfile.close()  # cheroot leaves it, and with it the socket, to the garbage collector


@contextlib.contextmanager
def _deadline(sock: socket.socket, after_s: float) -> Iterator[None]:
    """End the connection unless the block is through in time.

    A socket's timeout bounds each read alone: a client that sends a byte a second would hold its thread for ever.
    """
    timer = threading.Timer(after_s, wake, [sock])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class _TlsAdapter(BuiltinSSLAdapter):
    """Leaves the TLS handshake to the first read, in a thread of the pool.

    cheroot wraps on the accepting thread, which one client that connects and sends nothing would block for all others.
    """

    def __init__(self, tls: Tls) -> None:  # not cheroot's: it builds a context that asks for no certificate
        self.context = tls.server

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, Any]]:
        try:
            wrapped = self.context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except OSError as exc:
            raise errors.FatalSSLAlert(*exc.args) from exc
        return wrapped, {"wsgi.url_scheme": "https"}
