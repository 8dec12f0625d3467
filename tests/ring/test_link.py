"""Two sockets and two threads, on real connections of the loopback."""

import contextlib
import dataclasses
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdi.errors import ConfigError, LinkClosed, LinkTimeout, LocalProtocolError, RemoteAbort, RemoteProtocolError
from mdi.net.timeouts import Timeouts
from mdi.ring.link import PredecessorConnected
from mdi.ring.messages import Activation, Fault, Goodbye, Message
from mdi.segments import Fork, Segment
from support.links import (
    FLOOD,
    HELLO,
    HOST,
    LARGE,
    ONE_ROW,
    PATIENCE_S,
    SHORT_HANDSHAKE,
    WELCOME,
    Bench,
    free_port,
    read,
    reset,
)
from support.wire import HEADER_BYTES, ROW_BYTES, SESSION, activation, frame, rows

FREQUENT_PINGS = Timeouts(ping_interval_s=0.02)


def in_time_wait(ports: list[int]) -> list[str]:
    """The connections of these ports that the system still remembers (on Linux; elsewhere none are seen)."""
    table = Path("/proc/net/tcp")
    rows = [line.split() for line in table.read_text().splitlines()[1:]] if table.exists() else []
    return [row[1] for row in rows if row[3] == "06" and int(row[1].rpartition(":")[2], 16) in ports]


def pings(sock: socket.socket) -> Iterator[None]:
    """Read frames that must all be pings."""
    while True:
        assert read(sock, HEADER_BYTES) == frame(7)
        yield


# ---- a ring of two


def test_messages_travel_round_a_ring_and_a_goodbye_ends_it(bench: Bench) -> None:
    a, b = bench.ring()
    full = Activation((Segment(0, 0, 2, 1), Segment(2, 4, 3, 0)), memoryview(rows(5)))
    for message in (full, Fork(0, 1, 2), ONE_ROW):
        a.link.send(message)
        assert b.message() == message
    kept = Activation(full.segments, memoryview(rows(1)))
    for message in (kept, Fork(0, 1, 2)):
        b.link.send(message)
        assert a.message() == message
    a.link.send(Goodbye())
    assert b.message() == Goodbye()
    b.link.send(Goodbye())
    assert a.message() == Goodbye()
    for end in (a, b):
        end.link.close(drain_s=PATIENCE_S)
        assert end.inbox.empty()


def test_messages_arrive_in_order(bench: Bench) -> None:
    a, b = bench.ring()
    sent: list[Message] = [Activation((Segment(0, i, 1, 1),), memoryview(bytes([i]) * ROW_BYTES)) for i in range(10)]
    for message in sent:
        a.link.send(message)
    assert [b.message() for _ in sent] == sent


def test_a_fault_travels_and_ends_the_direction(bench: Bench) -> None:
    a, b = bench.ring()
    a.link.send(Fault(2, "gave no sign of life"))
    assert b.message() == Fault(2, "gave no sign of life")
    b.link.send(Fault(2, "gave no sign of life"))
    assert a.message() == Fault(2, "gave no sign of life")
    for end in (a, b):
        end.link.close(drain_s=PATIENCE_S)
        assert end.inbox.empty()


