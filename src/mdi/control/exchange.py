"""Requests to another node over one connection, bounded in time and in bytes.

A socket's timeout bounds each read alone, and HTTP libraries read an answer whole: a node that sends one byte a second
would hold its caller for ever, and one that sends gigabytes would fill its memory. So every step gets the time that is
left, and everything that comes is counted, heads and framing included. Nothing is decompressed, and no redirection is
followed.
"""

import contextlib
import http.client
import io
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mdi.net.access import plain_address
from mdi.net.sockets import configure
from mdi.net.timeouts import Timeouts
from mdi.net.tls import Tls, host_name

MAX_HEAD_BYTES = 64 << 10  # of an answer
READ_BYTES = 64 << 10
SEND_BYTES = 256 << 10  # of a body in one step: the timeout bounds a silence, and a network may be slow


class AnswerTooLarge(Exception):
    """More comes than any answer to this request can have."""


@dataclass(frozen=True)
class Bounds:
    """How long a call may take, and how much may come back."""

    silence_s: float  # of the other side: for each step
    deadline_s: float  # for the whole call, by the clock of `Timeouts`
    max_bytes: int  # of the body of an answer


class Connection:
    """A connection for the requests of one call. Use it as a context.

    Its methods raise what sockets, `ssl` and `http.client` raise, and `AnswerTooLarge`. It is closed from this side:
    `Connection: close` would leave the node's fixed port in TIME_WAIT.
    """

    def __init__(self, addr: str, port: int, tls: Tls | None, bounds: Bounds, timeouts: Timeouts) -> None:
        self._addr, self._port, self._tls, self._bounds, self._timeouts = addr, port, tls, bounds, timeouts
        self._sock: socket.socket | None = None
        self.has_answered = False  # to any request

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def connect(self) -> None:
        """Reach the node; TLS is agreed on with the first request."""
        step_s = min(self._timeouts.connect_s, self._step_s())
        self._sock = socket.create_connection((self._addr, self._port), timeout=step_s)
        configure(self._sock, step_s)

    @property
    def peer_address(self) -> str:
        """The address that was reached; of a connection that is open."""
        assert self._sock is not None, "called after `connect`"
        return plain_address(self._sock.getpeername()[0])

    def ask(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | memoryview = b""
    ) -> http.client.HTTPResponse:
        """Send a request; returns the head of its answer, whose body `read` reads."""
        if self._sock is None:
            self.connect()
        sock = self._secured()
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        # Whoever refuses a request before its body was read may close at once; the answer, which says why, has arrived.
        # So may whoever rejects our certificate, when our side of the handshake is over; then it is the alert.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            for block in _blocks("\r\n".join(lines).encode("latin-1")) + _blocks(body):
                sock.settimeout(self._step_s())
                sock.sendall(block)
        reader = _Reader(sock, self._step_s, MAX_HEAD_BYTES + self._bounds.max_bytes)
        response = http.client.HTTPResponse(reader, method=method)  # type: ignore[arg-type]
        response.begin()
        self.has_answered = True
        return response

    def read(self, response: http.client.HTTPResponse, max_bytes: int) -> bytes:
        """The body of an answer of this connection, at most so many bytes."""
        body = bytearray()
        if (response.length or 0) > max_bytes:
            raise AnswerTooLarge
        while block := response.read1(READ_BYTES):
            body += block
            if len(body) > max_bytes:
                raise AnswerTooLarge
        if response.length:  # `read1` takes the end of the connection for the end of the body
            raise http.client.IncompleteRead(b"", response.length)
        if response.will_close:
            self._close()
        return bytes(body)

    def _secured(self) -> socket.socket:
        assert self._sock is not None, "called by `ask`, after `connect`"
        if self._tls is not None and not isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(self._step_s())
            self._sock = self._tls.client.wrap_socket(self._sock, server_hostname=host_name(self._addr))
        return self._sock

    def _step_s(self) -> float:
        """How long the next step may take. Raises `TimeoutError` where the time is up."""
        left_s = self._timeouts.left_s(self._bounds.deadline_s)
        if left_s <= 0:
            raise TimeoutError
        return min(self._bounds.silence_s, left_s)

    def _close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        self._sock = None


class _Reader(io.RawIOBase):
    """What comes on a connection, for `http.client`: until the deadline, and no more than an answer may have."""

    def __init__(self, sock: socket.socket, step_s: Callable[[], float], max_bytes: int) -> None:
        self._sock, self._step_s, self._left_bytes = sock, step_s, max_bytes

    def makefile(self, mode: str) -> io.BufferedReader:
        """`http.client` asks a socket for this."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._sock.settimeout(self._step_s())
        n_bytes = self._sock.recv_into(buffer)
        self._left_bytes -= n_bytes
        if self._left_bytes < 0:
            raise AnswerTooLarge
        return n_bytes


def _blocks(body: bytes | memoryview) -> list[memoryview]:
    view = memoryview(body)
    return [view[start : start + SEND_BYTES] for start in range(0, len(view), SEND_BYTES)]
