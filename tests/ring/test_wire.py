"""The codec of the ring: every message whole, in pieces, damaged, and out of order."""

import contextlib
import dataclasses
import itertools
import json
import random
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdi.errors import LinkClosed, LocalProtocolError, RemoteProtocolError
from mdi.ring.messages import Activation, Fault, Goodbye, Hello, Message, Ping, Proof, Refuse, Welcome
from mdi.ring.wire import Decoder, Encoder, Session
from mdi.segments import Fork, Segment
from support.wire import (
    FORWARD_MESSAGES,
    GOODBYE,
    HEADER_BYTES,
    HELLO,
    KINDS,
    PROOF,
    ROW_BYTES,
    SESSION,
    TWO_SEGMENTS,
    activation,
    feed,
    few_examples,
    frame,
    open_decoder,
    plain,
    rows,
)

HANDSHAKES: list[Message] = [Hello({"rank": 1, "name": "é", "none": None, "list": [1.5, "a"]}), Hello({})]
ANSWERS: list[Message] = [Welcome(), Welcome(b"n" * 16, b"m" * 32), Refuse("n_slots is 3, this node expects 4")]
PROOFS: list[Message] = [Proof(), Proof(b"m" * 32), Refuse("different keys")]

Coded = tuple[Message, bytes, Callable[[], Decoder]]


def encoded(message: Message, encoder: Encoder) -> bytes:
    return b"".join(encoder.encode(message))


def open_encoder(session: Session = SESSION, session_key: bytes | None = None) -> Encoder:
    encoder = Encoder(session)
    encoder.encode(Hello({}))
    encoder.encode(Proof())
    encoder.open(session_key)
    return encoder


def greeted_encoder() -> Encoder:
    encoder = Encoder(SESSION)
    encoder.encode(Hello({}))
    return encoder


def greeted_decoder() -> Decoder:
    decoder = Decoder(SESSION)
    assert list(feed(decoder, HELLO)) == [Hello({})]
    return decoder


def every_message() -> list[Coded]:
    """Each message, its frame, and how to make a decoder that is ready for it."""
    cases: list[Coded] = []
    for message in HANDSHAKES:
        cases.append((message, encoded(message, Encoder(SESSION)), lambda: Decoder(SESSION)))
    for message in ANSWERS:
        data = encoded(message, Encoder(SESSION, backward=True))
        cases.append((message, data, lambda: Decoder(SESSION, backward=True)))
    cases += [(message, encoded(message, greeted_encoder()), greeted_decoder) for message in PROOFS]
    cases += [(message, encoded(message, open_encoder()), open_decoder) for message in FORWARD_MESSAGES]
    for kept in (
        Activation(TWO_SEGMENTS, memoryview(rows(2))),
        Activation((Segment(0, 3, 2, 0), Segment(1, 0, 2, 0)), memoryview(b"")),
    ):
        cases.append((kept, encoded(kept, open_encoder()), lambda: open_decoder(returning=True)))
    return cases


all_messages = pytest.mark.parametrize(
    ("message", "data", "new_decoder"),
    every_message(),
    ids=[f"{number}-{type(case[0]).__name__}" for number, case in enumerate(every_message())],
)


# ---- every message, however its bytes arrive


@all_messages
def test_a_message_arrives_whole(message: Message, data: bytes, new_decoder: Callable[[], Decoder]) -> None:
    assert list(feed(new_decoder(), data)) == [message]


@all_messages
def test_a_message_arrives_byte_by_byte(message: Message, data: bytes, new_decoder: Callable[[], Decoder]) -> None:
    decoder = new_decoder()
    for i in range(len(data) - 1):
        assert list(feed(decoder, data[i : i + 1])) == []
    assert list(feed(decoder, data[-1:])) == [message]


@all_messages
def test_a_message_arrives_in_random_pieces(message: Message, data: bytes, new_decoder: Callable[[], Decoder]) -> None:
    chance = random.Random(len(data))
    for _ in range(20):
        pieces = (chance.randint(1, 40) for _ in itertools.count())
        assert list(feed(new_decoder(), data, pieces)) == [message]


@all_messages
def test_a_message_arrives_before_the_garbage_behind_it(
    message: Message, data: bytes, new_decoder: Callable[[], Decoder]
) -> None:
    decoder = new_decoder()
    arriving = feed(decoder, data + b"garbage " * 10)
    assert plain(next(arriving)) == message
    with pytest.raises(RemoteProtocolError, match="not a ring message: it begins with b'garb'"):
        next(arriving)


