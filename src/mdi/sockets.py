"""What the reader and the writer of a link do to their sockets, plain or TLS."""

import contextlib
import socket
import ssl
import struct

from mdi.messages import Message
from mdi.wire import Encoder

BACKLOG = 64  # connections that the system holds until we accept them
GOODBYE_TIMEOUT_S = 2.0

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def configure(sock: socket.socket, timeout_s: float) -> None:
    sock.settimeout(timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def send(sock: socket.socket, encoder: Encoder, message: Message) -> None:
    """Send one frame; the timeout of `sock` bounds each step without progress."""
    parts = encoder.encode(message)
    if isinstance(sock, ssl.SSLSocket):
        for part in parts:
            sock.sendall(part)
    else:
        _send_together(sock, parts)


def _send_together(sock: socket.socket, parts: list[bytes | memoryview]) -> None:
    """Send the parts side by side, without joining them; TLS, which copies anyway, has no such call."""
    buffers = [memoryview(part) for part in parts]
    while buffers:
        sent = sock.sendmsg(buffers)
        while buffers and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if sent:
            buffers[0] = buffers[0][sent:]


def wake(sock: socket.socket) -> None:
    """Let whatever waits on `sock` in another thread end.

    Not `SSLSocket.shutdown`: it drops the encryption first, and the other thread might just be sending.
    """
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def await_close(sock: socket.socket) -> None:
    """Wait until the peer, having read our last frame, closes; so that resetting loses nothing."""
    sock.settimeout(GOODBYE_TIMEOUT_S)
    with contextlib.suppress(OSError):
        sock.recv(1)


def abandon(sock: socket.socket) -> None:
    """Close with a reset, so that neither end's port lingers in TIME_WAIT."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()
