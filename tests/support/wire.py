"""Raw frames, built by hand from the byte table of the protocol, and a session to hold them against."""

import dataclasses
import struct
import zlib
from collections.abc import Iterable, Iterator

from hypothesis import HealthCheck, settings

from mdi.ring.messages import Activation, Fault, Goodbye, Hello, Message, Ping, Proof, Refuse, Welcome
from mdi.ring.wire import Decoder, Session
from mdi.segments import Fork, Segment

HEADER_BYTES = 32
SESSION = Session(epoch=7, n_embd=4, wire_dtype="float32", n_slots=3, context=16, max_rows=8)
ROW_BYTES = 16
LARGEST_BUFFER = 4096  # a text; the rows of SESSION are smaller

KINDS = {Hello: 1, Welcome: 2, Refuse: 3, Activation: 4, Fork: 6, Ping: 7, Fault: 8, Goodbye: 9, Proof: 10}

few_examples = settings(
    max_examples=50, deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


def frame(
    kind: int,
    body: bytes = b"",
    *,
    magic: bytes = b"MDIR",
    version: int = 4,
    dtype: int = 0,
    reserved: int = 0,
    epoch: int = 7,
    n_segments: int = 0,
    n_bytes: int | None = None,
) -> bytes:
    """One frame whose checksums are right, whatever its fields say."""
    length = len(body) if n_bytes is None else n_bytes
    header = struct.pack(
        "<4sBBBBQIII", magic, version, kind, dtype, reserved, epoch, n_segments, length, zlib.crc32(body)
    )
    return header + struct.pack("<I", zlib.crc32(header)) + body


def activation(segments: Iterable[tuple[int, int, int, int]], rows: bytes, **fields: int) -> bytes:
    """An ACTIVATION frame of float32 rows."""
    packed = b"".join(struct.pack("<IIII", *segment) for segment in segments)
    defaults = {"dtype": 1, "n_segments": len(packed) // 16}
    return frame(4, packed + rows, **(defaults | fields))


def rows(n: int) -> bytes:
    """`n` rows of SESSION, every byte different from its neighbours."""
    return bytes(i % 251 for i in range(n * ROW_BYTES))


HELLO = frame(1, b"{}")
PROOF = frame(10)
GOODBYE = frame(9)

TWO_SEGMENTS = (Segment(0, 3, 2, 1), Segment(2, 0, 3, 1))
FORWARD_MESSAGES: list[Message] = [
    Activation((Segment(1, 5, 1, 1),), memoryview(rows(1))),
    Activation(TWO_SEGMENTS, memoryview(rows(5))),
    Fork(0, 2, 16),
    Ping(),
    Fault(1, "secondary 0 gave no sign of life: größer"),
    Fault(0, ""),
    Goodbye(),
]


def open_decoder(*, returning: bool = False, session: Session = SESSION, session_key: bytes | None = None) -> Decoder:
    """A decoder that has read the handshake."""
    decoder = Decoder(session, returning=returning)
    hello = frame(1, b"{}", epoch=session.epoch)
    proof = frame(10, epoch=session.epoch)
    assert list(feed(decoder, hello + proof, session_key=session_key)) == [Hello({}), Proof()]
    return decoder


def feed(
    decoder: Decoder,
    data: bytes,
    piece_bytes: Iterable[int] = (),
    largest: int = LARGEST_BUFFER,
    session_key: bytes | None = None,
) -> Iterator[Message]:
    """Hand `data` over in pieces of at most the given sizes, then of any size; yield the messages.

    After a PROOF the decoder gets the session key, as from the handshake.
    """
    sizes = iter(piece_bytes)
    while data:
        buffer = decoder.buffer()
        assert 0 < len(buffer) <= largest
        n_bytes = min(len(buffer), len(data), next(sizes, len(data)))
        buffer[:n_bytes] = data[:n_bytes]
        data = data[n_bytes:]
        message = decoder.received(n_bytes)
        if isinstance(message, Proof):
            decoder.open(session_key)
        if message is not None:
            yield message


def plain(message: Message) -> Message:
    """The message with its rows as bytes, so that two of them compare by content."""
    if isinstance(message, Activation):
        return dataclasses.replace(message, data=memoryview(bytes(message.data)))
    return message
