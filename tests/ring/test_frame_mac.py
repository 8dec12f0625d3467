"""Frames with a MAC: which bytes, and that nobody without the session key makes, changes, repeats or moves one."""

import hashlib
import itertools
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import LinkClosed, RemoteProtocolError
from mdi.ring.messages import Activation, Fault, Goodbye, Hello, Message, Ping, Proof
from mdi.ring.wire import Decoder, Encoder
from mdi.segments import Fork, Segment
from support.wire import (
    FORWARD_MESSAGES,
    HEADER_BYTES,
    ROW_BYTES,
    SESSION,
    feed,
    few_examples,
    frame,
    open_decoder,
    rows,
)

SESSION_KEY, OTHER_KEY = b"k" * 32, b"K" * 32
TAG_BYTES = 16
HEAD_BYTES = HEADER_BYTES + TAG_BYTES
NOT_NEXT = "a frame that is not the peer's next one: its MAC does not match"

ROW = Activation((Segment(1, 5, 1, 1),), memoryview(rows(1)))
MESSAGES: list[Message] = [
    ROW,
    Fork(1, 0, 2),
    Ping(),
    Activation((Segment(2, 0, 2, 1),), memoryview(rows(2))),
    Goodbye(),
]


def open_encoder(session_key: bytes | None = SESSION_KEY) -> Encoder:
    encoder = Encoder(SESSION)
    encoder.encode(Hello({}))
    encoder.encode(Proof())
    encoder.open(session_key)
    return encoder


def keyed_decoder() -> Decoder:
    return open_decoder(session_key=SESSION_KEY)


def frames_of(messages: list[Message], session_key: bytes | None = SESSION_KEY) -> list[bytes]:
    """The frames of one direction, in their order."""
    encoder = open_encoder(session_key)
    return [b"".join(encoder.encode(message)) for message in messages]


def resealed(data: bytes) -> bytes:
    """The frame with a right checksum of its header, whatever its fields say."""
    return data[:28] + struct.pack("<I", zlib.crc32(data[:28])) + data[HEADER_BYTES:]


def assert_refused(decoder: Decoder, data: bytes, words: str = NOT_NEXT) -> None:
    """Nothing of `data` becomes a message."""
    with pytest.raises(RemoteProtocolError) as caught:
        next(feed(decoder, data))
    assert words in str(caught.value)


# ---- the right frames


def test_the_encoder_writes_the_published_bytes() -> None:
    bare = frames_of(MESSAGES, session_key=None)
    for number, (data, plain) in enumerate(zip(frames_of(MESSAGES), bare, strict=True)):
        header = resealed(plain[:24] + bytes(4) + plain[28:HEADER_BYTES])
        text = struct.pack("<Q", number) + header + plain[HEADER_BYTES:]
        tag = hashlib.blake2b(text, key=SESSION_KEY, digest_size=TAG_BYTES).digest()
        assert data == header + tag + plain[HEADER_BYTES:]


@few_examples
@given(st.lists(st.integers(1, 70), max_size=30))
def test_messages_arrive_as_they_were_sent_in_pieces_of_any_size(pieces: list[int]) -> None:
    stream = [message for message in FORWARD_MESSAGES if not isinstance(message, Fault)]
    decoder = keyed_decoder()
    assert list(feed(decoder, b"".join(frames_of(stream)), pieces)) == stream
    decoder.end_of_file()


def test_rows_are_neither_joined_nor_copied() -> None:
    data = memoryview(bytearray(rows(2)))
    message = Activation((Segment(0, 0, 2, 1),), data)
    buffers = open_encoder().encode(message)
    assert buffers[-1] is data
    decoder = keyed_decoder()
    assert list(feed(decoder, b"".join(buffers)[:-ROW_BYTES])) == []
    buffer = decoder.buffer()
    buffer[:] = data[-ROW_BYTES:]
    received = decoder.received(ROW_BYTES)
    assert received == message
    assert isinstance(received, Activation)
    buffer[-1:] = b"\xff"  # still the same memory
    assert received.data[-1] == 0xFF


# ---- the wrong ones


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_frame_with_any_byte_changed_is_refused(message: Message) -> None:
    (data,) = frames_of([message])
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        for forged in (changed, resealed(changed)):
            if forged != data:
                with pytest.raises((RemoteProtocolError, LinkClosed)):
                    read_to_its_end(keyed_decoder(), forged)