@pytest.mark.parametrize("message", [m for m in FORWARD_MESSAGES if not isinstance(m, Goodbye | Fault)])
def test_two_messages_arrive_back_to_back(message: Message) -> None:
    encoder = open_encoder()
    data = encoded(message, encoder) + encoded(message, encoder)
    chance = random.Random(2)
    for pieces in ((), itertools.repeat(1), (chance.randint(1, 50) for _ in itertools.count())):
        assert list(feed(open_decoder(), data, pieces)) == [message, message]


def test_a_refusal_without_a_reason_says_so() -> None:
    data = encoded(Refuse(""), Encoder(SESSION, backward=True))
    assert list(feed(Decoder(SESSION, backward=True), data)) == [Refuse("no reason given")]


def test_the_encoder_writes_the_published_bytes() -> None:
    segments, data = (Segment(1, 5, 2, 1),), rows(2)
    assert encoded(Activation(segments, memoryview(data)), open_encoder()) == activation([(1, 5, 2, 1)], data)
    assert encoded(Hello({"b": 1, "a": 2}), Encoder(SESSION)) == frame(1, b'{"a": 2, "b": 1}')
    assert encoded(Welcome(), Encoder(SESSION, backward=True)) == frame(2)
    assert encoded(Welcome(b"n" * 16, b"m" * 32), Encoder(SESSION, backward=True)) == frame(2, b"n" * 16 + b"m" * 32)
    assert encoded(Proof(b"m" * 32), greeted_encoder()) == frame(10, b"m" * 32)
    assert encoded(Refuse("no"), Encoder(SESSION, backward=True)) == frame(3, b"no")
    assert encoded(Fork(0, 2, 9), open_encoder()) == frame(6, struct.pack("<IIII", 0, 2, 9, 0))
    assert encoded(Ping(), open_encoder()) == frame(7)
    assert encoded(Fault(2, "gone"), open_encoder()) == frame(8, b"\2\0\0\0gone")
    assert encoded(Goodbye(), open_encoder()) == GOODBYE
    assert len(GOODBYE) == HEADER_BYTES


@pytest.mark.parametrize(("dtype", "code", "element_bytes"), [("float32", 1, 4), ("float16", 2, 2), ("bfloat16", 3, 2)])
def test_rows_travel_in_the_dtype_of_the_session(dtype: str, code: int, element_bytes: int) -> None:
    session = dataclasses.replace(SESSION, wire_dtype=dtype)
    data = bytes(range(2 * 4 * element_bytes))
    message = Activation((Segment(0, 0, 2, 1),), memoryview(data))
    wire = encoded(message, open_encoder(session))
    assert wire == activation([(0, 0, 2, 1)], data, dtype=code)
    assert list(feed(open_decoder(session=session), wire)) == [message]


# ---- no copies


def test_rows_are_received_into_the_memory_they_are_handed_on_in() -> None:
    decoder, data = open_decoder(), rows(2)
    wire = activation([(0, 0, 2, 1)], data)
    assert list(feed(decoder, wire[:-ROW_BYTES])) == []
    buffer = decoder.buffer()
    buffer[:] = data[-ROW_BYTES:]
    message = decoder.received(ROW_BYTES)
    assert isinstance(message, Activation)
    assert message.data == data
    buffer[-1:] = b"\xff"  # still the same memory
    assert message.data[-1] == 0xFF
    assert not message.data.readonly
    assert decoder.buffer().obj is not message.data.obj  # the next frame goes elsewhere


def test_rows_are_sent_from_the_memory_they_lie_in() -> None:
    data = memoryview(bytearray(rows(2)))
    buffers = open_encoder().encode(Activation((Segment(0, 0, 2, 1),), data))
    assert buffers[-1] is data


# ---- the end of the stream


