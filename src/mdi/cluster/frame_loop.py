"""A socket from a node to itself, to time what the frames of a message take it beside computing.

One thread does what two do in a ring. Where a busy program shares the core, it would have its turn whenever one of them
waits for the other, for milliseconds; a node that is behind with its messages never waits.
"""

import contextlib
import secrets
import socket

from mdi.ring.messages import Activation, Hello, Message, Proof
from mdi.ring.transport import ReadAhead, send
from mdi.ring.wire import DTYPE_BYTES, Decoder, Encoder, Session
from mdi.segments import Segment

KEY_BYTES = 32
MAX_BYTES = 64 << 10  # of rows, which the system takes while nobody reads
TIMEOUT_S = 10.0


class FrameLoop:
    """Use it as a context."""

    def __init__(self, rows: int, n_embd: int, wire_dtype: str) -> None:
        """For messages with the next token of `rows` samples, each a row of `n_embd` values, or as much of them as is
        sent before anything is received.
        """
        width = min(n_embd, MAX_BYTES // DTYPE_BYTES[wire_dtype])
        rows = min(rows, MAX_BYTES // (width * DTYPE_BYTES[wire_dtype]))
        session = Session(1, width, wire_dtype, n_slots=rows, context=1, max_rows=rows)
        segments = tuple(Segment(slot, 0, 1, 1) for slot in range(rows))
        self._message = Activation(segments, memoryview(bytes(rows * session.row_bytes)))
        self._encoder, self._decoder = Encoder(session), Decoder(session)
        self._resources = contextlib.ExitStack()

    def __enter__(self) -> "FrameLoop":
        with contextlib.ExitStack() as stack:
            self._out, into = (stack.enter_context(sock) for sock in socket.socketpair())
            for sock in (self._out, into):
                sock.settimeout(TIMEOUT_S)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_BYTES)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * MAX_BYTES)
            self._source = ReadAhead(into)
            for greeting in (Hello({}), Proof()):  # rows may pass behind them alone
                self._pass(greeting)
            key = secrets.token_bytes(KEY_BYTES)
            self._encoder.open(key)
            self._decoder.open(key)
            self._resources = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._resources.close()

    def turn(self) -> None:
        """Send a message, and receive it."""
        self._pass(self._message)

    def _pass(self, message: Message) -> None:
        send(self._out, self._encoder, message)
        while self._decoder.received(self._source.recv_into(self._decoder.buffer())) is None:
            pass
