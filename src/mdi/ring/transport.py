"""Frames onto a socket and from it, plain or TLS."""

import socket
import ssl

from mdi.ring.messages import Message
from mdi.ring.pace import Transfer
from mdi.ring.wire import Encoder

READ_AHEAD_BYTES = 64 << 10


def send(sock: socket.socket, encoder: Encoder, message: Message, transfer: Transfer | None = None) -> None:
    """Send one frame; the timeout of `sock` bounds each step without progress, and `transfer` the whole.

    The parts go out in one system call, without being joined: header and segments are tiny, the rows are megabytes.
    TLS, which copies anyway, has no such call.
    """
    buffers = [memoryview(part) for part in encoder.encode(message)]
    n_bytes = sum(map(len, buffers))
    while buffers:
        sent = sock.send(buffers[0]) if isinstance(sock, ssl.SSLSocket) else sock.sendmsg(buffers)
        while buffers and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if sent:
            buffers[0] = buffers[0][sent:]
        if buffers and transfer is not None:
            transfer.check(n_bytes)
    if transfer is not None:
        transfer.end(n_bytes)


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