def test_a_stream_that_ends_anywhere_but_after_goodbye_is_closed_too_early() -> None:
    frames = [HELLO, PROOF, activation([(0, 0, 2, 1)], rows(2)), frame(7), GOODBYE]
    whole = b"".join(frames)
    boundaries = {sum(map(len, frames[:n])) for n in range(len(frames))}
    for length in range(len(whole)):
        decoder = Decoder(SESSION)
        list(feed(decoder, whole[:length]))
        with pytest.raises(LinkClosed) as caught:
            decoder.end_of_file()
        where = "" if length in boundaries else " within a frame"
        assert str(caught.value) == f"closed the connection{where} without a goodbye"
    decoder = Decoder(SESSION)
    list(feed(decoder, whole))
    decoder.end_of_file()


def test_bytes_after_the_goodbye_are_no_clean_end() -> None:
    decoder = Decoder(SESSION)
    list(feed(decoder, HELLO + PROOF + GOODBYE + b"M"))
    with pytest.raises(LinkClosed, match="within a frame"):
        decoder.end_of_file()


# ---- damage


def refusal(data: bytes, decoder: Decoder) -> str:
    """The error that `data` ends in; nothing is allocated beyond a header, and nothing is decoded."""
    tracemalloc.start()
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            next(feed(decoder, data))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    return str(caught.value)


GOOD_SEGMENT = [(0, 0, 2, 1)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (activation(GOOD_SEGMENT, rows(2), magic=b"MDIS"), r"not a ring message: it begins with b'MDIS'"),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1:5088\r\n", r"not a ring message: it begins with b'GET '"),
        (activation(GOOD_SEGMENT, rows(2), version=1), "version 1 of the ring protocol, this node 4"),
        (activation(GOOD_SEGMENT, rows(2), version=0), "version 0"),
        (frame(0), "kind 0 is not legal in state OPEN"),
        (frame(5, bytes(16)), "kind 5 is not legal in state OPEN"),
        (frame(10), "PROOF is not legal in state OPEN"),
        (frame(11), "kind 11 is not legal in state OPEN"),
        (frame(255), "kind 255 is not legal"),
        (activation(GOOD_SEGMENT, rows(2), epoch=8), "a frame of epoch 8; this session is 7"),
        (activation(GOOD_SEGMENT, rows(2), epoch=2**64 - 1), "a frame of epoch 18446744073709551615"),
        (activation(GOOD_SEGMENT, rows(2), dtype=0), "rows of dtype 0; this session uses float32"),
        (activation(GOOD_SEGMENT, rows(2), dtype=2), "rows of dtype 2"),
        (activation(GOOD_SEGMENT, rows(2), dtype=9), "rows of dtype 9"),
        (activation(GOOD_SEGMENT, rows(2), reserved=1), "the reserved byte is 1"),
        (frame(7, reserved=255), "the reserved byte is 255"),
        (activation([], rows(2)), "0 segments; this session has 3 slots"),
        (activation([(i, 0, 1, 1) for i in range(4)], rows(4)), "4 segments; this session has 3 slots"),
        (activation(GOOD_SEGMENT, b"", n_segments=2**32 - 1), "4294967295 segments"),
        (activation(GOOD_SEGMENT, b"", n_bytes=2**32 - 1), "a body of 4294967295 bytes for 1 segments"),
        (activation(GOOD_SEGMENT, b"", n_bytes=16 + 9 * ROW_BYTES), "allows 8 rows of 16 bytes"),
        (activation(GOOD_SEGMENT, rows(2), n_bytes=15), "a body of 15 bytes for 1 segments"),
        (activation(GOOD_SEGMENT, rows(2), n_bytes=16 + ROW_BYTES + 1), "a body of 33 bytes"),
        (frame(7, b"x"), "PING of 1 bytes"),
        (frame(7, dtype=1), "PING of 0 bytes, 0 segments and dtype 1"),
        (frame(9, n_segments=1), "GOODBYE of 0 bytes, 1 segments"),
        (frame(9, n_bytes=2**32 - 1), "GOODBYE of 4294967295 bytes"),
        (frame(6, bytes(15)), "FORK of 15 bytes"),
        (frame(6, bytes(17)), "FORK of 17 bytes"),
        (frame(6, n_bytes=2**32 - 1), "FORK of 4294967295 bytes"),
        (frame(8, b"abc"), "FAULT of 3 bytes"),
        (frame(8, n_bytes=4097), "FAULT of 4097 bytes"),
        (frame(8, n_bytes=2**32 - 1), "FAULT of 4294967295 bytes"),
    ],
)
def test_a_header_field_that_does_not_fit_is_refused_before_the_body(data: bytes, words: str) -> None:
    assert words in refusal(data[:HEADER_BYTES], open_decoder())