def read_to_its_end(decoder: Decoder, data: bytes) -> None:
    """A frame that was made longer is not complete."""
    assert list(feed(decoder, data)) == []
    decoder.end_of_file()


def test_other_rows_are_refused_though_every_checksum_is_right() -> None:
    (data,) = frames_of([ROW])
    assert_refused(keyed_decoder(), data[:-ROW_BYTES] + bytes(ROW_BYTES))
    (bare,) = frames_of([ROW], session_key=None)
    body = bare[HEADER_BYTES:-ROW_BYTES] + bytes(ROW_BYTES)
    forged = frame(4, body, dtype=1, n_segments=1)
    assert list(feed(open_decoder(), forged))  # a checksum is no MAC
    assert_refused(keyed_decoder(), forged[:HEADER_BYTES] + data[HEADER_BYTES:HEAD_BYTES] + body)


def test_a_frame_of_another_session_key_is_refused() -> None:
    for data in frames_of(MESSAGES, OTHER_KEY):
        assert_refused(keyed_decoder(), data)


def test_a_frame_that_is_repeated_is_refused() -> None:
    first, *_ = frames_of(MESSAGES)
    decoder = keyed_decoder()
    assert list(feed(decoder, first)) == [ROW]
    assert_refused(decoder, first)


@pytest.mark.parametrize("order", [p for p in itertools.permutations(range(3)) if p != (0, 1, 2)])
def test_frames_in_another_order_are_refused(order: tuple[int, ...]) -> None:
    frames = frames_of(MESSAGES)
    decoder = keyed_decoder()
    for expected, number in enumerate(order):
        if number != expected:
            assert_refused(decoder, frames[number])
            return
        assert list(feed(decoder, frames[number])) == [MESSAGES[number]]


def test_a_frame_that_was_left_out_is_noticed_at_the_next_one() -> None:
    first, _, third, *_ = frames_of(MESSAGES)
    decoder = keyed_decoder()
    assert list(feed(decoder, first)) == [ROW]
    assert_refused(decoder, third)


def test_an_end_that_was_not_announced_is_a_lost_node() -> None:
    decoder = keyed_decoder()
    assert list(feed(decoder, frames_of(MESSAGES)[0])) == [ROW]
    with pytest.raises(LinkClosed, match="without a goodbye"):
        decoder.end_of_file()
    assert_refused(decoder, frame(9) + bytes(TAG_BYTES))  # and nobody else can announce it


@pytest.mark.parametrize("n_missing", [1, 8, TAG_BYTES])
def test_a_mac_that_is_cut_off_is_refused(n_missing: int) -> None:
    ping, row = frames_of([Ping(), ROW])
    assert_refused(keyed_decoder(), ping[:-n_missing] + row)
    row, ping = frames_of([ROW, Ping()])
    assert_refused(keyed_decoder(), row[: HEAD_BYTES - n_missing] + row[HEAD_BYTES:] + ping, words="")


def test_a_frame_without_a_mac_is_refused() -> None:
    bare = frames_of(MESSAGES, session_key=None)
    assert_refused(keyed_decoder(), bare[2] + bare[2])  # what follows stands where the MAC should be


def test_a_checksum_where_the_mac_stands_is_refused() -> None:
    header = frame(7)[:24] + struct.pack("<I", 1)
    header += struct.pack("<I", zlib.crc32(header))
    tag = hashlib.blake2b(bytes(8) + header, key=SESSION_KEY, digest_size=TAG_BYTES).digest()
    assert_refused(keyed_decoder(), header + tag, words="a frame with a MAC and a checksum of its body")


@few_examples
@given(st.binary(max_size=200), st.integers(0, 12), st.binary(min_size=TAG_BYTES, max_size=TAG_BYTES))
def test_arbitrary_frames_are_no_messages(body: bytes, kind: int, tag: bytes) -> None:
    data = frame(kind, body)
    for forged in (body, data, data[:HEADER_BYTES] + tag + body):
        decoder = keyed_decoder()
        try:
            assert list(feed(decoder, forged, itertools.repeat(7))) == []
        except RemoteProtocolError:
            continue
        with pytest.raises(LinkClosed):
            decoder.end_of_file()