def test_a_large_message_arrives_whole(bench: Bench) -> None:
    session = dataclasses.replace(SESSION, n_embd=4096, context=1000, max_rows=1000)  # 16 MB: many reads and writes
    listener = bench.listener()
    a = bench.end(listener.getsockname()[1], session=session)
    b = bench.end(1, listener=listener, session=session)
    b.link.accept()
    a.link.connect()
    assert isinstance(b.event(), PredecessorConnected)
    data = bytes(range(256)) * (1000 * 16384 // 256)
    message = Activation((Segment(0, 0, 1000, 1),), memoryview(data))
    a.link.send(message)
    assert b.message() == message


def test_sessions_follow_each_other_at_once_on_the_same_ports(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mdi.ring.link")
    ports = [free_port() for _ in range(4)]
    assert len(set(ports)) == 4
    for _ in range(20):
        with contextlib.ExitStack() as stack:
            bench = Bench()
            stack.callback(bench.close)
            a_listener, b_listener = bench.listener(ports[0]), bench.listener(ports[1])
            a = bench.end(ports[1], listener=a_listener, source_port=ports[2])
            b = bench.end(ports[0], listener=b_listener, source_port=ports[3])
            a.link.accept()
            b.link.accept()
            a.link.connect()
            assert isinstance(b.event(), PredecessorConnected)
            b.link.connect()
            assert isinstance(a.event(), PredecessorConnected)
            a.link.send(Goodbye())
            assert b.message() == Goodbye()
            b.link.send(Goodbye())
            assert a.message() == Goodbye()
            a.link.close(drain_s=PATIENCE_S)
            b.link.close(drain_s=PATIENCE_S)
    assert [record.getMessage() for record in caplog.records] == []  # no "port ... is not free"
    assert in_time_wait(ports) == []


def test_ports_are_free_again_after_a_session_that_broke(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mdi.ring.link")
    port, source_port = free_port(), free_port()
    for _ in range(5):
        bench = Bench()
        b = bench.end(1, listener=bench.listener(port))
        a = bench.end(port, source_port=source_port)
        b.link.accept()
        a.link.connect()
        assert isinstance(b.event(), PredecessorConnected)
        bench.close()
    assert [record.getMessage() for record in caplog.records] == []
    assert in_time_wait([port, source_port]) == []


def test_ipv6_addresses_work(bench: Bench) -> None:
    try:
        listener = bench.listener(host="::1")
    except ConfigError:
        pytest.skip("no IPv6 on this machine")
    b = bench.end(1, listener=listener)
    a = bench.end(b.port, host="::1", source_port=free_port())
    b.link.accept()
    a.link.connect()
    assert isinstance(b.event(), PredecessorConnected)


# ---- the source port


def test_the_connection_comes_from_the_source_port(bench: Bench) -> None:
    listener, source_port = bench.listener(), free_port()
    end = bench.end(listener.getsockname()[1], source_port=source_port)
    end.link.connect()
    assert bench.successor(listener).getpeername()[1] == source_port


def test_a_taken_source_port_is_replaced(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mdi.ring.link")
    listener, taken = bench.listener(), bench.listener().getsockname()[1]
    end = bench.end(listener.getsockname()[1], source_port=taken)
    end.link.connect()
    assert bench.successor(listener).getpeername()[1] != taken
    assert f"port {taken} for outgoing data is not free" in caplog.text


# ---- the handshake


def test_a_refused_handshake_gives_its_reason_on_both_sides(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    b = bench.end(1, expected={"n_slots": 4})
    a = bench.end(b.port)
    b.link.accept()
    a.link.connect()
    down = a.down()
    assert down.peer is a.link.config.successor
    assert isinstance(down.error, RemoteAbort)
    reason = "n_slots is 3, this node expects 4"
    assert str(down.error) == f"the node behind ({HOST}:{b.port}) refused the connection: {reason}"
    a.link.close()
    b.link.close()
    assert f"refused a connection from {HOST}: {reason}" in caplog.text
    assert b.inbox.empty()  # it waits on


def test_another_epoch_is_refused_with_its_reason(bench: Bench) -> None:
    b = bench.end(1)
    a = bench.end(b.port, session=dataclasses.replace(SESSION, epoch=8))
    b.link.accept()
    a.link.connect()
    error = a.down().error
    # The refusal itself is of another epoch: either way the epoch is what the user reads.
    assert isinstance(error, RemoteAbort | RemoteProtocolError)
    assert "epoch" in str(error)


def test_nobody_at_the_address_is_said_at_once(bench: Bench) -> None:
    port = free_port()
    end = bench.end(port)
    end.link.connect()
    down = end.down()
    assert isinstance(down.error, LinkClosed)
    assert str(down.error) == f"the node behind ({HOST}:{port}) cannot be reached: Connection refused"


@pytest.mark.parametrize("addr", ["10.7..48.46", "a" * 64])
def test_an_address_that_is_none_is_reported_as_such(bench: Bench, addr: str) -> None:
    end = bench.end(5088, successor_host=addr)
    end.link.connect()
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "cannot be reached" in str(error)


def test_a_successor_that_never_answers_is_given_up(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=SHORT_HANDSHAKE)
    end.link.connect()
    error = end.down().error
    assert isinstance(error, LinkTimeout)
    assert "0.3 s" in str(error)  # the time that was waited, not the peer timeout


def test_a_black_hole_is_given_up(bench: Bench) -> None:
    end = bench.end(bench.black_hole(), timeouts=SHORT_HANDSHAKE)
    end.link.connect()
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "cannot be reached" in str(error)
    assert "timed out" in str(error)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", frame(7), WELCOME[:9]]
)
def test_a_successor_that_answers_nonsense_is_an_error(bench: Bench, answer: bytes) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    sock, _ = listener.accept()
    with sock:
        assert read(sock, len(HELLO)) == HELLO
        sock.sendall(answer)
    error = end.down().error
    assert isinstance(error, RemoteProtocolError if len(answer) >= HEADER_BYTES else LinkClosed)
    if isinstance(error, LinkClosed):
        assert "closed the connection during the handshake" in str(error)


# ---- a predecessor that is lost


def test_a_predecessor_that_closes_without_goodbye_is_lost(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    bench.predecessor(end).close()
    down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, LinkClosed)
    assert str(down.error) == f"the node before ({HOST}:1) closed the connection without a goodbye"


def test_a_predecessor_that_resets_is_lost(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    reset(bench.predecessor(end))
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "connection lost: Connection reset by peer" in str(error)


@pytest.mark.parametrize("n_bytes", [1, HEADER_BYTES, HEADER_BYTES + 20])
def test_a_frame_that_is_cut_off_is_a_lost_node(bench: Bench, n_bytes: int) -> None:
    end = bench.end(1)
    end.link.accept()
    sock = bench.predecessor(end)
    sock.sendall(activation([(0, 0, 1, 1)], rows(1))[:n_bytes])
    sock.close()
    error = end.down().error
    assert isinstance(error, LinkClosed)
    assert "within a frame without a goodbye" in str(error)


@pytest.mark.parametrize("n_bytes", [0, 1, HEADER_BYTES + 20])
def test_a_predecessor_that_falls_silent_is_lost(bench: Bench, n_bytes: int) -> None:
    end = bench.end(1, peer_timeout_s=0.2)
    end.link.accept()
    bench.predecessor(end).sendall(activation([(0, 0, 1, 1)], rows(1))[:n_bytes])
    down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, LinkTimeout)
    assert str(down.error) == f"the node before ({HOST}:1) gave no sign of life for 0.2 s"


def test_a_predecessor_that_breaks_the_protocol_is_named(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    bench.predecessor(end).sendall(activation([(7, 0, 1, 1)], rows(1)))
    down = end.down()
    assert down.peer is end.link.config.predecessor
    assert isinstance(down.error, RemoteProtocolError)
    assert "the node before" in str(down.error)
    assert "there are 3 slots" in str(down.error)


# ---- a successor that is lost


@pytest.mark.parametrize("how", ["closes", "resets"])
def test_a_successor_that_is_gone_is_noticed_while_idle(bench: Bench, how: str) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=FREQUENT_PINGS)
    end.link.connect()
    sock = bench.successor(listener)
    reset(sock) if how == "resets" else sock.close()
    down = end.down()
    assert down.peer is end.link.config.successor
    assert isinstance(down.error, LinkClosed)
    assert "connection lost" in str(down.error)


def test_a_successor_that_takes_nothing_is_lost(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], session=LARGE, peer_timeout_s=0.2)
    end.link.connect()
    bench.successor(listener)
    end.link.send(FLOOD)
    down = end.down()
    assert down.peer is end.link.config.successor
    assert isinstance(down.error, LinkTimeout)


def test_our_own_mistake_is_reported_as_ours(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1])
    end.link.connect()
    bench.successor(listener)
    end.link.send(Activation((Segment(0, 0, 2, 1),), memoryview(rows(5))))
    assert isinstance(end.down().error, LocalProtocolError)


# ---- silence


def test_an_idle_link_pings(bench: Bench) -> None:
    listener = bench.listener()
    end = bench.end(listener.getsockname()[1], timeouts=FREQUENT_PINGS)
    end.link.connect()
    arriving = pings(bench.successor(listener))
    for _ in range(10):
        next(arriving)


def test_pings_go_no_further(bench: Bench) -> None:
    end = bench.end(1)
    end.link.accept()
    sock = bench.predecessor(end)
    sock.sendall(frame(7) * 10 + activation([(0, 0, 1, 1)], rows(1)))
    assert end.message() == ONE_ROW


def test_pings_keep_an_idle_ring_alive(bench: Bench) -> None:
    end = bench.end(1, peer_timeout_s=1.0)
    end.link.accept()
    sock = bench.predecessor(end)
    for _ in range(12):
        sock.sendall(frame(7))
        time.sleep(0.1)
    sock.sendall(activation([(0, 0, 1, 1)], rows(1)))
    assert end.message() == ONE_ROW


def test_a_short_peer_timeout_does_not_outrun_the_pings() -> None:
    timeouts = Timeouts(ping_interval_s=1.0)
    assert timeouts.ping_every_s(60.0) == 1.0
    assert timeouts.ping_every_s(1.5) == 0.5
    assert timeouts.ping_every_s(0.1) < 0.1 / 2