@pytest.mark.parametrize(
    ("data", "words"), [(frame(1, n_bytes=2**32 - 1), "HELLO of 4294967295"), (frame(1), "HELLO of 0 bytes")]
)
def test_a_handshake_of_impossible_size_is_refused_before_the_body(data: bytes, words: str) -> None:
    assert words in refusal(data, Decoder(SESSION))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame(3, n_bytes=4097), "REFUSE of 4097"),
        *(
            (frame(2, n_bytes=n_bytes), f"WELCOME of {n_bytes} bytes")
            for n_bytes in (1, 16, 32, 47, 49, 79, 81, 2**32 - 1)
        ),
    ],
)
def test_an_answer_of_impossible_size_is_refused_before_the_body(data: bytes, words: str) -> None:
    assert words in refusal(data, Decoder(SESSION, backward=True))


@pytest.mark.parametrize("n_bytes", [1, 31, 33, 48, 2**32 - 1])
def test_a_proof_of_impossible_size_is_refused_before_the_body(n_bytes: int) -> None:
    assert f"PROOF of {n_bytes} bytes" in refusal(frame(10, n_bytes=n_bytes), greeted_decoder())


@pytest.mark.parametrize("message", [Proof(b"m" * 31), Proof(b"m" * 33)])
def test_a_proof_of_another_size_is_not_sent(message: Message) -> None:
    with pytest.raises(LocalProtocolError, match="is not of a legal size"):
        greeted_encoder().encode(message)


@pytest.mark.parametrize(
    ("segments", "n_rows", "words"),
    [
        ([(0, 0, 0, 0)], 1, "illegal Segment"),
        ([(3, 0, 1, 1)], 1, "there are 3 slots of 16 positions"),
        ([(2**32 - 1, 0, 1, 1)], 1, "slot=4294967295"),
        ([(1, 0, 1, 1), (1, 1, 1, 1)], 2, "a slot occurs twice"),
        ([(0, 0, 1, 2)], 1, "illegal Segment"),
        ([(0, 15, 2, 1)], 2, "start=15, n=2"),
        ([(0, 2**32 - 1, 1, 1)], 1, "illegal Segment"),
        ([(0, 0, 2**32 - 1, 1)], 1, "illegal Segment"),
        ([(0, 0, 2, 1)], 1, "16 bytes of rows where the segments say 2 rows"),
        ([(0, 0, 2, 1)], 3, "48 bytes of rows where the segments say 2 rows"),
        ([(0, 0, 2, 1)], 0, "0 bytes of rows where the segments say 2 rows"),
    ],
)
def test_segments_that_do_not_fit_are_refused_before_the_rows(
    segments: list[tuple[int, int, int, int]], n_rows: int, words: str
) -> None:
    without_rows = HEADER_BYTES + 16 * len(segments)
    assert words in refusal(activation(segments, rows(n_rows))[:without_rows], open_decoder())


def test_the_starter_expects_the_kept_rows_and_the_others_all_rows() -> None:
    segments = [(0, 0, 5, 2), (2, 1, 1, 0)]
    for returning, n_expected in ((True, 2), (False, 6)):
        for n_rows in range(8):
            decoder = open_decoder(returning=returning)
            if n_rows == n_expected:
                (message,) = feed(decoder, activation(segments, rows(n_rows)))
                assert isinstance(message, Activation)
                assert message.data == rows(n_rows)
            else:
                assert f"say {n_expected} rows" in refusal(activation(segments, rows(n_rows)), decoder)


@pytest.mark.parametrize("fields", [(3, 0, 1), (2**32 - 1, 0, 1), (0, 3, 1), (0, 1, 17)])
def test_a_fork_beyond_the_slots_is_refused(fields: tuple[int, int, int]) -> None:
    assert "there are 3 slots" in refusal(frame(6, struct.pack("<IIII", *fields, 0)), open_decoder())


def test_the_unused_number_of_a_fork_is_zero() -> None:
    assert "with 1 in the place of zero" in refusal(frame(6, struct.pack("<IIII", 0, 2, 3, 1)), open_decoder())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"[]", "not a JSON object"),
        (b"{,}", "not valid JSON"),
        (b"[" * 4000, "not valid JSON"),
        (b"\xff\xfd", "not UTF-8"),
        (b"1" * 4096, "a handshake: not valid JSON"),
    ],
)
def test_a_handshake_that_is_no_json_object_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(RemoteProtocolError, match=words):
        list(feed(Decoder(SESSION), frame(1, body)))


