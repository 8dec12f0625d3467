"""Frames onto a socket and from it, plain or TLS, with as few system calls as they take."""

import os
import socket
import ssl
from collections.abc import Sequence

from mdi.ring.messages import Message
from mdi.ring.pace import Transfer
from mdi.ring.wire import Encoder

READ_AHEAD_BYTES = 64 << 10


def send(sock: socket.socket, encoder: Encoder, message: Message) -> None:
    """Send one frame; the timeout of `sock` bounds each step without progress."""
    OutgoingFrame(encoder.encode(message)).send(sock)


class OutgoingFrame:
    """One frame on its way onto a socket.

    The parts go out in one system call, without being joined: header and segments are tiny, the rows are megabytes.
    TLS, which copies anyway, has no such call.
    """

    def __init__(self, parts: Sequence[bytes | memoryview], transfer: Transfer | None = None) -> None:
        """`transfer` bounds the whole of it."""
        self._left = [memoryview(part) for part in parts]
        self._n_bytes = sum(map(len, parts))
        self._transfer = transfer

    def send(self, sock: socket.socket) -> None:
        """Send what is left; the timeout of `sock` bounds each step without progress."""
        while self._left:
            self._pass(sock.send(self._left[0]) if isinstance(sock, ssl.SSLSocket) else sock.sendmsg(self._left))
            if self._left and self._transfer is not None:
                self._transfer.check(self._n_bytes)
        if self._transfer is not None:
            self._transfer.end(self._n_bytes)

    def send_at_once(self, sock: socket.socket) -> bool:
        """Send as much as the system takes now; whether that is all. For plain sockets with a timeout.

        Such sockets do not block. Their own `sendmsg` would first ask, in a system call more, whether it may write.
        """
        try:
            self._pass(os.writev(sock.fileno(), self._left))
        except BlockingIOError:
            return False
        if not self._left and self._transfer is not None:
            self._transfer.end(self._n_bytes)
        return not self._left

    def _pass(self, n_bytes: int) -> None:
        """So many bytes more are on their way."""
        left = self._left
        while left and n_bytes >= len(left[0]):
            n_bytes -= len(left.pop(0))
        if n_bytes:
            left[0] = left[0][n_bytes:]


class ReadAhead:
    """The bytes of a socket, of which one read takes as many as there are: a small frame, and what is behind it.

    Into buffers of `READ_AHEAD_BYTES` or more it reads directly: these are rows, and become a tensor as they are.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._read = memoryview(bytearray(READ_AHEAD_BYTES))
        self._start = self._stop = 0  # of what was read and not taken

    def recv_into(self, buffer: memoryview) -> int:
        """Fill a part of `buffer`, and return how much; 0 at the end of the stream. Waits as the socket does."""
        if self._start == self._stop:
            if len(buffer) >= READ_AHEAD_BYTES:
                return self._sock.recv_into(buffer)
            self._start, self._stop = 0, self._sock.recv_into(self._read)
        n_bytes = min(len(buffer), self._stop - self._start)
        buffer[:n_bytes] = self._read[self._start : self._start + n_bytes]
        self._start += n_bytes
        return n_bytes
