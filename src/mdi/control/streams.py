"""The two files of an HTTP connection, which cheroot reads a request from and writes its answer to."""

import errno
import socket
import ssl

from mdi.net.timeouts import Timeouts

MAX_HEAD_BYTES = 16 << 10  # of a request line and all headers
MIN_BYTES_PER_S = 64 << 10  # of a body, after a while: a slower one is cut short
_RECEIVE_BYTES = 64 << 10
_END_OF_HEAD = b"\r\n\r\n"
_TLS_HANDSHAKE = b"\x16\x03"  # the type of the record, and the first byte of every version since SSL 3


class RequestStream:
    """What a client sends.

    First the connection's loop receives a whole head, without waiting. Then a thread of the pool reads it, and waits
    for the body, up to a deadline. Bytes of the next request stay here.
    """

    def __init__(self, sock: socket.socket, timeouts: Timeouts) -> None:
        self._sock, self._timeouts = sock, timeouts
        self._data = bytearray()
        self._n_searched = 0
        self._n_ignored = 0
        self._body_deadline_s: float | None = None  # later with each byte that comes
        self.closed = False

    # ---- called from the loop

    def receive(self) -> bool:
        """Take what has come; False at the end of the stream. Raises `BlockingIOError` and its like for nothing."""
        data = self._sock.recv(_RECEIVE_BYTES)
        self._data += data
        return bool(data)

    def has_head(self) -> bool:
        """Whether the head of a request is complete, or so long that cheroot will refuse it."""
        n_dropped = min(self._n_ignored, len(self._data))
        self._drop(n_dropped)
        self._n_ignored -= n_dropped
        if self._n_ignored:
            return False
        found = self._data.find(_END_OF_HEAD, max(0, self._n_searched - len(_END_OF_HEAD)))
        self._n_searched = len(self._data)
        return found >= 0 or len(self._data) > MAX_HEAD_BYTES

    def is_tls(self) -> bool:
        """Whether the client has begun a TLS handshake where none is expected."""
        return self._data.startswith(_TLS_HANDSHAKE)

    # ---- called from a thread of the pool

    def expect_body(self) -> None:
        """From now on `read` waits for what has not come yet of a body.

        What has come earns time, not what was announced: who sends a byte now and then would hold a thread, and the
        chunk that he writes to, for as long as 16 MB may take.
        """
        self._body_deadline_s = self._timeouts.deadline_s(self._timeouts.request_read_s)

    def ignore(self, n_bytes: int) -> None:
        """Drop the next `n_bytes`, the rest of a body, when they come."""
        self._n_ignored, self._body_deadline_s = n_bytes, None

    def read(self, size: int) -> bytes:
        """`size` bytes, or fewer where the body ends early or comes too slowly."""
        while len(self._data) < size and self._wait_for_more():
            pass
        return self._take(size)

    def readline(self, size: int = MAX_HEAD_BYTES) -> bytes:
        """A line of at most `size` bytes; a part of it where no more comes."""
        while (end := self._data.find(b"\n", 0, size)) < 0 and len(self._data) < size and self._wait_for_more():
            pass
        return self._take(size if end < 0 else end + 1)

    def close(self) -> None:
        self.closed = True
        self._data.clear()

    def _wait_for_more(self) -> bool:
        if self._body_deadline_s is None:
            return False
        left_s = min(self._timeouts.request_read_s, self._timeouts.left_s(self._body_deadline_s))
        try:
            self._sock.settimeout(left_s)
            n_before = len(self._data)
            if left_s and self.receive():
                self._body_deadline_s += (len(self._data) - n_before) / MIN_BYTES_PER_S
                return True
        except OSError:  # silence, a reset, TLS that broke: the body ends here, and whoever reads it says so
            pass
        self._body_deadline_s = None
        return False

    def _take(self, size: int) -> bytes:
        data = bytes(self._data[: max(size, 0)])
        self._drop(len(data))
        return data

    def _drop(self, n_bytes: int) -> None:
        del self._data[:n_bytes]
        self._n_searched = 0


class ResponseStream:
    """What a client is answered. A thread of the pool never waits for an unauthenticated client to read.

    Its answers are short: where one does not fit into what the system holds for the connection, the client has asked
    again and again without reading.
    """

    def __init__(self, sock: socket.socket, timeouts: Timeouts) -> None:
        self._sock, self._timeouts = sock, timeouts
        self.may_wait = False
        self.closed = False

    def write(self, data: bytes) -> None:
        """Send all of `data`, in time. Raises `OSError`."""
        patience_s = self._timeouts.request_read_s + len(data) / MIN_BYTES_PER_S
        self._sock.settimeout(patience_s if self.may_wait else 0.0)
        try:
            self._sock.sendall(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError) as exc:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client does not read its answers") from exc

    def close(self) -> None:
        self.closed = True