def test_a_text_that_is_not_utf8_is_refused() -> None:
    assert "not UTF-8" in refusal(frame(8, b"\0\0\0\0\xff"), open_decoder())
    assert "not UTF-8" in refusal(frame(3, b"\xff"), Decoder(SESSION, backward=True))


@all_messages
def test_a_frame_with_any_byte_changed_is_never_decoded(
    message: Message, data: bytes, new_decoder: Callable[[], Decoder]
) -> None:
    for i in range(len(data)):
        damaged = data[:i] + bytes([data[i] ^ 0x11]) + data[i + 1 :]
        decoder = new_decoder()
        with pytest.raises(RemoteProtocolError):
            list(feed(decoder, damaged))


def test_a_damaged_body_is_named_as_such() -> None:
    data = activation(GOOD_SEGMENT, rows(2))
    assert "damaged body" in refusal(data[:-1] + b"\xff", open_decoder())


def test_a_damaged_header_is_named_as_such() -> None:
    data = bytearray(activation(GOOD_SEGMENT, rows(2)))
    for i in (*range(5, 28), 31):  # the magic and the version are checked before the sum
        damaged = bytearray(data)
        damaged[i] ^= 1
        assert "damaged header" in refusal(bytes(damaged), open_decoder())


def test_a_decoder_stays_dead_after_an_error() -> None:
    for data in (b"x" * 32, activation([(0, 0, 0, 0)], rows(1)), activation(GOOD_SEGMENT, rows(2))[:-1] + b"\xff"):
        decoder = open_decoder()
        with pytest.raises(RemoteProtocolError) as first:
            list(feed(decoder, data))
        for call in (decoder.buffer, lambda: decoder.received(0), decoder.end_of_file):  # noqa: B023  called at once
            with pytest.raises(RemoteProtocolError) as again:
                call()
            assert again.value is first.value


# ---- which message is legal when

RUNNING = {Activation, Fork, Ping, Fault, Goodbye}
LEGAL_FORWARD = {"HANDSHAKE": {Hello}, "AWAITING_PROOF": {Proof, Refuse}, "OPEN": RUNNING, "CLOSED": set()}
LEGAL_BACKWARD = {"HANDSHAKE": {Welcome, Refuse}, "AWAITING_PROOF": set(), "CLOSED": set()}
ONE_OF_EACH: list[Message] = [
    Hello({}), Welcome(), Refuse("no"), Activation((Segment(0, 0, 1, 1),), memoryview(rows(1))),
    Fork(0, 1, 1), Ping(), Fault(1, "gone"), Goodbye(), Proof(),
]  # fmt: skip
WAYS = {
    (False, "HANDSHAKE"): b"", (False, "AWAITING_PROOF"): HELLO, (False, "OPEN"): HELLO + PROOF,
    (False, "CLOSED"): HELLO + PROOF + GOODBYE,
    (True, "HANDSHAKE"): b"", (True, "AWAITING_PROOF"): frame(2), (True, "CLOSED"): frame(3),
}  # fmt: skip


def raw(message: Message) -> bytes:
    """The frame of a message, made in whatever state it is legal."""
    if isinstance(message, Hello):
        return encoded(message, Encoder(SESSION))
    if isinstance(message, Welcome | Refuse):
        return encoded(message, Encoder(SESSION, backward=True))
    return encoded(message, greeted_encoder() if isinstance(message, Proof) else open_encoder())


@pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize(("backward", "state"), WAYS)
def test_a_message_is_legal_in_its_state_only(backward: bool, state: str, message: Message) -> None:
    legal = type(message) in (LEGAL_BACKWARD if backward else LEGAL_FORWARD)[state]
    decoder = Decoder(SESSION, backward=backward)
    encoder = Encoder(SESSION, backward=backward)
    for earlier in feed(decoder, WAYS[backward, state]):
        encoder.encode(earlier)
        if isinstance(earlier, Proof):
            encoder.open(None)
    assert decoder.state.name == encoder.state.name == state
    if legal:
        assert list(feed(decoder, raw(message))) == [message]
        assert encoded(message, encoder) == raw(message)
        if isinstance(message, Proof):
            encoder.open(None)
        assert decoder.state is encoder.state
        return
    words = f"{type(message).__name__.upper()} is not legal in state {state}"
    assert words in refusal(raw(message)[:HEADER_BYTES], decoder)
    with pytest.raises(LocalProtocolError, match=f"cannot be sent in state {state}"):
        encoder.encode(message)
    assert encoder.state.name == state


