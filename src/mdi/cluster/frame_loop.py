"""A socket from a node to itself, to time what the frames of a message take it beside computing.

Two threads share the work as in a ring: one reads, decodes and posts, the other takes, encodes and sends.
"""

import contextlib
import secrets
import socket
import threading

from mdi.errors import LinkClosed
from mdi.inbox import Inbox
from mdi.ring.messages import Activation, Hello, Message, Proof
from mdi.ring.transport import ReadAhead, send
from mdi.ring.wire import Decoder, Encoder, Session
from mdi.segments import Segment

KEY_BYTES = 32
TIMEOUT_S = 10.0  # for a frame to pass within this process


class FrameLoop:
    """Use it as a context. `turn` is called from one thread."""

    def __init__(self, rows: int, n_embd: int, wire_dtype: str) -> None:
        """For messages with the next token of `rows` samples, each a row of `n_embd` values."""
        session = Session(1, n_embd, wire_dtype, n_slots=rows, context=1, max_rows=rows)
        segments = tuple(Segment(slot, 0, 1, 1) for slot in range(rows))
        self._message = Activation(segments, memoryview(bytes(rows * session.row_bytes)))
        self._encoder, self._decoder, self._inbox = Encoder(session), Decoder(session), Inbox()
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> "FrameLoop":
        with contextlib.ExitStack() as stack:
            self._out, into = (stack.enter_context(sock) for sock in socket.socketpair())
            source = ReadAhead(into)
            for greeting in (Hello({}), Proof()):  # rows may pass behind them alone
                send(self._out, self._encoder, greeting)
                _receive(source, self._decoder)
            key = secrets.token_bytes(KEY_BYTES)
            self._encoder.open(key)
            self._decoder.open(key)
            reader = threading.Thread(target=self._read, args=(source,), name="frame-reader", daemon=True)
            stack.callback(reader.join)
            stack.callback(self._out.shutdown, socket.SHUT_RDWR)
            reader.start()
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def turn(self) -> None:
        """Send a message, and receive it."""
        send(self._out, self._encoder, self._message)
        self._inbox.wait_for(Activation, timeout_s=TIMEOUT_S)

    def _read(self, source: ReadAhead) -> None:
        with contextlib.suppress(LinkClosed):
            while True:
                self._inbox.post(_receive(source, self._decoder))


def _receive(source: ReadAhead, decoder: Decoder) -> Message:
    """The next message. Raises `LinkClosed` at the end."""
    while True:
        if not (n_bytes := source.recv_into(decoder.buffer())):
            decoder.end_of_file()
        if (message := decoder.received(n_bytes)) is not None:
            return message
