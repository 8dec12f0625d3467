"""A listener of the ring port that others connect to as well."""

import contextlib
import errno
import logging
import os
import socket
import struct
import threading

import pytest

import mdi.ring.acceptor
from mdi.net.timeouts import Timeouts
from mdi.ring.acceptor import N_RANKS, _PendingConnection
from mdi.ring.link import PredecessorConnected
from mdi.segments import Fork
from support.clocks import ManualClock
from support.links import FOREIGN, HELLO, HOST, PATIENCE_S, SHORT_HANDSHAKE, WELCOME, Bench, End, read, reset
from support.scripts import wait_until
from support.wire import GOODBYE, HEADER_BYTES, PROOF, frame

PATIENT = Timeouts(authentication_s=2 * PATIENCE_S)


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
    sock.sendall(frame(6, struct.pack("<IIII", 1, 0, 2, 0)))
    assert end.message() == Fork(1, 0, 2)


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


def test_who_only_looks_whether_the_port_is_open_is_no_warning(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mdi.ring.acceptor")

    def resets() -> list[int]:
        return [record.levelno for record in caplog.records if "reset by peer" in record.getMessage()]

    end = bench.end(1)
    end.link.accept()
    looking, speaking = bench.dial(end.port), bench.dial(end.port)
    speaking.sendall(HELLO)
    assert read(speaking, HEADER_BYTES) == WELCOME
    reset(looking)
    wait_until(lambda: resets() == [logging.INFO], PATIENCE_S, "the log tells of the first one")
    reset(speaking)
    wait_until(lambda: resets() == [logging.INFO, logging.WARNING], PATIENCE_S, "the log warns of the second one")


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


# ---- more connections than may be pending


def is_closed(sock: socket.socket) -> bool:
    """Whether the other side closes the connection, or has."""
    try:
        return sock.recv(1) == b""
    except ConnectionError:
        return True


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many connections may be pending: 4."""
    monkeypatch.setattr(mdi.ring.acceptor, "descriptor_limit", lambda: 16)
    return 4


def test_hundreds_of_connections_do_not_keep_the_predecessor_out(bench: Bench) -> None:
    end = bench.end(1, timeouts=PATIENT)
    end.link.accept()
    for number in range(200):
        bench.dial(end.port).sendall(b"M" if number % 2 else b"")
    assert bench.predecessor(end)


def test_of_too_many_connections_the_oldest_that_sent_nothing_is_closed(
    bench: Bench, few: int, caplog: pytest.LogCaptureFixture
) -> None:
    end = bench.end(1, timeouts=PATIENT)
    end.link.accept()
    speaking, *silent = [bench.dial(end.port) for _ in range(few)]
    speaking.sendall(HELLO[:10])
    bench.dial(end.port)  # one more than there may be
    assert is_closed(silent[0])
    speaking.sendall(HELLO[10:])
    assert read(speaking, HEADER_BYTES) == WELCOME
    assert f"refused a connection from {HOST}: more than {few} connections have not authenticated" in caplog.text


def test_a_flood_does_not_push_the_predecessor_out_of_its_handshake(bench: Bench, few: int) -> None:
    end = bench.end(1, timeouts=PATIENT)
    end.link.accept()
    predecessor = bench.dial(end.port)
    predecessor.sendall(HELLO)
    assert read(predecessor, HEADER_BYTES) == WELCOME
    for number in range(20 * few):
        with contextlib.suppress(ConnectionError):
            bench.dial(end.port).sendall(HELLO[:1] if number % 2 else b"")
    predecessor.sendall(PROOF)
    assert isinstance(end.event(), PredecessorConnected)


def test_the_predecessor_s_address_counts_more_than_what_others_send() -> None:
    with socket.socket() as sock:
        others, predecessor = (_PendingConnection(sock, HOST, 0.0, here) for here in (False, True))
        ranks = [others.rank]
        others.has_sent = True
        ranks += [others.rank, predecessor.rank]
        predecessor.has_sent = True
        ranks.append(predecessor.rank)
        others.is_welcome = True
        ranks.append(others.rank)
        assert ranks == sorted(set(ranks)) and ranks[-1] == N_RANKS - 1
        others.is_refused = True
        assert others.rank == 0


def test_an_acceptor_without_descriptors_waits_and_goes_on(bench: Bench) -> None:
    class Failing(socket.socket):
        n_failures = 0

        def accept(self) -> tuple[socket.socket, object]:
            self.n_failures += 1
            if self.n_failures <= 3:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    with Failing(fileno=bench.listener().detach()) as listener:
        end = bench.end(1, listener=listener)
        end.link.accept()
        assert bench.predecessor(end)
        end.link.close()
        assert listener.n_failures <= 10


def test_a_flood_of_refused_connections_is_a_few_lines(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    end = bench.end(1)
    end.link.accept()
    for number in range(100):
        sock = bench.dial(end.port)
        sock.sendall(frame(1, b'{"\\u001b[2J%d": 1}' % number))
        assert read(sock, HEADER_BYTES)[5] == 3
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 20
    assert all(line.isprintable() for line in lines)
