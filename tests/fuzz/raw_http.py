"""Raw HTTP requests through cheroot's parser and an application, without sockets and threads."""

import io
import logging
import re
from collections.abc import Sequence

from mdi.control.hosts import host_of
from mdi.control.server import WebServer, _Request
from mdi.control.streams import RequestStream
from mdi.net.timeouts import DEFAULT_TIMEOUTS

LOCAL, PORT, STRANGER = "127.0.0.1", 8088, "203.0.113.5"
HOST = host_of(LOCAL, PORT)
N_REQUESTS = 4  # on one connection
_ALLOWED_5XX = {501, 505, 507}
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")


class Source:
    """A socket that has received some bytes, and then the end of the stream."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def recv(self, size: int) -> bytes:
        return self._data.read(size)

    def settimeout(self, timeout_s: float) -> None:
        pass


class Connection:
    """What cheroot's request asks of a connection."""

    def __init__(self, data: bytes, remote_addr: str) -> None:
        self.rfile, self.wfile = RequestStream(Source(data), DEFAULT_TIMEOUTS), io.BytesIO()  # type: ignore[arg-type]
        self.remote_addr, self.remote_port = remote_addr, 40000
        self.ssl_env: dict[str, str] = {}
        self.socket = self  # of which the gateway asks one thing
        self.peercreds_enabled = self.peercreds_resolve_enabled = False

    def has_request(self) -> bool:
        """Whether another whole head has come, as the server's loop finds out."""
        while not self.rfile.has_head():
            if not self.rfile.receive():
                return False
        return True

    def getsockname(self) -> tuple[str, int]:
        return LOCAL, PORT


class InertServer(WebServer):
    """A server that is never started."""

    can_add_keepalive_connection = True  # the real one asks its selector, which is not running


class ErrorLog(logging.Handler):
    """What the product logs as an error, which goes nowhere else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.last = ""
        logger = logging.getLogger("mdi")
        logger.addHandler(self)
        logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        self.last = self.format(record)


def exchange(server: InertServer, connection: Connection) -> None:
    """Answer the requests of a connection."""
    for _ in range(N_REQUESTS):
        if not connection.has_request():
            return
        request = _Request(server, connection)
        request.parse_request()
        if not request.ready:
            return
        request.respond()
        if request.close_connection:
            return


def sound_statuses(answer: bytes, errors: ErrorLog) -> list[int]:
    """The statuses of all that was answered. Raises `AssertionError` where one is an error that was not foreseen."""
    statuses = [int(status) for status in _STATUS.findall(answer)]
    wrong = [status for status in statuses if status >= 500 and status not in _ALLOWED_5XX]
    assert not wrong, f"answered {wrong}: {errors.last}"
    assert not errors.last, errors.last
    return statuses


def request_of(method: bytes, path: bytes, headers: Sequence[bytes] = (), body: bytes = b"") -> bytes:
    head = b"\r\n".join((method + b" " + path + b" HTTP/1.1", b"Host: " + HOST.encode(), _type_of(path), *headers))
    return (fitting(head, body) if body else head) + b"\r\n\r\n" + body


def _type_of(path: bytes) -> bytes:
    return b"Content-Type: application/" + (b"octet-stream" if path.startswith(b"/chunks/") else b"json")


def fitting(head: bytes, body: bytes) -> bytes:
    """The head with the length of the body in it."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)])
