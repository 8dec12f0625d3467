"""Links of a ring with a key, and raw neighbours that do not have it."""

import contextlib
import dataclasses
import json
import socket

import pytest

from mdi.errors import RemoteProtocolError
from mdi.net.access import Access
from mdi.net.keys import Key, Keys
from mdi.ring.handshake import Initiator, KeyMismatch
from mdi.ring.link import PredecessorConnected
from mdi.ring.messages import Activation, Fault, Goodbye, Ping, Proof, Welcome
from mdi.ring.wire import Decoder, Encoder
from mdi.segments import Fork, Segment
from support.links import FACTS, ONE_ROW, PATIENCE_S, Bench, End, read
from support.wire import GOODBYE, HEADER_BYTES, PROOF, SESSION, activation, frame, rows

NEW, OLD = Key("correct horse battery staple", "test"), Key("another horse, another staple", "test")
KEYED = Access(Keys(NEW))
WELCOME_BYTES = HEADER_BYTES + 16 + 32
NONCE = bytes(16).hex()


def hello_of(**facts: object) -> bytes:
    return frame(1, json.dumps(FACTS | facts, sort_keys=True).encode())


def assert_refused(sock: socket.socket) -> None:
    """A REFUSE or the end of the connection comes, and no WELCOME."""
    with sock, contextlib.suppress(ConnectionError):
        data = sock.recv(1000)
        assert not data or data[5] == 3


def assert_not_let_in(end: End) -> None:
    """It goes on waiting for the right predecessor."""
    end.link.close()
    assert end.inbox.empty()


def keyed_predecessor(bench: Bench, end: End) -> tuple[socket.socket, Encoder]:
    """A raw predecessor with the key, past its handshake."""
    sock, encoder = bench.dial(end.port), Encoder(SESSION)
    initiator = Initiator(SESSION, FACTS, KEYED.keys)
    sock.sendall(b"".join(encoder.encode(initiator.hello())))
    decoder = Decoder(SESSION, backward=True)
    welcome = read(sock, WELCOME_BYTES)
    for part in (welcome[:HEADER_BYTES], welcome[HEADER_BYTES:]):
        decoder.buffer()[:] = part
        answer = decoder.received(len(part))
    assert isinstance(answer, Welcome)
    proof, session_key = initiator.prove(answer)
    sock.sendall(b"".join(encoder.encode(proof)))
    encoder.open(session_key)
    assert isinstance(end.event(), PredecessorConnected)
    return sock, encoder


# ---- with the key


@pytest.mark.parametrize(
    ("caller", "answerer"),
    [(Keys(NEW), Keys(NEW)), (Keys(NEW, OLD), Keys(OLD)), (Keys(OLD), Keys(NEW, OLD)), (Keys(NEW), Keys(NEW, OLD))],
)
def test_every_message_passes_in_order(bench: Bench, caller: Keys, answerer: Keys) -> None:
    b = bench.end(1, access=Access(answerer))
    a = bench.end(b.port, access=Access(caller))
    b.link.accept()
    a.link.connect()
    assert b.event() == PredecessorConnected(b.link)
    large = Activation((Segment(0, 0, 8, 1),), memoryview(rows(8)))
    for message in (ONE_ROW, large, Fork(0, 1, 2), ONE_ROW, Goodbye()):
        a.link.send(message)
        assert b.message() == message
    a.link.close(drain_s=PATIENCE_S)
    b.link.close()
    assert a.inbox.empty() and b.inbox.empty()