def test_nothing_is_legal_before_the_session_key_is_set() -> None:
    encoder, decoder = greeted_encoder(), greeted_decoder()
    decoder.buffer()[:] = encoded(Proof(), encoder)
    assert decoder.received(HEADER_BYTES) == Proof()
    with pytest.raises(LocalProtocolError, match="cannot be sent in state PROVED"):
        encoder.encode(Ping())
    with pytest.raises(RemoteProtocolError, match="PING is not legal in state PROVED"):
        list(feed(decoder, frame(7)))


@pytest.mark.parametrize("last", [Goodbye(), Fault(0, "gone")])
def test_nothing_follows_a_goodbye_or_a_fault(last: Message) -> None:
    decoder = open_decoder()
    assert list(feed(decoder, raw(last))) == [last]
    assert decoder.state.name == "CLOSED"
    assert "not legal in state CLOSED" in refusal(raw(Ping()), decoder)


# ---- our own mistakes


OUR_MISTAKES: dict[str, Message] = {
    "too many rows": Activation((Segment(0, 0, 2, 1),), memoryview(rows(3))),
    "half a row": Activation((Segment(0, 0, 2, 1),), memoryview(rows(2)[:-1])),
    "no rows": Activation((Segment(0, 0, 2, 1),), memoryview(b"")),
    "no segments": Activation((), memoryview(b"")),
    "a segment of nothing": Activation((Segment(0, 0, 0, 0),), memoryview(b"")),
    "slot out of range": Activation((Segment(3, 0, 1, 1),), memoryview(rows(1))),
    "beyond the context": Activation((Segment(0, 16, 1, 1),), memoryview(rows(1))),
    "more kept than sent": Activation((Segment(0, 0, 1, 2),), memoryview(rows(1))),
    "slot twice": Activation((Segment(1, 0, 1, 1), Segment(1, 1, 1, 1)), memoryview(rows(2))),
    "one row above the limit": Activation((Segment(0, 0, 9, 1),), memoryview(rows(9))),
    "far above the limit": Activation((Segment(0, 0, 16, 1),), memoryview(rows(16))),
    "fork from no slot": Fork(3, 0, 1),
    "fork from below zero": Fork(-1, 0, 1),
    "fork beyond the context": Fork(0, 1, 17),
}


@pytest.mark.parametrize("message", OUR_MISTAKES.values(), ids=OUR_MISTAKES)
def test_a_message_that_the_peer_would_refuse_is_not_sent(message: Message) -> None:
    encoder = open_encoder()
    with pytest.raises(LocalProtocolError):
        encoder.encode(message)
    assert encoded(Ping(), encoder) == frame(7)  # the encoder is as it was


@pytest.mark.parametrize("session", [SESSION, dataclasses.replace(SESSION, max_rows=4096)], ids=["small", "large"])
def test_a_handshake_too_long_to_be_accepted_is_not_sent(session: Session) -> None:
    with pytest.raises(LocalProtocolError, match="HELLO of 5011 bytes"):
        Encoder(session).encode(Hello({"model": "x" * 4998}))


@pytest.mark.parametrize("reason", ["x" * 10_000, "ö" * 10_000, "x" + "ö" * 10_000, "€" * 10_000, "😀" * 10_000])
def test_a_long_reason_is_cut_between_characters(reason: str) -> None:
    (message,) = feed(open_decoder(), encoded(Fault(1, reason), open_encoder()))
    assert isinstance(message, Fault)
    assert reason.startswith(message.reason)
    assert 4090 - 4 <= len(message.reason.encode()) <= 4092
    (answer,) = feed(Decoder(SESSION, backward=True), encoded(Refuse(reason), Encoder(SESSION, backward=True)))
    assert isinstance(answer, Refuse)
    assert reason.startswith(answer.reason)


