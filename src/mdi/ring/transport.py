"""One frame onto a socket, plain or TLS."""

import socket
import ssl

from mdi.ring.messages import Message
from mdi.ring.wire import Encoder


def send(sock: socket.socket, encoder: Encoder, message: Message) -> None:
    """Send one frame; the timeout of `sock` bounds each step without progress."""
    parts = encoder.encode(message)
    if isinstance(sock, ssl.SSLSocket):
        for part in parts:
            sock.sendall(part)
    else:
        _send_together(sock, parts)


def _send_together(sock: socket.socket, parts: list[bytes | memoryview]) -> None:
    """Send the parts in one system call, without joining them: header and segments are tiny, the rows are megabytes.

    TLS, which copies anyway, has no such call.
    """
    buffers = [memoryview(part) for part in parts]
    while buffers:
        sent = sock.sendmsg(buffers)
        while buffers and sent >= len(buffers[0]):
            sent -= len(buffers.pop(0))
        if sent:
            buffers[0] = buffers[0][sent:]
