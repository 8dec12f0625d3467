"""A listener of the ring port that others connect to as well."""

import contextlib
import struct
import threading

import pytest

from mdi.net.timeouts import Timeouts
from mdi.segments import Release
from support.clocks import ManualClock
from support.links import FOREIGN, HELLO, SHORT_HANDSHAKE, WELCOME, Bench, End, read, reset
from support.wire import GOODBYE, HEADER_BYTES, frame


@pytest.mark.parametrize("how", ["closes", "resets", "goes"])
@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_connection_does_not_keep_the_predecessor_out(bench: Bench, data: bytes, how: str) -> None:
    end = bench.end(1, timeouts=SHORT_HANDSHAKE)
    end.link.accept()
    intruder = bench.dial(end.port)
    with contextlib.suppress(ConnectionError):
        intruder.sendall(data)
    if how == "closes":
        intruder.close()
    elif how == "resets":
        reset(intruder)
    sock = bench.predecessor(end)
    sock.sendall(frame(5, struct.pack("<IIII", 1, 0, 0, 0)))
    assert end.message() == Release(1)


def assert_refused(bench: Bench, end: End) -> None:
    """By then the acceptor has also done everything that was due when this connection came."""
    sock = bench.dial(end.port)
    sock.sendall(GOODBYE)
    assert read(sock, HEADER_BYTES)[5] == 3


def test_a_silent_connection_is_closed_exactly_at_its_deadline(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    end = bench.end(1, timeouts=Timeouts(authentication_s=2.0, clock=clock))
    end.link.accept()
    silent = bench.dial(end.port)
    assert_refused(bench, end)
    clock.now_s += 1.99
    for _ in range(2):
        assert_refused(bench, end)
    assert "did not authenticate" not in caplog.text
    clock.now_s += 0.01
    assert_refused(bench, end)
    with contextlib.suppress(ConnectionError):
        assert silent.recv(1) == b""
    assert "it did not authenticate within 2 s" in caplog.text


@pytest.mark.parametrize("data", [FOREIGN["other epoch"], FOREIGN["other facts"], FOREIGN["not hello"]])
def test_a_foreign_connection_is_answered_why_it_is_refused(bench: Bench, data: bytes) -> None:
    end = bench.end(1)
    end.link.accept()
    intruder = bench.dial(end.port)
    intruder.sendall(data)
    header = read(intruder, HEADER_BYTES)
    assert header[5] == 3
    assert len(read(intruder, int.from_bytes(header[20:24], "little"))) > 10


def test_a_peer_that_drips_does_not_keep_the_predecessor_out(bench: Bench) -> None:
    end = bench.end(1, timeouts=SHORT_HANDSHAKE)
    end.link.accept()
    intruder, done = bench.dial(end.port), threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            for byte in frame(1, b'{"a": "' + b"x" * 4000 + b'"}'):
                intruder.sendall(bytes([byte]))
                if done.wait(0.05):
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        sock = bench.dial(end.port)
        sock.settimeout(4)
        sock.sendall(HELLO)
        assert read(sock, HEADER_BYTES) == WELCOME
    finally:
        done.set()
        thread.join()
