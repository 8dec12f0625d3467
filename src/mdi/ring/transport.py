"""One frame onto a socket, plain or TLS."""

import socket
import ssl

from mdi.ring.messages import Message
from mdi.ring.pace import Transfer
from mdi.ring.wire import Encoder


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