def test_a_reason_with_bytes_of_a_foreign_file_name_can_be_sent() -> None:
    (message,) = feed(
        open_decoder(), encoded(Fault(1, b"no file caf\xe9".decode(errors="surrogateescape")), open_encoder())
    )
    assert isinstance(message, Fault)
    assert message.reason.startswith("no file caf")


# ---- arbitrary input


@few_examples
@given(st.binary(max_size=200), st.sampled_from([b"", HELLO, HELLO + PROOF]), st.booleans(), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_protocol_errors(
    data: bytes, prefix: bytes, returning: bool, backward: bool
) -> None:
    decoder = Decoder(SESSION, returning=returning, backward=backward)
    with contextlib.suppress(RemoteProtocolError):
        list(feed(decoder, prefix + data, itertools.repeat(7)))


@few_examples
@given(
    st.integers(0, 12),
    st.binary(max_size=120),
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([b"", HELLO, HELLO + PROOF]),
)
def test_arbitrary_frames_with_right_checksums_raise_nothing_but_protocol_errors(
    kind: int, body: bytes, dtype: int, n_segments: int, prefix: bytes
) -> None:
    decoder = Decoder(SESSION)
    with contextlib.suppress(RemoteProtocolError):
        list(feed(decoder, prefix + frame(kind, body, dtype=dtype, n_segments=n_segments)))


small = st.integers(0, 20)


@few_examples
@given(st.lists(st.tuples(small, small, small, small), max_size=4), st.integers(0, 20), st.booleans())
def test_arbitrary_segments_are_decoded_only_where_they_are_legal(
    segments: list[tuple[int, int, int, int]], n_rows: int, returning: bool
) -> None:
    try:
        (message,) = feed(open_decoder(returning=returning), activation(segments, rows(n_rows)))
    except RemoteProtocolError:
        return
    assert isinstance(message, Activation)
    assert len({s.slot for s in message.segments}) == len(segments) >= 1
    assert all(s.slot < 3 and s.n >= 1 and s.keep <= s.n and s.start + s.n <= 16 for s in message.segments)
    assert n_rows == sum(s.keep if returning else s.n for s in message.segments) <= 8


@st.composite
def legal_activations(draw: st.DrawFn) -> Activation:
    segments, room = [], SESSION.max_rows
    for slot in draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)):
        n = draw(st.integers(1, room - 2 + len(segments)))
        room -= n
        segments.append(Segment(slot, draw(st.integers(0, 16 - n)), n, draw(st.integers(0, n))))
    n_rows = sum(segment.n for segment in segments)
    return Activation(
        tuple(segments), memoryview(draw(st.binary(min_size=n_rows * ROW_BYTES, max_size=n_rows * ROW_BYTES)))
    )


slots = st.integers(0, 2)
legal_messages = st.one_of(
    legal_activations(),
    st.builds(Fork, slots, slots, st.integers(0, 16)),
    st.just(Ping()),
)
lasts = st.one_of(st.just(Goodbye()), st.builds(Fault, st.integers(0, 2**32 - 1), st.text(max_size=50)))
json_values = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5))


@few_examples
@given(
    st.dictionaries(st.text(max_size=5), json_values, max_size=5),
    st.lists(legal_messages, max_size=6),
    lasts,
    st.lists(st.integers(1, 100), max_size=40),
)
def test_arbitrary_legal_streams_arrive_as_they_were_sent(
    facts: dict[str, object], messages: list[Message], last: Message, pieces: list[int]
) -> None:
    stream = [Hello(facts), Proof(), *messages, last]
    data = encoded(stream[0], Encoder(SESSION)) + encoded(Proof(), greeted_encoder())
    encoder = open_encoder()
    data += b"".join(encoded(message, encoder) for message in stream[2:])
    decoder = Decoder(SESSION)
    assert list(feed(decoder, data, pieces)) == stream
    decoder.end_of_file()


# ---- the helpers agree with the published layout


def test_a_frame_ends_its_header_with_the_checksum_of_the_rest() -> None:
    wire = encoded(Fault(1, "x"), open_encoder())
    assert wire[:4] == b"MDIR"
    assert wire[5] == KINDS[Fault]
    assert int.from_bytes(wire[28:32], "little") == zlib.crc32(wire[:28])
    assert int.from_bytes(wire[24:28], "little") == zlib.crc32(wire[32:])
    assert json.loads(HELLO[HEADER_BYTES:]) == {}