def test_a_large_message_passes_whole(bench: Bench) -> None:
    session = dataclasses.replace(SESSION, n_embd=4096, context=200, max_rows=200)  # 3 MB: many reads and writes
    b = bench.end(1, access=KEYED, session=session)
    a = bench.end(b.port, access=KEYED, session=session)
    b.link.accept()
    a.link.connect()
    assert isinstance(b.event(), PredecessorConnected)
    message = Activation((Segment(0, 0, 200, 1),), memoryview(bytes(range(256)) * (200 * 16384 // 256)))
    a.link.send(message)
    assert b.message() == message


# ---- without it


def test_nodes_with_a_key_cannot_be_made_to_do_without(bench: Bench) -> None:
    """Somebody on the path takes away the nonce of the HELLO, the proof of the WELCOME, or that of the PROOF."""
    listening = bench.end(1, access=KEYED)
    listening.link.accept()
    for first, answer_bytes, second in ((hello_of(), 0, b""), (hello_of(nonce=NONCE), WELCOME_BYTES, PROOF)):
        sock = bench.dial(listening.port)
        sock.sendall(first)
        assert len(read(sock, answer_bytes)) == answer_bytes
        sock.sendall(second)
        assert_refused(sock)
    assert_not_let_in(listening)

    listener = bench.listener()
    connecting = bench.end(listener.getsockname()[1], access=KEYED)
    connecting.link.connect()
    listener.settimeout(PATIENCE_S)
    sock, _ = listener.accept()
    with sock:
        assert read(sock, len(hello_of(nonce=NONCE)))[5] == 1
        sock.sendall(frame(2))
        assert read(sock, HEADER_BYTES)[5] == 3
    assert isinstance(connecting.down().error, KeyMismatch)


@pytest.mark.parametrize(
    "bare",
    [activation([(0, 0, 1, 1)], rows(1)), frame(7) + frame(7), GOODBYE + bytes(16)],
    ids=["rows", "pings", "goodbye"],
)
def test_frames_without_a_mac_end_the_connection(bench: Bench, bare: bytes) -> None:
    end = bench.end(1, access=KEYED)
    end.link.accept()
    sock, encoder = keyed_predecessor(bench, end)
    sock.sendall(b"".join(encoder.encode(ONE_ROW)))
    assert end.message() == ONE_ROW
    sock.sendall(bare)
    down = end.down()
    assert isinstance(down.error, RemoteProtocolError)
    assert str(down.error).startswith("the node before")


@pytest.mark.parametrize("again", [ONE_ROW, Ping(), Fork(0, 1, 2)])
def test_a_frame_that_comes_twice_ends_the_connection(bench: Bench, again: Activation | Ping | Fork) -> None:
    end = bench.end(1, access=KEYED)
    end.link.accept()
    sock, encoder = keyed_predecessor(bench, end)
    sock.sendall(2 * b"".join(encoder.encode(again)))
    if not isinstance(again, Ping):
        assert end.message() == again
    assert "its MAC does not match" in str(end.down().error)


def test_a_fault_is_not_forged(bench: Bench) -> None:
    end = bench.end(1, access=KEYED)
    end.link.accept()
    sock, _ = keyed_predecessor(bench, end)
    forger = Encoder(SESSION)
    forger.encode(Initiator(SESSION, FACTS, KEYED.keys).hello())
    forger.encode(Proof(bytes(32)))
    forger.open(bytes(32))
    sock.sendall(b"".join(forger.encode(Fault(1, "secondary 0 is gone"))))
    assert "its MAC does not match" in str(end.down().error)


def test_a_handshake_that_is_reflected_is_refused(bench: Bench) -> None:
    """Neither the node's own proof, as if it were the caller's, nor its own HELLO, as if it were its predecessor's."""
    end = bench.end(1, access=KEYED, expected={"n_slots": 4})
    end.link.accept()
    sock = bench.dial(end.port)
    hello = json.dumps({"n_slots": 4, "nonce": NONCE}, sort_keys=True).encode()
    sock.sendall(frame(1, hello))
    welcome = read(sock, WELCOME_BYTES)
    sock.sendall(frame(10, welcome[HEADER_BYTES + 16 :]))
    assert_refused(sock)
    sock = bench.dial(end.port)
    sock.sendall(hello_of(nonce=NONCE))
    assert_refused(sock)
    assert_not_let_in(end)
